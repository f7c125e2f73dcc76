# SPDX-License-Identifier: Apache-2.0
"""Rules that the repository's own files keep: pipelines, notebooks, requirements."""

from pathlib import Path

import nbformat
import pytest
from ruamel.yaml import YAML

from llicm.parameters import load
from llicm.pipeline.code import stages_of
from llicm.pipeline.run import parameter_names

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
PIPELINES = sorted((ROOT / "profiles").glob("*/dvc.yaml"))
STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]


def test_every_profile_has_the_one_pipeline():
    assert {path.parent.name for path in PIPELINES} == {path.name for path in (ROOT / "profiles").iterdir()}
    for path in PIPELINES:
        assert path.read_bytes() == (ROOT / "dvc.yaml").read_bytes(), path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_hold_no_outputs_and_one_parameters_cell(path):
    nb = nbformat.read(path, nbformat.NO_CONVERT)
    nbformat.validate(nb)
    assert (nb.nbformat, nb.nbformat_minor) == (4, 5)
    for cell in nb.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [], "strip the outputs: nbstripout --keep-id"
            assert cell.execution_count is None
    assert parameter_names(path) == {"stage", "parameters"}


def test_every_stage_runs_a_notebook_with_its_manifest_and_every_notebook_is_run():
    numbered = set()
    for name, stage in STAGES.items():
        if name == "code":
            continue
        deps = stage.get("do", stage)["deps"]
        (notebook,) = (dep for dep in deps if dep.endswith(".ipynb"))
        (manifest,) = (dep for dep in deps if dep.startswith("build/") and dep.endswith(".json"))
        assert manifest == ("build/%s-${key}.json" if "foreach" in stage else "build/%s.json") % name
        assert not [dep for dep in deps if "src" in dep], f"{name}: code is in the manifest"
        numbered.add(notebook.removeprefix("build/"))
    assert numbered == {path.name for path in NOTEBOOKS}


@pytest.mark.parametrize("profile", [".", "profiles/smoke", "profiles/study"])
def test_a_notebook_opened_by_hand_is_a_stage_of_every_study(profile):
    stages = stages_of(load(ROOT / profile / "params.yaml"))
    for path in NOTEBOOKS:
        (cell,) = [c for c in nbformat.read(path, 4).cells if "parameters" in c.metadata.get("tags", [])]
        values: dict = {}
        exec(cell.source, values)
        assert values["parameters"] is None
        assert stages[values["stage"]][0] == path.name


def test_the_smoke_profile_has_at_most_twelve_stages():
    assert len(stages_of(load(ROOT / "profiles/smoke/params.yaml"))) + 1 <= 12  # and `code`


def test_requirements_are_pinned_and_name_no_host():
    lines = [l for l in (ROOT / "requirements.txt").read_text().splitlines() if l and not l.startswith("#")]
    assert all("==" in line and "://" not in line and not line.startswith("-") for line in lines)
    names = {line.split("==")[0] for line in lines}
    assert "torch" in names
    assert "opencv-python" not in names  # both write cv2/, and this one needs libGL
