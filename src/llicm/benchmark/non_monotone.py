# SPDX-License-Identifier: Apache-2.0
"""Curves whose quality falls with the rate, as in the paper's Figures 4 (e), (f) and 5: found by a test, not by eye.

The input of a codec is degraded. At a high rate it keeps the degradation too, and the output may be further from the
ideal image than at a lower rate. The test, for each method, task and metric:

1. For each image the level of the best quality is taken from the mean curve of the *other* images, so that an image
   never chooses its own peak. Its *drop* is its quality there minus its quality at the highest rate, on the scale on
   which methods are compared (larger is better; dB for the SSIM family).
2. Student's t over the images, one-sided: is the mean drop larger than zero?
3. Over all methods and tasks of a metric, the rate of false discoveries is held at 5 % (Benjamini and Hochberg, 1995).

A curve is *non-monotone* if it passes. A curve that rises to its highest rate has a drop of zero.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from llicm.benchmark.bdrate import SSIM_FAMILY, to_db
from llicm.benchmark.metrics import metric_info
from llicm.benchmark.records import Curve, ImageCurves, curve_images, mean_curves

FALSE_DISCOVERIES = 0.05
COLUMNS = (
    "metric", "task", "method", "images", "peak_level", "peak_bpp", "top_bpp", "drop", "drop_low", "t", "p", "q",
    "non_monotone",
)  # fmt: skip


def non_monotone(
    records: pd.DataFrame, metrics: Sequence[str], tasks: Sequence[str], methods: Sequence[str]
) -> pd.DataFrame:
    """Test every curve, a row each.

    Args:
        records: as read by ``read_records``. metrics, tasks, methods: names; a curve that was not measured is left out.

    Returns:
        The columns ``COLUMNS``: `images` their number; `peak_level` and `peak_bpp` where the mean curve is the best;
        `top_bpp` its highest rate; `drop` the mean drop and `drop_low` the lower end of its one-sided 95 % interval;
        `t`, `p` the statistic and its probability if nothing fell; `q` the same held against all curves of the
        metric; `non_monotone` whether q is at most ``FALSE_DISCOVERIES``. With fewer than three images, or where all
        drops are equal, t, p and q are NaN and nothing is non-monotone.
    """
    rows = []
    for metric in metrics:
        curves = mean_curves(records, metric)
        wanted = [(method, task) for task in tasks for method in methods if (method, task) in curves]
        single = curve_images(records, metric, wanted)
        found = [_row(metric, task, method, single[method, task], curves[method, task]) for method, task in wanted]
        rows += _discoveries(found)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(metric: str, task: str, method: str, images: ImageCurves, curve: Curve) -> dict:
    quality = images.value if metric not in SSIM_FAMILY else to_db(images.value)
    if metric_info(metric).lower_better:
        quality = -quality
    count = len(quality)
    drops = np.zeros(count)
    if count > 1:
        for image in range(count):
            peak = np.delete(quality, image, 0).mean(0).argmax()
            drops[image] = quality[image, peak] - quality[image, -1]
    t = p = low = np.nan
    if count > 2 and np.ptp(drops) > 0 and np.isfinite(drops).all():
        test = stats.ttest_1samp(drops, 0, alternative="greater")
        t, p, low = float(test.statistic), float(test.pvalue), float(test.confidence_interval(0.95).low)
    peak = int(quality.mean(0).argmax()) if np.isfinite(quality).all() else quality.shape[1] - 1
    values = (
        metric, task, method, count, curve.level[peak], float(curve.bpp[peak]), float(curve.bpp[-1]),
        float(drops.mean()), low, t, p,
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=False))  # q and the verdict follow from all rows together


def _discoveries(rows: list[dict]) -> list[dict]:
    tested = [row for row in rows if np.isfinite(row["p"])]
    held = stats.false_discovery_control([row["p"] for row in tested]) if tested else []
    for row, q in zip(tested, held, strict=True):
        row["q"] = float(q)
    for row in rows:
        row["non_monotone"] = bool(row.setdefault("q", np.nan) <= FALSE_DISCOVERIES)
    return rows
