# SPDX-License-Identifier: Apache-2.0
"""What git says, whatever the environment and the user's settings are. Every question to git goes through `ask`.

That git cannot be asked (it is not installed, refuses the repository, or there is none) does not mean that something is
not in git: it raises `GitError`.
"""

import os
import subprocess
from pathlib import Path

from llicm.errors import UserError

# Settings of a repository that would change an answer or run a program; those of the user and the system are not read.
SETTINGS = {
    "core.attributesFile": os.devnull, "core.excludesFile": os.devnull, "core.fsmonitor": "false",
    "core.quotePath": "false", "color.ui": "false", "log.follow": "false", "log.showRoot": "true",
    "log.showSignature": "false",
}  # fmt: skip
# It must not wait for a password or fetch what a partial clone lacks; the reasons that it gives are in English.
VARIABLES = {
    "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_ATTR_NOSYSTEM": "1", "GIT_NO_LAZY_FETCH": "1",
    "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C",
}  # fmt: skip
CUT = "history is cut here: a shallow clone, which `git fetch --unshallow` completes"


class GitError(UserError):
    """Git cannot be asked: nothing is known of what is in git."""


def trusting(folder: Path) -> list[str]:
    """The command `git`, for which the repository around a folder is safe, whoever owns it: the user named it."""
    folder = folder.resolve()
    top = next((place for place in (folder, *folder.parents) if (place / ".git").exists()), folder)
    return ["git", "-c", f"safe.directory={top}"]


def ask(folder: Path, *arguments: str) -> bytes:
    """What git prints in a folder; nothing where its answer is no. It takes no locks, which would stop a commit.

    Raises:
        GitError: it cannot be asked.
    """
    settings = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
    command = [*trusting(folder), *settings, "--no-optional-locks", "--no-replace-objects", "-C", str(folder)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | VARIABLES
    try:
        done = subprocess.run([*command, *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True)
    except OSError as error:
        reason = "it is not installed" if isinstance(error, FileNotFoundError) else str(error.strerror)
        raise GitError(f"{folder}: git cannot be asked ({reason})") from None
    if done.returncode and (done.returncode != 1 or done.stderr):
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise GitError(f"{folder}: git cannot be asked ({said[0].removeprefix('fatal: ')})")
    return done.stdout


def git(folder: Path, *arguments: str) -> str:
    """As `ask`, as text."""
    return ask(folder, *arguments).decode(errors="surrogateescape").strip("\n")


def names(folder: Path, *arguments: str) -> list[str]:
    """The answer to a question with ``-z``, which ends each name with a zero byte."""
    return [name for name in git(folder, *arguments).split("\0") if name]


def head(folder: Path, date: str = "%cs") -> tuple[str, str] | None:
    """Hash and date of the last commit; None if there is none."""
    if not git(folder, "rev-parse", "-q", "--verify", "HEAD"):
        return None
    commit, _, when = git(folder, "log", "-1", f"--format=%H {date}").partition(" ")
    return commit, when


def committed(folder: Path, name: str) -> bytes | None:
    """A file, by its name in a folder of the work tree, as it is in the last commit; None if it is not there."""
    blob = git(folder, "rev-parse", "-q", "--verify", f"HEAD:./{name}")
    return ask(folder, "cat-file", "blob", blob) if blob else None


def boundary(folder: Path) -> set[str]:
    """The oldest commits of a shallow clone, which seem to have brought all that is in them."""
    if git(folder, "rev-parse", "--is-shallow-repository") != "true":
        return set()
    return set((folder / git(folder, "rev-parse", "--git-path", "shallow")).read_text(encoding="ascii").split())


def bringer(folder: Path, text: str, file: Path) -> tuple[str, str] | None:
    """Hash and date of the commit that brought a text into a file, the last if it came more than once; else None."""
    lines = git(
        folder, "log", "--no-textconv", "--no-ext-diff", "--format=%H %cs", f"-S{text}", "--", str(file)
    ).splitlines()  # fmt: skip
    if not lines:
        return None
    commit, _, date = lines[0].partition(" ")
    return commit, date
