# SPDX-License-Identifier: Apache-2.0
"""`llicm train`: arms without the pipeline."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from llicm.cli.study import main
from llicm.data.dead_leaves import dead_leaves
from llicm.errors import UserError
from llicm.images import write_png
from llicm.pipeline.parameters import load
from llicm.pipeline.train import change

SMOKE = Path(__file__).resolve().parents[1] / "profiles/smoke/params.yaml"
SHORT = ["training.trunk=3", "training.branch=2", "training.warmup=1", "training.log_every=1", "photos=photos"]


@pytest.fixture
def profile(tmp_path):
    shutil.copy(SMOKE, tmp_path / "params.yaml")
    for number, part in enumerate(("train", "test")):
        photo = dead_leaves(96, [torch.rand(3, 64, 64)], torch.Generator().manual_seed(number))
        (tmp_path / "photos" / part).mkdir(parents=True)
        write_png(photo, tmp_path / "photos" / part / f"{part}.png")
    return tmp_path


def run(profile, *arguments):
    settings = [word for text in (*SHORT, "training.checkpoint_every=1") for word in ("--set", text)]
    return main(["train", *arguments, "--profile", str(profile), *settings])


def test_an_arm_is_trained_with_changed_parameters(profile, capsys):
    out = profile / "search"
    assert run(profile, "codec", "--set", "arms.codec.objective.distortion={charbonnier: 1}", "-o", str(out)) == 0
    folder = out / "separate/codec"
    assert {path.name for path in folder.iterdir()} == {"codec.safetensors", "trunk.safetensors", "training.json"}
    about = json.loads((folder / "training.json").read_text())
    assert [row["step"] for row in about["log"]] == [1, 2, 3, 4, 5]
    assert about["spec"]["objective"]["distortion"] == {"charbonnier": 1}
    assert str(folder) in capsys.readouterr().out
    # the parameters of the file, not of the pipeline's folder, are what it starts from and writes to otherwise
    assert not (profile / "artifacts").exists()
    other = profile / "other"
    assert run(profile, "codec", "-o", str(other)) == 0
    assert (other / "separate/codec/codec.safetensors").read_bytes() != (folder / "codec.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "nothing: no arm of params.yaml"),
        (["codec", "--set", "arms.codec.trainz=[codec]"], "trainz"),
        (["codec", "--set", "seed.of=1"], "seed.of: params.yaml has no such parameter"),
        (["llicm"], "no such weights"),
    ],
)
def test_mistakes_are_told(profile, capsys, arguments, said):
    assert run(profile, *arguments) == 1
    assert said in capsys.readouterr().err


def test_a_setting_needs_a_name_and_a_value(profile):
    assert run(profile, "codec", "--set", "alpha") == 2


def test_changes_leave_the_given_parameters_alone():
    params = load(SMOKE)
    changed = change(params, {"training.lr": 0.002, "arms.codec.objective.alpha": 0.5})
    assert (changed["training"]["lr"], changed["arms"]["codec"]["objective"]["alpha"]) == (0.002, 0.5)
    assert params == load(SMOKE)
    with pytest.raises(UserError, match="lr"):
        change(params, {"training.lr": "fast"})
