# SPDX-License-Identifier: Apache-2.0
"""Methods with their weights, on images."""

import pytest
import torch
from small import DIRECT

from llicm.benchmark.runners import Clock, load_runners
from llicm.errors import UserError
from llicm.framework import LLICM
from llicm.images import quantize8
from llicm.methods import methods_of
from llicm.parameters import Group
from llicm.registry import CODECS, RESTORERS
from llicm.restore.direct import AFFINE_SCALE
from llicm.vlm.conditioner import Oracle
from llicm.weights import load_part, save_part


def brightening(by, **more):
    """A restorer whose effect is visible wherever it is applied."""
    restorer = RESTORERS.make(**DIRECT, **more)
    with torch.no_grad():
        restorer.affine.bias[3:] = by / AFFINE_SCALE
    return restorer


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    codec = CODECS.make("mean-scale", N=8, M=48, lambdas=[0.002, 0.007, 0.02, 0.07])
    codec.update()
    brighter, darker = brightening(0.2), brightening(-0.1, level_conditioned=True)
    save_part(codec, root / "rdo" / "codec.safetensors")
    save_part(brighter, root / "restorer" / "restorer.safetensors")
    for name, part in {"codec": codec, "restorer": darker, "prefilter": brighter}.items():
        save_part(part, root / "both" / f"{name}.safetensors")
    return root


@pytest.fixture(scope="module")
def photo():
    coarse = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=(96, 120), mode="bicubic")[0].clamp(0, 0.4)


def load(models, methods, levels):
    """Runners of these methods, by the weight files there are."""
    parts = {folder.name: {path.stem for path in folder.glob("*.safetensors")} for folder in models.iterdir()}
    group = Group.model_validate({"methods": methods, "models": ["none"] * 3, "levels": levels})
    return load_runners(methods_of({"g": group}, parts), models)


@pytest.mark.parametrize("codec, levels", [("jpeg", [20, 60]), ("webp", [20, 60]), ("rdo", [0, 3])])
def test_three_orders(models, photo, codec, levels):
    alone, after, before = load(models, [codec, f"{codec}>restorer", f"restorer>{codec}"], levels)
    a, b, c = (method.run(photo, levels[1]) for method in (alone, after, before))
    assert a.data == b.data and torch.equal(a.decoded, b.decoded) and torch.equal(a.output, a.decoded)
    assert b.output.mean() > 1.5 * b.decoded.mean()  # restored after decoding
    assert c.data != a.data and torch.equal(c.output, c.decoded)
    assert a.bpp == 8 * len(a.data) / (96 * 120)
    assert len(alone.run(photo, levels[0]).data) < len(a.data)


@pytest.mark.parametrize("codec, level", [("webp", 60), ("rdo", 3)])
def test_around_is_before_and_after_with_a_restorer_each(models, photo, codec, level):
    methods = [f"restorer>{codec}>both", codec, f"restorer>{codec}", f"{codec}>both"]
    around, alone, before, after = load(models, methods, [level])
    memo = {}
    one, other, first = (method.run(photo, level, memo=memo) for method in (around, alone, before))
    told = int(codec == "webp")  # the byte for the quality, see below
    assert one.data[: len(one.data) - told] == first.data and torch.equal(one.decoded, first.decoded)
    assert one.output.mean() < 0.9 * one.decoded.mean()
    # what the methods share does not mix them up
    assert other.data != first.data and torch.equal(other.output, other.decoded)
    for method, shared in ((around, one), (alone, other), (before, first)):
        anew = method.run(photo, level)
        assert anew.data == shared.data and torch.equal(anew.output, shared.output)
    last = after.run(photo, level, memo=memo)
    assert last.data[: len(last.data) - told] == other.data and last.output.mean() < 0.9 * last.decoded.mean()


def test_a_whole_model_is_a_method_in_one_word(models, photo):
    (both,) = load(models, ["both"], [3])
    coded = both.run(photo, 3)
    parts = {kind: load_part(kind, models / "both" / f"{kind}.safetensors") for kind in ("codec", "restorer")}
    prefilter = load_part("prefilter", models / "both" / "prefilter.safetensors")
    system = LLICM(**parts, prefilter=prefilter)
    assert system.compress(photo, 3) == coded.data != LLICM(**parts).compress(photo, 3)
    assert torch.equal(quantize8(system.decompress(coded.data)[1]), coded.output)
    assert torch.equal(coded.source, system.prefiltered(photo))  # what a rate is estimated of


def test_raw_is_the_image_itself(models, photo):
    (raw,) = load(models, ["raw"], [0])
    coded = raw.run(photo, 0)
    assert coded.bpp == 24 and (coded.output - photo).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("codec, levels", [("jpeg", [5, 90]), ("rdo", [0, 3])])
def test_rate_is_matched(models, photo, codec, levels):
    (method,) = load(models, [codec], levels)
    low, high = (method.run(photo, level).bpp for level in levels)
    target = (low + high) / 2
    assert abs(method.at_bpp(photo, target).bpp - target) < 0.15 * (high - low)
    assert method.at_bpp(photo, 100).bpp == high and method.at_bpp(photo, 0).bpp == low


