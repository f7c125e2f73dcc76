# SPDX-License-Identifier: Apache-2.0
"""Fuzz target of the decoder for atheris; docs/safety.md tells how to run it.

The first byte that the fuzzer gives says whether the rest is a whole file, or header fields and a payload of a file
whose checksum is then corrected: otherwise nearly everything would end at the checksum.
"""

import struct
import sys
import tempfile
import zlib
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["llicm.codec"]):
    import torch

    from llicm.codec.bitstream import unpack
    from llicm.errors import BitstreamError
    from llicm.registry import CODECS

torch.manual_seed(0)
CODEC = CODECS.make("mean-scale", N=8, M=12, lambdas=[0.002, 0.02])
CODEC.update()
CODEC.eval()
FILE = CODEC.compress(torch.rand(3, 70, 90, generator=torch.Generator().manual_seed(1)), 1)
LARGEST = 512  # a side: a fuzzer should not spend its time on pictures that are large and right


def target(data: bytes) -> None:
    if data and data[0] & 1:
        body = FILE[:10] + data[1:7].ljust(6, b"\0") + struct.pack(">I", len(data[7:])) + data[7:]
        data = body + struct.pack(">I", zlib.crc32(body))
    else:
        data = data[1:]
    try:
        stream = unpack(data)
        if max(stream.height, stream.width) > LARGEST:
            return
        image, _ = CODEC.decompress(data)
    except BitstreamError:
        return
    assert image.shape == (3, stream.height, stream.width) and bool(torch.isfinite(image).all())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as corpus:
        Path(corpus, "whole").write_bytes(b"\0" + FILE)
        Path(corpus, "forged").write_bytes(b"\1" + FILE[10:16] + FILE[20:-4])
        atheris.Setup([*sys.argv, corpus], target)
        atheris.Fuzz()
