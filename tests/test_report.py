# SPDX-License-Identifier: Apache-2.0
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from llicm.benchmark.bdrate import bd_table
from llicm.benchmark.records import write_records
from llicm.data.pairs import write_pairs
from llicm.errors import UserError
from llicm.images import read_image
from llicm.methods import Method
from llicm.parameters import change, load, read
from llicm.registry import CODECS, RESTORERS
from llicm.report import study as sections
from llicm.report.comparisons import (
    ablation,
    baselines,
    budgets,
    disagreements,
    failures,
    headline,
    headline_numbers,
    headline_tests,
    mean_points,
    of_role,
    restoration,
    sampling_steps,
    specialists,
    strongest,
    summary,
    versus,
)
from llicm.report.pictures import kept_crops, strip_rows
from llicm.report.recognition import recognition_markdown
from llicm.report.sliders import write_sliders
from llicm.report.study import Study
from llicm.report.tables import (
    ablation_markdown,
    disagreements_markdown,
    extra_markdown,
    full_markdown,
    headline_latex,
    headline_markdown,
    non_monotone_markdown,
    results_markdown,
    write_comparisons,
    write_compressai,
)
from llicm.report.timing import write_runs, write_timing
from llicm.weights import save_part

ROOT = Path(__file__).resolve().parents[1]
TASKS = ["noisy", "hazy"]


def method(name, role="baseline", codec=None, restorer=None, prefilter=None, **more):
    """A method whose codec, a model if it is not conventional, has its name."""
    codec = codec or name
    levels = more.pop("levels", (0.0, 1.0))
    return Method(name, name, role, codec, codec not in ("jpeg", "webp"), prefilter, restorer, levels, **more)


LLICM, JPEG = method("llicm", "test", restorer="llicm"), method("jpeg")
SEPARATE = method("rdo>restorer", codec="rdo", restorer="restorer")
METHODS = [LLICM, JPEG, SEPARATE]
COMPARISONS = {
    "llicm_against_codec_then_restorer": ["llicm", "rdo>restorer"],
    "llicm_against_strongest": ["llicm", "strongest"],
}
INTROS = {"llicm_against_codec_then_restorer": "LL-ICM against the same parts", "other": "With another in both"}


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
    found = summary(table, METHODS, TASKS, COMPARISONS)
    against = found[found["comparison"] == "llicm_against_codec_then_restorer"]
    assert against["task"].tolist() == [*TASKS, "mean"]
    assert against["bd_rate"].tolist() == [pytest.approx(-50)] * 3 and against["bd_psnr"].iloc[-1] == pytest.approx(2)
    strongest = found[found["comparison"] == "llicm_against_strongest"].set_index("task")["anchor"]
    assert strongest.to_dict() == dict.fromkeys(TASKS, "rdo>restorer") | {"mean": "strongest"}
    gains = restoration(records, TASKS)["gain"]
    numbers = headline_numbers(found, gains, "llicm")
    assert list(numbers)[:2] == ["llicm_against_strongest.bd_rate", "llicm_against_strongest.bd_psnr"]
    assert len(numbers) == 5 and numbers["restorer_gain_db"] == 4.5
    many = pd.concat(
        [found.assign(comparison=found["comparison"] + end, test=f"llicm{end}") for end in ("-a", "", "-b")]
    )
    kept = headline_numbers(many, gains, "llicm")
    assert len(kept) == 7 and list(kept)[:4] == list(numbers)[:4]
    undefined = headline_numbers(found.assign(bd_rate=np.nan), gains, "llicm")
    assert set(undefined) == {name for name in numbers if not name.endswith("bd_rate")}, (
        "what does not exist is left out"
    )
    with pytest.raises(UserError, match="no comparison of llicm with webp on noisy"):
        summary(table, METHODS, TASKS, {"a": ["llicm", "webp"]})


