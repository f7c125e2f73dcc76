# SPDX-License-Identifier: Apache-2.0
"""The errors that a user can cause or repair, each with a one-sentence message."""

import errno
import shutil
from pathlib import Path


class UserError(Exception):
    """Wrong input from the user: the message names the file or parameter and says what to do.

    Commands and the notebook runner print the message alone, without a traceback, and exit with 1.
    """


def missing_package(error: ModuleNotFoundError) -> str:
    """What a command of the study says where only the packages for photos are installed."""
    return f"this needs the packages of the study, of which {error.name} is missing: pip install 'llicm[study]'."


class BitstreamError(UserError):
    """A compressed file that is truncated, altered, foreign, or was written by another model."""


class PictureError(UserError, ValueError):
    """A tensor that is no picture, see `llicm.limits.as_pictures`; or one that is not finite."""


class DiskFullError(UserError, OSError):
    """No room to write: made with the three arguments of an OSError (number, text, file)."""

    REASONS: dict[int, str | None] = {
        errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up",
        errno.EFBIG: "it would be larger than a file may be here",
    }  # fmt: skip

    def __str__(self) -> str:
        place = Path(self.filename).absolute().parent
        while not place.exists():
            place = place.parent
        reason, free = self.REASONS.get(self.errno or 0, self.strerror), shutil.disk_usage(place).free / 1e6
        return (
            f"{self.filename}: {reason} ({free:.1f} MB are free in {place}); make room there, then run the same "
            "command again."
        )
