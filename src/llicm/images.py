# SPDX-License-Identifier: Apache-2.0
"""Image files to tensors and back. A tensor image is (3, H, W) RGB float32 in [0, 1], sRGB-encoded."""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from llicm.errors import UserError
from llicm.files import write_atomically
from llicm.limits import check_finite, check_size

__all__ = ["IMAGE_SUFFIXES", "list_images", "quantize8", "read_image", "write_png"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def quantize8(image: Tensor) -> Tensor:
    """Round a tensor of any shape to the 8-bit grid: values k/255 with k in 0..255, clamped to [0, 1]."""
    return image.mul(255).round().clamp(0, 255).div(255)


def read_image(path: str | os.PathLike | bytes | BinaryIO, name: str | None = None) -> Tensor:
    """Read a photo as a tensor (3, H, W), RGB float32 in [0, 1], sRGB-encoded.

    PNG, JPEG (also CMYK), WebP, TIFF, BMP, GIF, PPM, JPEG 2000 and AVIF are read. The EXIF orientation is applied. An
    embedded ICC profile is converted to sRGB (relative colorimetric, black point compensated); without one, values
    count as sRGB and CMYK is converted by Pillow's formula. Grey becomes RGB, at its 16 bits if it has them; of
    16-bit colour Pillow keeps the upper 8 bits. Palettes are resolved, transparent pixels are laid over white.
    Thumbnails and previews beside the photo (in TIFF, or in JPEG as phones write it) are ignored.

    Args:
        path: a file's path, its bytes, or a binary file object to read from (it need not be seekable).
        name: what messages call the image; by default the path or the file object's name.

    Raises:
        UserError: the file is missing, truncated, corrupt, not an image of these formats, an animation or several
            pages, larger than a `.llicm` file can be (16384 pixels a side, 2^26 in all), has a broken colour profile,
            or samples whose range is not known (signed, 32-bit, floating-point outside [0, 1]).
    """
    source: io.BytesIO | Path
    if isinstance(path, bytes | bytearray | memoryview):
        source, name = io.BytesIO(path), name or "image"
    elif isinstance(path, str | os.PathLike):
        source, name = Path(path), name or str(path)
        if not source.is_file():
            raise UserError(f"{name}: no such image file; check the path.")
    else:
        # Not every stream can seek, as Pillow wants to.
        source, name = io.BytesIO(path.read()), name or str(getattr(path, "name", "image"))
    try:
        with warnings.catch_warnings():
            # The limits of a size are `check_size`'s; other oddities that Pillow can live with are no news to a user.
            warnings.simplefilter("ignore")
            with Image.open(source, formats=_FORMATS) as opened:
                tags = _check(opened)
                opened.load()
                array = _to_rgb_array(ImageOps.exif_transpose(opened), tags)
    except _DAMAGE as error:
        lines = str(error).splitlines()
        reason = lines[0] if lines else type(error).__name__
        reason = "not a readable image" if isinstance(error, Image.UnidentifiedImageError) else reason
        raise UserError(f"{name}: cannot be read as an image ({reason}); replace or remove this file.") from error
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


# Formats that hold photos: Pillow would also start other programs (Ghostscript for EPS) if a file asks for it.
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
# Pillow reports damage with any of these, depending on the format.
_DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, EOFError,
    RuntimeError, struct.error, zlib.error, Image.DecompressionBombError, ImageCms.PyCMSError,
)  # fmt: skip
# Tags of TIFF (specification 6.0).
_SUBFILE, _BITS, _PHOTOMETRIC, _PLANAR, _SAMPLE_FORMAT = 254, 258, 262, 284, 339


def _check(opened: Image.Image) -> dict[int, Any]:
    """Refuse, before pixels are decoded, what would be read wrongly or in part; returns the tags of a TIFF, or {}."""
    if reason := check_size(*opened.size):
        raise ValueError(reason)
    frames = getattr(opened, "n_frames", 1)
    if not isinstance(opened, TiffImageFile):
        if frames > 1 and opened.format != "MPO":  # a JPEG with further pictures: previews, depth
            raise ValueError(f"an animation of {frames} frames, of which one would have to be extracted")
        return {}
    for page in range(1, frames):
        opened.seek(page)
        if not opened.tag_v2.get(_SUBFILE, 0) & 1:  # bit 0: a smaller version of another page
            raise ValueError("a TIFF of several pages, which would have to be split")
    opened.seek(0)
    tags = dict(opened.tag_v2)
    bits = tags.get(_BITS, (1,))
    if max(bits) > 8 and len(bits) > 1 and tags.get(_PLANAR) == 2:
        raise ValueError(f"{max(bits)}-bit samples in separate planes; interleaved ones can be read")
    return tags


