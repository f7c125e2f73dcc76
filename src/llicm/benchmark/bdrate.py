# SPDX-License-Identifier: Apache-2.0
"""Bjontegaard deltas with a stated rule for the curves that have none.

BD-rate is the mean relative difference of rate at equal quality, BD-quality the mean difference of quality
at equal rate (Bjontegaard, VCEG-M33, 2001). The interpolation is PCHIP over log10(rate), as in the JVET
sheets, by the package ``bjontegaard`` (Herglotz et al., IEEE TIP 2024). That package gives wrong or no
numbers for curves that turn back, tie or do not meet, and such curves are normal here: a codec that spends
bits on the noise of its input loses quality against the clean original as its rate grows.

The rule, applied by :func:`bd`:

1. Points are sorted by rate. Rates are positive, rates and qualities finite; each curve has at least
   ``MIN_POINTS`` points. Points of the same rate are averaged.
2. Quality is compared on a scale where larger is better: the metric's transform (-10 log10(1 - s) for the
   SSIM family, which saturates; none otherwise), then negated if the metric is lower-is-better.
3. Ties. A step that does not rise and falls by at most ``TIE_TOLERANCE`` of the curve's own quality range is
   noise of the measurement: its points are merged (mean quality, mean log-rate) and this is noted. A group
   of merged points never spans more than the tolerance.
4. BD-rate exists if, after that, both curves rise strictly with at least ``MIN_POINTS`` points, and the
   qualities that they share are at least ``MIN_OVERLAP`` of the shorter curve's range. With five points a
   quarter of the range is about one step between measurements; on less, one interpolated end would decide.
   Otherwise it is null and `reason` says why; no envelope, extrapolation or clipping replaces it.
5. BD-quality exists for every shape of curve, over the log-rates that both cover. Positive: the test is
   better, for every metric. Its unit is that of the compared scale (dB for the SSIM family).
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from llicm.benchmark.metrics import metric_info
from llicm.benchmark.records import curve_images, mean_curves
from llicm.errors import UserError

Transform = Callable[[np.ndarray], np.ndarray]
DRAWS = 2000  # resamples of an interval
MIN_POINTS = 4
TIE_TOLERANCE = 0.005
MIN_OVERLAP = 0.25
# A rise this small, as a share of the range, is rounding and would make the inverse curve vertical.
ROUNDING = 1e-9
COLUMNS = (
    "test", "anchor", "task", "metric", "bd_rate", "bd_quality", "reason", "quality_reason", "better", "overlap",
    "rate_overlap", "anchor_monotone", "test_monotone", "anchor_points", "test_points", "quality_low", "quality_high",
    "rate_low", "rate_high", "note", "images",
)  # fmt: skip
SSIM_FAMILY = ("ssim", "ms_ssim", "ssimc", "cw_ssim")


def to_db(score: np.ndarray) -> np.ndarray:
    """-10 log10(1 - s): spreads a score that saturates at 1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return -10 * np.log10(1 - np.asarray(score, dtype=float))


@dataclass(frozen=True)
class BD:
    """The comparison of a test curve with an anchor curve.

    Attributes:
        rate: BD-rate in percent, negative if the test needs less; None if undefined.
        quality: BD-quality on the compared scale, positive if the test is better; None if undefined.
        reason: why `rate` is None. quality_reason: why `quality` is None.
        better: "test" or "anchor" if every point of that curve beats every point of the other.
        overlap: shared qualities as a share of the shorter curve's range, 0 to 1 (NaN if not computed).
        rate_overlap: the same for log-rates.
        anchor_monotone, test_monotone: whether quality rises strictly with rate, near ties merged.
        anchor_points, test_points: number of points that BD-rate uses, near ties merged.
        quality_interval: the shared qualities as values of the metric, (lower, upper); None without any.
        rate_interval: the shared rates; None without any.
        note: what was merged, "" if nothing.
    """

    rate: float | None
    quality: float | None
    reason: str | None
    quality_reason: str | None
    better: str | None
    overlap: float
    rate_overlap: float
    anchor_monotone: bool
    test_monotone: bool
    anchor_points: int
    test_points: int
    quality_interval: tuple[float, float] | None
    rate_interval: tuple[float, float] | None
    note: str


