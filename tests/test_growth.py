# SPDX-License-Identifier: Apache-2.0
"""The page about cost growth, and how it measures."""

import json
import sys

import pytest
from small import ROOT


@pytest.fixture(scope="module")
def growth():
    sys.path.insert(0, str(ROOT / "bench"))
    import growth

    yield growth
    sys.path.remove(str(ROOT / "bench"))


def test_the_page_says_what_was_measured(growth):
    text = (ROOT / "docs/growth.md").read_text()
    for part in growth.page(json.loads((ROOT / "docs/growth.json").read_text())):
        assert part in text


def test_what_is_linear_is_told_from_the_numbers(growth):
    for power, said in ((1, "linear"), (2, "more than linear"), (0.5, "less than linear")):
        rows = [{"amount": n, "cpu_s": 3 * n**power, "memory_mb": 100 + n} for n in (1, 2, 4, 8)]
        assert growth.exponent(rows, "cpu_s") == pytest.approx(power)
        assert growth.words(rows, "cpu_s") == said
        assert growth.words(rows, "memory_mb") == "constant"


@pytest.mark.slow
def test_memory_is_of_the_work_alone(growth):
    """The peak is neither the parent's nor that before the work."""
    kept = bytearray(300_000_000)
    assert growth.apart("fill memory", megabytes=200)["memory_mb"] == pytest.approx(200, rel=0.02)
    del kept
