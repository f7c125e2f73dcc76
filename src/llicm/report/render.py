# SPDX-License-Identifier: Apache-2.0
"""README.md, the documents of docs/ and the results pages, with numbers from what the runs measured.

A document that speaks of results has a template in docs/templates, and the template takes each number from a result
file: ``{{ study.headline("psnr").rate | bits }}``. `make readme` writes the documents; a test compares them with what
is committed. The pages of results/ and profiles/study/results are made by `llicm.report.page` from the tables there.

| name in a template | what it reads |
|---|---|
| ``study``, ``quick``, ``kodak`` | `Results` of the published study, of the default study, and of its models on Kodak |
| ``content(name)`` | docs/<name>.json, which a script of bench/ has written |
| ``measured(page)`` | the tables that a script of bench/ has written into docs/<page>.md |
"""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from llicm.benchmark.bdrate import bd_interval, bd_table
from llicm.benchmark.records import read_records
from llicm.errors import UserError
from llicm.files import write_atomically
from llicm.report.page import results_page
from llicm.report.writing import with_interval

TEMPLATES = Path("docs/templates")
PAGES = (Path("results"), Path("profiles/study/results"))  # folders that have a results page


@dataclass(frozen=True)
class Number:
    """An estimate with the ends of its 95% bootstrap interval; NaN where undefined."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def show(self, digits: int, unit: str = "", sign: bool = True) -> str:
        """``+94.0% [+77.0, +112.0]``; without an interval ``+94.0%``; undefined ``n/a``."""
        return with_interval(self.value, self.low, self.high, f"{'+' if sign else ''}.{digits}f", unit)

    def __abs__(self) -> "Number":
        return self if self.value >= 0 else Number(-self.value, -self.high, -self.low)


@dataclass(frozen=True)
class Comparison:
    """BD-rate (percent) and BD-quality (unit of the metric) against a method; `tasks`: those with a BD-rate."""

    rate: Number
    quality: Number
    tasks: int
    anchor: str


class Results:
    """The result files of one study.

    Args:
        folder: with tables/, records.parquet and the others, or the one that `llicm benchmark` has written.

    Every method raises `UserError` if its file is missing, or a CSV table has no such row.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.tables = folder / "tables" if (folder / "tables").is_dir() else folder

    def _row(self, path: Path, **where: str) -> pd.Series:
        table = pd.read_csv(_existing(path))
        for column, value in where.items():
            table = table[table[column] == value]
        if len(table) != 1:
            raise UserError(f"{path}: {len(table)} rows with {where}; one is needed")
        return table.iloc[0]

    def _of(self, metric: str, *methods: str) -> pd.DataFrame:
        return self.records[(self.records["metric"] == metric) & self.records["method"].isin(methods)]

    @cached_property
    def records(self) -> pd.DataFrame:
        """Everything that was measured, see docs/records.md."""
        return read_records([_existing(self.folder / "records.parquet")])

    @cached_property
    def tasks(self) -> list[str]:
        """The study's tasks, in their order."""
        found = pd.read_csv(_existing(self.tables / "headline.csv"))["task"]
        return [task for task in dict.fromkeys(found) if task != "mean"]

    def headline(self, metric: str = "psnr", task: str = "mean", form: str = "headline") -> Comparison:
        """LL-ICM against the strongest baseline; `form` is a table: ``headline_prefilter``, ``specialists``, …"""
        return _comparison(self._row(self.tables / f"{form}.csv", metric=metric, task=task))

    def ablation(self, variant: str, metric: str = "psnr") -> Comparison:
        """A variant of what steers the restorer, against none."""
        return _comparison(self._row(self.tables / "ablation.csv", method=variant, metric=metric))

    def against(self, test: str, anchor: str, metric: str = "psnr") -> Comparison:
        """Mean over the study's tasks, with intervals over the test images."""
        found = bd_interval(self._of(metric, test, anchor), metric, test, anchor, self.tasks)
        rate, quality = (
            Number(*(math.nan if end is None else end for end in (part.estimate, part.low, part.high)))
            for part in (found.rate, found.quality)
        )
        return Comparison(rate, quality, found.rate.defined, anchor)

    def by_task(self, test: str, anchor: str, metric: str = "psnr") -> dict[str, float]:
        """BD-rate in percent of each task."""
        table = bd_table(self._of(metric, test, anchor), [metric], [test], [anchor], self.tasks)
        return table.set_index("task")["bd_rate"].to_dict()

    def mean(self, method: str, metric: str = "psnr") -> float:
        """Mean over images and rates, then over tasks, of what a method reaches."""
        return float(self._of(metric, method).groupby("task")["value"].mean().loc[self.tasks].mean())

    def rate_gap(self) -> dict[str, float]:
        """Least, median and largest excess of real files over the entropy model's estimate, in percent."""
        rows = self.records[(self.records["metric"] == "bpp_estimated") & self.records["task"].isin(self.tasks)]
        gap = 100 * (rows["bpp"] / rows["value"] - 1)
        return {"least": gap.min(), "median": gap.median(), "most": gap.max()}

    def text(self, name: str) -> str:
        """What is in tables/<name>.md."""
        return _existing(self.tables / f"{name}.md").read_text(encoding="utf-8").rstrip()

    def cells(self, name: str) -> list[dict[str, str]]:
        """Rows of tables/<name>.md, as they are printed there."""
        return _rows(self.text(name))

    def updates(self, method: str) -> str:
        """Updates of a method's restorer."""
        return f"{self._row(self.tables / 'methods.csv', method=method)['restorer_updates']:,}"

    def recognised(self, question: str, level: str) -> str:
        """Share of test images whose degradation is named, of vlm/recognition.json. level: "none", "0", …"""
        return f"{self.json('vlm/recognition.json')[question][level]:.0%}"

    def seconds(self, method: str) -> float:
        """What a picture takes with one of the diffusion restorer's numbers of steps, of timing/steps.csv."""
        return float(self._row(self.folder / "timing/steps.csv", method=method)["seconds"])

    def minutes(self) -> int:
        """All stages of the last published run, rounded."""
        return round(sum(stage["seconds"] for stage in self.json("timing/stages.json").values()) / 60)

    def json(self, path: str) -> Any:
        """Content of a JSON file."""
        return json.loads(_existing(self.folder / path).read_text(encoding="utf-8"))


