# SPDX-License-Identifier: Apache-2.0
"""The ten degradations: what turns a pristine photo X_ideal into the degraded input X.

Each is a function ``(images (N, 3, H, W), severity, generator) -> (N, 3, H, W)``; images are RGB float32 in
[0, 1], sRGB-encoded, of any size; severity is a number or a tensor (N,) in [0, 1]. All randomness comes from
the generator. Samples are degraded one after another, so a batch equals the same images degraded singly in
turn with the same generator. What happens to light (noise, blur, exposure, shadow) happens in linear light.

:func:`degrade_at_once` does the same to all images in one go, where they are: on a GPU as well. What is drawn of an
image as a whole (a direction, where flakes fall) is drawn on the processor by the generator; noise is drawn on the
device, by a generator that this one seeds. So the numbers are others, and their distribution is the same. Nothing waits
for the device, but for jpeg-compressed, which is a real encoder's work and goes through the processor.

:data:`LEVELS` says what severities 0, 0.5 and 1 mean in physical terms; in between, values are interpolated
linearly. Severity 0 is mild, never the identity.
"""

import io
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Generator, Tensor

from llicm.errors import UserError
from llicm.limits import as_pictures

__all__ = [
    "CLEAN", "DEGRADATIONS", "IN_ORDER", "LEVELS", "TONAL", "camera_noise", "degrade", "degrade_at_once",
    "linear_to_srgb", "srgb_to_linear",
]  # fmt: skip

# word -> parameter -> its value at severity 0, 0.5, 1
LEVELS: Mapping[str, Mapping[str, tuple[float, float, float]]] = {
    "noisy": {
        "shot": (0.030, 0.100, 0.180),  # standard deviation of the shot noise at linear value 1
        "read": (0.003, 0.012, 0.030),  # standard deviation of the read noise, linear light
        "awgn": (0.020, 0.060, 0.100),  # standard deviation of additive noise, sRGB values
    },
    "motion-blurry": {"length": (5.0, 10.0, 17.0)},  # path of the camera during the exposure, pixels
    "hazy": {"beta": (0.50, 0.95, 1.8)},  # scattering coefficient, depth being 0.3 (near) to 1 (far)
    "low-light": {
        "gain": (0.32, 0.13, 0.05),  # exposure, linear light
        "gamma": (1.05, 1.15, 1.3),  # contrast loss of the shadows, linear light
        "shot": (0.006, 0.012, 0.020),  # as in noisy
        "read": (0.0005, 0.0012, 0.0030),
    },
    "rainy": {
        "density": (0.0025, 0.0075, 0.0110),  # streaks per pixel, all layers
        "length": (14.0, 22.0, 34.0),  # mean length of a streak, pixels
        "strength": (0.50, 0.80, 0.95),  # brightness of a streak
        "veil": (0.02, 0.05, 0.12),  # share of airlight
    },
    "snowy": {
        "density": (0.0025, 0.0080, 0.0130),  # flakes per pixel
        "radius": (1.3, 1.7, 2.2),  # typical radius of a flake, pixels
        "strength": (0.75, 0.9, 1.0),
        "veil": (0.02, 0.06, 0.14),
    },
    "raindrop": {
        "cover": (0.05, 0.14, 0.30),  # share of the picture behind drops
        "radius": (7.0, 10.0, 14.0),  # typical radius of a drop, pixels
    },
    "shadowed": {
        "light": (0.55, 0.32, 0.15),  # share of the light that is left in the shadow, linear light
        "cover": (0.25, 0.35, 0.45),  # share of the picture in shadow
    },
    "jpeg-compressed": {"quality": (30.0, 11.0, 5.0)},  # libjpeg quality, chroma at half resolution (4:2:0)
    "uncompleted": {
        "cover": (0.010, 0.030, 0.120),  # share of the picture under white strokes
        "width": (4.0, 8.0, 14.0),  # width of a stroke, pixels
    },
}

TONAL = ("hazy", "low-light", "rainy", "snowy", "shadowed")
"""What changes the light of large parts of a picture, be it by a veil."""

_Levels = dict[str, Tensor]  # of each image, (N,) float64 on the processor: one rounding, whatever is made of them


