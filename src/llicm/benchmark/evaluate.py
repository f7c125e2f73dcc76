# SPDX-License-Identifier: Apache-2.0
"""Measure the methods of one family on every test pair, in parallel processes of one thread each."""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pandas as pd

from llicm.data.pairs import Pair, read_pairs
from llicm.files import write_atomically

__all__ = ["Plan", "evaluate_family"]


@dataclass(frozen=True)
class Plan:
    """What a worker needs: the family, its spec of params.yaml, where models, VLM and NIQE fit lie, metrics, and the
    folder for bitstreams."""

    family: str
    spec: dict
    models: Path
    vlm: Path
    metrics: tuple[str, ...]
    niqe_fit: Path
    streams: Path


_worker: dict = {}


def _start(plan: Plan) -> None:
    import torch

    from llicm.benchmark.metrics import make_metrics
    from llicm.methods import load_methods

    torch.set_num_threads(1)
    _worker.update(
        plan=plan,
        methods=load_methods(plan.family, plan.spec, plan.models, plan.vlm),
        metrics=make_metrics(list(plan.metrics), plan.niqe_fit),
    )


def _measure(task: str, pair: Pair) -> tuple[list[dict], list[tuple[str, float]]]:
    plan, rows, seconds = _worker["plan"], [], []
    for method in _worker["methods"]:
        for level in method.levels:
            coded = method.run(pair.degraded, level, task)
            seconds.append((method.name, coded.seconds))
            stream = plan.streams / task / pair.name / f"{method.name.replace('>', '-then-')}@{level:g}"
            stream.parent.mkdir(parents=True, exist_ok=True)
            if plan.spec["codec"] != "raw":
                stream.write_bytes(coded.data)
            for metric in _worker["metrics"]:
                ideal = pair.ideal[None] if metric.needs_reference else None
                rows.append({
                    "method": method.name, "family": method.family, "order": method.order, "task": task,
                    "image": pair.name, "level": level, "bytes": len(coded.data), "bpp": coded.bpp,
                    "metric": metric.name, "value": float(metric(coded.output[None], ideal)[0]),
                })  # fmt: skip
    return rows, seconds


def evaluate_family(plan: Plan, pairs: Path, tasks: list[str], workers: int, timing: Path | None = None) -> list[dict]:
    """Records of every (method, task, image, level, metric) of a family, in that order.

    Args:
        pairs: root of `val/<task>/{GT,LQ}/*.png`. workers: processes; each uses one thread, so that the values do
            not depend on their number.
        timing: CSV file for the mean seconds that restoring an image takes on one thread, by method; or None. Not among
            the records, because it is not the same in every run.

    Raises:
        UserError: missing pairs or weights, or an image too small for a metric.
    """
    from tqdm import tqdm

    jobs = [(task, pair) for task in tasks for pair in read_pairs(pairs, "val", task)]
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the workers
    with ProcessPoolExecutor(workers, get_context("spawn"), _start, (plan,)) as pool:
        parts = list(tqdm(pool.map(_measure, *zip(*jobs, strict=True)), total=len(jobs), unit="image"))
    rows = [row for part, _ in parts for row in part]
    order = [m for m in plan.spec["methods"]]
    if timing is not None:
        times = pd.DataFrame([pair for _, part in parts for pair in part], columns=["method", "seconds"])
        means = times.groupby("method", sort=False)["seconds"].mean().round(4).reset_index()
        write_atomically(timing, means.to_csv(index=False).encode())
    return sorted(rows, key=lambda r: order.index(r["method"]))
