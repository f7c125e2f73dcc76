# SPDX-License-Identifier: Apache-2.0
"""Dead-leaves images: endless synthetic training images with the statistics of natural ones.

The model drops opaque random shapes on a plane until it is covered. With radii drawn from a density
proportional to r^-3 the result shares the scale invariance and the edges of natural images (Lee, Mumford and
Huang, "Occlusion models for natural images", IJCV 2001), and restorers trained on it work on photos (Achddou,
Gousseau and Ladjal, "Synthetic images as a regularity prior for image restoration neural networks",
SSVM 2021).
"""

import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

_OVERSAMPLING = 1.5  # rendered this much larger, then reduced: soft edges at little cost
_SMALLEST = (0.01, 0.06)  # the least radius as a share of the side; drawn for each image: fine to calm
_LARGEST = 1.0
_TEXTURED = 0.6  # share of the leaves that show a piece of a photo; the others one colour
_BATCH = 600  # leaves drawn between two looks at whether the plane is covered
_MOST_BATCHES = 20
_COVERED = 0.998  # share of the plane at which the rest is left to the ground


def dead_leaves(size: int, sources: list[Tensor], generator: torch.Generator) -> Tensor:
    """One dead-leaves image.

    Args:
        size: side in pixels, at least 16.
        sources: photos (3, H, W), in [0, 1] or uint8, that lend their colours and textures; at least one.
        generator: source of all randomness.

    Returns:
        (3, size, size) float32 in [0, 1]; every pixel belongs to a leaf.

    A leaf is a disk, a rotated rectangle or an irregular polygon of radius r, with P(r) proportional to r^-3
    between a least radius, random in 1% to 6% of the side, and the whole side. It shows the colour of one
    pixel, or a piece of a photo from a random place; brightness, tone curve and, for half of the leaves, the
    order of the channels are changed at random.

    Raises:
        ValueError: no sources, or a size below 16.
    """
    if not sources or size < 16:
        raise ValueError("dead_leaves needs at least one source photo and a size of 16 or more")
    rng = np.random.Generator(np.random.PCG64(int(torch.randint(2**62, (1,), generator=generator))))
    side = round(size * _OVERSAMPLING)
    owner = _occlusion(side, rng)
    colours = _paint(owner, sources, rng)
    picture = Image.fromarray(colours).resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().div(255).contiguous()


def _occlusion(side: int, rng: np.random.Generator) -> np.ndarray:
    """(side, side) int32: the index of the leaf seen at every pixel.

    Batches are laid front to back, each filling only what is still bare. When almost nothing is bare the
    ground, index 0, shows through and counts as one more leaf behind all others. Within a batch later leaves
    lie on top.
    """
    owner = np.zeros((side, side), np.int32)
    smallest = side * math.exp(rng.uniform(*np.log(_SMALLEST)))
    for batch in range(_MOST_BATCHES):
        layer = Image.new("I", (side, side), 0)
        _lay(layer, smallest, batch * _BATCH + 1, rng)
        bare = owner == 0
        owner[bare] = np.asarray(layer)[bare]
        if np.count_nonzero(owner) >= _COVERED * owner.size:
            break
    return owner


def _lay(layer: Image.Image, smallest: float, first: int, rng: np.random.Generator) -> None:
    """Draw a batch of leaves with indices from ``first`` on; radii from ``smallest`` pixels."""
    draw, side = ImageDraw.Draw(layer), layer.width
    # Inverse transform of the truncated density r^-3.
    near, far = smallest**-2.0, (side * _LARGEST) ** -2.0
    radius = (near - rng.random(_BATCH) * (near - far)) ** -0.5
    # Centres also outside, so that the border is not special.
    centre = rng.random((_BATCH, 2)) * (side + 2 * radius[:, None]) - radius[:, None]
    kind = rng.integers(3, size=_BATCH)
    turn = rng.random(_BATCH) * 2 * math.pi
    half_angle = rng.uniform(0.15, 1.4, _BATCH)  # of a rectangle's corner, radians: its aspect
    corners = np.where(kind == 1, 4, rng.integers(3, 9, size=_BATCH))
    reach = np.where(kind == 1, 1.0, rng.uniform(0.45, 1.0, (8, _BATCH))) * radius
    slot = np.arange(8)[:, None]
    angles = np.where(
        kind == 1,
        np.where(slot % 2 == 0, half_angle, -half_angle) + math.pi * ((slot + 1) // 2),
        slot * (2 * math.pi / corners),
    )
    x = centre[:, 0] + reach * np.cos(angles + turn)
    y = centre[:, 1] + reach * np.sin(angles + turn)
    outlines = np.stack((x, y), axis=2).transpose(1, 0, 2).reshape(_BATCH, 16).tolist()
    boxes = np.hstack((centre - radius[:, None], centre + radius[:, None])).tolist()
    for i, (shape, count) in enumerate(zip(kind.tolist(), corners.tolist(), strict=True)):
        if shape == 0:
            draw.ellipse(boxes[i], fill=first + i)
        else:
            draw.polygon(outlines[i][: 2 * count], fill=first + i)


def _paint(owner: np.ndarray, sources: list[Tensor], rng: np.random.Generator) -> np.ndarray:
    """(side, side, 3) uint8: each leaf's colour or texture, gathered for all pixels at once."""
    names, leaf = np.unique(owner, return_inverse=True)
    leaf = leaf.reshape(-1)
    count = len(names)
    photo = rng.integers(len(sources), size=count)
    place = rng.random((count, 2))
    moving = (rng.random(count) < _TEXTURED) * rng.choice((1, -1, 2), size=count)  # 0: one colour
    swap = rng.random(count) < 0.5
    gain = rng.uniform(0.7, 1.3, count)
    # A few photos hold few hues and little light: exchanged channels and another tone make up for it.
    kept = rng.random(count)[:, None] < 0.5
    channels = np.where(kept, np.arange(3), rng.permuted(np.tile(np.arange(3), (count, 1)), axis=1))
    tone = rng.uniform(0.5, 1.2)

    side = owner.shape[0]
    rows, cols = np.divmod(np.arange(side * side), side)
    flip = swap[leaf]
    rows, cols = np.where(flip, cols, rows), np.where(flip, rows, cols)
    step = moving[leaf]
    rows *= step
    cols *= step
    painted = np.empty((side * side, 3), np.float32)
    photo_of = photo[leaf]
    for index, source in enumerate(sources):
        at = np.flatnonzero(photo_of == index)
        if not len(at):
            continue
        height, width = source.shape[1:]
        start = place[leaf[at]]
        v = _mirror(rows[at] + (start[:, 0] * height).astype(np.int64), height)
        u = _mirror(cols[at] + (start[:, 1] * width).astype(np.int64), width)
        found = source.reshape(3, -1).numpy()[channels[leaf[at]], (v * width + u)[:, None]]
        painted[at] = found / np.float32(255) if found.dtype == np.uint8 else found
    painted = painted.clip(0, 1) ** np.float32(tone) * gain[leaf][:, None].astype(np.float32)
    return (painted.clip(0, 1) * 255 + 0.5).astype(np.uint8).reshape(side, side, 3)


def _mirror(index: np.ndarray, length: int) -> np.ndarray:
    """Indices of any size reflected into 0..length-1."""
    index = index % (2 * length)
    return np.where(index < length, index, 2 * length - 1 - index)