def _at(word: str, severities: list[float]) -> _Levels:
    """The physical parameters of a word at severities: piecewise linear between the three stated values."""

    def between(mild: float, middle: float, severe: float, severity: float) -> float:
        if severity <= 0.5:
            return mild + (middle - mild) * 2 * severity
        return middle + (severe - middle) * (2 * severity - 1)

    return {
        name: torch.tensor([between(*values, s) for s in severities], dtype=torch.float64)
        for name, values in LEVELS[word].items()
    }


# --- light, randomness, smooth fields ---


def srgb_to_linear(encoded: Tensor) -> Tensor:
    """sRGB values in [0, 1] to linear light in [0, 1] (IEC 61966-2-1); exact inverse of linear_to_srgb."""
    return torch.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055).clamp_min(0) ** 2.4)


def linear_to_srgb(linear: Tensor) -> Tensor:
    """Linear light in [0, 1] to sRGB values in [0, 1] (IEC 61966-2-1); others are clipped."""
    linear = linear.clamp(0, 1)
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def _uniform(generator: Generator, count: int, *ranges: tuple[float, float]) -> Tensor:
    """(ranges, count) float64: for each of so many images a random number from each of the ranges (low, high)."""
    drawn = torch.rand((count, len(ranges)), generator=generator).double().T
    low, high = torch.tensor(ranges, dtype=torch.float64).T[:, :, None]
    return low + (high - low) * drawn


def _of_each(values: Tensor, images: Tensor) -> Tensor:
    """Numbers (N,), or (N, 3) of the channels, as (N, 1 or 3, 1, 1) beside images (N, 3, H, W)."""
    return values.to(images.device, images.dtype).view(len(images), -1, 1, 1)


def _noise(images: Tensor, generator: Generator) -> Tensor:
    """Standard normal numbers, drawn where the images are."""
    if images.device.type != "cpu":
        seed = int(torch.randint(2**62, (1,), generator=generator))
        generator = Generator(images.device).manual_seed(seed)
    return torch.randn(images.shape, generator=generator, device=images.device)


def _smooth_field(images: Tensor, cells: int, generator: Generator) -> Tensor:
    """(N, 1, H, W) low-frequency noise in [0, 1]: ``cells`` random values along the shorter side, interpolated."""
    height, width = images.shape[2:]
    unit = min(height, width) / cells
    grid = (max(round(height / unit), 2), max(round(width / unit), 2))
    coarse = torch.rand((len(images), 1, *grid), generator=generator).to(images.device)
    return F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True).clamp_(0, 1)


def _sensor_noise(linear: Tensor, shot: Tensor, read: Tensor, generator: Generator) -> Tensor:
    """Gaussian noise of variance shot^2 x + read^2 in linear light (Foi et al., IEEE TIP 2008)."""
    sigma = linear.mul(_of_each(shot * shot, linear)).add_(_of_each(read * read, linear)).sqrt_()
    return linear.addcmul(_noise(linear, generator), sigma)


def _over(image: Tensor, light: Tensor, alpha: Tensor) -> Tensor:
    """Blend ``light`` over ``image`` with opacity alpha; shapes broadcast to the image's."""
    return torch.lerp(image, light.expand_as(image), alpha.expand_as(image))


# --- the ten, each for images (N, 3, H, W) and their physical parameters; the first line says what it does ---


def _noisy(images: Tensor, level: _Levels, generator: Generator) -> Tensor:
    """Shot and read noise in linear light, then additive white Gaussian noise (AWGN)."""
    linear = _sensor_noise(srgb_to_linear(images), level["shot"], level["read"], generator)
    encoded = linear_to_srgb(linear)
    return encoded.addcmul_(_noise(images, generator), _of_each(level["awgn"], images))


