# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from llicm.benchmark.bdrate import bd_table
from llicm.benchmark.records import write_records
from llicm.codec.mean_scale import make_codec
from llicm.data.pairs import write_pairs
from llicm.errors import UserError
from llicm.framework import save_part
from llicm.report.tables import (
    README_TABLES,
    ablation,
    ablation_markdown,
    non_monotone_markdown,
    budgets,
    disagreements,
    disagreements_markdown,
    extra_markdown,
    full_markdown,
    headline_latex,
    headline_markdown,
    headline_table,
    is_baseline,
    kept_crops,
    mean_points,
    readme_results,
    recognition_markdown,
    restoration,
    specialists,
    steps_of,
    strip_rows,
    strongest,
    summary,
    update_readme,
    versus_table,
    write_comparisons,
    write_compressai,
    write_runs,
    write_timing,
)
from llicm.restore.direct import make_restorer
from llicm.pipeline.parameters import load

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


def test_the_diffusion_restorer_has_its_own_headline(records):
    names = {"llicm": "llicm-irsde", "rdo>restorer": "rdo>irsde"}
    both = pd.concat([records, records.replace({"method": names})]).drop_duplicates()
    anchors = ["jpeg", "rdo>restorer", "rdo>irsde"]
    found = bd_table(both, ["psnr"], ["llicm", "llicm-irsde"], anchors, TASKS)
    assert summary(both, found, TASKS)["llicm_irsde_against_codec_then_irsde"]["bd_rate_mean"] == pytest.approx(-50)
    text = readme_results(both, found, TASKS)
    assert "(`llicm-irsde` against `rdo → irsde`): mean BD-rate -50.0% [-50.0, -50.0] over the 2 of 2 tasks" in text
    assert "llicm-irsde" not in readme_results(records, found[found["test"] == "llicm"], TASKS)


def test_seconds_are_published_apart_from_the_pipeline(tmp_path):
    values = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(values)
    out = tmp_path / "results/timing"
    assert write_timing(tmp_path, out) is False and not out.exists()
    family = load(tmp_path / "params.yaml")["families"]["irsde-steps"]
    steps = steps_of(family)
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


def test_ablation_in_words(variants):
    tests = ["degradation-only", "both", "oracle", "x>y"]
    table = ablation(variants, "no-vlm", tests, TASKS, ["ms_ssim", "psnr"])
    lines = ablation_markdown(table, 1200).splitlines()
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
    text = ablation_markdown(ablation(apart, "no-vlm", ["both", "x>y"], TASKS, ["psnr"]), 1)
    assert "| 1 of 2 | +15.50" in text and "x → y: cannot be compared." in text
    assert text.splitlines()[5].endswith("| n/a | n/a | n/a |")


FILES = README_TABLES


@pytest.mark.parametrize("name", FILES)
def test_readme_shows_the_published_results(name):
    """The README's tables are those that the pipeline wrote."""
    shown = (ROOT / "README.md").read_text().split(f"<!-- {name}:begin -->\n")[1].split(f"<!-- {name}:end -->")[0]
    assert shown.strip() == (ROOT / "results" / FILES[name]).read_text().strip()


