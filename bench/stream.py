# SPDX-License-Identifier: Apache-2.0
"""The table of docs/stream.md: what the training stream costs in memory and time. Points are in docs/stream.json.

    python bench/stream.py FOLDER [--label TEXT] [--params params.yaml]

FOLDER holds photos, as a study has them. A measurement is added to those that are there, or takes the place of the one
with its label; the script runs on older states of the code too, for comparison.
"""

import argparse
import inspect
import json
import os
import tempfile
import time
from pathlib import Path

import torch
from common import ROOT, table, write_page

from llicm.data.corpus import load_photos
from llicm.data.stream import PairStream
from llicm.files import write_json
from llicm.parameters import change, read
from llicm.training.models import train_model

POINTS = ROOT / "docs" / "stream.json"


def memory() -> dict[str, float]:
    """Of this process, in GB: its own, and that of mapped files, which processes share."""
    lines = Path("/proc/self/status").read_text().splitlines()
    size = {line.split(":")[0]: int(line.split()[1]) / 1e6 for line in lines if line.startswith("Rss")}
    return {"own": size["RssAnon"], "shared": size["RssFile"]}


def seconds(function, count: int = 1) -> float:
    """CPU time of one call."""
    started = time.process_time()
    for number in range(count):
        function(number)
    return (time.process_time() - started) / count


def measure(folder: Path, keep: Path, params: Path, steps: int) -> dict:
    arguments = [folder, keep][: len(inspect.signature(load_photos).parameters)]
    before = memory()
    first = seconds(lambda _: load_photos(*arguments))
    corpora = []
    again = seconds(lambda _: corpora.append(load_photos(*arguments)))
    train = corpora[0].train
    photos = list(getattr(train, "kept", train).values())
    few = {"precision": "fp32", "log_every": 10, "checkpoint_every": 0, "pretraining": 5, "fine_tuning": 5, "warmup": 1}
    parameters = change(read(params), {f"training.{name}": value for name, value in few.items()})
    data, training, tasks = parameters.data, parameters.training, parameters.tasks
    drawn = data.dead_leaves_share, tuple(data.severity), data.pool, data.refresh, None, data.mixed
    streams = []
    made = seconds(lambda _: streams.append(PairStream(photos, tasks, training.crop, training.batch, 0, *drawn)))
    for photo in photos if hasattr(train, "kept") else []:  # a study makes these as it goes
        made += seconds(lambda _, photo=photo: [photo.at(scale) for scale in photo.scales(training.crop)])
    seconds(streams[0].batch, steps)  # the first dead leaves
    batch = seconds(lambda number: streams[0].batch(steps + number), steps)
    after = memory()
    with tempfile.TemporaryDirectory() as models:
        trainer = train_model("rdo", parameters, photos=photos[:8], paired=None, models=Path(models), out=Path(models))
        update = seconds(lambda _: trainer._update(), 5) - batch
    return {
        "photos": len(corpora[0].train) + len(corpora[0].test), "crops": training.batch, "load_s": first,
        "load_again_s": again, "stream_s": made, "batch_ms": 1000 * batch, "update_ms": 1000 * update,
        "own_gb": after["own"] - before["own"], "shared_gb": after["shared"] - before["shared"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--label", default="now")
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml")
    parser.add_argument("--steps", type=int, default=60)
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the processor's stream
    with tempfile.TemporaryDirectory(dir=ROOT) as keep:
        found = measure(given.folder, Path(keep), given.params, given.steps)
    points = json.loads(POINTS.read_text()) if POINTS.exists() else {}
    points[given.label] = found
    write_json(points, POINTS)
    page(points)


def page(points: dict[str, dict]) -> None:
    rows = [
        {
            "": label, "photos": p["photos"], "load (s)": f"{p['load_s']:.1f}",
            "load again (s)": f"{p['load_again_s']:.1f}",
            "smaller copies (s)": f"{p['stream_s']:.1f}", "own memory (GB)": f"{p['own_gb']:.2f}",
            "shared memory (GB)": f"{p['shared_gb']:.2f}", "batch (ms)": f"{p['batch_ms']:.1f}",
            "update (ms)": f"{p['update_ms']:.0f}",
            "share": f"{100 * p['batch_ms'] / (p['batch_ms'] + p['update_ms']):.0f}%",
        }
        for label, p in points.items()
    ]  # fmt: skip
    write_page("stream", [table(rows)])


if __name__ == "__main__":
    main()
