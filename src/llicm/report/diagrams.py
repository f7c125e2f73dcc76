# SPDX-License-Identifier: Apache-2.0
"""Counterparts of the paper's Figures 1 to 3, which show no data: frameworks, objectives, the system."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from llicm.report.style import WIDTH, styled

FILL = {"image": "#FFFFFF", "part": "#DCE9F5", "joint": "#FBE3D2", "vlm": "#E3F1E1", "loss": "#F3E1EC"}
SIZE = (1.25, 0.62)  # of a box, in units of the drawing


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, WIDTH * height / width), layout="constrained")
    axis = figure.subplots()
    axis.set_xlim(0, width)
    axis.set_ylim(0, height)
    axis.set_axis_off()
    axis.set_aspect("equal")
    return figure, axis


def _box(axis: Axes, x: float, y: float, text: str, kind: str, size: tuple[float, float] = SIZE) -> None:
    """A box about its centre; without an edge for an image, which is what flows and not what works."""
    width, height = size
    if kind != "image":
        axis.add_patch(
            FancyBboxPatch(
                (x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0.02,rounding_size=0.08",
                facecolor=FILL[kind], edgecolor="0.35", linewidth=0.9,
            )
        )  # fmt: skip
    axis.text(x, y, text, ha="center", va="center", fontsize=8.5)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], **style: Any) -> None:
    options: dict[str, Any] = {"color": "0.2", "shrinkA": 0, "shrinkB": 0} | style
    axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, linewidth=1.0, **options))


def _note(axis: Axes, x: float, y: float, text: str, **style: Any) -> None:
    options: dict[str, Any] = {"va": "center", "fontsize": 8, "color": "0.35"} | style
    axis.text(x, y, text, **options)


def _title(axis: Axes, x: float, y: float, text: str) -> None:
    axis.text(x, y, text, fontsize=9.5, weight="bold", va="center")


def _row(axis: Axes, y: float, steps: Sequence[tuple[str, str]], left: float, gap: float) -> list[float]:
    """Boxes in a row, with arrows between them; returns their centres."""
    centres: list[float] = []
    before = 0.0
    for index, (text, kind) in enumerate(steps):
        x = left + index * gap
        _box(axis, x, y, text, kind, (0.7, 0.5) if kind == "image" else SIZE)
        half = 0.36 if kind == "image" else SIZE[0] / 2 + 0.03
        if centres:
            _arrow(axis, (centres[-1] + before, y), (x - half, y))
        before = half
        centres.append(x)
    return centres


@styled
def frameworks() -> Figure:
    """Figure 1: ways from a degraded image to an enhanced one through a bitstream, as the benchmark has them."""
    figure, axis = _canvas(11.2, 5.0)
    x, decoded, enhanced = ("X", "image"), ("X̂", "image"), ("X̂_H", "image")
    codec, restorer = ("codec", "part"), ("restorer", "part")
    adapted = ("restorer,\ntrained on X̂", "joint")
    rows = (
        ("alone", [x, codec, decoded], "degradations are coded and stay"),
        ("codec → restorer", [x, codec, decoded, restorer, enhanced], "neither knows of the other"),
        ("codec → adapted", [x, codec, decoded, adapted, enhanced], "the restorer knows the codec"),
        ("restorer → codec", [x, restorer, ("X_H", "image"), codec, enhanced], "restored before coding, at the camera"),
        ("LL-ICM", [x, ("codec", "joint"), decoded, ("restorer", "joint"), enhanced], "trained together"),
    )
    for index, (name, steps, note) in enumerate(rows):
        y = 4.45 - 0.97 * index
        _title(axis, 0.1, y, name)
        centres = _row(axis, y, steps, 2.3, 1.45)
        _note(axis, centres[-1] + 0.55, y, note)
    return figure


@styled
def objectives() -> Figure:
    """Figure 2: what rate-distortion (RDO) and rate-perception optimisation (RPO) minimise."""
    figure, axis = _canvas(11.2, 3.5)
    for left, title, joint in ((0.5, "RDO: gamma = 0", False), (5.2, "RPO and the mixture: gamma > 0", True)):
        _title(axis, left, 3.25, title)
        steps = [("X", "image"), ("codec", "joint" if joint else "part"), ("X̂", "image")]
        if joint:
            steps += [("restorer", "joint"), ("X̂_H", "image")]
        centres = _row(axis, 2.35, steps, left + 0.3, 1.28)
        x, codec, decoded = centres[:3]
        _box(axis, (x + decoded) / 2, 0.95, "distortion\nalpha · D(X̂, X)", "loss", (1.5, 0.62))
        for at in (x, decoded):
            _arrow(axis, (at, 2.08), ((x + decoded) / 2 + (0.5 if at == decoded else -0.5), 1.3))
        _note(axis, codec, 2.83, "rate: beta · R", ha="center", va="baseline", color="0.3")
        if joint:
            enhanced = centres[4]
            _box(axis, enhanced - 0.5, 0.95, "perception\ngamma · P(X̂_H, X_ideal)", "loss", (2.0, 0.62))
            _arrow(axis, (enhanced, 2.08), (enhanced, 1.3))
            _box(axis, enhanced - 2.25, 0.35, "X_ideal", "image")
            _arrow(axis, (enhanced - 1.8, 0.42), (enhanced - 1.35, 0.62))
    return figure


@styled
def system() -> Figure:
    """Figure 3: LL-ICM as `llicm.framework` has it."""
    figure, axis = _canvas(11.2, 3.6)
    y = 1.0
    steps = [
        ("X", "image"), ("encoder", "joint"), (".llicm\nfile", "image"), ("decoder", "joint"), ("X̂", "image"),
        ("restorer", "joint"), ("X̂_H", "image"),
    ]  # fmt: skip
    _, encoder, _, decoder, decoded, restorer, _ = _row(axis, y, steps, 0.6, 1.62)
    _box(axis, decoded, 2.55, "CLIP with the\nDA-CLIP controller", "vlm", (1.7, 0.7))
    _arrow(axis, (decoded, y + 0.27), (decoded, 2.17))
    angle = "angle,angleA=0,angleB=90,rad=6"
    _arrow(axis, (decoded + 0.88, 2.55), (restorer, y + 0.35), connectionstyle=angle)
    _note(axis, restorer + 0.1, 2.1, "content and degradation\nembeddings", color="0.3")
    _box(axis, decoded - 2.3, 2.55, 'or the user: "rainy"', "image")
    _arrow(axis, (decoded - 1.45, 2.55), (decoded - 0.88, 2.55), linestyle="--")
    _note(axis, encoder, y - 0.7, "trained together by RPO", va="baseline")
    back = {"color": "#D55E00", "linestyle": "--", "shrinkA": 2, "shrinkB": 2}
    _arrow(axis, (restorer + 0.5, y - 0.46), (encoder - 0.5, y - 0.46), **back)
    gradient = "gradient of P through the restorer into the codec"
    _note(axis, decoder + 0.4, y - 0.7, gradient, va="baseline", color="#B34700")
    return figure
