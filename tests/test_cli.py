# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys

import pytest
import torch

from llicm import cli
from llicm.framework import load_part
from llicm.restore.registry import make_restorer
from llicm.vlm.checkpoint import load_daclip, official_names
from llicm.vlm.daclip import make_daclip

TINY = {
    "embed_dim": 6,
    "vision_cfg": {"layers": 1, "width": 8, "head_width": 4, "patch_size": 4, "image_size": 8},
    "text_cfg": {"context_length": 7, "vocab_size": 20, "width": 8, "heads": 2, "layers": 1},
}


def test_command_converts(tmp_path, capsys):
    model, config, out = make_daclip(TINY), tmp_path / "tiny.json", tmp_path / "out.safetensors"
    config.write_text(json.dumps(TINY))
    own = model.state_dict()
    torch.save({name: own[target] for name, target in official_names(model).items()}, tmp_path / "in.pt")
    assert cli.main(["vlm", "convert", str(tmp_path / "in.pt"), str(out), "--model", str(config)]) == 0
    assert all(torch.equal(value, own[name]) for name, value in load_daclip(out).state_dict().items())
    assert capsys.readouterr().err == ""


def test_command_converts_a_released_restorer(tmp_path, capsys, monkeypatch):
    small = {"nf": 4, "ch_mult": [1, 2], "context": {"degradation": 8, "content": 8}}
    monkeypatch.setattr("llicm.restore.released.UNIVERSAL_IR", small)
    state, out = make_restorer("irsde", **small).unet.state_dict(), tmp_path / "out.safetensors"
    torch.save(state, tmp_path / "universal-ir.pth")
    assert cli.main(["restorer", "convert", str(tmp_path / "universal-ir.pth"), str(out), "--steps", "7"]) == 0
    restorer = load_part("restorer", out)
    assert restorer.steps == 7
    assert all(torch.equal(value, state[name]) for name, value in restorer.unet.state_dict().items())
    assert cli.main(["restorer", "convert", str(tmp_path / "absent.pth"), str(out)]) == 1
    assert "absent.pth" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "target", "sentence"),
    [
        ("absent.pt", "out.safetensors", "absent.pt: no such file of weights; check the path"),
        ("other.pt", "out.safetensors", "other.pt: these weights do not fit the model"),
        ("other.pt", "out.pt", "out.pt: the file to write must have the suffix .safetensors"),
    ],
)
def test_command_fails_with_one_sentence(tmp_path, capsys, source, target, sentence):
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pt")
    assert cli.main(["vlm", "convert", str(tmp_path / source), str(tmp_path / target)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert sentence in captured.err and not (tmp_path / target).exists()


@pytest.mark.parametrize("arguments", [[], ["vlm"], ["vlm", "convert"], ["nonesuch"]])
def test_command_refuses_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2 and "usage: llicm" in capsys.readouterr().err


def test_help_does_not_load_torch():
    code = "import sys, llicm.cli; print(sorted({'torch', 'numpy', 'open_clip'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
