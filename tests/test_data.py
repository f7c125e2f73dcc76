# SPDX-License-Identifier: Apache-2.0
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator

from llicm.data.corpus import load_photos
from llicm.data.crops import _recolour
from llicm.data.dead_leaves import _occlusion, dead_leaves
from llicm.data.graphics import GRAPHICS, graphic
from llicm.data.pairs import Pair, copy_pairs, read_pairs, read_training_pairs, set_of, write_pairs
from llicm.data.stream import PairStream
from llicm.degradations import CLEAN, DEGRADATIONS, IN_ORDER
from llicm.errors import UserError
from llicm.images import write_png
from llicm.report.show import contact_sheet, leaves_sheet

ROOT = Path(__file__).parents[1]
TASKS = ["noisy", "rainy", "hazy", "low-light", "motion-blurry"]


def photo(seed, height=90, width=120):
    coarse = torch.rand(1, 3, 6, 6, generator=Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0]


def put(folder, names, first=0):
    for index, name in enumerate(names):
        write_png(photo(first + index), folder / name)


# --- corpus ---


def test_split_folders(tmp_path):
    put(tmp_path / "train", ["a.png", "b.png"])
    put(tmp_path / "test", ["a.png"], first=10)
    corpus = load_photos(tmp_path)
    assert list(corpus.train) == ["a", "b"] and list(corpus.test) == ["a"]
    assert corpus.train["a"].shape == (3, 90, 120)


@pytest.mark.parametrize(("names", "test"), [("ab", "b"), ("abc", "c"), ("abcd", "c"), ("abcdefg", "cf")])
def test_flat_folder_is_split_by_name(tmp_path, names, test):
    put(tmp_path, [f"{n}.png" for n in names])
    corpus = load_photos(tmp_path)
    assert "".join(corpus.test) == test
    assert "".join(corpus.train) == "".join(n for n in names if n not in test)


def test_corpus_errors(tmp_path):
    with pytest.raises(UserError, match="dvc pull data.dvc"):
        load_photos(tmp_path / "absent")
    with pytest.raises(UserError, match="no images.*dvc pull"):
        load_photos(tmp_path)
    put(tmp_path / "one", ["a.png"])
    with pytest.raises(UserError, match="a single photo"):
        load_photos(tmp_path / "one")
    put(tmp_path / "half" / "train", ["a.png"])
    with pytest.raises(UserError, match="half/test"):
        load_photos(tmp_path / "half")
    put(tmp_path / "stems", ["a.png", "b.png"])
    (tmp_path / "stems" / "a.bmp").write_bytes((tmp_path / "stems" / "b.png").read_bytes())
    with pytest.raises(UserError, match="also called a"):
        load_photos(tmp_path / "stems")
    put(tmp_path / "small", ["a.png"])
    write_png(photo(3, 63, 200), tmp_path / "small" / "b.png")
    with pytest.raises(UserError, match="b.png.*200x63.*64"):
        load_photos(tmp_path / "small")
    put(tmp_path / "bad", ["a.png", "b.png"])
    (tmp_path / "bad" / "c.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="c.png"):
        load_photos(tmp_path / "bad")


def test_the_same_picture_in_both_parts_is_refused_even_under_another_name_and_format(tmp_path):
    put(tmp_path / "train", ["a.png", "b.png"])
    put(tmp_path / "test", ["c.png"], first=10)
    Image.open(tmp_path / "train" / "b.png").save(tmp_path / "test" / "other.bmp")
    with pytest.raises(UserError, match="other.*training photo b"):
        load_photos(tmp_path)


def test_embedded_photos_are_as_stated():
    data = ROOT / "data"
    if not data.is_dir():
        pytest.skip("the embedded photos are not here: run `dvc pull data.dvc`")
    corpus = load_photos(data)
    assert len(corpus.train) >= 3 and len(corpus.test) >= 3
    stated = dict(re.findall(r"^([0-9a-f]{64})  (\S+)$", (data / "SOURCES.md").read_text(), re.M))
    found = {
        hashlib.sha256(path.read_bytes()).hexdigest(): path.relative_to(data).as_posix()
        for part in ("train", "test")
        for path in (data / part).iterdir()
    }
    assert stated == found


# --- dead leaves ---


def test_dead_leaves_are_seeded_cover_the_plane_and_use_the_sources():
    sources = [photo(0), photo(1)]
    first = dead_leaves(64, sources, Generator().manual_seed(1))
    assert first.shape == (3, 64, 64) and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, dead_leaves(64, sources, Generator().manual_seed(1)))
    assert not torch.equal(first, dead_leaves(64, sources, Generator().manual_seed(2)))
    # Grey sources can only give grey leaves, a black one black leaves.
    grey = dead_leaves(64, [photo(0)[:1].expand(3, -1, -1)], Generator().manual_seed(1))
    assert torch.equal(grey[0], grey[1]) and grey.std() > 0.05
    assert dead_leaves(64, [torch.zeros(3, 64, 64)], Generator().manual_seed(1)).max() == 0


