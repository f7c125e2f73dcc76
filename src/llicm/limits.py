# SPDX-License-Identifier: Apache-2.0
"""What a picture is, wherever one is taken; how large an image may be, wherever one is read, written or decoded; and
which devices can be named."""

from typing import TYPE_CHECKING

from llicm.errors import PictureError, UserError

if TYPE_CHECKING:  # `llicm inspect` does without torch
    from torch import Tensor

MAX_SIDE = 1 << 14
MAX_PIXELS = 1 << 26


def check_size(width: int, height: int) -> str | None:
    """Why an image of this size in pixels is refused, or None."""
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        return f"{width}x{height} pixels; a side has 1 to {MAX_SIDE}"
    if width * height > MAX_PIXELS:
        return f"{width}x{height} pixels; {MAX_PIXELS} are the limit for an image"
    return None


def as_pictures(images: "Tensor", ndim: int = 4, bounded: bool = True) -> "Tensor":
    """What every public function makes of the pictures that it is given: the same in float32.

    Args:
        images: (N, 3, H, W), or (3, H, W) for `ndim` 3: RGB, floating-point, finite, in [0, 1], sRGB-encoded.
        bounded: False where values may leave [0, 1], as those of X̂ do in training.

    Raises:
        PictureError: anything else.
    """
    form = "a picture (3, H, W)" if ndim == 3 else "pictures (N, 3, H, W)"
    if not hasattr(images, "is_floating_point"):
        raise PictureError(f"expected {form} as a tensor, got {type(images).__name__}")
    if images.ndim != ndim or images.shape[-3] != 3 or 0 in images.shape[-3:]:
        other = 4 if ndim == 3 else 3
        hint = ("; give one after the other" if ndim == 3 else "; give x[None]") if images.ndim == other else ""
        raise PictureError(f"expected {form}, got {tuple(images.shape)}{hint}")
    if not images.is_floating_point():
        raise PictureError(f"expected {form} of floating-point values in [0, 1], got {images.dtype}; divide by 255")
    if not len(images):
        return images.float()
    low, high = (float(end) for end in images.detach().aminmax())  # NaN if one value is
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        raise PictureError(f"expected {form} in [0, 1], but it has NaN or infinite values")
    if bounded and not (low >= 0 and high <= 1):
        raise PictureError(f"expected {form} in [0, 1], got values from {low:.4g} to {high:.4g}")
    return images.float()


def is_grey(image: "Tensor") -> bool:
    """Whether the three channels of a picture (3, H, W) are equal."""
    return bool((image == image[:1]).all())


def keep_grey(made: "Tensor", of: "Tensor") -> "Tensor":
    """Pictures (N, 3, H, W) made of pictures `of` (N, 3, h, w): the mean of their channels where those are grey."""
    grey = (of == of[:, :1]).flatten(1).all(1).view(-1, 1, 1, 1)
    return made.mean(1, keepdim=True).expand_as(made).where(grey, made) if bool(grey.any()) else made


def check_finite(image: "Tensor", what: str) -> "Tensor":
    """The same tensor, which the message calls `what`.

    Raises:
        PictureError: it has NaN or infinite values.
    """
    if image.numel() and not all(bool(end.isfinite()) for end in image.detach().aminmax()):  # NaN if one value is
        raise PictureError(f"{what} has NaN or infinite values: the weights are damaged or not trained")
    return image


def usable(device: str) -> str:
    """The same name of a device, as PyTorch calls it.

    Raises:
        UserError: nothing can be computed there.
    """
    import torch

    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # as PyTorch was built
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"the device '{device}' cannot be used ({reason}); name another, such as cpu") from None
    return device