def _to_rgb_array(picture: Image.Image, tags: Mapping[int, Any]) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1]. `tags` are those of a TIFF."""
    profile = picture.info.get("icc_profile")
    if picture.mode.startswith("I") or picture.mode == "F":
        grey = _deep_grey(picture, tags)
        if not profile:
            return np.repeat(grey[..., None], 3, axis=2)
        table = np.asarray(_to_srgb(Image.fromarray(np.arange(256, dtype=np.uint8)[None]), profile))[0] / 255.0
        channels = (np.interp(grey, np.linspace(0, 1, 256), table[:, channel]) for channel in range(3))
        return np.stack([channel.astype(np.float32) for channel in channels], axis=2)
    alpha = None
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        whole = picture.convert({"La": "LA"}.get(picture.mode, "RGBA")).convert("RGBA")
        alpha = whole.getchannel("A")
        if profile:  # colours are converted without it, which Little CMS cannot do for all modes
            picture = whole.convert("L" if picture.mode in ("L", "LA", "La", "1") else "RGB")
        else:
            picture = whole
    if profile or picture.mode == "LAB":
        picture = _to_srgb(picture, profile)
    if alpha is not None:
        picture = picture.convert("RGB")
        picture.putalpha(alpha)
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (255, 255, 255, 255)), picture)
    return np.asarray(picture.convert("RGB"), dtype=np.float32) / 255.0


def _deep_grey(picture: Image.Image, tags: Mapping[int, Any]) -> np.ndarray:
    """Grey of more than 8 bits: (H, W) float32 in [0, 1]. Pillow's convert("RGB") would clip it at 255."""
    grey = np.asarray(picture, dtype=np.float32)
    bits = max(tags.get(_BITS, (16,)))
    full = 1.0 if picture.mode == "F" else float(2**bits - 1)
    signed = max(tags.get(_SAMPLE_FORMAT, (1,))) == 2
    if picture.mode != "F" and (signed or bits > 16):
        kind = "signed" if signed else f"{bits}-bit"
        raise ValueError(f"{kind} samples, of which the range of brightness is unknown")
    if not ((grey >= 0) & (grey <= full)).all():  # NaN too
        raise ValueError(f"samples outside 0 to {full:g}")
    clear = picture.info.get("transparency")
    opaque = grey if clear is None else np.where(grey == clear, full, grey)
    return (full - opaque if tags.get(_PHOTOMETRIC) == 0 else opaque) / np.float32(full)


def _to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an 8-bit picture without alpha from its ICC profile (None: CIELAB, D50) to sRGB, mode RGB.

    Raises:
        ValueError: the profile is damaged, or of another colour space than the picture.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile) if profile else ImageCms.createProfile("LAB"))
        space = source.profile.xcolor_space.strip() if profile else "Lab"
    except (OSError, ImageCms.PyCMSError):
        raise ValueError("its colour profile is damaged: remove the profile, or save the photo as sRGB") from None
    # Grey photos often have a profile for RGB.
    modes = {"GRAY": "1 L", "RGB": "1 L P RGB RGBX YCbCr", "CMYK": "CMYK", "Lab": "LAB"}
    if picture.mode not in modes.get(space, "").split():
        raise ValueError(f"its colour profile is for {space}, its pixels are {picture.mode}: save it as sRGB")
    mode = {"GRAY": "L"}.get(space, space.upper())
    picture = picture.convert(mode) if picture.mode != mode else picture
    # Little CMS would interpolate grey in a table that is too coarse for dark tones. It need convert no more than 256.
    accuracy = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.HIGHRESPRECALC
    try:
        transform = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION | accuracy,
        )  # fmt: skip
    except (OSError, ImageCms.PyCMSError):
        raise ValueError("its colour profile cannot be used: remove the profile, or save the photo as sRGB") from None
    if mode in ("L", "RGB"):
        # Most profiles are sRGB under one name or another. Then pixels stay as they are, not rounded to the next value.
        steps = np.linspace(0, 255, 9).round().astype(np.uint8)
        colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3)
        probe = Image.fromarray(colours if mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
        before, after = (np.asarray(p.convert("RGB")) for p in (probe, _transformed(probe, transform)))
        if abs(before.astype(int) - after).max() <= 1:
            return picture.convert("RGB")
        if mode == "L":
            return Image.fromarray(after[0][np.asarray(picture)])
    return _transformed(picture, transform)


def _transformed(picture: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    converted = ImageCms.applyTransform(picture, transform)
    assert converted is not None  # it is only where the picture is converted in place
    return converted


def write_png(image: Tensor, path: str | os.PathLike) -> None:
    """Write a tensor (3, H, W) in [0, 1] as an 8-bit RGB PNG; creates parent folders.

    The file appears whole or not at all: it is written under a temporary name, then renamed.
    """
    array = check_finite(image, str(path)).detach().cpu().float().mul(255).round().clamp(0, 255).to(torch.uint8)
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
    found = [p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "."]
    if not found:
        kinds = ", ".join(s[1:] for s in IMAGE_SUFFIXES)
        raise UserError(f"{folder}: no images in this folder; put at least one there ({kinds}).")
    return sorted(found, key=lambda p: p.name)