def test_strips_at_matched_rate(tmp_path):
    """Also of a baseline that must be told the task."""
    torch.manual_seed(0)
    coarse = torch.rand(1, 3, 9, 9)
    photo = torch.nn.functional.interpolate(coarse, (70, 80), mode="bicubic")[0].clamp(0, 1)
    write_pairs({"a": photo, "b": photo.flip(1)}, tmp_path / "pairs", TASKS, 0.5, 0, "val", None)
    codec = make_codec("mean-scale", N=8, M=12, lambdas=[0.002, 0.06])
    codec.update()
    save_part(codec, tmp_path / "models" / "llicm" / "codec.safetensors")
    for name, context in (("llicm", None), ("oracle", {"words": TASKS})):
        restorer = make_restorer("direct", width=8, blocks=[1, 1, 1], context=context)
        save_part(restorer, tmp_path / "models" / name / "restorer.safetensors")
    families = {
        # not in the table, so their weights (there are none) are not asked for
        "raw": {"codec": "raw", "models": "none", "methods": {"degraded": "alone", "restored": "after"}, "levels": [0]},
        "variant": {"codec": "learned", "models": "none", "methods": {"variant": "after"}, "levels": [0, 1]},
        "llicm": {"codec": "learned", "models": "llicm", "methods": {"llicm": "after"}, "levels": [0, 1]},
        "oracle": {"codec": "jpeg", "models": "oracle", "methods": {"jpeg>oracle": "after"}, "levels": [5, 95]},
    }
    table = pd.DataFrame({
        "test": "llicm", "anchor": "jpeg>oracle", "task": TASKS, "metric": "psnr", "bd_quality": 0.0,
    })  # fmt: skip
    rows = strip_rows(
        table, TASKS, families, tmp_path / "models", tmp_path / "vlm", tmp_path / "pairs", image="b", level=1, side=32
    )
    assert [task for task, _ in rows] == TASKS
    for _, columns in rows:
        assert [picture.shape for _, picture, _ in columns] == [(3, 32, 32)] * 6 and columns[-1][2] == "b"
        best, ours = (float(columns[i][2].split(" bpp")[0]) for i in (2, 4))
        assert best == pytest.approx(ours, rel=0.2) and columns[1][2].startswith("jpeg → oracle")


