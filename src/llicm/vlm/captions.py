# SPDX-License-Identifier: Apache-2.0
"""Captions from what can be measured in an image: brightness, contrast, colours, texture, edges; and its subject.

A captioning network would have to be downloaded. These sentences say less than a person would, yet nothing untrue, and
what they say is what a restorer needs to know about the scene behind a degradation.
"""

import re

import torch
import torch.nn.functional as F
from matplotlib.colors import rgb_to_hsv
from torch import Tensor
from torchvision.transforms.functional import rgb_to_grayscale

__all__ = ["caption", "subject"]

# Hues in degrees from red, and where each name ends.
_HUES = ((15, "red"), (45, "orange"), (70, "yellow"), (165, "green"), (200, "cyan"), (260, "blue"), (320, "purple"))
_COLOURS = ("black", "grey", "white", "brown", *dict.fromkeys(name for _, name in _HUES))
_LEAVES = "overlapping shapes"
_NO_SUBJECT = {"img", "image", "dsc", "dscf", "dscn", "photo", "picture", "pic", "scan", "screenshot", "untitled"}


def subject(name: str) -> str | None:
    """What a photo shows, as far as its name tells: "red_car" -> "red car"; None for names such as "IMG_0042"."""
    text = re.sub(r"[\s_-]+", " ", name).strip().lower()
    known = re.fullmatch(r"[a-z]{3,}( [a-z]+)*", text) and not set(text.split()) & _NO_SUBJECT
    return text if known else None


def caption(image: Tensor, about: str | None) -> str:
    """One sentence about a clean image (3, H, W) in [0, 1], at least 8 pixels a side.

    Args:
        about: its subject; None where nobody knows; "" for dead leaves.

    Returns:
        For example "a bright low contrast photo of coffee, mostly brown and white, with fine texture and few edges".
    """
    light = rgb_to_grayscale(image)[0]
    mean, std = float(light.mean()), float(light.std())
    brightness = "dark" if mean < 0.3 else "bright" if mean > 0.6 else "medium bright"
    contrast = "low" if std < 0.12 else "high" if std > 0.24 else "medium"
    of = f" of {about or _LEAVES}" if about is not None else ""
    return (
        f"a {brightness} {contrast} contrast photo{of}, mostly {_colours(image)}, "
        f"with {_texture(light)} texture and {_edges(light)} edges"
    )


def _colours(image: Tensor) -> str:
    """The names of the one or two most frequent colours, of 64 x 64 places at most."""
    size = (min(image.shape[1], 64), min(image.shape[2], 64))
    places = F.adaptive_avg_pool2d(image[None], size)[0].permute(1, 2, 0).reshape(-1, 3).clamp(0, 1)
    hue, saturation, value = torch.from_numpy(rgb_to_hsv(places.numpy())).unbind(1)
    ends = torch.tensor([float(end) for end, _ in _HUES])
    names = torch.tensor([_COLOURS.index(name) for _, name in (*_HUES, _HUES[0])])  # beyond purple it is red again
    index = names[torch.bucketize(360 * hue, ends)]
    index = torch.where((index == _COLOURS.index("orange")) & (value < 0.6), _COLOURS.index("brown"), index)
    pale = (saturation * value < 0.12) | (saturation < 0.2) | (value < 0.12)
    index = torch.where(pale, torch.bucketize(value, torch.tensor([0.2, 0.75])), index)
    share = torch.bincount(index, minlength=len(_COLOURS)) / len(index)
    first, second = share.argsort(descending=True, stable=True)[:2].tolist()
    return _COLOURS[first] if share[second] < 0.15 else f"{_COLOURS[first]} and {_COLOURS[second]}"


def _texture(light: Tensor) -> str:
    """Scale of the detail: which share of what 4 x 4 averaging takes away 2 x 2 averaging takes already."""
    fine = light[None, None] - _averaged(light, 2)
    coarse = light[None, None] - _averaged(light, 4)
    if float(coarse.std()) < 0.012:
        return "smooth"
    ratio = float(fine.square().mean() / coarse.square().mean().clamp_min(1e-12))
    return "fine" if ratio > 0.45 else "medium" if ratio > 0.25 else "coarse"


def _averaged(light: Tensor, side: int) -> Tensor:
    """(H, W) averaged over squares and put back to its size, (1, 1, H, W)."""
    height, width = light.shape
    pooled = F.avg_pool2d(light[None, None], side, ceil_mode=True)
    return F.interpolate(pooled, scale_factor=side)[..., :height, :width]


def _edges(light: Tensor) -> str:
    """How much of the image has a gradient above 0.1 a pixel."""
    steep = (light[1:, :-1] - light[:-1, :-1]).abs().maximum((light[:-1, 1:] - light[:-1, :-1]).abs()) > 0.1
    share = float(steep.float().mean())
    return "few" if share < 0.02 else "many" if share > 0.1 else "some"
