# SPDX-License-Identifier: Apache-2.0
"""Whatever is fed to the decoder: a picture of the declared size that its encoder made, or BitstreamError."""

import struct
import zlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llicm.codec.bitstream import unpack
from llicm.errors import BitstreamError
from llicm.registry import CODECS


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    codec = CODECS.make("mean-scale", N=8, M=24, lambdas=[0.002, 0.02, 0.1])
    with torch.no_grad():
        codec.h_a[-1].weight.mul_(20)
    codec.update()
    return codec.eval()


@pytest.fixture(scope="module")
def files(codec):
    """Files of three sizes and levels, with symbols of z that are not all zero."""
    made = []
    for size, level in (((40, 52), 0), ((130, 70), 1.3), ((64, 200), 2)):
        x = torch.nn.functional.interpolate(torch.rand(1, 3, 9, 9), size=size, mode="bicubic")[0].clamp(0, 1)
        made.append(codec.compress(x, level))
    assert any(codec.latent(unpack(data))[0].abs().max() > 1 for data in made)
    return made


# A mutation is a list of edits, each a place (as a share of the length) and what happens there.
EDITS = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.one_of(
            st.tuples(st.just("flip"), st.integers(1, 255)),
            st.tuples(st.just("insert"), st.binary(min_size=1, max_size=9)),
            st.tuples(st.just("delete"), st.integers(1, 40)),
            st.tuples(st.just("repeat"), st.integers(1, 40)),
        ),
    ),
    min_size=1,
    max_size=6,
)


def mutate(data: bytes, edits) -> bytes:
    out = bytearray(data)
    for level, (what, value) in edits:
        at = int(level * len(out))
        if what == "flip" and out:
            out[at] ^= value
        elif what == "insert":
            out[at:at] = value
        elif what == "delete":
            del out[at : at + value]
        elif what == "repeat":
            out[at:at] = out[at : at + value]
    return bytes(out)


@pytest.mark.slow
@settings(max_examples=1000, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 2), edits=EDITS)
def test_mutated_files_are_refused(codec, files, which, edits):
    data = mutate(files[which], edits)
    if data == files[which]:
        return
    with pytest.raises(BitstreamError):
        codec.decompress(data)


@pytest.mark.slow
@settings(max_examples=1500, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 2), edits=EDITS, header=st.one_of(st.none(), st.binary(min_size=6, max_size=6)))
def test_mutated_payloads_and_headers_are_refused_under_a_valid_checksum(codec, files, which, edits, header):
    """The length and the checksum are corrected, as an attacker would."""
    data = files[which]
    payload = mutate(data[20:-4], edits)
    body = data[:10] + (header or data[10:16]) + struct.pack(">I", len(payload)) + payload
    forged = body + struct.pack(">I", zlib.crc32(body))
    if forged == data:
        return
    with pytest.raises(BitstreamError):
        codec.decompress(forged)


@pytest.mark.parametrize("size", [0, 1, 19, 23, 24, 1000])
def test_nothing_and_noise(codec, size):
    noise = torch.randint(0, 256, (size,), generator=torch.Generator().manual_seed(size), dtype=torch.uint8)
    for data in (bytes(size), noise.numpy().tobytes()):
        with pytest.raises(BitstreamError, match="not a .llicm file"):
            codec.decompress(data)


def test_the_untouched_files_are_pictures(codec, files):
    """The other tests would pass with a decoder that refuses everything."""
    assert [tuple(codec.decompress(data)[0].shape[1:]) for data in files] == [(40, 52), (130, 70), (64, 200)]
