# SPDX-License-Identifier: Apache-2.0
"""DVC's experiments in a bare clone: photos are fetched, the parameter is taken, and nothing here changes."""

import pytest
from clone import SMOKE, Clone

from llicm.provenance.git import git

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("order", ["1", "2"])
def test_in_a_folder_of_its_own(tmp_path, monkeypatch, order):
    """Photos or code first: DVC takes stages that do not need each other in the order of a set of texts."""
    monkeypatch.setenv("PYTHONHASHSEED", order)
    clone = Clone.of_the_work_tree(tmp_path / "study")
    parameter = "profiles/smoke/params.yaml:seed=3"
    clone.dvc("exp", "run", "--temp", "--pull", "-n", "tried", "-S", parameter, f"{SMOKE}:degrade")
    assert git(clone.folder, "status", "--porcelain") == "" and not (clone.folder / "data").exists()
    (ref,) = git(clone.folder, "for-each-ref", "--format=%(refname)", "refs/exps/**/tried").splitlines()
    assert "seed: 3" in git(clone.folder, "show", f"{ref}:profiles/smoke/params.yaml").splitlines()
    assert "executed/1_degrade.ipynb" in git(clone.folder, "show", f"{ref}:profiles/smoke/dvc.lock")


def test_what_would_run(tmp_path):
    """A plain `--dry` fails in DVC itself, before the first run of any two stages of which one needs the other."""
    clone = Clone.of_the_work_tree(tmp_path / "study")
    for command in ("repro", "exp run"):
        said = clone.dvc(*command.split(), "--dry", "--force", SMOKE).stdout
        assert "Running stage 'profiles/smoke/dvc.yaml:release'" in said
    assert git(clone.folder, "status", "--porcelain") == ""
