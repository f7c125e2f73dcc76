# SPDX-License-Identifier: Apache-2.0
"""Image files to tensors and back. A tensor image is (3, H, W) RGB float32 in [0, 1], sRGB-encoded."""

import io
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from llicm.errors import UserError
from llicm.files import write_atomically

__all__ = ["IMAGE_SUFFIXES", "list_images", "quantize8", "read_image", "write_png"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def quantize8(image: Tensor) -> Tensor:
    """Round a tensor of any shape to the 8-bit grid: values k/255 with k in 0..255, clamped to [0, 1]."""
    return image.mul(255).round().clamp(0, 255).div(255)


def read_image(path: str | os.PathLike) -> Tensor:
    """Read any image Pillow understands as a tensor (3, H, W), RGB float32 in [0, 1].

    The EXIF orientation is applied. Grey and 16-bit images become RGB (16-bit values are divided by 65535),
    palettes are resolved, transparent pixels are laid over white.

    Raises:
        UserError: the file is missing, truncated, corrupt or not an image.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such image file; check the path.")
    try:
        with Image.open(path) as opened:
            opened.load()
            picture = ImageOps.exif_transpose(opened)
            array = _to_rgb_array(picture)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        # Pillow reports damage with any of these, depending on the format.
        reason = "not a readable image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise UserError(f"{path}: cannot be read as an image ({reason}); replace or remove this file.") from error
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def _to_rgb_array(picture: Image.Image) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1]."""
    if picture.mode.startswith("I") or picture.mode == "F":
        # Pillow's convert("RGB") would clip 16-bit grey at 255 instead of scaling it.
        grey = np.asarray(picture, dtype=np.float32)
        scale = 1.0 if picture.mode == "F" and grey.max(initial=0.0) <= 1.0 else 65535.0
        return np.repeat(np.clip(grey / scale, 0.0, 1.0)[..., None], 3, axis=2)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture)
    return np.asarray(picture.convert("RGB"), dtype=np.float32) / 255.0


def write_png(image: Tensor, path: str | os.PathLike) -> None:
    """Write a tensor (3, H, W) in [0, 1] as an 8-bit RGB PNG; creates parent folders.

    The file appears whole or not at all: it is written under a temporary name, then renamed.
    """
    array = image.detach().cpu().float().mul(255).round().clamp(0, 255).to(torch.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array.permute(1, 2, 0).contiguous().numpy()).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


def list_images(folder: str | os.PathLike) -> list[Path]:
    """All image files directly in a folder (png, jpg, jpeg, webp, bmp, tif, tiff), sorted by name.

    Raises:
        UserError: the folder does not exist or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of images; check the path.")
    found = sorted(
        (p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES),
        key=lambda p: p.name,
    )
    found = [p for p in found if not p.name.startswith(".")]
    if not found:
        kinds = ", ".join(s[1:] for s in IMAGE_SUFFIXES)
        raise UserError(f"{folder}: no images in this folder; put at least one there ({kinds}).")
    return found
