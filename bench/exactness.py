# SPDX-License-Identifier: Apache-2.0
"""Exact decoding: the same symbols under other settings of the machine, and what that costs in rate and in time.

`make exactness` writes docs/exactness.md. For the rate two codecs are trained as the study trains its own, one as it
is and one whose hyper-synthesis is an ordinary float network of the same size, and both compress the test photos.

    python bench/exactness.py --settings

looks only at the settings, and leaves what the page says of the costs.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from common import ROOT, codecs, photos, table, write_page
from torch.nn import functional as F

from llicm import integer
from llicm.benchmark.bdrate import bd
from llicm.codec import learned
from llicm.codec.bitstream import unpack
from llicm.codec.learned import LearnedCodec
from llicm.data.corpus import load_photos
from llicm.parameters import Parameters, load
from llicm.report.show import psnr
from llicm.weights import load_part, save_part

SETTINGS = {
    "2 threads (reference)": {},
    "1 thread": {"threads": 1},
    "3 threads": {"threads": 3},
    "4 threads": {"threads": 4},
    "other order, four files at a time": {"at_once": 4},
    "without oneDNN": {"onednn": 0},
    "contiguous instead of channels-last": {"channels_last": 0},
    "AVX2 kernels": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"},
    "generic kernels": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"},
}


def probe(folder: Path, out: Path, threads: int, onednn: int, channels_last: int, at_once: int) -> None:
    """Decode every file of a folder, and encode its photo anew, in this process."""
    torch.set_num_threads(threads)
    torch.backends.mkldnn.set_flags(bool(onednn))
    codec, images = load_part("codec", folder / "codec.safetensors"), photos()
    codec.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    def look(path: Path) -> tuple[str, bool, bool, np.ndarray]:
        data = path.read_bytes()
        stream = unpack(data)
        latent = codec.latent(stream)
        symbols = b"".join(value.contiguous().numpy().tobytes() for value in latent)
        again = codec.code(*latent, stream.frame) == stream.payload
        own = codec.compress(images[path.stem.split("@")[0]], stream.level) == data
        return hashlib.sha256(symbols).hexdigest(), again, own, codec.decompress(data)[0].numpy()

    paths = sorted(folder.glob("*.llicm"), reverse=at_once > 1)
    with ThreadPoolExecutor(at_once) as workers:
        found = dict(sorted(zip([path.stem for path in paths], workers.map(look, paths), strict=True)))
    lists = {name: [f[n] for f in found.values()] for n, name in enumerate(("symbols", "again", "own"))}
    np.savez(out, **lists, **{name: f[3] for name, f in found.items()})


def settings_table(codec: LearnedCodec) -> str:
    rows, reference = [], None
    with tempfile.TemporaryDirectory() as folder:
        save_part(codec, Path(folder, "codec.safetensors"))
        for name, x in photos().items():
            for level in np.linspace(0, codec.levels - 1, 4):
                Path(folder, f"{name}@{level:g}.llicm").write_bytes(codec.compress(x, level))
        for name, setting in SETTINGS.items():
            options = {"threads": 2, "onednn": 1, "channels_last": 1, "at_once": 1}
            options |= {k: v for k, v in setting.items() if k in options}
            out = Path(folder, "found.npz")
            subprocess.run(
                [sys.executable, __file__, "--probe", folder, str(out), *map(str, options.values())],
                env=os.environ | {k: v for k, v in setting.items() if k.isupper()}, check=True, cwd=ROOT,
            )  # fmt: skip
            found = dict(np.load(out))
            reference = reference or found
            files = [key for key in found if "@" in key]
            difference = max(np.abs(found[key] - reference[key]).max() for key in files)
            rows.append({
                "setting": name, "files": len(files),
                "same symbols": int((found["symbols"] == reference["symbols"]).sum()),
                "same bytes from these": int(found["again"].sum()),
                "largest difference of X̂": f"{difference:.1e}",
                "whole encoder gives the same file": int(found["own"].sum()),
            })  # fmt: skip
    return table(rows)


def train(parameters: Parameters, updates: int | None, exact: bool) -> tuple[torch.nn.Module, list]:
    """The study's RDO codec, or the same with a float hyper-synthesis."""
    from llicm.training.models import train_model

    kept = integer.IntegerConv.integers, learned.activate
    if not exact:
        integer.IntegerConv.integers, learned.activate = _float_weights, _float_activation
    try:
        if updates:
            parameters.models["rdo"].updates = updates
        with tempfile.TemporaryDirectory() as folder:
            trainer = train_model(
                "rdo", parameters, photos=list(load_photos(ROOT / parameters.photos).train.values()), paired=None,
                models=Path(folder), out=Path(folder) / "out",
            )  # fmt: skip
        codec = trainer.system.codec.to(memory_format=torch.channels_last).eval()
        return codec, [[(8 * len(d) / x[0].numel(), psnr(codec.decompress(d)[0], x)) for level in range(codec.levels)
                        for d in [codec.compress(x, level)]] for x in photos().values()]  # fmt: skip
    finally:
        integer.IntegerConv.integers, learned.activate = kept


