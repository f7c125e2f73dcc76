# SPDX-License-Identifier: Apache-2.0
"""DVC's experiments, in a copy of a work tree that has the photos: the parameter is taken, and nothing here changes."""

import pytest
from clone import SMOKE, Clone

from llicm.provenance.git import git

pytestmark = pytest.mark.slow


def test_in_a_folder_of_its_own(tmp_path):
    clone = Clone.of_the_work_tree(tmp_path / "study")
    clone.dvc("pull", "-q", *git(clone.folder, "ls-files", "*.dvc").splitlines())
    parameter = "profiles/smoke/params.yaml:seed=3"
    clone.dvc("exp", "run", "--temp", "-n", "tried", "-S", parameter, f"{SMOKE}:degrade")
    assert git(clone.folder, "status", "--porcelain") == ""
    (ref,) = git(clone.folder, "for-each-ref", "--format=%(refname)", "refs/exps/**/tried").splitlines()
    assert "seed: 3" in git(clone.folder, "show", f"{ref}:profiles/smoke/params.yaml").splitlines()
    assert "executed/1_degrade.ipynb" in git(clone.folder, "show", f"{ref}:profiles/smoke/dvc.lock")
