# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pandas as pd
import pytest

from llicm.benchmark.non_monotone import COLUMNS, non_monotone


def records(curves, metric="psnr", images=6, spread=0.3, seed=0):
    """Curves by method: values per level, with a scatter over images that shifts whole curves."""
    generator = np.random.default_rng(seed)
    rows = []
    for method, values in curves.items():
        for image in range(images):
            shift, wobble = generator.normal(0, 2), generator.normal(0, spread, len(values))
            for level, value in enumerate(values):
                bpp = 0.1 * 2**level
                rows.append({
                    "method": method, "family": method, "order": "alone", "task": "noisy", "image": f"i{image}",
                    "level": str(level), "bytes": round(1000 * bpp), "bpp": bpp, "metric": metric,
                    "value": value + shift + wobble[level],
                })  # fmt: skip
    return pd.DataFrame(rows)


def test_falling_curves_are_found_and_rising_ones_are_not():
    curves = {
        "rises": [25, 27, 29, 30, 31], "falls": [30, 29, 28, 26, 24], "turns": [25, 28, 29.5, 28, 26],
        "flat": [28, 28, 28, 28, 28],
    }  # fmt: skip
    table = non_monotone(records(curves), ["psnr"], ["noisy"], list(curves)).set_index("method")
    assert list(table.reset_index().columns.sort_values()) == sorted(COLUMNS)
    assert table["non_monotone"].to_dict() == {"rises": False, "falls": True, "turns": True, "flat": False}
    assert table.loc["falls", "peak_level"] == "0" and table.loc["turns", "peak_level"] == "2"
    assert table.loc["falls", "drop"] == pytest.approx(6, abs=0.5) and table.loc["falls", "drop_low"] > 4
    assert table.loc["rises", "drop"] == 0 and table.loc["rises", "top_bpp"] == pytest.approx(1.6)


def test_lower_better_metrics_fall_when_their_values_rise():
    curves = {"worse": [4, 5, 6, 7, 8], "better": [8, 7, 6, 5, 4]}
    table = non_monotone(records(curves, "gmsd"), ["gmsd"], ["noisy"], list(curves)).set_index("method")
    assert table["non_monotone"].to_dict() == {"worse": True, "better": False}


def test_chance_alone_is_seldom_called_non_monotone():
    """Flat curves of pure scatter: the peak is chosen from the other images, so that chance makes no drop."""
    found = 0
    for seed in range(40):
        table = non_monotone(records({"flat": [28.0] * 5}, spread=1, seed=seed), ["psnr"], ["noisy"], ["flat"])
        found += int(table["non_monotone"].iloc[0])
    assert found <= 6  # 2 expected at 5 %


def test_two_images_decide_nothing():
    table = non_monotone(records({"falls": [30, 25, 20, 15, 10]}, images=2), ["psnr"], ["noisy"], ["falls"])
    assert np.isnan(table["p"].iloc[0]) and not table["non_monotone"].iloc[0]
