# SPDX-License-Identifier: Apache-2.0
"""What the decoder does with files that are none: `make safety` writes docs/safety.md.

Thousands of damaged, foreign and forged files go through the decoder in a child process whose memory and time are
watched; one of each kind also goes through the command line, for its exit code.
"""

import json
import random
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import constriction
import numpy as np
import torch
from common import ROOT, photos, resident, table, write_page

from llicm.codec.bitstream import Bitstream, frame, pack, unpack
from llicm.codec.entropy import Encoder
from llicm.codec.learned import LearnedCodec, channels
from llicm.errors import BitstreamError
from llicm.files import json_text
from llicm.model import load_model
from llicm.registry import CODECS

HEADER = ">4sBB4sHHHI"
PER_KIND = 400


def forge(data: bytes, **changes) -> bytes:
    """Other fields in the header, or another payload, and a checksum to match."""
    names = ("magic", "version", "flags", "model", "width", "height", "level", "size")
    fields = dict(zip(names, struct.unpack_from(HEADER, data), strict=True))
    payload = changes.pop("payload", data[20:-4])
    fields |= {"size": len(payload)} | changes
    body = struct.pack(HEADER, *fields.values()) + payload
    return body + struct.pack(">I", zlib.crc32(body))


def kinds(files: list[bytes], draw: random.Random) -> dict[str, list[bytes]]:
    """Bad files by kind, each kind with what an accident or an attacker might do."""

    def some(make):
        return [make(draw.choice(files)) for _ in range(PER_KIND)]

    def flipped(data: bytes, count: int, forged: bool) -> bytes:
        out = bytearray(data[20:-4] if forged else data)
        for _ in range(count):
            out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
        return forge(data, payload=bytes(out)) if forged else bytes(out)

    def shuffled(data: bytes) -> bytes:
        payload = bytearray(data[20:-4])
        a, b = sorted(draw.sample(range(len(payload)), 2))
        payload[a:b] = payload[a:b][::-1] if payload[a:b] != payload[a:b][::-1] else bytes(b - a)[:-1] + b"\1"
        return forge(data, payload=bytes(payload))

    sizes = [0, 1, 2, 63, 65, 1000, 4096, 8192, 16383, 16384, 16385, 65535]
    foreign = [b"", b"\0" * 24, b"LLIC", b"\x89PNG\r\n\x1a\n" + draw.randbytes(500), b"\xff\xd8" + draw.randbytes(500)]
    return {
        "truncated": some(lambda d: d[: draw.randrange(len(d))]),
        "one to eight bits flipped": some(lambda d: flipped(d, draw.randint(1, 8), False)),
        "extended": some(lambda d: d + draw.randbytes(draw.randint(1, 64))),
        "foreign, empty, random": [
            *foreign, *(draw.randbytes(draw.randrange(2000)) for _ in range(PER_KIND - len(foreign)))
        ],
        "other version or model, valid checksum": some(
            lambda d: forge(d, version=draw.choice([0, 1, 2, 255])) if draw.random() < 0.5
            else forge(d, model=draw.randbytes(4))
        ),
        "declared size changed, valid checksum": some(lambda d: _resized(d, draw, sizes)),
        "declared length wrong": some(
            lambda d: forge(d, size=draw.choice([0, 1, 2**31, 2**32 - 1, len(d), len(d) - 25]))
        ),
        "level changed, valid checksum": some(
            lambda d: forge(d, level=int(unpack(d).level * 4096 + draw.choice([1, 5, 100, 3000, 20_000])) % 65536)
        ),
        "payload flipped, valid checksum": some(lambda d: flipped(d, draw.randint(1, 8), True)),
        "payload cut or extended, valid checksum": some(
            lambda d: forge(d, payload=d[20:-4][: draw.randrange(len(d) - 24)] if draw.random() < 0.5
                            else d[20:-4] + draw.randbytes(draw.randint(1, 64)))
        ),
        "payload random, valid checksum": some(lambda d: forge(d, payload=draw.randbytes(draw.randrange(5000)))),
        "part of the payload reversed, valid checksum": some(shuffled),
    }  # fmt: skip


def _resized(data: bytes, draw: random.Random, sizes: list[int]) -> bytes:
    """Another declared size."""
    stream = unpack(data)
    while True:
        width, height = draw.choice([*sizes, stream.width, stream.width + 1]), draw.choice([*sizes, stream.height])
        if (width, height) != (stream.width, stream.height):
            return forge(data, width=width, height=height)


