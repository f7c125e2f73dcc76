# SPDX-License-Identifier: Apache-2.0
"""Regenerate a study from scratch in a clone of its own, and compare every hash with the lock file.

    python -m llicm.study.verify [--profile smoke] [--root FOLDER]

The clone is of what is committed, in a temporary folder; it has the photos (from the store inside the repository), no
cache and no run cache, so that every stage really runs. See docs/reproducibility.md for what may differ where.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from llicm.errors import UserError
from llicm.study.lineage import Pipeline

__all__ = ["compare", "verify"]


def compare(ours: Pipeline, theirs: Pipeline) -> list[tuple[str, str, str, str | None]]:
    """Outputs whose hashes differ: (stage, path, our hash, their hash or None), in the order of the stages."""
    made = {(stage.name, theirs.relative(path)): md5 for stage in theirs.own for path, md5 in stage.outs.items()}
    return [
        (stage.name, ours.relative(path), md5, made.get((stage.name, ours.relative(path))))
        for stage in ours.own
        for path, md5 in stage.outs.items()
        if made.get((stage.name, ours.relative(path))) != md5
    ]


def verify(root: Path, profile: str | None = None, python: str = sys.executable) -> list[tuple]:
    """Clone, regenerate, compare; progress goes to stderr.

    Args:
        root: the repository. profile: name of a folder below profiles/; None for the default study.
        python: with the packages installed, DVC among them.

    Returns:
        See `compare`; empty if every output came out with the same bytes.

    Raises:
        UserError: the repository cannot be cloned, the disk is full, or a stage failed.
    """
    ours = Pipeline(root, profile)
    path = f"{Path(python).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1"}
    environment.pop("PYTHONPATH", None)
    folder = Path(tempfile.mkdtemp(prefix="llicm-verify-"))
    try:
        target = [] if profile is None else [f"profiles/{profile}/dvc.yaml"]
        for command in (
            ["git", "clone", "-q", "--no-hardlinks", str(ours.root), str(folder / "clone")],
            [python, "-m", "dvc", "pull", "-q", "data.dvc"],
            [python, "-m", "dvc", "repro", *target],
        ):
            where = folder / "clone" if (folder / "clone").is_dir() else folder
            done = subprocess.run(command, cwd=where, env=environment, stdout=sys.stderr)
            if done.returncode:
                raise UserError(f"`{' '.join(command[-3:])}` failed in a clone of {ours.root}; see above.")
        return compare(ours, Pipeline(folder / "clone", profile))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m llicm.study.verify", description=__doc__.split("\n")[0])
    parser.add_argument("--profile", help="below profiles/; default: the default study")
    parser.add_argument("--root", type=Path, default=Path(), help="the repository; default: this folder")
    given = parser.parse_args(arguments)
    try:
        differing = verify(given.root, given.profile)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for stage, path, expected, found in differing:
        print(f"{stage:28} {path}\n  dvc.lock     {expected}\n  regenerated  {found or 'not made'}")
    outs = sum(len(stage.outs) for stage in Pipeline(given.root, given.profile).own if stage.command)
    print(f"{outs - len(differing)} of {outs} outputs regenerated with the same bytes")
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main())