def test_readme_is_updated_between_its_markers(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n" + "".join(f"<!-- {n}:begin -->\nold\n<!-- {n}:end -->\nafter\n" for n in FILES))
    with pytest.raises(UserError, match="dvc repro"):
        update_readme(readme, tmp_path)
    for file in FILES.values():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(f"| new {file} |\n")
    for _ in range(2):
        update_readme(readme, tmp_path)
        assert readme.read_text() == "before\n" + "".join(
            f"<!-- {n}:begin -->\n| new {file} |\n<!-- {n}:end -->\nafter\n" for n, file in FILES.items()
        )
    readme.write_text("no markers\n")
    with pytest.raises(UserError, match="markers"):
        update_readme(readme, tmp_path)
    assert readme.read_text() == "no markers\n"


def test_recognition_is_given_by_level_in_percent():
    share = {"none": 0.5, "0": 0.25, "4": 1.0}
    names = ("accuracy_of_all_words", "accuracy_of_tasks", "accuracy_of_tasks_among_tasks")
    text = recognition_markdown(dict.fromkeys(names, share) | {"images_per_level": 99})
    assert "| | uncompressed | level 0 | level 4 |" in text and "(99 a level)" in text
    assert text.count("| 50% | 25% | 100% |") == 3


def test_the_strongest_baseline_is_no_other_form_of_llicm(records):
    assert is_baseline("rdo>adapted") and not is_baseline("llicm") and not is_baseline("llicm-irsde")
    more = records[records["method"] == "llicm"].assign(method="llicm-irsde")
    table = bd_table(pd.concat([records, more]), ["psnr"], ["llicm"], ["jpeg", "rdo>restorer", "llicm-irsde"], TASKS)
    assert strongest(table, "llicm", "psnr", "noisy") == "rdo>restorer"


def test_headline_against_the_strongest(records, table):
    found = headline_table(records, table, TASKS)
    assert list(found["task"]) == [*TASKS, "mean"] and set(found["anchor"]) == {"rdo>restorer", ""}
    assert found["bd_rate"].tolist() == pytest.approx([-50.0] * 3)
    assert (found["bd_rate_low"] <= found["bd_rate"]).all() and (found["bd_rate"] <= found["bd_rate_high"]).all()
    text = headline_markdown(found)
    assert "| **mean** |" in text and "| noisy | rdo → restorer | -50.0% [-50.0, -50.0] |" in text
    latex = headline_latex(found)
    assert latex.count(r"\\") == 4 and r"-50.0\% [-50.0, -50.0]" in latex and r"rdo $\rightarrow$ restorer" in latex
    assert "→" not in latex and "*" not in latex


def test_all_tables_are_written(records, tmp_path):
    table = write_comparisons(records, ["psnr"], ["llicm", "jpeg", "rdo>restorer"], TASKS, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"bd_rate.csv.gz", "bd_rate.md", "interpolations.csv.gz", "headline.tex", "non_monotone.md"} <= names
    rows = table[table["anchor"] == "rdo>restorer"]
    assert (rows["bd_rate_low"] <= -49.99).all() and (rows["defined_rate"] == 1).all()
    assert "| rdo → restorer | -50.0% [-50.0, -50.0] |" in full_markdown(table, TASKS)
    assert "0 of 3" in non_monotone_markdown(pd.read_csv(tmp_path / "non_monotone.csv.gz"), TASKS)


def test_the_form_with_a_prefilter_has_its_own_headline(records, tmp_path):
    """At equal rate 1 dB above LL-ICM, and its own separate parts 0.5 dB below that."""
    for method, name, gain in (("llicm", "llicm-prefilter", 1.0), ("rdo>restorer", "restorer>rdo>adapted", 0.5)):
        more = records[records["method"] == method].assign(method=name)
        records = pd.concat([records, more.assign(value=more["value"] + gain)])
    methods = ["llicm", "jpeg", "rdo>restorer", "restorer>rdo>adapted", "llicm-prefilter"]
    table = write_comparisons(records, ["psnr"], methods, TASKS, tmp_path)
    ours, theirs = (pd.read_csv(tmp_path / f"headline{end}.csv") for end in ("", "_prefilter"))
    assert set(ours["anchor"][:2]) == set(theirs["anchor"][:2]) == {"restorer>rdo>adapted"}
    assert ours["bd_quality"].tolist() == pytest.approx([1.5] * 3)
    assert theirs["bd_quality"].tolist() == pytest.approx([2.5] * 3)
    assert table.groupby("test")["bd_rate_low"].apply(lambda v: v.notna().any()).all()
    numbers = summary(records, table, TASKS)
    assert numbers["llicm_prefilter_against_strongest"]["anchor"] == dict.fromkeys(TASKS, "restorer>rdo>adapted")
    assert numbers["llicm_prefilter_against_the_same_separately"]["bd_psnr_mean"] == pytest.approx(2.5)
    text = readme_results(records, table, TASKS)
    assert "(`llicm-prefilter` against `restorer → rdo → adapted`): mean BD-rate" in text


def test_specialists_are_those_of_families_with_one_task(records):
    families = {
        "llicm": {"methods": {"llicm": "after"}},
        "llicm-noisy": {"tasks": ["noisy"], "methods": {"llicm-noisy": "after"}},
        "two": {"tasks": TASKS, "methods": {"two": "after"}},
        "llicm-hazy": {"tasks": ["hazy"], "methods": {"llicm-hazy": "after"}},
    }
    alone = specialists(families)
    assert alone == {"noisy": "llicm-noisy", "hazy": "llicm-hazy"}
    for task, gain in (("noisy", 1.0), ("hazy", -1.0)):
        more = records[(records["method"] == "llicm") & (records["task"] == task)].assign(method=alone[task])
        records = pd.concat([records, more.assign(value=more["value"] + gain)])
    table = versus_table(records, ["psnr"], "llicm", alone)
    assert table["bd_quality"].tolist() == pytest.approx([-1, 1, 0]) and table["tasks_defined"].tolist() == [1, 1, 2]
    text = headline_markdown(table, rival="specialist")
    assert "| task | specialist | BD-rate, PSNR |" in text and "| noisy | llicm-noisy | +41.4%" in text
    single = versus_table(records, ["psnr"], "llicm", {"noisy": "llicm-noisy"})
    assert single["task"].tolist() == ["noisy", "mean"] and headline_markdown(single).count("+41.4%") == 2


def test_where_metrics_disagree():
    rows = [
        {"test": "llicm", "anchor": anchor, "task": "noisy", "metric": metric, "bd_quality": value}
        for anchor, values in {
            "webp": (1, 1, -1, 1), "rdo": (-1, -1, 2, -1), "jpeg": (1, -1, 1, 1), "llicm-irsde": (1, 1, -1, -1)
        }.items()
        for metric, value in zip(("psnr", "ms_ssim", "niqe_fit", "piqe"), values, strict=True)
    ]  # fmt: skip
    found = disagreements(pd.DataFrame(rows)).set_index("anchor")
    assert set(found.index) == {"webp", "rdo"}  # on jpeg the FR metrics differ; llicm-irsde is no baseline
    assert found.loc["rdo", ["full_reference", "niqe_fit", "piqe"]].tolist() == ["worse", "better", "worse"]
    text = disagreements_markdown(found.reset_index())
    assert "On 2 comparisons" in text and "| NIQE (own fit) | 100% | 100% |" in text and "| PIQE | 0% | 0% |" in text


def test_further_sets(records):
    more = records.assign(task=records["task"].map({"noisy": "clean", "hazy": "hazy@0.8"}))
    text = extra_markdown(more, ["clean", "hazy@0.8"], ["rdo>restorer"])
    assert text.count("| -50.0% |") == 2 and "| hazy@0.8 |" in text


def test_budgets_of_the_default_study(tmp_path):
    """Every trained part of the compared methods has the same number of updates; what differs is told."""
    params = load(ROOT / "params.yaml")
    given = budgets(params["families"], params["arms"], params["training"]).set_index("method")
    whole = params["training"]["trunk"] + params["training"]["branch"]
    for method in ("rdo>restorer", "restorer>rdo", "rdo>adapted", "llicm"):
        assert given.loc[method, ["codec_updates", "restorer_updates"]].tolist() == [whole, whole], method
    for method in ("webp>restorer", "webp>adapted", "avif>adapted", "restorer>heic"):
        assert given.loc[method, ["codec_updates", "restorer_updates"]].tolist() == [0, whole], method
    assert given.loc["webp", "restorer_updates"] == 0 and given.loc["avif>adapted", "codec"] == "avif"
    steps = params["arms"]["irsde"]["steps"]
    assert given.loc["rdo>irsde", "restorer_updates"] == given.loc["llicm-irsde", "restorer_updates"] == steps
    assert given.loc["llicm-irsde", "codec_updates"] > whole  # it goes on from the finished codec
    # Where published weights take the place of trunks, what a study adds to them is the same for all.
    for name in ("codec", "restorer"):
        (tmp_path / f"{name}.safetensors").touch()
    given = budgets(params["families"], params["arms"], params["training"], tmp_path).set_index("method")
    branch = params["training"]["branch"]
    for method in ("rdo>restorer", "restorer>rdo", "rdo>adapted", "llicm"):
        assert given.loc[method, ["codec_updates", "restorer_updates"]].tolist() == [branch, branch], method
    assert given.loc["rdo>irsde", "restorer_updates"] == steps


def test_crops_say_how_much_is_kept(tmp_path):
    photo = torch.nn.functional.interpolate(torch.rand(1, 3, 9, 9), (70, 80), mode="bicubic")[0].clamp(0, 1)
    write_pairs({"a": photo}, tmp_path / "pairs", ["noisy"], 0.5, 0, "val", None)
    families = {"webp": {"codec": "webp", "models": "none", "methods": {"webp": "alone"}, "levels": [5, 50, 95]}}
    crops = kept_crops("webp", "noisy", families, tmp_path, side=32)
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
