# SPDX-License-Identifier: Apache-2.0
"""What the commands share: types of arguments, words for shell completion, output, and the loop over files."""

import ast
import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import click

from llicm.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def _tasks() -> tuple[str, ...]:
    """The words of `llicm.degradations.DEGRADATIONS`, in their order, from its source: importing it loads torch."""
    nodes = ast.parse(files("llicm").joinpath("degradations.py").read_text(encoding="utf-8")).body
    tables = [n.value for n in nodes if isinstance(n, ast.AnnAssign) and ast.unparse(n.target) == "_AT_ONCE"]
    if tables and isinstance(tables[0], ast.Dict):
        return tuple(ast.literal_eval(key) for key in tables[0].keys if key)
    from llicm.degradations import DEGRADATIONS  # the source has another form: slow, but right

    return tuple(DEGRADATIONS)


TASKS = _tasks()
# Metrics that completion offers. Every metric of pyiqa can be named, but pyiqa takes seconds to list them.
METRICS = (
    "psnr", "ssim", "ms_ssim", "stlpips", "stlpips-vgg", "lpips", "dists", "gmsd", "vif", "piqe", "niqe", "brisque",
    "entropy", "musiq",
)  # fmt: skip


# --- types of arguments ---


class InOrder(click.Group):
    """A group that lists its commands as they are defined, which is the order in which a newcomer meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


class Task(click.ParamType):
    """Degradations in words, in the order in which the vision-language model knows them: "low-light, noisy".

    Args:
        clean: whether it may also be "clean", for none.
    """

    name = "words"

    def __init__(self, clean: bool = False):
        self.clean = clean

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        words = {word.strip().lower() for word in value.split(",")}
        if self.clean and words == {"clean"}:
            return "clean"
        unknown = sorted(words - set(TASKS))
        if unknown:
            self.fail(f"unknown degradation {unknown[0]!r}; known are {', '.join(TASKS)}.", param, ctx)
        return ", ".join(sorted(words, key=TASKS.index))


class CommaList(click.ParamType):
    """Values separated by commas, each of them once: a tuple.

    Args:
        name: of the values, in the plural. kind: what makes a value of its text, e.g. `float`.
    """

    def __init__(self, name: str, kind: Callable[[str], Any] = str):
        self.name, self.kind = name, kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple:
        try:
            values = tuple(self.kind(part.strip()) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of {self.name} separated by commas.", param, ctx)
        if len(set(values)) != len(values) or "" in values:
            self.fail(f"{value!r} names something twice, or nothing between two commas.", param, ctx)
        return values


class Number(click.FloatRange):
    """A finite number in a range: click's own lets NaN pass, which is neither below nor above anything."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


PATH = click.Path(path_type=Path)


# --- words for shell completion ---


def offer(words: Sequence[str] | Callable[[click.Context], Iterable[str]]) -> Callable[..., list[str]]:
    """For `shell_complete=`: the words that fit what is typed, also after a comma.

    Args:
        words: all there are, or a function that finds them and is called only for completion.
    """

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        given, comma, start = incomplete.rpartition(",")
        known = words(ctx) if callable(words) else words
        return [
            f"{given}{comma}{word}" for word in known if word.startswith(start.strip()) and word not in given.split(",")
        ]

    return complete


def names_in_params(section: str, folder: str) -> Callable[[click.Context], list[str]]:
    """The names in a section of params.yaml, for `offer`; none where there is no such file.

    Args:
        folder: the command's option with the folder of params.yaml.
    """

    def names(ctx: click.Context) -> list[str]:
        try:
            from llicm.parameters import read

            return list(read(Path(ctx.params.get(folder) or ".") / "params.yaml")[section])
        except (UserError, KeyError, TypeError, ModuleNotFoundError):
            return []

    return names


def dataset_names(ctx: click.Context) -> list[str]:
    """The names of the catalogue (see `llicm.data.catalogue`, which loads torch), for `offer`."""
    return list(json.loads(files("llicm.data").joinpath("catalogue.json").read_text(encoding="utf-8"))["sets"])


# --- output and the loop over files ---


class Stop(Exception):
    """What concerns all files and not only the one at hand: the others need not be tried."""


def print_result(data: str | bytes) -> None:
    """Write to standard output, at once.

    Raises:
        UserError: its reader went away, or the disk is full.
    """
    if sys.__stdout__ is None:
        raise UserError("standard output is closed; what should be there is lost.")
    try:
        if isinstance(data, bytes):
            sys.stdout.buffer.write(data)
        else:
            click.echo(data)
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer would fail a second time, with a traceback, when Python ends.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise UserError(f"standard output: {error.strerror or error}; not everything was written.") from None


def _clear() -> None:
    """Make room for a line where there may be a progress bar, which then moves down."""
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", nl=False, err=True)


def print_error(message: str) -> None:
    """An error, in one line on standard error."""
    _clear()
    click.echo(f"error: {message}".replace("\n", " "), err=True)


def print_note(message: str) -> None:
    """What is no error but worth knowing, on standard error."""
    _clear()
    click.echo(f"note: {message}", err=True)


def each(
    items: Sequence[Item], work: Callable[[Item], Result], names: Callable[[Item], list[str]], failed: list[Item]
) -> Iterator[tuple[Item, Result]]:
    """(item, work(item)) for each item; those that fail are reported and put into `failed`, and the others go on.

    With several items and a terminal there is a progress bar.

    Args:
        names: the item's names; a report that has none of them gets the first.
    """
    bar = None
    if len(items) > 1 and sys.stderr.isatty():
        bar = click.progressbar(length=len(items), file=sys.stderr, show_pos=True)
    with bar or contextlib.nullcontext():
        for item in items:
            try:
                result, message = work(item), None
            except UserError as error:
                message = str(error)
            except (MemoryError, RuntimeError) as error:  # torch has no class of its own for the CPU's memory
                if isinstance(error, RuntimeError) and "memory" not in str(error):
                    raise
                message = "not enough memory for an image of this size; make it smaller."
            if message is None:
                _clear()
                yield item, result
            else:
                failed.append(item)
                named = names(item)
                print_error(message if any(name in message for name in named) else f"{named[0]}: {message}")
            if bar:
                bar.update(1)
