# SPDX-License-Identifier: Apache-2.0
"""How time and memory grow with pixels, images, methods, processes and crops: `make growth` writes docs/growth.md.

Each row is a program of its own, on one thread, that does its work once small (so that libraries are loaded and have
made their kernels) and then measures it once: CPU seconds of its process, and by how much its largest resident memory
exceeds that at the start. The kernel counts the latter anew from there (`/proc/self/clear_refs`); a row that fills a
known amount shows that it does. An exponent is the slope of a line through the logarithms.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, photos, resident, table, write_page
from memory import photo

from llicm.benchmark.evaluate import Plan, _measure, evaluate_group
from llicm.data.pairs import read_pairs, write_pairs
from llicm.data.stream import PairStream
from llicm.files import json_text, write_json
from llicm.framework import LLICM
from llicm.images import read_image
from llicm.methods import methods_of
from llicm.model import load_model
from llicm.objectives import Objective
from llicm.parameters import Group
from llicm.strips import PIXELS
from llicm.training.loop import Trainer
from llicm.vlm.conditioner import save_conditioner
from llicm.weights import save_part

TASK, LEVEL, SIDE = "noisy", 2, 256  # of measured pairs
IMAGES = 32  # that processes share
SMALL = (slice(None), slice(128), slice(128))
Work = tuple[Callable[[], Any], Callable[[], Any]]  # what warms up, and what is measured


def compress(folder: Path, width: int) -> Work:
    system, x = load_model(), _photo(folder, width)
    return tuple(lambda v=v: system.encode(system.prefiltered(v, [TASK]), LEVEL) for v in (x[SMALL], x))


def decompress(folder: Path, width: int) -> Work:
    system, x = load_model(), _photo(folder, width)
    files = [system.codec.compress(v, LEVEL) for v in (x[SMALL], x)]
    return tuple(lambda f=f: system.decompress(f, TASK) for f in files)


def evaluate(folder: Path, images: int = 4, methods: int = 2) -> Work:
    plan, pairs = _plan(folder, images, methods)

    def measured() -> None:
        for pair in read_pairs(pairs, "val", TASK):
            _measure(plan, TASK, pair, False)

    return lambda: _measure(plan, TASK, read_pairs(pairs, "val", TASK)[0], False), measured


def processes(folder: Path, workers: int) -> Work:
    plan, pairs = _plan(folder, IMAGES, 2)
    timing = folder / "timing.csv"
    return lambda: None, lambda: evaluate_group(plan, pairs, [TASK], workers, timing=timing)


def train(folder: Path, crops: int = 4, side: int = 128) -> Work:
    system = load_model()
    trained = LLICM(system.codec, system.restorer, system.conditioner)
    small, stream = (
        PairStream(list(photos().values()), [TASK], crop, batch, 0, 0.0, (0.2, 0.8), 2, 60)
        for crop, batch in ((64, 1), (side, crops))
    )
    objective = Objective(gamma=0.25, perception={"bounded_log_mse": 1.0})
    trainer = Trainer(
        trained, ["codec", "restorer"], objective, small, [TASK], steps=9, warmup=1, lr=1e-5, max_grad_norm=1.0,
        precision="fp32", seed=0, log_every=1,
    )  # fmt: skip

    def measured() -> None:
        trainer.stream = stream
        trainer._update()

    return trainer._update, measured


def filled(folder: Path, megabytes: int) -> Work:
    return lambda: None, lambda: np.ones(megabytes * 125_000).sum()


WIDTHS = (384, 768, 1536, 3072, 4224)
# what is done, and what there is more and more of: how to do it, of which amounts, in which units
SERIES: dict[str, tuple[Callable, str, tuple[int, ...], str]] = {
    "compress": (compress, "width", WIDTHS, "megapixels"),
    "decompress, enhanced": (decompress, "width", WIDTHS, "megapixels"),
    "evaluate, 2 methods": (evaluate, "images", (2, 4, 8, 16), "images"),
    "evaluate, 4 images": (evaluate, "methods", (1, 2, 4, 8), "methods"),
    "update, crops of 128": (train, "crops", (1, 2, 4, 8), "crops"),
    "update, 4 crops": (train, "side", (64, 128, 192, 256), "megapixels"),
    "fill memory": (filled, "megabytes", (100, 400), "MB"),
}  # fmt: skip
RATIO = 2 / 3  # of heights to widths


def _photo(folder: Path, width: int) -> torch.Tensor:
    photo(width, round(width * RATIO), folder / "photo.bmp")
    return read_image(folder / "photo.bmp")


def _plan(folder: Path, images: int, methods: int) -> tuple[Plan, Path]:
    """WebP files of so many pairs, each restored by several restorers, all with the same weights."""
    system, names = load_model(), [f"restorer{i}" for i in range(methods)]
    save_conditioner(system.conditioner, folder / "vlm")
    for name in names:
        save_part(system.restorer, folder / name / "restorer.safetensors")
    tiles = [x[:, i : i + SIDE, :SIDE] for x in photos().values() for i in range(0, x.shape[1] - SIDE + 1, 32)]
    tiles = (tiles * images)[:images]
    write_pairs({f"{i:02}": tile for i, tile in enumerate(tiles)}, folder / "pairs", [TASK], 0.5, 0, "val", SIDE)
    group = Group(methods=[f"webp>{name}" for name in names], models=["none"] * 3, levels={"webp": [50]})
    found = methods_of({"group": group}, {name: {"restorer"} for name in names})
    return Plan(found, folder, ("psnr", "ssim"), folder / "none", folder / "streams"), folder / "pairs"


def once(folder: Path, function: Callable, given: dict[str, int]) -> dict[str, float]:
    torch.set_num_threads(1)
    warm, work = function(folder, **given)
    warm()
    Path("/proc/self/clear_refs").write_text("5")
    before, cpu, wall = resident("VmRSS"), time.process_time(), time.perf_counter()
    work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu_s": cpu, "wall_s": wall, "memory_mb": resident("VmHWM") - before}


def apart(name: str, **given: int) -> dict[str, float]:
    """What `once` gives, in a program of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, folder, name, json.dumps(given)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        told = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout
        found = json.loads(told.splitlines()[-1])
        timing = Path(folder, "timing.json")
        return found | ({"start_s": json.loads(timing.read_text())["start"]} if timing.is_file() else {})


