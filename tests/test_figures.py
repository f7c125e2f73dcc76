# SPDX-License-Identifier: Apache-2.0
"""Figures and tables from synthetic records of the size of the default study."""

import io
import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from llicm.benchmark.bdrate import bd_table
from llicm.errors import UserError
from llicm.methods import Method
from llicm.report import figures
from llicm.report.lines import line_styles
from llicm.report.pictures import picture_rows
from llicm.report.recognition import confusion
from llicm.report.style import WIDTH, save_figure
from llicm.report.tables import bd_markdown

TASKS = ["noisy", "rainy", "hazy", "low-light", "motion-blurry", "snowy"]
METHODS = {  # name -> family, order
    f"{before}{codec}{after}": (codec, order)
    for codec in ("jpeg", "webp", "rdo")
    for before, after, order in (("", "", "alone"), ("", ">restorer", "after"), ("restorer>", "", "before"))
} | {"rdo>adapted": ("adapted", "after"), "llicm": ("llicm", "after")}
PLACES = {"alone": (None, None), "after": (None, "restorer"), "before": ("restorer", None)}
TYPED = {
    name: Method(name, group, "baseline", group, group not in ("jpeg", "webp"), *PLACES[order], (0.0,))
    for name, (group, order) in METHODS.items()
}
RATES = {"jpeg": (0.28, 3.2), "webp": (0.2, 2.4), "rdo": (0.12, 1.1), "adapted": (0.12, 1.1), "llicm": (0.11, 1.0)}
INPUT = {"noisy": 22.0, "rainy": 24.5, "hazy": 14.5, "low-light": 9.5, "motion-blurry": 24.0, "snowy": 20.5}
GAIN = {"noisy": 6.0, "rainy": 3.5, "hazy": 5.0, "low-light": 9.0, "motion-blurry": 1.6, "snowy": 4.0}


