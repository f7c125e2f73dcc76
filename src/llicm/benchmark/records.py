# SPDX-License-Identifier: Apache-2.0
"""Records: one tidy table of everything measured, one row a value.

| column | meaning |
|---|---|
| method | a row of the benchmark, e.g. ``webp``, ``webp>restorer``, ``restorer>webp``, ``llicm`` |
| family, order | which codec, and where restoration stands: ``alone``, ``after``, ``before`` or ``around`` it |
| task | degradation word |
| image | name of the test image |
| level | point of the method's rate scale, as text: ``30``, ``2.5`` |
| bytes, bpp | length of the real file or bitstream, and 8 bytes / pixels |
| metric, value | name and value of the metric of the output image |

A row without compression (the degraded input itself, or that input restored) has exactly 24 bpp, those of
8-bit RGB samples, or the level ``none`` and empty bytes and bpp. It is a reference, not a point of a curve.
"""

import gzip
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llicm.errors import UserError
from llicm.files import json_text, write_atomically

COLUMNS = ("method", "family", "order", "task", "image", "level", "bytes", "bpp", "metric", "value")
KEY = ["method", "task", "image", "level", "metric"]
TEXT = ("method", "family", "order", "task", "image", "level", "metric")
UNCOMPRESSED_LEVEL, UNCOMPRESSED_BPP = "none", 24.0
# Names of CompressAI's results format; other metrics keep their own.
COMPRESSAI_NAMES = {"psnr": "psnr-rgb", "ssim": "ssim-rgb", "ms_ssim": "ms-ssim-rgb"}