def random_codec() -> LearnedCodec:
    """The codec that the default model does not have, at usual widths, with random weights."""
    torch.manual_seed(0)
    name = "mean-scale" if load_model(coding=True).codec.config["name"] == "context" else "context"
    codec = CODECS.make(name, N=48, M=384, lambdas=[0.0006, 0.0016, 0.004, 0.01, 0.025, 0.07, 0.2])
    codec.update()
    return codec.eval()


def begun(codec: LearnedCodec, draw: random.Random) -> bytes:
    """A file that declares a large size, and is right up to y: z, all zero, its check, and then noise."""
    height, width = draw.choice([(4096, 16384), (8192, 8192), (16384, 4096)])
    shape = torch.Size((codec.config["N"], height // 64, width // 64))
    encoder = Encoder(frame(height, width, 1.0, False))
    encoder.symbols(codec._tables()[0], channels(shape), np.zeros(shape.numel(), np.int64))
    encoder.check()
    coder = constriction.stream.stack.AnsCoder(
        np.frombuffer(draw.randbytes(4 * draw.randrange(20_000)) + b"\1\0\0\0", "<u4").astype(np.uint32)
    )
    for symbols, model in reversed(encoder._parts):
        coder.encode_reverse(symbols, model)
    return pack(
        Bitstream(codec._id(), height, width, 1.0, coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0"))
    )


def judge(files: Path, default: bool) -> None:
    """In a child process: decode the files of each kind; print what came of them, the longest time, and how far memory
    grew."""
    codec, found = load_model(coding=True).codec if default else random_codec(), {}
    every = json.loads(files.read_text())
    codec.decompress(bytes.fromhex(every.pop("good")))
    for kind, cases in every.items():
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before, worst, outcomes = resident("VmHWM"), 0.0, {"refused": 0, "image": 0, "other": 0}
        for case in map(bytes.fromhex, cases):
            started = time.process_time()
            try:
                codec.decompress(case)
                outcome = "image"
            except BitstreamError:
                outcome = "refused"
            except Exception as error:
                print(repr(error), file=sys.stderr)
                outcome = "other"
            worst = max(worst, time.process_time() - started)
            outcomes[outcome] += 1
        found[kind] = outcomes | {"seconds": worst, "megabytes": resident("VmHWM") - before}
    print(json_text(found, None))


def measured(codec: LearnedCodec, default: bool, draw: random.Random) -> list[str]:
    """A sentence and a table about one codec; the default model's also go through the command line."""
    rows = []
    good = [codec.compress(x, level) for x in photos().values() for level in (0, 2, 3.7)]
    every = kinds(good, draw) | {
        "large size declared, z right, valid checksum": [begun(codec, draw) for _ in range(PER_KIND // 10)]
    }
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "cases.json")
        files.write_text(
            json.dumps({k: [c.hex() for c in cases] for k, cases in every.items()} | {"good": good[0].hex()})
        )
        command = [sys.executable, __file__, str(files), *(["default"] if default else [])]
        child = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, timeout=3600)
        judged = json.loads(child.stdout) if child.returncode == 0 else {}
        for kind, cases in every.items():
            found = judged.get(kind, {"refused": 0, "image": 0, "other": "crash"})
            row = {
                "kind": kind, "files": str(len(cases)), "refused": str(found["refused"]), "image": str(found["image"]),
                "anything else": str(found["other"]), "longest (CPU, ms)": f"{1000 * found.get('seconds', 0):.1f}",
                "memory grew by (MB)": f"{found.get('megabytes', 0):.1f}",
            }  # fmt: skip
            if default:
                bad = Path(folder, "bad.llicm")
                bad.write_bytes(cases[-1])
                started = time.perf_counter()
                ran = subprocess.run(
                    [sys.executable, "-m", "llicm", "decompress", str(bad), "-o", str(Path(folder, "bad.png"))],
                    capture_output=True, text=True, cwd=ROOT,
                )  # fmt: skip
                row |= {"exit code": str(ran.returncode), "command (s)": f"{time.perf_counter() - started:.1f}"}
                assert ran.stderr.count("\n") == 1 and ran.stderr.startswith("error: "), ran.stderr
                assert not Path(folder, "bad.png").exists()
            rows.append(row)
    total, refused = (sum(int(row[key]) for row in rows) for key in ("files", "refused"))
    name = codec.config["name"]
    whose = f"the default model (`{name}`)" if default else f"a codec `{name}` with random weights"
    return [f"With {whose} {refused} of {total} bad files were refused with `BitstreamError`.", table(rows)]


def main() -> None:
    if sys.argv[1:]:
        return judge(Path(sys.argv[1]), "default" in sys.argv[2:])
    draw = random.Random(0)
    pages = measured(load_model(coding=True).codec, True, draw) + measured(random_codec(), False, draw)
    write_page("safety", pages)


if __name__ == "__main__":
    main()
