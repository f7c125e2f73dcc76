# SPDX-License-Identifier: Apache-2.0
"""What git says does not depend on the environment, the user's settings, the owner, or how deep a clone is."""

import json
import os
import shutil
import subprocess

import pytest
from clone import unaskable
from ruamel.yaml import YAML

from llicm.provenance.git import CUT, GitError, ask, boundary, bringer, committed, head, names
from llicm.provenance.lineage import trace

MD5 = {"data": "8" * 32, "old": "0" * 32, "new": "1" * 32}


def call(folder, *arguments):
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *author, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    """Three commits: a stage, another stage, and a word in the README."""
    root = tmp_path / "study"
    root.mkdir()
    call(root, "init", "-q")
    stages = {}
    for name in ("old", "new"):
        stages[name] = {"cmd": "touch", "outs": [{"path": name, "md5": MD5[name]}]}
        (root / name).write_text(name)
        with open(root / "dvc.lock", "w") as file:
            YAML().dump({"schema": "2.0", "stages": stages}, file)
        call(root, "add", "-A")
        call(root, "commit", "-qm", name)
    (root / "README.md").write_text("words")
    call(root, "add", "-A")
    call(root, "commit", "-qm", "words")
    return root


def answers(root):
    lock = root / "dvc.lock"
    status = names(root, "status", "--porcelain=v1", "-z")
    found = {name: trace(root / name, root) for name in ("old", "new")}
    return (
        head(root), committed(root, "dvc.lock"), committed(root, "none"), bringer(root, MD5["old"], lock), status,
        bringer(root, "2" * 32, lock), {name: lineage.stages[0]["commit"] for name, lineage in found.items()},
        found["old"].git,
    )  # fmt: skip


def test_the_same_whatever_is_set(repository, tmp_path, monkeypatch):
    (repository / "é.txt").write_text("not in git")
    before = answers(repository)
    (commit, _), lock, none, (first, _), status, never, commits, state = before
    assert lock == (repository / "dvc.lock").read_bytes() and none is never is None and status == ["?? é.txt"]
    assert len({commit, first, commits["new"]["hash"]}) == 3 and commits["old"]["hash"] == first
    assert state["commit"] == commit and state["clean"] and state["problem"] is None
    other = tmp_path / "other"
    other.mkdir()
    call(other, "init", "-q")
    settings = tmp_path / "gitconfig"
    settings.write_text(
        "[color]\n ui = always\n[log]\n showSignature = true\n follow = true\n showRoot = false\n date = relative\n"
        f"[core]\n excludesFile = {tmp_path / 'ignore'}\n[status]\n showUntrackedFiles = no\n short = true\n"
    )
    (tmp_path / "ignore").write_text("*.txt\n")
    for name, value in {
        "GIT_DIR": str(other / ".git"), "GIT_WORK_TREE": str(other), "GIT_CONFIG_GLOBAL": str(settings),
        "GIT_INDEX_FILE": str(tmp_path / "index"), "GIT_TRACE": "1", "GIT_LITERAL_PATHSPECS": "1",
        "LC_ALL": "de_DE.UTF-8", "GIT_EXTERNAL_DIFF": "false", "GIT_PAGER": "false", "GIT_OPTIONAL_LOCKS": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert answers(repository) == before
    text = settings.read_text().replace(" showUntrackedFiles = no\n", "")
    (repository / ".git/config").write_text((repository / ".git/config").read_text() + text)
    assert answers(repository) == before


def test_of_another_owner(repository, tmp_path, monkeypatch):
    """As in a container: git refuses, unless it is told that this very repository is meant."""
    before, real = answers(repository), shutil.which("git")
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "git").write_text(f'#!/bin/sh\nGIT_TEST_ASSUME_DIFFERENT_OWNER=1 exec {real} "$@"\n')
    (fake / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake}:{os.environ['PATH']}")
    refused = subprocess.run(["git", "log"], cwd=repository, capture_output=True, text=True)
    assert refused.returncode == 128 and "dubious ownership" in refused.stderr
    assert answers(repository) == before


@pytest.mark.parametrize("how", ["refuses", "not installed", "no repository"])
def test_that_it_cannot_be_asked_is_no_answer(repository, how, monkeypatch):
    unaskable(how, repository, monkeypatch)
    questions = (head, boundary, lambda root: committed(root, "dvc.lock"), lambda root: bringer(root, "0", root))
    for question in questions:
        with pytest.raises(GitError, match=r"git cannot be asked \(.+\)"):
            question(repository)
    found = trace(repository / "old", repository)
    (stage,) = found.stages
    assert stage["commit"] is None and stage["no_commit"].startswith("commit unknown: ")
    assert found.git["commit"] is None and "git cannot be asked" in found.git["problem"]
    assert all(
        "commit unknown: " in text and "not committed" not in text for text in (found.as_text(), found.summary())
    )
    assert json.loads(found.as_json())["git"]["problem"] == found.git["problem"]


def test_no_commit_yet(tmp_path):
    call(tmp_path, "init", "-q")
    assert head(tmp_path) is None and committed(tmp_path, "a") is None and boundary(tmp_path) == set()


@pytest.mark.parametrize("depth", [1, 2])
def test_a_shallow_clone_says_that_history_is_cut(repository, tmp_path, depth):
    """The commit at the edge seems to have brought all; what came later is known."""
    clone = tmp_path / "clone"
    call(tmp_path, "clone", "-q", f"--depth={depth}", f"file://{repository}", str(clone))
    for name in ("old", "new"):
        found = trace(clone / name, clone)
        assert (found.stages[0]["commit"], found.stages[0]["no_commit"]) == (None, CUT)
        assert CUT in found.as_text() and CUT in found.summary()
    call(clone, "fetch", "-q", "--unshallow")
    assert trace(clone / "old", clone).stages[0]["commit"] == trace(repository / "old", repository).stages[0]["commit"]


def test_what_came_after_the_edge_is_credited(repository, tmp_path):
    clone = tmp_path / "clone"
    call(tmp_path, "clone", "-q", "--depth=3", f"file://{repository}", str(clone))
    call(clone, "fetch", "-q", "--depth=2")
    text = (clone / "dvc.lock").read_text().replace(MD5["new"], "3" * 32)
    (clone / "dvc.lock").write_text(text)
    call(clone, "commit", "-qam", "again")
    stages = [trace(clone / name, clone).stages[0] for name in ("old", "new")]
    assert stages[0]["no_commit"] == CUT and stages[1]["commit"]["hash"] == head(clone)[0]
    assert ask(clone, "rev-parse", "--is-shallow-repository") == b"true\n"
