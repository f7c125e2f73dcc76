# SPDX-License-Identifier: Apache-2.0
"""BD-rate: published vectors, the rule for curves without one, and properties."""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from llicm.benchmark.bdrate import (
    MIN_OVERLAP,
    TIE_TOLERANCE,
    _many,
    bd,
    bd_interval,
    bd_intervals,
    bd_table,
    interpolations,
    to_db,
)
from llicm.benchmark.records import mean_curves, read_records, write_records
from llicm.errors import UserError

# Kodak, mean over 24 images, RGB PSNR: the result files that CompressAI publishes, rounded.
KODAK = {
    "vtm": (
        [0.048245, 0.112495, 0.245817, 0.490545, 0.874810, 1.430850, 2.324607, 3.632609],
        [26.14485, 28.49302, 31.19987, 34.26153, 37.41979, 40.42444, 43.50577, 46.59176],
    ),
    "bpg": (
        [0.067768, 0.161023, 0.351554, 0.684697, 1.199665, 1.929712, 3.057876, 4.703143],
        [26.19513, 28.68155, 31.59466, 34.85747, 38.25989, 41.47887, 44.70311, 47.63252],
    ),
    "jpeg": (
        [0.221153, 0.326614, 0.423126, 0.508386, 0.587866, 0.660127, 0.728946, 0.786027, 0.849719, 0.906001]
        + [0.964380, 1.037212, 1.127396, 1.239846, 1.368827, 1.571807, 1.858816, 2.350199, 3.401340],
        [23.77989, 26.57723, 28.04225, 29.04181, 29.78473, 30.37831, 30.90316, 31.30783, 31.70485, 32.05865]
        + [32.39930, 32.78992, 33.23474, 33.79259, 34.39430, 35.23900, 36.32886, 37.91212, 40.55666],
    ),
    "webp": (
        [0.234419, 0.296336, 0.352865, 0.407049, 0.460802, 0.512706, 0.567407, 0.620739, 0.674676, 0.721817]
        + [0.770877, 0.823675, 0.874027, 0.934291, 0.998388, 1.216314, 1.520081, 2.010354, 2.928479],
        [28.32842, 29.15120, 29.82085, 30.40698, 30.93918, 31.44262, 31.93596, 32.42482, 32.88346, 33.23755]
        + [33.60666, 33.97166, 34.32818, 34.69345, 35.10417, 36.36905, 37.77826, 39.55695, 41.75925],
    ),
    "mbt2018-mean": (
        [0.123922, 0.197981, 0.307244, 0.460612, 0.661665, 0.914405, 1.234209, 1.619090],
        [27.69947, 29.35882, 31.12892, 32.95068, 34.96830, 36.91109, 38.83751, 40.63331],
    ),
}
PUBLISHED = [
    ("vtm", "jpeg", 208.5),
    ("vtm", "webp", 78.8),
    ("vtm", "bpg", 22.0),
    ("vtm", "mbt2018-mean", 21.3),
    ("bpg", "jpeg", 143.0),
    ("bpg", "webp", 44.2),
    ("bpg", "mbt2018-mean", -3.3),
]
RATE = [0.1, 0.2, 0.4, 0.8, 1.6]
RISING = [25.0, 28.0, 30.5, 32.5, 34.0]


@pytest.mark.parametrize(("anchor", "test", "expected"), PUBLISHED)
def test_published_vectors(anchor, test, expected):
    assert bd(*KODAK[anchor], *KODAK[test]).rate == pytest.approx(expected, abs=0.051)


def test_example_of_the_package():
    """The example in the README of ``bjontegaard``."""
    anchor = [9487.76, 4593.60, 2486.44, 1358.24], [40.037, 38.615, 36.845, 34.851]
    test = [9787.80, 4469.00, 2451.52, 1356.24], [40.121, 38.651, 36.970, 34.987]
    assert bd(*anchor, *test).rate == pytest.approx(-4.4175, abs=5e-5)
    assert bd(*anchor, *test, method="akima").rate == pytest.approx(-4.4252, abs=5e-5)


def test_half_the_rate():
    found = bd(RATE, RISING, np.array(RATE) / 2, RISING)
    assert found.rate == pytest.approx(-50, abs=1e-9)
    assert found.overlap == 1 and found.reason is None and found.better is None
    assert found.quality_interval == (25, 34)
    assert found.rate_interval == pytest.approx((0.1, 0.8))