def test_other_comparisons_are_told_in_words(records):
    names = {"llicm": "llicm-irsde", "rdo>restorer": "rdo>irsde"}
    both = pd.concat([records, records.replace({"method": names})]).drop_duplicates()
    anchors = ["jpeg", "rdo>restorer", "rdo>irsde"]
    found = bd_table(both, ["psnr"], ["llicm", "llicm-irsde"], anchors, TASKS)
    pairs = COMPARISONS | {"other": ["llicm-irsde", "rdo>irsde"]}
    others = summary(found, METHODS, TASKS, pairs).set_index(["comparison", "task"])
    assert others["bd_rate"]["other", "mean"] == pytest.approx(-50)
    text = results_markdown(both, found, TASKS, pairs, "llicm", INTROS)
    assert "(`llicm-irsde` against `rdo → irsde`): mean BD-rate -50.0% [-50.0, -50.0] over the 2 of 2 tasks" in text
    only = found[found["test"] == "llicm"]
    assert "llicm-irsde" not in results_markdown(records, only, TASKS, COMPARISONS, "llicm", INTROS)


def test_seconds_are_published_apart_from_the_pipeline(tmp_path):
    values = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(values)
    out = tmp_path / "results/timing"
    assert write_timing(tmp_path, out) is False and not out.exists()
    steps = {method.name: method.steps for method in of_role(load(tmp_path / "params.yaml").methods, "steps")}
    assert sorted(steps.values()) == [1, 4, 10, 100]
    rows = [
        dict(method=m, family="irsde-steps", order="after", task=t, image="a", level="2", bytes=9, bpp=1.0, metric=k,
             value=v)
        for m in steps for t in TASKS for k, v in (("psnr", 20.0), ("ms_ssim", 0.9), ("niqe_fit", 4.0))
    ]  # fmt: skip
    write_records(rows, tmp_path / "results/records.parquet")
    (tmp_path / ".run/timing").mkdir(parents=True)
    pd.DataFrame({"method": list(steps), "seconds": [0.01 * n for n in steps.values()]}).to_csv(
        tmp_path / ".run/timing/irsde-steps.csv", index=False
    )
    assert write_timing(tmp_path, out) is True
    assert (out / "steps.png").stat().st_size > 5000 and pd.read_csv(out / "steps.csv")["seconds"].max() == 1.0


def test_strongest_is_the_one_with_least_gain(table):
    assert strongest(table, METHODS, "llicm", "noisy") == "rdo>restorer"


def test_points_and_restoration(records):
    points = mean_points(records)
    assert len(points) == 3 * 2 * 5
    assert np.allclose(restoration(records, TASKS)["gain"], 4.5)


def test_compressai_files(records, tmp_path):
    assert write_compressai(records, tmp_path) == 6
    found = json.loads((tmp_path / "noisy" / "rdo-then-restorer.json").read_text())["results"]
    assert found["bpp"] == sorted(found["bpp"]) and found["psnr-rgb"] == [20, 22, 24, 26, 28]


def test_results_in_words(records, table):
    text = results_markdown(records, table, TASKS, COMPARISONS, "llicm", INTROS)
    assert "mean BD-rate -50.0% [-50.0, -50.0] over the 2 of 2 tasks" in text
    assert "| gain | +4.50 | +4.50 |" in text


@pytest.fixture(scope="module")
def variants():
    """Gains over no-vlm by image: `both` always, `oracle` half the rate on top, `degradation-only` in one of two."""
    gains = {
        "no-vlm": (0, 0),
        "both": (0.25, 0.75),
        "oracle": (0.5, 1.5),
        "degradation-only": (-1, 1.5),
        "x>y": (-1, -2),
    }
    return pd.DataFrame(
        dict(method=m, family=m, order="after", task=t, image=i, level=str(level), bytes=1000,
             bpp=0.1 * 2**level, metric=metric, value=(20 if metric == "psnr" else 0.5 ) + size * (2.0 * level + gain))
        for m, both in gains.items() for t in TASKS for i, gain in zip("ab", both, strict=True) for level in range(5)
        for metric, size in (("ms_ssim", 0.04), ("psnr", 1.0))
    )  # fmt: skip


