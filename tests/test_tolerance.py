# SPDX-License-Identifier: Apache-2.0
"""The check of numbers from another kind of machine passes what it should and fails what it should."""

import json
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from llicm import cli
from llicm.benchmark.records import write_records
from llicm.errors import UserError
from llicm.parameters import load
from llicm.pipeline.tolerance import compare, findings, untrained
from llicm.report.writing import write_csv

ROOT = Path(__file__).resolve().parents[1]
METHODS = (("webp", "webp", "alone"), ("webp>restorer", "webp", "after"), ("llicm", "llicm", "after"))


def write(folder, change=lambda table: table, bd_psnr=0.5):
    """Results of three methods on two images at two levels; `change` alters the table."""
    folder.mkdir(parents=True)
    rows = [
        {
            "method": method, "family": family, "order": order, "task": "noisy", "image": image, "level": level,
            "bytes": 100, "bpp": 0.2 + 0.3 * level, "metric": metric, "value": (20.0 + 3 * level) * scale,
        }
        for method, family, order in METHODS
        for image in ("a", "b") for level in (0, 1) for metric, scale in (("psnr", 1.0), ("ssim", 0.03))
    ]  # fmt: skip
    write_records(change(pd.DataFrame(rows)), folder / "records.parquet")
    row = {"comparison": "llicm_against_strongest", "task": "noisy", "bd_psnr": bd_psnr}
    write_csv(pd.DataFrame([row]), folder / "tables/comparisons.csv")
    return folder


def altered(method, column, factor=1.0, plus=0.0, metric="psnr"):
    def change(table):
        chosen = (table["method"] == method) & ((table["metric"] == metric) | (column == "bpp"))
        table.loc[chosen, column] = table.loc[chosen, column] * factor + plus
        return table

    return change


def without(table):
    return table[(table["method"] != "llicm") | (table["level"] != 1)]


def beyond(tmp_path, *arguments, **more):
    published, made = write(tmp_path / "published"), write(tmp_path / "made", *arguments, **more)
    found = findings(compare(published, made, {"webp"}))
    return [finding.what for finding in found]


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table,
        altered("webp", "bpp", 1.004), altered("webp", "value", plus=-0.015), altered("llicm", "bpp", 0.96),
        altered("webp>restorer", "value", plus=0.25), altered("llicm", "value", plus=0.004, metric="ssim"),
    ],
)  # fmt: skip
def test_what_another_machine_may_do_passes(tmp_path, change):
    assert beyond(tmp_path, change) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (altered("webp", "bpp", 1.006), "bpp of untrained"),
        (altered("webp", "value", plus=-0.03), "psnr of untrained"),
        (altered("llicm", "bpp", 0.94), "bpp of trained"),
        (altered("webp>restorer", "value", plus=-0.35), "psnr of trained"),
        (altered("llicm", "value", plus=0.01, metric="ssim"), "ssim of trained"),
    ],
)
def test_what_goes_beyond_is_named(tmp_path, change, named):
    assert beyond(tmp_path, change) == [named]


def test_a_mean_over_images_counts_not_a_single_one(tmp_path):
    def one_image(table):
        chosen = (table["method"] == "llicm") & (table["image"] == "a") & (table["metric"] == "psnr")
        table.loc[chosen, "value"] += 0.5
        return table

    assert beyond(tmp_path, one_image) == []


def test_points_that_one_side_lacks_are_beyond(tmp_path):
    assert beyond(tmp_path, without) == ["bpp of trained", "psnr of trained", "ssim of trained"]


def test_the_headline(tmp_path):
    assert beyond(tmp_path, bd_psnr=1.05) == []
    shutil.rmtree(tmp_path / "published"), shutil.rmtree(tmp_path / "made")
    assert beyond(tmp_path, bd_psnr=-0.2) == ["bd_psnr of trained"]
    shutil.rmtree(tmp_path / "published"), shutil.rmtree(tmp_path / "made")
    assert beyond(tmp_path, bd_psnr=None) == ["bd_psnr of trained"]


def test_what_no_trained_weights_touch():
    found = untrained(load(ROOT / "profiles/smoke/params.yaml"))
    assert {"degraded", "webp"} <= found and not found & {"restored", "webp>restorer", "restorer>webp", "rdo", "llicm"}


def test_the_command(tmp_path, capsys):
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    write(tmp_path / "results")
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    root = ["--root", str(tmp_path)]
    assert cli.main(["audit", "--tolerance", *root]) == 0
    assert "psnr" in capsys.readouterr().out
    other = write(tmp_path / "other", altered("llicm", "value", plus=2.0))
    assert cli.main(["audit", "--tolerance", *root, "--against", str(other)]) == 1
    out = capsys.readouterr().out
    assert "BEYOND  (llicm, noisy, 0)" in out and out.count("BEYOND") == 1
    assert cli.main(["audit", "--tolerance", "--json", *root, "--against", str(other)]) == 1
    (finding,) = json.loads(capsys.readouterr().out)
    assert finding["expected"] == "within 0.3 dB" and finding["found"] == "2 dB at llicm, noisy, 0"
    shutil.rmtree(tmp_path / "results")
    write(tmp_path / "results", altered("llicm", "value", plus=2.0))  # as a run here would leave it
    assert cli.main(["audit", "--tolerance", *root]) == 1
    (tmp_path / "results/tables/comparisons.csv").unlink()
    assert cli.main(["audit", "--tolerance", *root]) == 1
    assert "results/tables/comparisons.csv: no such file; run `dvc repro`" in capsys.readouterr().err
    assert cli.main(["audit", "--against", str(other), *root]) == 2
    assert cli.main(["audit", "--tolerance", "--checks", "lock", *root]) == 2


def test_a_study_without_published_results(tmp_path, capsys):
    profile = tmp_path / "profiles" / "smoke"
    write(profile / "results")
    (profile / "params.yaml").write_bytes((ROOT / "profiles/smoke/params.yaml").read_bytes())
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    assert cli.main(["audit", "--tolerance", "--profile", "smoke", "--root", str(tmp_path)]) == 1
    assert "records.parquet: not in the last commit; name a folder" in capsys.readouterr().err
    with pytest.raises(UserError, match="no such file"):
        compare(tmp_path / "none", profile / "results", {"webp"})
