# SPDX-License-Identifier: Apache-2.0
"""`shares.py OUT PHOTO CODEC`: train codec and restorer for four updates of two shares, in however many processes there
are, and keep the last checkpoint: weights as they are in training, and the log."""

import json
import sys
from pathlib import Path

import torch
from small import DIRECT, start, study

from llicm.images import read_image
from llicm.training.models import train_model

RPO = {"alpha": 1.0, "beta": 1.0, "gamma": 0.5, "distortion": {"mse": 1.0}, "perception": {"log_mse": 1.0}}


def joint(codec: dict, updates: int = 4, **training):
    """Parameters of a study with one model, codec and restorer trained together."""
    model = {"trains": ["codec", "restorer"], "objective": "rpo", "codec": codec, "restorer": DIRECT, "start": start()}
    training = {
        "batch": 4, "crop": 64, "pretraining": 2, "fine_tuning": updates - 2, "warmup": 1, "log_every": 2,
        "checkpoint_every": 2, "accumulate": 2, "precision": "fp32",
    } | training  # fmt: skip
    return study({"both": model}, {"rpo": RPO}, tasks=["noisy", "hazy"], training=training, photos="photos")


class Keep:
    def __init__(self, path: Path):
        self.path = path

    def load(self) -> None:
        return None

    def save(self, state: dict) -> None:
        torch.save(state, self.path)

    def done(self) -> None:
        pass


if __name__ == "__main__":
    out = Path(sys.argv[1])
    train_model(
        "both", joint(json.loads(sys.argv[3])), photos=[read_image(sys.argv[2])], paired=None, models=out, out=out,
        checkpoint=Keep(out.with_suffix(".pt")),
    )  # fmt: skip