def test_ablation(variants):
    table = ablation(variants, "no-vlm", ["degradation-only", "both"], TASKS, ["ms_ssim", "psnr"])
    assert table[["method", "metric"]].to_numpy().tolist() == [
        [method, metric] for metric in ("ms_ssim", "psnr") for method in ("degradation-only", "both")
    ]
    assert set(table["anchor"]) == {"no-vlm"} and set(table["images"]) == {2}
    single = bd_table(variants, ["psnr"], ["both"], ["no-vlm"], TASKS)
    both = table.iloc[3]
    assert both["bd_rate"] == pytest.approx(single["bd_rate"].mean()) and both["tasks_defined"] == 2
    assert (both["noisy"], both["hazy"]) == pytest.approx(tuple(single["bd_quality"]))
    # BD-PSNR is the gain itself, so the four resamples of two images are 0.25, 0.5, 0.5, 0.75
    assert both["bd_quality"] == pytest.approx(0.5)
    ends = np.quantile([0.25, 0.5, 0.5, 0.75], [0.025, 0.975])
    assert (both["bd_quality_low"], both["bd_quality_high"]) == pytest.approx(tuple(ends))
    # 2 dB are a factor of 2 in rate
    assert both["bd_rate"] == pytest.approx(100 * (2**-0.25 - 1)) and both["bd_rate_low"] < both["bd_rate_high"] < 0
    with pytest.raises(UserError, match="no psnr of nonesuch"):
        ablation(variants, "no-vlm", ["nonesuch"], TASKS, ["psnr"])


TITLES = {
    "no-vlm": "no VLM", "degradation-only": "degradation embedding", "both": "both embeddings",
    "oracle": "task oracle (one-hot)", "x>y": "x → y",
}  # fmt: skip


def test_ablation_in_words(variants):
    tests = ["degradation-only", "both", "oracle", "x>y"]
    table = ablation(variants, "no-vlm", tests, TASKS, ["ms_ssim", "psnr"])
    lines = ablation_markdown(table, 1200, TITLES).splitlines()
    assert "equal budget of 1,200 updates" in lines[0] and "compared with no VLM" in lines[0]
    assert "the 2 test images" in lines[0] and "BD-quality per task" in lines[0]
    assert lines[2] == "| variant | mean BD-rate vs no VLM | tasks where defined | mean BD-PSNR (dB) | noisy | hazy |"
    assert lines[5] == "| both embeddings | -15.9% [-22.4, -8.9] | 2 of 2 | +0.50 [+0.27, +0.73] | +0.50 | +0.50 |"
    assert [line.split(" | ")[0] for line in lines[4:8]] == [
        "| degradation embedding", "| both embeddings", "| task oracle (one-hot)", "| x → y",
    ]  # fmt: skip
    assert lines[9] == (
        "By mean BD-PSNR against no VLM, "
        "degradation embedding: no difference shown at this size (its interval includes zero); "
        "both embeddings: helps (its interval excludes zero); "
        "task oracle (one-hot): helps (its interval excludes zero); "
        "x → y: hurts (its interval excludes zero)."
    )
    assert "mean BD-MS-SSIM (dB)" in lines[11] and len(lines) == 19


def test_ablation_says_what_is_undefined(variants):
    apart = variants.copy()
    apart.loc[(apart["method"] == "both") & (apart["task"] == "hazy"), "value"] += 30
    apart.loc[apart["method"] == "x>y", "bpp"] *= 1000
    text = ablation_markdown(ablation(apart, "no-vlm", ["both", "x>y"], TASKS, ["psnr"]), 1, TITLES)
    assert "| 1 of 2 | +15.50" in text and "x → y: cannot be compared." in text
    assert text.splitlines()[5].endswith("| n/a | n/a | n/a |")


def test_strips_at_matched_rate(tmp_path):
    """Also of a baseline whose restorer takes the true task."""
    torch.manual_seed(0)
    coarse = torch.rand(1, 3, 9, 9)
    photo = torch.nn.functional.interpolate(coarse, (70, 80), mode="bicubic")[0].clamp(0, 1)
    write_pairs({"a": photo, "b": photo.flip(1)}, tmp_path / "pairs", TASKS, 0.5, 0, "val", None)
    codec = CODECS.make("mean-scale", N=8, M=12, lambdas=[0.002, 0.06])
    codec.update()
    save_part(codec, tmp_path / "models" / "llicm" / "codec.safetensors")
    for name, context in (("llicm", None), ("oracle", {"words": TASKS})):
        restorer = RESTORERS.make("direct", width=8, blocks=[1, 1, 1], context=context)
        save_part(restorer, tmp_path / "models" / name / "restorer.safetensors")
    methods = [
        method("variant"),  # not in the table, so its weights (there are none) are not asked for
        method("llicm", "test", restorer="llicm"),
        method("jpeg>oracle", codec="jpeg", restorer="oracle", levels=(5.0, 95.0)),
    ]
    table = pd.DataFrame({
        "test": "llicm", "anchor": "jpeg>oracle", "task": TASKS, "metric": "psnr", "bd_quality": 0.0,
    })  # fmt: skip
    pairs, models = tmp_path / "pairs", tmp_path / "models"
    rows = strip_rows(table, methods, "llicm", TASKS, pairs, models, image="b", level=1, side=32)
    assert [task for task, _ in rows] == TASKS
    for _, columns in rows:
        assert [picture.shape for _, picture, _ in columns] == [(3, 32, 32)] * 6 and columns[-1][2] == "b"
        best, ours = (float(columns[i][2].split(" bpp")[0]) for i in (2, 4))
        assert best == pytest.approx(ours, rel=0.2) and columns[1][2].startswith("jpeg → oracle")


