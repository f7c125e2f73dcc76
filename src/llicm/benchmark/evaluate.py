# SPDX-License-Identifier: Apache-2.0
"""Measure the methods of one codec group on every test pair, in parallel processes of one thread each: on this machine,
or those of a Dask cluster.

Nothing is computed twice: methods of a group share the file of X and the restored X (see `Runner.run`).
An evaluation that was interrupted goes on: each pair's values are kept as soon as they are there.
"""

import contextlib
import functools
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from llicm.benchmark.metrics import SET_METRICS, make_metrics, set_distance, use_weights
from llicm.benchmark.probes import estimated_bpp, kept_energy
from llicm.benchmark.runners import Clock, load_runners
from llicm.data.pairs import Pair, read_pairs
from llicm.degradations import CLEAN
from llicm.errors import UserError
from llicm.files import json_text, write_atomically
from llicm.images import write_png
from llicm.limits import usable
from llicm.methods import Method
from llicm.objectives import psnr

__all__ = ["Plan", "evaluate_group"]


@dataclass(frozen=True)
class Plan:
    """What a worker needs.

    Attributes:
        methods: of one codec group. models: folder of the trained models. niqe_fit: fitted file.
        metrics: names, measured on the tasks. extra_metrics: those measured on the further sets of pairs.
        streams: folder for the bitstreams.
        device: where networks and metrics compute.
        weights: folder of the metrics' weight files (see `llicm.benchmark.metrics.use_weights`), or None.
        keep: folder for finished pairs, so that an interrupted evaluation goes on; None to start anew.
    """

    methods: Sequence[Method]
    models: Path
    metrics: tuple[str, ...]
    niqe_fit: Path
    streams: Path
    extra_metrics: tuple[str, ...] = ()
    device: str = "cpu"
    weights: str | Path | None = None
    keep: Path | None = None


_PATIENCE = 30  # seconds for a cluster to answer
_worker: dict[str, Any] = {}
_turn = threading.Lock()  # a worker of a cluster may have several threads


def _start(plan: Plan) -> None:
    """Load what the plan needs, which the worker keeps for the next pair."""
    if _worker.get("plan") == plan:
        return
    torch.set_num_threads(1)
    use_weights(plan.weights)
    usable(plan.device)
    names = [name for name in dict.fromkeys([*plan.metrics, *plan.extra_metrics]) if name not in SET_METRICS]
    _worker.update(
        plan=plan,
        runners=load_runners(plan.methods, plan.models, plan.device),
        metrics={metric.name: metric for metric in make_metrics(names, plan.niqe_fit, plan.device)},
    )


def _measure(plan: Plan, task: str, pair: Pair, extra: bool) -> dict:
    """One pair through all methods: its rows, the seconds of restoring by method, and all seconds by what took them.

    Its bitstreams are written to a folder of its own.
    """
    with _turn:
        _start(plan)
        return _measured(plan, task, pair, extra)


def _measured(plan: Plan, task: str, pair: Pair, extra: bool) -> dict:
    began = time.time()
    place = Path(task) / pair.name
    if plan.keep is not None and (plan.keep / place / "values.json").is_file():
        return json.loads((plan.keep / place / "values.json").read_text())
    streams = (plan.keep or plan.streams) / place
    streams.mkdir(parents=True, exist_ok=True)
    names = plan.extra_metrics if extra else plan.metrics
    clock, memo, rows, seconds = Clock(), {}, [], []  # type: Clock, dict, list[dict], list[tuple[str, float]]
    for runner in _worker["runners"]:
        method = runner.method
        for level in method.levels:
            coded = runner.run(pair.degraded, level, task, memo, clock)
            seconds.append((method.name, coded.seconds))
            if method.codec != "raw":
                with clock("write"):
                    (streams / f"{method.name.replace('>', '-then-')}@{level:g}").write_bytes(coded.data)
            if not extra and set(names) & set(SET_METRICS):
                with clock("write"):
                    write_png(coded.output, streams / _output_name(method.name, level))
            values: dict[str, float | None] = {}
            for name in (name for name in names if name not in SET_METRICS):
                metric = _worker["metrics"][name]
                with clock(name):
                    ideal = pair.ideal[None] if metric.needs_reference else None
                    values[name] = float(metric(coded.output[None], ideal)[0])
            # where they are shown: each costs a pass of the network
            if not extra and (method.order == "alone" or method.role == "test"):
                with clock("probes"):
                    values["kept"] = kept_energy(coded.decoded, pair.degraded, pair.ideal)
                    if runner.network is not None:
                        values["bpp_estimated"] = estimated_bpp(runner.network, coded.source.to(plan.device), level)
            if task == CLEAN and method.codec != "raw" and method.order != "alone":
                with clock("probes"):
                    plain = runner.plain.run(pair.degraded, level, task, memo).output
                    before, after = psnr(torch.stack([plain, coded.output]), pair.ideal[None]).tolist()
                    values["harm"] = before - after
            rows += [
                {
                    "method": method.name, "family": method.group, "order": method.order, "task": task,
                    "image": pair.name, "level": level, "bytes": len(coded.data), "bpp": coded.bpp, "metric": name,
                    "value": value,
                }
                for name, value in values.items() if value is not None
            ]  # fmt: skip
    result = {"rows": rows, "restoring": seconds, "spent": dict(clock.seconds), "began": began}
    if plan.keep is not None:
        write_atomically(plan.keep / place / "values.json", json.dumps(result).encode())
    return result


