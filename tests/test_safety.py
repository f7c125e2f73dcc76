# SPDX-License-Identifier: Apache-2.0
"""Whatever is fed to the decoder: a picture of the declared size that its encoder made, or BitstreamError."""

import dataclasses
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llicm.codec import learned
from llicm.codec.bitstream import unpack
from llicm.errors import BitstreamError
from llicm.registry import CODECS


@pytest.fixture(
    scope="module", params=[("mean-scale", False), ("context", False), ("mean-scale", True), ("context", True)]
)
def codec(request):
    """Both codecs, also with a picture of 70 rows and more in several bands."""
    name, banded = request.param
    torch.manual_seed(0)
    codec = CODECS.make(name, N=8, M=24, lambdas=[0.002, 0.02, 0.1])
    with torch.no_grad():
        codec.h_a[-1].weight.mul_(20)
    codec.update()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learned, "BAND", 1 if banded else learned.BAND)
        yield codec.eval()


@pytest.fixture(scope="module")
def files(codec):
    """Files of three sizes and levels, with symbols of z that are not all zero."""
    made = []
    generator = torch.Generator().manual_seed(0)
    for size, level in (((40, 52), 0), ((130, 70), 1.3), ((64, 200), 2)):
        x = torch.rand(1, 3, 9, 9, generator=generator)
        made.append(codec.compress(torch.nn.functional.interpolate(x, size, mode="bicubic")[0].clamp(0, 1), level))
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
@settings(max_examples=400, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 2), edits=EDITS)
def test_mutated_files_are_refused(codec, files, which, edits):
    data = mutate(files[which], edits)
    if data == files[which]:
        return
    with pytest.raises(BitstreamError):
        codec.decompress(data)


@pytest.mark.slow
@settings(max_examples=600, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def test_symbols_of_several_bands_are_those_of_one(codec, files, monkeypatch):
    """Their order alone differs, and a check behind the first band."""
    for data in files:
        found = codec.latent(unpack(data))
        assert codec.code(*found, unpack(data).frame) == unpack(data).payload
        monkeypatch.setattr(learned, "BAND", 1 << 20)
        whole = codec.code(*found, unpack(data).frame)
        again = codec.latent(dataclasses.replace(unpack(data), payload=whole))
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
        monkeypatch.undo()


# Gives a decoder of usual widths a file whose header declares the largest size and which is right up to y: the symbols
# of z, all zero, and their check. What follows is noise. Prints seconds of CPU time and how far memory grew, in MB.
FORGED = """
import random, sys, time
import constriction, numpy as np, torch
from llicm.codec.bitstream import Bitstream, frame, pack
from llicm.codec.entropy import Encoder
from llicm.codec.learned import channels
from llicm.errors import BitstreamError
from llicm.registry import CODECS

def memory(field):
    return next(int(line.split()[1]) / 1000 for line in open("/proc/self/status") if line.startswith(field))

torch.manual_seed(0)
torch.set_num_threads(1)
codec = CODECS.make(sys.argv[1], N=48, M=384, lambdas=[0.0006, 0.0016, 0.004, 0.01, 0.025, 0.07, 0.2])
codec.update()
codec.eval().decompress(codec.compress(torch.rand(3, 64, 64), 2))
for height, width in ((4096, 16384), (8192, 8192), (16384, 4096)):
    for behind in (None, 0, 100, 100_000):
        shape = torch.Size((48, height // 64, width // 64))
        encoder = Encoder(frame(height, width, 2.0, False))
        encoder.symbols(codec._tables()[0], channels(shape), np.zeros(shape.numel(), np.int64))
        encoder.check()
        noise = np.frombuffer(random.Random(0).randbytes(behind or 300_000), "<u4").astype(np.uint32)
        coder = constriction.stream.stack.AnsCoder(noise[: 0 if behind == 0 else None])
        for symbols, model in reversed(encoder._parts) if behind is not None else ():
            coder.encode_reverse(symbols, model)
        data = pack(Bitstream(codec._id(), height, width, 2.0, coder.get_compressed().astype("<u4").tobytes()))
        with open("/proc/self/clear_refs", "w") as peak:
            peak.write("5")
        before, started = memory("VmRSS"), time.process_time()
        try:
            codec.decompress(data)
        except BitstreamError:
            print(time.process_time() - started, memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("name", ["mean-scale", "context"])
def test_a_forged_size_costs_little(name):
    ran = subprocess.run([sys.executable, "-c", FORGED, name], capture_output=True, text=True, check=True)
    found = [tuple(map(float, line.split())) for line in ran.stdout.splitlines()]
    assert len(found) == 12
    assert max(seconds for seconds, _ in found) < 1 and max(megabytes for _, megabytes in found) < 100, found
