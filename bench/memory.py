# SPDX-License-Identifier: Apache-2.0
"""What commands take of memory and time for large and thin pictures: `make memory` writes docs/memory.md and .json.

Each row is a command `llicm` in a process of its own, on one thread: its peak of resident memory, all of Python and
PyTorch included, and its CPU time. The default model restores before it codes; of a file that was compressed as
captured it is `decompress` that restores.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from common import ROOT, photos, table, write_page
from PIL import Image

from llicm.files import json_text, write_atomically

SIZES = ((4000, 3000), (8192, 8192), (16384, 1))
COMMANDS = {
    "compress": ["compress"], "decompress": ["decompress"], "compress --as-captured": ["compress", "--as-captured"],
    "decompress, restoring": ["decompress"],
}  # fmt: skip


def photo(width: int, height: int, path: Path) -> None:
    """A test photo, mirrored to this size, with a little noise: nothing in it is smooth by interpolation."""
    x = next(iter(photos().values()))
    rows, columns = (-(-side // own) for side, own in zip((height, width), x.shape[1:], strict=True))
    x = torch.cat([x, x.flip(2)], 2).repeat(1, 1, columns // 2 + 1)[..., :width]
    x = torch.cat([x, x.flip(1)], 1).repeat(1, rows // 2 + 1, 1)[:, :height]
    noisy = (x + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    Image.fromarray((255 * noisy).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()).save(path)


# The peak of a process begins anew with its program; what the kernel tells its parent does not.
WATCHED = """
import atexit, runpy, sys, time
def tell():
    peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(int(peak) * 1024 / 1e6, time.process_time(), file=sys.stderr)
atexit.register(tell)
runpy.run_module("llicm", run_name="__main__")
"""


def run(arguments: list[str]) -> tuple[float, float]:
    """Peak of resident memory in MB, and seconds of CPU time."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WATCHED, *arguments]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr
    megabytes, seconds = told.splitlines()[-1].split()
    return float(megabytes), float(seconds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", nargs="*", default=[f"{w}x{h}" for w, h in SIZES])
    sizes = [tuple(map(int, size.split("x"))) for size in parser.parse_args().sizes]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source, coded, made = (Path(folder, name) for name in ("photo.bmp", "photo.llicm", "made.jpg"))
        for width, height in sizes:
            photo(width, height, source)
            for command, arguments in COMMANDS.items():
                files = [source, "-o", coded] if arguments[0] == "compress" else [coded, "-o", made]
                megabytes, seconds = run([*arguments, *map(str, files), "--force"])
                rows.append({
                    "width": width, "height": height, "megapixels": round(width * height / 1e6, 2), "command": command,
                    "file_bytes": coded.stat().st_size, "peak_mb": round(megabytes), "cpu_s": round(seconds, 1),
                })  # fmt: skip
                print(rows[-1], flush=True)
    write_atomically(ROOT / "docs/memory.json", (json_text(rows) + "\n").encode())
    shown = [
        {
            "picture": f"{row['width']}x{row['height']}", "MP": f"{row['megapixels']:.2f}",
            "command": row["command"], "file (kB)": f"{row['file_bytes'] / 1000:.0f}",
            "peak (GB)": f"{row['peak_mb'] / 1000:.2f}", "CPU (s)": f"{row['cpu_s']:.0f}",
        }
        for row in rows
    ]  # fmt: skip
    write_page("memory", [table(shown)])


if __name__ == "__main__":
    main()
