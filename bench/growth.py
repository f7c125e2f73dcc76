# SPDX-License-Identifier: Apache-2.0
"""How time and memory grow with pixels, images, methods and processes: `make growth` writes docs/growth.md and .json.

Each row is a process of its own on one thread: CPU seconds of it and of the processes that it started, and the largest
resident memory of one of them (`ru_maxrss`). What one more unit takes is the difference from the row above: where it stays the
same, growth is linear, whatever starting up takes.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, photos, table, write_page
from memory import photo

from llicm.benchmark.evaluate import Plan, evaluate_group
from llicm.benchmark.niqe import fit_niqe, save_niqe
from llicm.data.pairs import parts, write_pairs
from llicm.files import write_json
from llicm.images import read_image
from llicm.methods import methods_of
from llicm.model import load_model, save_model
from llicm.parameters import Group
from llicm.vlm.conditioner import save_conditioner
from llicm.weights import save_part

SIDES = (256, 512, 1024, 2048)
METHODS = ("rdo", "rdo>restorer", "webp", "webp>restorer")
SIDE = 128  # of measured pictures


def compress(folder: Path, side: int) -> None:
    (folder / f"{side}.llicm").write_bytes(load_model(folder / "model").compress(read_image(folder / f"{side}.bmp"), 2))


def decompress(folder: Path, side: int) -> None:
    load_model(folder / "model").decompress((folder / f"{side}.llicm").read_bytes())


def evaluate(folder: Path, images: int = 4, methods: int = 2, processes: int = 1) -> None:
    group = Group(methods=[*METHODS[:methods]], models=["rdo", "restorer", "none"], levels={"rdo": [2], "webp": [50]})
    found = methods_of({"group": group}, {"rdo": {"codec"}, "restorer": {"restorer"}})
    with tempfile.TemporaryDirectory() as streams:
        plan = Plan(found, folder, ("psnr", "niqe_fit"), folder / "niqe_fit.mat", Path(streams))
        evaluate_group(plan, folder / "pairs", ["noisy"], processes, images=images)


SERIES: dict[str, tuple] = {
    "pixels, compress": (compress, "side", SIDES),
    "pixels, decompress": (decompress, "side", SIDES),
    "images, evaluate": (evaluate, "images", (1, 4, 8, 12)),
    "methods, evaluate": (evaluate, "methods", (1, 2, 3, 4)),
    "processes, evaluate": (evaluate, "processes", (1, 2, 4)),
}  # fmt: skip


def prepare(folder: Path, sides: tuple[int, ...]) -> None:
    """Weights, pictures and pairs that the rows work on."""
    system = load_model()
    save_model(system, folder / "model")
    save_part(system.codec, folder / "rdo/codec.safetensors")
    save_part(system.restorer, folder / "restorer/restorer.safetensors")
    save_conditioner(system.conditioner, folder / "vlm")
    for side in sides:
        photo(side, side, folder / f"{side}.bmp")
    write_pairs(parts(photos(), 4), folder / "pairs", ["noisy"], 0.5, 0, "val", SIDE)
    save_niqe(*fit_niqe(photos().values()), folder / "niqe_fit.mat")


def measure(folder: Path, series: str, value: int) -> dict:
    command = [sys.executable, __file__, str(folder), series, str(value)]
    told = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True).stdout
    amount = value * value / 1e6 if series.startswith("pixels") else value
    return {"series": series, "amount": amount, **json.loads(told.splitlines()[-1])}


def tell() -> None:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(u.ru_utime + u.ru_stime for u in used)
    print(json.dumps({"cpu_s": round(seconds, 2), "peak_gb": round(max(u.ru_maxrss for u in used) / 1e6, 2)}))


def shown(rows: list[dict]) -> list[dict]:
    """Rows for readers, with what one more unit takes."""
    out, last = [], {}  # type: list[dict], dict
    for row in rows:
        more: dict[str, str] = {"more CPU (s) per unit": "", "more memory (GB) per unit": ""}
        if last.get("series") == row["series"]:
            for name, key in zip(more, ("cpu_s", "peak_gb"), strict=True):
                more[name] = f"{(row[key] - last[key]) / (row['amount'] - last['amount']):.2f}"
        what, _, command = row["series"].partition(", ")
        unit = "MP" if what == "pixels" else what
        size = f"{row['amount']:.2f}" if unit == "MP" else str(row["amount"])
        made = {"command": command, "amount": f"{size} {unit}", "CPU (s)": f"{row['cpu_s']:.1f}"}
        out.append(made | {"largest process (GB)": f"{row['peak_gb']:.2f}"} | more)
        last = row
    return out


def main() -> None:
    if len(sys.argv) == 4:
        function, name, _ = SERIES[sys.argv[2]]
        function(Path(sys.argv[1]), **{name: int(sys.argv[3])})
        return tell()
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), SIDES)
        rows = [measure(Path(folder), series, value) for series, (*_, values) in SERIES.items() for value in values]
    write_json(rows, ROOT / "docs/growth.json")
    write_page("growth", [table(shown(rows))])


if __name__ == "__main__":
    main()