class _Curve:
    """One curve under the rule.

    Attributes:
        values: of the metric, as given. log_rate, quality: sorted, on the compared scale, equal rates averaged.
        merged_rate, merged: the same with near ties merged. falls: steps between these that do not rise.
        fault: why the curve cannot be compared, or None. notes: what was averaged or merged.
    """

    def __init__(self, name: str, rates: ArrayLike, values: ArrayLike, scale: Transform):
        self.name, self.notes = name, list[str]()
        rate, self.values = np.asarray(rates, dtype=float), np.asarray(values, dtype=float)
        if rate.shape != self.values.shape or rate.ndim != 1:
            raise ValueError(f"{name}: {rate.shape} rates and {self.values.shape} qualities")
        order = np.lexsort((self.values, rate))
        rate, self.quality = rate[order], scale(self.values[order])
        self.fault = self._fault(rate)
        if self.fault:
            self.log_rate = self.quality = np.array([])
        else:
            self.log_rate = np.log10(rate)
            # Equal rates: no order and no step, so one point.
            group = np.concatenate([[0], np.cumsum(np.diff(self.log_rate) > ROUNDING)])
            counts = np.bincount(group)
            if len(counts) < len(rate):
                self.notes.append(f"{len(rate) - len(counts) + 1} points of {name} with equal rates averaged")
                self.log_rate, self.quality = (
                    np.bincount(group, weights=v) / counts for v in (self.log_rate, self.quality)
                )
                if len(counts) < MIN_POINTS:
                    self.fault = f"{name} has {len(counts)} different rates, {MIN_POINTS} are needed"
        self.merged_rate, self.merged, merges = _merge_ties(self.log_rate, self.quality)
        if merges:
            self.notes.append(f"{merges} near-tied points of {name} merged")
        self.falls = np.flatnonzero(np.diff(self.merged) <= 0)

    def _fault(self, rate: np.ndarray) -> str | None:
        if len(rate) < MIN_POINTS:
            return f"{self.name} has {len(rate)} points, {MIN_POINTS} are needed"
        if not (np.isfinite(rate) & (rate > 0)).all():
            return f"{self.name} has a rate that is not a positive number"
        if not np.isfinite(self.quality).all():
            return f"quality of {self.name} is not finite at point {int(np.argmin(np.isfinite(self.quality))) + 1}"
        return None

    @property
    def monotone(self) -> bool:
        return not self.fault and len(self.falls) == 0