def environment(root: Path, finalize: Callable[[Any], Any] | None = None) -> jinja2.Environment:
    """What templates are rendered with.

    Args:
        root: of the repository. finalize: called with the value of each expression, and returns what is printed.
    """
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(root / TEMPLATES), undefined=jinja2.StrictUndefined, finalize=finalize,
        keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True, autoescape=False,
    )  # fmt: skip
    made.globals |= {
        "study": Results(root / PAGES[1]), "quick": Results(root / PAGES[0]), "kodak": Results(root / "results/kodak"),
        "content": lambda name: json.loads(_existing(root / "docs" / f"{name}.json").read_text(encoding="utf-8")),
        "measured": lambda page: _rows(_existing(root / "docs" / f"{page}.md").read_text(encoding="utf-8")),
    }  # fmt: skip
    filters: dict[str, Callable[..., str]] = {
        "pct": lambda value, digits=1, sign=True: _number(value).show(digits, "%", sign),
        "dB": lambda value, digits=2, sign=True: _number(value).show(digits, " dB", sign),
        "bits": lambda value: _bits(_number(value)),
    }
    made.filters |= filters
    made.tests["gain"] = lambda cell: cell.startswith("+")
    return made


def render(root: Path) -> dict[Path, str]:
    """Each document that holds results, by its path below `root`, the repository.

    Raises:
        UserError: a result file is missing, or has not what a template asks for.
    """
    made, texts = environment(root), {}
    for path in sorted((root / TEMPLATES).glob("*.md.j2")):
        target = Path(path.stem) if path.stem == "README.md" else Path("docs") / path.stem
        texts[target] = made.get_template(path.name).render()
    return texts | {folder / "README.md": results_page(root / folder) for folder in PAGES}


def write(root: Path) -> list[Path]:
    """Write what `render` gives; returns the documents that changed."""
    changed = []
    for path, text in render(root).items():
        target = root / path
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            write_atomically(target, text.encode())
            changed.append(path)
    return changed


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: no such result; run the study first (`make repro`)")
    return path


def _comparison(row: pd.Series) -> Comparison:
    rate, quality = (
        Number(*(float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))) for name in ("bd_rate", "bd_quality")
    )
    return Comparison(rate, quality, int(row["tasks_defined"]), str(row["anchor"]))


def _number(value: Number | float) -> Number:
    return value if isinstance(value, Number) else Number(float(value))


def _bits(rate: Number) -> str:
    """A BD-rate in words: ``25.0% fewer bits [19.1, 30.2]``."""
    text, _, interval = abs(rate).show(1, "%", sign=False).partition(" ")
    return f"{text} {'fewer' if rate.value < 0 else 'more'} bits{interval and ' ' + interval}"


def _rows(text: str) -> list[dict[str, str]]:
    """Rows of all Markdown tables of a text: the cells by column, without emphasis."""
    rows, head = [], None
    for line in text.splitlines():
        cells = [cell.strip().strip("*") for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            head = None
        elif head is None:
            head = cells
        elif set("".join(cells)) - set(":- "):
            rows.append(dict(zip(head, cells, strict=True)))
    return rows


if __name__ == "__main__":
    try:
        for document in write(Path()):
            print(document)
    except UserError as error:
        sys.exit(str(error))
