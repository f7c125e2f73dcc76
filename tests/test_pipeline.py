# SPDX-License-Identifier: Apache-2.0
"""The whole pipeline on the smoke profile, in a copy of the repository: it runs, it repeats, it reruns what it must.

Hashes of one run are compared with those of another on the same machine, never with recorded ones: another
processor sums in another order.
"""

import json
import re

import nbformat
import pytest
from clone import ROOT, SMOKE, Clone

from llicm.benchmark.probes import PROBES
from llicm.benchmark.records import read_records
from llicm.pipeline import parameters as params
from llicm.provenance.audit import audit

EVALUATIONS = {f"evaluate@{family}" for family in params.load(ROOT / "profiles/smoke/params.yaml")["families"]}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    clone = Clone(tmp_path_factory.mktemp("clone"))
    clone.make()
    return clone


def test_everything_is_made(clone):
    values = params.load(clone.profile / "params.yaml")
    arms = {f"separate/{arm}" for arm in values["codec_arms"] + values["restorer_arms"]} | set(values["train_arms"])
    for arm in arms:
        assert list((clone.profile / "artifacts/models" / arm).glob("*.safetensors")), arm
    photos = {p.stem for p in (clone.folder / "data/test").iterdir()}
    for task in values["tasks"]:
        for side in ("GT", "LQ"):
            folder = clone.profile / "artifacts/pairs/val" / task / side
            assert {p.stem for p in folder.glob("*.png")} == photos

    records = read_records(clone.profile / "results/records.parquet")
    every = read_records(clone.profile / "artifacts/records.csv")
    numbers = dict.fromkeys(("bpp", "value"), "float32")
    assert records.equals(every.astype(numbers).astype(dict.fromkeys(numbers, "float64")))
    methods = {m for family in values["families"].values() for m in family["methods"]}
    for column, expected in {
        "method": methods, "family": set(values["families"]), "task": {*values["tasks"], *values["extra"]},
        "image": photos, "metric": {*values["evaluate"]["metrics"], *PROBES},
    }.items():  # fmt: skip
        assert set(records[column]) == expected, column

    def points(family):
        entries = [e if isinstance(e, dict) else {} for e in family["methods"].values()]
        return sum(len(e.get("levels", family["levels"])) for e in entries)

    values_per_image = sum(
        points(f) * len(f.get("metrics", values["evaluate"]["metrics"])) * len(f.get("tasks", values["tasks"]))
        + points(f) * len(f.get("extra", [])) * len(values["extra"])
        for f in values["families"].values()
    )
    assert (~records["metric"].isin(PROBES)).sum() == values_per_image * len(photos)
    assert records["value"].notna().all()
    assert (records["bytes"] > 0).all()
    jpeg = records[(records["method"] == "jpeg") & (records["metric"] == "psnr")]
    assert jpeg["value"].between(3, 60).all()
    rate = jpeg.astype({"level": float}).groupby("level")["bpp"].mean()
    assert rate.is_monotonic_increasing

    assert json.loads((clone.profile / "results/metrics.json").read_text())
    recognised = json.loads((clone.profile / "results/vlm/recognition.json").read_text())
    assert list(recognised["accuracy_of_tasks"]) == ["none", *map(str, values["vlm"]["recognise"]["levels"])]
    assert "no VLM" in (clone.profile / "results/tables/ablation.md").read_text()
    names = {path.name for path in (clone.profile / "results/figures").iterdir()}
    for number, name in enumerate(("frameworks", "objectives", "system", "psnr", "non_monotone", "pictures"), 1):
        assert any(found.startswith(f"figure_{number}_{name}") for found in names), name
    page = (clone.profile / "artifacts/curves/curves.html").read_text()
    assert all(f'"legendgroup":"{method}"' in page for method in ("llicm", "webp"))
    for folder, kind in (("figures", "*.png"), ("tables", "*.csv")):
        files = list((clone.profile / "results" / folder).glob(kind))
        assert files
        assert all(f.stat().st_size > 50 for f in files)


def test_executed_notebooks_are_recorded_and_hold_nothing_of_this_run(clone):
    executed = sorted((clone.profile / "executed").glob("*.ipynb"))
    assert len(executed) == len(params.load(clone.profile / "params.yaml")["arms"]) + len(EVALUATIONS) + 4
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
    assert clone.dvc("status", "-q", SMOKE, check=False).returncode == 0
    before = clone.lock
    result = clone.dvc("repro", SMOKE)
    assert "Data and pipelines are up to date." in result.stdout
    assert "Running stage" not in result.stdout
    assert clone.lock == before


@pytest.mark.parametrize("stage", ["degrade", "vlm", "train@llicm", "evaluate@adapted", "figures"])
def test_a_forced_rerun_gives_the_same_bytes(clone, stage):
    before = clone.lock
    result = clone.dvc("repro", "-f", "-s", f"{SMOKE}:{stage}")
    assert "Running stage" in result.stdout
    assert clone.lock == before


