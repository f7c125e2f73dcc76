# SPDX-License-Identifier: Apache-2.0
"""Records: stable bytes, exact round trip, checks, curves, CompressAI's format."""

import json
import math
import random

import numpy as np
import pandas as pd
import pytest

from llicm.benchmark.records import (
    COLUMNS,
    mean_curves,
    read_records,
    references,
    to_compressai_json,
    write_records,
)
from llicm.errors import UserError


def row(**changes):
    return {
        "method": "webp", "family": "webp", "order": "alone", "task": "noisy", "image": "a", "level": 10,
        "bytes": 1234, "bpp": 0.1, "metric": "psnr", "value": 1 / 3,
    } | changes  # fmt: skip


def some_rows():
    rows = []
    for method, levels in (("webp", (5, 10, 50, 100)), ("llicm", (0.0, 0.5, 1.0, 2.5))):
        for level, bpp in zip(levels, (0.1, 0.2, 0.4, 0.8), strict=True):
            for i, image in enumerate("abc"):
                for metric, value in (("psnr", 20 + math.log(bpp) + i), ("ms_ssim", 0.9 + bpp / 10 + i / 1e4)):
                    rows.append(
                        row(
                            method=method, family=method, image=image, level=level, bpp=bpp * (1 + i / 7),
                            metric=metric, value=value,
                        )
                    )  # fmt: skip
    return rows


