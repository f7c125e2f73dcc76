# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_path", "write_atomically"]


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it takes that name at the end, or is removed after an exception.

    For writers that take a path. The folder is made.

    Raises:
        OSError: the place is not writable; an older file is then still there, untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp makes it private to its owner
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write a file under a temporary name, then rename it; its folder is made.

    Raises:
        OSError: the disk is full or the place is not writable; an older file is then still there, untouched.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