def evaluate_group(
    plan: Plan, pairs: Path, tasks: Sequence[str], workers: int, *, extra: Sequence[str] = (),
    images: int | None = None, timing: Path | None = None, scheduler: str | None = None,
) -> list[dict]:  # fmt: skip
    """Records of every (method, task, image, level, metric) of a codec group, in that order.

    Args:
        pairs: root of `val/<task>/{GT,LQ}/*.png`. workers: processes; each uses one thread, so that the values do
            not depend on their number.
        extra: further sets of pairs (see `llicm.data.pairs.set_of`), for the metrics `plan.extra_metrics`.
        images: only so many pairs of each set, at equal distances; None for all.
        timing: CSV file for the mean seconds that restoring an image takes on one thread, by method; or None. Not among
            the records, because it is not the same in every run. Beside it, `<name>.json` tells the seconds by what
            took them, and how busy the workers were.
        scheduler: address of a Dask scheduler whose workers measure in place of processes here; they see the same
            files. None for processes here.

    Raises:
        UserError: missing pairs or weights, an image too small for a metric, or a cluster that cannot be had.
    """
    sets = [(task, False) for task in tasks] + [(name, True) for name in (extra if plan.extra_metrics else ())]
    jobs = [(task, pair, more) for task, more in sets for pair in _spread(read_pairs(pairs, "val", task), images)]
    # The longest first, so that no worker is left with a large image at the end.
    jobs.sort(key=lambda job: -job[1].ideal.numel())
    places: dict[str, Any] = {n: getattr(plan, n) for n in ("models", "niqe_fit", "streams", "weights", "keep")}
    places |= {name: Path(place).absolute() for name, place in places.items() if place is not None}
    plan = replace(plan, **places)
    started = time.time()
    with _executor(plan, workers, scheduler) as (pool, workers):
        measure = functools.partial(_measure, plan)
        parts = list(tqdm(pool.map(measure, *zip(*jobs, strict=True)), total=len(jobs), unit="image", file=sys.stderr))
    ended = time.time()
    rows = [row for part in parts for row in part["rows"]]
    rows += _of_sets(plan, pairs, rows, tasks)
    if plan.keep is not None:
        _move_streams(plan.keep, plan.streams)
    if timing is not None:
        times = pd.DataFrame([pair for part in parts for pair in part["restoring"]], columns=["method", "seconds"])
        means = times.groupby("method", sort=False)["seconds"].mean().round(4).reset_index()
        write_atomically(timing, means.to_csv(index=False).encode())
        write_atomically(timing.with_suffix(".json"), _efficiency(parts, started, ended, workers))
    order, places = [m.name for m in plan.methods], {name: number for number, (name, _) in enumerate(sets)}
    return sorted(rows, key=lambda r: (order.index(r["method"]), places[r["task"]], r["image"]))


