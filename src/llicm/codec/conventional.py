# SPDX-License-Identifier: Apache-2.0
"""Conventional still-image codecs by name, through Pillow and in memory.

The rate of a conventional codec is the length of the complete file it writes, headers included, so that
it can be compared with the real bitstream of a learned codec. A further codec is one class:

    @register("name")
    class Name(ConventionalCodec): ...
"""

import io

import numpy as np
import PIL
import torch
from PIL import Image, UnidentifiedImageError, features
from torch import Tensor

from llicm.errors import BitstreamError, UserError

__all__ = ["CONVENTIONAL", "ConventionalCodec", "register"]

CONVENTIONAL: dict[str, "ConventionalCodec"] = {}


def register(name: str):
    """Class decorator: put one object of a :class:`ConventionalCodec` into ``CONVENTIONAL`` as `name`."""

    def add(cls: type["ConventionalCodec"]) -> type["ConventionalCodec"]:
        if name in CONVENTIONAL:
            raise ValueError(f"a codec named {name!r} is registered already")
        CONVENTIONAL[name] = cls(name)
        return cls

    return add


class ConventionalCodec:
    """An image file format that Pillow writes and reads, with a fixed set of encoder settings.

    Attributes:
        format: Pillow's name of the format.
        feature: Pillow's name of the library behind it, asked for its presence and version.
        settings: encoder options other than the quality; part of the record of a measurement.
        quality_range: smallest and largest quality accepted, both included.
    """

    format: str
    feature: str
    settings: dict = {}
    quality_range = (0, 100)

    def __init__(self, name: str):
        self.name = name

    def options(self, quality: int) -> dict:
        """Pillow's save options that express `quality` (a larger value: a better picture, a larger file)."""
        return {"quality": quality}

    def encode(self, image: Tensor, quality: int) -> bytes:
        """Compress one image.

        Args:
            image: (3, H, W) RGB in [0, 1]; rounded to 8 bits first.
            quality: whole number in `quality_range`.

        Returns:
            The complete file.

        Raises:
            UserError: the quality is no whole number in range, the picture is too large for the format, or
                this installation of Pillow lacks the codec.
        """
        if not features.check(self.feature):
            raise UserError(
                f"This Pillow has no {self.format} support: install the pinned Pillow or drop {self.name!r}."
            )
        low, high = self.quality_range
        if isinstance(quality, bool) or int(quality) != quality or not low <= quality <= high:
            raise UserError(f"{self.name} takes a whole quality from {low} to {high}, not {quality!r}.")
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"expected one image (3, H, W), got {tuple(image.shape)}")
        pixels = (image.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        buffer = io.BytesIO()
        try:
            Image.fromarray(np.ascontiguousarray(pixels)).save(
                buffer, self.format, **self.options(int(quality)), **self.settings
            )
        except (OSError, ValueError) as error:
            size = f"{image.shape[2]}x{image.shape[1]}"
            raise UserError(f"{self.name} cannot write a picture of {size} pixels: {error}.") from error
        return buffer.getvalue()

    def decode(self, data: bytes) -> Tensor:
        """Decompress one file.

        Args:
            data: a file written by :meth:`encode`.

        Returns:
            (3, H, W) float32 RGB in [0, 1], on the 8-bit grid.

        Raises:
            BitstreamError: the bytes are not a whole file of this format.
        """
        try:
            with Image.open(io.BytesIO(data), formats=[self.format]) as file:
                pixels = np.array(file.convert("RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise BitstreamError(
                f"These {len(data)} bytes are not a complete {self.name} file: encode again."
            ) from error
        return torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32) / 255

    def describe(self) -> dict:
        """Name, format, encoder settings and library versions, for the record of a measurement."""
        return {
            "name": self.name,
            "format": self.format,
            "settings": dict(self.settings),
            "pillow": PIL.__version__,
            "library": f"{self.feature} {features.version(self.feature)}",
        }


@register("jpeg")
class JPEG(ConventionalCodec):
    """Baseline JPEG, 4:2:0, default Huffman tables, through libjpeg(-turbo)."""

    format, feature = "JPEG", "jpg"
    settings = {"subsampling": "4:2:0"}

    def describe(self) -> dict:
        turbo = features.version("libjpeg_turbo")
        return super().describe() | ({"library": f"libjpeg_turbo {turbo}"} if turbo else {})


@register("webp")
class WebP(ConventionalCodec):
    """Lossy WebP (always 4:2:0) at libwebp's default effort."""

    format, feature = "WEBP", "webp"
    settings = {"method": 4}


@register("avif")
class AVIF(ConventionalCodec):
    """AVIF, 4:2:0. One encoder thread, since the bytes may depend on the number of threads."""

    format, feature = "AVIF", "avif"
    settings = {"subsampling": "4:2:0", "speed": 6, "max_threads": 1}


@register("jpeg2000")
class JPEG2000(ConventionalCodec):
    """JPEG 2000 with the irreversible wavelet; `quality` is the PSNR aimed at, in dB (20 to 60)."""

    format, feature = "JPEG2000", "jpg_2000"
    settings = {"irreversible": True, "mct": 1, "quality_mode": "dB"}
    quality_range = (20, 60)

    def options(self, quality: int) -> dict:
        return {"quality_layers": [quality]}
