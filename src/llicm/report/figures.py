# SPDX-License-Identifier: Apache-2.0
"""Records and images to figures and tables.

Every function returns a matplotlib ``Figure`` without touching pyplot, so nothing depends on a display, a
backend or the reader's own matplotlib settings, and :func:`save_figure` writes the same bytes for the same
data. Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart; a codec family
keeps its colour and marker in all figures, the place of the restorer its line style.
"""

import functools
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from PIL import Image
from torch import Tensor

from llicm.benchmark import records as _records
from llicm.benchmark.metrics import metric_info
from llicm.errors import UserError
from llicm.files import write_atomically

__all__ = [
    "non_monotone_why",
    "bd_heatmap",
    "bd_markdown",
    "confusion",
    "diffusion_steps",
    "line_styles",
    "method_label",
    "picture_rows",
    "picture_strip",
    "png",
    "rate_gap",
    "rate_perception",
    "save_figure",
    "styled",
    "training_curves",
]

STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8.5,
    "figure.facecolor": "white",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.6,
}
WIDTH = 10.0  # inches; at 100 dpi about the width of a page on a code host
FAMILIES = {  # family -> colour, marker
    "jpeg": ("#E69F00", "o"),
    "webp": ("#56B4E9", "s"),
    "rdo": ("#009E73", "^"),
    "adapted": ("#CC79A7", "v"),
    "llicm": ("#D55E00", "D"),
    "llicm-prefilter": ("#7A2E00", "D"),
    "irsde": ("#0072B2", "P"),
    "llicm-irsde": ("#000000", "X"),
    "jpeg2000": ("#A08F00", "h"),
    "avif": ("#882255", "<"),
    "heic": ("#44AA99", ">"),
}
OTHER_FAMILIES = (("#7F7F7F", "p"), ("#999933", "d"), ("#AA4499", "8"))
ADAPTED = "-."  # line of a conventional codec whose restorer is adapted to it
ORDERS = {"alone": ":", "after": "-", "before": "--", "around": "-."}
OTHER_ORDERS = ("-.", (0, (5, 1, 1, 1, 1, 1)))
REFERENCE_LINES = (("0.45", (0, (1, 1))), ("0.1", (0, (6, 2))), ("0.45", (0, (8, 2, 1, 2))))
# Rates that span more than this factor are drawn on a logarithmic axis.
LOG_FROM = 10