def test_one_db_more():
    found = bd(RATE, RISING, RATE, np.array(RISING) + 1)
    assert found.quality == pytest.approx(1, abs=1e-9) and found.rate < 0


def test_lower_is_better_equals_its_negation():
    perceptual = [0.5, 0.4, 0.32, 0.27, 0.25]
    better = [0.45, 0.35, 0.3, 0.26, 0.24]
    lower = bd(RATE, perceptual, RATE, better, lower_better=True)
    higher = bd(RATE, np.negative(perceptual), RATE, np.negative(better))
    assert lower.rate == pytest.approx(higher.rate) and lower.rate < 0
    assert lower.quality == pytest.approx(higher.quality) and lower.quality > 0
    assert lower.quality_interval == pytest.approx((0.25, 0.45))


def test_ssim_is_compared_in_db():
    a, t = [0.8, 0.88, 0.93, 0.96, 0.98], [0.82, 0.9, 0.94, 0.97, 0.985]
    in_db = bd(RATE, a, RATE, t, transform=to_db)
    assert in_db.rate == pytest.approx(bd(RATE, to_db(a), RATE, to_db(t)).rate)
    assert in_db.rate != pytest.approx(bd(RATE, a, RATE, t).rate, abs=0.1)
    assert in_db.quality_interval == (0.82, 0.98)
    perfect = bd(RATE, a, RATE, [*t[:-1], 1.0], transform=to_db)
    assert perfect.rate is None and perfect.quality is None
    assert perfect.reason == "quality of test is not finite at point 5"


def test_curve_that_turns_back_has_no_bd_rate():
    plain, joint = [29.5, 31.0, 31.6, 30.4, 28.9], [30.0, 31.8, 33.0, 33.6, 33.8]
    found = bd(RATE, plain, RATE, joint, names=("webp", "llicm"))
    assert found.rate is None
    assert found.reason == "quality falls with rate at points 3-5 of webp"
    assert not found.anchor_monotone and found.test_monotone
    # The published example: +1.99 dB.
    assert found.quality == pytest.approx(1.99, abs=0.01) and found.quality_reason is None
    both = bd(RATE, plain, RATE, [30, 29, 33, 32, 34], names=("webp", "llicm"))
    assert both.reason.endswith("of webp and quality falls with rate at points 1-2 and 3-4 of llicm")
    far = bd(RATE, plain, RATE, np.add(joint, 5), names=("webp", "llicm"))
    assert far.rate is None and far.better == "test"
    assert far.reason.endswith("llicm is better at every rate measured")


def test_curves_that_do_not_meet():
    low, high = [18.0, 18.9, 19.5, 19.9, 20.1], [22.1, 23.0, 23.5, 23.8, 24.0]
    found = bd(RATE, low, RATE, high, names=("rdo", "llicm"), unit="dB")
    assert found.rate is None and found.better == "test" and found.overlap == 0
    assert found.reason == (
        "no common quality: llicm 22.1-24.0 dB, rdo 18.0-20.1 dB, llicm is better at every rate measured"
    )
    assert found.quality > 3 and found.quality_interval is None
    swapped = bd(RATE, high, RATE, low, names=("llicm", "rdo"))
    assert swapped.better == "anchor" and "llicm is better" in swapped.reason
    lower = bd(RATE, np.negative(low), RATE, np.negative(high), lower_better=True)
    assert lower.better == "test"

    apart = bd(RATE, RISING, np.array(RATE) * 100, RISING)
    assert apart.rate == pytest.approx(9900) and apart.quality is None
    assert apart.quality_reason.startswith("no common rate: test 10.0-160.0, anchor 0.1-1.6")


def test_too_little_in_common():
    def shifted(share):  # the upper `share` of the anchor's range is common
        return np.array(RISING) + 9 * (1 - share)

    assert bd(RATE, RISING, RATE, shifted(MIN_OVERLAP + 0.01)).rate is not None
    found = bd(RATE, RISING, RATE, shifted(MIN_OVERLAP - 0.01))
    assert found.rate is None and found.quality is not None
    assert found.reason.startswith("only 24% of the shorter curve is common: test 31.8-40.8")
    inside = bd(RATE, RISING, RATE, 30 + (np.array(RISING) - 25) / 9)
    assert inside.overlap == pytest.approx(1), "a short curve inside a long one is wholly common"


