# SPDX-License-Identifier: Apache-2.0
"""The benchmark of trained models on other photos, and the commands about datasets."""

import json
import shutil

import pytest
import torch
from ruamel.yaml import YAML

from llicm import cli
from llicm.benchmark.records import read_records
from llicm.data import catalogue as catalogue_module
from llicm.errors import UserError
from llicm.images import read_image, write_png
from llicm.pipeline.benchmark import run_benchmark
from llicm.registry import CODECS, RESTORERS
from llicm.weights import save_part


def photo(seed, size=(176, 200)):
    coarse = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=size, mode="bicubic")[0].clamp(0, 1)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study as after `dvc repro`, with models that were never trained."""
    root = tmp_path_factory.mktemp("study")
    params = YAML(typ="safe").load((cli_root() / "profiles/smoke/params.yaml").read_text())
    params |= {"root": ".", "photos": "data", "tasks": ["noisy", "hazy"], "extra": []}
    params["models"]["adapted"] = params["models"]["restorer"]
    params["benchmark"]["adapted"] = {
        "models": ["rdo", "adapted", "none"],
        "methods": ["rdo>adapted"],
        "levels": [0, 3],
    }
    params["evaluate"] |= {"metrics": ["psnr", "piqe"], "workers": 1}
    with open(root / "params.yaml", "w") as file:
        YAML().dump(params, file)
    torch.manual_seed(0)
    models = root / "artifacts" / "models"
    for folder in ("rdo", "llicm"):
        codec = CODECS.make("mean-scale", N=8, M=48, lambdas=[0.002, 0.007, 0.02, 0.07])
        codec.update()
        save_part(codec, models / folder / "codec.safetensors")
    for file in ("restorer/restorer", "adapted/restorer", "llicm/restorer", "llicm/prefilter"):
        save_part(RESTORERS.make("direct", width=8, blocks=[1, 1, 1]), models / f"{file}.safetensors")
    for number in range(2):
        write_png(photo(number), root / "data" / "train" / f"t{number}.png")
        write_png(photo(10 + number), root / "others" / f"o{number}.png")
    return root


def cli_root():
    from pathlib import Path

    return Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_other_photos_go_through_every_method(study, monkeypatch, capsys):
    monkeypatch.chdir(study)
    assert cli.main(["benchmark", "others", "-o", "out", "--groups", "webp,rdo,adapted,llicm"]) == 0
    records = read_records("out/records.parquet")
    assert set(records["image"]) == {"o0", "o1"} and set(records["task"]) == {"noisy", "hazy"}
    assert {"degraded", "webp", "webp>restorer", "restorer>rdo", "rdo>adapted", "llicm"} <= set(records["method"])
    assert set(records["metric"]) == {"psnr", "piqe", "kept", "bpp_estimated"}
    about = json.loads((study / "out/about.json").read_text())
    assert about["photos"] == "others" and len(about["images"]) == 2 and "llicm/codec.safetensors" in about["models"]
    for name in ("bd_rate.csv.gz", "bd_rate.md", "headline.tex", "non_monotone.csv.gz", "rate_perception_psnr.png"):
        assert (study / "out" / name).stat().st_size
    # again: everything is there already but for the checkpoints, and the same bytes come out
    before = (study / "out/records.csv.gz").read_bytes()
    run_benchmark("others", study / "again", root=study, groups=["webp", "rdo", "adapted", "llicm"])
    assert (study / "again/records.csv.gz").read_bytes() == before


@pytest.mark.slow
def test_real_pairs_are_measured_as_they_are(study, tmp_path, monkeypatch):
    for kind, first in (("GT", 20), ("LQ", 30)):
        for number in range(2):
            write_png(photo(first + number), tmp_path / "rain" / kind / f"r{number}.png")
    sums = {f"{p.parent.name}/{p.name}": catalogue_module._digest(p) for p in (tmp_path / "rain").glob("*/*")}
    entry = catalogue_module.DataSet(
        "rain", "Rain", "nowhere", "free", "", "real", val=2, degradation="rainy", sha256=sums
    )
    monkeypatch.setattr(catalogue_module, "catalogue", lambda: {"rain": entry})
    monkeypatch.setattr("llicm.pipeline.benchmark.catalogue", lambda: {"rain": entry})
    catalogue_module.add("rain", tmp_path / "rain", tmp_path)
    out = run_benchmark(
        "rain",
        tmp_path / "out",
        root=study,
        datasets=tmp_path,
        groups=["webp", "rdo", "adapted", "llicm"],
        metrics=["psnr"],
    )
    records = read_records(out / "records.parquet")
    assert set(records["task"]) == {"rainy"}  # none of the study's two
    found = records[(records["method"] == "degraded") & (records["metric"] == "psnr")].set_index("image")["value"]
    for number in range(2):
        ideal, degraded = (read_image(tmp_path / "rain" / kind / f"r{number}.png") for kind in ("GT", "LQ"))
        assert found[f"r{number}"] == pytest.approx(float(-10 * (ideal - degraded).square().mean().log10()), abs=0.01)
    assert json.loads((out / "about.json").read_text())["severity"] is None


def test_wrong_requests_are_reported(study, tmp_path):
    with pytest.raises(UserError, match="nowhere: neither a folder nor a dataset of the catalogue, which has kodak"):
        run_benchmark("nowhere", tmp_path / "out", root=study)
    with pytest.raises(UserError, match="bpg: no codec group of params.yaml; choose among raw, webp"):
        run_benchmark(str(study / "others"), tmp_path / "out", root=study, groups=["bpg"])
    with pytest.raises(UserError, match="t0.png: the study was trained on this photo"):
        run_benchmark(str(study / "data" / "train"), tmp_path / "out", root=study)


def test_a_set_that_overlaps_the_training_set_is_refused(study, tmp_path, monkeypatch):
    def entry(name, folder):
        sums = {path.name: catalogue_module._digest(path) for path in folder.iterdir()}
        return catalogue_module.DataSet(name, name, "nowhere", "free", "", "photos", count=2, sha256=sums)

    sets = {"ours": entry("ours", study / "data" / "train"), "theirs": entry("theirs", study / "others")}
    monkeypatch.setattr(catalogue_module, "catalogue", lambda: sets)
    monkeypatch.setattr("llicm.pipeline.benchmark.catalogue", lambda: sets)
    monkeypatch.setattr("llicm.pipeline.benchmark.overlap", lambda a, b: "they share a photo" if a != b else None)
    catalogue_module.add("theirs", study / "others", tmp_path)
    with pytest.raises(UserError, match="theirs: the study was trained on ours: they share a photo"):
        run_benchmark("theirs", tmp_path / "out", root=study, datasets=tmp_path)


def test_commands_about_datasets(study, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "list"]) == 0
    out = capsys.readouterr().out
    assert "kodak" in out and "24 photos" in out and "gopro" in out and "2103 + 1111 pairs, motion-blurry" in out
    shutil.copytree(study / "others", tmp_path / "copy")
    assert cli.main(["data", "add", "kodak", "copy"]) == 1
    assert "2 pictures, but Kodak" in capsys.readouterr().err
    assert cli.main(["data", "split", "bsds500_train", "rain100h", "photos"]) == 1
    assert "75 of the 100 backgrounds" in capsys.readouterr().err
