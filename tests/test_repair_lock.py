# SPDX-License-Identifier: Apache-2.0
"""A dvc.lock that was cut at any byte comes back; one that was not is left alone."""

import subprocess

import pytest

from llicm.provenance import repair_lock as module
from llicm.provenance.repair_lock import keep_lock, repair_lock

NAMES = ["code", "train@a", "evaluate@b"]


def lock(names, md5="1a2b"):
    text = "schema: '2.0'\nstages:\n"
    for name in names:
        text += f"  {name}:\n    cmd: python run.py\n    outs:\n    - path: {name}\n      md5: {md5}\n"
    return text.encode()


@pytest.fixture
def folder(tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    return tmp_path


def commit(folder, text):
    (folder / "dvc.lock").write_bytes(text)
    subprocess.run(["git", "add", "dvc.lock"], cwd=folder, check=True)
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"], cwd=folder, check=True)


@pytest.mark.parametrize("md5", ["1a2b", "ffff"])
def test_cut_at_any_byte(folder, md5):
    """Also while other results than those of the copy were written."""
    kept, whole, path = lock(NAMES), lock(NAMES, md5), folder / "dvc.lock"
    path.write_bytes(kept)
    keep_lock(folder)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert repair_lock(folder) == str(folder / ".run/dvc.lock") and path.read_bytes() == kept
    path.write_bytes(whole)
    assert repair_lock(folder) is None and path.read_bytes() == whole


@pytest.mark.parametrize(
    "text", [lock(NAMES), lock(NAMES, "ffff"), lock([*NAMES, "more"]), lock(NAMES[1:]), lock(["train@a", "code"])]
)
def test_whole_ones_stay(folder, text):
    (folder / "dvc.lock").write_bytes(lock(NAMES))
    keep_lock(folder)
    (folder / "dvc.lock").write_bytes(text)
    assert repair_lock(folder) is None and (folder / "dvc.lock").read_bytes() == text


def test_what_is_checked_out_is_no_damage(folder):
    commit(folder, lock(NAMES[:2]))
    (folder / "dvc.lock").write_bytes(lock(NAMES))
    keep_lock(folder)
    (folder / "dvc.lock").write_bytes(lock(NAMES[:2]))
    assert repair_lock(folder) is None


def test_without_a_copy_it_comes_from_git_or_is_removed(folder, capsys):
    commit(folder, lock(NAMES))
    text = lock(NAMES)
    (folder / "dvc.lock").write_bytes(text[: text.rindex(b"cmd") + 2])
    module.main(str(folder))
    assert (folder / "dvc.lock").read_bytes() == lock(NAMES)
    assert capsys.readouterr().err == f"{folder}/dvc.lock was cut short by an interruption; put back from git\n"
    module.main(str(folder))
    assert capsys.readouterr().err == ""
    subprocess.run(["git", "rm", "-q", "--cached", "dvc.lock"], cwd=folder, check=True)
    commit_less = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "b"]
    subprocess.run(commit_less, cwd=folder, check=True)
    (folder / "dvc.lock").write_bytes(lock(NAMES)[:30])
    assert "nothing" in repair_lock(folder) and not (folder / "dvc.lock").exists()
    assert repair_lock(folder) is None
