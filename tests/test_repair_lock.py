# SPDX-License-Identifier: Apache-2.0
"""A dvc.lock that was cut at any byte comes back; one that was not is left alone."""

import re
import subprocess
import sys

import pytest
from clone import unaskable

from llicm.errors import UserError
from llicm.files import write_atomically
from llicm.provenance import repair_lock as module
from llicm.provenance.repair_lock import keep_lock, repair_lock

NAMES = ["code", "train@a", "evaluate@b"]


OLD, NEW = "0123456789abcdef" * 2, "f" * 32


def lock(names, md5=OLD):
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


@pytest.mark.parametrize("md5", [OLD, NEW])
def test_cut_at_any_byte(folder, md5):
    """Also while other results than those of the copy were written."""
    kept, whole, path = lock(NAMES), lock(NAMES, md5), folder / "dvc.lock"
    path.write_bytes(kept)
    keep_lock(folder)
    for length in range(len(whole) - (md5 == NEW)):  # a newer one that lacks its final newline alone lacks nothing
        path.write_bytes(whole[:length])
        assert repair_lock(folder) == str(folder / ".run/dvc.lock") and path.read_bytes() == kept
        assert (folder / ".run/dvc.lock.cut").read_bytes() == whole[:length]
    path.write_bytes(whole)
    assert repair_lock(folder) is None and path.read_bytes() == whole


@pytest.mark.parametrize(
    "text", [lock(NAMES), lock(NAMES, NEW), lock([*NAMES, "more"]), lock(NAMES[1:]), lock(["train@a", "code"]),
             lock(NAMES, NEW)[:-1], lock([*NAMES, "more"])[:-1]],
)  # fmt: skip
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
    said = f"{folder}/dvc.lock was cut short by an interruption; put back from git"
    assert capsys.readouterr().err == f"{said} (the part is {folder}/.run/dvc.lock.cut)\n"
    module.main(str(folder))
    assert capsys.readouterr().err == ""
    subprocess.run(["git", "rm", "-q", "--cached", "dvc.lock"], cwd=folder, check=True)
    commit_less = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "b"]
    subprocess.run(commit_less, cwd=folder, check=True)
    (folder / "dvc.lock").write_bytes(lock(NAMES)[:30])
    assert "nothing" in repair_lock(folder) and not (folder / "dvc.lock").exists()
    assert repair_lock(folder) is None


WHOLE = lock(NAMES).decode()
DAMAGED = {
    "a merge conflict": (
        WHOLE.replace(f"md5: {OLD}\n", f"md5: {OLD}\n<<<<<<< HEAD\n=======\n>>>>>>> other\n", 1),
        r"holds a merge conflict \(line 8\)",
    ),
    "a conflict in the last lines": (
        WHOLE + "<<<<<<< HEAD\n=======\n    >>>>>>> other", r"holds a merge conflict \(line 18\)"
    ),
    "both sides of a conflict": (WHOLE + WHOLE.partition("stages:\n")[2], r"cannot be read \(line 18"),
    "a bad line": (WHOLE.replace("  train@a:", "  train@a"), r"cannot be read \(line 9"),
    "a bad last line": (WHOLE + "nothing\n", "cannot be read"),
    "an entry without a hash": (WHOLE.replace(f"      md5: {OLD}\n", "", 1), r"has a damaged entry \(code\)"),
    "a last entry without its command": (
        WHOLE.rpartition("    cmd")[0] + "    outs: []\n", r"has a damaged entry \(evaluate@b\)"
    ),
    "no text": ("\udcff" + WHOLE, r"no text \(byte 0\)"),
    "another file": ("a: 1\n", "has no stages"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGED)
def test_what_was_not_cut_stays_and_is_named(folder, what, capsys):
    text, reason = DAMAGED[what]
    data = text.encode(errors="surrogateescape")
    commit(folder, lock(NAMES))
    keep_lock(folder)
    (folder / "dvc.lock").write_bytes(data)
    with pytest.raises(UserError, match=f"^{re.escape(str(folder))}/dvc.lock: {reason}.*; mend it, or take"):
        repair_lock(folder)
    assert (folder / "dvc.lock").read_bytes() == data
    ran = subprocess.run(
        [sys.executable, "-m", "llicm.provenance.repair_lock"], cwd=folder, capture_output=True, text=True
    )
    assert ran.returncode == 1 and ran.stderr.startswith("error: dvc.lock: ") and ran.stderr.count("\n") == 1


@pytest.mark.parametrize("how", ["refuses", "not installed", "no repository"])
def test_nothing_is_destroyed_where_git_cannot_be_asked(folder, how, monkeypatch):
    cut = lock(NAMES)[:90]
    commit(folder, lock(NAMES))
    (folder / "dvc.lock").write_bytes(cut)
    unaskable(how, folder, monkeypatch)
    with pytest.raises(UserError, match="may be cut short by an interruption, but .*git cannot be asked"):
        repair_lock(folder)
    assert (folder / "dvc.lock").read_bytes() == cut
    write_atomically(folder / ".run/dvc.lock", lock(NAMES, NEW))  # a copy of the last run needs no git
    assert repair_lock(folder) and (folder / "dvc.lock").read_bytes() == lock(NAMES, NEW)
