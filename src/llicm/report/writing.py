# SPDX-License-Identifier: Apache-2.0
"""How names, numbers and tables are written, the same everywhere."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from llicm.errors import UserError


def method_label(method: str) -> str:
    """A method's name for readers: ``webp>restorer`` -> "webp → restorer"."""
    return " → ".join(method.split(">"))


def bd_number(number: float, value: str) -> str:
    """A BD-rate (`value` is "rate", without its percent sign) or BD-quality ("quality") with its sign, or "n/a"."""
    if math.isnan(number):
        return "n/a"
    if value == "rate":
        return f"{number:+.1f}" if abs(number) < 999.5 else f"{number:+.0f}"
    return f"{number:+.2f}"


def with_interval(value: float, low: float, high: float, spec: str, unit: str = "") -> str:
    """A number and the ends of its interval: "-12.3% [-15.0, -9.1]"; without one "-12.3%"; "n/a" for NaN.

    Args:
        spec: how numbers are written, as "+.1f".
    """
    text = "n/a" if math.isnan(value) else f"{value:{spec}}{unit}"
    return text if math.isnan(value) or math.isnan(low) else f"{text} [{low:{spec}}, {high:{spec}}]"


def chosen(names: Sequence[str] | None, known: Sequence[str], kind: str) -> list[str]:
    """`names`, or all that are known if it is None.

    Raises:
        UserError: one is not known.
    """
    for name in names or ():
        if name not in known:
            raise UserError(f"There is no {kind} {name!r} to draw: choose among {', '.join(known)}.")
    return list(known if names is None else names)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], align: str = "---:|") -> list[str]:
    """Lines of a table whose first column is text; `align` is that of the others."""
    first = f"| {head[0]} |" if head[0] else "| |"
    lines = [f"{first} {' | '.join(head[1:])} |", "|---|" + align * (len(head) - 1)]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def text_of(lines: Iterable[str]) -> str:
    """Lines to a text that ends in a line break."""
    return "\n".join(lines) + "\n"


def write_csv(table: pd.DataFrame, path: Path, index: bool = False, digits: int | None = 6) -> None:
    """Write a table, packed if its name ends in ``.gz``; `digits` are significant ones, None for all."""
    packed: Any = {"method": "gzip", "mtime": 0} if path.suffix == ".gz" else None
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=index, float_format=f"%.{digits}g" if digits else None, compression=packed)