def test_failures_are_what_is_worse_than_doing_nothing():
    def rows(method, task, metric, values, level="none", bpp=24.0):
        names = {"method": method, "task": task, "metric": metric, "level": level, "bpp": bpp}
        return [names | {"image": image, "value": value} for image, value in values.items()]

    records = pd.DataFrame([
        *rows("degraded", "noisy", "psnr", {"a": 20.0, "b": 30.0, "c": 25.0}),
        *rows("degraded", "clean", "psnr", {"a": 80.0, "b": 80.0}),
        *rows("llicm", "noisy", "psnr", {"a": 10.0, "b": 10.0, "c": 10.0}, "0", 0.1),  # lower rates do not count
        *rows("llicm", "noisy", "psnr", {"a": 21.0, "b": 29.0, "c": 25.0}, "1", 0.2),
        *rows("llicm", "clean", "psnr", {"a": 40.0, "b": 41.0}, "1", 0.2),
        *rows("llicm", "clean", "harm", {"a": -0.5, "b": 2.0}, "1", 0.2),
        *rows("other", "noisy", "psnr", {"a": 1.0}, "1", 0.2),
    ])  # fmt: skip
    found = failures(records, "llicm")[["task", "image", "level", "change"]].values.tolist()
    assert found == [["clean", "b", "1", -2.0], ["noisy", "b", "1", -1.0]]


def test_sliders_are_html_without_a_blank_line_and_escaped(tmp_path):
    columns = [(f"picture {i}\n<b>", torch.full((3, 4, 6), i / 2), "1 dB") for i in range(3)]
    write_sliders(tmp_path / "page.md", "Title", "Text.", {"a & b": columns}, 0, 2)
    text = (tmp_path / "page.md").read_text()
    figure = text[text.index("<figure") : text.index("</figure>")]
    assert "\n\n" not in figure and "<b>" not in text and figure.count("&lt;b&gt;: 1 dB") == 2 + 6
    assert re.findall(r'class="(\w+)" src="([^"]+)"', figure) == [("left", "page-0-0.png"), ("right", "page-0-2.png")]
    assert re.findall(r'value="(\S+)" selected', figure) == ["page-0-0.png", "page-0-2.png"]
    assert 'type="range"' in figure and read_image(tmp_path / "page-0-2.png").shape == (3, 4, 6)


def test_recognition_is_given_by_level_in_percent():
    share = {"none": 0.5, "0": 0.25, "4": 1.0}
    names = ("accuracy_of_all_words", "accuracy_of_tasks", "accuracy_of_tasks_among_tasks")
    text = recognition_markdown(dict.fromkeys(names, share) | {"images_per_level": 99})
    assert "| | uncompressed | level 0 | level 4 |" in text and "(99 a level)" in text
    assert text.count("| 50% | 25% | 100% |") == 3


def test_the_strongest_baseline_is_no_other_form_of_llicm(records):
    methods = [*METHODS, method("other", "test"), method("alone", "specialist")]
    assert baselines(methods) == {"jpeg", "rdo>restorer"}
    more = records[records["method"] == "llicm"].assign(method="other")
    table = bd_table(pd.concat([records, more]), ["psnr"], ["llicm"], ["jpeg", "rdo>restorer", "other"], TASKS)
    assert strongest(table, methods, "llicm", "noisy") == "rdo>restorer"
    with pytest.raises(UserError, match="No baseline shares a range of rates with llicm on noisy"):
        strongest(table, [LLICM], "llicm", "noisy")


