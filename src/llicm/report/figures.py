# SPDX-License-Identifier: Apache-2.0
"""Records and tables to figures, a function each."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator
from torch import Tensor

from llicm.benchmark import records as _records
from llicm.benchmark.metrics import metric_info
from llicm.errors import UserError
from llicm.methods import Method
from llicm.report.comparisons import bd_rows, quality_unit
from llicm.report.lines import CODECS, OTHER_CODECS, line_styles, method_handles
from llicm.report.style import WIDTH, grid, legend, log_rates, styled
from llicm.report.writing import bd_number, chosen, method_label

REFERENCE_LINES = (("0.45", (0, (1, 1))), ("0.1", (0, (6, 2))), ("0.45", (0, (8, 2, 1, 2))))
# Rates that span more than this factor are drawn on a logarithmic axis.
LOG_FROM = 10


@styled
def rate_perception(
    records: pd.DataFrame, metric: str, tasks: Sequence[str] | None, methods: Sequence[Method],
    references: Mapping[str, Mapping[str, float]] | None = None, highlight: Sequence[str] = (), columns: int = 3,
) -> Figure:  # fmt: skip
    """Rate-perception curves, one panel a task: mean metric against mean rate, with every measured point.

    Args:
        records: as read by ``read_records``.
        metric: name of one metric.
        tasks: panels, in this order; None for all tasks.
        methods: curves, in the order of the legend. A method that was not measured on a task is left out of its panel.
        references: horizontal lines: label -> task -> value. By default the uncompressed methods of the
            records (the degraded input itself, or restored without a codec).
        highlight: names of the methods drawn with a thicker line.
        columns: panels in a row.

    Returns:
        The figure. The rate axis is common to all panels, and logarithmic if rates span more than 10 times.

    Raises:
        UserError: a task or method that the records do not hold.
    """
    curves = _records.mean_curves(records, metric)
    tasks = chosen(tasks, sorted({task for _, task in curves}), "task")
    names = chosen([method.name for method in methods], sorted({method for method, _ in curves}), "method")
    styles = line_styles(methods)
    if references is None:
        references = _records.references(records, metric)
    figure, axes = grid(len(tasks), columns, 2.55, "rate (bits per pixel)", metric_info(metric).axis_label)
    rates = np.concatenate([curves[m, t].bpp for m in names for t in tasks if (m, t) in curves])
    logarithmic = rates.max() > LOG_FROM * rates.min()
    lines = list(zip(references.items(), REFERENCE_LINES * 9, strict=False))
    for axis, task in zip(axes, tasks, strict=True):
        for (_, values), (colour, dashes) in lines:
            if task in values:
                axis.axhline(values[task], color=colour, linestyle=dashes, linewidth=1.0, zorder=1.5)
        for name in names:
            if (name, task) in curves:
                extra = {"linewidth": 2.6, "markersize": 6, "zorder": 4} if name in highlight else {}
                axis.plot(curves[name, task].bpp, curves[name, task].value, **(styles[name] | extra))
        axis.set_title(task)
        if logarithmic:
            log_rates(axis, minor_ticks=False)
        else:
            axis.set_xlim(left=0)
    thick = {name: style | ({"linewidth": 2.6} if name in highlight else {}) for name, style in styles.items()}
    handles = method_handles(thick) + [
        Line2D([], [], color=colour, linestyle=dashes, linewidth=1.0, label=label)
        for (label, _), (colour, dashes) in lines
    ]
    # Columns of three: a codec with its three orders stands together.
    legend(figure, handles, math.ceil(len(handles) / 3), handlelength=3.2)
    return figure


@styled
def non_monotone_why(
    records: pd.DataFrame, task: str, methods: Sequence[Method], crops: Sequence[tuple[str, Tensor, str]] = ()
) -> Figure:
    """Why quality falls with the rate: what is kept of the degradation in X̂, and what becomes of the output.

    Args:
        records: as read by ``read_records``, with the probe ``kept`` (see ``llicm.benchmark.probes``).
        task: whose degradation is shown. methods: curves.
        crops: pictures below: title, picture (3, H, W) in [0, 1], what is written below it.

    Returns:
        Two panels over the rate, of the share of the degradation's energy in X̂ (in percent) and of PSNR; below them
        the pictures.
    """
    styles = line_styles(methods)
    figure = Figure(figsize=(WIDTH, 3.4 + (2.4 if crops else 0)), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(3.4, 2.4)) if crops else [figure]
    axes = parts[0].subplots(1, 2)
    for axis, name in zip(axes, ("kept", "psnr"), strict=True):
        curves = _records.mean_curves(records, name)
        for method in styles:
            if (method, task) in curves:
                curve = curves[method, task]
                axis.plot(curve.bpp, 100 * curve.value if name == "kept" else curve.value, **styles[method])
        axis.set_xlabel("rate (bits per pixel)")
        log_rates(axis)
    axes[0].set_ylabel("energy kept in X̂ (%)")
    axes[0].set_title(f"{task}: what X̂ keeps of the degradation", fontsize=9.5)
    axes[1].set_title(f"{task}: quality of the output", fontsize=9.5)
    axes[0].axhline(100, color="0.45", linestyle=(0, (1, 1)), linewidth=1.0)
    axes[0].set_ylim(bottom=0)
    axes[1].set_ylabel(metric_info("psnr").axis_label)
    handles = method_handles(styles)
    parts[0].legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), frameon=False)
    below = parts[1].subplots(1, len(crops), squeeze=False)[0] if crops else []
    for axis, (title, picture, note) in zip(below, crops, strict=True):
        axis.imshow(picture.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
        axis.set_title(title, fontsize=8)
        axis.set_xlabel(note, fontsize=8)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    return figure


@styled
def rate_gap(records: pd.DataFrame, methods: Sequence[Method]) -> Figure:
    """How much larger real files are than the entropy model's estimate: a point an image, task and level.

    Args:
        records: as read by ``read_records``, with the probe ``bpp_estimated``. methods: those with a learned codec.
    """
    styles = line_styles(methods)
    rows = records[(records["metric"] == "bpp_estimated") & records["method"].isin(styles)]
    if not len(rows):
        raise UserError("The records hold no estimated rates: evaluate a method with a learned codec.")
    figure = Figure(figsize=(0.62 * WIDTH, 3.6), layout="constrained")
    axis = figure.subplots()
    for method, style in styles.items():
        of = rows[rows["method"] == method]
        if len(of):
            points = style | {"linestyle": "", "markersize": 3.5, "alpha": 0.6}
            axis.plot(of["value"], 100 * (of["bpp"] / of["value"] - 1), **points, label=method_label(method))
    axis.axhline(0, color="0.3", linewidth=1.0)
    log_rates(axis)
    axis.set_xlabel("estimated rate (bits per pixel)")
    axis.set_ylabel("real file above the estimate (%)")
    axis.legend(frameon=False)
    return figure


@styled
def bd_heatmap(
    table: pd.DataFrame, metric: str, test: str, tasks: Sequence[str] | None = None, value: str = "rate"
) -> Figure:
    """BD-rate (or BD-quality) of one method against its anchors: a row an anchor, a column a task.

    Blue: the test is better; red: worse; white: equal. Hatched: undefined, with the word "better" or "worse"
    where every point of the test lies above or below every point of the anchor. The last column is the mean
    over the tasks where the number is defined, with their count if some are missing.

    Args:
        table: made by ``llicm.benchmark.bdrate.bd_table``.
        test: the method compared. tasks: columns; by default those of the table.
        value: "rate" (percent) or "quality".

    Raises:
        UserError: the table does not hold these comparisons.
    """
    tasks, rows = bd_rows(table, metric, test, tasks, value)
    largest = max((abs(number) for row in rows for number in row.defined), default=0.0)
    # BD-rate cannot fall below -100 %, so larger increases share the darkest colour.
    limit = min(max(largest, 10.0), 100.0) if value == "rate" else largest or 1.0
    shades, norm = matplotlib.colormaps["RdBu_r" if value == "rate" else "RdBu"], Normalize(-limit, limit)
    figure = Figure(figsize=(8.2, 1.5 + 0.42 * len(rows)), layout="constrained")
    axis = figure.subplots()
    mean_at = len(tasks) + 0.15  # a gap sets the mean apart
    for i, row in enumerate(rows):
        for j, (number, verdict) in enumerate(zip(row.numbers, row.verdicts, strict=True)):
            text = bd_number(number, value) + (f"\n{verdict}" if math.isnan(number) and verdict else "")
            _cell(axis, j, i, number, text, shades, norm)
        text = bd_number(row.mean, value) + (f"\n{row.partly}" if row.partly else "")
        _cell(axis, mean_at, i, row.mean, text, shades, norm, weight="bold")
    axis.set_xlim(-0.5, mean_at + 0.5)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xticks([*range(len(tasks)), mean_at], [*tasks, "mean"], rotation=25, ha="right")
    axis.set_yticks(range(len(rows)), [method_label(row.anchor) for row in rows])
    axis.tick_params(length=0, pad=2)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    label, unit = metric_info(metric).label, quality_unit(metric)
    axis.set_title(label if value == "rate" else f"{label} ({unit + ', ' if unit else ''}positive is better)")
    if value == "rate":
        bar = figure.colorbar(matplotlib.cm.ScalarMappable(norm, shades), ax=[axis], shrink=0.8, pad=0.01, aspect=30)
        bar.set_label("BD-rate (%), negative is better")
        bar.outline.set_visible(False)
    if any(len(row.defined) < len(tasks) for row in rows):
        note = "n/a: undefined; better, worse: at every rate measured. Means are over the defined tasks."
        figure.supxlabel(note, fontsize=8)
    figure.suptitle(f"BD-{value} of {method_label(test)} against each anchor", fontsize=11)
    return figure


def _cell(
    axis: Axes, x: float, y: float, number: float, text: str, shades: Colormap, norm: Normalize, weight: str = "normal"
) -> None:
    undefined = math.isnan(number)
    colour = (0.94, 0.94, 0.94, 1.0) if undefined else shades(norm(float(np.clip(number, norm.vmin, norm.vmax))))
    axis.add_patch(
        Rectangle(
            (x - 0.5, y - 0.5), 1, 1, facecolor=colour, linewidth=1.0,
            edgecolor="0.8" if undefined else "white", hatch="////" if undefined else None,
        )
    )  # fmt: skip
    dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 0.5
    backing = {"facecolor": colour, "edgecolor": "none", "pad": 1.2} if undefined else None
    axis.text(
        x, y, text, ha="center", va="center", color="white" if dark else "black", weight=weight,
        fontsize=7 if "\n" in text else 8, linespacing=1.1, bbox=backing,
    )  # fmt: skip


@styled
def diffusion_steps(
    records: pd.DataFrame, steps: Mapping[str, int], metrics: Sequence[str], seconds: Mapping[str, float] | None = None
) -> Figure:
    """What more steps of a diffusion restorer give, and what they cost: a panel a metric, a line a task and their mean.

    Args:
        records: as read by ``read_records``.
        steps: method -> number of steps, i.e. of calls of the network for an image.
        metrics: names.
        seconds: method -> what an image takes, written below the numbers of steps; None to leave it out.

    Raises:
        UserError: a method that the records do not hold.
    """
    chosen(list(steps), list(records["method"].unique()), "method")
    of = records[records["method"].isin(list(steps))]
    ticks = {n: f"{n}" + (f"\n{seconds[method]:.2g} s" if seconds else "") for method, n in steps.items()}
    counts = sorted(ticks)
    label = "steps" if not seconds else "steps, and seconds per image on one thread"
    figure, axes = grid(len(metrics), 3, 2.9, label, "")
    tasks = list(dict.fromkeys(of["task"]))
    colours = [colour for colour, _ in (*CODECS.values(), *OTHER_CODECS)]
    for axis, metric in zip(axes, metrics, strict=True):
        info = metric_info(metric)
        rows = of[of["metric"] == metric]
        table = rows.assign(steps=rows["method"].map(steps)).pivot_table("value", "steps", "task")[tasks]
        handles = []
        for i, task in enumerate(tasks):
            style: dict[str, Any] = {"color": colours[i % len(colours)], "marker": "o", "markersize": 3.5}
            handles += axis.plot(table.index, table[task], label=task, **style)
        mean = table.mean(axis=1)
        handles += axis.plot(mean.index, mean, marker="D", color="0.2", linewidth=2.8, label="mean of the tasks")
        axis.set_title(info.label)
        axis.set_ylabel(info.axis_label)
        axis.set_xscale("log")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xticks(counts, [ticks[count] for count in counts])
    legend(figure, handles, len(handles))
    return figure
