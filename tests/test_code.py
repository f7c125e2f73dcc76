# SPDX-License-Identifier: Apache-2.0
"""Which code a stage depends on: stripped notebooks, and manifests of the modules and packages that they import."""

import copy
import json
import os
import shutil
import subprocess
import sys
from modulefinder import ModuleFinder
from pathlib import Path

import nbformat
import pytest
from cells import code, notebook

from llicm.errors import UserError
from llicm.parameters import load
from llicm.pipeline import code as module
from llicm.pipeline.code import check_folders, closure, notebooks_of, stages_of, strip, write_code

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "src/llicm").rglob("*.py"))


# --- notebooks ---------------------------------------------------------------------------------------------


def test_code_and_tags_alone_are_kept():
    nb = notebook(nbformat.v4.new_markdown_cell("prose"), code("x = 1", "parameters"), code("  \n"), code("print(x)"))
    nb.cells[3].outputs = [nbformat.v4.new_output("stream", name="stdout", text="1\n")]
    nb.cells[3].execution_count = 5
    nb.cells[3].metadata["collapsed"] = True
    other = copy.deepcopy(nb)
    other.cells[0].source = "other prose"
    other.cells[3].outputs, other.cells[3].id = [], "another"
    other.metadata["language_info"] = {"name": "python", "version": "3.12"}
    stripped = strip(nb)
    assert [c.source for c in stripped.cells] == ["x = 1", "print(x)"]
    assert stripped.cells[0].metadata == {"tags": ["parameters"]}
    assert stripped.cells[1].metadata == {}
    assert stripped.cells[1].outputs == []
    assert nbformat.writes(stripped) == nbformat.writes(strip(other))
    nbformat.validate(stripped)


def test_numbered_notebooks_alone_are_the_pipeline_s(tmp_path):
    nbformat.write(notebook(code("x = 1")), tmp_path / "1_a.ipynb")
    nbformat.write(notebook(code("x = 1")), tmp_path / "scratch.ipynb")
    assert list(notebooks_of(tmp_path)) == ["1_a.ipynb"]
    (tmp_path / "2_b.ipynb").write_text("{")
    with pytest.raises(UserError, match=r"2_b\.ipynb: not a readable notebook"):
        notebooks_of(tmp_path)
    with pytest.raises(UserError, match="no numbered notebooks"):
        notebooks_of(tmp_path / "none")


def test_missing_folders_name_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "init/here").mkdir(parents=True)
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    right = {"photos": ".", "init": "here"}
    for name in (*right, "paired", "vlm.folder", "evaluate.weights"):
        for wrong in ("/nope", "nope", "file") if name != "init" else ("nope",):
            parameters = load(ROOT / "profiles/smoke/params.yaml")
            for key, given in (right | {name: wrong}).items():
                *group, last = key.split(".")
                setattr(getattr(parameters, group[0]) if group else parameters, last, given)
            with pytest.raises(
                UserError, match=f"params.yaml: '{name}' names .*{wrong}, which is no folder; correct it"
            ):
                check_folders(parameters, tmp_path)
    parameters = load(ROOT / "profiles/smoke/params.yaml")
    parameters.photos, parameters.init = ".", "here"
    check_folders(parameters, tmp_path)


def test_what_dvc_tracks_is_fetched_and_compared(tmp_path, monkeypatch):
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llicm.pipeline.code.pull", lambda *arguments: asked.append(arguments))
    for name in ("data", "init/published"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / f"{name}.dvc").touch()
    parameters = load(ROOT / "profiles/smoke/params.yaml")
    parameters.photos, parameters.init = "data", "published"
    check_folders(parameters, tmp_path)
    assert asked == [(Path("data.dvc"), tmp_path), (Path("init/published.dvc"), tmp_path)]


# --- manifests ---------------------------------------------------------------------------------------------