def test_prose_and_editor_metadata_cause_no_rerun(clone):
    path = clone.folder / "notebooks/3_train.ipynb"
    source = path.read_bytes()
    notebook = nbformat.read(path, 4)
    notebook.cells[0].source += "\n\nOne more sentence."
    notebook.metadata["language_info"] = {"name": "python", "version": "3.11.99"}
    nbformat.write(notebook, path)
    assert set(clone.stale()) == {"code"}
    clone.dvc("repro", "-s", f"{SMOKE}:code")
    assert clone.stale() == {}
    path.write_bytes(source)
    clone.dvc("repro", "-s", f"{SMOKE}:code")
    assert clone.stale() == {}


def test_an_evaluation_parameter_reruns_evaluation_and_figures_only(clone):
    path = clone.profile / "params.yaml"
    text, lock = path.read_text(), clone.lock
    metrics = params.load(path)["evaluate"]["metrics"]
    try:
        path.write_text(text.replace(", ".join(metrics), ", ".join(metrics[:-1])))
        assert set(clone.stale()) == {"code"} | EVALUATIONS
        clone.dvc("repro", "-s", f"{SMOKE}:code")  # checks the parameters; its outputs stay as they were
        assert set(clone.stale()) == EVALUATIONS
        clone.dvc("repro", "-s", f"{SMOKE}:evaluate@adapted")
        assert set(clone.stale()) == (EVALUATIONS - {"evaluate@adapted"}) | {"figures"}
    finally:
        path.write_text(text)
    result = clone.dvc("repro", SMOKE)  # the old values are in DVC's run cache
    assert result.stdout.count("> python") == 0, result.stdout
    assert clone.lock == lock


def test_an_arm_of_its_own_reruns_alone(clone):
    path = clone.profile / "params.yaml"
    text = path.read_text()
    assert "nf: 8" in text
    try:
        path.write_text(text.replace("nf: 8", "nf: 10"))
        assert set(clone.stale()) == {"code", "restorer@irsde", "figures"}
    finally:
        path.write_text(text)
    assert clone.stale() == {}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  lr:", "  lrr:", "error: params.yaml: unknown parameter 'training.lrr' (did you mean 'training.lr'?)"),
        ("seed: 0", "seed: none", "error: params.yaml: parameter 'seed': 'none' is not of type 'integer'"),
        ("photos: ../../data", "photos: nowhere", "error: nowhere: no such folder of photos; correct 'photos'"),
    ],
)
def test_a_wrong_parameter_stops_the_pipeline_with_one_sentence(clone, old, new, said):
    path = clone.profile / "params.yaml"
    text, lock = path.read_text(), clone.lock
    assert old in text
    try:
        path.write_text(text.replace(old, new))
        result = clone.dvc("repro", SMOKE, check=False)
        assert result.returncode != 0
        assert said in result.stderr
        assert "Traceback" not in result.stdout + result.stderr
        assert clone.lock == lock
    finally:
        path.write_text(text)
        clone.dvc("repro", SMOKE)


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


# --- audit ---


def test_the_audit_finds_nothing_where_nothing_was_touched(clone):
    assert audit(clone.folder, "smoke") == []


def alter_weights(profile):
    path = profile / "artifacts/release/llicm.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    return path, bytes(data)


def alter_text(name, old, new):
    def alter(profile):
        path = next(profile.glob(name))
        text = path.read_text()
        assert re.search(old, text), f"{path} does not hold {old}"
        return path, re.sub(old, new, text, count=1).encode()

    return alter


def alter_bytes(name):
    def alter(profile):
        path = sorted(profile.glob(name))[0]
        return path, path.read_bytes() + b"\0"

    return alter


LOCK_ENTRY = r"(path: artifacts/release\n    +hash: md5\n    +md5: )\w{4}"
TAMPERED = {
    "a weight byte": (alter_weights, "weights", "llicm.safetensors"),
    "a CSV cell": (alter_text("results/tables/headline.csv", r"(\d)\n", r"\g<1>7\n"), "figures", "headline.csv"),
    "a figure": (alter_bytes("results/figures/figure_4_psnr.png"), "figures", "figure_4_psnr.png"),
    "a notebook cell": (
        alter_text("executed/1_degrade.ipynb", r"check_apart\(photos\)", "pass"), "notebooks", "1_degrade.ipynb, code",
    ),
    "a parameter": (alter_text("params.yaml", "crop: 64", "crop: 96"), "lock", "params.yaml: training"),
    "a lock entry": (alter_text("dvc.lock", LOCK_ENTRY, r"\g<1>0000"), "hashes", "artifacts/release"),
    "a data file": (alter_bytes("../../data/test/*"), "hashes", "data"),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERED)
def test_the_audit_catches(clone, what):
    """The eighth, a number in the README, is in tests/test_lineage.py: the README shows the default study."""
    alter, check, named = TAMPERED[what]
    path, data = alter(clone.profile)
    original = path.read_bytes()
    path.unlink()  # DVC may have linked it to its cache
    path.write_bytes(data)
    try:
        checks = [check] if check == "figures" else ["lock", "hashes", "notebooks", "weights"]
        found = [finding for finding in audit(clone.folder, "smoke", checks) if finding.check == check]
        assert any(named in finding.what for finding in found), found
        assert all(finding.expected != finding.found and finding.mend for finding in found)
    finally:
        path.unlink()
        path.write_bytes(original)
