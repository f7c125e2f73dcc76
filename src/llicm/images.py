# SPDX-License-Identifier: Apache-2.0
"""Image files to tensors and back. A tensor image is (3, H, W) RGB float32 in [0, 1], sRGB-encoded."""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageCms, ImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile
from torch import Tensor

from llicm.colour import Facts, facts_of
from llicm.errors import UserError
from llicm.files import printable, write_atomically
from llicm.limits import check_finite, check_size

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2",
)  # fmt: skip


def quantize8(image: Tensor) -> Tensor:
    """Round a tensor of any shape to the 8-bit grid: values k/255 with k in 0..255, clamped to [0, 1]."""
    return image.mul(255).round().clamp(0, 255).div(255)


def read_image(path: str | os.PathLike | bytes | BinaryIO, name: str | None = None) -> Tensor:
    """Read a photo as a tensor (3, H, W), RGB float32 in [0, 1], sRGB-encoded.

    PNG, JPEG (also CMYK), WebP, TIFF, BMP, GIF, PPM, JPEG 2000, AVIF and HEIC are read. The EXIF orientation is
    applied, one of XMP is not. Colours are converted to sRGB (relative colorimetric, black point compensated), whether
    an ICC profile, numbers of H.273, primaries and gamma, or EXIF name their space; without, values
    count as sRGB and CMYK is converted by Pillow's formula. Grey becomes RGB, at its 16 bits if it has them; of
    16-bit colour Pillow keeps the upper 8 bits. Palettes are resolved, transparent pixels are laid over white.
    Thumbnails and previews beside the photo (in TIFF, or in JPEG as phones write it) are ignored.

    Args:
        path: a file's path, its bytes, or a binary file object to read from (it need not be seekable).
        name: what messages call the image; by default the path or the file object's name.

    Raises:
        UserError: the file is missing, truncated, corrupt, not an image of these formats, an animation or several
            pages, larger than a `.llicm` file can be (16384 pixels a side, 2^26 in all), has a broken colour profile,
            colours that cannot be converted (PQ, HLG),
            or samples whose range is not known (signed, 32-bit, floating-point outside [0, 1]).
    """
    if isinstance(path, bytes | bytearray | memoryview):
        data, name = bytes(path), name or "image"
    elif isinstance(path, str | os.PathLike):
        name = name or str(path)
        if not Path(path).is_file():
            raise UserError(f"{name}: no such image file; check the path.")
        data = b""
    else:
        # Not every stream can seek, as Pillow wants to.
        data, name = path.read(), name or str(getattr(path, "name", "image"))
    try:
        data = data or (Path(path).read_bytes() if isinstance(path, str | os.PathLike) else b"")
        with warnings.catch_warnings():
            # The limits of a size are `check_size`'s; other oddities that Pillow can live with are no news to a user.
            warnings.simplefilter("ignore")
            facts = facts_of(data)
            if data[4:8] == b"ftyp" and data[8:12] not in (b"avif", b"avis"):
                import pillow_heif

                pillow_heif.register_heif_opener()
            with _open(facts.data) as opened:
                tags = _check(opened)
                low = _low_bytes(facts) if facts.depth == 16 and len(facts.clear or ()) == 3 else None
                pair = facts.depth == 16 and opened.tile and opened.tile[0].args == "LA;16B"
                deep = _deep_pair(facts) if pair else None
                opened.load()
                orientation = _exif(opened, facts)
                if facts.unended:
                    _prove_whole(opened, data)
                array = _to_rgb_array(_clear(opened, facts, low), tags, facts, deep)
    except _DAMAGE as error:
        lines = str(error).splitlines()
        reason = lines[0] if lines else type(error).__name__
        reason = _why(data) if isinstance(error, Image.UnidentifiedImageError) else reason
        raise UserError(f"{name}: cannot be read as an image ({reason}); replace or remove this file.") from error
    return torch.from_numpy(_TURNS.get(orientation, lambda a: a)(array).copy()).permute(2, 0, 1).contiguous()


# Formats that hold photos: Pillow would also start other programs (Ghostscript for EPS) if a file asks for it.
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "HEIF")
# Pillow reports damage with any of these, depending on the format.
_DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, EOFError,
    RuntimeError, struct.error, zlib.error, Image.DecompressionBombError, ImageCms.PyCMSError,
)  # fmt: skip
# Tags of TIFF (specification 6.0).
_SUBFILE, _BITS, _PHOTOMETRIC, _PLANAR, _SAMPLE_FORMAT = 254, 258, 262, 284, 339


