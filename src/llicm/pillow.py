# SPDX-License-Identifier: Apache-2.0
"""`.llicm` files in Pillow, once they are registered:

from llicm.pillow import register_llicm_opener
register_llicm_opener()
Image.open("photo.llicm").show()
Image.open("photo.jpg").save("photo.llicm", level=2)     # or bpp=0.25; effort=50
"""

import contextlib
import functools
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from PIL import Image, ImageFile, UnidentifiedImageError

from llicm.codec.bitstream import MAGIC, unpack
from llicm.codec.rate import DEFAULT_LEVEL, compress_to
from llicm.errors import UserError
from llicm.framework import LLICM
from llicm.images import read_image, to_pixels
from llicm.model import load_model

FORMAT = "LLICM"
_OF_TIFF = ("CMYK", "LAB", "I", "F")  # modes that PNG does not have, or clips
_OF_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B")


def register_llicm_opener(model: str | Path | None = None, as_captured: bool = False) -> None:
    """Have Pillow open and save `.llicm` files; calling it again changes the settings.

    A file is decoded when its pixels are asked for, and enhanced as by `llicm decompress`. Errors are those that Pillow
    has: UnidentifiedImageError for a file that is none or is damaged, else OSError.

    Args:
        model: weights (see `llicm.model.load_model`), read when they are first needed; None for the published ones.
        as_captured: photos as they were compressed, without enhancing them.
    """
    load = functools.cache(functools.partial(load_model, model))
    Image.register_open(FORMAT, functools.partial(LlicmImageFile, load, as_captured), _accept)
    Image.register_save(FORMAT, functools.partial(_save, load))
    Image.register_extension(FORMAT, ".llicm")


class LlicmImageFile(ImageFile.ImageFile):
    """A photo that is decoded by `load`; `info` has its level."""

    format = FORMAT
    format_description = "LL-ICM, image compression for low-level machine vision"

    def __init__(self, load: Any, as_captured: bool, *arguments: Any):
        self._system, self._as_captured = load, as_captured
        super().__init__(*arguments)

    def _open(self) -> None:
        assert self.fp is not None  # it was opened for this
        self._data = self.fp.read()
        with _as(UnidentifiedImageError, self.filename):
            stream = unpack(self._data)
        self._size, self._mode = (stream.width, stream.height), "L" if stream.grey else "RGB"
        self.info["level"] = stream.level
        self.tile = [ImageFile._Tile("raw", (0, 0, *self.size), 0, self.mode)]

    def load(self) -> Any:
        if self.tile:
            with _as(OSError, self.filename):
                system = self._system(coding=self._as_captured)
                decode = system.codec.decompress if self._as_captured else system.decompress
                pixels = to_pixels(decode(self._data)[0 if self._as_captured else 1])
            if self.fp and self._exclusive_fp:
                self.fp.close()
            self.fp = io.BytesIO(pixels[..., 0].tobytes() if self.mode == "L" else pixels.tobytes())
        return super().load()

    def load_seek(self, pos: int) -> None:  # the pixels are where the file was
        pass


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(MAGIC)


def _save(load: Any, image: Image.Image, file: IO[bytes], name: str | bytes) -> None:
    """Pillow's save: options `level`, from 0 to the model's highest, or `bpp`, bits per pixel; `effort`."""
    options: dict[str, Any] = image.encoderinfo
    level, bpp, effort = (options.get(key) for key in ("level", "bpp", "effort"))
    if level is not None and bpp is not None:
        raise ValueError("level and bpp exclude each other: give one of them")
    with _as(OSError, name):
        system: LLICM = load(coding=True)
        top = system.codec.levels - 1
        if level is not None and not 0 <= level <= top:
            raise ValueError(f"level {level:g}: this model has levels 0 to {top}")
        # the prefilter runs once, however many levels are tried
        picture = system.prefiltered(read_image(_as_file(image), "the picture"))
        encode = functools.partial(system.encode, picture, effort=effort or 0)
        if bpp is None:
            data = encode(min(DEFAULT_LEVEL, top) if level is None else level)
        else:
            data, _ = compress_to(encode, bpp * image.width * image.height / 8, 0, top)
    file.write(data)


def _as_file(image: Image.Image) -> bytes:
    """The same picture as a file with its EXIF and colour profile, which `read_image` applies as to any photo's."""
    kind = "TIFF" if image.mode in _OF_TIFF else "PNG"
    if image.mode not in (*_OF_TIFF, *_OF_PNG):
        image = image.convert({"La": "LA", "RGBa": "RGBA", "PA": "RGBA"}.get(image.mode, "RGB"))
    buffer = io.BytesIO()
    profile = image.info.get("icc_profile")
    image.save(buffer, kind, icc_profile=profile, exif=image.getexif(), compress_level=1)
    return buffer.getvalue()


@contextlib.contextmanager
def _as(kind: type[OSError], name: str | bytes) -> Iterator[None]:
    """Errors of ours as one that callers of Pillow expect."""
    try:
        yield
    except UserError as error:
        text = name.decode(errors="replace") if isinstance(name, bytes) else name
        raise kind(f"{text}: {error}" if text else str(error)) from error
