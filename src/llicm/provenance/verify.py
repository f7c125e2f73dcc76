# SPDX-License-Identifier: Apache-2.0
"""Regenerate a study from scratch in a clone of its own, and compare every hash with the lock file.

    python -m llicm.provenance.verify [--profile smoke] [--root FOLDER] [--keep FOLDER]

The clone is of the last commit, in a temporary folder; it has the photos (from the store inside the repository) and no
cache, and every stage is forced to run. See docs/reproducibility.md for what may differ where.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from llicm.errors import UserError
from llicm.provenance.git import names, trusting
from llicm.provenance.lineage import Pipeline


def outputs(pipeline: Pipeline) -> dict[tuple[str, str], str]:
    """(stage, path) -> hash, for every output of the study's stages in its lock file."""
    stages = [stage for stage in pipeline.own if stage.command]
    return {(stage.name, pipeline.relative(path)): md5 for stage in stages for path, md5 in stage.outs.items()}


def compare(published: dict, made: dict) -> list[tuple[str, str, str | None, str | None]]:
    """Outputs whose hashes differ: (stage, path, published hash, that of the one made), None for what is not there.

    Args:
        published, made: of `outputs`.
    """
    keys = [*published, *(key for key in made if key not in published)]
    return [(*key, published.get(key), made.get(key)) for key in keys if published.get(key) != made.get(key)]


def verify(
    root: Path, profile: str | None = None, keep: Path | None = None, python: str = sys.executable
) -> tuple[list[tuple], int]:
    """Clone, regenerate, compare; progress goes to stderr.

    Args:
        root: the repository. profile: name of a folder below profiles/; None for the default study.
        keep: folder for the regenerated results, to look into differences; must not exist yet.
        python: with the packages installed, DVC among them.

    Returns:
        See `compare` (empty if every output came out with the same bytes), and how many outputs there are.

    Raises:
        UserError: nothing is committed, the repository cannot be cloned, the disk is full, or a stage failed.
    """
    root = Path(root).resolve()
    if keep is not None and keep.exists():
        raise UserError(f"{keep}: is there already; name a new folder, or remove it.")
    changed = names(root, "status", "--porcelain=v1", "-z", "-unormal", "--no-renames")
    if changed:
        some = ", ".join(line[3:] for line in changed[:3]) + (", ..." if len(changed) > 3 else "")
        print(f"note: the last commit is verified, not what was changed since ({some})", file=sys.stderr)
    path = f"{Path(python).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1"}
    environment = {name: value for name, value in environment.items() if name != "PYTHONPATH" and name[:4] != "GIT_"}
    folder = Path(tempfile.mkdtemp(prefix="llicm-verify-"))
    clone = folder / "clone"

    def call(*command: str) -> None:
        where = clone if clone.is_dir() else folder
        if subprocess.run(command, cwd=where, env=environment, stdout=sys.stderr).returncode:
            raise UserError(f"`{' '.join(command[-3:])}` failed in a clone of {root}; see above.")

    try:
        pack = f"{shlex.join(trusting(root))} upload-pack"
        call("git", "clone", "-q", "--no-hardlinks", "--upload-pack", pack, str(root), str(clone))
        lock = Path("profiles", profile, "dvc.lock") if profile else Path("dvc.lock")
        if not (clone / lock).is_file():
            if not (root / lock).is_file():
                raise UserError(f"{root / lock}: no such file; run `dvc repro` there first.")
            print(f"note: {lock} is not committed; that of the work tree is verified", file=sys.stderr)
            (clone / lock).write_bytes((root / lock).read_bytes())
        published = outputs(Pipeline(clone, profile))
        call(python, "-m", "dvc", "pull", "-q", *names(clone, "ls-files", "-z", "*.dvc"))
        # Forced: DVC would skip a stage whose outputs it finds in a cache that the user has set for all repositories.
        call(python, "-m", "dvc", "repro", "-f", f"profiles/{profile}/dvc.yaml" if profile else "dvc.yaml")
        made = Pipeline(clone, profile)
        if keep is not None:
            shutil.copytree(made.folder / "results", keep)
        return compare(published, outputs(made)), len(published)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m llicm.provenance.verify", description=__doc__.split("\n")[0])
    parser.add_argument("--profile", help="below profiles/; default: the default study")
    parser.add_argument("--root", type=Path, default=Path(), help="the repository; default: this folder")
    parser.add_argument("--keep", type=Path, help="copy the regenerated results/ there")
    given = parser.parse_args(arguments)
    try:
        differing, count = verify(given.root, given.profile, given.keep)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for stage, path, expected, found in differing:
        print(f"{stage:28} {path}")
        print(f"  dvc.lock     {expected or 'not there'}\n  regenerated  {found or 'not made'}")
    same = count - sum(expected is not None for _, _, expected, _ in differing)
    print(f"{same} of {count} outputs regenerated with the same bytes")
    if differing:
        print("On another kind of machine compare the numbers: docs/reproducibility.md")
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main())