def test_near_tie_is_merged_and_noted():
    span = RISING[-1] - RISING[0]
    tie = [*RISING, RISING[-1] - 0.9 * TIE_TOLERANCE * span]
    rate = [*RATE, 1.7]
    found = bd(RATE, RISING, rate, tie, names=("rdo", "llicm"))
    assert found.rate is not None and found.test_monotone and found.test_points == 5
    assert found.note == "2 near-tied points of llicm merged"
    exact = bd(RATE, RISING, rate, [*RISING, RISING[-1]])
    assert exact.rate is not None and exact.test_points == 5
    real = bd(RATE, RISING, rate, [*RISING, RISING[-1] - 1.5 * TIE_TOLERANCE * span])
    assert real.rate is None and real.reason == "quality falls with rate at points 5-6 of test"
    # A slow decline, each step within the tolerance, is a decline.
    step = 0.8 * TIE_TOLERANCE * span
    decline = [*RISING, *(RISING[-1] - step * k for k in (1, 2, 3))]
    assert bd(RATE, RISING, [*RATE, 1.7, 1.8, 1.9], decline).rate is None
    few = bd(RATE, RISING, RATE[:4], [25, 28, 30, 30])
    assert few.rate is None and "3 points after near ties are merged" in few.reason


def test_saturating_curve_that_still_rises_is_not_merged():
    found = bd(RATE, RISING, RATE, [25, 33.9, 33.95, 33.97, 33.98])
    assert found.rate is not None and found.test_points == 5 and found.note == ""


@pytest.mark.parametrize(
    ("rate", "quality", "words"),
    [
        (RATE[:3], RISING[:3], "test has 3 points, 4 are needed"),
        ([0, *RATE[1:]], RISING, "test has a rate that is not a positive number"),
        ([np.nan, *RATE[1:]], RISING, "not a positive number"),
        (RATE, [25, np.nan, 30, 31, 32], "quality of test is not finite at point 2"),
        (RATE, [25.0] * 5, "points after near ties are merged|quality falls"),
        ([0.1, 0.1, 0.2, 0.2, 0.3], RISING, "test has 3 different rates"),
    ],
)
def test_unusable_curves(rate, quality, words):
    found = bd(RATE, RISING, rate, quality)
    assert found.rate is None
    assert re.search(words, found.reason)


def test_order_and_number_of_points_do_not_matter():
    order = [3, 0, 4, 1, 2]
    shuffled = bd(np.take(RATE, order), np.take(RISING, order), [0.1, 0.3, 0.7, 1.5], [26, 29, 32, 34])
    assert shuffled == bd(RATE, RISING, [0.1, 0.3, 0.7, 1.5], [26, 29, 32, 34])
    assert shuffled.rate is not None
    with pytest.raises(ValueError, match="rates and"):
        bd(RATE, RISING[:4], RATE, RISING)


@st.composite
def curves(draw, rising=False):
    n = draw(st.integers(4, 8))
    steps = st.floats(0.05, 2)
    rate = 0.05 * np.exp(np.cumsum(draw(st.lists(steps, min_size=n, max_size=n))))
    low = 0.1 if rising else -1.5
    quality = 20 + np.cumsum(draw(st.lists(st.floats(low, 3), min_size=n, max_size=n)))
    return rate, quality


quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(curves(rising=True), curves(rising=True), st.floats(0.1, 10))
def test_swap_scale_and_shift(a, t, factor):
    found, swapped = bd(*a, *t), bd(*t, *a)
    assert (found.rate is None) == (swapped.rate is None)
    if found.rate is not None:
        assert (1 + found.rate / 100) * (1 + swapped.rate / 100) == pytest.approx(1)
    if found.quality is not None:
        assert found.quality == pytest.approx(-swapped.quality)
    assert {found.better, swapped.better} in ({None}, {"test", "anchor"})
    scaled = bd(a[0] * factor, a[1] - 7, t[0] * factor, t[1] - 7)
    assert scaled.rate == (None if found.rate is None else pytest.approx(found.rate, rel=1e-6, abs=1e-6))