# What EXIF's orientations ask to be done to an array (H, W, 3).
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: np.fliplr(np.rot90(a, -1)),
    6: lambda a: np.rot90(a, -1), 7: lambda a: np.fliplr(np.rot90(a)), 8: np.rot90,
}  # fmt: skip


def _open(data: bytes) -> ImageFile.ImageFile:
    return Image.open(io.BytesIO(data), formats=[name for name in _FORMATS if name in Image.OPEN or name != "HEIF"])


def _why(data: bytes) -> str:
    """Why Pillow does not know a file."""
    reason = "not a readable image"
    if data[:4] in (b"II*\0", b"MM\0*"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tags = ImageFileDirectory_v2(data[:8])
                stream = io.BytesIO(data)
                stream.seek(tags.next)
                tags.load(stream)
            bits, kind = max(tags.get(_BITS, (1,))), max(tags.get(_SAMPLE_FORMAT, (1,)))
            what = {1: "", 2: "signed ", 3: "floating-point "}.get(kind, "unknown ")
            reason = f"a TIFF of {len(tags.get(_BITS, (1,)))} {what}samples of {bits} bits, which is not read"
        except _DAMAGE:
            pass
    return f"{reason}; PNG, JPEG, WebP, TIFF, BMP, GIF, PPM, JPEG 2000, AVIF and HEIC are read"


def _exif(opened: Image.Image, facts: Facts) -> int:
    """The orientation, 1 to 8; a broken EXIF counts as none. Sets the colours that only EXIF names."""
    exif = Image.Exif()
    try:
        if isinstance(opened, TiffImageFile):
            exif = opened.getexif()
            orientation = opened.tag_v2.get(274, 1)
            _tiff_colours(opened.tag_v2, facts)
        else:
            exif.load(opened.info.get("exif") or b"")
            orientation = exif.get(274, 1)
        space = exif.get_ifd(0x8769).get(0xA001)
        index = str(exif.get_ifd(0xA005).get(1, ""))
    except _DAMAGE:
        return 1
    named = facts.named or facts.profile or opened.info.get("icc_profile")
    if not named and (space == 2 or (space != 1 and "R03" in index)):
        facts.adobe()
    return orientation if isinstance(orientation, int) else 1


def _tiff_colours(tags: Mapping[int, Any], facts: Facts) -> None:
    """Primaries (319), white (318) and the curve (301) of a TIFF without a profile."""
    if 34675 in tags or not {301, 319} & set(tags):
        return
    white = tuple(map(float, tags.get(318, (0.3127, 0.329))))
    primaries = (*map(float, tags[319]), *white) if 319 in tags else facts.primaries
    exponent = None
    if 301 in tags and (middle := tags[301][2 ** max(tags.get(_BITS, (1,))) // 2]):
        power = float(np.log(middle / 65535) / np.log(0.5))
        exponent = None if abs(power / 2.2 - 1) < 0.05 else power
    facts.name(primaries, exponent)


def _prove_whole(opened: Image.Image, data: bytes) -> None:
    """Refuse a JPEG without an end whose pixels depend on what would follow."""
    for tail in (b"\x55" * 64, b"\xaa" * 64):
        with _open(data + tail + b"\xff\xd9") as other:
            if other.tobytes() != opened.tobytes():
                raise ValueError("image file is truncated")


def _low_bytes(facts: Facts) -> np.ndarray:
    """The lower 8 of the 16 bits of a PNG's colours, (H, W, 3): read as if bytes were in the other order."""
    with _open(facts.data) as opened:
        opened.tile = [tile._replace(args="RGB;16L") for tile in opened.tile]
        return np.asarray(opened)


def _deep_pair(facts: Facts) -> np.ndarray:
    """Grey and alpha of 16 bits in a PNG, (H, W, 2) float32 in [0, 1]: its bytes, read as four channels."""
    with _open(facts.data) as opened:
        opened.tile = [tile._replace(args="RGBA") for tile in opened.tile]
        four = np.asarray(opened).astype(np.float32)
    return (four[..., ::2] * 256 + four[..., 1::2]) / np.float32(65535)


def _clear(opened: Image.Image, facts: Facts, low: np.ndarray | None) -> Image.Image:
    """Make the alpha that a PNG's transparent colour stands for, and drop that of a BMP which has none."""
    if opened.format == "BMP" and opened.mode == "RGBA" and opened.getchannel("A").getextrema() == (0, 0):
        return opened.convert("RGB")
    if not facts.clear or opened.mode == "P":
        return opened
    if opened.mode.startswith("I"):
        opened.info["transparency"] = facts.clear[0]  # `_deep_grey` knows
        return opened
    values: np.ndarray = np.asarray(opened.convert("L") if len(facts.clear) == 1 else opened).astype(int)
    values = values if values.ndim == 3 else values[..., None]
    if low is not None:
        values = values * 256 + low
    scale = 255 // (2**facts.depth - 1) if facts.depth <= 8 else 1
    opaque = np.any(values != np.array(facts.clear) * scale, axis=2)
    picture = opened.convert("L" if len(facts.clear) == 1 else "RGB")
    info = picture.info
    picture.putalpha(Image.fromarray(np.where(opaque, 255, 0).astype(np.uint8)))
    picture.info = info
    return picture


def _check(opened: Image.Image) -> dict[int, Any]:
    """Refuse, before pixels are decoded, what would be read wrongly or in part; returns the tags of a TIFF, or {}."""
    if reason := check_size(*opened.size):
        raise ValueError(reason)
    if opened.format in ("JPEG", "MPO") and opened.info.get("icc_profile", b"") is None:
        raise ValueError("a part of its colour profile is missing: remove the profile, or save the photo as sRGB")
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


def _to_rgb_array(picture: Image.Image, tags: Mapping[int, Any], facts: Facts, deep: np.ndarray | None) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1], of what is grey with equal channels.

    Args:
        tags: those of a TIFF. deep: see `_deep_pair`.
    """
    profile = facts.profile or (None if facts.named else picture.info.get("icc_profile"))
    single = deep is not None or picture.mode in ("1", "L", "LA", "La", "F") or picture.mode.startswith("I")
    if not profile and picture.mode not in ("CMYK", "LAB"):
        profile = facts.icc(single)
    if deep is not None or picture.mode.startswith("I") or picture.mode == "F":
        grey = _deep_grey(picture, tags) if deep is None else deep[..., 0]
        if profile:
            table = np.asarray(_to_srgb(Image.fromarray(np.arange(256, dtype=np.uint8)[None]), profile))[0] / 255.0
            grey = np.interp(grey, np.linspace(0, 1, 256), table[:, 1]).astype(np.float32)
        if deep is not None:
            grey = grey * deep[..., 1] + (1 - deep[..., 1])
        return np.repeat(grey[..., None], 3, axis=2)
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
    array = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255.0
    return array[..., [1, 1, 1]] if single else array


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


def to_pixels(image: Tensor, what: str = "the picture") -> np.ndarray:
    """A tensor (3, H, W) in [0, 1], which messages call `what`, as 8-bit pixels (H, W, 3).

    Raises:
        PictureError: it has NaN or infinite values.
    """
    array = check_finite(image, what).detach().cpu().float().mul(255).round().clamp(0, 255).to(torch.uint8)
    return array.permute(1, 2, 0).contiguous().numpy()


def write_png(image: Tensor, path: str | os.PathLike) -> None:
    """Write a tensor (3, H, W) in [0, 1] as an 8-bit RGB PNG; creates parent folders.

    The file appears whole or not at all: it is written under a temporary name, then renamed.
    """
    buffer = io.BytesIO()
    Image.fromarray(to_pixels(image, str(path))).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


def list_images(folder: str | os.PathLike, remedy: str = "") -> list[Path]:
    """The pictures directly in a folder, sorted by name: files with one of `IMAGE_SUFFIXES` that are not hidden.

    Args:
        remedy: what the message says to do where there is none.

    Raises:
        UserError: the folder does not exist or holds no image, or a link leads nowhere.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of images; check the path.")
    inside = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "."]
    for path in inside:
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path}: a link to a file that is not there; mend or remove it.")
    found = [path for path in inside if path.is_file()]
    if not found:
        kinds = ", ".join(s[1:] for s in IMAGE_SUFFIXES)
        raise UserError(f"{folder}: no images in this folder; {remedy or f'put at least one there ({kinds})'}.")
    return sorted(found, key=lambda p: p.name)


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Pictures by their names without suffix, printable, in their order.

    Raises:
        UserError: two have one name.
    """
    found: dict[str, Path] = {}
    for path in paths:
        name = printable(path.stem)
        if name in found:
            raise UserError(f"{path}: another photo in this folder is also called {name}; rename one.")
        found[name] = path
    return found
