# SPDX-License-Identifier: Apache-2.0
"""Train arms of a profile as a plain command, without DVC and papermill: for other machines, and for searches.

The pipeline does the same with records of what went in; a search tries many settings and records only which.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from llicm.data.corpus import load_photos
from llicm.data.pairs import read_training_pairs
from llicm.errors import UserError
from llicm.files import write_atomically
from llicm.pipeline.parameters import load, validate
from llicm.pipeline.checkpoint import Checkpoint
from llicm.training.loop import train_arm

__all__ = ["change", "train"]


def change(params: dict, changes: Mapping[str, object]) -> dict:
    """A copy of the parameters with some replaced: {"arms.llicm.objective.alpha": 0.0}.

    Raises:
        UserError: a name leads through something that holds no names, or the result is no valid params.yaml.
    """
    changed = json.loads(json.dumps(params))
    for name, value in changes.items():
        *parents, last = name.split(".")
        place = changed
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise UserError(f"{name}: params.yaml has no such parameter.")
        place[last] = value
    validate(changed)
    return changed


def train(
    arms: Sequence[str], profile: Path = Path(), *, changes: Mapping[str, object] | None = None, out: Path | None = None
) -> list[Path]:
    """Train arms, one after the other; an interrupted run goes on where it was.

    Args:
        arms: of params.yaml. What they start from must be there: its `start`, and the vision-language model.
        profile: folder with params.yaml, photos and artifacts/.
        changes: parameters other than those of the file, see `change`.
        out: folder in place of ``artifacts/models``, for what is written; what arms start from stays where it is.

    Returns:
        The folders written: weights, and `training.json` with the parameters, the log and the seconds.

    Raises:
        UserError: see `change` and `train_arm`; or no such arm.
    """
    params = change(load(profile / "params.yaml"), changes or {})
    for arm in arms:
        if arm not in params["arms"]:
            raise UserError(f"{arm}: no arm of params.yaml; choose among {', '.join(params['arms'])}.")
    torch.set_num_threads(params["threads"])
    photos, paired = profile / params["photos"], params["paired"]
    corpus = load_photos(photos)
    models, vlm = profile / "artifacts" / "models", profile / "artifacts" / "vlm"
    folders = []
    for arm in arms:
        spec = params["arms"][arm]
        tasks = spec.get("tasks") or params["tasks"]
        folder = (out or models) / (arm if spec["start"] else f"separate/{arm}")
        groups = {key: params[key] for key in ("data", "codec", "restorer", "training", "seed")}
        started = [models / file for file in (spec["start"] or {}).values()]
        for path in started:
            if not path.is_file():
                raise UserError(f"{path}: no such weights, which arm {arm} starts from; train that arm first.")
        inputs = [photos, *([profile / paired] if paired else []), *([vlm] if vlm.exists() else []), *started]
        checkpoint = Checkpoint(f"train-{arm}", {**groups, "spec": spec}, inputs=inputs, root=profile / ".run" / "scratch")
        print(f"arm {arm}: trains {', '.join(spec['trains'])} on {len(corpus.train)} photos", file=sys.stderr)
        trainer = train_arm(
            arm, spec, photos=list(corpus.train.values()), tasks=tasks, models=models, vlm=vlm, out=folder,
            paired=read_training_pairs(profile / paired, tasks) if paired else None, checkpoint=checkpoint, **groups,
        )  # fmt: skip
        about = {**groups, "arm": arm, "spec": spec, "seconds": trainer.seconds, "log": trainer.rows}
        write_atomically(folder / "training.json", (json.dumps(about, indent=1) + "\n").encode())
        folders.append(folder)
    return folders