@quick
@given(curves(), curves())
def test_never_a_number_without_a_rule_and_never_a_gap_without_a_reason(a, t):
    found = bd(*a, *t)
    assert (found.rate is None) == (found.reason is not None)
    assert (found.quality is None) == (found.quality_reason is not None)
    if found.rate is not None:
        assert np.isfinite(found.rate) and found.anchor_monotone and found.test_monotone
        assert found.overlap >= MIN_OVERLAP and min(found.anchor_points, found.test_points) >= 4
    for quality, monotone in ((a[1], found.anchor_monotone), (t[1], found.test_monotone)):
        worst = -np.diff(quality).min() / np.ptp(quality) if np.ptp(quality) else 0
        assert monotone or worst > 0
        assert not (monotone and worst > TIE_TOLERANCE)


@quick
@given(curves(rising=True), st.floats(0.05, 5))
def test_a_better_curve_has_a_negative_rate(a, gain):
    assume(gain < 0.7 * np.ptp(a[1]))
    found = bd(*a, a[0], a[1] + gain)
    assert found.quality == pytest.approx(gain)
    assert found.rate is not None and found.rate < 0


def table(methods, tasks=("noisy", "hazy"), images=("a", "b"), metric="psnr"):
    """Records of methods given as name -> task -> gain in quality over RISING."""
    rows = []
    for method, gains in methods.items():
        for task in tasks:
            for image in images:
                for level, (rate, quality) in enumerate(zip(RATE, RISING, strict=True)):
                    offset = 0.5 if image == "a" else -0.5
                    rows.append({
                        "method": method, "family": method, "order": "alone", "task": task, "image": image,
                        "level": level, "bytes": 100, "bpp": rate, "metric": metric,
                        "value": quality + offset + gains[task],
                    })  # fmt: skip
    return pd.DataFrame(rows)


def test_table(tmp_path):
    records = table({"rdo": {"noisy": 0, "hazy": 0}, "llicm": {"noisy": 1, "hazy": 20}})
    write_records(records, tmp_path / "records.csv")
    records = read_records(tmp_path / "records.csv")
    found = bd_table(records, ["psnr"], ["llicm"], ["rdo", "llicm"], ["noisy", "hazy"])
    assert list(found["task"]) == ["noisy", "hazy"] and set(found["anchor"]) == {"rdo"}
    noisy, hazy = (found.iloc[i] for i in (0, 1))
    expected = bd(RATE, RISING, RATE, np.array(RISING) + 1)
    assert noisy["bd_rate"] == pytest.approx(expected.rate) and noisy["bd_quality"] == pytest.approx(1)
    assert noisy["images"] == 2 and noisy["reason"] == ""
    assert np.isnan(hazy["bd_rate"]) and hazy["better"] == "test"
    assert hazy["reason"].startswith("no common quality: llicm 45.0-54.0 dB, rdo 25.0-34.0 dB")


def test_table_takes_direction_from_the_metric(tmp_path):
    records = table({"rdo": {"noisy": 0, "hazy": 0}, "llicm": {"noisy": 1, "hazy": 2}}, metric="piqe")
    records["value"] = 80 - records["value"]
    found = bd_table(records, ["piqe"], ["llicm"], ["rdo"])
    assert (found["bd_rate"] < 0).all() and (found["bd_quality"] > 0).all()


def test_table_refuses_what_cannot_be_compared():
    records = table({"rdo": {"noisy": 0, "hazy": 0}, "llicm": {"noisy": 1, "hazy": 2}})
    with pytest.raises(UserError, match="no psnr of webp on hazy"):
        bd_table(records, ["psnr"], ["llicm"], ["webp"])
    with pytest.raises(UserError, match="Unknown metric 'psnrr'"):
        bd_table(records, ["psnrr"], ["llicm"], ["rdo"])
    fewer = records[~((records["method"] == "rdo") & (records["image"] == "b"))]
    with pytest.raises(UserError, match="different images of hazy"):
        bd_table(fewer, ["psnr"], ["llicm"], ["rdo"])
    gap = records[~((records["method"] == "rdo") & (records["image"] == "b") & (records["level"] == 2))]
    with pytest.raises(UserError, match="rdo, hazy, level 2 lack psnr of image b"):
        mean_curves(gap, "psnr")