def bd(
    rate_a: ArrayLike, quality_a: ArrayLike, rate_t: ArrayLike, quality_t: ArrayLike, lower_better: bool = False,
    transform: Transform | None = None, names: tuple[str, str] = ("anchor", "test"), unit: str = "",
    method: str = "pchip",
) -> BD:  # fmt: skip
    """Compare two rate-quality curves by the rule of this module.

    Args:
        rate_a, quality_a: the anchor's points in any order: rates (bpp; any unit, the same for both) and
            values of the metric.
        rate_t, quality_t: the test's points; their number may differ.
        lower_better: True if smaller values are better.
        transform: increasing function of the values, applied before the comparison, e.g. :func:`to_db`.
        names: how reasons call anchor and test. unit: of the values, for reasons.
        method: interpolation: "pchip", "akima", or "cubic" (one polynomial of third degree).

    Returns:
        :class:`BD`; undefined numbers are None with a reason.

    Raises:
        ValueError: rates and qualities of a curve differ in number.
    """
    from bjontegaard import bd_psnr, bd_rate

    def scale(values: np.ndarray) -> np.ndarray:
        return (-1.0 if lower_better else 1.0) * (values if transform is None else transform(values))

    anchor, test = _Curve(names[0], rate_a, quality_a, scale), _Curve(names[1], rate_t, quality_t, scale)
    fault = anchor.fault or test.fault
    if fault:
        return BD(
            None, None, fault, fault, None, np.nan, np.nan, anchor.monotone, test.monotone,
            len(anchor.merged), len(test.merged), None, None, "",
        )  # fmt: skip

    overlap, interval = _overlap(anchor.quality, test.quality)
    rate_overlap, rate_interval = _overlap(anchor.log_rate, test.log_rate)
    better = None
    if test.quality.min() > anchor.quality.max():
        better = "test"
    elif anchor.quality.min() > test.quality.max():
        better = "anchor"
    reason = _rate_reason(anchor, test, overlap, better, unit)

    options = {"method": method, "require_matching_points": False, "min_overlap": 0}
    rate = quality = quality_reason = None
    if reason is None:
        rate = float(bd_rate(10**anchor.merged_rate, anchor.merged, 10**test.merged_rate, test.merged, **options))
        if not np.isfinite(rate):
            rate, reason = None, "the interpolation gives no finite number"
    if rate_interval is None:
        ranges = ", ".join(_range(curve.name, 10**curve.log_rate, "") for curve in (test, anchor))
        quality_reason = f"no common rate: {ranges}"
    else:
        quality = float(bd_psnr(10**anchor.log_rate, anchor.quality, 10**test.log_rate, test.quality, **options))
    return BD(
        rate, quality, reason, quality_reason, better, overlap, rate_overlap, anchor.monotone, test.monotone,
        len(anchor.merged), len(test.merged),
        quality_interval=None if interval is None else _as_values(interval, anchor, test, scale),
        rate_interval=None if rate_interval is None else (float(10 ** rate_interval[0]), float(10 ** rate_interval[1])),
        note="; ".join(anchor.notes + test.notes),
    )  # fmt: skip


