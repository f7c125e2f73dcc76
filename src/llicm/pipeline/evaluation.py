# SPDX-License-Identifier: Apache-2.0
"""Measuring a codec group of the study: for the notebook and tests."""

from llicm.benchmark.evaluate import Plan, evaluate_group
from llicm.methods import NONE, Method, methods_of
from llicm.pipeline.stage import Stage


def methods_here(stage: Stage, group: str) -> list[Method]:
    """The methods of a codec group, by the weights that are on disk."""
    folder = stage.folder / "artifacts" / "models"
    names = [name for name in stage.parameters.benchmark[group].models if name != NONE]
    parts = {name: {path.stem for path in (folder / name).glob("*.safetensors")} for name in names}
    return methods_of({group: stage.parameters.benchmark[group]}, parts)


def evaluate(stage: Stage) -> list[dict]:
    """The records of the codec group that the stage is called by, see `evaluate_group`; bitstreams are written."""
    parameters, name = stage.parameters, stage.item
    group, measured = parameters.benchmark[name], parameters.evaluate
    pairs, fit, models = (stage.input(f"artifacts/{path}") for path in ("pairs", "niqe_fit.mat", "models"))
    used = [pairs, fit, *(models / model for model in ("vlm", *group.models))]
    settings = {
        "seed": parameters.seed, "tasks": parameters.tasks, "extra": parameters.extra,
        "evaluate": measured.model_dump(exclude={"scheduler"}), "group": group.model_dump(),
    }  # fmt: skip
    checkpoint = stage.checkpoint(settings, used)
    plan = Plan(
        methods=methods_here(stage, name), models=models, niqe_fit=fit,
        metrics=tuple(group.metrics or measured.metrics), extra_metrics=tuple(group.extra_metrics or ()),
        streams=stage.output(f"artifacts/bitstreams/{name}"), device=measured.device, weights=measured.weights,
        keep=checkpoint.folder,
    )  # fmt: skip
    records = evaluate_group(
        plan, pairs, group.tasks or parameters.tasks, measured.workers, extra=parameters.extra, images=group.images,
        timing=stage.output(f".run/timing/{name}.csv"), scheduler=measured.scheduler,
    )  # fmt: skip
    checkpoint.done()
    return records
