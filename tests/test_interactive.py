# SPDX-License-Identifier: Apache-2.0
import json
import re

import numpy as np
import pandas as pd

from llicm.benchmark.metrics import metric_info
from llicm.benchmark.records import Curve
from llicm.methods import Method
from llicm.report import diagrams
from llicm.report.interactive import best_where, curves_pages
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
    given = records(), ["psnr", "niqe_fit"], ["noisy", "hazy"], METHODS, ["llicm"]
    page, around = curves_pages(*given)
    assert (page, around) == curves_pages(*given)
    assert "<script src=" not in page and 'name="viewport"' in page
    study = json.loads(re.search(r"^const study = (.*);$", page, re.MULTILINE)[1])
    assert study["metrics"][0] == ["psnr", "PSNR (dB, higher is better)"]
    for metric in ("psnr", "niqe_fit"):
        for task in ("noisy", "hazy"):
            assert set(study["curves"][metric][task]) == {"llicm", "webp"}
            assert [name for name, _ in study["references"][metric][task]] == ["degraded"]
    assert {method["name"]: method["shown"] for method in study["methods"]} == {"webp": False, "llicm": True}
    assert "1 of 2 methods" in around and "Means over 1 test images" in around


def test_which_method_is_best_where_is_said_in_words():
    def curve(rates, values):
        return Curve(tuple(map(str, range(len(rates)))), np.array(rates), np.array(values), ("a",))

    curves = {"llicm": curve([0.1, 1.0], [20.0, 22.0]), "a>b": curve([0.05, 0.1, 1.0, 2.0], [19.0, 19.0, 25.0, 26.0])}
    psnr, niqe = metric_info("psnr"), metric_info("niqe_fit")
    # 20 + 2 t and 19 + 6 t meet at t = 1/4, where the rate is 0.1 * 10 ** (1/4) = 0.18
    words = "llicm is best from 0.10 to 0.18 bpp; a → b is best from 0.18 to 1.00 bpp, up to 3.00 dB ahead of llicm."
    assert best_where(curves, psnr) == words
    assert best_where(curves, niqe).startswith(
        "a → b is best from 0.10 to 0.18 bpp, up to 1.00 ahead of llicm; llicm is"
    )
    assert best_where(curves | {"c": curve([3.0, 4.0], [1.0, 2.0])}, psnr) == "these curves have no rate in common."
    assert best_where({}, psnr) == "these curves have no rate in common."
    same = {"llicm": curves["llicm"], "a>b": curve([0.1, 1.0], [20.01, 22.01])}
    assert best_where(same, psnr) == "llicm is best from 0.10 to 1.00 bpp."  # 0.01 dB is no lead


def test_diagrams_are_drawn_the_same_each_time():
    for draw in (diagrams.frameworks, diagrams.objectives, diagrams.system):
        first = png(draw(), 50, palette=True)
        assert first == png(draw(), 50, palette=True) and first[:8] == b"\x89PNG\r\n\x1a\n"
