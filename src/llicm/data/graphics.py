# SPDX-License-Identifier: Apache-2.0
"""Graphics: endless exact pictures without a fault, of the kinds that a restorer takes for degraded ones.

Most clean photos are bright, full of contrast and of detail, so a restorer that has seen nothing else takes a night sky
for darkness, a pale picture for haze, flat areas for blur, and stars for snow. Here nothing is to be mended, and the
ideal picture is known to the last bit.
"""

import colorsys
import functools
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_LETTERS = "etaoinshrdlucmfwypvbgkTASIWRB0123456789.,"
_Colour = tuple[int, int, int]
_Rng = np.random.Generator


def graphic(kind: str, size: int, generator: torch.Generator) -> Tensor:
    """One picture of a kind of `GRAPHICS`.

    Args:
        size: side in pixels, at least 16. generator: source of all randomness.

    Returns:
        (3, size, size) float32 in [0, 1], values of 8 bits.

    Raises:
        ValueError: no such kind, or a size below 16.
    """
    if kind not in GRAPHICS or size < 16:
        raise ValueError(f"a graphic is one of {', '.join(GRAPHICS)}, of at least 16 pixels a side")
    rng = np.random.Generator(np.random.PCG64(int(torch.randint(2**62, (1,), generator=generator))))
    made = GRAPHICS[kind](size, rng)
    if isinstance(made, Image.Image):  # drawn at twice the size: soft edges, but none where a line is on the grid
        made = np.asarray(made.resize((size, size), Image.Resampling.BOX), np.float64) / 255
    pixels = (np.clip(made, 0, 1) * 255).round().astype(np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div_(255)


def _page(size: int, rng: _Rng) -> Image.Image:
    """Black on white, or one dark colour on a pale one: headings and lines of text."""
    image = Image.new("RGB", (2 * size, 2 * size), _colour(rng, (0, 0.1), (0.93, 1)))
    _write(image, rng, (0, 0, size, size), _colour(rng, (0, 0.9), (0, 0.35)), rng.uniform(7, 15))
    return image


def _screenshot(size: int, rng: _Rng) -> Image.Image:
    """Flat bars and panels of any colour on the grid of pixels, some with text."""
    image = Image.new("RGB", (2 * size, 2 * size), _colour(rng, (0, 0.3), (0.1, 1)))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(4, 16)):
        left, top = rng.integers(-size // 8, size, 2)
        wide, high = rng.integers(size // 16, size, 2)
        if rng.random() < 0.4:
            wide, high = 2 * size, 4 + high // 4
        ground = _colour(rng, (0, 1), (0, 1))
        draw.rectangle((2 * left, 2 * top, 2 * (left + wide) - 1, 2 * (top + high) - 1), fill=ground)
        if rng.random() < 0.5:
            ink = (0, 0, 0) if sum(ground) > 380 else (255, 255, 255)
            _write(image, rng, (left, top, left + wide, top + high), ink, rng.uniform(7, 13))
    return image


def _drawing(size: int, rng: _Rng) -> Image.Image:
    """Line art: outlines of smooth shapes, empty or flatly filled."""
    image = Image.new("RGB", (2 * size, 2 * size), _colour(rng, (0, 0.2), (0.85, 1)))
    draw, ink, broad = ImageDraw.Draw(image), _colour(rng, (0, 1), (0, 0.4)), int(rng.integers(1, 6))
    turn = np.linspace(0, 2 * np.pi, 120)
    filled = rng.random() < 0.6
    for _ in range(rng.integers(5, 18)):
        waves = sum(rng.normal(0, 0.3 / k) * np.sin(k * turn + rng.uniform(0, 6.3)) for k in (1, 2, 3, 5))
        radius = 2 * size * rng.uniform(0.04, 0.3) * (1 + waves)
        x, y = rng.uniform(0, 2 * size, 2)
        outline = list(zip(x + radius * np.cos(turn), y + radius * np.sin(turn) * rng.uniform(0.4, 1.2), strict=True))
        if filled:
            draw.polygon(outline, fill=_colour(rng, (0, 1), (0.5, 1)))
        draw.line(outline, fill=ink, width=broad, joint="curve")
    return image


def _chart(size: int, rng: _Rng) -> Image.Image:
    """Bars or curves over a grid, with numbers at the axes."""
    image = Image.new("RGB", (2 * size, 2 * size), (255, 255, 255))
    draw, left, low, side = ImageDraw.Draw(image), size // 4, 2 * size - size // 4, 2 * size - size // 3
    lines, count = int(rng.integers(3, 8)), int(rng.integers(3, 12))
    for line in range(lines):
        y = low - line * side // lines
        draw.line((left, y, left + side, y), fill=(210, 210, 210), width=2)
        draw.text((2, y - size // 24), f"{line * 10 ** rng.integers(0, 3)}", (60, 60, 60), _font(size // 10))
    for _ in range(rng.integers(1, 5)):
        colour, heights = _colour(rng, (0.3, 1), (0.3, 0.9)), side * rng.uniform(0.05, 0.95, count)
        xs = left + side * (np.arange(count) + rng.uniform(0.1, 0.5)) / count
        if rng.random() < 0.5:
            for x, height in zip(xs, heights, strict=True):
                draw.rectangle((x, low - height, x + 0.3 * side / count, low), fill=colour)
        else:
            draw.line(list(zip(xs, low - heights, strict=True)), fill=colour, width=int(rng.integers(2, 7)))
    draw.line((left, low - side, left, low, left + side, low), fill=(0, 0, 0), width=3)
    return image


def _scan(size: int, rng: _Rng) -> np.ndarray:
    """A page in greys, unevenly lit."""
    page = np.asarray(_page(size, rng).convert("L").resize((size, size), Image.Resampling.BICUBIC)) / 255
    light = rng.uniform(0.7, 1) - rng.uniform(0, 0.25) * _slope(size, rng)
    return np.repeat((light * (rng.uniform(0, 0.2) + 0.85 * page))[..., None], 3, 2)


def _night(size: int, rng: _Rng) -> np.ndarray:
    """A dark sky with stars, sometimes a moon, and the black outline of a land."""
    high, deep = (np.array(_colour(rng, (0.1, 0.9), (0.01, 0.25))) / 255 for _ in range(2))
    slope = _slope(size, rng)[..., None]
    sky = high * slope + deep * (1 - slope)
    rows, cols = np.mgrid[:size, :size]
    count = int(size * size * 10 ** rng.uniform(-4, -2.3)) + 3
    for y, x, bright, wide in zip(
        *rng.uniform(0, size, (2, count)), rng.random(count) ** 4, rng.uniform(0.4, 1.1, count), strict=True
    ):
        near = np.s_[max(int(y) - 4, 0) : int(y) + 5, max(int(x) - 4, 0) : int(x) + 5]
        spot = np.exp(-((rows[near] - y) ** 2 + (cols[near] - x) ** 2) / (2 * wide**2))
        sky[near] += (0.15 + bright) * spot[..., None] * rng.uniform(0.8, 1, 3)
    if rng.random() < 0.3:
        distance = np.hypot(rows - rng.uniform(0, size), cols - rng.uniform(0, size))
        sky += 0.9 * np.clip(size * rng.uniform(0.03, 0.12) - distance, 0, 1)[..., None]
    if rng.random() < 0.5:
        ridge = size * (rng.uniform(0.6, 0.95) + 0.1 * _curve(size, rng))
        sky = np.where((rows > ridge)[..., None], sky.min() * 0.5, sky)
    return sky


def _bright(size: int, rng: _Rng) -> np.ndarray:
    """High key: soft shapes between pale and white, hardly coloured."""
    picture = np.ones((size, size, 3)) * np.array(_colour(rng, (0, 0.08), (0.9, 1))) / 255
    rows, cols = np.mgrid[:size, :size] / size
    for _ in range(rng.integers(3, 12)):
        y, x, radius, soft = *rng.uniform(0, 1, 2), rng.uniform(0.05, 0.5), rng.uniform(0.01, 0.2)
        distance = np.hypot(rows - y, (cols - x) * rng.uniform(0.5, 1.5))
        cover = rng.uniform(0.2, 1) / (1 + np.exp(np.clip((distance - radius) / soft * 4, -30, 30)))[..., None]
        picture += cover * (np.array(_colour(rng, (0, 0.2), (0.7, 1))) / 255 - picture)
    return picture


def _gradient(size: int, rng: _Rng) -> np.ndarray:
    """One hue, from one brightness to another, with waves or none."""
    slope, hue = _slope(size, rng), np.array(_colour(rng, (0, 1), (1, 1))) / 255
    waves = slope + rng.uniform(0, 0.2) * np.sin(slope * rng.uniform(2, 40)) * (rng.random() < 0.5)
    dark, light = rng.uniform(0, 0.6), rng.uniform(0.3, 1)
    return (dark + (light - dark) * waves)[..., None] * hue


GRAPHICS: dict[str, Callable[[int, _Rng], Image.Image | np.ndarray]] = {
    "page": _page, "screenshot": _screenshot, "drawing": _drawing, "chart": _chart, "scan": _scan, "night": _night,
    "bright": _bright, "gradient": _gradient,
}  # fmt: skip


def _colour(rng: _Rng, saturation: tuple[float, float], value: tuple[float, float]) -> _Colour:
    r, g, b = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
    return round(255 * r), round(255 * g), round(255 * b)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(max(size, 8))


def _write(image: Image.Image, rng: _Rng, box: tuple, ink: _Colour, height: float) -> None:
    """Lines of text into a box (left, top, right, bottom), in pixels of the picture, as `height` is."""
    left, top, right, bottom = (2 * int(edge) for edge in box)
    draw, y, margin = ImageDraw.Draw(image), top + height, height * rng.uniform(0.5, 3)
    while y + 2 * height < min(bottom, image.height + height):
        large = rng.random() < 0.1
        font, x = _font(int(2 * height * (1.6 if large else 1))), left + margin
        length = (right - left - 2 * margin) * (rng.uniform(0.2, 0.9) if rng.random() < 0.2 else 1)
        count = int(max(length / height, 0))
        text = "".join(rng.choice(list(_LETTERS), count))
        for place in range(0, count, int(rng.integers(3, 10))):
            text = f"{text[:place]} {text[place + 1 :]}"
        draw.text((x, y), text, ink, font)
        y += 2 * height * (2.2 if large else 1.5)


def _slope(size: int, rng: _Rng) -> np.ndarray:
    """(size, size) from 0 to 1, along a line or from a centre."""
    rows, cols = np.mgrid[:size, :size] / size
    if rng.random() < 0.3:
        field = np.hypot(rows - rng.random(), cols - rng.random())
    else:
        turn = rng.uniform(0, 2 * np.pi)
        field = rows * np.cos(turn) + cols * np.sin(turn)
    return (field - field.min()) / (field.max() - field.min())


def _curve(size: int, rng: _Rng) -> np.ndarray:
    """(size,) between some -1 and 1: hills."""
    x = np.arange(size) / size
    return sum(rng.uniform(-1, 1) / k * np.sin(6.3 * k * (x + rng.random())) for k in (1, 2, 3, 7, 13)) / 2