class Copy:
    """A copy of what the stage `code` reads, in which the smoke profile is the current folder."""

    def __init__(self, root: Path):
        self.root = root
        shutil.copytree(ROOT / "src/llicm", root / "src/llicm", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "notebooks", root / "notebooks")
        (root / "profiles/smoke").mkdir(parents=True)
        (root / "data").mkdir()
        (root / "init/scratch").mkdir(parents=True)
        for name in ("requirements.txt", "profiles/smoke/params.yaml"):
            shutil.copy(ROOT / name, root / name)

    def write(self) -> dict[str, str]:
        """Stage -> its manifest, as the stage `code` writes it."""
        shutil.rmtree("build", ignore_errors=True)
        write_code(self.root)
        stages = stages_of(load("params.yaml"))
        return {stage: Path("build", f"{stage.replace('@', '-')}.json").read_text() for stage in stages}

    def alter(self, name: str, old: str, new: str) -> None:
        text = (self.root / name).read_text()
        assert old in text
        (self.root / name).write_text(text.replace(old, new, 1))


@pytest.fixture(scope="module")
def _copied(tmp_path_factory):
    return Copy(tmp_path_factory.mktemp("copy"))


@pytest.fixture
def copied(_copied, monkeypatch):
    monkeypatch.setattr(module, "SOURCE", _copied.root / "src")
    monkeypatch.chdir(_copied.root / "profiles/smoke")
    forget()
    yield _copied
    forget()


def forget() -> None:
    """What `code` keeps in memory of the files that it has read, for which its process is too short to mind."""
    module._imported.cache_clear()
    module._file.cache_clear()


def stale(before: dict, after: dict) -> set[str]:
    assert set(before) == set(after)
    return {stage for stage in before if before[stage] != after[stage]}


def test_an_edit_of_each_module_makes_exactly_the_stages_stale_that_import_it(copied):
    """With DVC, for some of them: tests/test_pipeline.py."""
    before = copied.write()
    named = {stage: set(json.loads(text)["modules"]) for stage, text in before.items()}
    assert {stage for stage in named if "src/llicm/__init__.py" in named[stage]} == set(named)
    for name in MODULES:
        path = copied.root / name
        data = path.read_bytes()
        path.write_bytes(data + b"# edited\n")
        assert stale(before, copied.write()) == {stage for stage in named if name in named[stage]}, name
        path.write_bytes(data)
    assert copied.write() == before


@pytest.mark.parametrize("profile", [".", "profiles/smoke", "profiles/study"])
def test_a_manifest_names_what_another_program_finds(profile, tmp_path):
    """The standard library's modulefinder reads bytecode; it takes no parts from parameters, so these are given."""
    parameters = load(ROOT / profile / "params.yaml")
    notebooks, found = notebooks_of(ROOT / "notebooks"), {}
    for name, models in stages_of(parameters).values():
        parts = frozenset(module._parts(parameters, models))
        if (name, parts) in found:
            continue
        script = tmp_path / "script.py"
        lines = [cell.source for cell in notebooks[name].cells] + [f"import {part}" for part in parts]
        script.write_text("\n".join(lines))
        finder = ModuleFinder(path=[str(ROOT / "src")], excludes=["llicm.pipeline.run"])
        finder.run_script(str(script))
        found[name, parts] = {n for n in finder.modules if n.partition(".")[0] == "llicm"}
        modules, _ = closure([*module._imports(module.ast.parse(script.read_text()))])
        assert set(modules) == found[name, parts], (name, parts)


IMPORTED = """
import json, os, sys
import accelerate, compressai, matplotlib.pyplot, nbformat, open_clip, pandas, pyiqa, skimage, torch  # once for all
for name, source in json.load(sys.stdin).items():
    if os.fork() == 0:
        exec(source)
        print(json.dumps([name, sorted(m for m in sys.modules if m.startswith("llicm"))]), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, name
"""


