# SPDX-License-Identifier: Apache-2.0
"""`python -m llicm.provenance.repair_lock [FOLDER]`, which `make repro` does first: put back a dvc.lock that was cut.

DVC writes dvc.lock in place after every stage (that of the default study is incomplete on disk for a third of a
second), so a process that is killed in this time, or a full disk, leaves a part of it. A part that cannot be read stops
DVC; one that can makes it append the lost entries in another order. So the runner keeps a copy when a stage begins.
Every entry is a true record of a run, so to put them back is always safe: DVC compares each with what is on disk. What
was there goes to `.run/dvc.lock.cut`. A lock that is damaged in any other way stays as it is, and is named.
"""

import re
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from llicm.errors import UserError
from llicm.files import write_atomically
from llicm.provenance.git import GitError, committed

CUT = "cut short by an interruption"
HEAD = b"schema: '2.0'\nstages:\n"  # of every lock file
CONFLICT = re.compile(r"^([<|>]{7}|={7})( |$)", re.M)
MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")


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
    cut in its first stage) is moved away.

    Raises:
        UserError: it is neither whole nor cut short; or git would have to tell, and cannot be asked.
        DiskFullError: there is no room for it.
    """
    lock, copy = folder / "dvc.lock", folder / ".run" / "dvc.lock"
    if not lock.is_file():
        return None
    text, kept = lock.read_bytes(), copy.read_bytes() if copy.is_file() else b""
    found, before = _look(text), _look(kept)
    if isinstance(found, str) and found != CUT:
        raise UserError(f"{lock}: {found}; mend it, or take that of the last commit with `git checkout HEAD {lock}`.")
    if isinstance(found, dict):
        part = text != kept and kept.startswith(text) or isinstance(before, dict) and _is_part(found, before)
        if not part or _in_git(lock) == text:  # what was checked out has all it should
            return None
    source, whole = str(copy), kept
    if not isinstance(before, dict):
        source, whole = "git", _in_git(lock) or b""
    write_atomically(folder / ".run" / "dvc.lock.cut", text)
    if isinstance(_look(whole), dict):
        write_atomically(lock, whole)
        return source
    lock.unlink()
    return "nothing: it held no finished stage of a notebook"


def _in_git(lock: Path) -> bytes | None:
    try:
        return committed(lock.parent, lock.name)
    except GitError as error:
        raise UserError(f"{lock}: may be {CUT}, but {error}; it stays as it is.") from None


def _is_part(stages: dict[str, int], before: dict[str, int]) -> bool:
    """Whether a lock file has the first entries of an earlier one, which is the order that DVC keeps, but not all."""
    names = list(stages)
    if names != list(before)[: len(names)]:
        return False
    return len(names) < len(before) or bool(names) and stages[names[-1]] < before[names[-1]]


def _look(text: bytes) -> dict[str, int] | str:
    """Of each stage in a lock file the number of inputs, outputs and parameters; `CUT`, or what else is wrong with it.

    Only what begins as DVC writes it and breaks off in its last line or its last entry was cut.
    """
    if HEAD.startswith(text):
        return CUT
    try:
        lines = text.decode()
    except UnicodeDecodeError as error:
        if error.end < len(text):
            return f"no text (byte {error.start})"
        lines = text[: error.start].decode()  # cut within a letter
    if conflict := CONFLICT.search(lines):
        return f"holds a merge conflict (line {lines.count(chr(10), 0, conflict.start()) + 1})"
    ended = lines.endswith("\n")
    try:
        stages = (YAML(typ="safe", pure=True).load(lines) or {}).get("stages")
    except YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0)
        quoted = "quoted" in (getattr(error, "context", None) or "")  # such a text may have several lines
        last = line >= lines.count("\n") and (not ended or quoted)
        return CUT if last else f"cannot be read (line {line + 1}: {getattr(error, 'problem', None) or error})"
    except AttributeError:
        stages = None
    if (stages is None or isinstance(stages, str)) and text.startswith(HEAD) and not ended:
        return CUT
    if not isinstance(stages, dict):
        return "has no stages"
    for number, (name, entry) in enumerate(stages.items(), 1):
        last = number == len(stages)
        if state := _state(entry, ended or not last):
            return CUT if last and state == CUT else f"has a damaged entry ({name})"
    return {name: _count(entry) for name, entry in stages.items()}


def _state(entry: Any, ended: bool) -> str | None:
    """None for an entry that is whole, `CUT` for one whose end is lost, else "damaged"."""
    if not isinstance(entry, dict) or not entry:
        return CUT
    last, kinds = list(entry)[-1], {"deps": list, "outs": list, "params": dict}
    broken = [key for key, kind in kinds.items() if not isinstance(entry.get(key) or kind(), kind)]
    if "cmd" not in entry or broken:
        return CUT if broken == [last] and not ended else "damaged"
    lists = {key: entry[key] for key in ("deps", "outs") if entry.get(key)}
    bad = [(kind, number) for kind, items in lists.items() for number, item in enumerate(items) if not _whole(item)]
    if bad:
        return CUT if bad == [(last, len(lists.get(last, ())) - 1)] else "damaged"
    return None if ended or "outs" in lists else CUT  # outputs come last


def _whole(item: Any) -> bool:
    return isinstance(item, dict) and "path" in item and bool(MD5.fullmatch(str(item.get("md5"))))


def _count(entry: dict[str, Any]) -> int:
    values = (entry.get("params") or {}).values()
    return sum(len(entry.get(kind) or []) for kind in ("deps", "outs")) + sum(len(held or {}) for held in values)


def main(folder: str = ".") -> None:
    source = repair_lock(Path(folder))
    if source:
        cut = Path(folder) / ".run" / "dvc.lock.cut"
        print(f"{Path(folder) / 'dvc.lock'} was {CUT}; put back from {source} (the part is {cut})", file=sys.stderr)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
