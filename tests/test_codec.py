# SPDX-License-Identifier: Apache-2.0
import dataclasses
import time
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llicm.codec.bitstream import pack, unpack
from llicm.errors import BitstreamError, UserError
from llicm.objectives import bits_per_pixel
from llicm.registry import CODECS
from llicm.weights import load_part, save_part

LAMBDAS = [0.002, 0.007, 0.02, 0.07]


@pytest.fixture(scope="module")
def codec():
    """A tiny codec whose networks are made to matter, as they do after training."""
    torch.manual_seed(0)
    codec = CODECS.make("mean-scale", N=8, M=12, lambdas=LAMBDAS)
    with torch.no_grad():
        codec.decide[-1].weight.normal_(0, 0.1)
        codec.g_s[-2].weight.normal_(0, 0.01)
        codec.h_a[-1].weight.mul_(5)
    codec.update()
    return codec.to(memory_format=torch.channels_last).eval()


@pytest.fixture(scope="module")
def image():
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, 7, 9, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(101, 147), mode="bicubic")[0].clamp(0, 1)


@pytest.mark.parametrize("level", [0, 1.5, 3])
def test_decoding_gives_what_training_saw(codec, image, level):
    """Real bytes end in the picture of the training pass, but for symbols that are too unlikely to be coded."""
    x = torch.nn.functional.interpolate(image[None], size=(128, 192), mode="bicubic").clamp(0, 1)
    data = codec.compress(x[0], level)
    decoded, decoded_level = codec.decompress(data)
    with torch.no_grad():
        seen = codec(x, torch.tensor([float(level)]))["x_hat"][0].clamp(0, 1)
    assert decoded.shape == x.shape[1:] and decoded_level == level
    assert (decoded - seen).abs().max() < 2e-3
    assert codec.compress(x[0], level) == data


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (64, 64), (65, 129)])
def test_any_size(image, size):
    fresh = CODECS.make("mean-scale", N=8, M=96, lambdas=LAMBDAS)
    fresh.update()
    x = torch.nn.functional.interpolate(image[None], size=size, mode="area")[0]
    decoded, _ = fresh.eval().decompress(fresh.compress(x, 3))
    assert decoded.shape == x.shape
    assert (decoded - x).abs().mean() < (0.1 if min(size) == 3 else 0.03)  # in three rows it is all contrast


def test_higher_levels_spend_more(codec, image):
    sizes = [len(codec.compress(image, level)) for level in (0, 0.5, 1, 2, 3)]
    assert sizes == sorted(sizes) and sizes[-1] > 1.3 * sizes[0]


def test_gains_interpolate_geometrically(codec):
    low, high, middle = (codec.gains(torch.tensor([level]))[0] for level in (1.0, 2.0, 1.5))
    assert torch.allclose(middle, (low * high).sqrt())
    assert codec.lambdas(torch.tensor([1.0, 1.5, 2.0])).tolist() == pytest.approx([0.007, (0.007 * 0.02) ** 0.5, 0.02])