def test_round_trip_is_exact_and_bytes_do_not_depend_on_the_order(tmp_path):
    rows = some_rows()
    write_records(rows, tmp_path / "new" / "one.csv")
    random.Random(0).shuffle(rows)
    write_records(pd.DataFrame(rows)[list(reversed(COLUMNS))], tmp_path / "two.csv")
    assert (tmp_path / "new" / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["one.csv"]
    back = read_records(tmp_path / "two.csv")
    assert tuple(back.columns) == COLUMNS
    key = ["method", "image", "level", "metric"]
    expected = pd.DataFrame(rows)
    expected["level"] = [str(int(v)) if float(v).is_integer() else repr(v) for v in expected["level"]]
    joined = back.merge(expected, on=key, suffixes=("", "_"))
    assert len(joined) == len(rows)
    assert (joined["value"] == joined["value_"]).all() and (joined["bpp"] == joined["bpp_"]).all()
    write_records(back, tmp_path / "three.csv")
    assert (tmp_path / "three.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    webp = back[(back["method"] == "webp") & (back["image"] == "a") & (back["metric"] == "psnr")]
    assert list(webp["level"]) == ["5", "10", "50", "100"], "levels sort as numbers"
    text = (tmp_path / "two.csv").read_text()
    assert text.splitlines()[0] == ",".join(COLUMNS) and "\r" not in text


def test_awkward_values(tmp_path):
    rows = [
        row(value=float("nan")),
        row(image="null, or \"NA\"", value=5e-324),
        row(image="none", level="none", bytes=None, bpp=None, value=0.1 + 0.2),
        row(image="z", level=24.0, value=-1e300),
    ]  # fmt: skip
    write_records(rows, tmp_path / "r.csv")
    back = read_records([tmp_path / "r.csv"]).set_index("image")
    assert math.isnan(back.loc["a", "value"])
    assert back.loc['null, or "NA"', "value"] == 5e-324
    assert back.loc["none", "level"] == "none" and pd.isna(back.loc["none", "bytes"])
    assert back.loc["none", "value"] == 0.1 + 0.2
    assert back.loc["z", "level"] == "24" and back.loc["z", "bytes"] == 1234


def test_files_are_joined_and_duplicates_refused(tmp_path):
    write_records([row()], tmp_path / "a.csv")
    write_records([row(method="jpeg")], tmp_path / "b.csv")
    write_records([row(value=7.0, level=10.0)], tmp_path / "c.csv")
    assert list(read_records([tmp_path / "a.csv", tmp_path / "b.csv"])["method"]) == ["jpeg", "webp"]
    with pytest.raises(UserError, match=r"c\.csv: webp / noisy / a / 10 / psnr was measured twice"):
        read_records([tmp_path / "a.csv", tmp_path / "c.csv"])
    with pytest.raises(UserError, match="measured twice"):
        write_records([row(), row(level="10")], tmp_path / "d.csv")
    assert not (tmp_path / "d.csv").exists()


def test_a_table_joined_of_others_has_each_row_once(tmp_path):
    """Parts whose rows have the same labels: each was written as often as there were parts."""
    parts = [pd.DataFrame([row(image=image)]) for image in "abc"]
    write_records(pd.concat(parts), tmp_path / "joined.parquet")
    assert list(read_records(tmp_path / "joined.parquet")["image"]) == ["a", "b", "c"]


def test_bad_tables(tmp_path):
    with pytest.raises(UserError, match="no such file of records"):
        read_records(tmp_path / "absent.csv")
    with pytest.raises(UserError, match="No file of records"):
        read_records([])
    for name, text in (
        ("columns", "method,value\nwebp,1\n"),
        ("empty", ""),
        ("binary", "\x00\x01"),
        ("number", ",".join(COLUMNS) + "\nm,f,o,t,i,1,10,0.1,psnr,good\n"),
    ):
        path = tmp_path / f"{name}.csv"
        path.write_text(text)
        with pytest.raises(UserError, match=f"{name}.csv"):
            read_records(path)
    with pytest.raises(UserError, match="lacks value and has unknown colour"):
        write_records([{k: v for k, v in row().items() if k != "value"} | {"colour": 1}], tmp_path / "x.csv")
    with pytest.raises(UserError, match="no records"):
        write_records([], tmp_path / "x.csv")


def test_curves_are_means_sorted_by_rate(tmp_path):
    rows = some_rows()
    rows += [row(method="degraded", level=0, bpp=24.0, image=i, value=15.0 + k) for k, i in enumerate("abc")]
    rows += [row(method="restorer", level="none", bpp=None, bytes=None, image=i, value=22.0) for i in "abc"]
    write_records(rows, tmp_path / "r.csv")
    records = read_records(tmp_path / "r.csv")
    curves = mean_curves(records, "psnr")
    assert set(curves) == {("webp", "noisy"), ("llicm", "noisy")}, "uncompressed rows are no curve"
    curve = curves["llicm", "noisy"]
    assert curve.level == ("0", "0.5", "1", "2.5") and curve.images == ("a", "b", "c")
    np.testing.assert_allclose(curve.bpp, np.array([0.1, 0.2, 0.4, 0.8]) * 8 / 7)
    np.testing.assert_allclose(curve.value, 21 + np.log([0.1, 0.2, 0.4, 0.8]))
    assert references(records, "psnr") == {"degraded": {"noisy": 16.0}, "restorer": {"noisy": 22.0}}
    with pytest.raises(UserError, match="no metric 'gmsd': choose among ms_ssim, psnr"):
        mean_curves(records, "gmsd")


def test_missing_value_is_not_averaged_away(tmp_path):
    rows = [r | ({"value": float("nan")} if r["image"] == "b" else {}) for r in some_rows()]
    write_records(rows, tmp_path / "r.csv")
    assert np.isnan(mean_curves(read_records(tmp_path / "r.csv"), "psnr")["webp", "noisy"].value).all()


def test_compressai_results(tmp_path):
    write_records(some_rows(), tmp_path / "r.csv")
    records = read_records(tmp_path / "r.csv")
    text = to_compressai_json(records, "webp", "noisy")
    document = json.loads(text)
    assert document["name"] == "webp"
    results = document["results"]
    assert set(results) == {"bpp", "psnr-rgb", "ms-ssim-rgb"}
    assert results["bpp"] == sorted(results["bpp"]) and len(results["bpp"]) == 4
    assert results["psnr-rgb"] == mean_curves(records, "psnr")["webp", "noisy"].value.tolist()

    from compressai.utils.plot.__main__ import parse_json_file

    path = tmp_path / "webp.json"
    path.write_text(text)
    parsed = parse_json_file(path, "ms-ssim")
    np.testing.assert_allclose(parsed["ys"], -10 * np.log10(1 - np.array(results["ms-ssim-rgb"])))
    with pytest.raises(UserError, match="no jpeg on noisy"):
        to_compressai_json(records, "jpeg", "noisy")
