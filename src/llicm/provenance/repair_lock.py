# SPDX-License-Identifier: Apache-2.0
"""`python -m llicm.provenance.repair_lock [FOLDER]`, which `make repro` does first: put back a dvc.lock that was cut.

DVC writes dvc.lock in place after every stage (that of the default study is incomplete on disk for a third of a
second), so a process that is killed in this time, or a full disk, leaves a part of it. A part that cannot be read stops
DVC; one that can makes it append the lost entries in another order. So the runner keeps a copy when a stage begins.
Every entry is a true record of a run, so to put them back is always safe: DVC compares each with what is on disk.
"""

import sys
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from llicm.errors import UserError
from llicm.files import write_atomically
from llicm.provenance.lineage import committed


def keep_lock(folder: Path) -> None:
    """Copy the dvc.lock of a profile's folder, which DVC has just read, to `.run/` there.

    Raises:
        DiskFullError: there is no room for it, so none for the results either.
    """
    if (folder / "dvc.lock").is_file():
        write_atomically(folder / ".run" / "dvc.lock", (folder / "dvc.lock").read_bytes())


def repair_lock(folder: Path) -> str | None:
    """Put back the dvc.lock of a profile's folder if it was cut short; returns where from, or None if it was whole.

    It is put back from the copy of the last run, else from git; a part that neither knows (of a first run, which was
    cut in its first stage) is removed.

    Raises:
        DiskFullError: there is no room for it.
    """
    lock, copy = folder / "dvc.lock", folder / ".run" / "dvc.lock"
    if not lock.is_file():
        return None
    text, kept = lock.read_bytes(), copy.read_bytes() if copy.is_file() else b""
    stages, before = _stages(text), _stages(kept)
    part = text != kept and kept.startswith(text)
    if stages is not None and not part and (before is None or not _is_part(stages, before)):
        return None
    in_git = committed(folder, lock.name)
    if in_git and text == in_git:
        return None
    for source, whole in ((str(copy), kept), ("git", in_git)):
        if whole and _stages(whole) is not None:
            write_atomically(lock, whole)
            return source
    lock.unlink()
    return "nothing: it held no finished stage of a notebook"


def _is_part(stages: dict[str, int], before: dict[str, int]) -> bool:
    """Whether a lock file has the first entries of an earlier one, which is the order that DVC keeps, but not all."""
    names = list(stages)
    if names != list(before)[: len(names)]:
        return False
    return len(names) < len(before) or bool(names) and stages[names[-1]] < before[names[-1]]


def _stages(text: bytes) -> dict[str, int] | None:
    """Of each stage in a lock file the number of inputs, outputs and parameters; None if it cannot be read."""
    try:
        stages = (YAML(typ="safe", pure=True).load(text.decode()) or {}).get("stages", {})
        # what DVC asks of an entry; the last one of a part may have lost it
        complete = all(
            "cmd" in entry and all("md5" in item for kind in ("deps", "outs") for item in entry.get(kind) or [])
            for entry in stages.values()
        )
        if not complete or not text.endswith(b"\n"):
            return None
        return {
            name: sum(len(entry.get(kind) or []) for kind in ("deps", "outs"))
            + sum(len(values or {}) for values in (entry.get("params") or {}).values())
            for name, entry in stages.items()
        }
    except (YAMLError, UnicodeDecodeError, AttributeError, TypeError):
        return None


def main(folder: str = ".") -> None:
    source = repair_lock(Path(folder))
    if source:
        print(f"{Path(folder) / 'dvc.lock'} was cut short by an interruption; put back from {source}", file=sys.stderr)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
