# SPDX-License-Identifier: Apache-2.0
"""Publish the weights of a trained study, each with a model card, for the command line and as a start of other studies.

    python -m llicm.pipeline.publish [--profile study] [--root FOLDER]

They go to init/published, which `dvc add init/published` and `dvc push` then put into the store.
"""

import argparse
import hashlib
import sys
from pathlib import Path

import pandas as pd

from llicm.benchmark.records import read_records
from llicm.data.catalogue import catalogue
from llicm.errors import UserError
from llicm.files import atomic_folder
from llicm.methods import NONE
from llicm.parameters import Objective, Parameters, load
from llicm.provenance.git import head
from llicm.provenance.lineage import Pipeline, Stage, trace
from llicm.report.comparisons import budgets, restoration

# name -> file in the study's folder
PARTS = {
    "llicm": "artifacts/release/llicm.safetensors",
    "rdo": "artifacts/models/rdo/codec.safetensors",
    "restorer": "artifacts/models/restorer/restorer.safetensors",
}
METHODS = {"llicm": "llicm", "rdo": "rdo", "restorer": "restored"}  # that the benchmark measures them as


def publish(root: str | Path, profile: str = "study") -> Path:
    """Copy a study's weights to ``init/published`` of the repository, with cards and their lineage.

    Args:
        root: the repository. profile: name of a folder below profiles/, trained and evaluated.

    Returns:
        The folder. One that is there already is replaced.

    Raises:
        UserError: the weights are missing, or they, their code, inputs or parameters are not what dvc.lock says.
    """
    root = Path(root).resolve()
    pipeline = Pipeline(root, profile)
    folder, params = pipeline.folder, load(pipeline.folder / "params.yaml")
    records = _records(folder / "results" / "records.parquet")
    out = root / "init" / "published"
    weights = {name: _verified(folder / file, root) for name, file in PARTS.items()}
    with atomic_folder(out) as new:
        new.mkdir()
        for name, data in weights.items():
            (new / f"{name}.safetensors").write_bytes(data)
            stage = pipeline.producer(folder / PARTS[name])
            assert stage is not None  # its lineage was verified
            card = _card(name, data, pipeline, stage, params, records)
            (new / f"{name}.md").write_text(card, encoding="utf-8")
        credits = folder / params.photos / "ATTRIBUTION.md"  # what `llicm data split` leaves there
        if credits.is_file():
            (new / "photos.md").write_bytes(credits.read_bytes())
        (new / "lineage.json").write_text(trace(folder / PARTS["llicm"], root).as_json() + "\n", encoding="utf-8")
    return out


def _verified(path: Path, root: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"{path}: no such weights; train the study first (see README).")
    found = trace(path, root)
    if not found.verified:
        raise UserError(f"{path}: cannot be published, for its lineage is broken. {found.findings[0]}")
    return path.read_bytes()


def _records(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise UserError(f"{path}: missing; a card tells what the weights achieve, so run the study to its end first.")
    records = read_records(path)
    return records[records.metric == "psnr"]


def _card(name: str, data: bytes, pipeline: Pipeline, stage: Stage, params: Parameters, records: pd.DataFrame) -> str:
    from huggingface_hub import ModelCard, ModelCardData
    from safetensors.torch import load as load_tensors

    from llicm.hub import ABOUT, TAGS

    training, stream = params.training, params.data
    model_name = params.release.model if name == "llicm" else name
    model = params.models[model_name]
    given = budgets(params.methods, params.models, training).set_index("method").loc[METHODS[name]]
    counts = sorted({int(given[f"{part}_updates"]) for part in model.trains})
    trained = next(s for s in pipeline.stages if s.folder == pipeline.folder and s.name == f"train@{model_name}")
    ran, machine = trained.run, "not recorded"
    if ran:
        machine = f"{ran['platform']}, torch {ran['libraries']['torch']}, threads: {params.threads}"
    photos, terms = _photos(pipeline)
    profile = pipeline.folder.relative_to(pipeline.root).as_posix()
    count = sum(tensor.numel() for key, tensor in load_tensors(data).items() if not key.endswith("@unit"))
    title = name if name == "llicm" else f"llicm-{name}"
    card_data = ModelCardData(model_name=title, tags=list(TAGS), **ABOUT)  # type: ignore[arg-type]
    card = ModelCard.from_template(
        card_data, template_path=str(Path(__file__).with_name("card.md.j2")),
        name=name, file=f"{name}.safetensors",
        parameters=f"{count:,}", size=f"{len(data):,}", sha256=hashlib.sha256(data).hexdigest(),
        started=any(file != NONE for part, file in model.start if part != "vlm"),
        photos=photos, terms=terms, share=f"{stream.dead_leaves_share:.0%}",
        tasks=", ".join(model.tasks or params.tasks),
        severity=" to ".join(map(str, stream.severity)),
        updates=" and ".join(f"{n:,}" for n in counts),
        batch=training.batch, crop=training.crop, lr=training.lr,
        loss=_loss(params.objectives[model.objective]),
        machine=machine,
        profile=profile, commit=(head(pipeline.root) or ("not in git",))[0],
        measured=_measured(name, records, params), stage=stage.name,
    )  # fmt: skip
    return str(card)


def _photos(pipeline: Pipeline) -> tuple[str, str]:
    """The training photos and their terms, from the note that `llicm data split` leaves beside them."""
    note = pipeline.folder / load(pipeline.folder / "params.yaml").photos / "SOURCES.txt"
    if not note.is_file():
        return "those of the repository (data/SOURCES.md)", "public domain, CC0 and CC BY"
    lines = note.read_text(encoding="utf-8").splitlines()
    sources = [line.removeprefix("train: ") for line in lines if line.startswith("train: ")]
    terms = [entry.licence for source in sources for entry in catalogue().values() if source.startswith(entry.title)]
    if note.with_name("ATTRIBUTION.md").is_file():
        terms.append("each with its author in [photos.md](photos.md)")
    return "; ".join(sources), ", ".join(dict.fromkeys(terms)) or "see their source"


def _loss(objective: Objective) -> str:
    weights = {key: getattr(objective, key) for key in ("alpha", "beta", "gamma")}
    terms = [f"D = {' + '.join(objective.distortion)}", f"P = {' + '.join(objective.perception)}"]
    used = [term for term, key in zip(terms, ("alpha", "gamma"), strict=True) if weights[key]]
    return "lambda (alpha D + gamma P) + beta R, " + ", ".join([f"{k} = {v:g}" for k, v in weights.items()] + used)


def _measured(name: str, records: pd.DataFrame, params: Parameters) -> str:
    """A table of the study's test set: PSNR, and real rate where there is one."""
    sets = [task for task in [*params.tasks, "clean"] if task in set(records.task)]
    if name == "restorer":
        return restoration(records, params.tasks).to_markdown(floatfmt=".2f")
    points = records[records.method == METHODS[name]].groupby(["task", "level"])[["bpp", "value"]].mean()
    cells = points.apply(lambda row: f"{row.value:.2f} at {row.bpp:.3f}", axis=1).unstack()
    return cells.loc[sets if name == "llicm" else sets[-1:]].add_prefix("level ").to_markdown()


def main() -> None:
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m llicm.pipeline.publish", description=about)
    parser.add_argument("--profile", default="study", help="a folder below profiles/ (default: %(default)s)")
    parser.add_argument("--root", type=Path, default=Path(), help="the repository")
    arguments = parser.parse_args()
    try:
        out = publish(arguments.root, arguments.profile)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}\nnow: dvc add {out} && dvc push {out}.dvc")


if __name__ == "__main__":
    main()
