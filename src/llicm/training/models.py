# SPDX-License-Identifier: Apache-2.0
"""The models of a study: what each starts from, what it trains, and for how long.

Every module of every method gets the same number of updates at the same learning rates: one cosine from the first
update of *pretraining* to the last of *fine-tuning*. After pretraining the ways part: the separately trained codec and
restorer go on by themselves, while the adapted restorer and LL-ICM go on from the same pretrained weights. So methods
differ in what the last updates minimise, not in how many there were or how large.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llicm.data.photo import Photo
from llicm.data.stream import PairStream
from llicm.errors import UserError
from llicm.framework import LLICM
from llicm.methods import NONE
from llicm.objectives import Objective
from llicm.parameters import Model, Parameters, Part
from llicm.registry import CODECS, RESTORERS
from llicm.training.loop import Store, Trainer
from llicm.training.transcoder import Transcoder
from llicm.vlm.conditioner import Oracle, conditioner_for, load_conditioner
from llicm.weights import load_part, save_part

__all__ = ["restorer_context", "schedule", "train_model"]


def schedule(model: Model, parameters: Parameters) -> tuple[int, int]:
    """Updates of a model's whole schedule, and how many of them are pretraining."""
    if model.updates:
        return model.updates, model.pretraining or 0
    training = parameters.training
    return training.pretraining + training.fine_tuning, training.pretraining


def restorer_context(context: str, tasks: Sequence[str], vlm: Path) -> dict | None:
    """What steers a restorer, as its configuration has it (see `llicm.restore.direct`).

    Args:
        context: "none"; "degradation" for that embedding alone; "both" for the content embedding too; "oracle" for the
            true task, as no decoder knows it.
        vlm: folder of the vision-language model.

    Raises:
        UserError: the model is missing.
    """
    if context == "none":
        return None
    if context == "oracle":
        return {"words": list(tasks)}
    width = load_conditioner(vlm).width
    return {"degradation": width, "content": width if context == "both" else 0}


def train_model(
    name: str, parameters: Parameters, *, photos: Sequence[Tensor | Photo], paired: dict | None, models: Path,
    out: Path, init: Path | None = None, checkpoint: Store | None = None,
) -> Trainer:  # fmt: skip
    """Train one model of params.yaml and write its parts; returns the finished trainer, whose `rows` are the log.

    A model that starts from weights of all that it trains goes on where pretraining ended, with its learning rate and
    data. One that starts from nothing also writes its weights at the end of pretraining (`pretrained.safetensors`); if
    `init` has weights of its name, or its parts come with released ones, those are its pretraining.

    Args:
        parameters: seed, tasks, data, training; the model's entry of `models`, and its objective.
        photos: clean training photos (3, H, W). paired: ready-made training pairs by task, or None.
        models: folder of the models that it starts from. out: folder of this model's weights.
        init: folder with published weights `<name>.safetensors`, or None.
        checkpoint: where the state of training is kept; None to go without.

    Raises:
        UserError: unknown parts or distances, missing weights to start from, published weights of another size than
            the parameters want, or divergence.
    """
    model, training, data, seed = parameters.models[name], parameters.training, parameters.data, parameters.seed
    if training.checkpoint_every % training.log_every:
        raise UserError("params.yaml: training.checkpoint_every must be a multiple of training.log_every")
    if training.batch % training.accumulate:
        raise UserError("params.yaml: training.batch must be a multiple of training.accumulate")
    torch.manual_seed(seed)
    tasks, vlm = model.tasks or parameters.tasks, Path(models) / "vlm"
    parts, from_nothing = _parts_of_start(name, model, Path(models), init)
    fresh = [kind for kind in model.trains if kind not in parts]
    for kind in fresh:
        parts[kind] = _build(kind, model, tasks, vlm)
    pretrained = all(kind not in fresh or getattr(parts[kind], "pretrained", False) for kind in model.trains)
    restorer: Any = parts.get("restorer")
    system = LLICM(parts.get("codec"), restorer, conditioner_for(restorer, vlm), parts.get("prefilter"))
    transcoder = Transcoder(model.codecs) if model.codecs else None
    if restorer is not None and ("codec" in parts or transcoder is not None):
        restorer.level_conditioned = True
    updates, pretraining = schedule(model, parameters)
    mild, severe = data.severity
    stream = PairStream(
        photos, tasks, training.crop, training.batch // training.accumulate, seed, data.dead_leaves_share,
        (mild, severe), data.pool, data.refresh * training.accumulate, paired, data.mixed,
        "cuda" if torch.cuda.is_available() else None, data.graphics_share,
    )  # fmt: skip
    trainer = Trainer(
        system, model.trains, Objective(**parameters.objectives[model.objective].model_dump()), stream, tasks,
        steps=updates, first=pretraining if pretrained else 0, warmup=training.warmup, lr=model.lr or training.lr,
        max_grad_norm=training.max_grad_norm, precision=training.precision, seed=seed, log_every=training.log_every,
        hint_share=1.0 if isinstance(system.conditioner, Oracle) else training.hint_share, transcoder=transcoder,
        accumulate=training.accumulate,
    )  # fmt: skip
    saved = checkpoint.load() if checkpoint is not None else None
    if saved is not None:
        trainer.restore(saved)
    keeps = from_nothing and pretraining > 0
    if keeps and trainer.pretrained is None:
        trainer.run(pretraining, checkpoint, training.checkpoint_every)
        # Kept in the checkpoint too: a pipeline that resumes has deleted the model's files.
        trainer.keep_pretrained()
    trainer.run(None, checkpoint, training.checkpoint_every)
    if not trainer.main:
        return trainer
    if keeps and trainer.pretrained is not None:
        for part_name, state in trainer.pretrained.items():
            save_part(parts[part_name], Path(out) / "pretrained.safetensors", state)
    for name, part in parts.items():
        if name == "codec" and name in model.trains:
            part.update()
        save_part(part, Path(out) / f"{name}.safetensors")
    if checkpoint is not None:
        checkpoint.done()
    return trainer


def _parts_of_start(name: str, model: Model, models: Path, init: Path | None) -> tuple[dict[str, Any], bool]:
    """The parts that a model starts from, and whether it starts from no other model."""
    files = {kind: file for kind, file in model.start if kind != "vlm" and file != NONE}
    parts: dict[str, Any] = {part: load_part(part, models / file) for part, file in files.items()}
    if init is not None and not files and (found := Path(init) / f"{name}.safetensors").is_file():
        (kind,) = model.trains
        parts[kind] = load_part(kind, found)
        _check_size(parts[kind].config, _described(kind, model), found)
    return parts, not files


def _build(kind: str, model: Model, tasks: Sequence[str], vlm: Path) -> nn.Module:
    config = _described(kind, model).model_dump()
    if kind == "codec":
        return CODECS.make(**config)
    context = restorer_context(model.context, tasks, vlm)
    return RESTORERS.make(**config, context=context)


def _described(kind: str, model: Model) -> Part:
    part = getattr(model, kind)
    if part is None:
        raise UserError(f"params.yaml: a model trains a {kind} that it neither starts from nor describes")
    return part


def _check_size(config: dict, wanted: Part, path: Path) -> None:
    for key, value in wanted.model_dump().items():
        if config.get(key) != value:
            raise UserError(
                f"{path}: has {key} {config.get(key)}, but params.yaml wants {value}; make them equal, or set init: "
                "scratch"
            )
