# SPDX-License-Identifier: Apache-2.0
"""The whole pipeline on the smoke profile, in a copy of the repository: it runs, it repeats, it reruns what it must.

Hashes of one run are compared with those of another on the same machine, never with recorded ones: another
processor sums in another order. That all stages repeat: tests/test_verify.py, and in place tests/test_interruption.py.
"""

import json
import math
import re

import nbformat
import pandas as pd
import pytest
from clone import ROOT, SMOKE

from llicm.benchmark.probes import PROBES
from llicm.benchmark.records import read_records
from llicm.parameters import load

PARAMETERS = load(ROOT / "profiles/smoke/params.yaml")
EVALUATIONS = {f"evaluate@{group}" for group in PARAMETERS.benchmark}
STAGES = {
    "code", "degrade", "vlm", *(f"train@{name}" for name in PARAMETERS.models), *EVALUATIONS, "figures", "release"
}  # fmt: skip

pytestmark = pytest.mark.slow


def test_at_most_twelve_stages_were_run_and_nothing_warned(clone, smoke_run):
    assert set(re.findall(r"^  ([\w@-]+):$", clone.lock.decode(), re.M)) == STAGES
    assert len(STAGES) <= 12
    expected = (
        r"\d+%\|", r"\{\"phase\"", r"model \w+: trains", "loading and degrading took", r"\s*$",
        # DVC itself says of the reference, which is not compressed, that it has no bitstreams
        r"WARNING: 'profiles/smoke/artifacts/bitstreams/raw' is empty\.$",
    )  # fmt: skip
    lines = smoke_run[1].replace("\r", "\n").splitlines()
    assert [line for line in lines if not re.match(rf"\s*({'|'.join(expected)})", line)] == []


def test_everything_is_made(clone):
    p = PARAMETERS
    for name, model in p.models.items():
        files = {path.stem for path in (clone.profile / "artifacts/models" / name).glob("*.safetensors")}
        assert files >= {*model.trains}, name
    photos = {path.stem for path in (clone.folder / "data/test").iterdir()}
    for task in p.tasks:
        for side in ("GT", "LQ"):
            folder = clone.profile / "artifacts/pairs/val" / task / side
            assert {path.stem for path in folder.glob("*.png")} == photos

    records = read_records(clone.profile / "results/records.parquet")
    every = read_records(clone.profile / "artifacts/records.csv")
    numbers = dict.fromkeys(("bpp", "value"), "float32")
    assert records.equals(every.astype(numbers).astype(dict.fromkeys(numbers, "float64")))
    for column, expected in {
        "method": {method.name for method in p.methods}, "family": set(p.benchmark), "task": {*p.tasks, *p.extra},
        "image": photos, "metric": {*p.evaluate.metrics, *PROBES},
    }.items():  # fmt: skip
        assert set(records[column]) == expected, column
    values_per_image = 0
    for method in p.methods:
        group = p.benchmark[method.group]
        on_tasks = len(group.metrics or p.evaluate.metrics) * len(group.tasks or p.tasks)
        values_per_image += len(method.levels) * (on_tasks + len(group.extra_metrics or ()) * len(p.extra))
    assert (~records["metric"].isin(PROBES)).sum() == values_per_image * len(photos)
    assert records["value"].notna().all()
    assert (records["bytes"] > 0).all()
    webp = records[(records["method"] == "webp") & (records["metric"] == "psnr")]
    assert webp["value"].between(3, 60).all()
    rate = webp.astype({"level": float}).groupby("level")["bpp"].mean()
    assert len(rate) == 4 and rate.is_monotonic_increasing

    metrics = json.loads((clone.profile / "results/metrics.json").read_text())
    assert 0 < len(metrics) <= 7 and all(math.isfinite(number) for number in metrics.values())
    compared = pd.read_csv(clone.profile / "results/tables/comparisons.csv")
    assert set(compared["comparison"]) == set(p.figures.comparisons)
    recognised = json.loads((clone.profile / "results/vlm/recognition.json").read_text())
    assert list(recognised["accuracy_of_tasks"]) == ["none", *map(str, p.vlm.recognise.levels)]
    names = {path.name for path in (clone.profile / "results/figures").iterdir()}
    for number, name in enumerate(("frameworks", "objectives", "system", "psnr", "non_monotone", "pictures"), 1):
        assert any(found.startswith(f"figure_{number}_{name}") for found in names), name
    page = (clone.profile / "artifacts/curves/curves.html").read_text()
    assert all(f'"name": "{method}"' in page for method in ("llicm", "webp"))
    for name, words in {"better": "is best from", "sliders": 'type="range"', "failures": "than doing nothing"}.items():
        assert words in (clone.profile / f"artifacts/curves/{name}.md").read_text()
    for folder, kind in (("figures", "*.png"), ("tables", "*.csv")):
        files = list((clone.profile / "results" / folder).glob(kind))
        assert files
        assert all(f.stat().st_size > 50 for f in files)