def study():
    """Plausible records: restoration lifts the ceiling that a codec approaches; noise coded is quality lost."""
    generator, rows = np.random.default_rng(0), []
    codec_loss = {"jpeg": 9.0, "webp": 6.0, "rdo": 5.0, "adapted": 4.6, "llicm": 4.0}
    for method, (family, order) in METHODS.items():
        for task in TASKS:
            share = {"alone": 0.0, "after": 0.72, "before": 0.9}[order]
            share = {"adapted": 0.88, "llicm": 1.0}.get(family, share)
            for level, rate in enumerate(np.geomspace(*RATES[family], 5)):
                for image in range(3):
                    bpp = rate * (0.8 + 0.2 * image) * (1.5 if task == "noisy" and order != "before" else 1)
                    psnr = INPUT[task] + share * GAIN[task] + 1.2 * (image - 1) + 0.03 * generator.normal()
                    psnr -= codec_loss[family] * math.exp(-3.2 * bpp**0.7) - 0.15 * math.log(bpp + 1)
                    if task == "noisy" and order == "alone":
                        psnr += 2.8 * math.exp(-1.6 * bpp)
                    values = {
                        "psnr": psnr,
                        "piqe": 70 - 1.4 * psnr + 4 * math.exp(-2 * bpp),
                        "ms_ssim": 1 - 10 ** (-psnr / 22),
                    }
                    rows += [
                        {"method": method, "family": family, "order": order, "task": task, "image": f"photo{image}",
                         "level": str(level), "bytes": int(bpp * 8192), "bpp": bpp, "metric": k, "value": v}
                        for k, v in values.items()
                    ]  # fmt: skip
    for task in TASKS:
        for method, gain in (("degraded", 0), ("restorer", GAIN[task])):
            for image in range(3):
                rows += [
                    {"method": method, "family": "none", "order": "alone", "task": task, "image": f"photo{image}",
                     "level": "0", "bytes": 196608, "bpp": 24.0, "metric": k, "value": v}
                    for k, v in (
                        ("psnr", INPUT[task] + gain),
                        ("piqe", 70 - 1.4 * (INPUT[task] + gain)),
                        ("ms_ssim", 0.95),
                    )
                ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def records():
    return study()


@pytest.fixture(scope="module")
def table(records):
    anchors = [m for m in METHODS if m != "llicm"]
    return bd_table(records, ["psnr", "piqe"], ["llicm"], anchors, TASKS)


def saved(figure, tmp_path):
    save_figure(figure, tmp_path / "figure.png", dpi=60)
    return (tmp_path / "figure.png").read_bytes()


def test_rate_perception(records, tmp_path):
    figure = figures.rate_perception(records, "psnr", TASKS, list(TYPED.values()))
    assert [axis.get_title() for axis in figure.axes] == TASKS
    axis = figure.axes[0]
    lines = [line for line in axis.lines if line.get_marker() not in ("", "None")]
    assert len(lines) == 11 and all(len(line.get_xdata()) == 5 for line in lines)
    assert len(axis.lines) == 13, "the two uncompressed references are lines"
    assert axis.get_xscale() == "log"
    assert [a.get_xlabel() for a in figure.axes] == [""] * 3 + ["rate (bits per pixel)"] * 3
    assert [a.get_ylabel() for a in figure.axes] == ["PSNR (dB, higher is better)", "", ""] * 2
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(texts) == 13 and texts[:3] == ["jpeg", "jpeg → restorer", "restorer → jpeg"]
    by_name = dict(zip(METHODS, lines, strict=True))
    assert by_name["jpeg"].get_color() == by_name["restorer>jpeg"].get_color() != by_name["webp"].get_color()
    assert by_name["jpeg>restorer"].get_linestyle() == by_name["webp>restorer"].get_linestyle()
    assert by_name["jpeg"].get_linestyle() != by_name["jpeg>restorer"].get_linestyle()
    mean = records[(records.method == "llicm") & (records.task == "noisy") & (records.metric == "psnr")]
    np.testing.assert_allclose(by_name["llicm"].get_ydata(), mean.groupby("level").value.mean())
    again = figures.rate_perception(records, "psnr", TASKS, list(TYPED.values()))
    assert saved(figure, tmp_path) == saved(again, tmp_path)


def test_few_panels_linear_axis_own_references_and_unknown_codecs(records):
    part = records[records.method.isin(["rdo", "llicm"])].copy()
    elic = Method("rdo", "elic", "baseline", "elic", True, None, None, (0.0,))
    own = {"input": {"hazy": 50.0, "noisy": 1.0}}
    figure = figures.rate_perception(part, "piqe", ["hazy"], [elic, TYPED["llicm"]], references=own)
    (axis,) = figure.axes
    assert axis.get_xscale() == "linear" and axis.get_xlim()[0] == 0
    assert len(axis.lines) == 3 and len({line.get_color() for line in axis.lines}) == 3
    assert axis.get_ylabel() == "PIQE (lower is better)"
    with pytest.raises(UserError, match="no task 'foggy' to draw: choose among hazy"):
        figures.rate_perception(records, "psnr", ["foggy"], [TYPED["rdo"]])
    with pytest.raises(UserError, match="no method 'bpg'"):
        bpg = Method("bpg", "bpg", "baseline", "bpg", False, None, None, (0.0,))
        figures.rate_perception(records, "psnr", None, [bpg])


def test_files_are_stable_whole_and_free_of_the_readers_settings(records, tmp_path):
    import matplotlib

    def draw():
        return figures.rate_perception(records, "psnr", ["noisy"], [TYPED["llicm"], TYPED["rdo"]])

    first = saved(draw(), tmp_path)
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "black", "savefig.dpi": 30}):
        assert saved(draw(), tmp_path) == first
    with Image.open(io.BytesIO(first)) as file:
        assert set(file.info) <= {"dpi"} and file.width > 100
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]
    with pytest.raises(ValueError, match=".png"):
        save_figure(draw(), tmp_path / "figure.pdf", dpi=60)


def test_heatmap_and_markdown_tell_the_same(table, tmp_path):
    figure = figures.bd_heatmap(table, "psnr", "llicm", tasks=TASKS)
    axis = figure.axes[0]
    assert [t.get_text() for t in axis.get_xticklabels()] == [*TASKS, "mean"]
    assert [t.get_text() for t in axis.get_yticklabels()][:2] == ["jpeg", "jpeg → restorer"]
    cells = [text.get_text() for text in axis.texts]
    assert len(cells) == 10 * 7
    hatched = [patch for patch in axis.patches if patch.get_hatch()]
    undefined = table[(table.metric == "psnr") & table.bd_rate.isna()]
    rates = table[table.metric == "psnr"].groupby("anchor", sort=False)["bd_rate"]
    means = [(rate.mean(), rate.count()) for _, rate in rates]
    assert len(undefined) > 0, "the synthetic study must hold undefined comparisons"
    assert len(hatched) == len(undefined) + sum(defined == 0 for _, defined in means)
    assert all(("n/a" in c) == (c in ("n/a", "n/a\nbetter", "n/a\nworse")) for c in cells)
    for i, (mean, defined) in enumerate(means):
        assert cells[7 * i + 6].startswith(f"{mean:+.1f}" if defined else "n/a")
        assert ("of 6" in cells[7 * i + 6]) == (0 < defined < 6)
    assert saved(figure, tmp_path) == saved(figures.bd_heatmap(table, "psnr", "llicm", tasks=TASKS), tmp_path)

    text = bd_markdown(table, "psnr", "llicm", tasks=TASKS)
    lines = text.splitlines()
    assert lines[0] == "| anchor | " + " | ".join(TASKS) + " | mean |"
    assert all(line.count("|") == 9 for line in lines[:12])
    flat = [cell.strip() for line in lines[2:12] for cell in line.split("|")[2:8]]
    shown = [c for i, c in enumerate(cells) if i % 7 != 6]
    assert [c.split(" ")[0].rstrip("%") for c in flat] == [c.split("\n")[0] for c in shown]
    assert sum(cell.startswith("n/a") for cell in flat) == len(undefined)


