# SPDX-License-Identifier: Apache-2.0
"""The benchmark of a study on other photos than its own: the trained models, the same methods, and no training.

What is measured, and how, is in params.yaml; the photos come from the catalogue of datasets or from a folder. Photos
that the study was trained on, or a public set known to share pictures with its training set, are refused.
"""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from llicm.benchmark.evaluate import Plan, evaluate_family
from llicm.benchmark.records import read_records, write_records
from llicm.data.catalogue import catalogue, folder_of, known_sets, overlap
from llicm.data.pairs import write_pairs
from llicm.errors import UserError
from llicm.files import write_atomically
from llicm.images import list_images, read_image
from llicm.pipeline.parameters import load
from llicm.pipeline.checkpoint import Checkpoint

__all__ = ["run_benchmark"]


def run_benchmark(
    photos: str, out: Path, *, root: Path = Path(), datasets: Path = Path("datasets"), families: Sequence[str] = (),
    metrics: Sequence[str] = (), max_side: int | None = None, count: int | None = None,
) -> Path:  # fmt: skip
    """Degrade photos, send them through the methods, and write records, tables and figures.

    An interrupted run goes on where it was.

    Args:
        photos: name of a registered dataset (see `llicm.data.catalogue`), or a folder of clean photos.
        out: folder of the results; made.
        root: of the study: params.yaml and artifacts/ are there. datasets: folder of the registry.
        families: of params.yaml, those measured; none for all. metrics: in place of the study's.
        max_side: photos are cut to at most this many pixels a side, at the centre; None for whole ones.
        count: the first so many photos; None for all.

    Returns:
        `out`.

    Raises:
        UserError: unknown photos, family or metric; weights that are missing; or photos that the study was trained on.
    """
    params = load(root / "params.yaml")
    folder = folder_of(photos, datasets) if photos in catalogue() else Path(photos)
    if not folder.is_dir():
        raise UserError(
            f"{photos}: neither a folder nor a dataset of the catalogue, which has {', '.join(catalogue())}."
        )
    names = list(families) or [name for name in params["families"] if name != "raw"]
    for name in names:
        if name not in params["families"]:
            raise UserError(f"{name}: no family of params.yaml; choose among {', '.join(params['families'])}.")
    files = list_images(folder)[:count]
    _refuse_training_photos(photos, files, root / params["photos"])
    tasks, work = params["tasks"], root / ".run" / "benchmark" / (Path(photos).name or "photos")
    settings = {"tasks": tasks, "severity": params["degrade"]["test_severity"], "max_side": max_side, "count": count}
    print(f"{photos}: {len(files)} photos, {len(tasks)} tasks, {len(names)} families", file=sys.stderr)
    images = {path.stem: read_image(path) for path in files}
    write_pairs(images, work / "pairs", tasks, settings["severity"], params["seed"], "val", max_side)
    models, vlm, fit = (root / "artifacts" / name for name in ("models", "vlm", "niqe_fit.mat"))
    # The uncompressed references come first: they are quick, and tell of missing weights at once.
    names = ["raw", *names] if "raw" in params["families"] and "raw" not in names else names
    tables = []
    for name in names:
        spec = params["families"][name]
        if not (models / spec["models"]).is_dir():
            raise UserError(f"{models / spec['models']}: no such models; run `dvc repro` first.")
        measured = tuple(metrics or spec.get("metrics") or params["evaluate"]["metrics"])
        determined = {**settings, "family": name, "spec": spec, "metrics": measured, "seed": params["seed"]}
        used = [work / "pairs", models / spec["models"], *(path for path in (vlm, fit) if path.exists())]
        scratch = Checkpoint(f"benchmark-{name}", determined, inputs=used, root=root / ".run" / "scratch")
        plan = Plan(
            family=name, spec=spec, models=models, vlm=vlm, metrics=measured, niqe_fit=fit,
            streams=work / "bitstreams" / name, weights=params["evaluate"]["weights"], keep=scratch.folder,
        )  # fmt: skip
        print(f"family {name}", file=sys.stderr)
        rows = evaluate_family(plan, work / "pairs", tasks, params["evaluate"]["workers"], work / f"timing-{name}.csv")
        write_records(rows, work / "records" / f"{name}.csv")
        tables.append(work / "records" / f"{name}.csv")
    records = read_records(tables)
    _publish(records, params, out)
    source = catalogue()[photos].source if photos in catalogue() else "a folder"
    about = {
        "photos": photos, "source": source, "images": {path.name: _sha(path) for path in files}, **settings,
        "families": names, "metrics": list(dict.fromkeys(records["metric"])),
        "models": {p.relative_to(models).as_posix(): _sha(p) for p in sorted(models.rglob("*.safetensors"))},
    }  # fmt: skip
    write_atomically(out / "about.json", (json.dumps(about, indent=1) + "\n").encode())
    return out


def _publish(records, params: dict, out: Path) -> None:
    from llicm.report import tables as report
    from llicm.benchmark.probes import PROBES
    from llicm.report.figures import bd_heatmap, rate_perception, save_figure

    out.mkdir(parents=True, exist_ok=True)
    tasks, steps = params["tasks"], set(params["figures"]["ablation"])
    for spec in params["families"].values():
        steps |= set(report.steps_of(spec))
    for name in ("records.parquet", "records.csv.gz"):
        write_records(records, out / name)
    records = records[~records["method"].isin(steps)]
    present = set(records["method"])
    methods = [
        name for spec in params["families"].values() if spec["codec"] != "raw" for name in spec["methods"]
        if name in present
    ]  # fmt: skip
    metrics = [name for name in dict.fromkeys(records["metric"]) if name not in PROBES]
    table = report.write_comparisons(records, metrics, methods, tasks, out)
    drawn = [name for name in params["figures"]["curves"] if name in methods] or methods
    dpi = params["figures"]["dpi"]
    for metric in metrics:
        figure = rate_perception(records, metric, tasks, drawn)
        save_figure(figure, out / f"rate_perception_{metric}.png", dpi, palette=True)
    if report.TEST in methods:
        for value, name in (("rate", "bd_rate_psnr"), ("quality", "bd_psnr")):
            figure = bd_heatmap(table, "psnr", report.TEST, tasks=tasks, value=value)
            save_figure(figure, out / f"{name}.png", dpi, palette=True)


def _refuse_training_photos(photos: str, files: Sequence[Path], training: Path) -> None:
    folder = training / "train"
    trained = list_images(folder) if folder.is_dir() else []
    sums = {_sha(path): path for path in trained}
    for path in files:
        if (twin := sums.get(_sha(path))) is not None:
            raise UserError(f"{path}: the study was trained on this photo ({twin}); measure on others.")
    wanted = {photos} if photos in catalogue() else known_sets(files)
    for first in sorted(known_sets(trained)):
        for second in sorted(wanted):
            if shared := overlap(first, second):
                raise UserError(f"{photos}: the study was trained on {first}: {shared}. Measure on other photos.")


def _sha(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
