# SPDX-License-Identifier: Apache-2.0
import shutil
from pathlib import Path

import pytest
import torch

from llicm.codec.mean_scale import make_codec
from llicm.errors import UserError
from llicm.framework import LLICM, load_part, save_part
from llicm.images import quantize8
from llicm.methods import find_part, load_methods
from llicm.restore.direct import AFFINE_SCALE, make_restorer
from llicm.vlm.conditioner import Oracle

NO_VLM = Path("none")
ALL = {"c": "alone", "c>r": "after", "r>c": "before"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    codec = make_codec("mean-scale", N=8, M=48, lambdas=[0.002, 0.007, 0.02, 0.07])
    codec.update()
    save_part(codec, root / "separate" / "codec" / "codec.safetensors")
    restorer = make_restorer("direct", width=8, blocks=[1, 1, 1])
    with torch.no_grad():
        restorer.affine.bias[3:] = 0.2 / AFFINE_SCALE  # brightens: visible wherever it is applied
    save_part(restorer, root / "separate" / "restorer" / "restorer.safetensors")
    return root


@pytest.fixture(scope="module")
def photo():
    coarse = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=(96, 120), mode="bicubic")[0].clamp(0, 0.4)


def family(codec, levels):
    return {"codec": codec, "models": "separate", "methods": ALL, "levels": levels}


@pytest.mark.parametrize("codec, levels", [("jpeg", [20, 60]), ("webp", [20, 60]), ("learned", [0, 3])])
def test_three_orders(models, photo, codec, levels):
    alone, after, before = load_methods("f", family(codec, levels), models, NO_VLM)
    a, b, c = (method.run(photo, levels[1]) for method in (alone, after, before))
    assert a.data == b.data and torch.equal(a.decoded, b.decoded) and torch.equal(a.output, a.decoded)
    assert b.output.mean() > 1.5 * b.decoded.mean()  # restored after decoding
    assert c.data != a.data and torch.equal(c.output, c.decoded)
    assert a.bpp == 8 * len(a.data) / (96 * 120)
    assert len(alone.run(photo, levels[0]).data) < len(a.data)


@pytest.mark.parametrize("codec, level", [("webp", 60), ("learned", 3)])
def test_around_is_before_and_after_with_a_restorer_each(models, photo, tmp_path, codec, level):
    shutil.copytree(models / "separate" / "codec", tmp_path / "both")
    darker = make_restorer("direct", width=8, blocks=[1, 1, 1], level_conditioned=True)
    with torch.no_grad():
        darker.affine.bias[3:] = -0.1 / AFFINE_SCALE
    save_part(darker, tmp_path / "both" / "restorer.safetensors")
    spec = {"codec": codec, "models": "both", "methods": {"r>c>a": "around", "c": "alone"}, "levels": [level]}
    with pytest.raises(UserError, match="0 files named prefilter.safetensors"):
        load_methods("f", spec, tmp_path, NO_VLM)
    shutil.copy(models / "separate" / "restorer" / "restorer.safetensors", tmp_path / "both" / "prefilter.safetensors")
    around, alone = load_methods("f", spec, tmp_path, NO_VLM)
    before = load_methods("f", family(codec, [level]), models, NO_VLM)[2].run(photo, level)
    memo = {}
    one, other = around.run(photo, level, memo=memo), alone.run(photo, level, memo=memo)
    told = int(codec == "webp")  # the byte for the quality, see below
    assert one.data[: len(one.data) - told] == before.data and torch.equal(one.decoded, before.decoded)
    assert one.output.mean() < 0.9 * one.decoded.mean() and other.output.mean() < 0.9 * one.decoded.mean()
    if codec == "learned":
        parts = (load_part(kind, find_part(kind, tmp_path / "both")) for kind in ("codec", "restorer"))
        prefilter = load_part("prefilter", tmp_path / "both" / "prefilter.safetensors")
        system = LLICM(*parts, prefilter=prefilter)
        assert system.compress(photo, level) == one.data
        assert torch.equal(quantize8(system.decompress(one.data)[1]), one.output)


def test_raw_is_the_image_itself(models, photo):
    spec = {"codec": "raw", "models": "none", "methods": {"x": "alone"}, "levels": [0]}
    (raw,) = load_methods("raw", spec, models, NO_VLM)
    coded = raw.run(photo, 0)
    assert coded.bpp == 24 and (coded.output - photo).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("codec, levels", [("jpeg", [5, 90]), ("learned", [0, 3])])
def test_rate_is_matched(models, photo, codec, levels):
    method = load_methods("f", family(codec, levels), models, NO_VLM)[0]
    low, high = (method.run(photo, level).bpp for level in levels)
    target = (low + high) / 2
    assert abs(method.at_bpp(photo, target).bpp - target) < 0.15 * (high - low)
    assert method.at_bpp(photo, 100).bpp == high and method.at_bpp(photo, 0).bpp == low