def write_records(records: pd.DataFrame | Iterable[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Write a table of records. The same values give the same bytes, whatever the order of the rows.

    Rows are sorted by method, task, image, level (as a number) and metric. Numbers are written with the
    fewest digits that read back as the same double.

    Args:
        records: a table or rows with the columns ``COLUMNS``; ``level`` may be a number.
        path: ends in ``.csv``, ``.csv.gz`` or ``.parquet``.

    Raises:
        UserError: there is no row, columns are missing or unknown, a row is there twice, or a number is no number.
    """
    if not isinstance(records, pd.DataFrame):
        records = pd.DataFrame(list(records))
    if not len(records):
        raise UserError(f"{path}: there are no records to write; evaluate at least one image.")
    records = _checked(records, str(path))
    if Path(path).suffix == ".parquet":
        # As doubles that have no value twice pack best: all first bytes, then all second ones, and so on.
        data = records.to_parquet(
            index=False, compression="zstd", compression_level=19,
            use_dictionary=[column for column in COLUMNS if column != "value"],
            column_encoding={"value": "BYTE_STREAM_SPLIT"},
        )  # fmt: skip
    else:
        data = records.to_csv(index=False, lineterminator="\n").encode()
        data = gzip.compress(data, mtime=0) if Path(path).suffix == ".gz" else data
    write_atomically(path, data)


def read_records(paths: str | os.PathLike | Sequence[str | os.PathLike]) -> pd.DataFrame:
    """Read one or several files of records, of the kinds that :func:`write_records` writes, into one table.

    Returns:
        The columns ``COLUMNS``: text, except bytes (Int64), bpp and value (float64).

    Raises:
        UserError: a file is absent, empty or not a table of records, or a measurement is there twice.
    """
    paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not paths:
        raise UserError("No file of records is given: name at least one records.csv.")
    tables = []
    for path in paths:
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file of records; run the evaluation that writes it.")
        try:
            if Path(path).suffix == ".parquet":
                table = pd.read_parquet(path)
            else:
                # "none" and the like are names here, only an empty number is missing.
                table = pd.read_csv(
                    path, dtype=dict.fromkeys(TEXT, str), keep_default_na=False,
                    na_values={"bytes": "", "bpp": "", "value": ""}, float_precision="round_trip",
                )  # fmt: skip
        except (ValueError, UnicodeDecodeError, OSError, EOFError) as error:
            raise UserError(f"{path} is not a table of records: evaluate again.") from error
        tables.append(_checked(table, str(path)))
    return _checked(pd.concat(tables, ignore_index=True), ", ".join(str(p) for p in paths))


def _level_text(level: Any) -> str:
    if isinstance(level, str):
        return level
    number = float(level)
    return str(int(number)) if number.is_integer() else repr(number)


def _level_order(level: str) -> tuple[float, str]:
    try:
        return float(level), level
    except ValueError:
        return float("-inf"), level


def _checked(records: pd.DataFrame, source: str) -> pd.DataFrame:
    """A sorted copy with checked columns, types and keys."""
    missing = [c for c in COLUMNS if c not in records.columns]
    unknown = [c for c in records.columns if c not in COLUMNS]
    if missing or unknown:
        faults = [f"lacks {', '.join(missing)}"] if missing else []
        faults += [f"has unknown {', '.join(map(str, unknown))}"] if unknown else []
        raise UserError(f"{source}: the table of records {' and '.join(faults)}; the columns are {', '.join(COLUMNS)}.")
    records = records.loc[:, list(COLUMNS)].reset_index(drop=True)  # joined tables have labels twice
    records["level"] = [_level_text(level) for level in records["level"]]
    try:
        for column in TEXT:
            records[column] = records[column].astype(str).astype(object)
        for column in ("bpp", "value"):
            records[column] = records[column].astype(np.float64)
        records["bytes"] = records["bytes"].astype("Float64").astype("Int64")
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: a size, rate or value is no number ({error}); evaluate again.") from error
    double = records[records.duplicated(KEY)]
    if len(double):
        row = " / ".join(double.iloc[0][KEY])
        raise UserError(f"{source}: {row} was measured twice; keep one file of records for each method.")
    order = records.assign(level=records["level"].map(_level_order)).sort_values(KEY, kind="stable").index
    return records.loc[order].reset_index(drop=True)


@dataclass(frozen=True)
class Curve:
    """A rate-quality curve: means over the same images at each level, sorted by rate.

    Attributes:
        level: (levels,) texts. bpp: (levels,) mean of the images' bpp. value: (levels,) mean of the images'
        values, untransformed. images: their names.
    """

    level: tuple[str, ...]
    bpp: np.ndarray
    value: np.ndarray
    images: tuple[str, ...]


def mean_curves(records: pd.DataFrame, metric: str) -> dict[tuple[str, str], Curve]:
    """Average the images of each (method, task), per level. Uncompressed rows are left out.

    Rates and values are averaged first and compared afterwards (a curve of means, not a mean of curves).

    Args:
        records: as read by :func:`read_records`.
        metric: name of one metric.

    Returns:
        (method, task) -> :class:`Curve`.

    Raises:
        UserError: the metric is not in the records, or a curve lacks an image at some of its levels.
    """
    rows = _of_metric(records, metric, uncompressed=False)
    curves = {}
    for (method, task), part in rows.groupby(["method", "task"], sort=True):
        images = tuple(sorted(part["image"].unique()))
        points = []
        for level, point in part.groupby("level"):
            if absent := sorted(set(images) - set(point["image"])):
                where = f"{method}, {task}, level {level}"
                raise UserError(f"The records of {where} lack {metric} of image {absent[0]}: evaluate again.")
            # skipna: a missing value must not silently shrink the set of images.
            points.append((point["bpp"].mean(), point["value"].mean(skipna=False), level))
        bpp, value, level = zip(*sorted(points), strict=True)
        curves[method, task] = Curve(level, np.array(bpp), np.array(value), images)
    return curves


@dataclass(frozen=True)
class ImageCurves:
    """The curves of single images that a :class:`Curve` averages: `bpp` and `value` (images, levels), `images` names.

    Levels are in the order of their mean rate.
    """

    bpp: np.ndarray
    value: np.ndarray
    images: tuple[str, ...]


def curve_images(
    records: pd.DataFrame, metric: str, curves: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], ImageCurves]:
    """What :func:`mean_curves` averages, for the (method, task) in `curves`: their means over images are its curves.

    Raises:
        UserError: see :func:`mean_curves`.
        KeyError: a curve is not in the records.
    """
    means = mean_curves(records, metric)
    rows = _of_metric(records, metric, uncompressed=False)
    out = {}
    for method, task in curves:
        mean = means[method, task]
        part = rows[(rows["method"] == method) & (rows["task"] == task)]
        bpp, value = (
            part.pivot(index="image", columns="level", values=column)
            .loc[list(mean.images), list(mean.level)]
            .to_numpy(dtype=float)
            for column in ("bpp", "value")
        )
        out[method, task] = ImageCurves(bpp, value, mean.images)
    return out


def references(records: pd.DataFrame, metric: str) -> dict[str, dict[str, float]]:
    """Means over images of the uncompressed methods: method -> task -> value."""
    rows = _of_metric(records, metric, uncompressed=True)
    means: dict[str, dict[str, float]] = {}
    for (method, task), part in rows.groupby(["method", "task"], sort=True):
        means.setdefault(method, {})[task] = float(part["value"].mean(skipna=False))
    return means


def _of_metric(records: pd.DataFrame, metric: str, uncompressed: bool) -> pd.DataFrame:
    """Rows of a metric: those without compression, or the others."""
    rows = records[records["metric"] == metric]
    if not len(rows):
        known = ", ".join(sorted(records["metric"].unique()))
        raise UserError(f"The records hold no metric {metric!r}: choose among {known}.")
    return rows[((rows["level"] == UNCOMPRESSED_LEVEL) | (rows["bpp"] == UNCOMPRESSED_BPP)) == uncompressed]


def to_compressai_json(records: pd.DataFrame, method: str, task: str) -> str:
    """One method's mean curves on one task in the results format of CompressAI, which its plotter reads.

    ``results`` holds lists with one entry a level, sorted by rate: ``bpp``, ``psnr-rgb``, ``ms-ssim-rgb`` (values, not
    dB), ``ssim-rgb``, and other metrics under their own names. A value that does not exist is null.

    Args:
        records: as read by :func:`read_records`. method, task: which curve.

    Raises:
        UserError: no record of this method and task.
    """
    rows = records[(records["method"] == method) & (records["task"] == task)]
    curves = {}
    for metric in sorted(rows["metric"].unique()):
        if (method, task) in (found := mean_curves(rows, metric)):
            curves[metric] = found[method, task]
    if not curves:
        raise UserError(f"The records hold no {method} on {task}: evaluate it first.")
    first = next(iter(curves.values()))
    results: dict[str, list[float]] = {"bpp": first.bpp.tolist()}
    for metric, curve in curves.items():
        if curve.level != first.level:
            raise UserError(f"The records of {method}, {task} lack {metric} at some levels: evaluate again.")
        name = COMPRESSAI_NAMES.get(metric, metric)
        results[name] = curve.value.tolist()
    description = f"{task}, mean over {len(first.images)} images"
    return json_text({"name": method, "description": description, "results": results}, 2) + "\n"