def test_estimated_rate_bounds_the_real_one(codec):
    """Untrained scales put many symbols below the likelihood bound of 1e-9: the estimate lies above the real rate."""
    x = torch.rand(3, 256, 256, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        out = codec(x[None], torch.tensor([3.0]))
    estimate = float(bits_per_pixel(out["likelihoods"], 256, 256))
    real = 8 * len(codec.compress(x, 3)) / 256**2
    assert 0.6 * estimate < real < 1.02 * estimate + 8 * 100 / 256**2


def test_gradient_reaches_every_parameter(codec):
    torch.manual_seed(0)
    fresh = CODECS.make("mean-scale", N=8, M=12, lambdas=LAMBDAS)
    out = fresh(torch.rand(4, 3, 64, 64), torch.tensor([0.0, 1.0, 2.0, 3.0]))
    (out["x_hat"].square().mean() + bits_per_pixel(out["likelihoods"], 64, 64).mean()).backward()
    without = [n for n, p in fresh.named_parameters() if p.grad is None and not n.endswith("quantiles")]
    assert without == []


def test_untrained_codec_is_a_transform_codec(image):
    """Its networks start at zero: what it loses is quantisation and the coefficients that it leaves out."""
    fresh = CODECS.make("mean-scale", N=8, M=96, lambdas=LAMBDAS)
    fresh.update()
    fresh.eval()
    errors = [(fresh.decompress(fresh.compress(image, level))[0] - image).square().mean() for level in (0, 1, 2, 3)]
    psnr = [-10 * float(error.log10()) for error in errors]
    assert psnr == sorted(psnr) and psnr[-1] > 35


def test_weights_survive_a_file_and_bind_the_bitstream(codec, image, tmp_path):
    save_part(codec, tmp_path / "codec.safetensors")
    again = load_part("codec", tmp_path / "codec.safetensors")
    data = codec.compress(image, 1)
    assert again.compress(image, 1) == data
    assert torch.allclose(again.decompress(data)[0], codec.decompress(data)[0], atol=1e-5)
    with torch.no_grad():
        again.g_s[0].bias[0] += 1
    again.train().eval()
    with pytest.raises(BitstreamError, match="written by model"):
        again.decompress(data)


def test_nan_is_refused_before_the_entropy_coder(codec):
    x = torch.rand(3, 64, 64)
    x[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        codec.compress(x, 1)
    broken = CODECS.make("mean-scale", N=8, M=12, lambdas=LAMBDAS)
    with torch.no_grad():
        broken.g_a[1].weight.fill_(float("inf"))
    broken.update()
    with pytest.raises(ValueError, match="not finite"):
        broken.eval().compress(torch.rand(3, 64, 64), 1)


def test_damaged_weight_file_is_named(tmp_path):
    (tmp_path / "codec.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(UserError, match="codec.safetensors.*dvc repro"):
        load_part("codec", tmp_path / "codec.safetensors")
    with pytest.raises(UserError, match="no such weights"):
        load_part("codec", tmp_path / "absent.safetensors")


def test_unknown_codec_is_named():
    with pytest.raises(UserError, match="nonesuch.*mean-scale"):
        CODECS.make("nonesuch")


def test_a_codec_without_tables_says_so(image):
    fresh = CODECS.make("mean-scale", N=8, M=12, lambdas=LAMBDAS).eval()
    with pytest.raises(UserError, match="no tables yet"):
        fresh.compress(image, 1)


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (16385, 1), (9000, 9000)])
def test_impossible_sizes_are_refused_before_anything_is_computed(codec, size):
    with pytest.raises(ValueError, match="pixels|expected a picture"):
        codec.compress(torch.zeros(1).expand(3, *size), 1)


def forged(data: bytes, **changes) -> bytes:
    """The file with other values in its header or payload, and a checksum to match."""
    stream = unpack(data)
    return pack(dataclasses.replace(stream, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"height": 6},
        {"width": 16384},
        {"height": 4096, "width": 16384},
        {"height": 64, "width": 300},
        {"level": 1.25},
        {"height": 102},
        {"level": 2 + 1 / 4096},
    ],  # fmt: skip
)
def test_a_header_that_does_not_fit_its_payload_is_refused(codec, image, changes):
    """Whoever can correct a checksum can lie about the size: the payload's own checks find it, before the memory for
    such an image is asked for, and even a size of the same number of blocks, or a level of the same tables."""
    data = codec.compress(image, 2)
    started = time.perf_counter()
    tracemalloc.start()
    with pytest.raises(BitstreamError, match="damaged payload"):
        codec.decompress(forged(data, **changes))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.perf_counter() - started < 1 and peak < 100e6


@settings(deadline=None)  # a loaded machine is no failure
@given(level=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_payload_altered_under_a_valid_checksum_is_refused(codec, image, level, flip):
    data = codec.compress(image, 1)
    payload = bytearray(unpack(data).payload)
    payload[int(level * len(payload))] ^= flip
    with pytest.raises(BitstreamError, match="damaged payload"):
        codec.decompress(forged(data, payload=bytes(payload)))


def test_levels_beyond_the_models_are_refused(codec, image):
    with pytest.raises(BitstreamError, match="level 3.5 is beyond this model's 3"):
        codec.decompress(forged(codec.compress(image, 3), level=3.5))


def test_unlikely_symbols_and_strong_contrast_survive(codec):
    """Black and white blocks of one pixel: residuals far beyond the tables."""
    x = torch.zeros(3, 64, 64)
    x[:, ::2, ::2] = 1
    x[0, :32] = 1
    data = codec.compress(x, 3)
    symbols = codec.latent(unpack(data))[2]
    assert symbols.abs().max() > 20
    codec.decompress(data)