def test_leaf_sizes_follow_the_power_law():
    owner = _occlusion(192, np.random.default_rng(0))
    sizes = np.unique(owner, return_counts=True)[1]
    assert (owner == 0).mean() < 0.005
    assert sizes.max() > 40 * np.median(sizes)  # heavy tail: a few large leaves, many small ones


def test_dead_leaves_need_a_source():
    with pytest.raises(ValueError, match="source"):
        dead_leaves(64, [], Generator())


# --- graphics ---


@pytest.mark.parametrize("kind", GRAPHICS)
def test_graphics(kind):
    made = [graphic(kind, 64, Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert made[0].shape == (3, 64, 64) and made[0].dtype == torch.float32
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    assert torch.equal(made[0], (made[0] * 255).round() / 255) and made[0].min() >= 0 and made[0].max() <= 1
    assert made[0].std() > 0.002  # something is there
    assert graphic(kind, 16, Generator()).shape == (3, 16, 16)
    with pytest.raises(ValueError, match="one of page"):
        graphic("fog", 64, Generator())


def test_a_scan_is_grey_and_a_night_is_dark():
    for seed in range(4):
        scan, night = (graphic(kind, 64, Generator().manual_seed(seed)) for kind in ("scan", "night"))
        assert torch.equal(scan[0], scan[1]) and torch.equal(scan[0], scan[2])
        assert night.mean() < 0.25 < 0.5 < night.max()


# --- stream ---


def make_stream(**changes):
    arguments = dict(
        photos=[photo(0, 90, 120), photo(1, 150, 100), photo(2, 40, 30)],
        tasks=TASKS,
        crop=48,
        batch=7,
        seed=3,
        dead_leaves_share=0.5,
        severity=(0.2, 0.8),
        pool=3,
        refresh=2,
    )
    return PairStream(**(arguments | changes))


def same(a, b):
    return all(torch.equal(x.nan_to_num(-1), y.nan_to_num(-1)) for x, y in zip(a, b, strict=True))


def test_clean_rows_show_graphics_and_no_others_change():
    tasks = ["noisy", CLEAN]
    without, some, all_ = (make_stream(tasks=tasks, batch=20, graphics_share=v).batch(0) for v in (0.0, 0.5, 1.0))
    noisy, clean = without.task == 0, without.task == 1
    for batch in (some, all_):
        assert torch.equal(batch.ideal[clean], batch.degraded[clean]) and batch.photo.max() < 3
    changed = (some.ideal != without.ideal).flatten(1).any(1)
    assert 0 < int(changed.sum()) < int(clean.sum()) and not (changed & noisy).any()
    assert (all_.ideal != without.ideal).flatten(1).any(1)[clean].all() and (all_.photo[clean] == -1).all()
    with pytest.raises(ValueError, match="graphics_share"):
        make_stream(graphics_share=1.5)


def test_a_batch_depends_on_the_step_alone():
    stream = make_stream()
    ahead = [stream.batch(step) for step in range(8)]
    fresh = make_stream()
    for step in (6, 0, 7, 3):
        assert same(fresh.batch(step), ahead[step])
    assert not same(ahead[0], ahead[1])
    assert not same(make_stream(seed=4).batch(0), ahead[0])
    assert len(stream._leaves) <= 6  # the pool does not grow without end


def test_batches_have_the_promised_shape_and_range():
    batch = make_stream().batch(1)
    assert batch.ideal.shape == batch.degraded.shape == (7, 3, 48, 48)
    assert batch.task.dtype == torch.int64 and batch.severity.dtype == torch.float32
    assert 0.2 <= batch.severity.min() and batch.severity.max() <= 0.8
    for images in (batch.ideal, batch.degraded):
        assert images.isfinite().all() and images.min() >= 0 and images.max() <= 1
    assert (batch.ideal - batch.degraded).abs().amax((1, 2, 3)).min() > 0


def test_tasks_take_turns_across_steps():
    stream = make_stream()
    turns = torch.cat([stream.batch(step).task for step in range(5)])
    assert turns.tolist() == [i % 5 for i in range(35)]


def test_every_row_is_degraded_by_its_own_task():
    flat = torch.full((3, 64, 64), 0.6)
    stream = make_stream(photos=[flat], dead_leaves_share=0.0, tasks=["low-light", "snowy", "uncompleted"], batch=6)
    batch = stream.batch(0)
    assert batch.ideal.std((2, 3)).max() < 1e-5 and (batch.ideal - 0.6).abs().max() < 0.11  # recoloured, still flat
    brighter = (batch.degraded - batch.ideal).mean((1, 2, 3))
    for row, task in enumerate(batch.task.tolist()):
        assert brighter[row] < -0.05 if task == 0 else brighter[row] > 0


def test_ready_made_pairs_are_cut_alike_and_make_half_of_the_rows():
    ideal = torch.arange(3 * 60 * 70).reshape(3, 60, 70).float() / (3 * 60 * 70) * 0.5
    stream = make_stream(paired={"rainy": [Pair("p", ideal, ideal + 0.5)]}, dead_leaves_share=0.0, batch=10)
    ready = 0
    for step in range(30):
        batch = stream.batch(step)
        known = ~batch.severity.isnan()
        assert known[batch.task != TASKS.index("rainy")].all()
        rows = ~known
        ready += int(rows.sum())
        torch.testing.assert_close(batch.degraded[rows], batch.ideal[rows] + 0.5)
    assert 18 <= ready <= 42  # of 60


def test_half_of_the_noise_is_as_cameras_write_it():
    """Weaker, and correlated between neighbours and channels; the noise that tests are made with is neither."""
    made = make_stream(
        photos=[torch.full((3, 64, 64), 0.5)], tasks=["noisy"], batch=60, dead_leaves_share=0.0, mixed=0.0
    )
    batch = made.batch(0)
    noise = batch.degraded - batch.ideal
    noise -= noise.mean((2, 3), keepdim=True)
    power = noise.square().mean((1, 2, 3))
    beside = (noise[..., 1:] * noise[..., :-1]).mean((1, 2, 3)) / power
    across = (noise[:, 0] * noise[:, 1]).mean((1, 2)) / power
    camera = (beside > 0.1) | (across > 0.1)
    assert 20 <= camera.sum() <= 40 and beside[~camera].abs().max() < 0.1
    assert 0.6 < beside.max() < 0.75 and across.max() > 0.9
    assert power[camera].min().sqrt() < 0.01 and power[~camera].median().sqrt() > 0.03
    assert power[camera].max() < power[~camera].max() * 1.1


def test_mixed_rows_have_a_second_task_at_the_stated_rate():
    stream = make_stream(tasks=[*TASKS, CLEAN], crop=8, batch=30, mixed=0.4)
    batches = [stream.batch(step) for step in range(20)]
    task, second = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("task", "second"))
    mixed, clean = second >= 0, task == len(TASKS)
    assert not mixed[clean].any() and mixed[~clean].float().mean() == pytest.approx(0.4, abs=0.07)
    assert (second != task).all() and second.max() < len(TASKS)
    for index in range(len(TASKS)):  # every other task turns up beside each
        found = second[mixed & (task == index)]
        assert set(found.tolist()) == set(range(len(TASKS))) - {index}
    assert (make_stream(crop=8).batch(0).second == -1).all()
    assert same(make_stream(mixed=0.4).batch(3), make_stream(mixed=0.4).batch(3))


def flat_stream(tasks, mixed):
    flat = torch.full((3, 64, 64), 0.6)
    return make_stream(photos=[flat], tasks=tasks, dead_leaves_share=0.0, severity=(0.5, 0.5), batch=8, mixed=mixed)


def test_mixed_rows_suffer_both_in_the_order_of_nature():
    assert sorted(IN_ORDER) == sorted(DEGRADATIONS)

    def dark_and_struck(batch):
        struck = (batch.degraded == 1).all(1).float().mean((1, 2)) > 0.001
        return batch.degraded.median(3).values.flatten(1).median(1).values < 0.4, struck

    # White strokes come last: on the darkened picture they stay white, whichever of the two is the row's own task.
    for tasks in (["low-light", "uncompleted"], ["uncompleted", "low-light"]):
        batch = flat_stream(tasks, 1.0).batch(0)
        assert (batch.second == 1 - batch.task).all()
        assert torch.stack(dark_and_struck(batch)).all()
        single = flat_stream(tasks, 0.0).batch(0)
        assert torch.equal(single.ideal, batch.ideal)
        dark, struck = dark_and_struck(single)
        own = single.task == tasks.index("low-light")
        assert torch.equal(dark, own) and torch.equal(struck, ~own)


def test_ready_made_pairs_are_never_mixed():
    ideal = torch.rand(3, 60, 70) * 0.5
    stream = make_stream(paired={"rainy": [Pair("p", ideal, ideal + 0.5)]}, dead_leaves_share=0.0, mixed=1.0, batch=20)
    batch = stream.batch(0)
    ready = batch.severity.isnan()
    assert ready.any() and (batch.second[ready] == -1).all() and (batch.second[~ready] >= 0).all()
    torch.testing.assert_close(batch.degraded[ready], batch.ideal[ready] + 0.5)
    assert (batch.photo[ready] == -1).all() and (batch.photo[~ready] >= 0).all()


def test_clean_rows_stay_as_they_are():
    batch = make_stream(tasks=[CLEAN, "noisy", "hazy"], batch=12, mixed=1.0).batch(0)
    clean = batch.task == 0
    assert clean.sum() == 4 and torch.equal(batch.degraded[clean], batch.ideal[clean])
    assert (batch.degraded - batch.ideal)[~clean].abs().amax((1, 2, 3)).min() > 0
    alone = make_stream(tasks=[CLEAN, "noisy"], batch=12, mixed=1.0).batch(0)  # nothing to mix noise with
    assert (alone.second == -1).all()


def test_rows_name_their_photo():
    photos = [torch.full((3, 64, 64), 0.5), photo(0, 64, 64)]
    batch = make_stream(photos=photos, dead_leaves_share=0.0, crop=32, batch=40).batch(0)
    assert set(batch.photo.tolist()) == {0, 1}
    assert torch.equal(batch.ideal.std((2, 3)).amax(1) > 0.01, batch.photo == 1)
    assert (make_stream(dead_leaves_share=1.0).batch(0).photo == -1).all()


def test_training_uses_training_photos_only():
    # The stream is told of the flat photo only: no texture may turn up, whatever the palette.
    flat, rough = torch.full((3, 80, 80), 0.5), photo(0, 80, 80)
    stream, other = (make_stream(photos=[p], dead_leaves_share=0.0) for p in (flat, rough))
    assert other.batch(0).ideal.std((2, 3)).min() > 0.01
    assert stream.batch(0).ideal.std((2, 3)).max() < 1e-5


def test_stream_errors():
    for wrong in (
        {"photos": []},
        {"severity": (0.5, 0.2)},
        {"dead_leaves_share": 2.0},
        {"batch": 0},
        {"mixed": 1.5},
    ):
        with pytest.raises(ValueError):
            make_stream(**wrong)
    with pytest.raises(UserError, match="foggy"):
        make_stream(tasks=["noisy", "foggy"])


# --- pairs ---


def test_pairs_round_trip(tmp_path):
    photos = {"a": photo(0), "b": photo(1, 200, 70)}
    write_pairs(photos, tmp_path, ["noisy", "hazy"], 0.5, 0, "val", 100)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png")) == [
        f"val/{word}/{kind}/{name}.png" for word in ("hazy", "noisy") for kind in ("GT", "LQ") for name in "ab"
    ]
    pairs = read_pairs(tmp_path, "val", "noisy")
    assert [p.name for p in pairs] == ["a", "b"]
    assert pairs[0].ideal.shape == (3, 90, 100) and pairs[1].degraded.shape == (3, 100, 70)
    assert (pairs[0].ideal - photos["a"][:, :, 10:110]).abs().max() <= 0.5 / 255 + 1e-6
    assert not torch.equal(pairs[0].ideal, pairs[0].degraded)
    assert not list(tmp_path.rglob(".*"))


