# SPDX-License-Identifier: Apache-2.0
"""Parts by name: in the package, in a file elsewhere, and of an installed package."""

import importlib.metadata
import subprocess
import sys

import pytest
from small import ROOT
from torch import nn

from llicm import registry
from llicm.errors import UserError
from llicm.registry import CODECS, RESTORERS, Registry

PART = """
from torch import nn
class Blur(nn.Module):
    level_conditioned = False
    def __init__(self, width, context=None):
        super().__init__()
        self.width, self.config = width, {"name": "NAME", "width": width, "context": context}
    def forward(self, x, level=None, context=None):
        return x
nothing = 3
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """Name of a module in a package of its own, which nothing has imported; the registry forgets what it finds."""
    package = tmp_path / "elsewhere"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "blur.py").write_text(PART.replace("NAME", "elsewhere.blur:Blur"))
    monkeypatch.syspath_prepend(tmp_path)
    for kind in (CODECS, RESTORERS):
        monkeypatch.setattr(kind, "_parts", dict(kind._parts))
    yield "elsewhere.blur"
    for name in ("elsewhere", "elsewhere.blur"):
        sys.modules.pop(name, None)


def announce(monkeypatch, group, name, value):
    """An installed package that offers a part."""
    point = importlib.metadata.EntryPoint(name, value, group)
    plain = importlib.metadata.entry_points

    def entry_points(**wanted):
        return [point] if wanted == {"group": group} else plain(**wanted)

    monkeypatch.setattr(registry.importlib.metadata, "entry_points", entry_points)


def test_a_part_of_the_package_is_in_a_file_of_its_name():
    assert CODECS.module_of("mean-scale") == "llicm.codec.mean_scale"
    assert RESTORERS.module_of("direct") == "llicm.restore.direct"
    assert CODECS.find("mean-scale").__module__ == "llicm.codec.mean_scale"
    assert RESTORERS.make("direct", width=8, blocks=[1, 1, 1]).config["width"] == 8


def test_the_room_has_these_parts():
    assert {"mean-scale", "context", "compressai"} <= set(CODECS.names()) and {"direct", "irsde"} <= set(
        RESTORERS.names()
    )
    assert not {"direct", "irsde"} & set(CODECS.names())


def test_a_part_in_a_file_elsewhere_by_its_import_path(outside):
    name = f"{outside}:Blur"
    assert RESTORERS.module_of(name) == outside and outside not in sys.modules
    part = RESTORERS.make(name, width=5, context=None)
    assert type(part).__module__ == outside and part.width == 5
    assert RESTORERS.make(**part.config).config == part.config, "its file builds it again"


def test_a_part_of_an_installed_package(outside, monkeypatch):
    announce(monkeypatch, "llicm.restorer", "blur", f"{outside}:Blur")
    assert RESTORERS.module_of("blur") == outside and outside not in sys.modules
    assert RESTORERS.make("blur", width=7).width == 7
    assert "blur" in RESTORERS.names() and "blur" not in CODECS.names()
    assert CODECS.module_of("blur") is None


def test_an_unknown_name_lists_the_known(outside, monkeypatch):
    assert RESTORERS.module_of("nonesuch") is None
    with pytest.raises(UserError, match=r"restorer 'nonesuch' is unknown; choose one of direct, irsde, or name an imp"):
        RESTORERS.find("nonesuch")
    announce(monkeypatch, "llicm.restorer", "blur", f"{outside}:Blur")
    with pytest.raises(UserError, match="choose one of blur, direct, irsde"):
        RESTORERS.make("nonesuch", width=3)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("elsewhere.blur:Sharpen", "elsewhere.blur has no such class"),
        ("elsewhere.blur:nothing", "elsewhere.blur has no such class"),
        ("elsewhere.blurr:Blur", "No module named 'elsewhere.blurr'; install it"),
        ("nowhere.blur:Blur", "No module named 'nowhere'; install it"),
    ],
)
def test_a_wrong_import_path_is_explained(outside, name, said):
    with pytest.raises(UserError, match=f"params.yaml: restorer '{name}': .*{said}"):
        RESTORERS.make(name, width=3)


def test_wrong_arguments_are_named(outside):
    with pytest.raises(UserError, match="restorer 'direct': .*'widht'; correct it"):
        RESTORERS.make("direct", widht=8, blocks=[1, 1, 1])
    with pytest.raises(UserError, match="restorer 'elsewhere.blur:Blur': .*missing.*'width'; correct it"):
        RESTORERS.make(f"{outside}:Blur")


def test_registering_a_class():
    own = Registry("restorer", "llicm.restore")

    @own.register("own")
    class Own(nn.Module):
        pass

    assert own.find("own") is Own and isinstance(own.make("own"), Own)


def test_no_part_is_imported_before_it_is_asked_for():
    """So a stage depends on the parts that it uses, and on no others."""
    program = (
        "import sys, llicm.training.models, llicm.benchmark.runners\n"
        "from llicm.registry import CODECS, RESTORERS\n"
        "parts = ['llicm.codec.mean_scale', 'llicm.restore.direct', 'llicm.restore.irsde']\n"
        "found = [CODECS.module_of('mean-scale'), *(RESTORERS.module_of(name) for name in ('direct', 'irsde'))]\n"
        "assert found == parts\n"
        "assert not set(parts) & set(sys.modules), sys.modules.keys()\n"
        "RESTORERS.find('direct')\n"
        "assert set(parts) & set(sys.modules) == {'llicm.restore.direct'}\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": str(ROOT / "src")})
