# SPDX-License-Identifier: Apache-2.0
"""`pip install .` is enough for photos: every other package is hidden, as if it were not installed."""

import ast
import importlib.metadata
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from small import CODEC, DIRECT

from llicm.framework import LLICM
from llicm.model import save_model
from llicm.registry import CODECS, RESTORERS
from llicm.vlm.conditioner import Conditioner
from llicm.vlm.daclip import make_daclip
from llicm.vlm.mini import mini_config

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = importlib.metadata.packages_distributions()
# Runs each line of the standard input as a command; says its exit code.
PROGRAM = """
import shlex, sys
hidden = set(sys.argv[1].split(","))
class Rest:
    def __init__(self, finders):
        self.finders = finders
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in hidden:
            return next((spec for f in self.finders if (spec := f.find_spec(name, path, target))), None)
    def find_distributions(self, context):
        found = (d for f in self.finders if hasattr(f, "find_distributions") for d in f.find_distributions(context))
        return (d for d in found if d.name.lower().replace("_", "-") not in hidden)
sys.meta_path[:] = [Rest(list(sys.meta_path))]
import llicm.hub, llicm.pillow
from llicm.cli import main
for line in sys.stdin:
    print("exit", main(shlex.split(line)), flush=True)
"""


def needed(requirements: Iterable[str]) -> set[str]:
    """Names of the packages that pip brings for these requirements."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        wanted = waiting.pop()
        if (name := canonicalize_name(wanted.name)) in found:
            continue
        found.add(name)
        try:
            texts = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # of another platform
            continue
        inner = [Requirement(text) for text in texts]
        waiting += [r for r in inner if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


@pytest.mark.slow
def test_photo_commands_need_no_package_of_the_study(tmp_path):
    own = needed(PROJECT["dependencies"]) | {"llicm"}
    hidden = {name for name, owners in MODULES.items() if not own & set(map(canonicalize_name, owners))}
    hidden |= {canonicalize_name(d.name) for d in importlib.metadata.distributions()} - own
    assert {"compressai", "dvc", "pandas", "papermill", "pyiqa", "matplotlib", "transformers"} <= hidden
    torch.manual_seed(0)
    codec, restorer = CODECS.make(**CODEC), RESTORERS.make(**DIRECT, level_conditioned=True, context=None)
    codec.update()
    conditioner = Conditioner(make_daclip(mini_config(32, 16, 32, 1, 16, 32, 1)), "windows")
    save_model(LLICM(codec, restorer, conditioner).eval(), tmp_path / "m.safetensors")
    Image.radial_gradient("L").resize((80, 48)).convert("RGB").save(tmp_path / "p.png")
    lines = ["degrade p.png --task noisy -o n.png", "inspect p.llicm", "data list"]
    model = [
        "compress p.png --bpp 4", "decompress p.llicm -o d.png", "decompress p.llicm --as-captured -o c.heic",
        "restore p.png -o r.jpg", "restore p.png -o r.jxl", "evaluate p.png -o records.csv",
    ]  # fmt: skip
    lines[:0] = [f"{line} --model m.safetensors" for line in model]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ",".join(hidden)], input="\n".join(lines), cwd=tmp_path, capture_output=True,
        text=True,
    )  # fmt: skip
    codes = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("exit ")]
    assert codes == ["1" if line.startswith("evaluate") else "0" for line in lines], done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert error.startswith("error: this needs the packages of the study, of which ")
    assert error.endswith(" is missing: pip install 'llicm[study]'.")
    assert {"d.png", "c.heic", "r.jpg", "r.jxl"} <= {path.name for path in tmp_path.iterdir()}


def test_what_is_imported_is_required():
    """Each package that the code imports is a dependency, or in an extra, by its own name."""
    listed = [*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])]
    names = {canonicalize_name(Requirement(text).name) for text in listed}
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            inside = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            inside = [str(node.module)] if isinstance(node, ast.ImportFrom) else inside
            for top in {name.partition(".")[0] for name in inside} - {"llicm", *sys.stdlib_module_names}:
                owners = {canonicalize_name(owner) for owner in MODULES.get(top, ())}
                assert owners & names, f"{path}: {top} is in no list of pyproject.toml"