def test_headline_against_the_strongest(records, table):
    found = headline(records, table, METHODS, TASKS, "llicm")
    assert list(found["task"]) == [*TASKS, "mean"] and set(found["anchor"]) == {"rdo>restorer", ""}
    assert found["bd_rate"].tolist() == pytest.approx([-50.0] * 3)
    assert (found["bd_rate_low"] <= found["bd_rate"]).all() and (found["bd_rate"] <= found["bd_rate_high"]).all()
    text = headline_markdown(found)
    assert "| **mean** |" in text and "| noisy | rdo → restorer | -50.0% [-50.0, -50.0] |" in text
    latex = headline_latex(found)
    assert latex.count(r"\\") == 4 and r"-50.0\% [-50.0, -50.0]" in latex and r"rdo $\rightarrow$ restorer" in latex
    assert "→" not in latex and "*" not in latex


def test_all_tables_are_written(records, tmp_path):
    table = write_comparisons(records, ["psnr"], METHODS, TASKS, tmp_path, "llicm", COMPARISONS)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"bd_rate.csv.gz", "bd_rate.md", "interpolations.csv.gz", "headline.tex", "non_monotone.md"} <= names
    rows = table[table["anchor"] == "rdo>restorer"]
    assert (rows["bd_rate_low"] <= -49.99).all() and (rows["defined_rate"] == 1).all()
    assert "| rdo → restorer | -50.0% [-50.0, -50.0] |" in full_markdown(table, TASKS, "llicm")
    assert "0 of 3" in non_monotone_markdown(pd.read_csv(tmp_path / "non_monotone.csv.gz"), TASKS)


def test_the_form_with_a_prefilter_has_its_own_headline(records, tmp_path):
    """At equal rate 1 dB above LL-ICM, and its own separate parts 0.5 dB below that."""
    for old, name, gain in (("llicm", "llicm-prefilter", 1.0), ("rdo>restorer", "restorer>rdo>adapted", 0.5)):
        more = records[records["method"] == old].assign(method=name)
        records = pd.concat([records, more.assign(value=more["value"] + gain)])
    methods = [
        *METHODS,
        method("restorer>rdo>adapted", codec="rdo", prefilter="restorer", restorer="adapted"),
        method("llicm-prefilter", "test", prefilter="llicm-prefilter", restorer="llicm-prefilter"),
    ]
    pairs = COMPARISONS | {
        "prefilter_against_strongest": ["llicm-prefilter", "strongest"],
        "other": ["llicm-prefilter", "restorer>rdo>adapted"],
    }
    assert headline_tests(methods, "llicm", pairs) == ["llicm", "llicm-prefilter"]
    assert headline_tests(METHODS, "llicm", pairs) == ["llicm"]
    table = write_comparisons(records, ["psnr"], methods, TASKS, tmp_path, "llicm", pairs)
    ours, theirs = (pd.read_csv(tmp_path / f"headline{end}.csv") for end in ("", "_prefilter"))
    assert set(ours["anchor"][:2]) == set(theirs["anchor"][:2]) == {"restorer>rdo>adapted"}
    assert ours["bd_quality"].tolist() == pytest.approx([1.5] * 3)
    assert theirs["bd_quality"].tolist() == pytest.approx([2.5] * 3)
    assert table.groupby("test")["bd_rate_low"].apply(lambda v: v.notna().any()).all()
    numbers = summary(table, methods, TASKS, pairs).set_index(["comparison", "task"])
    assert all(numbers["anchor"]["prefilter_against_strongest", task] == "restorer>rdo>adapted" for task in TASKS)
    assert numbers["bd_psnr"]["other", "mean"] == pytest.approx(2.5)
    text = results_markdown(records, table, TASKS, pairs, "llicm", INTROS)
    assert "(`llicm-prefilter` against `restorer → rdo → adapted`): mean BD-rate" in text