def test_colours_are_centred_at_zero_and_blue_is_good():
    rows = pd.DataFrame({
        "test": "t", "anchor": "a", "metric": "psnr", "task": ["x", "y", "z"], "bd_rate": [-40.0, 0.0, 400.0],
        "bd_quality": [1.0, 0.0, -1.0], "better": "", "reason": "", "quality_reason": "",
    })  # fmt: skip
    for value in ("rate", "quality"):
        figure = figures.bd_heatmap(rows, "psnr", "t", value=value)
        good, zero, bad = (patch.get_facecolor() for patch in figure.axes[0].patches[:3])
        assert good[2] > good[0] and bad[0] > bad[2] and min(zero[:3]) > 0.95
    assert "+400.0" in [text.get_text() for text in figures.bd_heatmap(rows, "psnr", "t").axes[0].texts]
    assert "+1.00" in bd_markdown(rows, "psnr", "t", value="quality")
    with pytest.raises(UserError, match="no psnr of llicm"):
        figures.bd_heatmap(rows, "psnr", "llicm")
    with pytest.raises(UserError, match="no task 'b'"):
        bd_markdown(rows, "psnr", "t", tasks=["b"])


def test_titles_tell_metric_and_unit(table):
    titles = {
        (metric, value): figures.bd_heatmap(table, metric, "llicm", value=value).axes[0].get_title()
        for metric in ("psnr", "piqe") for value in ("rate", "quality")
    }  # fmt: skip
    assert titles == {
        ("psnr", "rate"): "PSNR", ("psnr", "quality"): "PSNR (dB, positive is better)",
        ("piqe", "rate"): "PIQE", ("piqe", "quality"): "PIQE (positive is better)",
    }  # fmt: skip


def picture(height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0].clamp(0, 1)


def strip(height=120, width=160, seed=0):
    titles = ["X\ndegraded", "X̂\ndecoded", "rdo → restorer\noutput", "X̂_H\nLL-ICM", "X_ideal\npristine"]
    captions = ["17.36 dB", "0.412 bpp\n18.02 dB", "0.412 bpp\n24.83 dB", "0.409 bpp\n26.11 dB", ""]
    return [(t, picture(height, width, seed + i), c) for i, (t, c) in enumerate(zip(titles, captions, strict=True))]


def test_pictures_keep_their_shape_and_text(tmp_path):
    rows = [(task, strip(120, 160 if i else 90, i)) for i, task in enumerate(TASKS[:3])]
    figure = picture_rows(rows)
    assert len(figure.axes) == 15
    width, height = figure.get_size_inches()
    for axis, (_, columns) in zip(figure.axes[::5], rows, strict=True):
        box = axis.get_position()
        assert box.width * width / (box.height * height) == pytest.approx(columns[0][1].shape[2] / 120)
    words = [text.get_text() for text in figure.texts]
    assert words.count("26.11 dB") == 3 and words.count("rainy") == 1
    assert words.count("X_ideal") == 1, "titles stand once"
    assert saved(figure, tmp_path) == saved(picture_rows(rows), tmp_path)
    assert len(picture_rows([("", strip())]).axes) == 5
    for wrong in ([], [("noisy", [])], [("noisy", strip()), ("hazy", strip()[:2])]):
        with pytest.raises(ValueError, match="same number of pictures"):
            picture_rows(wrong)


def recognised(guesses):
    """A table as of `recognise_all`: level -> word -> guesses."""
    return pd.DataFrame([
        {"photo": str(i), "severity": 0.5, "level": level, "word": word, "guess": guess}
        for level, words in guesses.items()
        for word, found in words.items()
        for i, guess in enumerate(found)
    ])  # fmt: skip


