# SPDX-License-Identifier: Apache-2.0
"""How figures look, and how they become files.

Figures do not touch pyplot, so nothing depends on a display, a backend or the reader's own matplotlib settings, and
`save_figure` writes the same bytes for the same data. Colours are those of Okabe and Ito (2008), which colour-blind
readers can tell apart.
"""

import functools
import io
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from PIL import Image

from llicm.files import write_atomically

Arguments = ParamSpec("Arguments")

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


def styled(function: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Decorator: draw in the style of all figures."""

    @functools.wraps(function)
    def wrapper(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        with matplotlib.style.context(["default", STYLE]):
            return function(*args, **kwargs)

    return wrapper


def save_figure(figure: Figure, path: str | os.PathLike, dpi: int, palette: bool = False) -> None:
    """Write a figure as PNG or JPEG, whole or not at all; the same figure gives the same bytes.

    Args:
        path: ends in ``.png``, or in ``.jpg`` for a page of photos, which has a fifth of the bytes then; its folder is
            made.
        dpi: pixels per inch. palette: see `png`.
    """
    suffix = Path(path).suffix
    if suffix not in (".png", ".jpg"):
        raise ValueError(f"figures are written as .png or .jpg, not {path}")
    data = png(figure, dpi, palette and suffix == ".png")
    if suffix == ".jpg":
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
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})  # no version of matplotlib
    images = [image.get_array() for axis in figure.axes for image in axis.images]
    if not palette or any(array is not None and array.ndim == 3 for array in images):
        return buffer.getvalue()
    small = io.BytesIO()
    Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def grid(panels: int, columns: int, height: float, x_label: str, y_label: str) -> tuple[Figure, list[Axes]]:
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


def legend(figure: Figure, handles: Sequence[Line2D], columns: int, **options: Any) -> None:
    """One legend below all panels; the figure grows by its height."""
    width, height = figure.get_size_inches()
    columns = max(1, min(columns, int(width / 1.7)))
    figure.set_size_inches(width, height + 0.19 * math.ceil(len(handles) / columns))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, **options)


def log_rates(axis: Axes, minor_ticks: bool = True) -> None:
    """A logarithmic axis of rates with plain numbers."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    if not minor_ticks:
        axis.xaxis.set_minor_locator(NullLocator())