def test_what_a_fresh_process_imports_is_in_the_manifest(copied):
    """What is imported while a notebook runs: tests/test_by_hand.py."""
    manifests = {stage: set(json.loads(text)["modules"]) for stage, text in copied.write().items()}
    sources = {}
    for stage, (name, _) in stages_of(load("params.yaml")).items():
        tree = module.ast.parse("\n".join(c.source for c in notebooks_of(ROOT / "notebooks")[name].cells))
        imports = [node for node in tree.body if isinstance(node, module.ast.Import | module.ast.ImportFrom)]
        sources[stage] = "\n".join(map(module.ast.unparse, imports))
    ran = subprocess.run(
        [sys.executable, "-c", IMPORTED], input=json.dumps(sources), capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    rows = dict(map(json.loads, ran.stdout.splitlines()))
    assert set(rows) == set(manifests)
    for stage, imported in rows.items():
        assert "llicm.pipeline.stage" in imported
        files = {module._file(name).relative_to(copied.root).as_posix() for name in imported}
        assert files <= manifests[stage], stage


def test_what_decides_no_result_is_in_no_manifest_but_that_of_the_figures(copied):
    manifests = {stage: set(json.loads(text)["modules"]) for stage, text in copied.write().items()}
    for stage, modules in manifests.items():
        rooms = {name.split("/")[2] for name in modules}
        assert not rooms & {"cli", "provenance"}, stage
        assert "src/llicm/pipeline/run.py" not in modules
        if stage.startswith(("train@", "evaluate@")):
            assert "report" not in rooms, stage
    assert {stage for stage, modules in manifests.items() if "src/llicm/report/tables.py" in modules} == {"figures"}
    assert "src/llicm/restore/direct.py" in manifests["train@restorer"]
    assert "src/llicm/restore/direct.py" not in manifests["train@rdo"]
    assert "src/llicm/codec/context.py" in manifests["train@llicm"]
    assert not [stage for stage, modules in manifests.items() if "src/llicm/restore/irsde.py" in modules]


def test_a_part_that_nobody_names_makes_nothing_stale_and_one_that_is_named_its_stages(copied):
    before = copied.write()
    new = copied.root / "src/llicm/codec/new.py"
    new.write_text("import torch\n")
    forget()
    assert stale(before, copied.write()) == set()
    new.unlink()
    # another restorer, of the repository
    params = Path("params.yaml")
    text = params.read_text()
    try:
        copied.alter("profiles/smoke/params.yaml", "restorer: {name: direct,", "restorer: {name: irsde,")
        changed = stale(before, copied.write())
        after = copied.write()
    finally:
        params.write_text(text)
    assert "src/llicm/restore/irsde.py" in json.loads(after["train@restorer"])["modules"]
    assert {"train@restorer", "train@llicm"} <= changed and not changed & {"degrade", "train@rdo", "vlm"}


def test_another_version_of_a_package_makes_those_stale_that_import_it(copied):
    before = copied.write()
    packages = {stage: json.loads(text)["packages"] for stage, text in before.items()}
    pinned = (ROOT / "requirements.txt").read_text()
    assert all(f"{name}=={version}\n" in pinned for held in packages.values() for name, version in held.items())
    for name in ("torch", "pandas", "plotly"):
        version = packages["figures"][name]
        copied.alter("requirements.txt", f"\n{name}=={version}\n", f"\n{name}==99.1\n")
        after = copied.write()
        copied.alter("requirements.txt", f"\n{name}==99.1\n", f"\n{name}=={version}\n")
        assert stale(before, after) == {stage for stage, held in packages.items() if name in held}, name
    assert "torch" in packages["train@rdo"] and "plotly" not in packages["train@rdo"]
    copied.alter("requirements.txt", "\ntorch==", "\nzzz-of-nobody==1.0\ntorch==")
    assert stale(before, copied.write()) == set()
    copied.alter("requirements.txt", "zzz-of-nobody==1.0\n", "")


def test_a_notebook_that_is_missing_is_named(copied):
    path = copied.root / "notebooks/6_release.ipynb"
    data = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(UserError, match="6_release.ipynb: missing, stage release runs it"):
            copied.write()
    finally:
        path.write_bytes(data)
