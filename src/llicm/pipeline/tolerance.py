# SPDX-License-Identifier: Apache-2.0
"""Compare the numbers of a study made on another kind of machine, where bytes differ, with the published ones.

What may differ and by how much, with the reasons, is in docs/reproducibility.md. Compared are the means over the images
of every method, task and rate, and the headline numbers.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from llicm.benchmark.records import read_records
from llicm.errors import UserError
from llicm.files import write_atomically
from llicm.parameters import Parameters, load
from llicm.provenance.audit import Finding
from llicm.provenance.git import committed

FILES = ("records.parquet", "tables/comparisons.csv")


@dataclass(frozen=True)
class Tolerance:
    """How far a quantity may be off.

    Attributes:
        untrained: for what no trained weights touch: conventional codecs, and the degraded images themselves.
        trained: for everything else. unit: of both; "%" of the published value, "% of the range" of the metric over
            all published points.
    """

    untrained: float
    trained: float
    unit: str


TOLERANCES = {
    "bpp": Tolerance(0.5, 5.0, "%"),
    "psnr": Tolerance(0.02, 0.3, "dB"),
    "other metrics": Tolerance(0.2, 5.0, "% of the range"),
    "bd_psnr": Tolerance(0.04, 0.6, "dB"),
}


@dataclass(frozen=True)
class Row:
    """A quantity of all untrained or all trained methods: the largest deviation, and where it is."""

    quantity: str
    trained: bool
    points: int
    largest: float
    where: str
    allowed: float
    unit: str

    @property
    def beyond(self) -> bool:
        return not self.largest <= self.allowed  # true for NaN, too


def check(root: str | os.PathLike = ".", profile: str | None = None, against: Path | None = None) -> list[Row]:
    """Compare the results in the work tree with published ones.

    Args:
        root: the repository. profile: name of a folder below profiles/; None for the default study.
        against: the published results folder; None for that of the last commit.

    Raises:
        UserError: results are missing here or there.
    """
    folder = Path(root).resolve() / "profiles" / profile if profile else Path(root).resolve()
    names = untrained(load(folder / "params.yaml"))
    if against is not None:
        return compare(Path(against), folder / "results", names)
    with tempfile.TemporaryDirectory() as published:
        for name in FILES:
            data = committed(folder, f"results/{name}")
            if data is None:
                raise UserError(
                    f"{folder / 'results' / name}: not in the last commit; name a folder of results to compare with: "
                    "--against FOLDER."
                )
            write_atomically(Path(published, name), data)
        return compare(Path(published), folder / "results", names)


def untrained(parameters: Parameters) -> set[str]:
    """The methods that no trained weights touch."""
    return {method.name for method in parameters.methods if not method.models}


def compare(published: Path, made: Path, untrained: set[str]) -> list[Row]:
    """Compare two folders of results: a row a quantity, for untrained methods, trained ones, and headline numbers.

    Args:
        untrained: the methods that no trained weights touch.

    Raises:
        UserError: a file is missing.
    """
    for path in (folder / name for folder in (published, made) for name in FILES):
        if not path.is_file():
            raise UserError(f"{path}: no such file; run `dvc repro`, or name a folder of results.")
    before, after = (_points(read_records(folder / FILES[0])) for folder in (published, made))
    points = before.join(after, how="outer", rsuffix="_made")
    rates = points.groupby(["method", "task", "level"], sort=False)[["bpp", "bpp_made"]].first()
    ranges = points.groupby("metric")["value"].agg(lambda values: values.max() - values.min())
    rows = []
    for trained in (False, True):
        chosen_rates, chosen = (
            table[table.index.get_level_values("method").isin(untrained) != trained] for table in (rates, points)
        )
        rows.append(_row("bpp", trained, chosen_rates, "bpp"))
        for metric in chosen.index.unique("metric"):
            rows.append(_row(metric, trained, chosen.xs(metric, level="metric"), "value", ranges[metric]))
    tables = [pd.read_csv(folder / FILES[1]) for folder in (published, made)]
    headlines = [table.set_index(["comparison", "task"])["bd_psnr"].astype(float) for table in tables]
    both = pd.concat(headlines, axis=1, keys=["value", "value_made"])
    rows.append(_row("bd_psnr", True, both, "value"))
    return [row for row in rows if row.points]


def _points(records: pd.DataFrame) -> pd.DataFrame:
    """Means over images; some metrics compare sets of images and have the one row already."""
    return records.groupby(["method", "task", "level", "metric"], sort=False)[["bpp", "value"]].mean()


def _row(quantity: str, trained: bool, table: pd.DataFrame, column: str, extent: float = 0.0) -> Row:
    """A point that only one side has, or where only one side's number is defined, counts as infinitely far off."""
    tolerance = TOLERANCES.get(quantity, TOLERANCES["other metrics"])
    first, second = table[column], table[f"{column}_made"]
    off = (first - second).abs()
    if tolerance.unit.startswith("%"):
        off = 100 * off / (first.abs() if tolerance.unit == "%" else (extent or 1.0))
    off = off.mask((first == second) | (first.isna() & second.isna()), 0.0).fillna(float("inf"))
    where, largest = (off.idxmax(), float(off.max())) if len(off) else ("", 0.0)
    name = where if isinstance(where, str) else ", ".join(map(str, where))
    allowed = tolerance.trained if trained else tolerance.untrained
    return Row(quantity, trained, len(off), largest, name, allowed, tolerance.unit)


def findings(rows: list[Row]) -> list[Finding]:
    """A finding for every row that is beyond its tolerance."""
    remedy = "see docs/reproducibility.md; if parameters and versions are the published ones, this is another result"
    found = []
    for row in (row for row in rows if row.beyond):
        allowed, largest = f"within {row.allowed:g} {row.unit}", f"{row.largest:.3g} {row.unit} at {row.where}"
        found.append(Finding("tolerance", f"{row.quantity} of {_group(row)}", allowed, largest, remedy))
    return found


def as_text(rows: list[Row]) -> str:
    """A line a quantity: how many points, the largest deviation, what is allowed."""
    lines = [f"{'quantity':14} {'methods':10} {'points':>6} {'largest':>9} {'allowed':>9}  unit"]
    for row in rows:
        lines.append(
            f"{row.quantity:14} {_group(row):10} {row.points:6} {row.largest:9.3g} {row.allowed:9g}  {row.unit}"
            f"{'  BEYOND' if row.beyond else ''}  ({row.where})"
        )
    return "\n".join(lines)


def _group(row: Row) -> str:
    return "trained" if row.trained else "untrained"