def exponent(rows: list[dict], key: str) -> float:
    return float(np.polyfit(*(np.log([max(row[k], 1e-3) for row in rows]) for k in ("amount", key)), 1)[0])


def words(series: list[dict], key: str) -> str:
    slope, values = exponent(series, key), [row[key] for row in series]
    if max(values) - min(values) < 16 and key == "memory_mb":
        return "constant"
    return "linear" if 0.9 <= slope <= 1.1 else f"{'less' if slope < 1 else 'more'} than linear"


def _measuring(row: dict) -> float:
    return row["wall_s"] - row["start_s"]


def page(found: dict) -> list[str]:
    rows, slopes = [], []
    for name, series in found["series"].items():
        unit = SERIES[name][3]
        rows += [
            {
                "what": name, "of": f"{row['amount']:.3g} {unit}", "CPU (s)": f"{row['cpu_s']:.2f}",
                "CPU (s) per unit": f"{row['cpu_s'] / row['amount']:.2f}", "memory (MB)": f"{row['memory_mb']:.0f}",
            }
            for row in series
        ]  # fmt: skip
        strips = [row for row in series if unit == "megapixels" and row["amount"] > PIXELS / 1e6]
        for part, of in ((series, name), (strips, f"{name}, in strips")):
            if name == "fill memory" or len(part) < 3 or (part is strips and name.startswith("update")):
                continue
            row = {"what": of, "against": unit}
            for key, title in {"cpu_s": "CPU time", "memory_mb": "memory"}.items():
                row |= {f"{title}, exponent": f"{exponent(part, key):.2f}", f"{title} is": words(part, key)}
            slopes.append(row)
    one, two = (min(found["processes"][n], key=_measuring) for n in ("1", "2"))
    shared = (
        f"Evaluation of {IMAGES} images by 2 methods takes {_measuring(one):.1f} s of wall time in one process and "
        f"{_measuring(two):.1f} s in two, {_measuring(one) / _measuring(two):.2f} times as fast: the best of "
        f"{len(found['processes']['1'])} runs each, on a machine of {found['cores']} cores on which other programs ran "
        "too, so a rough figure. Before that, "
        f"{one['start_s']:.1f} and {two['start_s']:.1f} s go into starting."
    )
    return [table(slopes), shared, table(rows)]


def main() -> None:
    if len(sys.argv) > 2:
        folder, name, given = sys.argv[1:]
        function = processes if name == "processes" else SERIES[name][0]
        print(json_text(once(Path(folder), function, json.loads(given)), None))
        return
    found: dict[str, Any] = {"cores": os.cpu_count(), "series": {}, "processes": {}}
    for name, (_, key, values, unit) in SERIES.items():
        for value in values:
            amount = {"width": value**2 * RATIO / 1e6, "side": 4 * value**2 / 1e6}.get(key, value)
            found["series"].setdefault(name, []).append({"amount": amount} | apart(name, **{key: value}))
            print(name, unit, found["series"][name][-1], file=sys.stderr, flush=True)
    for _ in range(3):  # by turns
        for workers in (1, 2):
            found["processes"].setdefault(str(workers), []).append(apart("processes", workers=workers))
    write_json(found, ROOT / "docs/growth.json")
    write_page("growth", page(found))


if __name__ == "__main__":
    main()
