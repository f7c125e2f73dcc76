# SPDX-License-Identifier: Apache-2.0
"""Fuzz target of the decoder for atheris; docs/safety.md tells how to run it.

The first byte that the fuzzer gives says which codec reads the rest, and whether that is a whole file, or header fields
and a payload of a file whose checksum is then corrected: otherwise nearly everything would end at the checksum.
"""

import struct
import sys
import tempfile
import zlib
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["llicm.codec"]):
    import torch

    from llicm.codec import learned
    from llicm.codec.bitstream import unpack
    from llicm.errors import BitstreamError
    from llicm.registry import CODECS

learned.BAND = 1  # so small pictures have several bands too


def _codec(name: str):
    torch.manual_seed(0)
    codec = CODECS.make(name, N=8, M=24, lambdas=[0.002, 0.02])
    codec.update()
    codec.eval()
    return codec, codec.compress(torch.rand(3, 70, 90, generator=torch.Generator().manual_seed(1)), 1)


TARGETS = [_codec(name) for name in ("mean-scale", "context")]
LARGEST = 512  # a side: a fuzzer should not spend its time on pictures that are large and right


def target(data: bytes) -> None:
    kind = data[0] if data else 0
    codec, whole = TARGETS[kind >> 1 & 1]
    if kind & 1:
        body = whole[:10] + data[1:7].ljust(6, b"\0") + struct.pack(">I", len(data[7:])) + data[7:]
        data = body + struct.pack(">I", zlib.crc32(body))
    else:
        data = data[1:]
    try:
        stream = unpack(data)
        if max(stream.height, stream.width) > LARGEST:
            return
        image, _ = codec.decompress(data)
    except BitstreamError:
        return
    assert image.shape == (3, stream.height, stream.width) and bool(torch.isfinite(image).all())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as corpus:
        for number, (_, whole) in enumerate(TARGETS):
            Path(corpus, f"whole{number}").write_bytes(bytes([2 * number]) + whole)
            Path(corpus, f"forged{number}").write_bytes(bytes([2 * number + 1]) + whole[10:16] + whole[20:-4])
        atheris.Setup([*sys.argv, corpus], target)
        atheris.Fuzz()
