# SPDX-License-Identifier: Apache-2.0
"""The benchmark of a study on other photos than its own: the trained models, the same methods, and no training.

What is measured, and how, is in params.yaml; the photos come from the catalogue of datasets or from a folder. Pairs
with a real degradation are measured as they are; it is then the only task. Photos
that the study was trained on, or a public set known to share pictures with its training set, are refused.
"""

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from llicm.benchmark.evaluate import Plan, evaluate_group
from llicm.benchmark.records import read_records, write_records
from llicm.data.catalogue import catalogue, folder_of, known_sets, overlap
from llicm.data.pairs import put_pairs, read_pairs, write_pairs
from llicm.errors import UserError
from llicm.files import printable, write_json
from llicm.images import by_stem, list_images, read_image
from llicm.methods import NONE
from llicm.parameters import load
from llicm.pipeline.checkpoint import Checkpoint
from llicm.report.study import Study, elsewhere


def run_benchmark(
    photos: str, out: Path, *, root: Path = Path(), datasets: Path = Path("datasets"), groups: Sequence[str] = (),
    metrics: Sequence[str] = (), max_side: int | None = None, count: int | None = None,
) -> Path:  # fmt: skip
    """Degrade photos, send them through the methods, and write records, tables and figures.

    An interrupted run goes on where it was.

    Args:
        photos: name of a registered dataset (see `llicm.data.catalogue`), or a folder of clean photos. Real pairs are
            taken as they are, everything else is degraded.
        out: folder of the results; made.
        root: of the study: params.yaml and artifacts/ are there. datasets: folder of the registry.
        groups: codec groups of `benchmark` in params.yaml, () for all; references come along.
        metrics: in place of the study's.
        max_side: photos are cut to at most this many pixels a side, at the centre; None for whole ones.
        count: the first so many photos; None for all.

    Returns:
        `out`.

    Raises:
        UserError: unknown photos, group or metric; weights that are missing; or photos that the study was trained on.
    """
    parameters = load(root / "params.yaml")
    folder = folder_of(photos, datasets) if photos in catalogue() else Path(photos)
    if not folder.is_dir():
        raise UserError(
            f"{photos}: neither a folder nor a dataset of the catalogue, which has {', '.join(catalogue())}."
        )
    for name in groups:
        if name not in parameters.benchmark:
            raise UserError(f"{name}: no codec group of params.yaml; choose among {', '.join(parameters.benchmark)}.")
    # The uncompressed references come first: they are quick, and tell of missing weights at once.
    references = [name for name, group in parameters.benchmark.items() if group.role == "reference"]
    names = list(dict.fromkeys([*references, *(groups or parameters.benchmark)]))
    real = photos in catalogue() and catalogue()[photos].kind == "real"
    if real:  # the only task, whatever the study's are
        parameters = parameters.model_copy(update={"tasks": [catalogue()[photos].degradation], "extra": []})
    files = list_images(folder / "GT" if real else folder)[:count]
    _refuse_training_photos(photos, files, root / parameters.photos)
    tasks, work = parameters.tasks, root / ".run" / "benchmark" / (Path(photos).name or "photos")
    severity = None if real else parameters.degrade.test_severity
    settings = {"tasks": tasks, "severity": severity, "max_side": max_side, "count": count}
    print(f"{photos}: {len(files)} photos, {len(tasks)} tasks, {len(names)} codec groups", file=sys.stderr)
    if real:
        put_pairs(read_pairs(folder, "", "")[:count], work / "pairs", tasks[0], max_side)
    else:
        images = {name: read_image(path) for name, path in by_stem(files).items()}
        write_pairs(images, work / "pairs", tasks, parameters.degrade.test_severity, parameters.seed, "val", max_side)
    models, fit = root / "artifacts" / "models", root / "artifacts" / "niqe_fit.mat"
    tables = []
    for name in names:
        group = parameters.benchmark[name]
        needed = [models / model for model in group.models if model != NONE]
        for path in needed:
            if not path.is_dir():
                raise UserError(f"{path}: no such models; run `dvc repro` first.")
        measured = tuple(metrics or group.metrics or parameters.evaluate.metrics)
        determined = {
            **settings, "group": group.model_dump(), "metrics": measured, "seed": parameters.seed,
            "device": parameters.evaluate.device,
        }  # fmt: skip
        used = [path for path in (work / "pairs", *needed, models / "vlm", fit) if path.exists()]
        checkpoint = Checkpoint(f"benchmark-{name}", determined, inputs=used, root=root / ".run" / "scratch")
        plan = Plan(
            methods=[method for method in parameters.methods if method.group == name], models=models, metrics=measured,
            niqe_fit=fit, streams=work / "bitstreams" / name, device=parameters.evaluate.device,
            weights=parameters.evaluate.weights, keep=checkpoint.folder,
        )  # fmt: skip
        print(f"codec group {name}", file=sys.stderr)
        rows = evaluate_group(
            plan, work / "pairs", tasks if real else group.tasks or tasks, parameters.evaluate.workers,
            images=group.images,
            timing=work / f"timing-{name}.csv", scheduler=parameters.evaluate.scheduler,
        )  # fmt: skip
        tables.append(work / "records" / f"{name}.csv")
        write_records(rows, tables[-1])
    out.mkdir(parents=True, exist_ok=True)
    records = read_records(tables)
    elsewhere(Study(records, parameters, out, flat=True))
    about = {
        "photos": photos, "source": catalogue()[photos].source if photos in catalogue() else "a folder",
        "images": {printable(path.name): _sha(path) for path in files}, **settings, "groups": names,
        "metrics": list(dict.fromkeys(records["metric"])),
        "models": {p.relative_to(models).as_posix(): _sha(p) for p in sorted(models.rglob("*.safetensors"))},
    }  # fmt: skip
    write_json(about, out / "about.json")
    return out


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
