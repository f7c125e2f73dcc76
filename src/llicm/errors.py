# SPDX-License-Identifier: Apache-2.0
"""The two kinds of error a user can cause, each with a one-sentence message."""

__all__ = ["BitstreamError", "UserError"]


class UserError(Exception):
    """Wrong input from the user: the message names the file or parameter and says what to do.

    Commands and the notebook runner print the message alone, without a traceback, and exit with 1.
    """


class BitstreamError(UserError):
    """A compressed file that is truncated, altered, foreign, or was written by another model."""
