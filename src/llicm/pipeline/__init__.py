# SPDX-License-Identifier: Apache-2.0
"""The study as a pipeline: notebook runner, parameter check, code-only notebooks, resumable checkpoints."""

import os
from pathlib import Path

__all__ = ["ROOT", "Path", "Scratch", "enter"]

ROOT = Path(__file__).resolve().parents[3]
"""Folder of the repository; not $DVC_ROOT, which names another one in `dvc exp run --temp`."""


def __getattr__(name: str):
    if name == "Scratch":  # imported on demand: it needs torch, the rest of `study` does not
        from llicm.pipeline.checkpoint import Checkpoint

        return Checkpoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def enter(profile: str | os.PathLike = ".") -> Path:
    """Go to the folder of a profile when a notebook is opened by hand; returns the folder in use.

    Jupyter starts a kernel in `notebooks/`, the pipeline in the folder of the profile's dvc.yaml. In a
    pipeline run (DVC sets $DVC_STAGE) this does nothing.

    Args:
        profile: folder with a params.yaml, relative to the repository; "." is the default study.
    """
    if "DVC_STAGE" not in os.environ:
        os.chdir(ROOT / profile)
    return Path.cwd()
