# SPDX-License-Identifier: Apache-2.0
"""The command `llicm`. What a user can do wrong ends in one sentence and an exit code, not in a traceback.

Results and data go to standard output, everything else to standard error. Exit codes: 0 all done; 1 something failed,
with one sentence for each; 2 wrong arguments; 130 interrupted.

Commands import what they run when they run: `llicm --help` and completion in the shell do not wait for torch.
"""

import io
import os
import sys
from collections.abc import Sequence

import click

from llicm import __version__
from llicm.cli import photos, study
from llicm.cli.common import InOrder, Stop, print_error
from llicm.errors import UserError, missing_package


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="llicm %(version)s")
def llicm() -> None:
    """Compress photos that are noisy, hazy, dark or rainy, restored: before, or when they are decompressed.

    \b
    Examples:
      llicm compress photo.jpg             writes photo.llicm
      llicm decompress photo.llicm         writes photo.png
      llicm compress photo.jpg --as-captured -o same.llicm
      llicm COMMAND --help                 options and more examples

    Photos are PNG, JPEG, WebP, TIFF, BMP, GIF, PPM, JPEG 2000, AVIF or HEIC files. Their orientation and colour space
    are applied, transparent parts become white. `-` in place of a file is standard input or output.
    """


for _command in (*photos.COMMANDS, *study.COMMANDS):
    llicm.add_command(_command)


def _open_streams() -> None:
    """Standard streams that can be used: one that the caller closed leads nowhere, so that no file that is opened later
    takes its place, and names that are not UTF-8 are printed as they are."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (of the process if None).

    Returns:
        The exit code: 0, 1 after an error that was reported, 2 for wrong arguments, 130 after an interruption.
    """
    _open_streams()
    try:
        # Commands return nothing; what comes back is the code of `--help`, `--version` and click's Exit.
        return llicm.main(args=arguments, prog_name="llicm", standalone_mode=False) or 0
    except click.Abort:
        print_error("interrupted; files that were being written are not there.")
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (UserError, Stop) as error:
        print_error(str(error))
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("llicm"):
            raise
        print_error(missing_package(error))
        return 1
    except OSError as error:
        print_error(f"{error.filename or 'a file'}: {error.strerror or error}.")
        return 1
    except SystemExit as stop:  # click ends so after shell completion, and when the reader of `--help` goes away
        return stop.code if isinstance(stop.code, int) else 1
