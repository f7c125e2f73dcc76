# SPDX-License-Identifier: Apache-2.0
"""The `.llicm` container: a fixed header, one entropy-coded payload, and a checksum over both.

`docs/bitstream.md` specifies it byte by byte. Everything that a decoder allocates is bounded here first; what a
checksum cannot tell (a file altered by somebody who corrected the checksum too) the entropy decoder finds out: see
`llicm.codec.entropy`.
"""

import math
import struct
import zlib
from dataclasses import dataclass, replace

from llicm.errors import BitstreamError
from llicm.limits import check_size

MAGIC = b"LLIC"
VERSION = 3
GREY, RESTORED = 1, 2  # flags
_HEADER = struct.Struct(">4sBB4sHHHI")  # magic, version, flags, model, width, height, level, length of the payload
_CHECKSUM = struct.Struct(">I")
LEVEL_UNIT = 4096  # fixed-point steps per level
OVERHEAD_BYTES = _HEADER.size + _CHECKSUM.size


@dataclass(frozen=True)
class Bitstream:
    """One compressed image.

    Attributes:
        model: id of the weights that wrote it, of which a file keeps 4 bytes.
        height, width: in pixels, before padding.
        level: continuous, a multiple of 1/4096.
        payload: the entropy-coded symbols.
        grey: the three channels of the image are equal.
        restored: before it was coded, so that a decoder shows it as it is.
    """

    model: bytes
    height: int
    width: int
    level: float
    payload: bytes
    grey: bool = False
    restored: bool = False

    @property
    def frame(self) -> bytes:
        """What decoding needs of the header, which the payload's own checks cover: size and level, and 1 if grey."""
        return frame(self.height, self.width, self.level, self.grey)


def quantize_level(level: float) -> float:
    """The level that the header can carry nearest to `level`: encoder and decoder must use the same one.

    Raises:
        ValueError: it is not finite.
    """
    if not math.isfinite(level):
        raise ValueError(f"level {level} is no number")
    return round(level * LEVEL_UNIT) / LEVEL_UNIT


def frame(height: int, width: int, level: float, grey: bool) -> bytes:
    """As `Bitstream.frame`, of an image that is yet to be coded."""
    return struct.pack(">HHH", width, height, round(level * LEVEL_UNIT)) + bytes([GREY]) * grey


def pack(stream: Bitstream) -> bytes:
    """Bytes of the whole file.

    Raises:
        ValueError: the size is out of bounds (see `check_size`), or the level is not in 0..15.99.
    """
    if reason := check_size(stream.width, stream.height):
        raise ValueError(f"image of {reason}")
    level = round(stream.level * LEVEL_UNIT)
    if not 0 <= level < 1 << 16:
        raise ValueError(f"level {stream.level} is outside 0 to 15.99")
    size = len(stream.payload)
    flags = GREY * stream.grey | RESTORED * stream.restored
    head = _HEADER.pack(MAGIC, VERSION, flags, stream.model[:4], stream.width, stream.height, level, size)
    body = head + stream.payload
    return body + _CHECKSUM.pack(zlib.crc32(body))


def mark_restored(data: bytes) -> bytes:
    """The same file, which tells its decoder that the image was restored before it was coded."""
    return pack(replace(unpack(data), restored=True))


def unpack(data: bytes, model: bytes | None = None) -> Bitstream:
    """Validate and split a file; `model` is the id (at least 4 bytes) of the decoder's weights.

    Raises:
        BitstreamError: not a `.llicm` file, truncated, extended, altered, of another version, or written by
            another model.
    """
    if len(data) < OVERHEAD_BYTES:
        raise BitstreamError(f"not a .llicm file: {len(data)} bytes, a header alone has {OVERHEAD_BYTES}")
    magic, version, flags, written_by, width, height, level, size = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise BitstreamError(f"not a .llicm file: it begins with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise BitstreamError(f"a .llicm file of version {version}, but this decoder reads version {VERSION}")
    if flags & ~(GREY | RESTORED):
        raise BitstreamError(
            f"a .llicm file with flags {flags:#04x}, of which version {VERSION} knows {GREY | RESTORED:#04x} only"
        )
    if len(data) != OVERHEAD_BYTES + size:
        sizes = f"{len(data)} bytes, its header says {OVERHEAD_BYTES + size}"
        raise BitstreamError(f"truncated or extended .llicm file: {sizes}")
    if zlib.crc32(memoryview(data)[: -_CHECKSUM.size]) != _CHECKSUM.unpack(data[-_CHECKSUM.size :])[0]:
        raise BitstreamError("altered .llicm file: its checksum does not match its content")
    if reason := check_size(width, height):
        raise BitstreamError(f"a .llicm file that declares {reason}")
    if model is not None and written_by != model[:4]:
        models = f"written by model {written_by.hex()}, but the loaded model is {model[:4].hex()}"
        raise BitstreamError(f"{models}: load the matching weights")
    payload = bytes(data[_HEADER.size : -_CHECKSUM.size])
    grey, restored = bool(flags & GREY), bool(flags & RESTORED)
    return Bitstream(written_by, height, width, level / LEVEL_UNIT, payload, grey, restored)