def test_executed_notebooks_are_recorded_and_hold_nothing_of_this_run(clone):
    executed = sorted((clone.profile / "executed").glob("*.ipynb"))
    assert len(executed) == len(STAGES) - 1  # `code` is no notebook
    for path in executed:
        text = path.read_text()
        assert str(clone.folder) not in text, path.name
        record = nbformat.reads(text, 4).metadata["llicm"]
        assert record["deps"]
        assert record["outs"]
        assert record["params"]["seed"] == 0
        assert '"name": "stderr"' not in text


def test_it_is_up_to_date_and_a_second_repro_does_nothing(clone):
    assert clone.stale() == {}
    before = clone.lock
    result = clone.dvc("repro", SMOKE)
    assert "Data and pipelines are up to date." in result.stdout
    assert "Running stage" not in result.stdout
    assert clone.lock == before


# --- what reruns -------------------------------------------------------------------------------------------


@pytest.fixture
def altered(clone):
    """Alters files of the repository, and puts them back after the test."""
    before = {}

    def alter(name, old, new):
        path = clone.folder / name
        before.setdefault(path, path.read_bytes())
        text = path.read_text()
        assert old in text, f"{name} does not hold {old}"
        path.write_text(text.replace(old, new, 1))

    yield alter
    for path, data in before.items():
        path.write_bytes(data)
    clone.write_code()  # its outputs are in DVC's run cache
    assert clone.stale() == {}


def test_prose_and_editor_metadata_cause_no_rerun(clone):
    path = clone.folder / "notebooks/3_train.ipynb"
    source = path.read_bytes()
    notebook = nbformat.read(path, 4)
    notebook.cells[0].source += "\n\nOne more sentence."
    notebook.metadata["language_info"] = {"name": "python", "version": "3.11.99"}
    nbformat.write(notebook, path)
    assert set(clone.stale()) == {"code"}
    clone.write_code()
    assert clone.stale() == {}
    path.write_bytes(source)
    clone.write_code()


def manifests(clone):
    """Of each stage the modules that its manifest names."""
    found = {}
    for path in (clone.profile / "build").glob("*.json"):
        stage = path.stem.replace("train-", "train@", 1).replace("evaluate-", "evaluate@", 1)
        found[stage] = set(json.loads(path.read_text())["modules"])
    assert set(found) == STAGES - {"code"}
    return found


@pytest.mark.parametrize(
    ("module", "stages"),
    [
        ("src/llicm/report/figures.py", {"figures"}),
        ("src/llicm/codec/context.py", None),
        ("src/llicm/restore/direct.py", None),
    ],
)
def test_an_edited_module_reruns_the_stages_that_import_it(clone, altered, module, stages):
    """All modules, without DVC: tests/test_code.py."""
    expected = {stage for stage, modules in manifests(clone).items() if module in modules}
    assert stages is None or expected == stages
    if "direct" in module:
        assert "train@restorer" in expected and "train@rdo" not in expected
    if "codec/context" in module:
        assert {"train@rdo", "train@llicm"} <= expected and "degrade" not in expected
    altered(module, "# SPDX", "# Edited.\n# SPDX")
    assert set(clone.stale()) == {"code"}
    clone.write_code()
    assert set(clone.stale()) == expected


