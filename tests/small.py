# SPDX-License-Identifier: Apache-2.0
"""The parameters of studies that are small enough to train in a test."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llicm.parameters import Parameters, read, validate

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ROOT / "profiles/smoke/params.yaml"
CODEC = {"name": "mean-scale", "N": 8, "M": 12, "lambdas": [0.002, 0.007, 0.02, 0.07]}
DIRECT = {"name": "direct", "width": 8, "blocks": [1, 1, 1]}
IRSDE = {
    "name": "irsde", "nf": 4, "ch_mult": [1, 2], "half": True, "heads": 1, "shrinkage": True, "scaling": "balanced",
    "predicts": "x0", "steps": 2, "mode": "posterior", "memory": None,
}  # fmt: skip


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
