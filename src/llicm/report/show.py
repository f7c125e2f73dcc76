# SPDX-License-Identifier: Apache-2.0
"""Figures that show pictures: a row of them, the contact sheet of the degradations, and dead-leaves images."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Generator, Tensor

from llicm.data.dead_leaves import dead_leaves
from llicm.data.pairs import centre_crop
from llicm.degradations import degrade
from llicm.objectives import psnr as _psnr


def psnr(image: Tensor, reference: Tensor) -> float:
    """PSNR in dB over all elements of pictures in [0, 1]; 80 for equal ones (see `llicm.objectives.psnr`)."""
    return float(_psnr(*(part.double().reshape(1, 1, 1, -1) for part in (image, reference))))


def picture_rows(*rows: Mapping[str, Tensor], width: float = 2.6) -> Figure:
    """A figure with pictures (3, H, W), clamped to [0, 1], under their titles, each so many inches wide."""
    sides = next(iter(rows[0].values())).shape
    columns, height = max(map(len, rows)), width * sides[1] / sides[2] + 0.4
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(width * columns, height * len(rows)), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for line, row in zip(axes, rows, strict=True):
        for axis, (title, image) in zip(line, row.items(), strict=False):
            _show(axis, image.clamp(0, 1), title)
    return figure


def contact_sheet(photo: Tensor, words: Sequence[str], severities: Sequence[float], seed: int, side: int) -> Figure:
    """A figure with one row per degradation word: the clean photo, then the photo at each severity.

    The photo (3, H, W) in [0, 1] is cut to at most ``side`` pixels a side at its centre. Every picture
    carries its severity and its PSNR against the clean photo. One generator seed serves all pictures of a
    row, so that they differ mainly in severity.
    """
    photo = centre_crop(photo, side)
    rows, columns = len(words), len(severities) + 1
    width, height = 1.9, 1.9 * photo.shape[1] / photo.shape[2] + 0.2  # inches per picture, with its title
    size = (width * columns + 0.3, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    figure.subplots_adjust(left=0.3 / size[0], right=1, bottom=0, top=1 - 0.2 / size[1], wspace=0.02)
    figure.subplots_adjust(hspace=0.2 / (height - 0.2))
    for row, word in zip(axes, words, strict=True):
        _show(row[0], photo, "clean")
        row[0].set_ylabel(word, fontsize=8)
        for axis, severity in zip(row[1:], severities, strict=True):
            degraded = degrade(word, photo[None], severity, Generator().manual_seed(seed))[0]
            _show(axis, degraded, f"severity {severity:g}, {psnr(degraded, photo):.1f} dB")
    return figure


def leaves_sheet(sources: list[Tensor], count: int, size: int, seed: int) -> Figure:
    """A figure with ``count`` dead-leaves images (size x size) in a row, made from the source photos (3, H, W)."""
    generator = Generator().manual_seed(seed)
    figure, axes = plt.subplots(1, count, figsize=(1.9 * count, 1.9), squeeze=False)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1, wspace=0.02)
    for axis in axes[0]:
        _show(axis, dead_leaves(size, sources, generator), "")
    return figure


def _show(axis: plt.Axes, image: Tensor, title: str) -> None:
    axis.imshow(image.permute(1, 2, 0).numpy())
    axis.set_title(title, fontsize=7)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