def test_pairs_do_not_depend_on_company_or_order(tmp_path):
    photos = {"a": photo(0), "b": photo(1)}
    write_pairs(photos, tmp_path / "x", ["noisy", "rainy"], 0.5, 0, "val", None)
    write_pairs({"b": photo(1)}, tmp_path / "y", ["rainy"], 0.5, 0, "val", None)
    write_pairs({"b": photo(1)}, tmp_path / "z", ["rainy"], 0.5, 1, "val", None)
    name = "val/rainy/LQ/b.png"
    first = (tmp_path / "x" / name).read_bytes()
    assert first == (tmp_path / "y" / name).read_bytes() != (tmp_path / "z" / name).read_bytes()


def test_rewriting_replaces_and_a_failure_keeps_the_old(tmp_path):
    write_pairs({"old": photo(0)}, tmp_path, ["noisy"], 0.5, 0, "val", None)
    with pytest.raises(ValueError):
        write_pairs({"new": photo(0)}, tmp_path, ["noisy"], 7.0, 0, "val", None)
    assert [p.name for p in read_pairs(tmp_path, "val", "noisy")] == ["old"]
    write_pairs({"new": photo(0)}, tmp_path, ["noisy"], 0.5, 0, "val", None)
    assert [p.name for p in read_pairs(tmp_path, "val", "noisy")] == ["new"]
    assert [p.name for p in (tmp_path / "val").iterdir()] == ["noisy"]


