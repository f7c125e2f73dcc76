# SPDX-License-Identifier: Apache-2.0
"""Copies of the repository in which the pipeline runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from llicm.provenance.git import git

ROOT = Path(__file__).resolve().parents[1]
SMOKE = "profiles/smoke/dvc.yaml"


def unaskable(how: str, folder: Path, monkeypatch) -> None:
    """Make git say nothing of a repository: it "refuses", is "not installed", or there is "no repository"."""
    if how == "no repository":
        shutil.rmtree(folder / ".git")
        return
    fake = folder.parent / f"{folder.name}-bin"
    fake.mkdir()
    if how == "refuses":
        (fake / "git").write_text("#!/bin/sh\necho 'fatal: detected dubious ownership in repository' >&2\nexit 128\n")
        (fake / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake}:{os.environ['PATH']}" if how == "refuses" else str(fake))


class Clone:
    """A repository with the files of this work tree that git does not ignore, and what its pipeline made of them."""

    def __init__(self, folder: Path):
        self.folder, self.profile = folder, folder / "profiles/smoke"

    @classmethod
    def of_the_work_tree(cls, folder: Path) -> "Clone":
        """What is, or would be, in git, without results of the smoke profile."""
        clone = cls(folder)
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for name in set(filter(None, names.split("\0"))):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
        for made in ("artifacts", "build", "executed", "results", "dvc.lock"):
            path = clone.profile / made
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
        clone.commit()
        return clone

    def copy(self, folder: Path) -> "Clone":
        """The same, results included, in another folder."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Clone(folder)

    def commit(self) -> None:
        author = ["-c", "user.name=a", "-c", "user.email=a@b"]
        for command in (["add", "-A"], [*author, "commit", "-qm", "all"]):
            subprocess.run(["git", *command], cwd=self.folder, check=True)

    def command(self, *args: str) -> dict:
        """Arguments of `subprocess.run` for `python -m args`."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1"}
        environment.pop("PYTHONPATH", None)
        return {"args": [sys.executable, "-m", *args], "cwd": self.folder, "env": environment}

    def dvc(self, *args, check=True):
        command = self.command("dvc", *args)
        result = subprocess.run(**command, capture_output=True, text=True, timeout=1500)
        if check:
            assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-5000:]
        return result

    def make(self) -> str:
        """Run the smoke profile; what it printed to the console apart from results."""
        # all that is in git as a hash, from the store inside the repository: no network
        self.dvc("pull", "-q", *git(self.folder, "ls-files", "*.dvc").splitlines())
        return self.dvc("repro", SMOKE).stderr

    def stale(self) -> dict:
        """Stages of the profile that are not up to date, with the reasons."""
        found = json.loads(self.dvc("status", "--json", SMOKE).stdout)
        return {address.rsplit(":", 1)[-1]: reasons for address, reasons in found.items()}

    def write_code(self) -> None:
        """Run the stage `code`, and no other."""
        self.dvc("repro", "-s", f"{SMOKE}:code")

    @property
    def lock(self) -> bytes:
        return (self.profile / "dvc.lock").read_bytes()
