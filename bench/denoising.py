# SPDX-License-Identifier: Apache-2.0
"""Joint denoising and compression on Kodak, beside the published curves of "Optimizing Image Compression via Joint
Learning with Denoising" (Cheng, Xie and Chen, ECCV 2022). Writes docs/denoising.md and docs/denoising.png.

    python bench/denoising.py [--root profiles/study] [GROUP ...]

Kodak must be registered (`llicm data add kodak FOLDER`).
"""

import argparse
import os
from pathlib import Path

import torch
from common import ROOT, table, write_page

from llicm.benchmark.bdrate import bd
from llicm.benchmark.evaluate import Plan, evaluate_group
from llicm.benchmark.records import mean_curves, read_records, write_records
from llicm.data.catalogue import folder_of
from llicm.data.pairs import stable_seed
from llicm.degradations import linear_to_srgb, srgb_to_linear
from llicm.images import list_images, quantize8, read_image, write_png
from llicm.methods import Method
from llicm.parameters import load
from llicm.report.figures import rate_perception
from llicm.report.style import save_figure
from llicm.report.writing import method_label

PUBLISHED = "ECCV 2022"
_PUBLISHED = Method(PUBLISHED, PUBLISHED, "reference", PUBLISHED, False, None, "published", (0.0,), title=PUBLISHED)
# level -> standard deviations of read noise and of shot noise at linear value 1
NOISE = {1: (0.0068, 0.0520), 2: (0.0157, 0.0789), 3: (0.0362, 0.1196), 4: (0.0832, 0.1814)}
# level -> points (bpp, PSNR in dB), as the authors' repository reports them
POINTS = {
    1: [(0.0987, 28.04), (0.1518, 29.35), (0.2244, 30.63), (0.3394, 32.30), (0.4795, 33.68), (0.6442, 34.77)],
    2: [(0.0987, 27.99), (0.1515, 29.25), (0.2235, 30.44), (0.3338, 31.89), (0.4664, 32.98), (0.6214, 33.75)],
    3: [(0.0992, 27.83), (0.1525, 28.94), (0.2252, 29.90), (0.3283, 30.92), (0.4477, 31.57), (0.5935, 31.98)],
    4: [(0.1094, 26.77), (0.1834, 27.62), (0.2839, 27.82), (0.4795, 27.91), (0.6069, 28.37), (0.8188, 28.40)],
}


def noisy(image: torch.Tensor, read: float, shot: float, seed: int) -> torch.Tensor:
    """A photo (3, H, W) with Gaussian noise of variance read^2 + shot^2 x in linear light, as 8-bit sRGB."""
    linear = srgb_to_linear(image)
    sigma = (linear * shot**2 + read**2).sqrt()
    noise = torch.randn(linear.shape, generator=torch.Generator().manual_seed(seed))
    return quantize8(linear_to_srgb((linear + sigma * noise).clamp(0, 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("groups", nargs="*", default=["llicm", "llicm-prefilter", "conventional-prefilter"])
    parser.add_argument("--root", type=Path, default=ROOT / "profiles/study", help="folder of the trained study")
    given = parser.parse_args()
    params, work = load(given.root / "params.yaml"), given.root / ".run" / "denoising"
    words, inputs = {level: f"noise level {level}" for level in NOISE}, []
    photos = list_images(folder_of("kodak", ROOT / "datasets"))
    for level, (read, shot) in NOISE.items():
        errors = []
        for path in photos:
            ideal = read_image(path)
            x = noisy(ideal, read, shot, stable_seed(level, path.stem))
            errors.append(-10 * (x - ideal).square().mean().log10())
            folder = work / "pairs" / "val" / words[level]
            write_png(x, folder / "LQ" / path.name)
            write_png(ideal, folder / "GT" / path.name)
        inputs.append(float(torch.stack(errors).mean()))
    rows = [
        {
            "method": PUBLISHED, "family": PUBLISHED, "order": "after", "task": words[level], "image": "kodak",
            "level": index, "bytes": round(rate * 768 * 512 / 8), "bpp": rate, "metric": "psnr", "value": value,
        }
        for level, points in POINTS.items() for index, (rate, value) in enumerate(points)
    ]  # fmt: skip
    artifacts = given.root / "artifacts"
    methods = [method for method in params.methods if method.group in given.groups]
    for name in given.groups:
        plan = Plan(
            methods=[method for method in methods if method.group == name], models=artifacts / "models",
            metrics=("psnr",), niqe_fit=artifacts / "niqe_fit.mat", streams=work / "bitstreams" / name,
        )  # fmt: skip
        rows += evaluate_group(plan, work / "pairs", list(words.values()), os.cpu_count() or 1)
    write_records(rows, work / "records.csv")
    records = read_records(work / "records.csv")
    records = records[records["metric"] == "psnr"]
    figure = rate_perception(
        records, "psnr", list(words.values()), [_PUBLISHED, *methods], references={}, columns=2,
        highlight=[method.name for method in methods if method.role == "test"],
    )  # fmt: skip
    save_figure(figure, ROOT / "docs" / "denoising.png", 110, palette=True)
    curves, lines = mean_curves(records, "psnr"), []
    for method in (method.name for method in methods):
        for level, word in words.items():
            ours, theirs = curves[method, word], curves[PUBLISHED, word]
            found = bd(theirs.bpp, theirs.value, ours.bpp, ours.value)
            points = zip(ours.bpp, ours.value, strict=True)
            lines.append({
                "method": method_label(method), "noise": f"level {level}, input {inputs[level - 1]:.2f} dB",
                "points: dB at bpp": ", ".join(f"{value:.2f} at {rate:.3f}" for rate, value in points),
                "BD-rate": "n/a" if found.rate is None else f"{found.rate:+.1f}%",
                "BD-PSNR": "n/a" if found.quality is None else f"{found.quality:+.2f} dB",
            })  # fmt: skip
    write_page("denoising", [f"{len(photos)} photos, whole, real files.", table(lines)])


if __name__ == "__main__":
    main()
