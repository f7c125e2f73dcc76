# SPDX-License-Identifier: Apache-2.0
"""Encoder effort: smaller J by real files, never a larger one, the same bytes again, and any decoder reads them."""

import math

import pytest
import torch
import torch.nn.functional as F
from small import train_codec

from llicm import cli
from llicm.codec import effort, learned
from llicm.codec.bitstream import unpack
from llicm.framework import LLICM
from llicm.images import quantize8, write_png
from llicm.model import load_model, save_model
from llicm.registry import CODECS
from llicm.weights import load_part, save_part

LAMBDAS = [0.002, 0.01, 0.05]
MEAN_SCALE = {"name": "mean-scale", "N": 8, "M": 48, "lambdas": LAMBDAS}
CONTEXT = {"name": "context", "N": 8, "M": 48, "lambdas": LAMBDAS, "features": 32, "loop": 8}


@pytest.fixture(scope="module")
def photo():
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(1, 3, 10, 12, generator=generator)
    x = F.interpolate(coarse, size=(100, 128), mode="bicubic")[0]
    return quantize8((x + 0.01 * torch.randn(x.shape, generator=generator)).clamp(0, 1))


@pytest.fixture(scope="module", params=[MEAN_SCALE, CONTEXT], ids=["mean-scale", "context"])
def codec(request, photo):
    """A codec that has learned this photo a little."""
    torch.manual_seed(0)
    codec = CODECS.make(**request.param)

    def batches():
        for _ in range(40):
            tops, lefts, level = torch.randint(37, (4,)), torch.randint(65, (4,)), torch.rand(4) * 2
            yield torch.stack([photo[:, t : t + 64, s : s + 64] for t, s in zip(tops, lefts, strict=True)]), level

    train_codec(codec, batches())
    return codec


def cost(codec, x, data):
    """J, from the file alone."""
    decoded, level = codec.decompress(data)
    mse = 255**2 * float((decoded - x).square().mean())
    return 8 * len(data) / x[0].numel() + float(codec.lambdas(torch.tensor([level]))) * mse


@pytest.mark.parametrize("level", [0.0, 1.3, 2.0])
def test_it_gains(codec, photo, level, tmp_path):
    plain, refined = codec.compress(photo, level), codec.compress(photo, level, effort=30)
    assert cost(codec, photo, refined) < 0.995 * cost(codec, photo, plain)
    assert unpack(refined).level == unpack(plain).level
    save_part(codec, tmp_path / "codec.safetensors")
    decoder = load_part("codec", tmp_path / "codec.safetensors")
    stream = unpack(refined)
    assert all(torch.equal(a, b) for a, b in zip(decoder.latent(stream), codec.latent(stream), strict=True))
    assert torch.allclose(decoder.decompress(refined)[0], codec.decompress(refined)[0], atol=1e-5)


def test_more_steps_gain_more(codec, photo):
    costs = [cost(codec, photo, codec.compress(photo, 1, steps)) for steps in (0, 10, 40)]
    assert costs[2] < costs[1] <= costs[0]


@pytest.mark.parametrize("steps", [1, 3])
def test_never_worse(codec, photo, steps):
    for x in (photo, photo[:, :3, :5], torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1))):
        for level in (0, 2):
            assert cost(codec, x, codec.compress(x, level, steps)) <= cost(codec, x, codec.compress(x, level))


def test_what_does_not_gain_is_not_taken(codec, photo, monkeypatch):
    monkeypatch.setattr(learned, "refine", lambda codec, x, y, *rest: y + 3)
    assert codec.compress(photo, 1, effort=5) == codec.compress(photo, 1)


def test_the_same_bytes_again(codec, photo):
    data = codec.compress(photo, 1.5, effort=5)
    state = torch.manual_seed(17).get_state()
    assert codec.compress(photo, 1.5, effort=5) == data
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's random numbers are touched
    with torch.autocast("cpu", torch.bfloat16):
        assert codec.compress(photo, 1.5, effort=5) == data


def test_without_effort_nothing_changes(codec, photo):
    assert codec.compress(photo, 1, 0) == codec.compress(photo, 1)


def test_large_pictures_are_refined_in_tiles(codec, photo, monkeypatch):
    seen, estimate = [], codec.estimate
    plain, whole = codec.compress(photo, 1), codec.compress(photo, 1, 20)
    monkeypatch.setattr(effort, "_TILE", 1)
    monkeypatch.setattr(codec, "estimate", lambda y, *rest: (seen.append(y.shape[2:]), estimate(y, *rest))[1])
    tiled = codec.compress(photo, 1, 20)
    assert len(seen) == 20 * 4  # steps of four tiles
    costs = [cost(codec, photo, data) for data in (plain, whole, tiled)]
    assert costs[2] - costs[0] < 0.7 * (costs[1] - costs[0])


def test_a_tile_changes_nothing_outside(codec, photo, monkeypatch):
    monkeypatch.setattr(effort, "_TILE", 1)
    monkeypatch.setattr(effort, "_descend", lambda codec, x, y, z, changes, *rest: y.add_(changes))
    x, z = torch.zeros(3, 150, 250), torch.zeros(1, 8, 3, 4)
    y = effort.refine(codec, x, torch.zeros(1, 48, 12, 16), z, 1.0, 1)
    assert torch.equal(y, torch.ones_like(y))  # each place belongs to one tile


@pytest.mark.parametrize("number", [-1, 10_001, 1.5, math.nan, True, "20", None])
def test_what_is_no_effort_is_refused(codec, photo, number):
    with pytest.raises(ValueError, match="whole number of steps from 0 to 10000"):
        LLICM(codec, None).compress(photo, 1, number)


@pytest.mark.parametrize("number", ["-1", "10001", "1.5", "nan", "1e3", "much", ""])
def test_wrong_efforts_of_the_command(number, tmp_path, monkeypatch, capsys, photo):
    monkeypatch.chdir(tmp_path)
    write_png(photo, "a.png")
    assert cli.main(["compress", "a.png", "--effort", number]) == 2
    assert "--effort" in capsys.readouterr().err and not (tmp_path / "a.llicm").exists()


def test_the_command(codec, photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_png(photo, "a.png")
    save_model(LLICM(codec, None), "model.safetensors")
    model = load_model("model.safetensors")
    for options in (["--level", "1"], ["--bytes", "1200"]):
        arguments = ["compress", "a.png", "--model", "model.safetensors", "--force", *options]
        assert cli.main([*arguments, "-o", "plain.llicm"]) == 0
        assert cli.main([*arguments, "-o", "refined.llicm", "--effort", "3"]) == 0
        plain, refined = ((tmp_path / f"{name}.llicm").read_bytes() for name in ("plain", "refined"))
        if options[0] == "--level":
            assert refined == model.compress(photo, 1, 3) and cost(codec, photo, refined) <= cost(codec, photo, plain)
        else:
            assert len(refined) <= 1200
