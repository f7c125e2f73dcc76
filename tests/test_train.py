# SPDX-License-Identifier: Apache-2.0
"""`llicm train`: models without the pipeline."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from llicm.cli import main
from llicm.data.dead_leaves import dead_leaves
from llicm.errors import UserError
from llicm.images import write_png
from llicm.parameters import change, read

SMOKE = Path(__file__).resolve().parents[1] / "profiles/smoke/params.yaml"
SHORT = [
    "training.pretraining=3",
    "training.fine_tuning=2",
    "training.warmup=1",
    "training.log_every=1",
    "photos=photos",
]


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


def test_a_model_is_trained_with_changed_parameters(profile, capsys):
    out = profile / "search"
    assert run(profile, "rdo", "--set", "objectives.rd.distortion={charbonnier: 1}", "-o", str(out)) == 0
    folder = out / "rdo"
    assert {path.name for path in folder.iterdir()} == {"codec.safetensors", "pretrained.safetensors", "training.json"}
    about = json.loads((folder / "training.json").read_text())
    assert [row["step"] for row in about["log"]] == [1, 2, 3, 4, 5]
    assert about["objective"]["distortion"] == {"charbonnier": 1}
    assert str(folder) in capsys.readouterr().out
    # the parameters of the file, not of the pipeline's folder, are what it starts from and writes to otherwise
    assert not (profile / "artifacts").exists()
    other = profile / "other"
    assert run(profile, "rdo", "-o", str(other)) == 0
    assert (other / "rdo/codec.safetensors").read_bytes() != (folder / "codec.safetensors").read_bytes()


def test_a_model_has_updates_of_its_own(profile):
    assert run(profile, "rdo", "--set", "models.rdo.updates=2", "-o", str(profile / "short")) == 0
    about = json.loads((profile / "short/rdo/training.json").read_text())
    assert [row["step"] for row in about["log"]] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing"], "nothing: no model of params.yaml"),
        (["rdo", "--set", "models.rdo.trainz=[codec]"], "trainz"),
        (["rdo", "--set", "seed.of=1"], "seed.of: params.yaml has no such parameter"),
        (["llicm"], "no such weights"),
    ],
)
def test_mistakes_are_reported(profile, capsys, arguments, sentence):
    assert run(profile, *arguments) == 1
    assert sentence in capsys.readouterr().err


def test_a_setting_needs_a_name_and_a_value(profile):
    assert run(profile, "rdo", "--set", "alpha") == 2


def test_changes_leave_the_given_parameters_alone():
    values = read(SMOKE)
    changed = change(values, {"training.lr": 0.002, "objectives.rd.alpha": 0.5})
    assert (changed.training.lr, changed.objectives["rd"].alpha) == (0.002, 0.5)
    assert values == read(SMOKE)
    with pytest.raises(UserError, match="lr"):
        change(values, {"training.lr": "fast"})