def _float_weights(self):
    weight = self.weight.float().flatten(1)
    one = torch.ones(len(weight), 1)
    return weight, self.bias.float()[:, None] * self.unit, one / self.unit


def _float_activation(x):
    return F.leaky_relu(x) * integer.ACTIVATION_UNIT


def cost_table(updates: int | None) -> tuple[str, str]:
    parameters = load(ROOT / "params.yaml")
    torch.set_num_threads(parameters.threads)
    (codec, exact), (_, plain) = (train(parameters, updates, exact) for exact in (True, False))
    rows = []
    for name, a, b in zip(photos(), plain, exact, strict=True):
        found = bd(*zip(*a, strict=True), *zip(*b, strict=True), names=("float", "exact"), unit="dB")
        rows.append({"photo": name, "BD-rate": found.rate, "BD-PSNR in dB": found.quality})
    rows.append({"photo": "mean"} | {k: np.mean([row[k] for row in rows]) for k in ("BD-rate", "BD-PSNR in dB")})
    rows = [
        row | {"BD-rate": f"{row['BD-rate']:+.2f}%", "BD-PSNR in dB": f"{row['BD-PSNR in dB']:+.3f}"} for row in rows
    ]
    z = torch.randint(-9, 10, (1, codec.config["N"], 8, 12)).float()
    with torch.no_grad():
        exact_ms = median_ms(lambda: codec.h_s(z))
        layers = [layer for layer in codec.h_s if isinstance(layer, integer.IntegerConv)]

        def plain_network():
            first, second, third, last = layers
            x = F.pixel_shuffle(F.conv2d(z, first.weight, first.bias, padding=1), 2)
            x = F.pixel_shuffle(F.conv2d(F.leaky_relu(x), second.weight, second.bias, padding=1), 2)
            x = F.conv2d(F.leaky_relu(x), third.weight, third.bias, padding=1)
            return F.conv2d(F.leaky_relu(x), last.weight, last.bias)

        plain_ms = median_ms(plain_network)
    time_line = f"Hyper-synthesis of 768x512 pixels: {exact_ms:.1f} ms exact, {plain_ms:.1f} ms by float convolutions."
    return table(rows), time_line


def median_ms(function, repeats: int = 30) -> float:
    times = []
    for _ in range(repeats + 3):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return 1000 * float(np.median(times[3:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--probe", nargs=6, help=argparse.SUPPRESS)
    parser.add_argument("--settings", action="store_true", help="measure no cost")
    parser.add_argument("--updates", type=int, help="train for so many updates; default: as in params.yaml")
    arguments = parser.parse_args()
    if arguments.probe:
        folder, out, *numbers = arguments.probe
        return probe(Path(folder), Path(out), *map(int, numbers))
    parts = ["## The same under other settings"]
    for name, codec in codecs().items():
        parts += [f"The codec `{name}`:", settings_table(codec)]
    if arguments.settings:
        text = (ROOT / "docs" / "exactness.md").read_text(encoding="utf-8")
        kept = text.split("## What it costs\n\n")[1].split("\n\n*")[0]
        return write_page("exactness", [*parts, "## What it costs", kept])
    write_page("exactness", [*parts, "## What it costs", *cost_table(arguments.updates)])


if __name__ == "__main__":
    main()
