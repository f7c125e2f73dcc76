# SPDX-License-Identifier: Apache-2.0
"""Training a model of the study: for the notebook, the command line and tests."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch

from llicm.data.corpus import load_photos
from llicm.data.pairs import read_training_pairs
from llicm.errors import UserError
from llicm.files import write_json
from llicm.methods import NONE
from llicm.objectives import EQUAL_PSNR
from llicm.parameters import Parameters, change, read
from llicm.pipeline.stage import Stage
from llicm.training.loop import Trainer
from llicm.training.models import train_model


def train_stage(stage: Stage, out: Path | None = None) -> Trainer:
    """Train the model that the stage is called by (see `train_model`); weights go to `out`, by default
    artifacts/models/<name>.

    An interrupted run goes on from its checkpoint, which lies outside the outputs, and ends in the same bytes.
    """
    parameters, name = stage.parameters, stage.item
    model = parameters.models[name]
    torch.set_num_threads(parameters.threads)
    photos, models = stage.folder / parameters.photos, stage.folder / "artifacts" / "models"
    started = [models / file for _, file in model.start if file != NONE]
    for path in started:
        if not path.exists():
            raise UserError(f"{path}: no such weights, which model {name} starts from; train that model first.")
    paired = stage.folder / parameters.paired if parameters.paired else None
    settings = _settings(parameters, name)
    corpus = load_photos(photos, stage.scratch / "photos")
    checkpoint = stage.checkpoint(settings, [photos, stage.init, *([paired] if paired else []), *started])
    print(f"model {name}: trains {', '.join(model.trains)} on {len(corpus.train)} photos", file=sys.stderr)
    return train_model(
        name, parameters, photos=list(corpus.train.kept.values()), models=models,
        paired=read_training_pairs(paired, model.tasks or parameters.tasks) if paired else None,
        out=out or stage.output(f"artifacts/models/{name}"), init=stage.init, checkpoint=checkpoint,
    )  # fmt: skip


def training_log(stage: Stage, trainer: Trainer) -> tuple[pd.DataFrame, dict]:
    """Write results/training/<name>.csv and .json; returns the log, and the summary of its last row."""
    log = pd.DataFrame(trainer.rows)
    last = log.iloc[-1]
    # over equal pictures there is no gain
    gains = {
        task: None if before >= EQUAL_PSNR else round(last[f"psnr/{task}"] - before, 2)
        for task in trainer.tasks
        for before in (last[f"psnr_degraded/{task}"],)
    }
    summary = {
        "updates": int(last["step"]), "loss": round(last["loss"], 4), "bpp": round(last["bpp"], 4), "psnr_gain": gains,
    }  # fmt: skip
    table = stage.output(f"results/training/{stage.item}.csv")
    log.round(5).to_csv(table, index=False)
    write_json(summary, table.with_suffix(".json"))
    return log, summary


def train(
    models: Sequence[str], profile: Path = Path(), *, changes: Mapping[str, object] | None = None,
    out: Path | None = None,
) -> list[Path]:  # fmt: skip
    """Train models of a profile, one after the other, without DVC: for other machines, and for searches.

    Args:
        models: of params.yaml. What they start from must be there.
        profile: folder with params.yaml, photos and artifacts/.
        changes: parameters other than those of the file, see `llicm.parameters.change`.
        out: folder in place of ``artifacts/models``, for what is written; what models start from stays where it is.

    Returns:
        The folders written: weights, and `training.json` with the parameters, the log and the seconds.

    Raises:
        UserError: see `change` and `train_stage`; or no such model.
    """
    parameters = change(read(profile / "params.yaml"), changes or {})
    for name in models:
        if name not in parameters.models:
            raise UserError(f"{name}: no model of params.yaml; choose among {', '.join(parameters.models)}.")
    folders = []
    for name in models:
        folder = (out or profile / "artifacts" / "models") / name
        trainer = train_stage(Stage(f"train@{name}", parameters, profile), folder)
        about = {"name": name, **_settings(parameters, name), "seconds": trainer.seconds, "log": trainer.rows}
        write_json(about, folder / "training.json")
        folders.append(folder)
    return folders


def _settings(parameters: Parameters, name: str) -> dict:
    """All parameters that determine a model's weights, but for those of the models that it starts from."""
    model = parameters.models[name]
    groups = {"data": parameters.data, "training": parameters.training, "model": model}
    groups["objective"] = parameters.objectives[model.objective]
    return {"seed": parameters.seed, "tasks": parameters.tasks, **{k: v.model_dump() for k, v in groups.items()}}
