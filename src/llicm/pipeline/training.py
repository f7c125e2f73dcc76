# SPDX-License-Identifier: Apache-2.0
"""Training a model of the study: for the notebook, the command line and tests.

In this process, or in those that another program starts, which `training.launch` names. Each of them runs
`python -m llicm.pipeline.training FILE`.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from llicm.data.corpus import load_photos
from llicm.data.pairs import read_training_pairs
from llicm.errors import UserError
from llicm.files import write_json
from llicm.methods import NONE
from llicm.objectives import EQUAL_PSNR
from llicm.parameters import Parameters, change, part_of, read
from llicm.pipeline.stage import Stage
from llicm.training.models import train_model


class Trained(NamedTuple):
    """The log of a training, its tasks, and the seconds of "data" and "update"."""

    rows: list[dict]
    tasks: Sequence[str]
    seconds: dict[str, float]


def train_stage(stage: Stage, out: Path | None = None) -> Trained:
    """Train the model that the stage is called by (see `train_model`); weights go to `out`, by default
    artifacts/models/<name>.

    An interrupted run goes on from its checkpoint, which lies outside the outputs, and ends in the same bytes.
    """
    parameters, name = stage.parameters, stage.item
    out = out or stage.output(f"artifacts/models/{name}")
    if parameters.training.launch != "here" and "LOCAL_RANK" not in os.environ:
        return _launch(stage, out)
    main = int(os.environ.get("RANK", 0)) == 0
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
    if main:
        print(f"model {name}: trains {', '.join(model.trains)} on {len(corpus.train)} photos", file=sys.stderr)
    words, keep = model.tasks or parameters.tasks, stage.scratch / "pairs"
    trainer = train_model(
        name, parameters, photos=list(corpus.train.kept.values()), models=models,
        paired=read_training_pairs(paired, words, keep) if paired else None,
        out=out, init=stage.init, checkpoint=checkpoint,
    )  # fmt: skip
    return Trained(trainer.rows, trainer.tasks, trainer.seconds)


def _launch(stage: Stage, out: Path) -> Trained:
    """Train in the processes of another program, which read what to do from a file and answer in another."""
    command = stage.parameters.training.launch
    given = stage.parameters.model_dump()
    given["training"]["launch"] = "here"
    file = (stage.scratch / f"launch-{stage.item}.json").absolute()
    answer = file.with_suffix(".done.json")
    answer.unlink(missing_ok=True)
    told = {"stage": stage.name, "parameters": given, "folder": stage.folder, "out": stage.out, "weights": out}
    write_json({k: str(v) if isinstance(v, Path) else v for k, v in told.items()}, file)
    source = str(Path(__file__).resolve().parents[2])
    paths = {"PYTHONPATH": source, "PATH": str(Path(sys.executable).parent)}  # torchrun of this environment
    paths = {name: os.pathsep.join([path, *filter(None, [os.environ.get(name)])]) for name, path in paths.items()}
    try:
        ended = subprocess.run(
            [*shlex.split(command), "-m", "llicm.pipeline.training", str(file)], env=os.environ | paths
        )
    except (OSError, ValueError) as error:
        raise UserError(f"params.yaml: training.launch, {command}: {error}; correct it") from None
    found = json.loads(answer.read_text()) if answer.is_file() else {}
    if "error" in found:
        raise UserError(found["error"])
    if ended.returncode or not found:
        raise UserError(
            f"{command}: ended with exit code {ended.returncode} and without weights; what it said is above, or in its "
            "own log; run the same command again, and it goes on from the last checkpoint"
        )
    return Trained(**found)


def _work(file: Path) -> None:
    """What each of the launched processes does."""
    told, answer = json.loads(file.read_text()), file.with_suffix(".done.json")
    stage = Stage(told["stage"], part_of(told["parameters"]), told["folder"], Path(told["out"]))
    try:
        found = train_stage(stage, Path(told["weights"]))._asdict()
    except UserError as error:
        write_json({"error": str(error)}, answer)
        sys.exit(f"error: {error}")
    if int(os.environ.get("RANK", 0)) == 0:
        write_json(found, answer)


def training_log(stage: Stage, trainer: Trained) -> tuple[pd.DataFrame, dict]:
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
    settings = {k: v.model_dump(exclude={"launch"}) for k, v in groups.items()}
    return {"seed": parameters.seed, "tasks": parameters.tasks, **settings}


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
