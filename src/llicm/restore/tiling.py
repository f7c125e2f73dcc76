# SPDX-License-Identifier: Apache-2.0
"""A network on images that are too large for memory: tiles that overlap and are faded into one another.

For a diffusion the network's call is tiled in every step, not the chain: the noise belongs to the whole image and each
step ends with one image, so tiles cannot drift apart. (Faded chains would have to average two different samples where
they overlap, which is a blur.) Within a step the prediction of x_0 is, given x_t and mu, a multiple of the network's
output plus a constant; so to fade outputs with weights that sum to 1 is to fade predictions of x_0.

Exact it is only for what a network sees nearby: statistics over the whole image (linear attention, self-attention,
group normalisation) are then those of a tile. What should speak for the whole image, the embeddings of a
vision-language model, is to be computed from the whole image and given to every tile. The direct restorer is not
tiled: it normalises over the whole image in every block, and its colours come from such statistics.

Weights are squares of sines ("Hann"), as in Barbero Jiménez, "Mixture of diffusers", 2023 (with Gaussians there).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from llicm.errors import UserError


def tile_side(bound_bytes: int, bytes_per_pixel: int, stride: int) -> int:
    """Side of the largest square tile within a bound of memory, a multiple of `stride`.

    Args:
        bound_bytes: what one call of the network may take.
        bytes_per_pixel: what it takes for a pixel (see `ConditionalUNet.bytes_per_pixel`).
        stride: of the network's lowest level.

    Raises:
        UserError: not even tiles of 4 strides fit; smaller ones would be hardly anything but overlap.
    """
    side = math.isqrt(max(bound_bytes, 0) // bytes_per_pixel) // stride * stride
    least = 4 * stride
    if side < least:
        raise UserError(
            f"params.yaml: restorer.memory {bound_bytes} is too small: a tile of {least} x {least} pixels takes "
            f"{least * least * bytes_per_pixel} bytes; allow that much"
        )
    return side


def spans(length: int, side: int, overlap: int, stride: int) -> list[tuple[int, int]]:
    """Where tiles begin and end along an axis: evenly spaced, at multiples of `stride`, overlapping by `overlap` or
    more (less one stride where that is no multiple of it).

    So every tile has the whole image's grid of strided convolutions. The last one ends with the image, which may make
    it a little shorter than `side`.

    Raises:
        ValueError: side is no multiple of stride, or overlap is more than half of it.
    """
    if side % stride or not 0 <= 2 * overlap <= side or side < 2 * stride:
        raise ValueError(f"side {side} must be a multiple of {stride}, and overlap {overlap} at most half of it")
    if length <= side:
        return [(0, length)]
    last = -(-(length - side) // stride)  # in strides
    count = -(-last // ((side - overlap) // stride)) + 1
    starts = [last * i // (count - 1) * stride for i in range(count)]
    return [(start, min(start + side, length)) for start in starts]


def fade(places: list[tuple[int, int]], index: int, like: Tensor) -> Tensor:
    """Weights of one tile along an axis, (length of the tile,): 1 inside, fading where it overlaps with a neighbour.

    The outer quarter of an overlap counts nothing, for there the network sees the tile's border and not the image; a
    squared sine fills the middle half. Weights of two neighbours sum to 1.
    """
    start, stop = places[index]
    weight = like.new_ones(stop - start)
    for other, flip in ((index - 1, False), (index + 1, True)):
        if 0 <= other < len(places):
            common = (stop - places[other][0]) if flip else (places[other][1] - start)
            ramp = torch.arange(common, device=like.device, dtype=like.dtype)
            ramp = ((ramp + 0.5) * 2 / max(common, 1) - 0.5).clamp(0, 1)
            ramp = torch.sin(ramp * (math.pi / 2)) ** 2
            if flip:
                weight[len(weight) - common :] *= ramp.flip(0)
            else:
                weight[:common] *= ramp
    return weight


def tiled(function: Callable[..., Tensor], images: tuple[Tensor, ...], side: int, overlap: int, stride: int) -> Tensor:
    """`function(*images)`, called tile by tile.

    Args:
        function: takes tensors (N, C, h, w), cut from `images` at one place, and returns (N, C', h, w).
        images: tensors (N, C, H, W) of one size.
        side, overlap, stride: see `spans`.

    Returns:
        (N, C', H, W), in float32 or wider.
    """
    height, width = images[0].shape[-2:]
    rows, columns = (spans(length, side, overlap, stride) for length in (height, width))
    if len(rows) == len(columns) == 1:
        return function(*images)
    like = images[0] if images[0].dtype == torch.float64 else images[0].float()
    weights = like.new_zeros(height, width)
    total: Tensor | None = None  # what the function returns says how many channels it has
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            piece = function(*(image[..., top:bottom, left:right] for image in images)).to(like.dtype)
            weight = fade(rows, i, like)[:, None] * fade(columns, j, like)
            if total is None:
                total = piece.new_zeros(*piece.shape[:2], height, width)
            total[..., top:bottom, left:right] += weight * piece
            weights[top:bottom, left:right] += weight
            del piece
    assert total is not None
    # Two neighbours' weights sum to 1; where a third tile reaches in, they do not.
    return total / weights
