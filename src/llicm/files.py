# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear whole or not at all."""

import glob
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llicm.errors import DiskFullError

__all__ = ["json_text", "atomic_folder", "atomic_path", "write_atomically", "write_json"]


@contextmanager
def atomic_path(path: str | os.PathLike, durable: bool = False) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it takes that name at the end, or is removed after an exception.

    For writers that take a path. The folder is made. What an earlier writer of this file left when it was killed is
    removed.

    Args:
        durable: wait until the disk has it, so that it is there, and whole, even after a loss of power.

    Raises:
        DiskFullError: no room, or a quota or limit is reached; as for the other errors, an older file is then still
            there, untouched.
        OSError: the place is not writable.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.{os.getpid()}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)  # mkstemp makes it private to its owner
        if durable:
            _sync(temporary)
        temporary.replace(path)
        if durable:
            _sync(path.parent)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in DiskFullError.REASONS:
            raise DiskFullError(error.errno, os.strerror(error.errno), str(path)) from None
        raise


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A name, of nothing yet, for a folder to make; it takes the place of `path` at the end, or is removed on an error.

    Raises:
        OSError: the place is not writable; what was at `path` is then still there, untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    new, old = work / "new", work / "old"
    try:
        yield new
        if path.exists():
            path.rename(old)
        new.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_atomically(path: str | os.PathLike, data: bytes, durable: bool = False) -> None:
    """Write a file under a temporary name, then rename it; its folder is made. See `atomic_path`."""
    with atomic_path(path, durable) as temporary:
        temporary.write_bytes(data)


def json_text(values: Any, indent: int | None = 1, sort_keys: bool = False) -> str:
    """Values as JSON. NaN and infinities, which it has not, are null: no value."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [finite(part) for part in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(values), indent=indent, sort_keys=sort_keys, allow_nan=False)


def write_json(values: Any, path: str | os.PathLike, sort_keys: bool = False) -> None:
    """Write values as a file of JSON, whole or not at all; see `json_text`."""
    write_atomically(path, (json_text(values, sort_keys=sort_keys) + "\n").encode())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(path: Path) -> None:
    """Remove temporary files for `path` whose writer, named in theirs by its process number, is dead."""
    if os.name != "posix":  # elsewhere `kill` with 0 does not ask, it kills
        return
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        number = old.name.removeprefix(f".{path.name}.").split(".")[0]
        if not number.isdigit():
            continue
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            old.unlink(missing_ok=True)
        except (OSError, OverflowError):
            pass  # alive, and another user's