def test_names_of_sets():
    assert set_of("noisy", 0.5) == (["noisy"], 0.5) and set_of("clean", 0.5) == ([], 0.5)
    assert set_of("noisy+low-light", 0.5) == set_of("low-light+noisy@0.5", 0.1) == (["low-light", "noisy"], 0.5)
    for wrong in ("foggy", "noisy+noisy", "clean+noisy", "noisy@2", "noisy@", "noisy@x", ""):
        with pytest.raises(UserError, match="tasks: "):
            set_of(wrong, 0.5)


def test_mixed_sets_severities_and_the_clean_control(tmp_path):
    names = ["low-light", "noisy", "low-light+noisy", "noisy@0.9", "noisy@0.5", "clean"]
    write_pairs({"a": photo(0)}, tmp_path, names, 0.5, 0, "val", None)
    pair = {name: read_pairs(tmp_path, "val", name)[0] for name in names}

    def error(name):
        return float((pair[name].degraded - pair[name].ideal).square().mean())

    assert error("clean") == 0 < error("noisy") < error("noisy@0.9")
    assert torch.equal(pair["noisy"].degraded, pair["noisy@0.5"].degraded)
    assert pair["low-light+noisy"].degraded.mean() < 0.8 * pair["noisy"].degraded.mean()
    # the same noise, only stronger
    both = torch.stack([(pair[n].degraded - pair[n].ideal).flatten() for n in ("noisy", "noisy@0.9")])
    assert torch.corrcoef(both)[0, 1] > 0.95


