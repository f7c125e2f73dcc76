# SPDX-License-Identifier: Apache-2.0
"""Real degradations: what is measured of a picture, and that the page shows it."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llicm.data.pairs import Pair
from llicm.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def real(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "bench"), *sys.path])
    return runpy.run_path(str(ROOT / "bench" / "real.py"))


def test_a_picture_before_and_after(real):
    ideal = torch.full((3, 16, 16), 0.5)
    system = SimpleNamespace(
        codec=SimpleNamespace(levels=5), compress=lambda x, level: bytes(8 * level),
        decompress=lambda data: (None, ideal + 0.1), conditioner=SimpleNamespace(recognise=lambda x: torch.eye(11)[:1]),
    )  # fmt: skip
    row = real["measure"](Pair("a", ideal, ideal + 0.2), system, SimpleNamespace(enhance=lambda x: x - 0.1))
    assert row["x"] == pytest.approx(13.98, abs=0.1) and row["restored"] == pytest.approx(20, abs=0.2)
    assert row["coded"] == pytest.approx(20, abs=0.2) and row["bpp"] == 8 * 16 / 256
    assert (row["image"], row["taken for"]) == ("a", real["WORDS"][0])


def test_a_set_that_is_not_registered_is_named(real, tmp_path):
    with pytest.raises(UserError, match="noisy-polyu: no copy is registered"):
        real["run"](1, 8, ["noisy-polyu"], tmp_path)
