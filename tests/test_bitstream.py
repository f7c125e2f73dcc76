# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llicm.codec.bitstream import OVERHEAD_BYTES, Bitstream, pack, unpack
from llicm.errors import BitstreamError

STREAM = Bitstream(b"abcd", 48, 64, 1.25, b"hyper string", b"latent string")


def test_round_trip_and_overhead():
    data = pack(STREAM)
    assert unpack(data) == STREAM
    assert len(data) == OVERHEAD_BYTES + len(STREAM.z) + len(STREAM.y)
    assert OVERHEAD_BYTES <= 28  # 24 bytes and the checksum


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


@pytest.mark.parametrize("side", [0, 1 << 15])
def test_sides_are_bounded(side):
    with pytest.raises(ValueError, match="sides"):
        pack(Bitstream(b"abcd", side, 10, 0, b"", b""))