def test_foreign_pairs_match_by_stem(tmp_path):
    folder = tmp_path / "train" / "rainy"
    put(folder / "GT", ["1.png", "2.png", "3.png"])
    (folder / "LQ").mkdir()
    for name in ("1", "2"):
        Image.open(folder / "GT" / f"{name}.png").save(folder / "LQ" / f"{name}.jpg")
    assert [p.name for p in read_pairs(tmp_path, "train", "rainy")] == ["1", "2"]


def test_pair_errors(tmp_path):
    with pytest.raises(UserError, match="val/noisy"):
        read_pairs(tmp_path, "val", "noisy")
    folder = tmp_path / "val" / "noisy"
    put(folder / "GT", ["1.png"])
    (folder / "LQ").mkdir()
    with pytest.raises(UserError, match="LQ: no images"):
        read_pairs(tmp_path, "val", "noisy")
    put(folder / "LQ", ["1.png", "2.png"])
    with pytest.raises(UserError, match="2.png.*no ideal picture"):
        read_pairs(tmp_path, "val", "noisy")
    (folder / "LQ" / "2.png").unlink()
    write_png(photo(0, 80, 80), folder / "LQ" / "1.png")
    with pytest.raises(UserError, match="1.png.*80x80.*120x90"):
        read_pairs(tmp_path, "val", "noisy")