def by_image(gains, factor=1.0, tasks=("noisy", "hazy")):
    """Records of rdo, and of llicm with another gain on every image and `factor` times the bytes."""
    rows = []
    for image, gain in gains.items():
        for task in tasks:
            for level, (rate, quality) in enumerate(zip(RATE, RISING, strict=True)):
                for method, more, times in (("rdo", 0, 1), ("llicm", gain, factor)):
                    rows.append({
                        "method": method, "family": method, "order": "alone", "task": task, "image": image,
                        "level": str(level), "bytes": 100, "bpp": rate * times, "metric": "psnr",
                        "value": quality + more,
                    })  # fmt: skip
    return pd.DataFrame(rows)


def test_interval_of_equal_methods_is_zero():
    found = bd_interval(by_image(dict.fromkeys("abc", 0.0)), "psnr", "llicm", "rdo")
    for number in (found.rate, found.quality):
        assert (number.estimate, number.low, number.high) == pytest.approx((0, 0, 0), abs=1e-9)
        assert (number.defined, number.resamples) == (2, 27)
    assert (found.tasks, found.images) == (2, 3)


def test_interval_of_half_the_bytes():
    rate = bd_interval(by_image(dict.fromkeys("abc", 0.0), factor=0.5), "psnr", "llicm", "rdo").rate
    assert (rate.estimate, rate.low, rate.high) == pytest.approx((-50, -50, -50))