def test_a_search_for_a_rate_restores_before_the_codec_once(models, photo):
    (method,) = load(models, ["restorer>jpeg"], [5, 90])
    calls = []
    method.prefilter.network.register_forward_hook(lambda *_: calls.append(1))
    assert method.at_bpp(photo, 1.0).bpp > 0 and len(calls) == 1


def test_only_an_oracle_hears_of_the_task(models, photo, tmp_path):
    restorer = RESTORERS.make(**DIRECT, context={"words": ["noisy", "hazy"]})
    torch.nn.init.normal_(restorer.affine.weight)
    for film in (m.film for m in restorer.modules() if hasattr(m, "film")):
        torch.nn.init.normal_(film.weight)
    save_part(restorer, tmp_path / "oracle" / "restorer.safetensors")
    after, before = load(tmp_path, ["jpeg>oracle", "oracle>jpeg"], [20, 60])
    assert isinstance(after.restorer.conditioner, Oracle)
    hazy, noisy = (after.run(photo, 20, task) for task in ("hazy", "noisy"))
    assert torch.equal(hazy.decoded, noisy.decoded) and not torch.equal(hazy.output, noisy.output)
    assert before.run(photo, 20, "hazy").data != before.run(photo, 20, "noisy").data
    assert torch.equal(after.at_bpp(photo, 0, "hazy").output, hazy.output)
    with pytest.raises(ValueError, match="an oracle needs a hint"):
        after.run(photo, 20)
    (detecting,) = load(models, ["jpeg>restorer"], [20])
    assert torch.equal(detecting.run(photo, 20, "hazy").output, detecting.run(photo, 20).output)


def test_what_is_missing_is_named(models, tmp_path):
    with pytest.raises(UserError, match="nonesuch.*raw.*jpeg"):
        load(models, ["nonesuch"], [1])
    (tmp_path / "absent").mkdir()
    group = Group.model_validate({"methods": ["jpeg>absent"], "models": ["none"] * 3, "levels": [1]})
    methods = methods_of({"g": group}, {"absent": {"restorer"}})
    with pytest.raises(UserError, match="absent/restorer.safetensors.*dvc repro"):
        load_runners(methods, tmp_path)


def test_methods_that_differ_in_diffusion_steps(models, photo, tmp_path):
    torch.manual_seed(0)
    irsde = RESTORERS.make(
        "irsde", nf=4, ch_mult=[1, 2], half=True, heads=0, predicts="x0", scaling="balanced", steps=3
    )
    torch.nn.init.normal_(irsde.unet.final_conv.weight, std=0.05)
    for name, restorer in {"irsde": irsde, "direct": RESTORERS.make(**DIRECT)}.items():
        save_part(restorer, tmp_path / name / "restorer.safetensors")
    own, one, five = load(tmp_path, ["jpeg>irsde", "jpeg>irsde@1", "jpeg>irsde@5"], [30])
    assert own.restorer is one.restorer is five.restorer, "a file is read once"
    calls = []
    own.restorer.network.unet.register_forward_hook(lambda *_: calls.append(1))
    counts = []
    for method in (own, one, five, one):
        calls.clear()
        assert method.run(photo, 30).seconds > 0
        counts.append(len(calls))
    assert counts == [3, 1, 5, 1]
    assert not torch.equal(one.run(photo, 30).output, five.run(photo, 30).output)
    with pytest.raises(UserError, match="'jpeg>direct@4' has steps, but its restorer is no diffusion model"):
        load(tmp_path, ["jpeg>direct@4"], [30])


@pytest.mark.parametrize("codec, level", [("jpeg", 40), ("heic", 20)])
def test_a_restorer_adapted_to_a_conventional_codec_gets_the_quality(models, photo, tmp_path, codec, level):
    (plain,) = load(models, [f"{codec}>restorer"], [level])
    plain, seen = plain.run(photo, level), []
    save_part(RESTORERS.make(**DIRECT, level_conditioned=True), tmp_path / "adapted" / "restorer.safetensors")
    (adapted,) = load(tmp_path, [f"{codec}>adapted"], [level])
    adapted.restorer.network.register_forward_pre_hook(lambda module, args: seen.append(float(args[1])))
    told = adapted.run(photo, level)
    assert len(told.data) == len(plain.data) + 1 and torch.equal(told.decoded, plain.decoded)
    assert seen == [pytest.approx(level / {"jpeg": 100, "heic": 51}[codec], abs=0.5 / 255)]


def test_seconds_are_counted_by_what_took_them(models, photo):
    (method,) = load(models, ["restorer>jpeg>both"], [30])
    clock = Clock()
    coded = method.run(photo, 30, clock=clock)
    assert set(clock.seconds) == {"encode", "decode", "restore"} and min(clock.seconds.values()) > 0
    assert coded.seconds == pytest.approx(clock.seconds["restore"])
