# SPDX-License-Identifier: Apache-2.0
"""Encoder effort: what so many steps of refinement gain, and the time they take. `make effort` writes docs/effort.md.

    python bench/effort.py --model FILE --photos FOLDER --every 4 --crop 256 --levels 1 3 5

All figures are of real files. Points are kept in docs/effort.json; what is there for this model is not measured again.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from common import ROOT, table, write_page
from torch import Tensor

from llicm.benchmark.bdrate import bd
from llicm.files import json_text, write_atomically
from llicm.images import list_images, quantize8, read_image
from llicm.model import load_model
from llicm.report.show import psnr

POINTS = ROOT / "docs" / "effort.json"


def measure(codec, x: Tensor, level: float, effort: int) -> dict:
    began = time.process_time()
    data = codec.compress(x, level, effort)
    seconds = time.process_time() - began
    decoded = codec.decompress(data)[0]
    bpp, weight = 8 * len(data) / x[0].numel(), float(codec.lambdas(torch.tensor([float(level)])))
    cost = bpp + weight * 255**2 * float((decoded - x).square().mean())
    return {"bpp": bpp, "psnr": psnr(quantize8(decoded), x), "cost": cost, "seconds": seconds}


def summary(points: list[dict], levels: list[float], efforts: list[int]) -> list[dict]:
    """A row for each effort, of means over the photos."""

    def mean(key: str, level: float, effort: int) -> float:
        return float(np.mean([p[key] for p in points if p["level"] == level and p["effort"] == effort]))

    def curve(effort: int) -> list[list[float]]:
        return [[mean(key, level, effort) for level in levels] for key in ("bpp", "psnr")]

    rows = []
    for effort in efforts:
        found = bd(*curve(0), *curve(effort), names=("0", str(effort)), unit="dB")
        row = {"effort": effort, "BD-rate": "-" if found.rate is None else f"{found.rate:+.2f}%"}
        for level in levels:
            change = mean("cost", level, effort) / mean("cost", level, 0) - 1
            bpp, quality = mean("bpp", level, effort), mean("psnr", level, effort)
            row[f"level {level:g}: bpp, dB (J)"] = f"{bpp:.3f}, {quality:.2f} ({100 * change:+.1f}%)"
        seconds = np.mean([p["seconds"] / p["pixels"] for p in points if p["effort"] == effort]) * 1e6
        rows.append(row | {"seconds of CPU a megapixel": f"{seconds:.1f}"})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, help="a .safetensors file; default: the published model")
    parser.add_argument("--photos", type=Path, default=ROOT / "data" / "test")
    parser.add_argument("--every", type=int, default=1, help="use each so manieth photo")
    parser.add_argument("--crop", type=int, default=256, help="side of the middle that is used")
    parser.add_argument("--levels", type=float, nargs="+", default=[0, 2, 4])
    parser.add_argument("--efforts", type=int, nargs="+", default=[0, 20, 50, 100])
    parser.add_argument("--named", default="the default model", help="of the model, for the page")
    a = parser.parse_args()
    torch.set_num_threads(1)
    codec = load_model(a.model, coding=True).codec
    kept = json.loads(POINTS.read_text()) if POINTS.exists() else {}
    points = kept["points"] if kept.get("model") == codec.model_id().hex() else []
    names = [path for path in list_images(a.photos)][:: a.every]
    for path in names:
        x = read_image(path)
        top, left = (max(side - a.crop, 0) // 2 for side in x.shape[1:])
        x = x[:, top : top + a.crop, left : left + a.crop]
        for level in a.levels:
            for effort in a.efforts:
                key = {"photo": path.stem, "pixels": x[0].numel(), "level": level, "effort": effort}
                if not any(key.items() <= point.items() for point in points):
                    points.append(key | measure(codec, x, level, effort))
                    print(points[-1], flush=True)
        write_atomically(POINTS, json_text({"model": codec.model_id().hex(), "points": points}, 1).encode())
    words = (
        f"{a.named[0].upper()}{a.named[1:]}, on the middle {a.crop}x{a.crop} pixels of {len(names)} photos "
        f"({', '.join(path.stem for path in names)})."
    )
    write_page("effort", [words, table(summary(points, a.levels, a.efforts))])


if __name__ == "__main__":
    main()
