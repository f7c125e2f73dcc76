# SPDX-License-Identifier: Apache-2.0
"""The parameters of studies that are small enough to train in a test."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llicm.codec.learned import LearnedCodec
from llicm.objectives import bits_per_pixel
from llicm.parameters import Parameters, read, validate
from llicm.registry import CODECS
from llicm.vlm.judge import Judge

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ROOT / "profiles/smoke/params.yaml"
CODEC = {"name": "mean-scale", "N": 8, "M": 12, "lambdas": [0.002, 0.007, 0.02, 0.07]}
DIRECT = {"name": "direct", "width": 8, "blocks": [1, 1, 1]}
IRSDE = {
    "name": "irsde", "nf": 4, "ch_mult": [1, 2], "half": True, "heads": 1, "shrinkage": True, "scaling": "balanced",
    "predicts": "x0", "steps": 2, "mode": "posterior", "memory": None,
}  # fmt: skip


def small_codec() -> LearnedCodec:
    """An untrained codec, always the same, that can code."""
    torch.manual_seed(0)
    codec = CODECS.make(**CODEC)
    codec.update()
    return codec


def always(wrong: float, tonal: float = 1.0, width: int = 16) -> Judge:
    """A judge to whom something is wrong with every picture with that probability, and with its tones."""
    judge = Judge(width, [True])
    torch.nn.init.zeros_(judge.layers[-1].weight)
    judge.layers[-1].bias.data = torch.tensor([0.0, torch.tensor(wrong).logit()])
    judge.sums[0, 1] = tonal / max(wrong, 1e-9)
    return judge.eval()


def start(**files: str) -> dict[str, str]:
    """What a model starts from: the given weight files, and no others."""
    return {"codec": "none", "restorer": "none", "prefilter": "none", "vlm": "none", **files}


def study(models: Mapping[str, dict], objectives: Mapping[str, dict], **changes: Any) -> Parameters:
    """Those of the smoke profile with other models and losses; a group in `changes` replaces entries of that group."""
    values = read(SMOKE)
    raw = {"models": ["none", "none", "none"], "methods": ["raw"], "levels": [0]}
    values |= {"models": dict(models), "objectives": dict(objectives), "benchmark": {"raw": raw}}
    values["release"]["model"] = next(iter(models))
    values["figures"] |= {"test": "raw", "comparisons": {}, "curves": [], "anchors": [], "decoded": "raw"}
    for name, value in changes.items():
        values[name] = values[name] | value if isinstance(value, dict) else value
    return validate(values)


def train_codec(codec: LearnedCodec, batches: Iterable[tuple[Tensor, Tensor]]) -> list[float]:
    """An update of the codec for each batch, pictures (N, 3, H, W) and their levels (N,), by rate and distortion; it is
    ready to code then. The losses before each update."""
    optimizer = torch.optim.Adam([p for n, p in codec.named_parameters() if not n.endswith("quantiles")], lr=2e-3)
    losses = []
    for x, level in batches:
        out = codec.train()(x, level)
        mse = 255**2 * (out["x_hat"] - x).square().mean((1, 2, 3))
        loss = (codec.lambdas(level) * mse + bits_per_pixel(out["likelihoods"], *x.shape[2:])).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    codec.update()
    codec.eval()
    return losses