def test_specialists_are_compared_on_the_task_that_they_were_measured_on(records):
    alone = {"noisy": "llicm-noisy", "hazy": "llicm-hazy"}
    for task, gain in (("noisy", 1.0), ("hazy", -1.0)):
        more = records[(records["method"] == "llicm") & (records["task"] == task)].assign(method=alone[task])
        records = pd.concat([records, more.assign(value=more["value"] + gain)])
    methods = [*METHODS, *(method(name, "specialist") for name in (*alone.values(), "not-measured"))]
    assert specialists(records, methods, TASKS) == alone
    table = versus(records, ["psnr"], "llicm", alone)
    assert table["bd_quality"].tolist() == pytest.approx([-1, 1, 0]) and table["tasks_defined"].tolist() == [1, 1, 2]
    text = headline_markdown(table, rival="specialist")
    assert "| task | specialist | BD-rate, PSNR |" in text and "| noisy | llicm-noisy | +41.4%" in text
    single = versus(records, ["psnr"], "llicm", {"noisy": "llicm-noisy"})
    assert single["task"].tolist() == ["noisy", "mean"] and headline_markdown(single).count("+41.4%") == 2


def test_where_metrics_disagree():
    rows = [
        {"test": "llicm", "anchor": anchor, "task": "noisy", "metric": metric, "bd_quality": value}
        for anchor, values in {
            "webp": (1, 1, -1, 1), "rdo": (-1, -1, 2, -1), "jpeg": (1, -1, 1, 1), "llicm-irsde": (1, 1, -1, -1)
        }.items()
        for metric, value in zip(("psnr", "ms_ssim", "niqe_fit", "piqe"), values, strict=True)
    ]  # fmt: skip
    methods = [*(method(name) for name in ("webp", "rdo", "jpeg")), method("llicm-irsde", "test")]
    found = disagreements(pd.DataFrame(rows), methods, "llicm").set_index("anchor")
    assert set(found.index) == {"webp", "rdo"}  # on jpeg the FR metrics differ; llicm-irsde is no baseline
    assert found.loc["rdo", ["full_reference", "niqe_fit", "piqe"]].tolist() == ["worse", "better", "worse"]
    text = disagreements_markdown(found.reset_index())
    assert "On 2 comparisons" in text and "| NIQE (own fit) | 100% | 100% |" in text and "| PIQE | 0% | 0% |" in text


def test_further_sets(records):
    more = records.assign(task=records["task"].map({"noisy": "clean", "hazy": "hazy@0.8"}))
    text = extra_markdown(more, ["clean", "hazy@0.8"], "llicm", ["rdo>restorer"])
    assert text.count("| -50.0% |") == 2 and "| hazy@0.8 |" in text


def test_budgets_of_a_prefilter():
    """One that is another model's restorer has that model's updates, one that is trained on has its own besides."""
    params = load(ROOT / "profiles/smoke/params.yaml")
    given = budgets(params.methods, params.models, params.training).set_index("method")["prefilter_updates"]
    separately = params.training.pretraining + params.training.fine_tuning
    assert given["restorer>rdo"] == separately and given["rdo>restorer"] == 0
    assert given["llicm"] == separately + params.training.fine_tuning


def test_budgets_of_the_default_study(tmp_path):
    """Every trained part of the compared methods has the same number of updates; what differs is told."""
    params = load(ROOT / "params.yaml")
    given = budgets(params.methods, params.models, params.training).set_index("method")
    whole = params.training.pretraining + params.training.fine_tuning
    for method in ("rdo>restorer", "restorer>rdo", "rdo>adapted", "llicm"):
        assert given.loc[method, ["codec_updates", "restorer_updates"]].tolist() == [whole, whole], method
    for method in ("webp>restorer", "webp>adapted", "avif>adapted", "restorer>heic"):
        assert given.loc[method, ["codec_updates", "restorer_updates"]].tolist() == [0, whole], method
    assert given.loc["webp", "restorer_updates"] == 0 and given.loc["avif>adapted", "codec"] == "avif"
    steps = params.models["irsde"].updates
    assert given.loc["rdo>irsde", "restorer_updates"] == given.loc["llicm-irsde", "restorer_updates"] == steps
    assert given.loc["llicm-irsde", "codec_updates"] > whole  # it goes on from the finished codec
    # Where published weights take the place of pretraining, what a study adds to them is the same for all.
    for name in ("rdo", "restorer"):
        (tmp_path / f"{name}.safetensors").touch()
    given = budgets(params.methods, params.models, params.training, tmp_path).set_index("method")
    fine_tuning = params.training.fine_tuning
    for method in ("rdo>restorer", "restorer>rdo", "rdo>adapted", "llicm"):
        assert given.loc[method, ["codec_updates", "restorer_updates"]].tolist() == [fine_tuning, fine_tuning], method
    assert given.loc["rdo>irsde", "restorer_updates"] == steps