def test_only_an_oracle_is_told_the_task(models, photo, tmp_path):
    restorer = make_restorer("direct", width=8, blocks=[1, 1, 1], context={"words": ["noisy", "hazy"]})
    torch.nn.init.normal_(restorer.affine.weight)
    for film in (m.film for m in restorer.modules() if hasattr(m, "film")):
        torch.nn.init.normal_(film.weight)
    save_part(restorer, tmp_path / "oracle" / "restorer.safetensors")
    spec = {"codec": "jpeg", "models": "oracle", "methods": {"j>r": "after", "r>j": "before"}, "levels": [20, 60]}
    after, before = load_methods("oracle", spec, tmp_path, NO_VLM)
    assert isinstance(after.conditioner, Oracle)
    hazy, noisy = (after.run(photo, 20, task) for task in ("hazy", "noisy"))
    assert torch.equal(hazy.decoded, noisy.decoded) and not torch.equal(hazy.output, noisy.output)
    assert before.run(photo, 20, "hazy").data != before.run(photo, 20, "noisy").data
    assert torch.equal(after.at_bpp(photo, 0, "hazy").output, hazy.output)
    with pytest.raises(ValueError, match="must be told"):
        after.run(photo, 20)
    detecting = load_methods("f", family("jpeg", [20]), models, NO_VLM)[1]
    assert torch.equal(detecting.run(photo, 20, "hazy").output, detecting.run(photo, 20).output)


def test_wrong_names_are_told(models):
    with pytest.raises(UserError, match="nonesuch.*learned.*jpeg"):
        load_methods("f", family("nonesuch", [1]), models, NO_VLM)
    with pytest.raises(UserError, match="sideways.*alone"):
        load_methods("f", family("jpeg", [1]) | {"methods": {"j": "sideways"}}, models, NO_VLM)
    with pytest.raises(UserError, match="restorer.safetensors.*dvc repro"):
        load_methods("f", family("jpeg", [1]) | {"models": "absent"}, models, NO_VLM)


def test_methods_that_differ_in_diffusion_steps(models, photo, tmp_path):
    torch.manual_seed(0)
    irsde = make_restorer("irsde", nf=4, ch_mult=[1, 2], half=True, heads=0, predicts="x0", scaling="balanced", steps=3)
    torch.nn.init.normal_(irsde.unet.final_conv.weight, std=0.05)
    for name, restorer in {"irsde": irsde, "direct": make_restorer("direct", width=8, blocks=[1, 1, 1])}.items():
        save_part(restorer, tmp_path / "separate" / name / "restorer.safetensors")
    methods = {"own": "after", "one": {"order": "after", "steps": 1}, "five": {"order": "after", "steps": 5}}
    spec = {"codec": "jpeg", "models": "separate", "methods": methods, "levels": [30]}
    with pytest.raises(UserError, match="2 files named restorer.safetensors"):
        load_methods("f", spec, tmp_path, NO_VLM)
    own, one, five = load_methods("f", spec | {"restorer": "irsde"}, tmp_path, NO_VLM)
    calls = []
    own.restorer.unet.register_forward_hook(lambda *_: calls.append(1))
    counts = []
    for method in (own, one, five, one):
        calls.clear()
        assert method.run(photo, 30).seconds > 0
        counts.append(len(calls))
    assert counts == [3, 1, 5, 1]
    assert not torch.equal(one.run(photo, 30).output, five.run(photo, 30).output)
    with pytest.raises(UserError, match="'one' has steps, but its restorer is no diffusion model"):
        load_methods("f", spec | {"restorer": "direct"}, tmp_path, NO_VLM)


@pytest.mark.parametrize("codec, level", [("jpeg", 40), ("heic", 20)])
def test_a_restorer_adapted_to_a_conventional_codec_is_told_the_quality(models, photo, tmp_path, codec, level):
    plain = load_methods("f", family(codec, [level]), models, NO_VLM)[1].run(photo, level)
    restorer = make_restorer("direct", width=8, blocks=[1, 1, 1], level_conditioned=True)
    seen = []
    save_part(restorer, tmp_path / "adapted" / "restorer.safetensors")
    spec = {"codec": codec, "models": "adapted", "methods": {"c>a": "after"}, "levels": [level]}
    (adapted,) = load_methods("f", spec, tmp_path, NO_VLM)
    adapted.restorer.register_forward_pre_hook(lambda module, args: seen.append(float(args[1])))
    told = adapted.run(photo, level)
    assert len(told.data) == len(plain.data) + 1 and torch.equal(told.decoded, plain.decoded)
    assert seen == [pytest.approx(level / {"jpeg": 100, "heic": 51}[codec], abs=0.5 / 255)]
