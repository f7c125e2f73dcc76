# SPDX-License-Identifier: Apache-2.0
import pandas as pd

from llicm.methods import Method
from llicm.report import diagrams
from llicm.report.interactive import curves_page
from llicm.report.style import png

METHODS = [
    Method("webp", "webp", "baseline", "webp", False, None, None, (5.0,)),
    Method("llicm", "llicm", "test", "llicm", True, None, "llicm", (0.0,)),
]


def records():
    rows = []
    for method, family, order, levels in (
        ("degraded", "raw", "alone", ["none"]), ("webp", "webp", "alone", "012"), ("llicm", "llicm", "after", "012")
    ):  # fmt: skip
        for task in ("noisy", "hazy"):
            for metric in ("psnr", "niqe_fit"):
                for number, level in enumerate(levels):
                    rate = None if level == "none" else 0.2 * 2**number
                    rows.append({
                        "method": method, "family": family, "order": order, "task": task, "image": "a", "level": level,
                        "bytes": None if rate is None else int(1000 * rate), "bpp": rate, "metric": metric,
                        "value": 20.0 + number,
                    })  # fmt: skip
    return pd.DataFrame(rows)


def test_the_page_holds_every_curve_and_needs_no_network():
    page = curves_page(records(), ["psnr", "niqe_fit"], ["noisy", "hazy"], METHODS)
    assert page == curves_page(records(), ["psnr", "niqe_fit"], ["noisy", "hazy"], METHODS)
    assert page.count('"legendgroup":"llicm"') == page.count('"legendgroup":"webp"') == 4
    assert page.count('"legendgroup":"degraded"') == 4
    assert "<script src=" not in page and "PSNR (dB, higher is better)" in page


def test_diagrams_are_drawn_the_same_each_time():
    for draw in (diagrams.frameworks, diagrams.objectives, diagrams.system):
        first = png(draw(), 50, palette=True)
        assert first == png(draw(), 50, palette=True) and first[:8] == b"\x89PNG\r\n\x1a\n"
