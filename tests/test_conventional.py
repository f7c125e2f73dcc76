# SPDX-License-Identifier: Apache-2.0
"""Conventional codecs: real files, any size, and the published Kodak anchors."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from llicm.codec.conventional import CONVENTIONAL
from llicm.errors import BitstreamError, UserError

KODAK = Path(__file__).parents[1] / ".." / "shared" / "datasets" / "kodak"
# Mean over the 24 Kodak images, as published with CompressAI (Pillow 7.1.2): quality, bpp, RGB PSNR in dB.
ANCHORS = {
    "jpeg": [
        (5, 0.2212, 23.780),
        (10, 0.3266, 26.577),
        (15, 0.4231, 28.042),
        (20, 0.5084, 29.042),
        (30, 0.6601, 30.378),
        (50, 0.9060, 32.059),
        (70, 1.2398, 33.793),
        (90, 2.3502, 37.912),
    ],
    "webp": [
        (5, 0.2344, 28.328),
        (10, 0.2963, 29.151),
        (20, 0.4070, 30.407),
        (50, 0.7218, 33.238),
        (75, 0.9984, 35.104),
        (90, 2.0104, 39.557),
    ],
}
# WebP is exact to the published decimals; JPEG decoders changed by up to 0.13 dB since, and bpp by 0.004.
TOLERANCE = {"jpeg": (0.005, 0.15), "webp": (0.0002, 0.002)}


@pytest.fixture(scope="module")
def kodak():
    paths = sorted(KODAK.glob("*.png"))
    if len(paths) != 24:
        pytest.skip("the 24 Kodak images are not beside the repository (../shared/datasets/kodak)")
    return [
        torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).float() / 255 for path in paths
    ]


def check_anchor(kodak, name, quality, bpp, psnr):
    codec = CONVENTIONAL[name]
    rates, values = [], []
    for image in kodak:
        data = codec.encode(image, quality)
        decoded = (codec.decode(data) * 255).round() / 255
        rates.append(8 * len(data) / image[0].numel())
        values.append(-10 * torch.log10((decoded.double() - image.double()).square().mean()).item())
    rate_tolerance, psnr_tolerance = TOLERANCE[name]
    assert np.mean(rates) == pytest.approx(bpp, abs=rate_tolerance)
    assert np.mean(values) == pytest.approx(psnr, abs=psnr_tolerance)


QUICK = {("jpeg", 10), ("jpeg", 50), ("webp", 20)}
ALL = [
    pytest.param(name, *anchor, id=f"{name}-{anchor[0]}", marks=() if (name, anchor[0]) in QUICK else pytest.mark.slow)
    for name, anchors in ANCHORS.items()
    for anchor in anchors
]


@pytest.mark.parametrize(("name", "quality", "bpp", "psnr"), ALL)
def test_kodak_anchor(kodak, name, quality, bpp, psnr):
    check_anchor(kodak, name, quality, bpp, psnr)


def picture(height, width, seed=0):
    """A smooth picture with some texture."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)[0]
    return (0.8 * smooth + 0.1 + 0.04 * torch.randn(3, height, width, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("name", sorted(CONVENTIONAL))
def test_real_file_of_any_size_and_more_quality_costs_more(name):
    codec = CONVENTIONAL[name]
    image = picture(61, 87)
    low, high = (25, 40) if name == "jpeg2000" else (10, 80)
    small, large = codec.encode(image, low), codec.encode(image, high)
    assert len(small) < len(large)
    assert small == codec.encode(image, low), "the same input must give the same bytes"
    with Image.open(io.BytesIO(small)) as file:
        assert (file.format, file.size) == (codec.format, (87, 61))
    decoded = [codec.decode(data) for data in (small, large)]
    assert all(d.shape == image.shape and d.dtype == torch.float32 for d in decoded)
    assert all(d.min() >= 0 and d.max() <= 1 for d in decoded)
    errors = [(d - image).square().mean() for d in decoded]
    assert errors[1] < errors[0] < 0.01
    assert codec.encode(torch.rand(3, 1, 1, generator=torch.Generator().manual_seed(1)), low)


def test_colours_keep_their_order():
    red = torch.zeros(3, 32, 32)
    red[0] = 1
    for name, codec in CONVENTIONAL.items():
        decoded = codec.decode(codec.encode(red, 60)).mean((1, 2))
        assert decoded[0] > 0.9 and decoded[1:].max() < 0.1, name


@pytest.mark.parametrize("name", sorted(CONVENTIONAL))
def test_broken_bytes_are_refused(name):
    codec = CONVENTIONAL[name]
    data = codec.encode(picture(64, 64), 50)
    for broken in (b"", b"no picture", data[: len(data) // 3]):
        with pytest.raises(BitstreamError, match=name):
            codec.decode(broken)
    other = "webp" if name == "jpeg" else "jpeg"
    with pytest.raises(BitstreamError):
        codec.decode(CONVENTIONAL[other].encode(picture(64, 64), 50))


@pytest.mark.parametrize("quality", [-1, 101, 50.5, True])
def test_bad_quality_is_refused(quality):
    with pytest.raises(UserError, match="jpeg takes a whole quality"):
        CONVENTIONAL["jpeg"].encode(picture(16, 16), quality)


def test_picture_too_large_for_the_format():
    with pytest.raises(UserError, match="webp cannot write a picture of 17000x1"):
        CONVENTIONAL["webp"].encode(torch.zeros(3, 1, 17000), 50)


def test_description_names_versions_and_settings():
    described = CONVENTIONAL["webp"].describe()
    assert described["name"] == "webp" and described["settings"] == {"method": 4}
    assert described["library"].startswith("webp 1.") and described["pillow"][0].isdigit()
    assert CONVENTIONAL["jpeg"].describe()["settings"] == {"subsampling": "4:2:0"}
