# SPDX-License-Identifier: Apache-2.0
"""The ten degradations: what turns a pristine photo X_ideal into the degraded input X.

Each is a function ``(images (N, 3, H, W), severity, generator) -> (N, 3, H, W)``; images are RGB float32 in
[0, 1], sRGB-encoded, of any size; severity is a number or a tensor (N,) in [0, 1]. All randomness comes from
the generator. Samples are degraded one after another, so a batch equals the same images degraded singly in
turn with the same generator. What happens to light (noise, blur, exposure, shadow) happens in linear light.

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

__all__ = ["CLEAN", "DEGRADATIONS", "IN_ORDER", "LEVELS", "degrade", "linear_to_srgb", "srgb_to_linear"]

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

_Levels = dict[str, float]


def _at(word: str, severity: float) -> _Levels:
    """The physical parameters of a word at a severity: piecewise linear between the three stated values."""
    values = {}
    for name, (mild, middle, severe) in LEVELS[word].items():
        if severity <= 0.5:
            values[name] = mild + (middle - mild) * 2 * severity
        else:
            values[name] = middle + (severe - middle) * (2 * severity - 1)
    return values


# --- light, randomness, smooth fields ---


def srgb_to_linear(encoded: Tensor) -> Tensor:
    """sRGB values in [0, 1] to linear light in [0, 1] (IEC 61966-2-1); exact inverse of linear_to_srgb."""
    return torch.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055).clamp_min(0) ** 2.4)


def linear_to_srgb(linear: Tensor) -> Tensor:
    """Linear light in [0, 1] to sRGB values in [0, 1] (IEC 61966-2-1); others are clipped."""
    linear = linear.clamp(0, 1)
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def _uniform(generator: Generator, *ranges: tuple[float, float]) -> list[float]:
    """One random number from each of the ranges (low, high)."""
    drawn = torch.rand(len(ranges), generator=generator).tolist()
    return [low + (high - low) * x for x, (low, high) in zip(drawn, ranges, strict=True)]


def _smooth_field(height: int, width: int, cells: int, generator: Generator) -> Tensor:
    """(H, W) low-frequency noise in [0, 1]: ``cells`` random values along the shorter side, interpolated."""
    unit = min(height, width) / cells
    grid = (max(round(height / unit), 2), max(round(width / unit), 2))
    coarse = torch.rand((1, 1, *grid), generator=generator)
    return F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)[0, 0].clamp_(0, 1)


def _sensor_noise(linear: Tensor, shot: float, read: float, generator: Generator) -> Tensor:
    """Gaussian noise of variance shot^2 x + read^2 in linear light (Foi et al., IEEE TIP 2008)."""
    sigma = linear.mul(shot * shot).add_(read * read).sqrt_()
    return linear.addcmul(torch.randn(linear.shape, generator=generator), sigma)


def _over(image: Tensor, light: Tensor, alpha: Tensor) -> Tensor:
    """Blend ``light`` over ``image`` with opacity alpha; shapes broadcast to (3, H, W)."""
    return torch.lerp(image, light.expand_as(image), alpha.expand_as(image))


# --- the ten, each for one image (3, H, W) and its physical parameters; the first line says what it does ---


def _noisy(image: Tensor, level: _Levels, generator: Generator) -> Tensor:
    """Shot and read noise in linear light, then additive white Gaussian noise (AWGN)."""
    linear = _sensor_noise(srgb_to_linear(image), level["shot"], level["read"], generator)
    encoded = linear_to_srgb(linear)
    return encoded.add_(torch.randn(image.shape, generator=generator), alpha=level["awgn"])


def motion_path(length: float, curved: bool, generator: Generator) -> np.ndarray:
    """(P, 2) points (row, column), in pixels, of a camera path of the given length, centred on its mean.

    Straight: one random direction. Curved: the direction turns smoothly to either side (two random
    low-frequency terms), a fair model of hand shake during one exposure.
    """
    start, bend, twist, phase = _uniform(generator, (0, 2 * math.pi), (-2.2, 2.2), (-0.9, 0.9), (0, 2 * math.pi))
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


def _filter(image: Tensor, kernel: Tensor) -> Tensor:
    """Correlate every channel of (3, H, W) with a sparse kernel (K, K), mirrored at the border."""
    half = kernel.shape[0] // 2
    height, width = image.shape[1:]
    padded = _mirror_pad(image, half)
    result = torch.zeros_like(image)
    # A motion path touches few cells of its kernel: shifting and adding beats convolution and FFT.
    for row, col in kernel.nonzero().tolist():
        window = padded[:, row : row + height, col : col + width]
        result.add_(window, alpha=float(kernel[row, col]))
    return result


def _mirror_pad(image: Tensor, margin: int) -> Tensor:
    """Pad (3, H, W) by ``margin`` on all sides; mirrored as often as a small image needs it."""
    while margin > 0:
        step = min(margin, image.shape[1] - 1, image.shape[2] - 1)
        if step < 1:
            return F.pad(image[None], (margin,) * 4, mode="replicate")[0]
        image = F.pad(image[None], (step,) * 4, mode="reflect")[0]
        margin -= step
    return image


def _motion_blurry(image: Tensor, level: _Levels, generator: Generator) -> Tensor:
    """Straight or curved camera shake during one exposure, in linear light."""
    curved, stretch = _uniform(generator, (0, 1), (0.9, 1.1))
    path = motion_path(level["length"] * stretch, curved < 0.5, generator)
    return linear_to_srgb(_filter(srgb_to_linear(image), motion_kernel(path)))


def haze_model(image: Tensor, depth: Tensor, beta: float, airlight: Tensor) -> Tensor:
    """Atmospheric scattering: I = J t + A (1 - t), t = exp(-beta d) (Narasimhan and Nayar, IJCV 2002).

    Image (3, H, W), depth (H, W) >= 0, airlight (3, 1, 1). Applied to sRGB values, as the RESIDE benchmark
    does (Li et al., IEEE TIP 2019).
    """
    return torch.lerp(airlight.expand_as(image), image, torch.exp(depth * -beta).expand_as(image))


def _hazy(image: Tensor, level: _Levels, generator: Generator) -> Tensor:
    """Atmospheric scattering over a smooth random depth with the far end at the top."""
    height, width = image.shape[1:]
    beta = level["beta"]
    air, tint, slope, stretch = _uniform(generator, (0.80, 0.97), (-0.03, 0.03), (0.35, 0.65), (0.9, 1.1))
    far_up = torch.linspace(1, 0, height)[:, None]  # the far end of most scenes is at the top
    depth = 0.3 + 0.7 * (slope * far_up + (1 - slope) * _smooth_field(height, width, 4, generator))
    airlight = torch.tensor([air - tint, air, air + tint])[:, None, None]
    return haze_model(image, depth, beta * stretch, airlight)


def _low_light(image: Tensor, level: _Levels, generator: Generator) -> Tensor:
    """Underexposure, a darker tone curve, shot and read noise, in linear light."""
    (stretch,) = _uniform(generator, (0.85, 1.15))
    dark = srgb_to_linear(image).pow_(level["gamma"]).mul_(level["gain"] * stretch)
    return linear_to_srgb(_sensor_noise(dark, level["shot"], level["read"], generator))


def _splat(height: int, width: int, rows: Tensor, cols: Tensor, weights: Tensor) -> Tensor:
    """(H, W) sum of point lights at real-valued places, each shared among its four nearest pixels."""
    top, left = rows.floor(), cols.floor()
    fr, fc = rows - top, cols - left
    # One bare row and column on each side take what falls just outside.
    r = top.long().clamp_(-2, height).add_(2)
    c = left.long().clamp_(-2, width).add_(2)
    pitch = width + 4
    place = (r * pitch).add_(c)
    low, high = weights * (1 - fr), weights * fr
    index = torch.cat((place, place + 1, place + pitch, place + pitch + 1))
    value = torch.cat((low * (1 - fc), low * fc, high * (1 - fc), high * fc))
    canvas = torch.zeros((height + 4) * pitch)
    canvas.index_add_(0, index, value)
    return canvas.view(height + 4, pitch)[2:-2, 2:-2]


def _streaks(
    shape: tuple[int, int], count: int, length: float, angle: float, spread: float, generator: Generator
) -> Tensor:
    """(H, W) straight streaks, one pixel wide, brightest in the middle; angle from the vertical, radians."""
    height, width = shape
    u = torch.rand((5, count), generator=generator)
    rows = u[0] * (height + 2 * length) - length
    cols = u[1] * (width + 2 * length) - length
    lengths = length * (0.5 + u[2])
    angles = angle + spread * (u[3] - 0.5)
    strength = 0.4 + 0.6 * u[4]
    steps = max(int(length), 4)
    along = (torch.arange(steps) + 0.5) / steps - 0.5
    profile = (along * math.pi).cos()
    offset = lengths[:, None] * along
    # A light per pixel of path: its weight makes the streak's brightness independent of its length.
    weight = strength[:, None] * profile * (lengths[:, None] / steps)
    row, col = rows[:, None] + offset * angles.cos()[:, None], cols[:, None] + offset * angles.sin()[:, None]
    return _splat(height, width, row.flatten(), col.flatten(), weight.flatten())


def _rainy(image: Tensor, level: _Levels, generator: Generator) -> Tensor:
    """Streaks of rain in three layers of distance, and a slight veil."""
    height, width = image.shape[1:]
    angle, veil_light, grey = _uniform(generator, (-0.6, 0.6), (0.6, 0.8), (0.82, 0.95))
    rain = torch.zeros(height, width)
    # Far rain is short, thin, dense and faint, near rain long, wide, sparse and bright.
    for share, scale, bright, wide in ((0.62, 0.6, 0.7, 1), (0.28, 1.0, 1.0, 1), (0.10, 1.6, 0.8, 3)):
        area = (height + 2 * scale * level["length"]) * (width + 2 * scale * level["length"])
        count = max(int(level["density"] * share * area), 1)
        layer = _streaks((height, width), count, level["length"] * scale, angle, 0.12, generator)
        if wide > 1:  # out of focus
            layer = F.avg_pool2d(layer[None], (1, wide), 1, (0, wide // 2), count_include_pad=True)[0] * 2
        rain.add_(layer, alpha=bright)
    image = torch.lerp(image, torch.tensor(veil_light), level["veil"])
    return _over(image, torch.tensor(grey), rain.mul_(level["strength"]).clamp_(0, 0.9))


def _snowy(image: Tensor, level: _Levels, generator: Generator) -> Tensor:
    """Soft flakes of several sizes, slightly smeared by their fall, and a slight veil."""
    height, width = image.shape[1:]
    angle, speed, veil_light, white = _uniform(generator, (-0.9, 0.9), (0.5, 3.5), (0.75, 0.9), (0.93, 1.0))
    margin = 12
    count = max(int(level["density"] * (height + 2 * margin) * (width + 2 * margin)), 1)
    u = torch.rand((4, count), generator=generator)
    radius = level["radius"] * (0.5 + 0.9 * u[2] + 2.5 * u[2] ** 12)  # many small flakes, few near ones
    order = radius.argsort()
    rows, cols, radius = ((u[0] * (height + 2 * margin))[order], (u[1] * (width + 2 * margin))[order], radius[order])
    opacity = (0.55 + 0.45 * u[3])[order] * (1.4 / radius).clamp(0.6, 1)
    clear = torch.ones((height + 2 * margin) * (width + 2 * margin))
    pitch = width + 2 * margin
    # Flakes of like size are drawn together as little pictures; log(1 - opacity) adds up where they overlap.
    bounds = [0, int(count * 0.6), int(count * 0.93), count]
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        if first == last:
            continue
        part = slice(first, last)
        half = min(int(math.ceil(float(radius[last - 1]) * 1.3 + speed / 2)), margin)
        span = torch.arange(-half, half + 1)
        top, left = rows[part].long(), cols[part].long()
        dy = span[None, :, None] - (rows[part] - top)[:, None, None]
        dx = span[None, None, :] - (cols[part] - left)[:, None, None]
        # Distance to the short segment along which the flake moves during the exposure.
        along = dy * math.cos(angle) + dx * math.sin(angle)
        across = dx * math.cos(angle) - dy * math.sin(angle)
        beyond = (along.abs() - speed / 2).clamp_min_(0)
        distance = (beyond.square_() + across.square_()).div_(radius[part].square()[:, None, None])
        flake = distance.mul_(-1.6).exp_().sub_(0.07).clamp_min_(0).mul_(opacity[part][:, None, None])
        index = (top[:, None, None] + span[:, None]) * pitch + (left[:, None, None] + span)
        inside = index.clamp_(0, clear.numel() - 1).flatten()
        canvas = torch.zeros_like(clear).index_add_(0, inside, flake.flatten())
        clear.mul_((-canvas * 1.2).exp_())
    snow = (1 - clear.view(height + 2 * margin, pitch)[margin:-margin, margin:-margin]) * level["strength"]
    image = torch.lerp(image, torch.tensor(veil_light), level["veil"])
    return _over(image, torch.tensor(white), snow)


def _raindrop(image: Tensor, level: _Levels, generator: Generator) -> Tensor:
    """Drops on the lens that refract and blur what lies behind them."""
    height, width = image.shape[1:]
    # A drop on the lens is a tiny fish-eye: it shows the scene upside down, small and out of focus
    # (Qian et al., "Attentive generative adversarial network for raindrop removal", CVPR 2018).
    blurred = _box_blur(image, 2)
    result = image
    covered, goal = 0.0, level["cover"] * height * width
    rows_all, cols_all = torch.arange(height), torch.arange(width)
    for _ in range(400):
        if covered >= goal:
            break
        u = torch.rand(9, generator=generator).tolist()
        radius = level["radius"] * (0.45 + 0.75 * u[0] + 0.8 * u[0] ** 6)
        cy, cx = u[1] * height, u[2] * width
        tall = 0.85 + 0.45 * u[3]
        bump, phase, lobes = 0.02 + 0.09 * u[4], u[5] * 2 * math.pi, 1 + int(u[6] * 3)
        reach = int(math.ceil(radius * 1.6)) + 2
        r0, r1 = max(int(cy) - reach, 0), min(int(cy) + reach + 1, height)
        c0, c1 = max(int(cx) - reach, 0), min(int(cx) + reach + 1, width)
        dy = (rows_all[r0:r1, None] - cy) / (radius * tall)
        dx = (cols_all[None, c0:c1] - cx) / radius
        angle = torch.atan2(dy, dx)
        rho = (dy * dy + dx * dx).sqrt() / (1 + bump * torch.sin(lobes * angle + phase))
        alpha = ((1.08 - rho) / 0.22).clamp(0, 1)
        alpha = alpha * alpha * (3 - 2 * alpha)
        zoom = (3.0 + 2.0 * u[7]) * radius * (0.6 + 0.4 * rho.clamp(0, 1))
        sy = (cy - dy * zoom).round().long().clamp(0, height - 1)
        sx = (cx - dx * zoom).round().long().clamp(0, width - 1)
        seen = blurred[:, sy, sx]
        rim = 1 - 0.35 * (rho.clamp(0, 1) ** 6)  # total reflection darkens the rim
        glint = 0.5 * u[8] * torch.exp(-((dy + 0.45) ** 2 + (dx + 0.3) ** 2) / 0.03)
        seen = (seen * 0.95 + 0.04) * rim + glint
        if result is image:
            result = image.clone()
        window = result[:, r0:r1, c0:c1]
        window.copy_(_over(window, seen, alpha * 0.95))
        covered += float(alpha.sum())
    return result


def _box_blur(image: Tensor, half: int) -> Tensor:
    """(3, H, W) averaged twice over squares of side 2 half + 1, mirrored at the border."""
    padded = _mirror_pad(image, 2 * half)
    side = 2 * half + 1
    return F.avg_pool2d(F.avg_pool2d(padded[None], side, 1), side, 1)[0]


def _shadowed(image: Tensor, level: _Levels, generator: Generator) -> Tensor:
    """A soft shadow of random shape, bluish, in linear light."""
    height, width = image.shape[1:]
    cells, soft, blue, turn, mix = _uniform(generator, (2, 4.99), (0.02, 0.08), (1.05, 1.3), (0, 6.283), (0.3, 0.8))
    rows = torch.linspace(-0.5, 0.5, height)[:, None]
    cols = torch.linspace(-0.5, 0.5, width)[None]
    ramp = rows * math.sin(turn) + cols * math.cos(turn) + 0.5
    field = torch.lerp(ramp, _smooth_field(height, width, int(cells), generator), mix)
    edge = field.flatten()[:: max(field.numel() // 4096, 1)].quantile(level["cover"])
    mask = torch.sigmoid((edge - field) / (soft * 0.5))
    # In the shadow the sun is gone and the blue sky still shines.
    left = torch.tensor([level["light"], level["light"] * (1 + blue) / 2, level["light"] * blue])[:, None, None]
    return linear_to_srgb(srgb_to_linear(image) * (1 - mask * (1 - left)))


def _jpeg_compressed(image: Tensor, level: _Levels, generator: Generator) -> Tensor:
    """Real baseline JPEG with 8x8 blocks and halved chroma, by Pillow."""
    quality = round(level["quality"])
    array = image.mul(255).round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="JPEG", quality=quality, subsampling="4:2:0")
    with Image.open(stream) as decoded:
        array = np.array(decoded)
    return torch.from_numpy(array).permute(2, 0, 1).to(image.dtype).div_(255)


def _uncompleted(image: Tensor, level: _Levels, generator: Generator) -> Tensor:
    """Missing strokes, white as in the usual inpainting masks."""
    height, width = image.shape[1:]
    canvas = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(canvas)
    goal = level["cover"] * height * width
    for _ in range(200):
        if np.count_nonzero(np.asarray(canvas)) >= goal:
            break
        u = torch.rand(8, generator=generator).tolist()
        stroke = max(level["width"] * (0.6 + 0.8 * u[0]), 1.0)
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
    missing = torch.from_numpy(np.array(canvas)).bool()
    return image.masked_fill(missing, 1.0)


# --- the public functions ---

_Single = Callable[[Tensor, _Levels, Generator], Tensor]
_Batched = Callable[[Tensor, float | Tensor, Generator], Tensor]


def _batched(word: str, single: _Single) -> _Batched:
    def function(images: Tensor, severity: float | Tensor, generator: Generator) -> Tensor:
        images = as_pictures(images)
        severities = torch.as_tensor(severity, dtype=torch.float64).expand(len(images)).tolist()
        if any(not 0 <= s <= 1 for s in severities):
            raise ValueError(f"severity must lie in [0, 1], not {severities}")
        pairs = zip(images, severities, strict=True)
        return torch.stack([single(image, _at(word, s), generator) for image, s in pairs]).clamp_(0, 1)

    function.__name__ = function.__qualname__ = word.replace("-", "_")
    function.__doc__ = (
        f"{single.__doc__}\n\n    Images (N, 3, H, W) in [0, 1], severity a number or (N,) in [0, 1]; returns the same "
        f"shape in [0, 1].\n    Physical values at severity 0, 0.5, 1: see ``LEVELS[{word!r}]``.\n\n"
        "    Raises:\n        PictureError: no such images. ValueError: a severity outside [0, 1].\n    "
    )
    return function


# In the order of DA-CLIP's words, which the outputs of the vision-language model keep; the command line reads it here.
_SINGLE: dict[str, _Single] = {
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
DEGRADATIONS: dict[str, _Batched] = {word: _batched(word, single) for word, single in _SINGLE.items()}
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