def camera_noise(noisy: Tensor, before: Tensor, generator: Generator) -> Tensor:
    """What the files of cameras hold in place of `noisy`: for training, where the tests' definition stays as it is.

    A camera's own processing leaves the noise weaker, by 1 to 16 times (equally often in each octave), and correlated
    between neighbours (demosaicing, denoising, resampling), up to 0.67, and between channels, up to 1. (Photos of PolyU
    and CC15: 2 to 9 levels of 255, 0.6 and 0.3 to 1; that of `noisy` at severity 0.2: 12 levels and white.)

    Args:
        noisy, before: with and without noise, (N, 3, H, W) in [0, 1].
    """
    octaves, side, grey = _uniform(generator, len(noisy), (-4, 0), (0, 0.5), (0, 1))
    noise = noisy - before
    side = _of_each(side, noise)
    for axis in (2, 3):
        noise = (noise + side * (noise.roll(1, axis) + noise.roll(-1, axis))) / (1 + 2 * side**2).sqrt()
    grey = _of_each(grey, noise)
    noise = ((1 - grey) * noise + grey * noise.mean(1, keepdim=True)) / ((1 - grey) ** 2 + grey * (2 - grey) / 3).sqrt()
    return (before + noise * _of_each(2**octaves, noise)).clamp_(0, 1)


def motion_path(length: float, curved: bool, generator: Generator) -> np.ndarray:
    """(P, 2) points (row, column), in pixels, of a camera path of the given length, centred on its mean.

    Straight: one random direction. Curved: the direction turns smoothly to either side (two random
    low-frequency terms), a fair model of hand shake during one exposure.
    """
    ranges = (0, 2 * math.pi), (-2.2, 2.2), (-0.9, 0.9), (0, 2 * math.pi)
    start, bend, twist, phase = _uniform(generator, 1, *ranges)[:, 0].tolist()
    steps = max(int(math.ceil(length * 4)), 8)
    along = (np.arange(steps) + 0.5) / steps - 0.5
    direction = np.full(steps, start)
    if curved:
        direction = direction + bend * along + twist * np.sin(2 * math.pi * along + phase)
    path = np.stack((np.sin(direction), np.cos(direction)), axis=1).cumsum(axis=0) * (length / steps)
    return path - path.mean(axis=0)


def motion_kernel(path: np.ndarray) -> Tensor:
    """Odd square kernel (K, K), sum 1: the path (P, 2) drawn with bilinear weights, at constant speed."""
    half = int(math.ceil(float(np.abs(path).max()))) + 1
    size = 2 * half + 1
    low = np.floor(path).astype(np.int64)
    share = path - low
    low += half
    kernel = np.zeros(size * size)
    for row, wr in ((0, 1 - share[:, 0]), (1, share[:, 0])):
        for col, wc in ((0, 1 - share[:, 1]), (1, share[:, 1])):
            np.add.at(kernel, (low[:, 0] + row) * size + low[:, 1] + col, wr * wc)
    return torch.from_numpy(kernel / kernel.sum()).float().reshape(size, size)