def styled(function: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorator: draw in the style of all figures."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        with matplotlib.style.context(["default", STYLE]):
            return function(*args, **kwargs)

    return wrapper


def save_figure(figure: Figure, path: str | os.PathLike, dpi: int, palette: bool = False) -> None:
    """Write a figure as PNG or JPEG, whole or not at all; the same figure gives the same bytes.

    Args:
        figure: made by a function of this module.
        path: ends in ``.png``, or in ``.jpg`` for a page of photos, which has a fifth of the bytes then; its folder is
            made.
        dpi: pixels per inch.
        palette: see :func:`png`.
    """
    if Path(path).suffix not in (".png", ".jpg"):
        raise ValueError(f"figures are written as .png or .jpg, not {path}")
    data = png(figure, dpi, palette and Path(path).suffix == ".png")
    if Path(path).suffix == ".jpg":
        buffer = io.BytesIO()
        Image.open(io.BytesIO(data)).convert("RGB").save(buffer, "JPEG", quality=80)
        data = buffer.getvalue()
    write_atomically(path, data)


def png(figure: Figure, dpi: int, palette: bool = False) -> bytes:
    """The bytes of a figure as PNG, e.g. to show it in a notebook.

    Args:
        palette: 256 colours for a figure without photos: it looks the same and has a third of the bytes.
    """
    buffer = io.BytesIO()
    with matplotlib.style.context(["default", STYLE]):
        # No version of matplotlib among the metadata.
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    if not palette or any(image.get_array().ndim == 3 for axis in figure.axes for image in axis.images):
        return buffer.getvalue()
    small = io.BytesIO()
    Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def method_label(method: str) -> str:
    """A method's name for readers: ``webp>restorer`` -> "webp → restorer"."""
    return " → ".join(method.split(">"))


def _grid(panels: int, columns: int, height: float, x_label: str, y_label: str) -> tuple[Figure, list[Axes]]:
    """Panels with one common horizontal axis, labelled at the left and wherever nothing stands below."""
    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    width = {1: 0.5, 2: 0.75}.get(columns, 1.0) * WIDTH
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel().tolist()
    for empty in axes[panels:]:
        empty.remove()
    axes = axes[:panels]
    for i, axis in enumerate(axes):
        lowest = i + columns >= panels
        axis.tick_params(labelbottom=lowest)
        axis.set_xlabel(x_label if lowest else "")
        axis.set_ylabel(y_label if i % columns == 0 else "")
    return figure, axes


@styled
def rate_perception(
    records: pd.DataFrame,
    metric: str,
    tasks: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    references: Mapping[str, Mapping[str, float]] | None = None,
    highlight: Sequence[str] = ("llicm", "llicm-prefilter"),
    columns: int = 3,
) -> Figure:
    """Rate-perception curves, one panel a task: mean metric against mean rate, with every measured point.

    Args:
        records: as read by ``read_records``.
        metric: name of one metric.
        tasks: panels, in this order; all tasks by default.
        methods: curves, in the order of the legend; all compressing methods by default. A method that was
            not measured on a task is left out of its panel.
        references: horizontal lines: label -> task -> value. By default the uncompressed methods of the
            records (the degraded input itself, or restored without a codec).
        highlight: the methods drawn with a thicker line.
        columns: panels in a row.

    Returns:
        The figure. The rate axis is common to all panels, and logarithmic if rates span more than 10 times.

    Raises:
        UserError: a task or method that the records do not hold.
    """
    curves = _records.mean_curves(records, metric)
    tasks = _chosen(tasks, sorted({task for _, task in curves}), "task")
    methods = _chosen(methods, sorted({method for method, _ in curves}), "method")
    styles = line_styles(records, methods)
    if references is None:
        references = _records.references(records, metric)
    info = metric_info(metric)
    figure, axes = _grid(len(tasks), columns, 2.55, "rate (bits per pixel)", info.axis_label)
    shown = [curves[key] for key in ((m, t) for m in methods for t in tasks) if key in curves]
    rates = np.concatenate([curve.bpp for curve in shown])
    logarithmic = rates.max() > LOG_FROM * rates.min()
    for axis, task in zip(axes, tasks, strict=True):
        for (_, values), (colour, dashes) in zip(references.items(), REFERENCE_LINES * 9, strict=False):
            if task in values:
                axis.axhline(values[task], color=colour, linestyle=dashes, linewidth=1.0, zorder=1.5)
        for method in methods:
            if (method, task) in curves:
                curve = curves[method, task]
                extra = {"linewidth": 2.6, "markersize": 6, "zorder": 4} if method in highlight else {}
                axis.plot(curve.bpp, curve.value, **(styles[method] | extra))
        axis.set_title(task)
        if logarithmic:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.xaxis.set_minor_locator(NullLocator())
        else:
            axis.set_xlim(left=0)
    handles = [
        Line2D([], [], label=method_label(m), **(styles[m] | ({"linewidth": 2.6} if m in highlight else {})))
        for m in methods
    ] + [
        Line2D([], [], color=colour, linestyle=dashes, linewidth=1.0, label=label)
        for label, (colour, dashes) in zip(references, REFERENCE_LINES * 9, strict=False)
    ]
    # Columns of three: a family with its three orders stands together.
    _legend(figure, handles, math.ceil(len(handles) / 3), handlelength=3.2)
    return figure


def _legend(figure: Figure, handles: Sequence[Line2D], columns: int, **options) -> None:
    """One legend below all panels; the figure grows by its height."""
    width, height = figure.get_size_inches()
    columns = max(1, min(columns, int(width / 1.7)))
    figure.set_size_inches(width, height + 0.19 * math.ceil(len(handles) / columns))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, **options)