def test_crops_say_how_much_is_kept(tmp_path):
    photo = torch.nn.functional.interpolate(torch.rand(1, 3, 9, 9), (70, 80), mode="bicubic")[0].clamp(0, 1)
    write_pairs({"a": photo}, tmp_path / "pairs", ["noisy"], 0.5, 0, "val", None)
    webp = method("webp", levels=(5.0, 50.0, 95.0))
    crops = kept_crops(webp, "noisy", tmp_path / "pairs", tmp_path, side=32)
    shares = [int(note.split(", ")[1].split("%")[0]) for _, _, note in crops[2:]]
    assert len(crops) == 5 and shares == sorted(shares) and shares[-1] > shares[0] + 10


def test_what_a_run_took_is_published(tmp_path):
    hosts, timing = tmp_path / ".run/hosts", tmp_path / ".run/timing"
    for folder in (hosts, timing, tmp_path / "out"):
        folder.mkdir(parents=True)
    (tmp_path / "out/stages.json").write_text(json.dumps({"vlm": {"seconds": 1}, "train@a": {"seconds": 2}}))
    (hosts / "train@a.json").write_text(json.dumps({"seconds": 3}))
    (timing / "webp.json").write_text(json.dumps({"single": 9.0, "wall": 5.0, "workers": 2, "share": 0.9, "by": {}}))
    assert write_runs(tmp_path, tmp_path / "out") == 2
    assert json.loads((tmp_path / "out/stages.json").read_text()) == {"train@a": {"seconds": 3}, "vlm": {"seconds": 1}}
    assert pd.read_csv(tmp_path / "out/evaluation.csv").to_dict("records")[0]["share"] == 0.9


def test_a_diffusion_restorer_is_known_by_its_steps():
    """Also where it comes from another model, or the method sets another number."""
    params = load(ROOT / "params.yaml")
    steps = {method.name: sampling_steps(method, params.models) for method in params.methods}
    own = params.models["irsde"].restorer.steps
    assert {name for name, number in steps.items() if number == own} == {"rdo>irsde", "llicm-irsde", "irsde-4"}
    assert {name: n for name, n in steps.items() if n not in (None, own)} == {
        "irsde-1": 1, "irsde-10": 10, "irsde-100": 100
    }  # fmt: skip


@pytest.fixture(scope="module")
def parameters():
    """Those of the default study for two tasks and the methods of the records."""
    changes = {"tasks": TASKS, "extra": [], "figures.comparisons": COMPARISONS, "figures.dpi": 20}
    return change(read(ROOT / "params.yaml"), changes)


@pytest.fixture
def study(records, parameters, tmp_path):
    more = records[records["method"] == "llicm"]
    variants = [more.assign(method=name, family=name) for name in ("no-vlm", "both")]
    steps = [more[more["level"] == "2"].assign(method=f"irsde-{n}", family="irsde-steps") for n in (1, 10)]
    probes = [
        records[records["method"] == name].assign(metric=probe, value=0.5)
        for name, probe in (("jpeg", "kept"), ("llicm", "kept"), ("llicm", "bpp_estimated"))
    ]
    lost = {"llicm": [0.1, 0.6], "rdo>restorer": [0.0, 29.0]}  # dB, of the images of each level
    for name, values in lost.items():
        of = records[(records["method"] == name) & (records["task"] == TASKS[0]) & (records["metric"] == "psnr")]
        of = of.assign(task="clean", metric="harm")
        probes.append(of.assign(value=[values[n % 2] for n in of.groupby("level").cumcount()]))
    return Study(pd.concat([records, *variants, *steps, *probes]), parameters, tmp_path / "results", tmp_path)


def test_a_study_compares_forms_of_llicm_with_baselines(study):
    assert [method.name for method in study.compared] == ["jpeg", "rdo>restorer", "llicm"]
    assert set(study.records["method"]) == {"jpeg", "rdo>restorer", "llicm", "degraded", "restored"}
    assert study.metrics == ["psnr"]


