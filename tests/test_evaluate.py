# SPDX-License-Identifier: Apache-2.0
import ast
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import ROOT

from llicm.benchmark import evaluate
from llicm.benchmark.evaluate import Plan, evaluate_group
from llicm.benchmark.metrics import make_metrics
from llicm.benchmark.runners import FileCodec, Runner
from llicm.codec.conventional import find_codec
from llicm.data.pairs import Pair, read_pairs, write_pairs
from llicm.errors import UserError
from llicm.methods import Method

METRICS = ("psnr", "ms_ssim", "gmsd", "piqe")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    coarse = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    photos = torch.nn.functional.interpolate(coarse, size=(176, 200), mode="bicubic").clamp(0, 1)
    write_pairs({"a": photos[0], "b": photos[1]}, root, ["noisy"], 0.5, 0, "val", None)
    return root


JPEG = Method("jpeg", "photos", "baseline", "jpeg", False, None, None, (10, 60))


def plan(root, name, metrics=METRICS):
    return Plan([JPEG], root / "no_models", metrics, root / "no_fit.mat", root / name)


@pytest.mark.slow
def test_values_do_not_depend_on_the_number_of_processes(pairs):
    one, two = (evaluate_group(plan(pairs, f"streams{n}"), pairs, ["noisy"], n) for n in (1, 2))
    assert one == two
    assert len(one) == 2 * 2 * (len(METRICS) + 1)  # and what is kept of the noise
    for row in one:
        stream = pairs / "streams1" / "noisy" / row["image"] / f"jpeg@{row['level']}"
        assert row["bytes"] == stream.stat().st_size and row["bpp"] == 8 * row["bytes"] / (176 * 200)
        assert stream.read_bytes()[:2] == b"\xff\xd8"  # the real file
        assert (row["method"], row["family"], row["order"]) == ("jpeg", "photos", "alone")


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on(pairs, tmp_path, monkeypatch):
    whole = evaluate_group(plan(pairs, "streams"), pairs, ["noisy"], 1)
    kept = replace(plan(pairs, "kept"), keep=tmp_path / "keep", streams=tmp_path / "streams")
    assert evaluate_group(kept, pairs, ["noisy"], 1, timing=tmp_path / "timing.csv") == whole
    streams = {path.relative_to(kept.streams): path.read_bytes() for path in kept.streams.rglob("jpeg@*")}
    assert len(streams) == 4
    numbers = json.loads((tmp_path / "timing.json").read_text())
    assert 0 < numbers["share"] <= 1 and {"encode", "decode", "psnr", "piqe"} <= set(numbers["by"])
    # What is finished is not measured again: an altered value stays, and the other image is measured anew.
    values = tmp_path / "keep" / "noisy" / "a" / "values.json"
    values.write_text(values.read_text().replace('"value": ', '"value": 1'))
    (tmp_path / "keep" / "noisy" / "b" / "values.json").unlink()
    resumed = evaluate_group(kept, pairs, ["noisy"], 1)
    differing = {row["image"] for row, old in zip(resumed, whole, strict=True) if row != old}
    assert differing == {"a"}
    assert {path.relative_to(kept.streams): path.read_bytes() for path in kept.streams.rglob("jpeg@*")} == streams


@pytest.mark.slow
def test_further_sets_have_metrics_of_their_own(pairs, tmp_path):
    photos = {pair.name: pair.ideal for pair in read_pairs(pairs, "val", "noisy")}
    write_pairs(photos, pairs, ["noisy@0.2", "clean"], 0.5, 0, "val", None)
    more = replace(plan(pairs, "more"), extra_metrics=("psnr",), streams=tmp_path / "streams")
    rows = evaluate_group(more, pairs, ["noisy"], 1, extra=["clean", "noisy@0.2"])
    assert {(row["task"], row["metric"]) for row in rows} == {
        *(("noisy", metric) for metric in (*METRICS, "kept")), ("clean", "psnr"), ("noisy@0.2", "psnr"),
    }  # fmt: skip
    values = {row["task"]: row["value"] for row in rows if row["metric"] == "psnr" and row["level"] == 60}
    assert values["clean"] > values["noisy@0.2"] > values["noisy"]


def test_what_restoring_takes_from_clean_pictures_is_measured_before_and_behind_the_codec(pairs, tmp_path, monkeypatch):
    def darker(image, level, task, steps):
        return 0.9 * image

    codec = FileCodec(find_codec("jpeg"), tells_level=False)
    behind = Runner(replace(JPEG, name="jpeg>darker", restorer="darker"), codec, None, darker)
    before = Runner(replace(JPEG, name="darker>jpeg", prefilter="darker"), codec, darker)
    more = replace(plan(pairs, "harm"), extra_metrics=("psnr",), streams=tmp_path / "streams")
    runners, (metric,) = [Runner(JPEG, codec), behind, before], make_metrics(["psnr"])
    worker = {"plan": more, "runners": runners, "metrics": {"psnr": metric}}
    monkeypatch.setattr(evaluate, "_worker", worker)
    ideal = read_pairs(pairs, "val", "noisy")[0].ideal
    rows = evaluate._measure(more, "clean", Pair("a", ideal, ideal), True)["rows"]
    values = {(row["method"], row["level"], row["metric"]): row["value"] for row in rows}
    for level in JPEG.levels:
        assert ("jpeg", level, "harm") not in values
        for name in ("jpeg>darker", "darker>jpeg"):
            lost = values["jpeg", level, "psnr"] - values[name, level, "psnr"]
            assert lost > 2 and values[name, level, "harm"] == pytest.approx(lost, abs=1e-3)
    others = evaluate._measure(more, "noisy@0.2", Pair("a", ideal, ideal), True)["rows"]
    assert {row["metric"] for row in others} == {"psnr"}


