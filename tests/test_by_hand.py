# SPDX-License-Identifier: Apache-2.0
"""Notebooks opened by hand: "Run All" shows the study as it is, and changes nothing but `.run/interactive/`."""

import hashlib
import json
import os
import subprocess
import sys

import nbformat
import pytest
from clone import ROOT

NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))

pytestmark = pytest.mark.slow

# what a student would put behind the cell that opens the study, to wait less
QUICK = {
    "2_vlm.ipynb": "p.vlm.steps = [2, 2]",
    "3_train.ipynb": "p.training.pretraining, p.training.fine_tuning, p.training.warmup = 2, 2, 1",
    "4_evaluate.ipynb": "study.parameters.benchmark['rdo'].images = 1",
}
# the modules of the package that the notebook has imported in the end
LAST = """
import json as _json, sys as _sys
_names = sorted(name for name in _sys.modules if name.partition(".")[0] == "llicm")
_files = [_sys.modules[name].__file__ for name in _names]
open(IMPORTED, "w").write(_json.dumps(_files))
"""
RUN = """
import nbclient, nbformat, sys
notebook = nbformat.read(sys.argv[1], 4)
nbclient.NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": sys.argv[2]}}).execute()
nbformat.write(notebook, sys.argv[1])
"""


def hashes(clone):
    """Path -> hash of every file but DVC's own, git's own, and what notebooks by hand may write."""
    may = clone.profile / ".run/interactive"
    found = {}
    for path in clone.folder.rglob("*"):
        inside = path.relative_to(clone.folder)
        own = {".git", ".dvc", "__pycache__", "dvcstore"} & set(inside.parts)
        if path.is_file() and not own and not path.is_relative_to(may):
            found[inside.as_posix()] = hashlib.md5(path.read_bytes()).hexdigest()
    return found


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_run_all_writes_nowhere_else(clone, tmp_path, name):
    before = hashes(clone)
    assert {"profiles/smoke/dvc.lock", "profiles/smoke/results/metrics.json", f"notebooks/{name}"} <= set(before)
    notebook = nbformat.read(clone.folder / "notebooks" / name, 4)
    (opens,) = [n for n, cell in enumerate(notebook.cells) if "open_stage(stage, parameters)" in cell.source]
    if name in QUICK:
        notebook.cells.insert(opens + 1, nbformat.v4.new_code_cell(QUICK[name]))
    imported = tmp_path / "imported.json"
    notebook.cells.append(nbformat.v4.new_code_cell(LAST.replace("IMPORTED", repr(str(imported)))))
    copy = tmp_path / name
    nbformat.write(notebook, copy)
    # Jupyter starts a kernel in the folder of its notebook
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "LLICM_"))}
    environment |= {"PYTHONPATH": str(clone.folder / "src"), "LLICM_PROFILE": "profiles/smoke"}
    ran = subprocess.run(
        [sys.executable, "-c", RUN, copy, clone.folder / "notebooks"], env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-3000:]

    assert hashes(clone) == before
    assert clone.stale() == {}
    executed = nbformat.read(copy, 4)
    said = "".join(output.get("text", "") for output in executed.cells[opens].outputs)
    assert f"opened by hand: reads {clone.profile}, writes below .run/interactive" in said
    written = [path for path in (clone.profile / ".run/interactive").rglob("*") if path.is_file()]
    assert written

    # what was really imported is in the manifest of its stage
    files = [os.path.relpath(path, clone.folder) for path in json.loads(imported.read_text())]
    stages = [json.loads(path.read_text()) for path in (clone.profile / "build").glob("*.json")]
    allowed = {module for stage in stages if stage["notebook"] == name for module in stage["modules"]}
    assert files and set(files) <= allowed


def test_by_default_it_is_the_default_study(clone):
    environment = {k: v for k, v in os.environ.items() if k != "LLICM_PROFILE"}
    program = "from llicm.pipeline.stage import open_stage\nprint(open_stage('degrade').parameters.init)"
    said = subprocess.run(
        [sys.executable, "-c", program], cwd=clone.folder / "notebooks", capture_output=True, text=True,
        env=environment | {"PYTHONPATH": str(clone.folder / "src")},
    ).stdout  # fmt: skip
    assert said == f"opened by hand: reads {clone.folder}, writes below .run/interactive\ncontext\n"