def test_interval_agrees_with_the_table_and_with_single_images():
    gains = {"a": 0.2, "b": 0.5, "c": 1.4}
    records = by_image(gains)
    records.loc[records["image"] == "a", "value"] -= 4  # difficult for both
    found = bd_interval(records, "psnr", "llicm", "rdo", ["hazy", "noisy"])
    mean = bd_table(records, ["psnr"], ["llicm"], ["rdo"], ["hazy", "noisy"])[["bd_rate", "bd_quality"]].mean()
    assert (found.rate.estimate, found.quality.estimate) == (mean["bd_rate"], mean["bd_quality"])
    for number in (found.rate, found.quality):
        assert number.low < number.estimate < number.high
    # One offset an image: BD-quality of a resample is the mean gain of what is drawn, so all 27 can be listed.
    means = [np.mean([x, y, z]) for x in gains.values() for y in gains.values() for z in gains.values()]
    assert (found.quality.low, found.quality.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_resamples_are_common_to_both_methods_and_all_tasks():
    # What differs between images alone, or cancels between tasks, gives no width.
    records = by_image({"a": 0.5, "b": 0.5, "c": 0.5})
    records["value"] += 5 * records["image"].map({"a": -1, "b": 0, "c": 1})
    shared = bd_interval(records, "psnr", "llicm", "rdo").quality
    assert (shared.low, shared.high) == pytest.approx((0.5, 0.5))
    opposite = by_image({"a": 0.5, "b": 0.0, "c": -0.5})
    hazy = (opposite["task"] == "hazy") & (opposite["method"] == "llicm")
    opposite.loc[hazy, "value"] -= 2 * opposite["image"].map({"a": 0.5, "b": 0.0, "c": -0.5})
    zero = bd_interval(opposite, "psnr", "llicm", "rdo").quality
    assert (zero.low, zero.high) == pytest.approx((0, 0), abs=1e-9)
    # With other images in each task the draws are independent, and the same differences no longer cancel.
    opposite.loc[opposite["task"] == "hazy", "image"] += "2"
    apart = bd_interval(opposite, "psnr", "llicm", "rdo")
    assert apart.images == 6 and apart.quality.low < -0.1 < 0.1 < apart.quality.high
    assert apart.quality.resamples == 27 * 27


def test_many_images_are_drawn_at_random_by_the_seed():
    records = by_image({f"photo{i}": 0.1 * i for i in range(6)}, tasks=["noisy"])
    first, again, other = (bd_interval(records, "psnr", "llicm", "rdo", draws=60, seed=s) for s in (0, 0, 1))
    assert first == again != other and first.quality.resamples == 60
    # The standard deviation of a mean of six is 0.07: 95% are within about 0.14.
    assert first.quality.low == pytest.approx(0.25 - 0.14, abs=0.06)
    assert first.quality.high == pytest.approx(0.25 + 0.14, abs=0.06)


def test_interval_leaves_out_what_is_undefined():
    records = by_image({"a": 0.5, "b": 1.0})
    records.loc[(records["task"] == "hazy") & (records["method"] == "llicm"), "value"] += 20  # never meet
    found = bd_interval(records, "psnr", "llicm", "rdo")
    assert found.rate.defined == 1 and found.quality.defined == 2 and found.rate.resamples == 4
    assert found.rate.estimate == pytest.approx(bd_interval(records, "psnr", "llicm", "rdo", ["noisy"]).rate.estimate)
    none = bd_interval(records, "psnr", "llicm", "rdo", ["hazy"]).rate
    assert (none.estimate, none.low, none.high, none.resamples) == (None, None, None, 0)
    # On image b alone noisy has no BD-rate either: of the four resamples one is left out.
    records.loc[(records["image"] == "b") & (records["method"] == "llicm"), "value"] += 8
    part = bd_interval(records, "psnr", "llicm", "rdo").rate
    assert (part.defined, part.resamples) == (1, 3)


def test_interval_refuses_senseless_requests():
    records = by_image({"a": 0.0, "b": 1.0})
    for wrong in ({"draws": 0}, {"anchor": "llicm"}):
        with pytest.raises(ValueError, match="two different methods"):
            bd_interval(records, **({"metric": "psnr", "test": "llicm", "anchor": "rdo"} | wrong))
    with pytest.raises(UserError, match="no psnr of webp"):
        bd_interval(records, "psnr", "llicm", "webp")


@pytest.mark.parametrize("lower, transform, wild", [(False, None, 0.05), (True, None, 0.6), (False, to_db, 0.05)])
def test_many_at_once_are_the_same_as_one_by_one(lower, transform, wild):
    generator = np.random.default_rng(0)

    def curves(rows):
        rate = np.sort(generator.uniform(0.05, 2, (rows, 5)), 1)
        value = 25 + 5 * np.log(10 * rate) + generator.normal(0, wild, (rows, 5))
        value[:3] = np.round(value[:3])  # ties
        rate[3, 1] = rate[3, 0]
        return rate, (-value if lower else value) if transform is None else 1 - 10 ** (-value / 60)

    a, t = curves(80), curves(80)
    rates, qualities = _many(*a, *t, lower, transform)
    single = [bd(*points, lower, transform) for points in zip(*a, *t, strict=True)]
    for found, name in ((rates, "rate"), (qualities, "quality")):
        expected = np.array([np.nan if getattr(b, name) is None else getattr(b, name) for b in single])
        assert np.isfinite(expected).sum() > 15
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_an_anchor_for_each_task():
    records = table({
        "rdo": {"noisy": 0, "hazy": 0}, "webp": {"noisy": -1, "hazy": 0.5}, "llicm": {"noisy": 1, "hazy": 2}
    })  # fmt: skip
    found = bd_interval(records, "psnr", "llicm", {"noisy": "rdo", "hazy": "webp"}, ["noisy", "hazy"])
    assert found.quality.estimate == pytest.approx((1 + 1.5) / 2) and found.rate.defined == 2
    one = bd_interval(records, "psnr", "llicm", "webp", ["hazy"])
    both = bd_intervals(records, ["psnr"], "llicm", ["rdo", "webp", "llicm"], ["noisy", "hazy"])
    row = both.set_index(["anchor", "task"]).loc[("webp", "hazy")]
    assert len(both) == 4 and row["defined_rate"] == 1
    assert (row["bd_rate"], row["bd_rate_low"]) == (one.rate.estimate, one.rate.low)
    with pytest.raises(ValueError, match="two different methods"):
        bd_interval(records, "psnr", "llicm", {"noisy": "llicm", "hazy": "rdo"}, ["noisy", "hazy"])


def test_what_other_interpolations_say():
    records = table({"rdo": {"noisy": 0, "hazy": 0}, "llicm": {"noisy": 1, "hazy": 20}})
    found = interpolations(records, ["psnr"], "llicm", ["rdo", "llicm"], ["noisy", "hazy"])
    assert list(found["task"]) == ["noisy"]  # on hazy the curves do not meet
    expected = bd(RATE, RISING, RATE, np.array(RISING) + 1, method="akima").rate
    assert found["akima"].iloc[0] == pytest.approx(expected)
    assert found[["akima", "cubic"]].sub(found["pchip"], axis=0).abs().max(axis=None) < 1
