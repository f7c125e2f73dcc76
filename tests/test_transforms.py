# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F

from llicm.transforms import BlockDCT, LappedDCT, interleave, pointwise


def test_the_whole_block_transform_is_orthonormal():
    x = torch.rand(2, 3, 32, 48, dtype=torch.float32)
    transform = BlockDCT(768)
    y = transform(x)
    assert y.shape == (2, 768, 2, 3)
    assert torch.allclose(y.square().sum(), x.square().sum(), rtol=1e-5)
    assert torch.allclose(transform.inverse(y), x, atol=1e-5)


def test_fewer_coefficients_keep_the_most_of_a_smooth_picture():
    ramp = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    errors = [(t.inverse(t(ramp)) - ramp).abs().max() for t in map(BlockDCT, (3, 12, 96))]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.03


def test_grey_is_in_the_first_coefficient_alone():
    y = BlockDCT(96)(torch.full((1, 3, 16, 16), 0.5)).flatten()
    assert float(y[0]) == pytest.approx(0.5 * 16 * 3**0.5, rel=1e-4) and float(y[1:].abs().max()) < 1e-4


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("batch", [1, 2])
def test_ways_of_one_picture_that_is_only_coded_give_what_pytorch_gives(layout, batch):
    x, weight = torch.randn(batch, 12, 6, 10).contiguous(memory_format=layout), torch.randn(8, 12, 1, 1)
    for bias in (None, torch.randn(8)):
        expected = F.conv2d(x, weight, bias)
        with torch.no_grad():
            assert torch.allclose(pointwise(x, weight, bias), expected, atol=1e-5)
        learned = pointwise(x, weight.requires_grad_(), bias)  # gradients still pass
        assert torch.equal(
            torch.autograd.grad(learned.sum(), weight)[0],
            torch.autograd.grad(F.conv2d(x, weight, bias).sum(), weight)[0],
        )
        weight.requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(interleave(x, 2), F.pixel_shuffle(x, 2))


def test_unusable_number_of_coefficients():
    with pytest.raises(ValueError, match="769"):
        BlockDCT(769)


@pytest.mark.parametrize("size", [(8, 8), (24, 40)])
def test_lapped_transform_gives_the_picture_back(size):
    x = torch.rand(2, 3, *size)
    transform = LappedDCT()
    y = transform(x)
    assert y.shape == (2, 192, size[0] // 4 + 1, size[1] // 4 + 1)
    assert torch.allclose(transform.inverse(y), x, atol=1e-5)


@pytest.mark.parametrize("transform", [BlockDCT(48), LappedDCT()])
def test_transforms_stay_in_float32_under_autocast(transform):
    x = torch.rand(1, 3, 16, 16)
    plain = transform(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(transform(x), plain)