def test_confusion(tmp_path):
    right = {word: [word] * 4 for word in ("noisy", "clean", "hazy")}
    table = recognised({
        math.nan: right,
        4.0: right | {"hazy": ["hazy", "hazy", "hazy", "noisy"]},
        2.0: right,
        0.0: right | {"hazy": ["clean"] * 4, "noisy": ["noisy", "noisy", "hazy", "clean"]},
    })  # fmt: skip
    panels = ["noisy", "clean", "hazy"], [math.nan, 4.0, 0.0]
    figure = confusion(table, *panels, core=["hazy", "noisy"])
    assert [axis.get_title() for axis in figure.axes] == [
        "uncompressed\ncore tasks 100%, all 100% right",
        "level 4\ncore tasks 88%, all 92% right",
        "level 0\ncore tasks 25%, all 50% right",
    ]
    order = ["hazy", "noisy", "clean"]
    for axis in figure.axes:
        assert [label.get_text() for label in axis.get_xticklabels()] == order
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == order
    cells = [{text.get_position()[::-1]: text.get_text() for text in axis.texts} for axis in figure.axes]
    assert cells[0] == {(0, 0): "100", (1, 1): "100", (2, 2): "100"}, "rows are true, zeros blank"
    assert cells[1] == cells[0] | {(0, 0): "75", (0, 1): "25"}
    assert cells[2] == {(0, 2): "100", (1, 1): "50", (1, 0): "25", (1, 2): "25", (2, 2): "100"}
    assert all(len(axis.lines) == 2 and axis.lines[0].get_ydata()[0] == 1.5 for axis in figure.axes)
    again = confusion(table, *panels, core=["hazy", "noisy"])
    assert figure.get_size_inches()[0] <= WIDTH and saved(figure, tmp_path) == saved(again, tmp_path)


def test_confusion_of_chosen_words_and_levels():
    table = recognised({1.0: {"hazy": ["noisy", "hazy"], "noisy": ["noisy"], "clean": ["hazy"]}})
    (axis,) = confusion(table, ["noisy", "hazy"], [1.0]).axes
    assert axis.get_title() == "level 1\n75% right" and not axis.lines
    assert [text.get_text() for text in axis.texts] == ["100", "50", "50"]
    with pytest.raises(UserError, match="No image of hazy, uncompressed"):
        confusion(table, ["hazy"], [math.nan])
    with pytest.raises(UserError, match="no degradation 'foggy' to draw: choose among hazy"):
        confusion(table, ["hazy"], [1.0], core=["foggy"])
    with pytest.raises(UserError, match="empty"):
        confusion(table[:0], ["hazy"], [1.0])


def test_methods_of_a_group_with_several_codecs_have_the_colours_of_theirs():
    alone = [Method(name, name, "baseline", name, False, None, None, (0.0,)) for name in ("webp", "jpeg")]
    adapted = [
        Method(f"{name}>adapted", "conventional", "baseline", name, False, None, "conventional", (0.0,))
        for name in ("webp", "jpeg")
    ]
    styles = line_styles([*alone, *adapted])
    for name in ("webp", "jpeg"):
        ours, theirs = styles[f"{name}>adapted"], styles[name]
        assert ours["color"] == theirs["color"] and ours["linestyle"] == "-." != theirs["linestyle"]
    assert styles["webp"]["color"] != styles["jpeg"]["color"]


def test_diffusion_steps():
    steps = {"d-1": 1, "d-10": 10, "d-100": 100}
    rows = [
        {"method": m, "family": "d", "order": "after", "task": t, "image": i, "level": "2", "bytes": 9, "bpp": 1.0,
         "metric": k, "value": base + math.log10(n) + (i == "b")}
        for m, n in steps.items() for t in TASKS for i in "ab" for k, base in (("psnr", 20.0), ("piqe", 40.0))
    ]  # fmt: skip
    records = pd.DataFrame(rows)
    drawn = figures.diffusion_steps(records, steps, ["psnr", "piqe"], {"d-1": 0.05, "d-10": 0.5, "d-100": 5.0})
    axis, other = drawn.axes
    assert "higher is better" in axis.get_ylabel() and "lower is better" in other.get_ylabel()
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1\n0.05 s", "10\n0.5 s", "100\n5 s"]
    assert len(axis.lines) == len(TASKS) + 1
    for line in axis.lines:  # means over the images, at the number of steps
        assert list(line.get_xdata()) == [1, 10, 100]
        assert list(line.get_ydata()) == pytest.approx([20.5, 21.5, 22.5])
    plain = figures.diffusion_steps(records, steps, ["psnr"])
    assert [label.get_text() for label in plain.axes[0].get_xticklabels()] == ["1", "10", "100"]
    with pytest.raises(UserError, match="no method 'd-7'"):
        figures.diffusion_steps(records, {"d-7": 7}, ["psnr"])