def _filter(images: Tensor, kernels: list[Tensor]) -> Tensor:
    """Correlate every channel of (N, 3, H, W) with the image's sparse kernel (K, K), mirrored at the border."""
    half = max(kernel.shape[0] for kernel in kernels) // 2
    height, width = images.shape[2:]
    padded = _mirror_pad(images, half)
    if len(images) > 1:
        margins = [(half - kernel.shape[0] // 2,) * 4 for kernel in kernels]
        stacked = torch.stack([F.pad(kernel, margin) for kernel, margin in zip(kernels, margins, strict=True)])
        spectra = torch.fft.rfft2(stacked[:, None].to(images.device), s=padded.shape[2:]).conj()
        return torch.fft.irfft2(torch.fft.rfft2(padded) * spectra, s=padded.shape[2:])[..., :height, :width]
    (kernel,), result = kernels, torch.zeros_like(images)
    # A motion path touches few cells of its kernel: for one image shifting and adding beats convolution and FFT.
    for row, col in kernel.nonzero().tolist():
        window = padded[:, :, row : row + height, col : col + width]
        result.add_(window, alpha=float(kernel[row, col]))
    return result


def _mirror_pad(images: Tensor, margin: int) -> Tensor:
    """Pad (N, 3, H, W) by ``margin`` on all sides; mirrored as often as small images need it."""
    while margin > 0:
        step = min(margin, images.shape[2] - 1, images.shape[3] - 1)
        if step < 1:
            return F.pad(images, (margin,) * 4, mode="replicate")
        images = F.pad(images, (step,) * 4, mode="reflect")
        margin -= step
    return images


def _motion_blurry(images: Tensor, level: _Levels, generator: Generator) -> Tensor:
    """Straight or curved camera shake during one exposure, in linear light."""
    curved, stretch = _uniform(generator, len(images), (0, 1), (0.9, 1.1))
    lengths, bends = (level["length"] * stretch).tolist(), (curved < 0.5).tolist()
    paths = [motion_path(length, bend, generator) for length, bend in zip(lengths, bends, strict=True)]
    return linear_to_srgb(_filter(srgb_to_linear(images), [motion_kernel(path) for path in paths]))


def haze_model(image: Tensor, depth: Tensor, beta: float | Tensor, airlight: Tensor) -> Tensor:
    """Atmospheric scattering: I = J t + A (1 - t), t = exp(-beta d) (Narasimhan and Nayar, IJCV 2002).

    Image (3, H, W), depth (H, W) >= 0, airlight (3, 1, 1), or what broadcasts to (N, 3, H, W). Applied to sRGB values,
    as the RESIDE benchmark does (Li et al., IEEE TIP 2019).
    """
    return torch.lerp(airlight.expand_as(image), image, torch.exp(depth * -beta).expand_as(image))


def _hazy(images: Tensor, level: _Levels, generator: Generator) -> Tensor:
    """Atmospheric scattering over a smooth random depth with the far end at the top."""
    ranges = (0.80, 0.97), (-0.03, 0.03), (0.35, 0.65), (0.9, 1.1)
    air, tint, slope, stretch = _uniform(generator, len(images), *ranges)
    # the far end of most scenes is at the top
    far_up = torch.linspace(1, 0, images.shape[2], device=images.device)[:, None]
    field = _smooth_field(images, 4, generator)
    depth = 0.3 + 0.7 * (_of_each(slope, images) * far_up + _of_each(1 - slope, images) * field)
    airlight = _of_each(torch.stack((air - tint, air, air + tint), 1), images)
    return haze_model(images, depth, _of_each(level["beta"] * stretch, images), airlight)


def _low_light(images: Tensor, level: _Levels, generator: Generator) -> Tensor:
    """Underexposure, a darker tone curve, shot and read noise, in linear light."""
    (stretch,) = _uniform(generator, len(images), (0.85, 1.15))
    dark = srgb_to_linear(images)
    for image, gamma in zip(dark, level["gamma"].tolist(), strict=True):
        image.pow_(gamma)  # a tensor of exponents gives other last bits
    dark.mul_(_of_each(level["gain"] * stretch, images))
    return linear_to_srgb(_sensor_noise(dark, level["shot"], level["read"], generator))


def _splat(images: Tensor, image: Tensor, rows: Tensor, cols: Tensor, weights: Tensor) -> Tensor:
    """(N, 1, H, W) sums of point lights, each in the image of that number at a real-valued place, shared among its four
    nearest pixels."""
    height, width = images.shape[2:]
    top, left = rows.floor(), cols.floor()
    fr, fc = rows - top, cols - left
    # One bare row and column on each side take what falls just outside.
    r = top.long().clamp_(-2, height).add_(2)
    c = left.long().clamp_(-2, width).add_(2)
    pitch = width + 4
    place = (r + image * (height + 4)).mul_(pitch).add_(c)
    low, high = weights * (1 - fr), weights * fr
    index = torch.cat((place, place + 1, place + pitch, place + pitch + 1))
    value = torch.cat((low * (1 - fc), low * fc, high * (1 - fc), high * fc))
    canvas = torch.zeros(len(images) * (height + 4) * pitch, device=images.device)
    canvas.index_add_(0, index.flatten(), value.flatten())
    return canvas.view(len(images), 1, height + 4, pitch)[..., 2:-2, 2:-2]


def _streaks(images: Tensor, count: Tensor, length: Tensor, angle: Tensor, spread: float, gen: Generator) -> Tensor:
    """(N, 1, H, W) so many straight streaks of each image, (N,) of all, one pixel wide, brightest in the middle; angle
    from the vertical, radians."""
    height, width = images.shape[2:]
    image = torch.arange(len(images)).repeat_interleave(count)  # that a streak is in
    u = torch.rand((5, len(image)), generator=gen)
    steps = length.floor().clamp_min(4).float()[:, None]
    reach, high, wide, lean = (x.float()[image] for x in (length, height + 2 * length, width + 2 * length, angle))
    rows = u[0] * high - reach
    cols = u[1] * wide - reach
    lengths = reach * (0.5 + u[2])
    angles = lean + spread * (u[3] - 0.5)
    strength = 0.4 + 0.6 * u[4]
    # A light per pixel of path: its weight makes the streak's brightness independent of its length.
    number = torch.arange(int(steps.max()))
    along = (number + 0.5) / steps - 0.5
    profile = (along * math.pi).cos() * (number < steps)
    weight = strength[:, None] * profile[image] * (lengths[:, None] / steps[image])
    offset = lengths[:, None] * along[image]
    row, col = rows[:, None] + offset * angles.cos()[:, None], cols[:, None] + offset * angles.sin()[:, None]
    return _splat(images, *(x.to(images.device) for x in (image[:, None], row, col, weight)))


def _rainy(images: Tensor, level: _Levels, generator: Generator) -> Tensor:
    """Streaks of rain in three layers of distance, and a slight veil."""
    height, width = images.shape[2:]
    angle, veil_light, grey = _uniform(generator, len(images), (-0.6, 0.6), (0.6, 0.8), (0.82, 0.95))
    rain = torch.zeros_like(images[:, :1])
    # Far rain is short, thin, dense and faint, near rain long, wide, sparse and bright.
    for share, scale, bright, wide in ((0.62, 0.6, 0.7, 1), (0.28, 1.0, 1.0, 1), (0.10, 1.6, 0.8, 3)):
        area = (height + 2 * scale * level["length"]) * (width + 2 * scale * level["length"])
        count = (level["density"] * share * area).long().clamp_min(1)
        layer = _streaks(images, count, level["length"] * scale, angle, 0.12, generator)
        if wide > 1:  # out of focus
            layer = F.avg_pool2d(layer, (1, wide), 1, (0, wide // 2), count_include_pad=True) * 2
        rain.add_(layer, alpha=bright)
    images = _over(images, _of_each(veil_light, images), _of_each(level["veil"], images))
    return _over(images, _of_each(grey, images), rain.mul_(_of_each(level["strength"], images)).clamp_(0, 0.9))


def _snowy(images: Tensor, level: _Levels, generator: Generator) -> Tensor:
    """Soft flakes of several sizes, slightly smeared by their fall, and a slight veil."""
    height, width = images.shape[2:]
    ranges = (-0.9, 0.9), (0.5, 3.5), (0.75, 0.9), (0.93, 1.0)
    angle, speed, veil_light, white = _uniform(generator, len(images), *ranges)
    margin = 12
    pitch = width + 2 * margin
    count = (level["density"] * (height + 2 * margin) * pitch).long().clamp_min(1)
    image = torch.arange(len(images)).repeat_interleave(count)  # that a flake is in
    u = torch.rand((4, len(image)), generator=generator)
    # many small flakes, few near ones
    radius = level["radius"].float()[image] * (0.5 + 0.9 * u[2] + 2.5 * u[2] ** 12)
    order = radius.argsort()
    image, radius = image[order], radius[order]
    rows, cols = (u[0] * (height + 2 * margin))[order], (u[1] * pitch)[order]
    opacity = (0.55 + 0.45 * u[3])[order] * (1.4 / radius).clamp(0.6, 1)
    sine, cosine, reach = (x.float()[image] for x in (angle.sin(), angle.cos(), speed / 2))
    clear = torch.ones(len(images) * (height + 2 * margin) * pitch, device=images.device)
    # Flakes of like size are drawn together as little pictures; log(1 - opacity) adds up where they overlap.
    bounds = [0, int(len(image) * 0.6), int(len(image) * 0.93), len(image)]
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        if first == last:
            continue
        half = min(int(math.ceil(float(radius[last - 1]) * 1.3 + float(speed.max()) / 2)), margin)
        span = torch.arange(-half, half + 1, device=images.device)
        of_part = (x[first:last].to(images.device) for x in (image, rows, cols, radius, opacity, sine, cosine, reach))
        where, row, col, size, dim, sin, cos, far = (x[:, None, None] for x in of_part)
        top, left = row.long(), col.long()
        dy = span[None, :, None] - (row - top)
        dx = span[None, None, :] - (col - left)
        # Distance to the short segment along which the flake moves during the exposure.
        along = dy * cos + dx * sin
        across = dx * cos - dy * sin
        beyond = (along.abs() - far).clamp_min_(0)
        distance = (beyond.square_() + across.square_()).div_(size.square())
        flake = distance.mul_(-1.6).exp_().sub_(0.07).clamp_min_(0).mul_(dim)
        # What leaves the margins above or below falls into those of the next image, which are cut off.
        index = (where * (height + 2 * margin) + top + span[:, None]) * pitch + (left + span)
        inside = index.clamp_(0, clear.numel() - 1).flatten()
        canvas = torch.zeros_like(clear).index_add_(0, inside, flake.flatten())
        clear.mul_((-canvas * 1.2).exp_())
    clear = clear.view(len(images), 1, height + 2 * margin, pitch)[..., margin:-margin, margin:-margin]
    snow = (1 - clear) * _of_each(level["strength"], images)
    images = _over(images, _of_each(veil_light, images), _of_each(level["veil"], images))
    return _over(images, _of_each(white, images), snow)


def _raindrop(images: Tensor, level: _Levels, generator: Generator) -> Tensor:
    """Drops on the lens that refract and blur what lies behind them."""
    # A drop on the lens is a tiny fish-eye: it shows the scene upside down, small and out of focus
    # (Qian et al., "Attentive generative adversarial network for raindrop removal", CVPR 2018).
    covers, radii, blurred = level["cover"].tolist(), level["radius"].tolist(), _box_blur(images, 2)
    drawn = zip(images.clone(), blurred, covers, radii, strict=True)
    return torch.stack([_drops(*each, generator) for each in drawn])


def _drops(result: Tensor, blurred: Tensor, cover: float, radius: float, generator: Generator) -> Tensor:
    """Drops on one picture (3, H, W), in place. Where they are is computed on the processor, whatever the device."""
    height, width = result.shape[1:]
    covered, goal = 0.0, cover * height * width
    rows_all, cols_all = torch.arange(height), torch.arange(width)
    for _ in range(400):
        if covered >= goal:
            break
        u = torch.rand(9, generator=generator).tolist()
        size = radius * (0.45 + 0.75 * u[0] + 0.8 * u[0] ** 6)
        cy, cx = u[1] * height, u[2] * width
        tall = 0.85 + 0.45 * u[3]
        bump, phase, lobes = 0.02 + 0.09 * u[4], u[5] * 2 * math.pi, 1 + int(u[6] * 3)
        reach = int(math.ceil(size * 1.6)) + 2
        r0, r1 = max(int(cy) - reach, 0), min(int(cy) + reach + 1, height)
        c0, c1 = max(int(cx) - reach, 0), min(int(cx) + reach + 1, width)
        dy = (rows_all[r0:r1, None] - cy) / (size * tall)
        dx = (cols_all[None, c0:c1] - cx) / size
        angle = torch.atan2(dy, dx)
        rho = (dy * dy + dx * dx).sqrt() / (1 + bump * torch.sin(lobes * angle + phase))
        alpha = ((1.08 - rho) / 0.22).clamp(0, 1)
        alpha = alpha * alpha * (3 - 2 * alpha)
        zoom = (3.0 + 2.0 * u[7]) * size * (0.6 + 0.4 * rho.clamp(0, 1))
        sy = (cy - dy * zoom).round().long().clamp(0, height - 1)
        sx = (cx - dx * zoom).round().long().clamp(0, width - 1)
        rim = 1 - 0.35 * (rho.clamp(0, 1) ** 6)  # total reflection darkens the rim
        glint = 0.5 * u[8] * torch.exp(-((dy + 0.45) ** 2 + (dx + 0.3) ** 2) / 0.03)
        covered += float(alpha.sum())
        sy, sx, rim, glint, alpha = (x.to(result.device) for x in (sy, sx, rim, glint, alpha * 0.95))
        window = result[:, r0:r1, c0:c1]
        window.copy_(_over(window, (blurred[:, sy, sx] * 0.95 + 0.04) * rim + glint, alpha))
    return result


def _box_blur(images: Tensor, half: int) -> Tensor:
    """(N, 3, H, W) averaged twice over squares of side 2 half + 1, mirrored at the border."""
    padded = _mirror_pad(images, 2 * half)
    side = 2 * half + 1
    return F.avg_pool2d(F.avg_pool2d(padded, side, 1), side, 1)


def _shadowed(images: Tensor, level: _Levels, generator: Generator) -> Tensor:
    """A soft shadow of random shape, bluish, in linear light."""
    height, width = images.shape[2:]
    ranges = (2, 4.99), (0.02, 0.08), (1.05, 1.3), (0, 6.283), (0.3, 0.8)
    cells, soft, blue, turn, mix = _uniform(generator, len(images), *ranges)
    rows = torch.linspace(-0.5, 0.5, height, device=images.device)[:, None]
    cols = torch.linspace(-0.5, 0.5, width, device=images.device)[None]
    ramp = rows * _of_each(turn.sin(), images) + cols * _of_each(turn.cos(), images) + 0.5
    number = [int(count) for count in cells.tolist()]
    fields = [_smooth_field(one, n, generator) for one, n in zip(images.split(1), number, strict=True)]
    field = torch.lerp(ramp, torch.cat(fields), _of_each(mix, images).expand_as(ramp))
    samples = field.flatten(1)[:, :: max(height * width // 4096, 1)]
    edges = [one.quantile(cover) for one, cover in zip(samples, level["cover"].tolist(), strict=True)]
    mask = torch.sigmoid((torch.stack(edges).view(-1, 1, 1, 1) - field) / _of_each(soft * 0.5, images))
    # In the shadow the sun is gone and the blue sky still shines.
    light = level["light"]
    left = _of_each(torch.stack((light, light * (1 + blue) / 2, light * blue), 1), images)
    return linear_to_srgb(srgb_to_linear(images) * (1 - mask * (1 - left)))


def _jpeg_compressed(images: Tensor, level: _Levels, generator: Generator) -> Tensor:
    """Real baseline JPEG with 8x8 blocks and halved chroma, by Pillow."""
    arrays = images.mul(255).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    decoded = []
    for array, quality in zip(arrays, level["quality"].tolist(), strict=True):
        stream = io.BytesIO()
        Image.fromarray(array).save(stream, format="JPEG", quality=round(quality), subsampling="4:2:0")
        with Image.open(stream) as opened:
            decoded.append(torch.from_numpy(np.array(opened)))
    return torch.stack(decoded).to(images.device).permute(0, 3, 1, 2).to(images.dtype).div_(255)


def _uncompleted(images: Tensor, level: _Levels, generator: Generator) -> Tensor:
    """Missing strokes, white as in the usual inpainting masks."""
    pairs = zip(level["cover"].tolist(), level["width"].tolist(), strict=True)
    missing = torch.stack([_strokes(images.shape[2], images.shape[3], *each, generator) for each in pairs])
    return images.masked_fill(missing[:, None].to(images.device), 1.0)


def _strokes(height: int, width: int, cover: float, broad: float, generator: Generator) -> Tensor:
    """(H, W) bool: strokes so many pixels broad, over at least that share of the picture."""
    canvas = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(canvas)
    goal = cover * height * width
    for _ in range(200):
        if np.count_nonzero(np.asarray(canvas)) >= goal:
            break
        u = torch.rand(8, generator=generator).tolist()
        stroke = max(broad * (0.6 + 0.8 * u[0]), 1.0)
        x, y, heading = u[1] * width, u[2] * height, u[3] * 2 * math.pi
        points = [(x, y)]
        # A hand-drawn line: straight pieces whose direction wanders (Yu et al., ICCV 2019).
        for turn in u[4:]:
            heading += (turn - 0.5) * 2.2
            x, y = x + math.cos(heading) * stroke * 2.5, y + math.sin(heading) * stroke * 2.5
            points.append((x, y))
        draw.line(points, fill=255, width=max(round(stroke), 1), joint="curve")
        for px, py in (points[0], points[-1]):
            half = stroke / 2
            draw.ellipse((px - half, py - half, px + half, py + half), fill=255)
    return torch.from_numpy(np.array(canvas)).bool()


# --- the public functions ---

_AtOnce = Callable[[Tensor, _Levels, Generator], Tensor]
_InTurn = Callable[[Tensor, float | Tensor, Generator], Tensor]


def _in_turn(word: str, at_once: _AtOnce) -> _InTurn:
    def function(images: Tensor, severity: float | Tensor, generator: Generator) -> Tensor:
        images = as_pictures(images)
        severities = torch.as_tensor(severity, dtype=torch.float64).expand(len(images)).tolist()
        if any(not 0 <= s <= 1 for s in severities):
            raise ValueError(f"severity must lie in [0, 1], not {severities}")
        pairs = zip(images.split(1), severities, strict=True)
        return torch.cat([at_once(image, _at(word, [s]), generator) for image, s in pairs]).clamp_(0, 1)

    function.__name__ = function.__qualname__ = word.replace("-", "_")
    function.__doc__ = (
        f"{at_once.__doc__}\n\n    Images (N, 3, H, W) in [0, 1], severity a number or (N,) in [0, 1]; returns the "
        f"same shape in [0, 1].\n    Physical values at severity 0, 0.5, 1: see ``LEVELS[{word!r}]``.\n\n"
        "    Raises:\n        PictureError: no such images. ValueError: a severity outside [0, 1].\n    "
    )
    return function


# In the order of DA-CLIP's words, which the outputs of the vision-language model keep; the command line reads it here.
_AT_ONCE: dict[str, _AtOnce] = {
    "motion-blurry": _motion_blurry,
    "hazy": _hazy,
    "jpeg-compressed": _jpeg_compressed,
    "low-light": _low_light,
    "noisy": _noisy,
    "raindrop": _raindrop,
    "rainy": _rainy,
    "shadowed": _shadowed,
    "snowy": _snowy,
    "uncompleted": _uncompleted,
}

CLEAN = "clean"  # the word, beside those of DEGRADATIONS, of an image that is left as it is
DEGRADATIONS: dict[str, _InTurn] = {word: _in_turn(word, function) for word, function in _AT_ONCE.items()}
# Where two meet, in the order of nature: what happens to the light before the lens, on it, in the camera, and after.
IN_ORDER = (
    "shadowed", "hazy", "rainy", "snowy", "raindrop", "motion-blurry", "low-light", "noisy", "jpeg-compressed",
    "uncompleted",
)  # fmt: skip


def degrade(word: str, images: Tensor, severity: float | Tensor, generator: Generator) -> Tensor:
    """Degrade images (N, 3, H, W) in [0, 1] by the degradation of that name; same shape, in [0, 1].

    Raises:
        UserError: unknown word.
        PictureError: no such images. ValueError: a severity outside [0, 1].
    """
    if word not in DEGRADATIONS:
        raise UserError(f"tasks: unknown degradation {word!r}; use one of {', '.join(DEGRADATIONS)}.")
    return DEGRADATIONS[word](images, severity, generator)


def degrade_at_once(word: str, images: Tensor, severity: Tensor, generator: Generator) -> Tensor:
    """Degrade images (N, 3, H, W) in [0, 1] on their device, all in one go; same shape, in [0, 1].

    For training: the distribution is that of `degrade`, the numbers are not, and nothing is checked, since to look at
    values is to wait for the device.

    Args:
        word: of `DEGRADATIONS`. severity: (N,) in [0, 1], on the processor. generator: of the processor.
    """
    return _AT_ONCE[word](images, _at(word, severity.tolist()), generator).clamp_(0, 1)
