# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear whole or not at all."""

import hashlib
import json
import math
import os
import secrets
import shutil
import stat
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llicm.errors import DiskFullError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def atomic_path(path: str | os.PathLike, durable: bool = False) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it takes that name at the end, or is removed after an exception.

    For writers that take a path. The folder is made. What an earlier writer of this file left when it was killed is
    removed. A new file has the mode that the umask allows, one that is replaced keeps its own. A symbolic link is
    replaced itself: what it points to, such as a file of DVC's cache, stays as it is.

    Args:
        durable: wait until the disk has it, so that it is there, and whole, even after a loss of power.

    Raises:
        DiskFullError: no room, or a quota or limit is reached; as for the other errors, an older file is then still
            there, untouched.
        OSError: the place is not writable.
    """
    path = Path(path)
    temporary, handle = None, -1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        old = None if path.is_symlink() or not path.exists() else stat.S_IMODE(path.stat().st_mode)
        temporary, handle = _claim(path, 0o666 if old is None else old)
        mode = stat.S_IMODE(os.fstat(handle).st_mode) if old is None else old
        yield temporary
        temporary.chmod(mode)
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
    finally:
        if handle >= 0:
            os.close(handle)  # and the lock with it


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A name, of nothing yet, for a folder to make; it takes the place of `path` at the end, or is removed on an error.

    Raises:
        OSError: the place is not writable; what was at `path` is then still there, untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{_short(path)}."))
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


def place(path: str | os.PathLike) -> Path:
    """Where a file is or would be written, the same for all spellings of one place: through links to folders, and in
    any case of letters where the file system makes no difference."""
    folder, name = Path(path).parent.resolve(), Path(path).name
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    other = Path(str(there).swapcase())
    if other != there and other.exists() and other.samefile(there):
        return folder / unicodedata.normalize("NFC", name).casefold()
    return folder / name


def printable(name: str | os.PathLike) -> str:
    """A file name as text that can be printed and stored: bytes that are not UTF-8 as \\x escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _short(path: Path) -> str:
    """What temporary names begin with: a name may be as long as the file system allows, so it is not part of them."""
    return hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]


def _claim(path: Path, mode: int) -> tuple[Path, int]:
    """A new temporary file beside `path`, and a handle that holds its lock as long as its writer lives."""
    while True:
        temporary = path.with_name(f".{_short(path)}.{secrets.token_hex(6)}.tmp")
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode | 0o600)
        if _lock(handle) is not False and temporary.exists():
            return temporary, handle
        os.close(handle)  # taken by somebody's sweep before it was locked


def _lock(handle: int) -> bool | None:
    """Whether the lock was free, and is ours now; None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None


def _sweep(path: Path) -> None:
    """Remove temporary files for `path` whose writer is dead: nobody holds their lock.

    A process number would not tell: in another container, or on another machine that shares the folder, it is somebody
    else's. Where the file system has no locks, nothing is removed.
    """
    for old in path.parent.glob(f".{_short(path)}.*.tmp"):
        try:
            handle = os.open(old, os.O_RDWR)
        except OSError:
            continue  # gone, or another user's
        try:
            if _lock(handle):
                old.unlink(missing_ok=True)
        finally:
            os.close(handle)