def _merge_ties(log_rate: np.ndarray, quality: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Pool adjacent points that tie or fall by no more than the tolerance; the number of points pooled."""
    if not len(quality):
        return log_rate, quality, 0
    span = np.ptp(quality)
    groups: list[list[int]] = []
    for i in range(len(quality)):
        groups.append([i])
        while len(groups) > 1:
            before, last = (quality[g] for g in groups[-2:])
            joined = quality[groups[-2] + groups[-1]]
            if last.mean() - before.mean() > ROUNDING * span or np.ptp(joined) > TIE_TOLERANCE * span:
                break
            groups[-2:] = [groups[-2] + groups[-1]]
    pooled = sum(len(g) for g in groups if len(g) > 1)
    return np.array([log_rate[g].mean() for g in groups]), np.array([quality[g].mean() for g in groups]), pooled


def _overlap(a: np.ndarray, b: np.ndarray) -> tuple[float, tuple[float, float] | None]:
    """Common interval as a share of the shorter one, and the interval (None if it has no length)."""
    low, high = max(a.min(), b.min()), min(a.max(), b.max())
    shorter = min(np.ptp(a), np.ptp(b))
    if high <= low or shorter <= 0:
        return 0.0, None
    return float((high - low) / shorter), (float(low), float(high))


def _rate_reason(anchor: _Curve, test: _Curve, overlap: float, better: str | None, unit: str) -> str | None:
    """Why there is no BD-rate, in words; None if there is one."""
    winner = {"test": test.name, "anchor": anchor.name, None: None}[better]
    verdict = f", {winner} is better at every rate measured" if winner else ""
    if falling := [curve for curve in (anchor, test) if len(curve.falls)]:
        points = [f"quality falls with rate at points {_runs(curve)} of {curve.name}" for curve in falling]
        return " and ".join(points) + verdict
    for curve in (anchor, test):
        if len(curve.merged) < MIN_POINTS:
            many = len(curve.merged)
            return f"{curve.name} has {many} points after near ties are merged, {MIN_POINTS} are needed{verdict}"
    if overlap < MIN_OVERLAP:
        found = "no common quality" if overlap == 0 else f"only {overlap:.0%} of the shorter curve is common"
        ranges = ", ".join(_range(curve.name, curve.values, unit) for curve in (test, anchor))
        return f"{found}: {ranges}{verdict}"
    return None


def _runs(curve: _Curve) -> str:
    """Falling stretches as ranges of point numbers, counted from 1 in order of rate: "3-4 and 6-8"."""
    falls = set(np.flatnonzero(np.diff(curve.quality) <= 0))
    starts = sorted(i for i in falls if i - 1 not in falls)
    stretches = []
    for start in starts:
        end = start + 1
        while end in falls:
            end += 1
        stretches.append((curve.quality[start] - curve.quality[end], f"{start + 1}-{end + 1}"))
    # Falls within the tolerance are no reason, unless several of them add up to one.
    tolerated = TIE_TOLERANCE * np.ptp(curve.quality)
    named = [text for fall, text in stretches if fall > tolerated] or [text for _, text in stretches]
    return " and ".join(named)


def _range(name: str, values: np.ndarray, unit: str) -> str:
    low, high = float(np.min(values)), float(np.max(values))
    # Enough digits to tell the ends of the range apart.
    digits = int(np.clip(1 - np.floor(np.log10(max(high - low, 1e-6))), 1, 6))
    return f"{name} {low:.{digits}f}-{high:.{digits}f}{' ' + unit if unit else ''}"


def _as_values(interval: tuple[float, float], anchor: _Curve, test: _Curve, scale: Transform) -> tuple[float, float]:
    """Ends of an interval of compared quality as values of the metric; each end is a measured point."""
    points = np.concatenate([anchor.values, test.values])
    compared = scale(points)
    ends = [float(points[np.argmin(np.abs(compared - end))]) for end in interval]
    return min(ends), max(ends)


def bd_table(
    records: pd.DataFrame, metrics: Sequence[str], tests: Sequence[str], anchors: Sequence[str],
    tasks: Sequence[str] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Compare methods: one row per (test, anchor, task, metric), in the given order.

    Each curve is the mean over the test images per level (:func:`llicm.benchmark.records.mean_curves`); test
    and anchor must have been measured on the same images. A method is not compared with itself.

    Args:
        records: as read by ``read_records``.
        metrics, tests, anchors: names. tasks: names; all tasks of the records by default.

    Returns:
        The columns ``COLUMNS``: the fields of :class:`BD`, with bd_rate in percent, "" for no reason and none better,
        and images, their number. Undefined numbers are NaN.

    Raises:
        UserError: a method was not measured on a task, or two methods were measured on different images.
    """
    tasks = sorted(records["task"].unique()) if tasks is None else list(tasks)
    rows = []
    for metric in metrics:
        info = metric_info(metric)
        curves = mean_curves(records, metric)
        for method in [*tests, *anchors]:
            for task in tasks:
                if (method, task) not in curves:
                    raise UserError(f"The records hold no {metric} of {method} on {task}: evaluate it first.")
        for test in tests:
            for anchor in anchors:
                for task in tasks if test != anchor else ():
                    t, a = curves[test, task], curves[anchor, task]
                    if t.images != a.images:
                        what = f"{test} and {anchor} were measured on different images of {task}"
                        raise UserError(f"{what}: evaluate both on the same.")
                    found = bd(
                        a.bpp, a.value, t.bpp, t.value, **_scale_of(metric), names=(anchor, test), unit=info.unit
                    )
                    names = {"test": test, "anchor": anchor, "task": task, "metric": metric}
                    rows.append(names | _row(found) | {"images": len(t.images)})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _scale_of(metric: str) -> dict[str, Any]:
    """How `bd` compares the values of a metric."""
    transform = to_db if metric in SSIM_FAMILY else None
    return {"lower_better": metric_info(metric).lower_better, "transform": transform}


def _row(found: BD) -> dict[str, Any]:
    """The fields of a comparison as `bd_table` has them."""
    row = {"bd_rate": found.rate, "bd_quality": found.quality} | vars(found)
    for name in ("rate", "quality"):
        del row[name]
        row[f"bd_{name}"] = np.nan if row[f"bd_{name}"] is None else row[f"bd_{name}"]
    row |= {name: row[name] or "" for name in ("reason", "quality_reason", "better")}
    note = row.pop("note")
    for name in ("quality", "rate"):
        row[f"{name}_low"], row[f"{name}_high"] = row.pop(f"{name}_interval") or (np.nan, np.nan)
    return row | {"note": note}


@dataclass(frozen=True)
class Interval:
    """A number with its bootstrap interval; all three are None where the number is undefined.

    Attributes:
        estimate: mean over the tasks where it is defined, on all test images. low, high: ends of the interval.
        defined: number of those tasks. resamples: number of resamples with at least one such task, which is what
            the interval rests on.
    """

    estimate: float | None
    low: float | None
    high: float | None
    defined: int
    resamples: int


@dataclass(frozen=True)
class BDInterval:
    """BD-rate (percent) and BD-quality (compared scale), means over `tasks` tasks, with intervals over `images`.

    `images` counts the different test images of all tasks together.
    """

    rate: Interval
    quality: Interval
    tasks: int
    images: int


def bd_interval(
    records: pd.DataFrame, metric: str, test: str, anchor: str | Mapping[str, str], tasks: Sequence[str] | None = None,
    draws: int = DRAWS, seed: int = 0,
) -> BDInterval:  # fmt: skip
    """The mean BD-rate and BD-quality over tasks with 95% percentile intervals by bootstrap over the test images.

    A resample draws as many images as there are, with replacement; both methods get the same ones, and so do all
    tasks that share images. (Tasks whose sets of images overlap only in part draw from their union.) Curves are means
    over the drawn images, as in :func:`bd_table`. In each resample the mean is over those tasks whose number is
    defined in it; a resample without any is left out.

    What it is worth: the interval answers how far the result hangs on which of *these* images were taken, under one
    training of each method. It says nothing of other seeds. And over 3 images it is no 95% interval of a larger
    population: of the 27 resamples 10 differ, and it runs about from the least to the most favourable image. If it
    includes zero, one of the images (or more) says the opposite; if it excludes zero, all three nearly agree, which
    three images do by chance once in four times. Percentile intervals of so few are too narrow; from some dozens of
    images on they cover about what they promise.

    Args:
        records: as read by ``read_records``.
        metric, test, anchor: names; test and anchor differ. The anchor may be another one for each task, as task ->
            anchor. tasks: names; all tasks of the records by default.
        draws: number of random resamples; where there are no more than this, n^n for n images, each of them is taken
            once instead. seed: of these draws.

    Returns:
        :class:`BDInterval`. Its estimates are the means of `bd_rate` and `bd_quality` in :func:`bd_table`, over the
        tasks where they are defined; the mean of BD-rates is arithmetic, as in the JVET sheets.

    Raises:
        UserError: see :func:`bd_table`.
        ValueError: `draws` below 1, or a method that is compared with itself.
    """
    found = _resampled(records, metric, test, anchor, tasks, draws, seed)
    return BDInterval(
        rate=_interval(*_mean(found.table["bd_rate"]), found.rates, found.times),
        quality=_interval(*_mean(found.table["bd_quality"]), found.qualities, found.times),
        tasks=len(found.table),
        images=found.images,
    )


def bd_intervals(
    records: pd.DataFrame, metrics: Sequence[str], test: str, anchors: Sequence[str], tasks: Sequence[str]
) -> pd.DataFrame:
    """Intervals as of :func:`bd_interval` of each single comparison of a test: a row per (metric, anchor, task).

    Returns:
        The columns test, anchor, task, metric, bd_rate, bd_rate_low, bd_rate_high, bd_quality, bd_quality_low,
        bd_quality_high, and defined_rate: the share of the resamples in which there is a BD-rate. An interval of a
        BD-rate of which that share is small is that of a selection. Undefined numbers are NaN.
    """
    rows = []
    for metric in metrics:
        for anchor in (name for name in anchors if name != test):
            found = _resampled(records, metric, test, anchor, tasks)
            for column, task in enumerate(tasks):
                row: dict[str, Any] = {"test": test, "anchor": anchor, "task": task, "metric": metric}
                for name, numbers in (("bd_rate", found.rates), ("bd_quality", found.qualities)):
                    estimate, defined = _mean(found.table[name].iloc[[column]])
                    number = _interval(estimate, defined, numbers[:, [column]], found.times)
                    row |= {name: number.estimate, f"{name}_low": number.low, f"{name}_high": number.high}
                row["defined_rate"] = float(found.times[np.isfinite(found.rates[:, column])].sum() / found.times.sum())
                rows.append(row)
    table = pd.DataFrame(rows)
    return table.astype({column: float for column in table.columns if column.startswith("bd_")})


@dataclass(frozen=True)
class _Resampled:
    """Rows of `bd_table` by task; BD-rates and BD-qualities (R, tasks) of R different resamples, and how often each was
    drawn; and the number of images."""

    table: pd.DataFrame
    rates: np.ndarray
    qualities: np.ndarray
    times: np.ndarray
    images: int


def _resampled(
    records: pd.DataFrame, metric: str, test: str, anchor: str | Mapping[str, str], tasks: Sequence[str] | None,
    draws: int = DRAWS, seed: int = 0,
) -> _Resampled:  # fmt: skip
    tasks = sorted(records["task"].unique()) if tasks is None else list(tasks)
    anchors = dict.fromkeys(tasks, anchor) if isinstance(anchor, str) else anchor
    if draws < 1 or test in anchors.values():
        raise ValueError("intervals need draws >= 1 and two different methods")
    records = records[records["method"].isin([test, *anchors.values()])]
    table = pd.concat([bd_table(records, [metric], [test], [anchors[task]], [task]) for task in tasks])
    arrays = curve_images(records, metric, [(m, task) for task in tasks for m in (anchors[task], test)])
    images = sorted({name for array in arrays.values() for name in array.images})
    clusters = _clusters([arrays[test, task].images for task in tasks])
    counts, times = _resamples([[images.index(name) for name in cluster] for cluster in clusters], draws, seed)
    rates = np.full((len(counts), len(tasks)), np.nan)
    qualities = rates.copy()
    for column, task in enumerate(tasks):
        shares = counts[:, [images.index(name) for name in arrays[test, task].images]].astype(float)
        drawn = np.flatnonzero(shares.sum(1))
        shares = shares[drawn] / shares[drawn].sum(1, keepdims=True)
        means = [shares @ v for m in (anchors[task], test) for v in (arrays[m, task].bpp, arrays[m, task].value)]
        rates[drawn, column], qualities[drawn, column] = _many(*means, **_scale_of(metric))
    return _Resampled(table, rates, qualities, times, len(images))


def _many(
    rate_a: np.ndarray, value_a: np.ndarray, rate_t: np.ndarray, value_t: np.ndarray, lower_better: bool,
    transform: Transform | None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """BD-rate and BD-quality (R,) of R pairs of curves (R, points), NaN where undefined: as :func:`bd` gives for each.

    Pairs to which only the plain part of the rule applies are computed together, hundreds of times faster; those with
    ties, falls within the tolerance, or rates out of order go to `bd` one by one.
    """
    rates, qualities = np.full(len(rate_a), np.nan), np.full(len(rate_a), np.nan)
    plain, known, fallen = np.ones(len(rate_a), bool), np.ones(len(rate_a), bool), np.zeros(len(rate_a), bool)
    curves = []
    for rate, value in ((rate_a, value_a), (rate_t, value_t)):
        with np.errstate(divide="ignore", invalid="ignore"):
            log_rate = np.log10(rate)
            quality = (-1.0 if lower_better else 1.0) * (value if transform is None else transform(value))
            steps, span = np.diff(quality), np.ptp(quality, axis=1, keepdims=True)
            plain &= (np.diff(log_rate) > ROUNDING).all(1) & np.isfinite(log_rate).all(1) & np.isfinite(quality).all(1)
            known &= (steps > ROUNDING * span).all(1)
            # A fall beyond doubt: no merging of ties hides one of several times the tolerance.
            fallen |= (steps < -3 * TIE_TOLERANCE * span).any(1)
        curves.append((log_rate, quality))
    plain &= np.array([rate_a.shape[1] >= MIN_POINTS and rate_t.shape[1] >= MIN_POINTS])
    together = np.flatnonzero(plain & (known | fallen))
    for row in np.flatnonzero(~(plain & (known | fallen))):
        found = bd(rate_a[row], value_a[row], rate_t[row], value_t[row], lower_better, transform)
        rates[row] = np.nan if found.rate is None else found.rate
        qualities[row] = np.nan if found.quality is None else found.quality
    if len(together):
        (log_a, quality_a), (log_t, quality_t) = ([v[together] for v in curve] for curve in curves)
        qualities[together], _ = _mean_gap(log_a, quality_a, log_t, quality_t)
    rising = np.flatnonzero(plain & known)
    if len(rising):
        (log_a, quality_a), (log_t, quality_t) = ([v[rising] for v in curve] for curve in curves)
        gap, overlap = _mean_gap(quality_a, log_a, quality_t, log_t)
        rates[rising] = np.where(overlap >= MIN_OVERLAP, 100 * (10**gap - 1), np.nan)
    return rates, qualities


def _mean_gap(x_a: np.ndarray, y_a: np.ndarray, x_t: np.ndarray, y_t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of t - a over the common x of curves (R, points) with rising x, and the overlap (R,) as in `_overlap`."""
    low, high = np.maximum(x_a[:, 0], x_t[:, 0]), np.minimum(x_a[:, -1], x_t[:, -1])
    shorter = np.minimum(x_a[:, -1] - x_a[:, 0], x_t[:, -1] - x_t[:, 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = (_area(x_t, y_t, low, high) - _area(x_a, y_a, low, high)) / (high - low)
    return np.where(high > low, gap, np.nan), np.where(high > low, (high - low) / shorter, 0.0)


def _area(x: np.ndarray, y: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Integrals (R,) from low to high of the PCHIP curves through points (R, n), those of scipy's PchipInterpolator.

    The slopes are those of Fritsch and Butland, SIAM J. Sci. Stat. Comput. 5, 1984.
    """
    h, slope = np.diff(x), np.diff(y) / np.diff(x)
    before, after = slope[:, :-1], slope[:, 1:]
    w1, w2 = 2 * h[:, 1:] + h[:, :-1], h[:, 1:] + 2 * h[:, :-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        inner = np.where(before * after > 0, (w1 + w2) / (w1 / before + w2 / after), 0.0)

    def end(h0, h1, m0, m1):
        d = ((2 * h0 + h1) * m0 - h0 * m1) / (h0 + h1)
        d = np.where(np.sign(d) != np.sign(m0), 0.0, d)
        return np.where((np.sign(m0) != np.sign(m1)) & (np.abs(d) > 3 * np.abs(m0)), 3 * m0, d)

    first = end(h[:, 0], h[:, 1], slope[:, 0], slope[:, 1])
    last = end(h[:, -1], h[:, -2], slope[:, -1], slope[:, -2])
    d = np.column_stack([first, inner, last])

    def primitive(s):
        left, right = y[:, :-1] * (s - s**3 + s**4 / 2), y[:, 1:] * (s**3 - s**4 / 2)
        bend = d[:, :-1] * (s**2 / 2 - 2 * s**3 / 3 + s**4 / 4) + d[:, 1:] * (s**4 / 4 - s**3 / 3)
        return h * (left + right + h * bend)

    from_, to = (((np.clip(at[:, None], x[:, :-1], x[:, 1:])) - x[:, :-1]) / h for at in (low, high))
    return (primitive(to) - primitive(from_)).sum(1)


def _mean(numbers: pd.Series) -> tuple[float | None, int]:
    """Mean of the defined numbers, None if there is none, and how many there are."""
    defined = numbers.dropna()
    return (float(defined.mean()) if len(defined) else None), len(defined)


def interpolations(
    records: pd.DataFrame, metrics: Sequence[str], test: str, anchors: Sequence[str], tasks: Sequence[str]
) -> pd.DataFrame:
    """What another interpolation would have said: a row per BD-rate that is defined.

    Returns:
        The columns test, anchor, task, metric, and the BD-rate in percent by pchip (the study's), akima and cubic (one
        polynomial of third degree).
    """
    rows = []
    for metric in metrics:
        curves = mean_curves(records, metric)
        for anchor in (name for name in anchors if name != test):
            for task in tasks:
                a, t = curves[anchor, task], curves[test, task]
                found = {
                    method: bd(a.bpp, a.value, t.bpp, t.value, **_scale_of(metric), method=method).rate
                    for method in ("pchip", "akima", "cubic")
                }
                if found["pchip"] is not None:
                    rows.append({"test": test, "anchor": anchor, "task": task, "metric": metric} | found)
    return pd.DataFrame(rows, columns=["test", "anchor", "task", "metric", "pchip", "akima", "cubic"])


def _clusters(sets: Sequence[Sequence[str]]) -> list[list[str]]:
    """Images that must be drawn together: sets that share any image are united."""
    clusters: list[set[str]] = []
    for names in map(set, sets):
        shared = [cluster for cluster in clusters if cluster & names]
        clusters = [cluster for cluster in clusters if not cluster & names] + [names.union(*shared)]
    return [sorted(cluster) for cluster in clusters]


def _resamples(clusters: Sequence[Sequence[int]], draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Different resamples as counts (R, images) of how often each image is drawn, and how many of the draws are each.

    Means do not depend on the order of what is drawn: of the 27 resamples of three images 10 remain to be computed.
    """
    if math.prod(len(cluster) ** len(cluster) for cluster in clusters) <= draws:
        places = [cluster for cluster in clusters for _ in cluster]
        drawn = np.array(list(itertools.product(*places)))
    else:
        generator = np.random.default_rng(seed)
        drawn = np.hstack([generator.choice(cluster, (draws, len(cluster))) for cluster in clusters])
    counts = (drawn[:, :, None] == np.arange(drawn.shape[1])).sum(1)
    return np.unique(counts, axis=0, return_counts=True)


def _interval(estimate: float | None, defined: int, numbers: np.ndarray, times: np.ndarray) -> Interval:
    """The 95% interval of the row means of numbers (resamples, tasks), NaN where undefined; row r counts times[r]."""
    known = np.isfinite(numbers)
    rows = known.any(1)
    if estimate is None or not rows.any():
        return Interval(None, None, None, defined, int(times[rows].sum()))
    means = np.where(known, numbers, 0)[rows].sum(1) / known[rows].sum(1)
    ends = np.quantile(np.repeat(means, times[rows]), [0.025, 0.975])
    return Interval(estimate, float(ends[0]), float(ends[1]), defined, int(times[rows].sum()))
