# SPDX-License-Identifier: Apache-2.0
"""The vision-language model of the study: trained here, published, or released."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from torch import Tensor

from llicm.data.photo import Photo
from llicm.model import load_model
from llicm.pipeline.stage import Stage
from llicm.vlm.conditioner import Conditioner, save_conditioner
from llicm.vlm.mini import train_mini, with_judge
from llicm.vlm.pretrained import load_vlm


def make_conditioner(
    stage: Stage, photos: Mapping[str, Tensor | Photo], codec: Any
) -> tuple[Conditioner, list[dict]]:  # fmt: skip
    """The conditioner that `vlm` describes, written to artifacts/models/vlm, and the log of its training (may be []).

    Args:
        photos: clean training photos (3, H, W) by name. codec: through which the controller sees its crops.

    Raises:
        UserError: released weights are missing or do not fit.
    """
    p = stage.parameters
    published = stage.init / "llicm.safetensors"
    rows: list[dict] = []
    if p.vlm.name != "mini":
        model = load_vlm(p.vlm.name, p.vlm.pretrained or "", p.vlm.folder or "weights")
        conditioner = Conditioner(model, p.vlm.view)
    elif published.is_file():
        conditioner = load_model(published).conditioner
    else:
        settings: dict[str, Any] = p.vlm.model_dump(include={"mini", "steps", "batch", "lr", "severity", "mixed"})
        data = p.data.model_dump()
        determined = {"seed": p.seed, "tasks": p.tasks, "data": data, "vlm": settings}
        inputs = [stage.folder / p.photos, stage.input(f"artifacts/models/{p.vlm.codec}")]
        model, rows = train_mini(
            dict(photos), p.tasks, **settings, data=data, codec=codec, seed=p.seed, checkpoint_every=100,
            checkpoint=stage.checkpoint(determined, inputs),
        )  # fmt: skip
        conditioner = with_judge(
            Conditioner(model, p.vlm.view), list(photos.values()), p.tasks, data=data, severity=p.vlm.severity,
            codec=codec, seed=p.seed + 1, batches=max(p.vlm.steps[1] // 40, 2),
        )  # fmt: skip
    save_conditioner(conditioner, stage.output("artifacts/models/vlm"))
    return conditioner, rows


def training_log(rows: Sequence[dict]) -> pd.DataFrame:
    """The log of `train_mini` as a table."""
    return pd.DataFrame(rows, columns=["phase", "step", "content", "degradation", "accuracy"])
