# SPDX-License-Identifier: Apache-2.0
"""`make data` and `make model` say in one sentence why they cannot, and a damaged store is not taken for the photos."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from clone import ROOT


def call(folder, *command):
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made") / "study"
    (root / "data").mkdir(parents=True)
    dvc = [sys.executable, "-m", "dvc"]
    call(root, "git", "init", "-q")
    call(root, *dvc, "init", "-q")
    call(root, *dvc, "remote", "add", "-q", "-d", "store", "dvcstore")
    (root / "data/a.txt").write_text("a photo")
    (root / "data/b.txt").write_text("another")
    call(root, *dvc, "add", "-q", "data")
    call(root, *dvc, "push", "-q")
    shutil.rmtree(root / "data")
    shutil.rmtree(root / ".dvc/cache")
    lines = (ROOT / "Makefile").read_text()
    (recipe,) = re.findall(r"^data: .*\n(?:\t.*\n)+", lines, re.M)
    (root / "Makefile").write_text(
        ".PHONY: data\n" + recipe.replace("$(READY)", "").replace(".venv/bin/python", sys.executable)
    )
    return root


@pytest.fixture
def repository(made, tmp_path):
    """data.dvc, and the store inside the repository; neither data nor a cache."""
    return Path(shutil.copytree(made, tmp_path / "study"))


def make(root):
    """Exit code and the one line on standard error, but for that of make itself."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(["make", "data"], cwd=root, env=environment, capture_output=True, text=True)
    return done.returncode, [line for line in done.stderr.splitlines() if not line.startswith("make")]


def objects(root) -> list[Path]:
    return sorted(path for path in (root / "dvcstore").rglob("*") if path.is_file())


def test_it_fetches(repository):
    assert make(repository) == (0, []) and (repository / "data/a.txt").read_text() == "a photo"


def test_an_older_version_is_replaced_and_a_changed_one_is_not(repository, tmp_path):
    make(repository)
    newer = Path(shutil.copytree(repository, tmp_path / "newer"))
    (newer / "data/a.txt").write_text("a better photo")
    for command in ("add", "data"), ("push",):
        call(newer, sys.executable, "-m", "dvc", *command, "-q")
    shutil.copytree(newer / "dvcstore", repository / "dvcstore", dirs_exist_ok=True)
    shutil.copyfile(newer / "data.dvc", repository / "data.dvc")
    own = Path(shutil.copytree(repository, tmp_path / "own"))
    assert make(repository) == (0, []) and (repository / "data/a.txt").read_text() == "a better photo"
    (own / "data/b.txt").unlink()
    (own / "data/b.txt").write_text("my own")
    code, (line,) = make(own)
    assert code and "data.dvc says; get back" in line and (own / "data/b.txt").read_text() == "my own"


def test_an_archive_without_git(repository):
    shutil.rmtree(repository / ".git")
    code, (line,) = make(repository)
    assert code and line.startswith("error: data.dvc: ") and "is not a git repository; get the repository with" in line


@pytest.mark.parametrize("which, how", [("a photo", "absent"), ("a photo", "altered"), ("the list", "altered")])
def test_a_damaged_store(repository, which, how):
    (path,) = [path for path in objects(repository) if (path.suffix == ".dir") == (which == "the list")][:1]
    path.chmod(0o644)
    before = path.read_bytes()
    path.unlink() if how == "absent" else path.write_text("damaged")
    code, (line,) = make(repository)
    assert code and line.startswith("error: data.dvc: ") and line.endswith(
        "; restore the store with `git checkout dvcstore`, then run the same command again."
    )  # fmt: skip
    if which == "a photo" and how == "altered":
        assert re.search(r"the store is damaged \([ab]\.txt\)", line)
    path.write_bytes(before)
    assert make(repository) == (0, []) and len(list((repository / "data").iterdir())) == 2


@pytest.mark.parametrize("how", ["missing", "altered", "one more"])
def test_a_folder_that_is_not_what_its_file_says_is_not_adopted(repository, how):
    assert make(repository) == (0, [])
    photo = repository / "data" / ("c.txt" if how == "one more" else "a.txt")
    photo.unlink(missing_ok=True)
    if how != "missing":
        photo.write_text("new")
    before = {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}
    code, (line,) = make(repository)
    assert code and {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()} == before
    assert line.startswith(
        f"error: data.dvc: data/{photo.name}{' (missing)' * (how == 'missing')}: not as data.dvc says"
    )
    command = re.search(r"`dvc (checkout --force data.dvc)`", line)[1]
    call(repository, sys.executable, "-m", "dvc", *command.split())
    assert make(repository) == (0, []) and sorted(os.listdir(repository / "data")) == ["a.txt", "b.txt"]