@pytest.mark.slow
def test_the_methods_of_a_group_in_their_order_on_some_of_the_images(pairs, tmp_path):
    webp = replace(JPEG, name="webp", codec="webp", levels=(50,))
    both = replace(plan(pairs, "both", ("psnr",)), methods=[webp, JPEG], streams=tmp_path / "streams")
    rows = evaluate_group(both, pairs, ["noisy"], 1, images=1)
    psnr = [(row["method"], row["image"], row["level"]) for row in rows if row["metric"] == "psnr"]
    assert psnr == [("webp", "a", 50), ("jpeg", "a", 10), ("jpeg", "a", 60)]


def test_missing_pairs_are_named(pairs):
    with pytest.raises(UserError, match="hazy"):
        evaluate_group(plan(pairs, "streams"), pairs, ["hazy"], 1)


WITH_FID = """
import sys
from dataclasses import replace
from pathlib import Path
from llicm.benchmark.evaluate import Plan, evaluate_group
from llicm.methods import Method
root, weights, out = map(Path, sys.argv[1:])
jpeg = Method("jpeg", "jpeg", "baseline", "jpeg", False, None, None, (5, 95))
plan = Plan([jpeg], root, ("psnr", "fid"), root / "no_fit.mat", out / "streams", weights=weights)
if __name__ == "__main__":
    rows = evaluate_group(replace(plan, keep=out / "keep"), root, ["noisy"], 1)
    print([(row["image"], row["level"], row["value"]) for row in rows if row["metric"] == "fid"])
"""


@pytest.mark.slow
def test_fid_over_the_test_set(pairs, tmp_path, monkeypatch):
    """With the file that it needs, of random weights: such scores mean nothing, but the way to them is the real one."""
    import pyiqa.archs.inception as module

    torch.manual_seed(0)
    monkeypatch.setattr(module, "load_pretrained_network", lambda *_: None)
    network = module.fid_inception_v3()
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    path = tmp_path / "weights" / "hub" / "pyiqa" / "pt_inception-2015-12-05-6726825d.pth"
    path.parent.mkdir(parents=True)
    script = tmp_path / "with_fid.py"
    script.write_text(WITH_FID)
    command = [sys.executable, str(script), str(pairs), str(tmp_path / "weights"), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    absent = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "'fid' needs the file pt_inception-2015-12-05-6726825d.pth in" in absent.stderr
    torch.save(network.state_dict(), path)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    assert [row[:2] for row in rows] == [("all", 5), ("all", 95)]
    assert rows[0][2] != rows[1][2] and min(row[2] for row in rows) > 0


@pytest.fixture
def cluster(tmp_path):
    """The address of a Dask scheduler, and two workers of it: three programs of their own."""
    pytest.importorskip("distributed")
    place, programs = tmp_path / "scheduler.json", []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    common = [sys.executable, "-m", "distributed.cli"]
    where = ["--scheduler-file", str(place), "--no-dashboard"]
    for name in ("dask_scheduler", *["dask_worker"] * 2):
        mine = ["--host", "127.0.0.1", "--port", "0"] if name == "dask_scheduler" else ["--nthreads", "1", "--no-nanny"]
        command = [*common[:2], f"distributed.cli.{name}", *where, *mine]
        programs.append(subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL))
    until = time.monotonic() + 60
    while not place.exists() and time.monotonic() < until:
        time.sleep(0.1)
    yield json.loads(place.read_text())["address"], programs[1:]
    for program in programs:
        program.kill()
        program.wait()


@pytest.mark.slow
def test_a_cluster_gives_the_same_records_and_survives_a_worker(tmp_path, cluster, monkeypatch):
    address, workers = cluster
    coarse = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    photos = torch.nn.functional.interpolate(coarse, size=(96, 96), mode="bicubic").clamp(0, 1)
    write_pairs({f"{n}": photo for n, photo in enumerate(photos)}, tmp_path / "pairs", ["noisy"], 0.5, 0, "val", None)
    method = replace(JPEG, levels=tuple(range(5, 95, 3)))
    here = replace(plan(tmp_path, "here", ("psnr",)), methods=[method])
    expected = evaluate_group(here, tmp_path / "pairs", ["noisy"], 1)
    monkeypatch.chdir(tmp_path)  # where the workers' folder is another
    there = replace(plan(Path(), "there", ("psnr",)), methods=[method], keep=Path("keep"))

    def end_one():
        while not list((tmp_path / "keep").rglob("values.json")):
            time.sleep(0.01)
        workers[0].kill()

    killer = threading.Thread(target=end_one, daemon=True)
    killer.start()
    found = evaluate_group(there, Path("pairs"), ["noisy"], 1, scheduler=address)
    killer.join(10)
    assert workers[0].wait(10) == -signal.SIGKILL and workers[1].poll() is None
    assert found == expected
    streams = {path.relative_to(here.streams): path.read_bytes() for path in here.streams.rglob("*@*")}
    assert {
        path.relative_to(tmp_path / "there"): path.read_bytes() for path in (tmp_path / "there").rglob("*@*")
    } == streams


def test_a_cluster_that_cannot_be_had_is_one_sentence(pairs, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(evaluate, "_PATIENCE", 1)
    with pytest.raises(UserError, match="evaluate.scheduler is tcp://127.0.0.1:9, but no Dask scheduler answers there"):
        evaluate_group(plan(pairs, "streams"), pairs, ["noisy"], 1, scheduler="tcp://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match="needs Dask; pip install"):
        evaluate_group(plan(pairs, "streams"), pairs, ["noisy"], 1, scheduler="tcp://127.0.0.1:9")
