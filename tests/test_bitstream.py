# SPDX-License-Identifier: Apache-2.0
import struct
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llicm.codec.bitstream import OVERHEAD_BYTES, VERSION, Bitstream, mark_restored, pack, quantize_level, unpack
from llicm.errors import BitstreamError
from llicm.limits import MAX_SIDE

STREAM = Bitstream(b"abcd", 48, 64, 1.25, b"the entropy-coded symbols")


def forged(**changes) -> bytes:
    """A file with other values in its header and a checksum that fits them."""
    fields = {
        "magic": b"LLIC", "version": VERSION, "flags": 0, "model": b"abcd", "width": 64, "height": 48, "level": 5120,
        "size": len(STREAM.payload), "payload": STREAM.payload,
    } | changes  # fmt: skip
    body = struct.pack(">4sBB4sHHHI", *list(fields.values())[:-1]) + fields["payload"]
    return body + struct.pack(">I", zlib.crc32(body))


def test_round_trip_and_overhead():
    data = pack(STREAM)
    assert unpack(data) == STREAM
    assert len(data) == OVERHEAD_BYTES + len(STREAM.payload)
    assert OVERHEAD_BYTES == 24  # with the checksum


def test_the_layout_is_the_documented_one():
    """As docs/bitstream.md has it, written out with other means than the implementation's."""
    data = pack(STREAM)
    assert data[:4] == b"LLIC" and data[4] == 3 and data[5] == 0 and data[6:10] == b"abcd"
    assert int.from_bytes(data[10:12]) == 64 and int.from_bytes(data[12:14]) == 48
    assert int.from_bytes(data[14:16]) == 1.25 * 4096 and int.from_bytes(data[16:20]) == len(STREAM.payload)
    assert data[20:-4] == STREAM.payload and int.from_bytes(data[-4:]) == zlib.crc32(data[:-4])
    assert forged() == data


@given(st.integers(0, 8 * len(pack(STREAM)) - 1))
def test_any_flipped_bit_is_noticed(bit):
    data = bytearray(pack(STREAM))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BitstreamError):
        unpack(bytes(data))


@given(st.integers(0, len(pack(STREAM)) - 1))
def test_any_truncation_is_noticed(length):
    with pytest.raises(BitstreamError):
        unpack(pack(STREAM)[:length])


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused(data):
    with pytest.raises(BitstreamError):
        unpack(data)


def test_extension_is_noticed():
    with pytest.raises(BitstreamError, match="extended"):
        unpack(pack(STREAM) + b"\0")


def test_other_model_is_named():
    with pytest.raises(BitstreamError, match="61626364.*7a7a7a7a"):
        unpack(pack(STREAM), b"zzzz")


def test_other_version_is_named_beside_the_own():
    with pytest.raises(BitstreamError, match="version 2, but this decoder reads version 3"):
        unpack(forged(version=2))
    with pytest.raises(BitstreamError, match="flags 0x40"):
        unpack(forged(flags=0x40))


def test_a_file_says_that_its_picture_was_restored():
    """It costs nothing, stays beside other flags, and decides nothing that decoding needs."""
    for grey in (False, True):
        stream = replace(STREAM, grey=grey)
        marked = mark_restored(pack(stream))
        assert unpack(marked) == replace(stream, restored=True) and len(marked) == len(pack(stream))
        assert mark_restored(marked) == marked and unpack(marked).frame == stream.frame


@pytest.mark.parametrize("width, height", [(0, 48), (64, 0), (0, 0), (MAX_SIDE + 1, 1), (65535, 65535), (16384, 16384)])
def test_declared_size_is_bounded_whatever_the_checksum(width, height):
    with pytest.raises(BitstreamError, match=f"declares {width}x{height}"):
        unpack(forged(width=width, height=height))
    with pytest.raises(ValueError, match=f"{width}x{height}"):
        pack(Bitstream(b"abcd", height, width, 0, b""))


@pytest.mark.parametrize("size", [0, 24, 26, 2**32 - 1])
def test_declared_length_must_be_the_real_one(size):
    with pytest.raises(BitstreamError, match="truncated or extended"):
        unpack(forged(size=size))


def test_level_is_on_the_headers_grid():
    assert quantize_level(1 / 3) == round(4096 / 3) / 4096
    with pytest.raises(ValueError, match="level 16"):
        pack(Bitstream(b"abcd", 1, 1, 16.0, b""))
