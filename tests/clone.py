# SPDX-License-Identifier: Apache-2.0
"""Copies of the repository in which the pipeline runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

from llicm.provenance.lineage import git

ROOT = Path(__file__).resolve().parents[1]
SMOKE = "profiles/smoke/dvc.yaml"


class Clone:
    """A copy of what is, or would be, in git: the files of the work tree that git does not ignore.

    Args:
        reduced: with the fewest arms, families and metrics that give every table and figure.
    """

    def __init__(self, folder: Path, reduced: bool = False):
        self.folder, self.profile = folder, folder / "profiles/smoke"
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for name in set(filter(None, names.split("\0"))):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        for made in ("artifacts", "build", "executed", "results", "dvc.lock"):
            path = self.profile / made
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if reduced:
            self.reduce()
        subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
        subprocess.run(["git", "add", "-A"], cwd=folder, check=True)

    def reduce(self) -> None:
        path = self.profile / "params.yaml"
        yaml = YAML(typ="safe", pure=True)
        values = yaml.load(path.read_text())
        values["restorer_arms"], values["train_arms"] = ["restorer"], {"llicm": values["train_arms"]["llicm"]}
        values["arms"] = {name: values["arms"][name] for name in ("codec", "restorer", "llicm")}
        values["families"] = {name: values["families"][name] for name in ("raw", "webp", "rdo", "llicm")}
        for family in values["families"].values():
            family.pop("extra", None)
        values["extra"], values["degrade"]["max_side"] = [], 128
        values["evaluate"]["metrics"] = ["psnr", "ssim"]
        values["vlm"]["recognise"] = {"side": 64, "severities": [0.5], "levels": [0]}
        values["figures"] |= {"ablation": [], "steps": None, "side": 64}
        with open(path, "w") as file:
            yaml.dump(values, file)

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

    def make(self) -> None:
        """Run the smoke profile."""
        # all that is in git as a hash, from the store inside the repository: no network
        self.dvc("pull", "-q", *git(self.folder, "ls-files", "*.dvc").splitlines())
        self.dvc("repro", SMOKE)

    def stale(self) -> dict:
        """Stages of the profile that are not up to date, with the reasons."""
        found = json.loads(self.dvc("status", "--json", SMOKE).stdout)
        return {address.rsplit(":", 1)[-1]: reasons for address, reasons in found.items()}

    @property
    def lock(self) -> bytes:
        return (self.profile / "dvc.lock").read_bytes()
