# SPDX-License-Identifier: Apache-2.0
"""Large pictures go through the networks in strips, which must give what the whole picture gives."""

import pytest
import torch
import torch.nn.functional as F

from llicm import strips
from llicm.registry import CODECS, RESTORERS
from llicm.strips import by_strips


def picture(height, width):
    generator = torch.Generator().manual_seed(0)
    return F.interpolate(torch.rand(1, 3, 30, 30, generator=generator), (height, width), mode="bicubic")[0].clamp(0, 1)


def scattered(part, seed=1):
    """The part with numbers everywhere, also where it begins with zeros, so that all that a network sees matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in part.named_parameters():
            if "log_" not in name and not name.startswith("eb_z"):
                value.add_(torch.randn(value.shape, generator=generator), alpha=0.3 / max(value[0].numel(), 1) ** 0.5)
    return part


def small_codec(name):
    torch.manual_seed(0)
    codec = scattered(CODECS.make(name, N=8, M=24, lambdas=[0.002, 0.02, 0.1]))
    codec.update()
    return codec.to(memory_format=torch.channels_last).eval()


@pytest.mark.parametrize("size", [(517, 203), (64, 700), (700, 40), (1, 900), (640, 256)])
@pytest.mark.parametrize("name", ["mean-scale", "context"])
def test_files_and_pictures_are_those_of_the_whole_picture(name, size, monkeypatch):
    codec, x = small_codec(name), picture(*size)
    whole = codec.compress(x, 1.3)
    decoded, _ = codec.decompress(whole)
    assert decoded.shape == x.shape and decoded.is_contiguous()
    for pixels in (1, 150 * size[1]):
        monkeypatch.setattr(strips, "PIXELS", pixels)
        assert codec.compress(x, 1.3) == whole
        assert float((codec.decompress(whole)[0] - decoded).abs().max()) < 1e-6


@pytest.mark.parametrize("name", ["mean-scale", "context"])
def test_less_overlap_would_be_seen(name, monkeypatch):
    """That the test above can fail."""
    codec, x = small_codec(name), picture(700, 100)
    decoded, _ = codec.decompress(data := codec.compress(x, 1.3))
    monkeypatch.setattr(strips, "PIXELS", 1)
    monkeypatch.setattr(codec, "reach", codec.reach - 2)
    assert float((codec.decompress(data)[0] - decoded).abs().max()) > 1e-5


@pytest.mark.parametrize("size", [(200, 120), (203, 117), (1, 300), (300, 9)])
@torch.no_grad()
def test_restored_pictures_are_those_of_the_whole_picture(size, monkeypatch):
    """But for the order of sums: statistics of the whole picture are added up row by row."""
    torch.manual_seed(0)
    restorer = scattered(RESTORERS.make("direct", width=8, blocks=[1, 2, 1], level_conditioned=True)).eval()
    x, level = picture(*size)[None], torch.tensor([0.4])
    before = x.clone()
    whole = restorer(x, level)
    assert not torch.allclose(whole, x, atol=0.05)
    for pixels in (1, 40 * size[1]):
        monkeypatch.setattr(strips, "PIXELS", pixels)
        assert float((restorer(x, level) - whole).abs().max()) < 2e-5
        assert torch.equal(x, before)


@pytest.mark.parametrize("rows, units", [(2, 9), (3, 1), (1, 5)])
@pytest.mark.parametrize("reach", [0, 1, 2])
def test_any_function_that_sees_its_neighbours(rows, units, reach, monkeypatch):
    x, y = torch.rand(1, 2, rows * units, 7), torch.rand(1, 1, units, 7)
    kernel = torch.rand(2, 2, 2 * reach * rows + 1, 1)

    def function(a, b):
        return F.conv2d(a, kernel, padding=(reach * rows, 0)) + b.repeat_interleave(rows, 2)

    with torch.no_grad():
        whole = function(x, y)
        monkeypatch.setattr(strips, "PIXELS", 1)
        assert torch.allclose(by_strips(function, [x, y], [rows, 1], reach, 7 * rows), whole)
        cut = torch.empty(1, 2, rows * units - rows + 1, 7)
        by_strips(function, [x, y], [rows, 1], reach, 7 * rows, into=cut)
        assert torch.allclose(cut, whole[:, :, : cut.shape[2]])
        by_strips(function, [x, y], [rows, 1], reach, 7 * rows, into=x)  # over what it reads
        assert torch.allclose(x, whole)


def test_one_strip_gives_no_memory_back(monkeypatch):
    monkeypatch.setattr(strips, "give_back", lambda: pytest.fail("the next picture would have to ask for it again"))
    x, into = torch.rand(1, 2, 8, 7), torch.empty(1, 2, 7, 7)
    with torch.no_grad():
        assert by_strips(lambda a: 2 * a, [x], [1], 1, 7, into=into) is into
    assert torch.equal(into, 2 * x[:, :, :7])


def test_where_gradients_are_recorded_all_is_one_strip(monkeypatch):
    monkeypatch.setattr(strips, "PIXELS", 1)
    seen = []
    by_strips(lambda a: seen.append(a.shape) or a, [torch.rand(1, 1, 40, 40)], [1], 1, 40)
    assert seen == [(1, 1, 40, 40)]