def test_an_evaluation_parameter_reruns_evaluation_and_figures_only(clone, altered):
    lock, metrics = clone.lock, PARAMETERS.evaluate.metrics
    altered("profiles/smoke/params.yaml", ", ".join(metrics), ", ".join(metrics[:-1]))
    assert set(clone.stale()) == {"code"} | EVALUATIONS
    clone.write_code()  # checks the parameters; its outputs stay as they were
    assert set(clone.stale()) == EVALUATIONS
    clone.dvc("repro", "-s", f"{SMOKE}:evaluate@webp")
    assert set(clone.stale()) == (EVALUATIONS - {"evaluate@webp"}) | {"figures"}
    altered("profiles/smoke/params.yaml", ", ".join(metrics[:-1]), ", ".join(metrics))
    result = clone.dvc("repro", SMOKE)  # the old values are in DVC's run cache
    assert result.stdout.count("> python") == 0, result.stdout
    assert clone.lock == lock


def test_a_model_that_changes_and_a_new_one_rerun_alone(clone, altered):
    file = "profiles/smoke/params.yaml"
    altered(file, "width: 8, blocks", "width: 12, blocks")
    assert set(clone.stale()) == {"code", "train@restorer", "figures"}
    altered(file, "width: 12, blocks", "width: 8, blocks")
    new = "models:\n  other: {trains: [codec], objective: rd, codec: {name: mean-scale, N: 16, M: 48, lambdas: [0.1]}"
    altered(file, "models:\n", new + ", start: *nothing }\n")
    assert set(clone.stale()) == {"code", "train@other", "figures"}


def test_a_wrong_parameter_stops_the_pipeline_with_one_sentence(clone, altered):
    file, lock = "profiles/smoke/params.yaml", clone.lock
    for old, new, said in (
        ("warmup:", "warmpu:", "unknown parameter 'training.warmpu' (did you mean 'training.warmup'?)"),
        ("seed: 0", "seed: none", "parameter 'seed' is \"none\": input should be a valid integer"),
        ("photos: ../../data", "photos: nowhere", "'photos' names nowhere, which is no folder; correct it"),
    ):
        altered(file, old, new)
        result = clone.dvc("repro", SMOKE, check=False)
        assert result.returncode != 0
        assert f"error: {said}" in result.stderr.replace("params.yaml: ", "")
        assert "Traceback" not in result.stdout + result.stderr
        assert clone.lock == lock
        altered(file, new, old)


def test_missing_photos_are_named(clone):
    data, aside = clone.folder / "data", clone.folder / "aside"
    data.rename(aside)
    try:
        result = clone.dvc("repro", SMOKE, check=False)
        assert result.returncode != 0
        assert "missing data 'source'" in result.stderr
        assert "data.dvc" in result.stderr
        assert "Traceback" not in result.stdout + result.stderr
    finally:
        aside.rename(data)


def test_a_corrupt_photo_is_named_in_one_sentence(clone):
    photo = next((clone.folder / "data/test").iterdir())
    content = photo.read_bytes()
    executed = clone.profile / "executed/1_degrade.ipynb"
    photo.unlink()  # DVC may have linked it to its cache
    photo.write_bytes(content[: len(content) // 3])
    try:
        result = clone.dvc("repro", "-s", f"{SMOKE}:degrade", check=False)
        assert result.returncode != 0
        sentences = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(sentences) == 1
        assert photo.name in sentences[0]
        assert "Traceback" not in result.stdout + result.stderr
        assert not executed.exists()
        assert not (clone.profile / "artifacts/pairs").exists()
    finally:
        photo.unlink()
        photo.write_bytes(content)
        clone.dvc("checkout", SMOKE)
    assert clone.stale() == {}