# --- figures and the notebook ---


def test_sheets():
    import matplotlib

    matplotlib.use("Agg")
    figure = contact_sheet(photo(0), ["noisy", "hazy"], [0, 0.5, 1], 0, side=64)
    titles = [axis.get_title() for axis in figure.axes]
    assert len(titles) == 8 and titles[0] == "clean" and re.fullmatch(r"severity 0.5, \d+\.\d dB", titles[2])
    assert [figure.axes[i].get_ylabel() for i in (0, 4)] == ["noisy", "hazy"]
    assert len(leaves_sheet([photo(0)], 2, 32, 0).axes) == 2
    matplotlib.pyplot.close("all")


def test_ready_made_pairs_drop_in(tmp_path):
    """An official paired dataset replaces the test pairs of its task and joins the training stream."""
    photos = {"p": torch.rand(3, 70, 80, generator=torch.Generator().manual_seed(0))}
    write_pairs(photos, tmp_path / "ours", ["noisy", "hazy"], 0.5, 0, "val", 64)
    write_pairs({"q": photos["p"]}, tmp_path / "theirs", ["hazy"], 0.9, 1, "val", None)
    write_pairs({"q": photos["p"]}, tmp_path / "theirs", ["hazy"], 0.9, 1, "train", None)
    assert [copy_pairs(tmp_path / "theirs", tmp_path / "ours", word, 64) for word in ("noisy", "hazy")] == [0, 1]
    (hazy,) = read_pairs(tmp_path / "ours", "val", "hazy")
    assert hazy.name == "q" and hazy.ideal.shape == (3, 64, 64)
    assert [p.name for p in read_pairs(tmp_path / "ours", "val", "noisy")] == ["p"]
    assert set(read_training_pairs(tmp_path / "theirs", ["noisy", "hazy"])) == {"hazy"}
    with pytest.raises(UserError, match="paired: null"):
        read_training_pairs(tmp_path / "nowhere", ["noisy"])


def recolour(crop, colours):
    return _recolour(crop[None], [colours])[0]


def test_recolouring_changes_the_palette_and_keeps_the_structure():
    crop = torch.rand(3, 32, 32, generator=Generator().manual_seed(0)) * 0.5 + 0.25
    assert torch.equal(recolour(crop, [0.1, 0.9, 0.9, 0.9, 0.9]), crop)  # a quarter stays as it is
    # no turn, full saturation 1, contrast 1, no shift: the identity, but for rounding
    same = recolour(crop, [0.9, 0.5, 0.7 / 0.9, 0.2 / 0.3, 0.5])
    assert torch.allclose(same, crop, atol=1e-5)
    pale = recolour(crop, [0.9, 0.5, 0.0, 0.2 / 0.3, 0.5])
    spread = [(c.max(0).values - c.min(0).values).mean() for c in (crop, pale)]
    assert spread[1] < 0.4 * spread[0]
    assert torch.allclose(pale.mean(0), crop.mean(0), atol=1e-4)  # a turn about the grey axis keeps grey values
    turned = recolour(crop, [0.9, 1.0, 0.7 / 0.9, 0.2 / 0.3, 0.75])
    assert torch.allclose(turned.mean(0), crop.mean(0) + 0.05, atol=1e-4) and (turned - crop).abs().mean() > 0.05
