# SPDX-License-Identifier: Apache-2.0
"""The study at the paper's size: what it needs is told before anything runs, and all its stages work at full size.

The dry run has the full-size networks with random weights under the official names, and everything else small: two
updates, two tasks, one or two pictures of 64 pixels, a step of the diffusion. `pytest tests/test_paper.py -k dry -s`
shows it.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from clone import ROOT, Clone

from llicm.data.catalogue import catalogue
from llicm.data.dead_leaves import dead_leaves
from llicm.errors import UserError
from llicm.files import write_json
from llicm.images import write_png
from llicm.parameters import load, read
from llicm.pipeline.needs import check_needs
from llicm.restore.irsde import IRSDERestorer
from llicm.restore.released import UNIVERSAL_IR
from llicm.vlm.checkpoint import official_names
from llicm.vlm.clip import model_config
from llicm.vlm.daclip import make_daclip

PROFILE = "profiles/paper"
PARAMETERS = load(ROOT / PROFILE / "params.yaml")
LEVELS = {"heic": [8, 20], "rdo": [0, 2, 4, 6], "llicm": [0, 2, 4, 6]}  # a comparison needs four points
SMALL = {
    "threads": 1, "tasks": ["noisy", "hazy"], "training.batch": 4, "training.accumulate": 1, "training.crop": 64,
    "training.pretraining": 1,
    "training.fine_tuning": 2, "training.warmup": 1, "training.log_every": 1, "training.checkpoint_every": 0,
    "evaluate.metrics": ["psnr", "ssim", "gmsd", "piqe"],  # NIQE needs blocks of 96 pixels
    "degrade.max_side": 64, "degrade.severities": [0.5], "models.irsde.restorer.steps": 1,
    "vlm.recognise": {"side": 64, "severities": [0.5], "levels": [0]}, "evaluate.workers": 1, "figures.dpi": 50,
    "figures.side": 64, "release.level": 0, "figures.level": 0,
    **{f"benchmark.{group}.levels": levels for group, levels in LEVELS.items()},
}  # fmt: skip


def pictures(folder: Path, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for number in range(count):
        write_png(dead_leaves(72, [torch.rand(3, 64, 64, generator=generator)], generator), folder / f"{number}.png")


def lay_out(root: Path, weights: bool = True) -> None:
    """All that the profile needs: tiny sets in DA-CLIP's layout, and files of weights."""
    photos = root / PROFILE / "photos"
    pictures(photos / "test", 1, 0)
    shutil.copytree(ROOT / "data/train", photos / "train")  # NIQE's fit needs real ones
    for seed, word in enumerate(PARAMETERS.tasks, 1):
        for number, folder in enumerate(("train", "val")):
            for other, kind in enumerate(("GT", "LQ")):
                pictures(root / "datasets" / folder / word / kind, 2, 4 * seed + 2 * number + other)
    daclip, unet = (root / "init/paper" / name for name in ("daclip_ViT-B-32.pt", "universal-ir.pth"))
    if not weights:
        daclip.write_bytes(b"other")
        unet.write_bytes(b"other")
        return
    torch.manual_seed(0)
    model = make_daclip(model_config("ViT-B-32"))
    own = model.state_dict()
    published = {f"module.{name}": own[target] for name, target in official_names(model).items()}
    torch.save({"epoch": 1, "state_dict": published}, daclip)
    torch.save(IRSDERestorer(**UNIVERSAL_IR).unet.state_dict(), unet)


def test_it_is_told_what_must_be_put_where_before_anything_runs(tmp_path, monkeypatch, capsys):
    (tmp_path / PROFILE).mkdir(parents=True)
    (tmp_path / "init/paper").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / PROFILE)
    with pytest.raises(UserError, match="9 of the 9 things that this study needs are missing"):
        check_needs(PARAMETERS)
    rows = [line for line in capsys.readouterr().err.splitlines() if "MISSING" in line]
    assert len(rows) == 9
    for name in PARAMETERS.sets:
        entry = catalogue()[name]
        (row,) = [row for row in rows if row.startswith(entry.title + "  ")]
        assert f"/{entry.degradation}/" in row and f"{entry.train} + {entry.val} pairs" in row and entry.source in row
    (row,) = [row for row in rows if row.startswith("universal-ir.pth")]
    assert "196 MB" in row and "sha256 87575b2559ca122d" in row and "weblzw/daclip-uir-ViT-B-32-irsde" in row

    lay_out(tmp_path, weights=False)
    check_needs(PARAMETERS)  # no error
    shown = capsys.readouterr().err
    assert shown.count("there, not the released bytes") == 2 and shown.count("there, 2 + 2 ") == 6

    (tmp_path / "datasets/val/snowy/LQ").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="1 of the 9 things"):
        check_needs(PARAMETERS)
    assert "MISSING: val/snowy/LQ" in capsys.readouterr().err
    other = PARAMETERS.model_copy(update={"sets": ["kodak"]})
    with pytest.raises(UserError, match="sets names kodak; it takes sets of pairs"):
        check_needs(other)


def test_without_what_it_needs_no_stage_runs(tmp_path):
    clone = Clone.of_the_work_tree(tmp_path)
    said = clone.dvc("repro", f"{PROFILE}/dvc.yaml", check=False)
    assert said.returncode and "MISSING: train/noisy/GT" in said.stderr and "nothing was run" in said.stderr
    assert not (tmp_path / PROFILE / "build").exists() and not (tmp_path / PROFILE / "executed").exists()


@pytest.mark.slow
def test_dry_run(tmp_path):
    clone = Clone.of_the_work_tree(tmp_path)
    lay_out(tmp_path)
    path = tmp_path / PROFILE / "params.yaml"
    values = read(path)
    for name, value in SMALL.items():
        place = values
        for part in name.split(".")[:-1]:
            place = place[part]
        place[name.split(".")[-1]] = value
    write_json(values, path)  # JSON is YAML
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = clone.command("dvc", "repro", f"{PROFILE}/dvc.yaml")
    ran = subprocess.run(**command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    print(ran.stdout.replace("\r", "\n"))
    wall = time.perf_counter() - began
    print(f"{wall:.0f} s, {cpu:.0f} s of CPU time, largest process {used.ru_maxrss / 1e6:.1f} GB")
    assert ran.returncode == 0
    executed = {file.stem for file in (tmp_path / PROFILE / "executed").iterdir()}
    assert len(executed) == 4 + len(PARAMETERS.models) + len(PARAMETERS.benchmark)
    assert (tmp_path / PROFILE / "artifacts/release/llicm.safetensors").stat().st_size > 1e8
    assert used.ru_maxrss < 6e6  # kB; two processes work at a time


@pytest.mark.slow
def test_the_script_for_gpus_works_without_one(tmp_path):
    command = [sys.executable, ROOT / "bench/gpu.py", tmp_path / "found.json", "--tiny", "--seconds", "0.1"]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT / "src")})
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["integer_networks"]["calls"] > 0 and found["integer_networks"]["differ"] == 0
    for model in ("rdo", "irsde", "llicm"):
        assert found[model]["images_per_s"] > 0 and 0 < found[model]["share"] < 1
    assert found["restored_per_s"] > 0
    for coded in (found["published"], found["rdo"]["codec"]):
        assert coded["encoded_per_s"] > 0 and coded["decoded_per_s"] > 0 and coded["same_symbols"]