def _chosen(names: Sequence[str] | None, known: Sequence[str], kind: str) -> list[str]:
    if names is None:
        return list(known)
    for name in names:
        if name not in known:
            raise UserError(f"There is no {kind} {name!r} to draw: choose among {', '.join(known)}.")
    return list(names)


def line_styles(records: pd.DataFrame, methods: Sequence[str]) -> dict[str, dict]:
    """Colour and marker by family, line style by order."""
    about = records.drop_duplicates("method").set_index("method")[["family", "order"]]
    # A family with several codecs: each has the colour of its codec.
    own = {
        method: next((part for part in method.split(">") if part in FAMILIES), family)
        if (family := about.loc[method, "family"]) not in FAMILIES
        else family
        for method in methods
    }
    families = [f for f in dict.fromkeys(own.values()) if f not in FAMILIES]
    orders = [o for o in dict.fromkeys(about.loc[list(methods), "order"]) if o not in ORDERS]
    palette = FAMILIES | {f: OTHER_FAMILIES[i % len(OTHER_FAMILIES)] for i, f in enumerate(families)}
    dashes = ORDERS | {o: OTHER_ORDERS[i % len(OTHER_ORDERS)] for i, o in enumerate(orders)}
    styles = {}
    for method in methods:
        order = about.loc[method, "order"]
        colour, marker = palette[own[method]]
        styles[method] = {
            "color": colour,
            "marker": marker,
            "linestyle": ADAPTED if own[method] != about.loc[method, "family"] else dashes[order],
            "linewidth": 1.5,
            "markersize": 4.5,
            "markeredgewidth": 1.0,
            # Hollow without a restorer: readable where line styles are short.
            "markerfacecolor": "white" if order == "alone" else colour,
        }
    return styles


