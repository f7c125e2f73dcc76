# SPDX-License-Identifier: Apache-2.0
"""`make verify`: the comparison of hashes, and a real regeneration of a small study from its commit."""

import subprocess
import sys

import pytest

from llicm.errors import UserError
from llicm.parameters import load
from llicm.pipeline.tolerance import compare as compare_numbers
from llicm.pipeline.tolerance import findings, untrained
from llicm.provenance.verify import compare, main, verify

PUBLISHED = {("train@a", "artifacts/a"): "1", ("figures", "results/figures"): "2"}


def test_equal_different_and_missing_outputs():
    assert compare(PUBLISHED, dict(PUBLISHED)) == []
    assert compare(PUBLISHED, PUBLISHED | {("train@a", "artifacts/a"): "3"}) == [("train@a", "artifacts/a", "1", "3")]
    made = {("figures", "results/figures"): "2", ("figures", "results/new"): "4"}
    assert compare(PUBLISHED, made) == [
        ("train@a", "artifacts/a", "1", None), ("figures", "results/new", None, "4"),
    ]  # fmt: skip
    # the same path from another stage is another output
    assert len(compare({("a", "x"): "1"}, {("b", "x"): "1"})) == 2


def test_what_cannot_be_verified(tmp_path, capfd):
    assert main(["--root", str(tmp_path)]) == 1
    assert "git cannot be asked (not a git repository" in capfd.readouterr().err
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *author, "commit", "-q", "--allow-empty", "-m", "a"], cwd=tmp_path, check=True)
    with pytest.raises(UserError, match=r"profiles/smoke/dvc.lock: no such file; run `dvc repro` there first"):
        verify(tmp_path, "smoke")
    with pytest.raises(UserError, match="is there already; name a new folder"):
        verify(tmp_path, keep=tmp_path)


@pytest.mark.slow
def test_every_input_in_dvc_is_fetched(tmp_path):
    """Also those in subfolders: the default study starts from init/published."""
    root = tmp_path / "repository"
    (root / "init").mkdir(parents=True)
    dvc = [sys.executable, "-m", "dvc"]

    def call(*command):
        subprocess.run(command, cwd=root, check=True, capture_output=True)

    call("git", "init", "-q")
    call(*dvc, "init", "-q")
    call(*dvc, "remote", "add", "-q", "-d", "store", str(tmp_path / "store"))
    for name in ("data", "init/weights"):
        (root / name).write_text(name)
        call(*dvc, "add", "-q", name)
    (root / "dvc.yaml").write_text(
        "stages: {join: {cmd: cat data init/weights > joined, deps: [data, init/weights], outs: [joined]}}\n"
    )
    call(*dvc, "repro", "-q")
    call(*dvc, "push", "-q")
    call("git", "add", "-A")
    call("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a")
    assert verify(root) == ([], 1)


@pytest.mark.slow
def test_a_study_comes_out_with_the_same_bytes_and_a_false_entry_is_told(clone, tmp_path, capfd):
    """One regeneration shows both: of all hashes in the commit one is false, and it alone is reported."""
    path, text = clone.profile / "dvc.lock", clone.lock.decode()
    entry = text[text.index("path: artifacts/release") :]
    true = entry.split("md5: ")[1].split("\n")[0]
    false = ("0" if true[0] != "0" else "1") + true[1:]
    assert text.count(true) == 1
    path.write_text(text.replace(true, false))
    clone.commit()
    path.write_text(text)
    kept = tmp_path / "kept"
    assert main(["--root", str(clone.folder), "--profile", "smoke", "--keep", str(kept)]) == 1
    out, err = capfd.readouterr()
    count = text.count("outs:")
    assert f"release                      profiles/smoke/artifacts/release\n  dvc.lock     {false}" in out
    assert f"  regenerated  {true}\n" in out and out.count("dvc.lock     ") == 1
    *_, told, _ = out.splitlines()
    same, of = (int(word) for word in told.split() if word.isdigit())
    assert same == of - 1 and of > count
    assert "note: the last commit is verified, not what was changed since (profiles/smoke/dvc.lock)" in err
    assert err.count("Running stage") == text.count("cmd: ")
    names = untrained(load(clone.profile / "params.yaml"))
    rows = compare_numbers(kept, clone.profile / "results", names)
    assert findings(rows) == [] and all(row.largest == 0 for row in rows)
