# SPDX-License-Identifier: Apache-2.0
"""The `.llicm` container: a fixed header, two entropy-coded strings, and a checksum over everything.

Everything a decoder allocates or feeds to the range coder is validated here first, because the range
coder itself neither notices truncated input nor bounds its reads.
"""

import struct
import zlib
from dataclasses import dataclass

from llicm.errors import BitstreamError

__all__ = ["Bitstream", "MAX_SIDE", "OVERHEAD_BYTES", "pack", "unpack"]

MAGIC = b"LLIC"
VERSION = 1
MAX_SIDE = 1 << 14
_HEADER = struct.Struct(">4sBB4sHHHII")  # magic, version, flags, model, width, height, level, |z|, |y|
_CHECKSUM = struct.Struct(">I")
_LEVEL_UNIT = 4096  # fixed-point steps per level
OVERHEAD_BYTES = _HEADER.size + _CHECKSUM.size


@dataclass(frozen=True)
class Bitstream:
    """One compressed image: `height` and `width` in pixels, continuous `level`, hyper string `z`, latent `y`."""

    model: bytes
    height: int
    width: int
    level: float
    z: bytes
    y: bytes


def quantize_level(level: float) -> float:
    """The level that the header can carry nearest to `level`: encoder and decoder must use the same one."""
    return round(level * _LEVEL_UNIT) / _LEVEL_UNIT


def pack(stream: Bitstream) -> bytes:
    """Bytes of the whole file.

    Raises:
        ValueError: a side is not in 1..MAX_SIDE, or the level is not in 0..15.99.
    """
    if not (1 <= stream.height <= MAX_SIDE and 1 <= stream.width <= MAX_SIDE):
        raise ValueError(f"image of {stream.width}x{stream.height}: sides must be 1 to {MAX_SIDE} pixels")
    level = round(stream.level * _LEVEL_UNIT)
    if not 0 <= level < 1 << 16:
        raise ValueError(f"level {stream.level} is outside 0 to 15.99")
    head = _HEADER.pack(
        MAGIC, VERSION, 0, stream.model[:4], stream.width, stream.height, level, len(stream.z), len(stream.y)
    )
    body = head + stream.z + stream.y
    return body + _CHECKSUM.pack(zlib.crc32(body))


def unpack(data: bytes, model: bytes | None = None) -> Bitstream:
    """Validate and split a file; `model` is the id (at least 4 bytes) of the decoder's weights.

    Raises:
        BitstreamError: not a `.llicm` file, truncated, extended, altered, of another version, or written by
            another model.
    """
    if len(data) < OVERHEAD_BYTES:
        raise BitstreamError(f"not a .llicm file: {len(data)} bytes, a header alone has {OVERHEAD_BYTES}")
    magic, version, flags, written_by, width, height, level, nz, ny = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise BitstreamError(f"not a .llicm file: it begins with {magic!r}, not {MAGIC!r}")
    if version != VERSION or flags:
        raise BitstreamError(f"a .llicm file of version {version} (flags {flags}); this decoder reads {VERSION}")
    if len(data) != OVERHEAD_BYTES + nz + ny:
        raise BitstreamError(
            f"truncated or extended .llicm file: {len(data)} bytes, its header says {OVERHEAD_BYTES + nz + ny}"
        )
    if zlib.crc32(data[: -_CHECKSUM.size]) != _CHECKSUM.unpack(data[-_CHECKSUM.size :])[0]:
        raise BitstreamError("altered .llicm file: its checksum does not match its content")
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise BitstreamError(f"a .llicm file that declares {width}x{height} pixels; the limit is {MAX_SIDE} a side")
    if model is not None and written_by != model[:4]:
        raise BitstreamError(
            f"written by model {written_by.hex()}, but the loaded model is {model[:4].hex()}: load the matching weights"
        )
    z = data[_HEADER.size : _HEADER.size + nz]
    y = data[_HEADER.size + nz : _HEADER.size + nz + ny]
    return Bitstream(written_by, height, width, level / _LEVEL_UNIT, z, y)
