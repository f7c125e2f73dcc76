# SPDX-License-Identifier: Apache-2.0
"""Tiled restoration: places and weights of tiles, the bound of memory, and that seams cannot be seen."""

import math

import pytest
import torch
import torch.nn.functional as F

from llicm.errors import UserError
from llicm.restore import irsde
from llicm.restore.irsde import IRSDERestorer
from llicm.restore.tiling import fade, spans, tile_side, tiled
from llicm.vlm.context import Context


def psnr(a, b):
    return -10 * math.log10(float((a - b).square().mean()))


def scene(height, width):
    """A smooth picture (1, 3, H, W)."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    colours = [0.5 + 0.3 * torch.sin(5 * x + 2 * y), 0.5 + 0.3 * torch.cos(4 * y - x), 0.4 + 0.4 * x * y]
    return torch.stack(colours)[None]


# Places and weights


def test_tile_side():
    assert tile_side(100 * 64**2, 100, 16) == 64
    assert tile_side(100 * 80**2 - 1, 100, 16) == 64
    assert tile_side(10**9, 1000, 8) == 1000
    for bound in (100 * 64**2 - 1, 0, -5):
        with pytest.raises(UserError, match="restorer.memory .* 64 x 64 pixels takes 409600"):
            tile_side(bound, 100, 16)


@pytest.mark.parametrize("stride", [1, 4, 16])
def test_tiles_cover_and_overlap(stride):
    for strides in (4, 7, 12):
        side = strides * stride
        for overlap in (0, side // 4 // stride * stride, side // 2):
            for length in [*range(1, 3 * side, max(stride // 3, 1)), 10 * side + 1]:
                places = spans(length, side, overlap, stride)
                assert places[0][0] == 0 and places[-1][1] == length
                assert all(start % stride == 0 and 0 < stop - start <= side for start, stop in places)
                for (_, stop), (start, _) in zip(places[:-1], places[1:], strict=True):
                    assert stop - start >= overlap - stride + 1
                total = torch.zeros(length)
                for index, (start, stop) in enumerate(places):
                    weight = fade(places, index, total)
                    assert float(weight.min()) >= 0 and float(weight.max()) <= 1
                    total[start:stop] += weight
                assert float(total.min()) > 0.1  # every pixel is in some tile's good part


def test_neighbours_weights_sum_to_one_and_forget_the_border():
    places = spans(160, 96, 32, 16)
    assert places == [(0, 96), (64, 160)]
    first, second = (fade(places, index, torch.zeros(())) for index in (0, 1))
    assert torch.allclose(first[64:] + second[:32], torch.ones(32), atol=1e-6)
    assert torch.equal(first[:64], torch.ones(64)) and torch.equal(second[32:], torch.ones(64))
    assert float(second[:8].abs().max()) == 0 and float(second[8]) > 0
    steps = second[:33].diff()
    assert float(steps.min()) >= 0 and float(steps.max()) < 0.1  # smooth


def test_impossible_tiles():
    for side, overlap in ((90, 10), (64, 33), (64, -1), (16, 0)):
        with pytest.raises(ValueError, match="side"):
            spans(500, side, overlap, 16)


# Any function


@pytest.mark.parametrize("size", [(50, 70), (130, 64), (129, 200), (300, 7)])
def test_what_works_pixel_by_pixel_is_unchanged_and_no_tile_is_too_large(size):
    x, y = torch.rand(2, 2, 3, *size)
    seen = []

    def function(a, b):
        seen.append(a.shape[-2:])
        return torch.cat([a * b, a - b], 1)

    assert torch.allclose(tiled(function, (x, y), 64, 16, 16), function(x, y), atol=1e-6)
    assert all(max(shape) <= 64 for shape in seen[:-1]) and len(seen) > 2


def test_a_small_neighbourhood_makes_no_difference():
    """A blur of 9 pixels, whose border in a tile is all in the part that does not count."""
    x, kernel = torch.rand(1, 1, 128, 192), torch.rand(1, 1, 9, 9) / 40

    def blur(image):
        return F.conv2d(image, kernel, padding=4)

    assert torch.allclose(tiled(blur, (x,), 64, 32, 8), blur(x), atol=1e-5)
    assert not torch.allclose(tiled(blur, (x,), 64, 0, 8), blur(x), atol=0.05)


def test_half_precision_is_faded_in_single():
    x = torch.rand(1, 3, 100, 100)
    out = tiled(lambda image: image.bfloat16(), (x.bfloat16(),), 64, 16, 16)
    assert out.dtype == torch.float32 and torch.allclose(out, x.bfloat16().float(), atol=1e-6)


# The restorer

VARIANTS = {
    "full": {"nf": 8, "ch_mult": [1, 2, 2], "heads": 0, "scaling": "balanced"},
    "half": {"nf": 16, "ch_mult": [1, 2, 4], "half": True, "heads": 1, "scaling": "balanced"},
    "published": {"nf": 8, "ch_mult": [1, 2, 2], "heads": 2, "scaling": "published"},
}


def build(variant, **changes):
    """A restorer with random weights, that changes an image a good deal."""
    torch.manual_seed(0)
    context = {"degradation": 5, "content": 6}
    model = IRSDERestorer(**VARIANTS[variant], **({"context": context, "predicts": "x0", "steps": 4} | changes)).eval()
    torch.nn.init.normal_(model.unet.final_conv.weight, std=0.05)
    for transformer in model.unet._transformers():
        torch.nn.init.normal_(transformer.proj_out.weight, std=0.05)
    return model, Context(torch.randn(1, 5), torch.randn(1, 6))


def overlaps(height, width, side, stride):
    """Where tiles overlap, (H, W)."""
    seam = torch.zeros(height, width, dtype=torch.bool)
    for view, length in ((seam, height), (seam.T, width)):
        places = spans(length, side, side // 4 // stride * stride, stride)
        for (_, stop), (start, _) in zip(places[:-1], places[1:], strict=True):
            view[start:stop] = True
    return seam


@pytest.mark.parametrize("mode", ["posterior", "deterministic"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_tiles_give_what_the_whole_image_gives(variant, mode):
    model, context = build(variant, mode=mode)
    x = scene(200, 240)
    whole = model(x, None, context)
    model.memory = model.unet.bytes_per_pixel * 96**2
    parts = model(x, None, context)
    assert not torch.equal(parts, whole)
    assert psnr(whole, x) < 40 and psnr(parts, whole) >= 45
    error, seam = (parts - whole).abs().mean((0, 1)), overlaps(200, 240, 96, model.unet.stride)
    assert 0.1 < float(seam.float().mean()) < 0.9
    assert float(error[seam].mean()) <= 1.1 * float(error[~seam].mean()) + 1e-6
    assert float(error[seam].quantile(0.99)) <= 1.5 * float(error[~seam].quantile(0.99)) + 1e-6


@torch.inference_mode()
def test_without_overlap_the_seams_would_be_seen(monkeypatch):
    """That the bounds above can be missed."""
    model, context = build("full")
    x = scene(192, 192)
    whole = model(x, None, context)
    model.memory = model.unet.bytes_per_pixel * 96**2
    good = model(x, None, context)
    monkeypatch.setattr(irsde, "tiled", lambda f, images, side, overlap, stride: tiled(f, images, side, 0, stride))
    bad = model(x, None, context)
    assert float((bad - whole).abs().max()) > 5 * float((good - whole).abs().max())


@torch.inference_mode()
def test_no_call_of_the_network_is_larger_than_the_bound():
    model, context = build("half")
    context = Context(*(e.expand(3, -1) for e in context))
    called = []
    forward = model.unet.forward
    model.unet.forward = lambda x, *rest: called.append(len(x) * x.shape[2] * x.shape[3]) or forward(x, *rest)
    model.memory = model.unet.bytes_per_pixel * 64**2
    model(torch.rand(3, 3, 70, 100), None, context)
    assert max(called) <= 64**2 and len(called) == 3 * 4 * 4  # images, tiles, steps
    called.clear()
    model(torch.rand(3, 3, 50, 64), None, context)  # one fits, three do not
    assert called == [50 * 64] * 12
    called.clear()
    model(torch.rand(3, 3, 32, 24), None, context)
    assert called == [3 * 32 * 24] * 4


@torch.inference_mode()
def test_images_one_at_a_time_are_the_batch():
    model, context = build("full", predicts="noise", steps=100)
    model.steps = 3
    context = Context(torch.randn(2, 5), torch.randn(2, 6))
    x, x_t = torch.rand(2, 2, 3, 64, 72)
    t = torch.tensor([30, 71])
    whole = model.predict_x0(x_t, x, t, context=context)
    model.memory = model.unet.bytes_per_pixel * 72**2
    assert torch.allclose(model.predict_x0(x_t, x, t, context=context), whole, atol=1e-4)


def test_a_bound_that_is_too_small_is_refused_at_once():
    with pytest.raises(UserError, match="restorer.memory 1000 is too small"):
        IRSDERestorer(8, [1, 2], memory=1000)
