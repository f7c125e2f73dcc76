# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from llicm.benchmark.bdrate import bd_table
from llicm.errors import UserError
from llicm.report import mean_points, readme_results, restoration, strongest, summary, update_readme, write_compressai

ROOT = Path(__file__).resolve().parents[1]
TASKS = ["noisy", "hazy"]


@pytest.fixture(scope="module")
def records():
    """LL-ICM needs half the rate of rdo>restorer; jpeg is 3 dB below both."""
    curves = {"llicm": (0.5, 0.0), "rdo>restorer": (1.0, 0.0), "jpeg": (1.0, -3.0)}
    rows = [
        dict(method=m, family=m.split(">")[0], order="after", task=t, image=i, level=level, bytes=1000,
             bpp=factor * 0.1 * 2**level, metric="psnr", value=20 + 2.0 * level + offset)
        for m, (factor, offset) in curves.items() for t in TASKS for i in "ab" for level in range(5)
    ]  # fmt: skip
    rows += [
        dict(method=m, family="raw", order="alone", task=t, image=i, level=0, bytes=9, bpp=24.0, metric="psnr", value=v)
        for m, v in (("degraded", 18.0), ("restored", 22.5)) for t in TASKS for i in "ab"
    ]  # fmt: skip
    return pd.DataFrame(rows).astype({"level": str})


@pytest.fixture(scope="module")
def table(records):
    return bd_table(records, ["psnr"], ["llicm"], ["jpeg", "rdo>restorer"], TASKS)


def test_headline_numbers(records, table):
    numbers = summary(records, table, TASKS)
    against = numbers["llicm_against_codec_then_restorer"]
    assert against["bd_rate"] == {"noisy": pytest.approx(-50), "hazy": pytest.approx(-50)}
    assert against["bd_rate_mean"] == pytest.approx(-50) and against["bd_rate_tasks"] == 2
    assert against["bd_psnr_mean"] == pytest.approx(2)
    assert numbers["llicm_against_strongest"]["anchor"] == dict.fromkeys(TASKS, "rdo>restorer")
    assert numbers["restorer_gain_db"] == {"noisy": 4.5, "hazy": 4.5}
    json.dumps(numbers, allow_nan=False)


def test_strongest_is_the_one_with_least_gain(table):
    assert strongest(table, "llicm", "psnr", "noisy") == "rdo>restorer"


def test_points_and_restoration(records):
    points = mean_points(records)
    assert len(points) == 3 * 2 * 5
    assert np.allclose(restoration(records, TASKS)["gain"], 4.5)


def test_compressai_files(records, tmp_path):
    assert write_compressai(records, tmp_path) == 6
    found = json.loads((tmp_path / "noisy" / "rdo-then-restorer.json").read_text())["results"]
    assert found["bpp"] == sorted(found["bpp"]) and found["psnr-rgb"] == [20, 22, 24, 26, 28]


def test_readme_tables(records, table):
    text = readme_results(records, table, TASKS)
    assert "mean BD-rate -50.0% over the 2 of 2 tasks" in text
    assert "| gain | +4.50 | +4.50 |" in text


def test_readme_shows_the_published_results():
    """The README's result tables are those that the pipeline wrote."""
    shown = (ROOT / "README.md").read_text().split("<!-- results:begin -->\n")[1].split("<!-- results:end -->")[0]
    assert shown.strip() == (ROOT / "results" / "tables" / "readme.md").read_text().strip()


def test_readme_is_updated_between_its_markers(tmp_path):
    readme, tables = tmp_path / "README.md", tmp_path / "readme.md"
    readme.write_text("before\n<!-- results:begin -->\nold\n<!-- results:end -->\nafter\n")
    with pytest.raises(UserError, match="dvc repro"):
        update_readme(readme, tables)
    tables.write_text("| new |\n")
    for _ in range(2):
        update_readme(readme, tables)
        assert readme.read_text() == "before\n<!-- results:begin -->\n| new |\n<!-- results:end -->\nafter\n"
    readme.write_text("no markers\n")
    with pytest.raises(UserError, match="markers"):
        update_readme(readme, tables)
    assert readme.read_text() == "no markers\n"