@contextlib.contextmanager
def _executor(plan: Plan, workers: int, scheduler: str | None) -> Iterator[tuple[Executor, int]]:
    """What computes, and how many workers it has."""
    if scheduler is not None:
        with _cluster(scheduler) as client, client.get_executor(pure=False) as pool:
            yield pool, len(client.scheduler_info(n_workers=-1)["workers"])
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the workers
    context: BaseContext = get_context("spawn")
    if plan.weights is None:
        # One server imports the libraries and forks every worker, before any has started a thread. (With weights of its
        # own a worker must know their place before it imports pyiqa.)
        context = get_context("forkserver")
        context.set_forkserver_preload(["llicm.benchmark.metrics", "llicm.benchmark.runners", "pyiqa"])
    with ProcessPoolExecutor(workers, context, _start, (plan,)) as pool:
        yield pool, workers


@contextlib.contextmanager
def _cluster(scheduler: str) -> Iterator[Any]:
    """A client of this Dask scheduler, once there is a worker. What a lost worker was measuring, another measures."""
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise UserError("params.yaml: evaluate.scheduler needs Dask; pip install 'llicm[cluster]'") from None
    try:
        client = Client(scheduler, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"params.yaml: evaluate.scheduler is {scheduler}, but no Dask scheduler answers there ({error}); start one "
            "with `dask scheduler`, or set it to null"
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=_PATIENCE)
            yield client
        except TimeoutError:
            raise UserError(f"{scheduler}: this Dask cluster has no workers; start some with `dask worker`") from None
        except KilledWorker as error:
            raise UserError(f"{scheduler}: a pair has ended several workers, as without memory ({error})") from None


def _spread(found: list[Pair], count: int | None) -> list[Pair]:
    """So many of the pairs, at equal distances; all for None."""
    return found if count is None else found[:: -(-len(found) // count)][:count]


def _output_name(method: str, level: float) -> str:
    return f"{method.replace('>', '-then-')}~{level:g}.png"


def _of_sets(plan: Plan, pairs: Path, rows: list[dict], tasks: Sequence[str]) -> list[dict]:
    """Rows of the metrics that compare sets of pictures: a row a method, task and level, of an image called "all"."""
    out = []
    for name in (name for name in plan.metrics if name in SET_METRICS):
        use_weights(plan.weights)
        distance = set_distance(name)
        table = pd.DataFrame([row for row in rows if row["task"] in tasks])
        table = table.drop_duplicates(["method", "task", "level", "image"])
        for (method, task, level), of in table.groupby(["method", "task", "level"], sort=False):
            with tempfile.TemporaryDirectory() as folder:
                for image in of["image"]:
                    source = (plan.keep or plan.streams) / task / image / _output_name(method, level)
                    shutil.copyfile(source, Path(folder) / f"{image}.png")
                value = distance(folder, pairs / "val" / task / "GT")
            first = of.iloc[0][["method", "family", "order", "task", "level"]].to_dict()
            size = {"bytes": round(of["bytes"].mean()), "bpp": float(of["bpp"].mean())}
            out.append({**first, "image": "all", **size, "metric": name, "value": value})
    return out


def _efficiency(parts: list[dict], started: float, ended: float, workers: int) -> bytes:
    """How busy the workers were, as JSON.

    `single`: sum of the seconds of the calls of codecs, restorers and metrics, each timed on its thread; `start`:
    seconds until the first worker had its libraries and models; `wall`: seconds from then to the end; `share`: `single`
    / (`wall` x `workers`), 1 if the workers did nothing else and never waited. Pairs that an earlier, interrupted run
    had finished are not counted.
    """
    parts = [part for part in parts if part["began"] >= started]
    spent = pd.DataFrame([part["spent"] for part in parts]).sum().sort_values(ascending=False)
    single = float(spent.sum())
    ready = min((part["began"] for part in parts), default=ended)
    numbers = {
        "single": round(single, 2), "start": round(ready - started, 2), "wall": round(ended - ready, 2),
        "workers": workers, "share": round(single / max((ended - ready) * workers, 1e-9), 4),
        "by": {name: round(float(value), 2) for name, value in spent.items()},
    }  # fmt: skip
    return (json_text(numbers) + "\n").encode()


def _move_streams(keep: Path, streams: Path) -> None:
    """Bitstreams of finished pairs to where the pipeline expects them."""
    shutil.rmtree(streams, ignore_errors=True)
    streams.mkdir(parents=True)
    for path in sorted(keep.rglob("*@*")):
        if path.is_file():
            target = streams / path.relative_to(keep)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
