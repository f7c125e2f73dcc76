# SPDX-License-Identifier: Apache-2.0
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator

from llicm.degradations import (
    DEGRADATIONS,
    LEVELS,
    _sensor_noise,
    degrade,
    degrade_at_once,
    haze_model,
    linear_to_srgb,
    motion_kernel,
    motion_path,
    srgb_to_linear,
)
from llicm.errors import UserError
from llicm.images import list_images, read_image
from llicm.report.show import psnr

WORDS = "motion-blurry hazy jpeg-compressed low-light noisy raindrop rainy shadowed snowy uncompleted".split()
PHOTOS = Path(__file__).parents[1] / "data" / "test"


def seeded(seed=0):
    return Generator().manual_seed(seed)


def scene(height=96, width=80, seed=0):
    """A picture (1, 3, H, W) with smooth parts, edges and some texture."""
    coarse = torch.rand(1, 3, 5, 5, generator=seeded(seed))
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0.05, 0.95)
    image[..., height // 3 :, width // 2 :] *= 0.5
    return (image + 0.03 * torch.randn(image.shape, generator=seeded(seed + 1))).clamp(0, 1)


@pytest.fixture(scope="module")
def photos():
    if not PHOTOS.is_dir():
        pytest.skip("the embedded photos are not here: run `dvc pull data.dvc`")
    images = [read_image(path) for path in list_images(PHOTOS)]
    return [image[None, :, 40:296, 100:356] for image in images]


def test_all_ten_words_in_order():
    assert list(DEGRADATIONS) == WORDS and set(LEVELS) == set(WORDS)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("size", [(65, 129), (64, 64), (1, 1), (3, 40)])
def test_shape_and_range_at_any_size(word, size):
    images = torch.cat([scene(*size), scene(*size, seed=5)])
    before = images.clone()
    for severity in (0.0, 1.0):
        out = degrade(word, images, severity, seeded())
        assert out.shape == images.shape and out.dtype == torch.float32
        assert out.min() >= 0 and out.max() <= 1 and out.isfinite().all()
    assert torch.equal(images, before)


@pytest.mark.parametrize("word", WORDS)
def test_same_seed_same_bytes_and_another_seed_others(word):
    first = degrade(word, scene(), 0.5, seeded(3))
    assert torch.equal(first, degrade(word, scene(), 0.5, seeded(3)))
    assert not torch.equal(first, scene())
    if word != "jpeg-compressed":
        assert not torch.equal(first, degrade(word, scene(), 0.5, seeded(4)))


@pytest.mark.parametrize("word", WORDS)
def test_a_batch_equals_its_samples_in_turn(word):
    images = torch.cat([scene(seed=1), scene(seed=2), scene(seed=3)])
    severity = torch.tensor([0.1, 0.5, 0.9])
    generator = seeded()
    singly = [degrade(word, images[i : i + 1], float(severity[i]), generator) for i in range(3)]
    assert torch.equal(degrade(word, images, severity, seeded()), torch.cat(singly))


@pytest.mark.parametrize("word", WORDS)
def test_psnr_falls_with_severity(word, photos):
    severities = (0.0, 0.25, 0.5, 0.75, 1.0)
    means = [
        np.mean(
            [psnr(degrade(word, photo, s, seeded(k)), photo) for photo in photos for k in range(2)],
        )
        for s in severities
    ]
    assert all(a > b + 0.3 for a, b in zip(means, means[1:], strict=False)), means


@pytest.mark.parametrize(
    ("word", "low", "high"),
    [
        ("noisy", 20, 22.5),
        ("rainy", 21, 25),
        ("hazy", 11.5, 15),
        ("low-light", 8, 11),
        ("motion-blurry", 21.5, 25.5),
        ("snowy", 19, 23.5),
        ("jpeg-compressed", 24.5, 28),
    ],
)
def test_the_middle_severity_is_where_it_should_be(word, low, high, photos):
    mean = np.mean([psnr(degrade(word, p, 0.5, seeded(k)), p) for p in photos for k in range(2)])
    assert low < mean < high


def test_linear_light_conversion_is_exact():
    values = torch.linspace(0, 1, 256, dtype=torch.float64)
    torch.testing.assert_close(linear_to_srgb(srgb_to_linear(values)), values, atol=1e-7, rtol=0)
    assert float(srgb_to_linear(torch.tensor(0.5))) == pytest.approx(0.21404, abs=1e-5)
    assert torch.equal((linear_to_srgb(srgb_to_linear(values.float())) * 255).round(), torch.arange(256.0))


@pytest.mark.parametrize("linear", [0.04, 0.25, 0.7])
def test_sensor_noise_has_the_stated_variance(linear):
    shot, read = torch.tensor([[0.08], [0.02]], dtype=torch.float64)
    noise = _sensor_noise(torch.full((1, 3, 200, 200), linear), shot, read, seeded()) - linear
    assert abs(float(noise.mean())) < 2e-3
    assert float(noise.var()) == pytest.approx(0.08**2 * linear + 0.02**2, rel=0.03)


@pytest.mark.parametrize("curved", [False, True])
def test_motion_kernels(curved):
    for seed in range(20):
        path = motion_path(12.0, curved, seeded(seed))
        steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
        assert steps.sum() == pytest.approx(12.0, rel=0.05)
        chord = np.linalg.norm(path[-1] - path[0])
        assert chord == pytest.approx(steps.sum(), rel=1e-6) if not curved else chord < steps.sum()
        kernel = motion_kernel(path)
        assert float(kernel.sum()) == pytest.approx(1, abs=1e-6) and kernel.min() >= 0
        assert kernel.shape[0] == kernel.shape[1] and kernel.shape[0] % 2 == 1
        axis = torch.arange(kernel.shape[0]) - kernel.shape[0] // 2
        centre = (kernel.sum(1) @ axis.float(), kernel.sum(0) @ axis.float())
        assert max(abs(float(c)) for c in centre) < 1e-4  # no shift: PSNR measures the blur alone


def test_blur_keeps_flat_pictures_and_works_on_light():
    flat = torch.full((1, 3, 40, 50), 0.3)
    torch.testing.assert_close(degrade("motion-blurry", flat, 1.0, seeded()), flat)
    # A small lamp in the dark: its light is spread, not lost.
    lamp = torch.zeros(1, 3, 64, 64)
    lamp[..., 30:34, 30:34] = 1
    light = srgb_to_linear(degrade("motion-blurry", lamp, 0.5, seeded()))
    assert float(light.sum()) == pytest.approx(float(lamp.sum()), rel=1e-3)


def test_haze_equation():
    image = scene()[0]
    air = torch.tensor([0.8, 0.85, 0.9])[:, None, None]
    depth = torch.linspace(0, 1, 80).expand(96, 80)
    torch.testing.assert_close(haze_model(image, torch.zeros(96, 80), 2.0, air), image)
    torch.testing.assert_close(haze_model(image, depth + 1, 50.0, air), air.expand_as(image))
    t = torch.exp(-1.3 * depth)
    torch.testing.assert_close(haze_model(image, depth, 1.3, air), image * t + air * (1 - t))


def test_haze_has_one_transmission_and_one_airlight():
    black, white = (degrade("hazy", torch.full((1, 3, 70, 90), v), 0.5, seeded(2)) for v in (0.0, 1.0))
    t = white - black
    beta = LEVELS["hazy"]["beta"][1]
    assert np.exp(-1.1 * beta) - 1e-4 <= t.min() and t.max() <= np.exp(-0.3 * 0.9 * beta) + 1e-4
    assert float((t - t.mean(1, keepdim=True)).abs().max()) < 1e-5
    air = black / (1 - t)
    assert float(air.std((2, 3)).max()) < 1e-4 and 0.7 < float(air.mean()) < 1
    assert float(t[..., -20:, :].mean()) > float(t[..., :20, :].mean())  # the top of a scene is far


def test_low_light_is_dark_and_keeps_order():
    grey = torch.linspace(0.1, 1, 100).expand(1, 3, 100, 100).contiguous()
    out = degrade("low-light", grey, 0.5, seeded())[0].mean((0, 1))
    assert (out < grey[0, 0, 0] + 0.02).all() and out[-1] < 0.5
    assert out[-10:].mean() > out[40:50].mean() > out[:10].mean()


def test_rain_and_snow_brighten_the_dark():
    dark = torch.full((1, 3, 128, 128), 0.1)
    for word in ("rainy", "snowy"):
        out = degrade(word, dark, 0.5, seeded())
        assert (out >= dark - 1e-5).all() and 0.02 < float((out > 0.3).float().mean()) < 0.5
        veil_only = out.flatten().quantile(0.2)
        assert 0.1 < float(veil_only) < 0.2


def test_rain_has_a_direction():
    # Streaks lean at random by up to 35 degrees from the vertical, all of a picture alike.
    out = degrade("rainy", torch.zeros(8, 3, 128, 128), 0.5, seeded())[:, 0]
    along, across = out.diff(dim=1).square().mean(), out.diff(dim=2).square().mean()
    assert float(across / along) > 2


def test_shadow_takes_light_and_leaves_the_rest():
    image = scene(128, 128)
    ratio = srgb_to_linear(degrade("shadowed", image, 0.5, seeded())) / srgb_to_linear(image).clamp_min(1e-6)
    ratio = ratio[srgb_to_linear(image) > 0.02]
    assert ratio.max() < 1.001
    assert float(ratio.min()) == pytest.approx(LEVELS["shadowed"]["light"][1], rel=0.15)
    assert float((ratio > 0.9).float().mean()) > 0.3


def test_raindrops_are_local():
    image = scene(128, 128)
    changed = (degrade("raindrop", image, 0.5, seeded()) - image).abs().amax(1) > 1e-6
    assert 0.07 < float(changed.float().mean()) < 0.35


def test_jpeg_is_what_pillow_makes_with_8x8_blocks():
    image = scene(96, 96)
    out = degrade("jpeg-compressed", image, 1.0, seeded())
    array = (image[0] * 255).round().byte().permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    quality = int(LEVELS["jpeg-compressed"]["quality"][2])
    Image.fromarray(array).save(stream, format="JPEG", quality=quality, subsampling="4:2:0")
    assert np.array_equal(np.asarray(Image.open(stream)), (out[0] * 255).round().byte().permute(1, 2, 0).numpy())
    steps = out.mean(1).diff(dim=-1).abs().mean((0, 1))
    by_offset = [float(steps[offset::8].mean()) for offset in range(8)]
    assert int(np.argmax(by_offset)) == 7  # between columns 7 and 8, 15 and 16, ...


@pytest.mark.parametrize("severity", [0.0, 0.5, 1.0])
def test_missing_strokes_are_white_and_the_rest_is_untouched(severity):
    image = scene(160, 160) * 0.9
    out = degrade("uncompleted", image, severity, seeded())
    hole = (out == 1).all(1, keepdim=True)
    assert torch.equal(out.masked_fill(hole, 0), image.masked_fill(hole, 0))
    goal = LEVELS["uncompleted"]["cover"][int(severity * 2)]
    assert goal <= float(hole.float().mean()) < goal + 0.06


def test_wrong_calls():
    with pytest.raises(UserError, match="foggy.*noisy"):
        degrade("foggy", scene(), 0.5, seeded())
    with pytest.raises(ValueError, match="severity"):
        degrade("noisy", scene(), 1.2, seeded())
    with pytest.raises(ValueError, match="N, 3, H, W"):
        degrade("noisy", scene()[0], 0.5, seeded())


# --- at once: batches, on any device ---


def described(images):
    """(n, 6) numbers that tell severities and kinds of damage apart: level, spread at two scales, noise in two bands of
    the spectrum, and colour."""
    grey = images.mean(1)
    coarse = torch.nn.functional.avg_pool2d(grey, 4)
    power = torch.fft.rfft2(grey - grey.mean((1, 2), keepdim=True)).abs().square()
    bands = power[:, 16:48, 16:], power[:, 4:16, 4:16]  # of 32 frequencies up to Nyquist's
    spread = grey.std((1, 2)), coarse.std((1, 2)), images.std(1).mean((1, 2))
    return torch.stack((grey.mean((1, 2)), *spread, *(band.mean((1, 2)).log() for band in bands)), 1)


def distance(first, second):
    """Kolmogorov's and Smirnov's of two samples (n, numbers): of each number the largest between the distributions."""
    places = torch.cat((first, second)).T.contiguous()
    ordered = [x.T.sort().values.contiguous() for x in (first, second)]
    shares = [torch.searchsorted(x, places, right=True) / x.shape[1] for x in ordered]
    return (shares[0] - shares[1]).abs().amax(1)


@pytest.mark.slow
@pytest.mark.parametrize("word", WORDS)
def test_at_once_has_the_distribution_of_in_turn(word):
    # Mild and severe ones alternate in the batch: each must be what it is in turn, and would not be it a quarter off.
    count = 240
    images = scene(64, 64).expand(2 * count, -1, -1, -1)
    at_once = degrade_at_once(word, images, torch.tensor([0.3, 0.7]).repeat(count), seeded(1))
    assert at_once.shape == images.shape and at_once.min() >= 0 and at_once.max() <= 1
    in_turn = {s: described(degrade(word, images[:count], s, seeded(2))) for s in (0.3, 0.45, 0.55, 0.7)}
    for first, (right, wrong) in enumerate(((0.3, 0.55), (0.7, 0.45))):
        found = described(at_once[first::2])
        assert distance(found, in_turn[right]).max() < 0.2 < 0.3 < distance(found, in_turn[wrong]).max()


class NoGenerator:
    """In place of a generator of the device "meta", which has none."""

    def __init__(self, device):
        assert device.type == "meta"

    def manual_seed(self, seed):
        return None


@pytest.mark.parametrize("word", [word for word in WORDS if word != "jpeg-compressed"])
def test_at_once_works_where_the_images_are_and_never_waits(word, monkeypatch):
    # On "meta" a value that is looked at, or one that has stayed on the processor, is an error.
    monkeypatch.setattr("llicm.degradations.Generator", NoGenerator)
    out = degrade_at_once(word, torch.rand(3, 3, 40, 50, device="meta"), torch.tensor([0.1, 0.5, 0.9]), seeded())
    assert out.device.type == "meta" and out.shape == (3, 3, 40, 50)