@styled
def non_monotone_why(
    records: pd.DataFrame,
    task: str,
    methods: Sequence[str],
    crops: Sequence[tuple[str, Tensor, str]] = (),
    metric: str = "psnr",
) -> Figure:
    """Why quality falls with the rate: what is kept of the degradation in X̂, and what becomes of the output.

    Args:
        records: as read by ``read_records``, with the probe ``kept`` (see ``llicm.benchmark.probes``).
        task: whose degradation is shown. methods: curves. metric: of the second panel.
        crops: pictures below, as for :func:`picture_strip`: title, picture, what is written below it.

    Returns:
        Two panels over the rate, of the share of the degradation's energy in X̂ (in percent) and of the metric; below
        them the pictures.
    """
    styles = line_styles(records, methods)
    height = 3.4 + (2.4 if crops else 0)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(3.4, 2.4)) if crops else (figure, None)
    axes = upper.subplots(1, 2)
    for axis, name in zip(axes, ("kept", metric), strict=True):
        curves = _records.mean_curves(records, name)
        for method in methods:
            if (method, task) in curves:
                curve = curves[method, task]
                value = 100 * curve.value if name == "kept" else curve.value
                axis.plot(curve.bpp, value, **styles[method])
        axis.set_xlabel("rate (bits per pixel)")
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel("energy kept in X̂ (%)")
    axes[0].set_title(f"{task}: what X̂ keeps of the degradation", fontsize=9.5)
    axes[1].set_title(f"{task}: quality of the output", fontsize=9.5)
    axes[0].axhline(100, color="0.45", linestyle=(0, (1, 1)), linewidth=1.0)
    axes[0].set_ylim(bottom=0)
    axes[1].set_ylabel(metric_info(metric).axis_label)
    handles = [Line2D([], [], label=method_label(m), **styles[m]) for m in methods]
    upper.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), frameon=False)
    if crops:
        for axis, (title, picture, note) in zip(np.atleast_1d(lower.subplots(1, len(crops))), crops, strict=True):
            axis.imshow(picture.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
            axis.set_title(title, fontsize=8)
            axis.set_xlabel(note, fontsize=8)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
    return figure


@styled
def rate_gap(records: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """How much larger real files are than the entropy model's estimate: a point an image, task and level.

    Args:
        records: as read by ``read_records``, with the probe ``bpp_estimated``. methods: those with a learned codec.
    """
    rows = records[(records["metric"] == "bpp_estimated") & records["method"].isin(methods)]
    if not len(rows):
        raise UserError("The records hold no estimated rates: evaluate a method with a learned codec.")
    styles = line_styles(records, methods)
    figure = Figure(figsize=(0.62 * WIDTH, 3.6), layout="constrained")
    axis = figure.subplots()
    for method in methods:
        of = rows[rows["method"] == method]
        if len(of):
            style = styles[method] | {"linestyle": "", "markersize": 3.5, "alpha": 0.6}
            axis.plot(of["value"], 100 * (of["bpp"] / of["value"] - 1), **style, label=method_label(method))
    axis.axhline(0, color="0.3", linewidth=1.0)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("estimated rate (bits per pixel)")
    axis.set_ylabel("real file above the estimate (%)")
    axis.legend(frameon=False)
    return figure


@styled
def bd_heatmap(
    table: pd.DataFrame,
    metrics: str | Sequence[str],
    test: str,
    anchors: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    value: str = "rate",
) -> Figure:
    """BD-rate (or BD-quality) of one method against its anchors: a row an anchor, a column a task.

    Blue: the test is better; red: worse; white: equal. Hatched: undefined, with the word "better" or "worse"
    where every point of the test lies above or below every point of the anchor. The last column is the mean
    over the tasks where the number is defined, with their count if some are missing.

    Args:
        table: made by ``llicm.benchmark.bdrate.bd_table``.
        metrics: one name, or several, one panel each.
        test: the method compared. anchors, tasks: rows and columns; by default those of the table.
        value: "rate" (percent) or "quality".

    Raises:
        UserError: the table does not hold these comparisons.
    """
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    cells = {metric: _cells(table, metric, test, anchors, tasks, value) for metric in metrics}
    anchors, tasks = cells[metrics[0]][0].index, cells[metrics[0]][0].columns
    columns = 1 if len(metrics) == 1 else 2
    rows = math.ceil(len(metrics) / columns)
    size = (8.2, 1.5 + 0.42 * len(anchors)) if columns == 1 else (13, rows * (1.3 + 0.40 * len(anchors)))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    numbers = np.concatenate([numbers.to_numpy().ravel() for numbers, _ in cells.values()])
    numbers = np.abs(numbers[np.isfinite(numbers)])
    # BD-rate cannot fall below -100 %, so larger increases share the darkest colour. Qualities of different
    # metrics have different units: each panel has its own scale.
    limit = float(np.clip(numbers.max(initial=10), 10, 100))
    shades = matplotlib.colormaps["RdBu_r" if value == "rate" else "RdBu"]
    for axis, metric in zip(axes, metrics, strict=False):
        numbers, better = cells[metric]
        if value == "quality":
            finite = np.abs(numbers.to_numpy()[np.isfinite(numbers.to_numpy())])
            limit = float(finite.max(initial=0)) or 1.0
        _draw_cells(axis, numbers, better, shades, Normalize(-limit, limit), value)
        axis.set_title(metric_info(metric).label if value == "rate" else _quality_label(metric))
    for empty in axes[len(metrics) :]:
        empty.remove()
    if value == "rate":
        scale = matplotlib.cm.ScalarMappable(Normalize(-limit, limit), shades)
        bar = figure.colorbar(scale, ax=axes[: len(metrics)], shrink=0.8, pad=0.01, aspect=30)
        bar.set_label("BD-rate (%), negative is better")
        bar.outline.set_visible(False)
    if any(frame.isna().any(axis=None) for frame, _ in cells.values()):
        figure.supxlabel(
            "n/a: undefined; better, worse: at every rate measured. Means are over the defined tasks.",
            fontsize=8,
        )
    title = "BD-rate" if value == "rate" else "BD-quality"
    figure.suptitle(f"{title} of {method_label(test)} against each anchor", fontsize=11)
    return figure


def _quality_label(metric: str) -> str:
    from llicm.benchmark.bdrate import SSIM_FAMILY

    info = metric_info(metric)
    unit = "dB" if metric in SSIM_FAMILY else info.unit
    return f"{info.label} ({unit + ', ' if unit else ''}positive is better)"


def _cells(
    table: pd.DataFrame, metric: str, test: str, anchors: Sequence[str] | None, tasks: Sequence[str] | None,
    value: str,
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """Numbers and the column `better` as anchors x tasks."""
    if value not in ("rate", "quality"):
        raise ValueError(f"value is 'rate' or 'quality', not {value!r}")
    rows = table[(table["test"] == test) & (table["metric"] == metric)]
    if not len(rows):
        raise UserError(f"The BD table has no {metric} of {test}: add them to it.")
    anchors = _chosen(anchors, list(dict.fromkeys(rows["anchor"])), "anchor")
    tasks = _chosen(tasks, list(dict.fromkeys(rows["task"])), "task")
    numbers, better = (
        rows.pivot(index="anchor", columns="task", values=column).reindex(index=anchors, columns=tasks)
        for column in (f"bd_{value}", "better")
    )
    return numbers.astype(float), better.fillna("")


def _draw_cells(axis: Axes, numbers: pd.DataFrame, better: pd.DataFrame, shades, norm: Normalize, value: str) -> None:
    """One heat map with a column for the mean."""
    rows, columns = numbers.shape
    mean_at = columns + 0.15  # a gap sets the mean apart
    for i, anchor in enumerate(numbers.index):
        defined = numbers.loc[anchor].dropna()
        for j, task in enumerate(numbers.columns):
            number, verdict = numbers.loc[anchor, task], better.loc[anchor, task]
            text = _number(number, value)
            if np.isnan(number):
                word = {"test": "better", "anchor": "worse"}.get(verdict)
                text = f"n/a\n{word}" if word else "n/a"
            _cell(axis, j, i, number, text, shades, norm)
        mean = float(defined.mean()) if len(defined) else math.nan
        text = _number(mean, value)
        if 0 < len(defined) < columns:
            text += f"\n{len(defined)} of {columns}"
        _cell(axis, mean_at, i, mean, text, shades, norm, weight="bold")
    axis.set_xlim(-0.5, mean_at + 0.5)
    axis.set_ylim(rows - 0.5, -0.5)
    axis.set_xticks([*range(columns), mean_at], [*numbers.columns, "mean"], rotation=25, ha="right")
    axis.set_yticks(range(rows), [method_label(anchor) for anchor in numbers.index])
    axis.tick_params(length=0, pad=2)
    axis.grid(False)
    axis.spines[:].set_visible(False)


def _cell(
    axis: Axes, x: float, y: float, number: float, text: str, shades, norm: Normalize, weight: str = "normal"
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


def _number(number: float, value: str) -> str:
    if math.isnan(number):
        return "n/a"
    if value == "rate":
        return f"{number:+.1f}" if abs(number) < 999.5 else f"{number:+.0f}"
    return f"{number:+.2f}"


def bd_markdown(
    table: pd.DataFrame,
    metric: str,
    test: str,
    anchors: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    value: str = "rate",
    reasons: bool = True,
) -> str:
    """The numbers of :func:`bd_heatmap` as a Markdown table, with the reason of each missing one below it.

    Args:
        table, test, anchors, tasks, value: as in :func:`bd_heatmap`.
        metric: one name.
        reasons: list why numbers are missing.

    Returns:
        Text that ends in a line break. "n/a" stands for an undefined number; a mean over part of the tasks
        says over how many.
    """
    numbers, better = _cells(table, metric, test, anchors, tasks, value)
    unit = "%" if value == "rate" else ""
    lines = [
        "| anchor | " + " | ".join([*numbers.columns, "mean"]) + " |",
        "|---|" + "---:|" * (len(numbers.columns) + 1),
    ]
    for anchor in numbers.index:
        cells = []
        for task in numbers.columns:
            number = numbers.loc[anchor, task]
            word = {"test": " (better)", "anchor": " (worse)"}.get(better.loc[anchor, task], "")
            cells.append(f"n/a{word}" if np.isnan(number) else _number(number, value) + unit)
        defined = numbers.loc[anchor].dropna()
        mean = _number(float(defined.mean()), value) + unit if len(defined) else "n/a"
        part = f" ({len(defined)} of {len(numbers.columns)})" if 0 < len(defined) < len(numbers.columns) else ""
        lines.append("| " + " | ".join([method_label(anchor), *cells, f"**{mean}**{part}"]) + " |")
    why = "reason" if value == "rate" else "quality_reason"
    chosen = table[
        (table["test"] == test)
        & (table["metric"] == metric)
        & table["anchor"].isin(numbers.index)
        & table["task"].isin(numbers.columns)
        & table[f"bd_{value}"].isna()
    ]
    if reasons and len(chosen):
        lines.append("")
        for row in chosen.itertuples():
            lines.append(f"- {row.task}, {method_label(row.anchor)}: {method_label(getattr(row, why))}.")
    return "\n".join(lines) + "\n"


@styled
def confusion(
    table: pd.DataFrame,
    words: Sequence[str] | None = None,
    title: str = "",
    core: Sequence[str] = (),
    levels: Sequence[float] | None = None,
) -> Figure:
    """What the guide takes a degradation for: a panel a level, a row a true word, a column a guess, in percent.

    Rows sum to 100 (but for rounding, and guesses that are not among the words drawn); 0 is left blank. The core words
    come first, set apart by a line; the accuracies in the titles weigh words equally.

    Args:
        table: made by ``llicm.vlm.recognition.recognise_all``.
        words: rows and columns, in this order behind the core words; by default those of the table.
        title: above all panels; "" for none.
        core: the study's tasks.
        levels: of the codec, a panel each; NaN for uncompressed images. By default uncompressed, the highest and the
            lowest level, as far as the table has them.

    Raises:
        UserError: a word or level that the table does not hold, or an empty table.
    """
    if not len(table):
        raise UserError("The table of recognised degradations is empty: recognise at least one image.")
    known = list(dict.fromkeys(table["word"]))
    core = _chosen(core, known, "degradation")
    words = [*core, *(word for word in _chosen(words, known, "degradation") if word not in core)]
    measured = sorted(table["level"].dropna().unique(), reverse=True)
    if levels is None:
        levels = ([math.nan] if table["level"].isna().any() else []) + measured[:1] + measured[1:][-1:]
    shares = [_confused(table, words, level) for level in levels]
    # Sizes in inches: cells stay square, and hold their numbers, whatever the number of panels and words.
    left, gap, bottom, top = 1.36, 0.14, 1.36, 0.46 + (0.3 if title else 0.0)
    side = min((WIDTH - left - gap * len(shares)) / len(shares), 0.42 * len(words))
    width, height = left + (side + gap) * len(shares), bottom + side + top
    figure = Figure(figsize=(width, height))
    axes = [
        figure.add_axes(((left + i * (side + gap)) / width, bottom / height, side / width, side / height))
        for i in range(len(shares))
    ]
    cell = side / len(words)
    for i, (axis, level, share) in enumerate(zip(axes, levels, shares, strict=True)):
        axis.imshow(np.where(share > 0, share, np.nan), cmap="Blues", vmin=-8, vmax=115)  # white is for none alone
        for y, x in zip(*np.nonzero(share >= 0.5), strict=True):
            axis.text(
                x, y, f"{share[y, x]:.0f}", ha="center", va="center", color="white" if share[y, x] > 60 else "black",
                fontsize=min(8, 72 * cell / 2.4),
            )  # fmt: skip
        if 0 < len(core) < len(words):
            for line in (axis.axhline, axis.axvline):
                line(len(core) - 0.5, color="0.3", linewidth=0.8)
        axis.set_xticks(range(len(words)), words, rotation=90)
        axis.set_yticks(range(len(words)), words if i == 0 else [""] * len(words))
        axis.tick_params(length=0, pad=3)
        axis.grid(False)
        axis.spines[:].set(visible=True, color="0.6", linewidth=0.6)
        right = np.diag(share)
        of = f"core tasks {right[: len(core)].mean():.0f}%, all " if 0 < len(core) < len(words) else ""
        name = "uncompressed" if math.isnan(level) else f"level {level:g}"
        axis.set_title(f"{name}\n{of}{right.mean():.0f}% right")
    middle = (left + (width - left - gap) / 2) / width
    figure.text(0.06 / width, (bottom + side / 2) / height, "true degradation", rotation=90, ha="left", va="center")
    figure.text(middle, 0.06 / height, "recognised as", ha="center", va="bottom")
    if title:
        figure.text(middle, 1 - 0.08 / height, title, ha="center", va="top", fontsize=11)
    return figure


def _confused(table: pd.DataFrame, words: Sequence[str], level: float) -> np.ndarray:
    """Percent of the images of each word (rows) that are taken for each word (columns), at one level."""
    rows = table[table["level"].isna() if math.isnan(level) else table["level"] == level]
    counts = pd.crosstab(rows["word"], rows["guess"])
    if absent := [word for word in words if word not in counts.index]:
        of = "uncompressed" if math.isnan(level) else f"level {level:g}"
        raise UserError(f"No image of {absent[0]}, {of}, was recognised: recognise it, or leave it out.")
    percent = 100 * counts.div(counts.sum(axis=1), axis=0)
    return percent.reindex(index=list(words), columns=list(words), fill_value=0.0).to_numpy()


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
    _chosen(list(steps), list(records["method"].unique()), "method")
    of = records[records["method"].isin(list(steps))]
    counts = sorted(steps.values())
    names = {count: f"{count}" for count in counts}
    for method, count in steps.items():
        if seconds is not None:
            names[count] += f"\n{seconds[method]:.2g} s"
    label = "steps" if seconds is None else "steps, and seconds per image on one thread"
    figure, axes = _grid(len(metrics), 3, 2.9, label, "")
    tasks = list(dict.fromkeys(of["task"]))
    colours = [colour for colour, _ in (*FAMILIES.values(), *OTHER_FAMILIES)]
    for axis, metric in zip(axes, metrics, strict=True):
        info = metric_info(metric)
        chosen = of[of["metric"] == metric]
        table = chosen.assign(steps=chosen["method"].map(steps)).pivot_table("value", "steps", "task")[tasks]
        handles = []
        for i, task in enumerate(tasks):
            style = {"color": colours[i % len(colours)], "marker": "o", "markersize": 3.5}
            handles += axis.plot(table.index, table[task], label=task, **style)
        mean = table.mean(axis=1)
        handles += axis.plot(mean.index, mean, marker="D", color="0.2", linewidth=2.8, label="mean of the tasks")
        axis.set_title(info.label)
        axis.set_ylabel(info.axis_label)
        axis.set_xscale("log")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xticks(counts, [names[count] for count in counts])
    _legend(figure, handles, len(handles))
    return figure


def picture_strip(columns: Sequence[tuple[str, Tensor, str]]) -> Figure:
    """Images side by side, each with a title above and a caption below.

    Args:
        columns: (title, image, caption); image (3, H, W) RGB in [0, 1]; captions may have several lines.
    """
    return picture_rows([("", columns)])


@styled
def picture_rows(rows: Sequence[tuple[str, Sequence[tuple[str, Tensor, str]]]]) -> Figure:
    """Strips below each other, e.g. one a task. Titles stand once, above the first row.

    Args:
        rows: (label, columns): the label stands at the left; columns as in :func:`picture_strip`, the same
            number in each row; the pictures of a row have one size.

    Raises:
        ValueError: rows of different lengths, or no picture.
    """
    count = len(rows[0][1]) if rows else 0
    if not count or any(len(columns) != count for _, columns in rows):
        raise ValueError("every row needs the same number of pictures, at least one")
    # All sizes in inches: text keeps its size and place whatever the pictures' sizes.
    gap, line, left = 0.06, 0.155, 0.3 if any(label for label, _ in rows) else 0.06
    width = (WIDTH - left - gap * count) / count
    heights = [width * columns[0][1].shape[1] / columns[0][1].shape[2] for _, columns in rows]
    captions = [max(_lines(words) for _, _, words in columns) * line for _, columns in rows]
    top = max(_lines(title) for title, _, _ in rows[0][1]) * line + 2 * gap
    total = top + sum(heights) + sum(captions) + 2 * gap * len(rows)
    figure = Figure(figsize=(WIDTH, total))

    def text(x: float, y: float, words: str, size: float) -> None:
        # Line by line on their baselines, which a letter with a hat does not move.
        for i, words_of_line in enumerate(words.split("\n") if words else ()):
            height = 1 - (y + i * line + 0.12) / total
            figure.text(x / WIDTH, height, words_of_line, ha="center", va="baseline", fontsize=size)

    y = top
    for index, ((label, columns), height, caption) in enumerate(zip(rows, heights, captions, strict=True)):
        for j, (title, image, words) in enumerate(columns):
            x = left + j * (width + gap)
            axis = figure.add_axes((x / WIDTH, 1 - (y + height) / total, width / WIDTH, height / total))
            axis.imshow(image.detach().clamp(0, 1).permute(1, 2, 0).cpu().numpy(), aspect="auto")
            axis.set_axis_off()
            if index == 0:
                text(x + width / 2, top - gap - _lines(title) * line, title, 9.5)
            text(x + width / 2, y + height + gap / 2, words, 8)
        place = (left / 2 / WIDTH, 1 - (y + height / 2) / total)
        figure.text(*place, label, ha="center", va="center", rotation=90, fontsize=9.5)
        y += height + caption + 2 * gap
    return figure


def _lines(text: str) -> int:
    return text.count("\n") + 1 if text else 0


@styled
def training_curves(
    curves: Mapping[str, pd.DataFrame], columns: Sequence[str] | None = None, label: str = "", per_row: int = 3
) -> Figure:
    """What was logged in training: a panel a quantity, a line a trained part.

    Args:
        curves: name of the trained part -> table with the column ``step`` and one a quantity, e.g. a task.
        columns: panels, in this order; by default every quantity of any table.
        label: of the vertical axes, with unit, e.g. "PSNR (dB)".
        per_row: panels in a row.

    Raises:
        UserError: a table has no ``step``, or no table has a quantity.
    """
    for name, table in curves.items():
        if "step" not in table:
            raise UserError(f"The training log of {name} has no column 'step': train again.")
    found = list(dict.fromkeys(c for table in curves.values() for c in table.columns if c != "step"))
    if not found:
        raise UserError("The training logs hold no quantity to draw: train for at least one step.")
    columns = _chosen(columns, found, "quantity")
    figure, axes = _grid(len(columns), per_row, 2.3, "training step", label)
    # The order keeps neighbours apart in hue and, for colour-blind readers, in lightness.
    colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
    dashes = ["-", "--", "-.", ":"]
    for axis, column in zip(axes, columns, strict=True):
        for i, (_, table) in enumerate(curves.items()):
            if column in table:
                rows = table[["step", column]].dropna()
                few = "." if len(rows) < 30 else ""
                style = {"color": colours[i % len(colours)], "linestyle": dashes[i // len(colours) % 4]}
                axis.plot(rows["step"], rows[column], marker=few, linewidth=1.5, **style)
        axis.set_title(column)
    handles = [
        Line2D([], [], color=colours[i % len(colours)], linestyle=dashes[i // len(colours) % 4], label=name)
        for i, name in enumerate(curves)
    ]
    _legend(figure, handles, len(handles))
    return figure
