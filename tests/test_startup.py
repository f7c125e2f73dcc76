"""What compression and restoration load: libraries that neither needs would take seconds before the work begins."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from llicm.framework import LLICM
from llicm.model import save_model
from llicm.registry import CODECS
from llicm.vlm.conditioner import Conditioner
from llicm.vlm.daclip import make_daclip
from llicm.vlm.mini import mini_config

HEAVY = {"torch_geometric", "compressai", "pandas", "matplotlib", "pyiqa"}
OF_CLIP = {"open_clip", "transformers", "timm", "torchvision"}  # only a restored picture is looked at by CLIP
PROGRAM = """
import atexit, json, sys
atexit.register(lambda: print(json.dumps(sorted({name.split(".")[0] for name in sys.modules}))))
from llicm.cli import main
main()
"""


def loaded(*arguments) -> set[str]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("name", ["mean-scale", "context"])
def test_nothing_heavy_is_loaded(tmp_path, name):
    codec = CODECS.make(name, N=16, M=24, lambdas=[0.002, 0.03])
    codec.update()
    conditioner = Conditioner(make_daclip(mini_config(32, 16, 32, 1, 16, 32, 1)), "windows")
    model, photo = tmp_path / "model.safetensors", tmp_path / "photo.png"
    save_model(LLICM(codec.eval(), None, conditioner), model)
    Image.new("RGB", (64, 64), (200, 100, 40)).save(photo)
    assert not loaded("compress", str(photo), "--level", "1", "--model", str(model)) & (HEAVY | OF_CLIP)
    decoded = loaded("decompress", str(photo.with_suffix(".llicm")), "--as-captured", "--model", str(model))
    assert not decoded & (HEAVY | OF_CLIP)


def test_the_first_stage_loads_no_networks():
    """It is run before any other, also if nothing is to do."""
    program = "import llicm.pipeline.code, sys; sys.exit(any(map(sys.modules.get, ('torch', 'rfc3987_syntax'))))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