def test_every_section_writes_its_files(study, tmp_path):
    assert sections.keep_records(study).endswith("3 methods, 2 tasks, metrics psnr")
    assert sections.curves(study).name == "figure_4_psnr.png"
    table = sections.compare(study)
    assert sections.interactive(study, table).startswith("- **noisy**: llicm is best from ")
    assert {path.name for path in (tmp_path / "curves").iterdir()} == {"better.md", "curves.html"}
    assert "| jpeg |" in sections.results(study, table)
    assert "| noisy | rdo → restorer | -50.0% [-50.0, -50.0] |" in sections.headline(study, table)
    assert json.loads((study.out / "metrics.json").read_text())["restorer_gain_db"] == 4.5
    assert (study.tables / "comparisons.csv").is_file()
    assert sections.hidden(study).is_file()
    assert "| llicm |" in (text := sections.harm(study)) and "-0.60 dB" in text and "-29.00 dB" in text
    numbers = json.loads((study.out / "metrics.json").read_text())
    assert numbers["harm_worst_db"] == -0.6 and numbers["harm_share"] == 0.5
    assert sections.extra_sets(study) == "No further sets in these parameters.\n"
    assert "both embeddings: no difference shown" in sections.ablation(study)
    assert sections.specialists(study) == "No specialists in these parameters.\n"
    assert sections.diffusion_steps(study).is_file()
    assert (study.tables / "non_monotone.md").is_file() and (study.tables / "compressai/noisy/llicm.json").is_file()


def test_a_benchmark_on_other_photos_is_one_folder(records, parameters, tmp_path):
    """Ablations are no rivals, and methods that were not measured are not asked for."""
    sections.elsewhere(Study(records, parameters, tmp_path / "out", flat=True))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"records.parquet", "records.csv.gz", "rate_perception_psnr.png", "bd_psnr.png", "headline.md"} <= names
    assert all(path.is_file() for path in (tmp_path / "out").iterdir())


def _measured(parameters, groups, task="noisy"):
    """What a benchmark of these codec groups records on one task, with the metrics and images of each."""
    rows = []
    for method in (m for m in parameters.methods if m.group in groups):
        group = parameters.benchmark[method.group]
        names = (group.metrics or ["psnr", "piqe"]) + ["kept"]
        for number, level in enumerate(method.levels):
            bpp = 24.0 if method.codec == "raw" else (0.05 if method.role == "baseline" else 0.04) * 2 ** (number + 1)
            rows += [
                dict(method=method.name, family=method.group, order=method.order, task=task, image=image, level=level,
                     bytes=99, bpp=bpp, metric=name, value=0.5 + number / 9 if name == "ms_ssim" else 20.0 + number)
                for image in "abc"[: group.images] for name in names
            ]  # fmt: skip
    return pd.DataFrame(rows).astype({"level": str})


def test_any_choice_of_codec_groups_gives_a_report(tmp_path):
    """`--groups webp` alone ended in KeyError: 'test'."""
    params = change(read(ROOT / "params.yaml"), {"tasks": ["noisy"], "extra": [], "figures.dpi": 20})
    of_each_role = {group.role: [name] for name, group in params.benchmark.items()}
    for number, choice in enumerate([*of_each_role.values(), ["webp"], ["rdo", "llicm"], ["no-vlm", "both"]]):
        out = tmp_path / str(number)
        sections.elsewhere(Study(_measured(params, {"raw", *choice}), params, out, flat=True))
        assert (out / "records.parquet").is_file(), choice
        drawn = [m for m in params.methods if m.group in choice and m.role != "reference"]
        assert (out / "rate_perception_psnr.png").is_file() == bool(drawn), choice
        assert (out / "headline.md").is_file() == (choice == ["rdo", "llicm"]), choice


@pytest.mark.parametrize(("rates", "metrics"), [(100, ["psnr"]), (1, ["piqe"])])
def test_what_cannot_be_compared_with_a_baseline_has_no_headline(records, parameters, tmp_path, rates, metrics):
    """Rates that do not meet, or no PSNR: everything was measured, and then the report failed."""
    far = records["method"].isin(["jpeg", "rdo>restorer"])
    others = records.assign(bpp=records["bpp"].where(~far, records["bpp"] * rates), metric=metrics[0])
    sections.elsewhere(Study(others, parameters, tmp_path / "out", flat=True))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"bd_rate.csv.gz", "non_monotone.md", f"rate_perception_{metrics[0]}.png"} <= names
    assert "headline.md" not in names
