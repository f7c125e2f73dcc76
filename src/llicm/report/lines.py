# SPDX-License-Identifier: Apache-2.0
"""How methods are drawn: a codec keeps its colour and marker in all figures, the place of the restorer its line."""

from collections.abc import Iterable, Mapping
from typing import Any

from matplotlib.lines import Line2D

from llicm.methods import Method
from llicm.report.writing import method_label

CODECS = {  # codec group, or codec of a group with several -> colour, marker
    "jpeg": ("#E69F00", "o"),
    "webp": ("#56B4E9", "s"),
    "rdo": ("#009E73", "^"),
    "adapted": ("#CC79A7", "v"),
    "llicm": ("#D55E00", "D"),
    "llicm-decoder": ("#7A2E00", "D"),
    "llicm-prefilter": ("#7A2E00", "D"),  # of the published study
    "irsde": ("#0072B2", "P"),
    "llicm-irsde": ("#000000", "X"),
    "jpeg2000": ("#A08F00", "h"),
    "jxl": ("#AA7744", "<"),
    "avif": ("#882255", "<"),
    "heic": ("#44AA99", ">"),
}
OTHER_CODECS = (("#7F7F7F", "p"), ("#999933", "d"), ("#AA4499", "8"))
ADAPTED = "-."  # line of a group's method that has its codec's colour: its restorer is adapted to that codec
ORDERS = {"alone": ":", "after": "-", "before": "--", "around": "-."}


def line_styles(methods: Iterable[Method]) -> dict[str, dict[str, Any]]:
    """Name -> how its line is drawn: colour and marker by codec, line style by order."""
    methods = list(methods)
    own = {m.name: next((key for key in (m.group, m.codec) if key in CODECS), m.group) for m in methods}
    others = [key for key in dict.fromkeys(own.values()) if key not in CODECS]
    palette = CODECS | {key: OTHER_CODECS[i % len(OTHER_CODECS)] for i, key in enumerate(others)}
    styles = {}
    for method in methods:
        colour, marker = palette[own[method.name]]
        styles[method.name] = {
            "color": colour,
            "marker": marker,
            "linestyle": ORDERS[method.order] if own[method.name] == method.group else ADAPTED,
            "linewidth": 1.5,
            "markersize": 4.5,
            "markeredgewidth": 1.0,
            # Hollow without a restorer: readable where line styles are short.
            "markerfacecolor": "white" if method.order == "alone" else colour,
        }
    return styles


def method_handles(styles: Mapping[str, Mapping[str, Any]]) -> list[Line2D]:
    """Entries of a legend."""
    return [Line2D([], [], label=method_label(name), **style) for name, style in styles.items()]
