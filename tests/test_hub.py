# SPDX-License-Identifier: Apache-2.0
"""Models as folders, by the hub's mixin: the bytes are those that are released."""

import os
import subprocess
import sys

import pytest
import torch
from small import DIRECT, small_codec

from llicm.errors import UserError
from llicm.hub import LLICM
from llicm.model import save_model
from llicm.registry import RESTORERS
from llicm.vlm.conditioner import Conditioner
from llicm.vlm.daclip import make_daclip
from llicm.vlm.mini import mini_config


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A folder as `llicm.pipeline.publish` makes it."""
    folder = tmp_path_factory.mktemp("released")
    codec = small_codec()
    restorer = RESTORERS.make(**DIRECT, level_conditioned=True, context=None)
    conditioner = Conditioner(make_daclip(mini_config(32, 16, 32, 1, 16, 32, 1)), "windows")
    save_model(LLICM(codec, restorer, conditioner).eval(), folder / "llicm.safetensors")
    for name in ("llicm.md", "photos.md", "lineage.json"):
        (folder / name).write_text(f"text of {name}\n")
    return folder


def test_what_is_saved_is_what_was_released(released, tmp_path):
    LLICM.from_pretrained(released).save_pretrained(tmp_path / "once")
    system = LLICM.from_pretrained(str(tmp_path / "once"))
    system.save_pretrained(tmp_path / "twice")
    for name in ("llicm.safetensors", "photos.md", "lineage.json", "llicm.md"):
        for folder in (tmp_path / "once", tmp_path / "twice"):
            copy = folder / ("README.md" if name == "llicm.md" else name)
            assert copy.read_bytes() == (released / name).read_bytes(), copy
    assert len(list((tmp_path / "once").iterdir())) == 4  # nothing pickled, no second configuration
    assert not system.training
    x = torch.rand(3, 64, 64)
    assert system.decompress(system.compress(x, 1))[1].shape == x.shape


def test_a_model_without_a_card_gets_one(released, tmp_path):
    found = LLICM.from_pretrained(released)
    LLICM(found.codec, None).save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "library_name: llicm" in text and "license: apache-2.0" in text and "from_pretrained" in text
    assert LLICM.from_pretrained(tmp_path).restorer is None


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(UserError, match="llicm.safetensors: no such model"):
        LLICM.from_pretrained(tmp_path)


def test_a_name_without_a_network_is_one_error(tmp_path):
    names = ["owner/name", "no name!"]
    code = (
        f"from llicm.errors import UserError\nfrom llicm.hub import LLICM\nfor name in {names}:\n"
        "    try:\n        LLICM.from_pretrained(name)\n    except UserError as error:\n        print(error)"
    )
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "Traceback" not in done.stderr
    for name, line in zip(names, done.stdout.splitlines(), strict=True):
        assert line.startswith(f"{name}: no such folder, and the hub gave no such model (")
