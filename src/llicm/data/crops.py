# SPDX-License-Identifier: Apache-2.0
"""Crops of photos: one after another on the processor, or at once on a device, where the photos then lie as bytes."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llicm.data.photo import SCALES, Photo, as_floats


class Crop(NamedTuple):
    """What is drawn of a crop: its photo, one of `SCALES`, the relative place (v, u) and the pose, all in [0, 1), and
    five numbers of another light and palette (see `_recolour`), or none."""

    photo: Photo
    scale: float
    place: tuple[float, float]
    pose: float
    colours: Sequence[float] = ()

    def corner(self, side: int) -> tuple[int, int]:
        """Row and column of its first pixel, in the photo at that scale, which is mirrored where it is smaller."""
        v, u = self.place
        height, width = (max(length, side) for length in self.photo.size(self.scale))
        return int(v * (height - side + 1)), int(u * (width - side + 1))


def cut(crop: Crop, side: int) -> Tensor:
    """The crop (3, side, side), float32 in [0, 1]."""
    (top, left), pose = crop.corner(side), int(crop.pose * 8)
    piece = _at_least(crop.photo.at(crop.scale), side)[:, top : top + side, left : left + side]
    if pose & 1:
        piece = piece.flip(2)
    if pose & 2:
        piece = piece.flip(1)
    piece = as_floats(piece.transpose(1, 2) if pose & 4 else piece)
    return _recolour(piece[None], [crop.colours])[0] if crop.colours else piece


def crops_at_once(crops: Sequence[Crop], side: int, device: torch.device) -> Tensor:
    """The crops (N, 3, side, side) on the device, where nothing waits; the same but for rounding."""
    out = torch.empty(len(crops), 3, side, side, device=device)
    for scale in SCALES:
        if rows := [row for row, crop in enumerate(crops) if crop.scale == scale]:
            cut_here = _whole if scale == 1 else _reduced
            out[rows] = cut_here([crops[row] for row in rows], side, device)
    pose = torch.tensor([int(crop.pose * 8) for crop in crops])[:, None, None, None]
    for bit, other in ((1, lambda x: x.flip(3)), (2, lambda x: x.flip(2)), (4, lambda x: x.transpose(2, 3))):
        out = torch.where((pose & bit > 0).to(device), other(out), out)
    if rows := [row for row, crop in enumerate(crops) if crop.colours]:
        out[rows] = _recolour(out[rows], [crops[row].colours for row in rows])
    return out


def _whole(crops: Sequence[Crop], side: int, device: torch.device) -> Tensor:
    pieces = []
    for crop in crops:
        top, left = crop.corner(side)
        pixels = crop.photo.on(device) if crop.colours else crop.photo.pixels  # ready-made pairs would fill the device
        pieces.append(_at_least(pixels, side)[:, top : top + side, left : left + side].to(device))
    return torch.stack([as_floats(piece) for piece in pieces])


def _reduced(crops: Sequence[Crop], side: int, device: torch.device) -> Tensor:
    """Pieces of photos, resampled as by bicubic interpolation with antialiasing of the whole photo."""
    pieces, weights = [], []
    reach = math.ceil((side + 4) / crops[0].scale) + 4  # pixels of the photo that a crop depends on, at most
    for crop in crops:
        pixels, (height, width) = crop.photo.on(device), crop.photo.size(crop.scale)
        (first, down), (begin, across) = (
            _taps(start, side, length, full, reach)
            for start, length, full in zip(crop.corner(side), (height, width), pixels.shape[1:], strict=True)
        )
        piece = as_floats(pixels[:, first : first + reach, begin : begin + reach])
        pieces.append(torch.nn.functional.pad(piece, (0, reach - piece.shape[2], 0, reach - piece.shape[1])))
        weights.append(torch.stack((down, across)))
    taps = torch.stack(weights).to(device)
    offset, ratio, inside = taps[..., :side, None], taps[..., side : side + 1, None], taps[..., side + 1 :, None]
    number = torch.arange(reach, device=device)
    x = ((number + 0.5 - offset) / ratio).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2  # Keys's cubic convolution, a = -1/2
    kernel = torch.where(x < 1, near, torch.where(x < 2, far, 0.0)) * (number < inside)
    kernel = (kernel / kernel.sum(-1, keepdim=True))[:, :, None]  # (N, 2, 1, side, reach)
    return (kernel[:, 0] @ torch.stack(pieces) @ kernel[:, 1].mT).clamp_(0, 1)


def _taps(start: int, side: int, length: int, full: int, reach: int) -> tuple[int, Tensor]:
    """Along one side: the first pixel that is needed; behind it the centres of the crop's pixels in those of the photo,
    the photo's pixels to one of them, and how many there are."""
    ratio = full / length
    centres = ratio * (torch.arange(start, start + side, dtype=torch.float64) + 0.5)
    first = max(int(centres[0] - 2 * ratio), 0)
    ends = torch.tensor([ratio, min(full - first, reach)], dtype=torch.float64)
    return first, torch.cat((centres - first, ends)).float()


def _at_least(image: Tensor, side: int) -> Tensor:
    """The image, mirrored below and to the right until both sides reach ``side``."""
    for dim in (1, 2):
        while image.shape[dim] < side:
            mirrored = image.flip(dim).narrow(dim, 0, min(image.shape[dim], side - image.shape[dim]))
            image = torch.cat((image, mirrored), dim)
    return image


def _recolour(images: Tensor, colours: Sequence[Sequence[float]]) -> Tensor:
    """Another light and palette for crops (N, 3, H, W): hue, saturation, contrast and brightness from u in [0, 1)^5.

    Few photos mean few palettes, and a restorer that has seen only those takes every pale one for haze. Hue turns by
    up to 1 rad about the grey axis, saturation is scaled by 0.3 to 1.2, contrast by 0.8 to 1.1, and brightness shifts
    by up to 0.1; a quarter of the crops stay as they are.
    """
    rows = [row for row, u in enumerate(colours) if u[0] >= 0.25]
    if not rows:
        return images
    matrices, shifts = [], []
    for u in (colours[row] for row in rows):
        turn, saturation, contrast, shift = 2 * u[1] - 1, 0.3 + 0.9 * u[2], 0.8 + 0.3 * u[3], 0.2 * u[4] - 0.1
        cosine, sine = saturation * math.cos(turn), saturation * math.sin(turn) / math.sqrt(3)
        same, next_, last = (1 + 2 * cosine) / 3, (1 - cosine) / 3 - sine, (1 - cosine) / 3 + sine
        matrices.append(contrast * torch.tensor([[same, next_, last], [last, same, next_], [next_, last, same]]))
        shifts.append(shift)
    matrix = torch.stack(matrices).to(images.device)
    pixels = (images if len(rows) == len(images) else images[rows]).flatten(2)
    mean = pixels.mean(2, keepdim=True)
    shifted = mean + torch.tensor(shifts).to(images.device)[:, None, None]
    coloured = torch.baddbmm(shifted - matrix @ mean, matrix, pixels).clamp_(0, 1).unflatten(2, images.shape[2:])
    return (
        coloured if len(rows) == len(images) else images.index_copy(0, torch.tensor(rows).to(images.device), coloured)
    )
