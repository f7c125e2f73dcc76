# SPDX-License-Identifier: Apache-2.0
"""What the decoder does with files that are none: `make safety` writes docs/safety.md.

Thousands of damaged, foreign and forged files go through the decoder in a child process whose memory and time are
watched; one of each kind also goes through the command line, for its exit code.
"""

import json
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

from common import ROOT, photos, table, write_page

from llicm.codec.bitstream import unpack
from llicm.errors import BitstreamError
from llicm.files import json_text
from llicm.model import load_model

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
            lambda d: forge(d, version=draw.choice([0, 1, 3, 255])) if draw.random() < 0.5
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


def judge(files: Path) -> None:
    """In a child process: decode each file; print what came of it, the longest time, and how far memory grew."""
    codec = load_model().codec
    good, *cases = [bytes.fromhex(line) for line in files.read_text().splitlines()]
    codec.decompress(good)
    before, worst, outcomes = _memory(), 0.0, {"refused": 0, "image": 0, "other": 0}
    for case in cases:
        started = time.perf_counter()
        try:
            codec.decompress(case)
            outcome = "image"
        except BitstreamError:
            outcome = "refused"
        except Exception as error:
            print(repr(error), file=sys.stderr)
            outcome = "other"
        worst = max(worst, time.perf_counter() - started)
        outcomes[outcome] += 1
    print(json_text(outcomes | {"seconds": worst, "megabytes": (_memory() - before) / 1e6}, None))


def _memory() -> float:
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    if sys.argv[1:]:
        return judge(Path(sys.argv[1]))
    model, draw, rows = load_model(), random.Random(0), []
    good = [model.compress(x, level) for x in photos().values() for level in (0, 2, 3.7)]
    with tempfile.TemporaryDirectory() as folder:
        for kind, cases in kinds(good, draw).items():
            files = Path(folder, "cases.txt")
            files.write_text("\n".join(case.hex() for case in (good[0], *cases)))
            child = subprocess.run(
                [sys.executable, __file__, str(files)], capture_output=True, text=True, cwd=ROOT, timeout=900
            )
            found = json.loads(child.stdout) if child.returncode == 0 else {"refused": 0, "image": 0, "other": "crash"}
            bad = Path(folder, "bad.llicm")
            bad.write_bytes(cases[-1])
            started = time.perf_counter()
            ran = subprocess.run(
                [sys.executable, "-m", "llicm", "decompress", str(bad), "-o", str(Path(folder, "bad.png"))],
                capture_output=True, text=True, cwd=ROOT,
            )  # fmt: skip
            rows.append({
                "kind": kind, "files": str(len(cases)), "refused": str(found["refused"]), "image": str(found["image"]),
                "anything else": str(found["other"]), "longest (ms)": f"{1000 * found.get('seconds', 0):.1f}",
                "memory grew by (MB)": f"{found.get('megabytes', 0):.1f}", "exit code": str(ran.returncode),
                "command (s)": f"{time.perf_counter() - started:.1f}",
            })  # fmt: skip
            assert ran.stderr.count("\n") == 1 and ran.stderr.startswith("error: "), ran.stderr
            assert not Path(folder, "bad.png").exists()
    total = sum(int(row["files"]) for row in rows)
    refused = sum(int(row["refused"]) for row in rows)
    write_page("safety", [f"{refused} of {total} bad files were refused with `BitstreamError`.", table(rows)])


if __name__ == "__main__":
    main()
