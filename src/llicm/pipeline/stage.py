# SPDX-License-Identifier: Apache-2.0
"""What a notebook works with: the parameters of its stage, where its inputs are, and where its outputs go.

In the pipeline a stage reads and writes below the folder of its dvc.yaml. Opened by hand, a notebook sees the same
parameters and reads the same study, but writes below `.run/interactive/` only, so that exploring changes no result.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llicm.errors import UserError
from llicm.parameters import Parameters, load, part_of
from llicm.pipeline.checkpoint import Checkpoint

ROOT = Path(__file__).resolve().parents[3]
"""Folder of the repository; not $DVC_ROOT, which names another one in `dvc exp run --temp`."""


class Stage:
    """A stage of the pipeline.

    Attributes:
        name: as in dvc.yaml, e.g. ``train@llicm``. item: what is behind the @, or "".
        parameters: those that the stage declares; by hand, all of the study.
        folder: of the study. out: folder that its outputs go to, the same in the pipeline.
    """

    def __init__(self, name: str, parameters: Parameters, folder: str | os.PathLike = ".", out: Path | None = None):
        self.name, self.parameters = name, parameters
        self.item = name.partition("@")[2]
        self.folder = Path(folder)
        self.out = self.folder if out is None else out

    def input(self, path: str | os.PathLike) -> Path:
        """A file or folder of the study, such as ``artifacts/models``.

        Raises:
            UserError: it is not there.
        """
        found = self.folder / path
        if not found.exists():
            raise UserError(f"{found}: missing; make it with `dvc repro`, or get it with `dvc pull`")
        return found

    def output(self, path: str | os.PathLike) -> Path:
        """Where to write a file or folder, such as ``results/vlm``; the folder around it is made."""
        place = self.out / path
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    @property
    def init(self) -> Path:
        """Folder of the weights that take the place of pretraining; it may be empty."""
        return ROOT / "init" / self.parameters.init

    @property
    def scratch(self) -> Path:
        """Folder of what may be made again at any time."""
        return self.out / ".run" / "scratch"

    def checkpoint(self, settings: Any, inputs: Iterable[str | os.PathLike] = ()) -> Checkpoint:
        """The resumable state of this stage.

        Args:
            settings: all parameters that determine the result. inputs: files and folders that do.
        """
        name = self.name.replace("@", "-")
        return Checkpoint(name, settings, inputs=[p for p in inputs if Path(p).exists()], root=self.scratch)


def open_stage(
    name: str, parameters: Mapping[str, Any] | None = None, profile: str | os.PathLike | None = None
) -> Stage:  # fmt: skip
    """The stage that a notebook is, in the pipeline and by hand.

    Args:
        name: of the stage. parameters: as the pipeline injects them; None by hand.
        profile: folder with a params.yaml, relative to the repository, for use by hand; by default that of
            $LLICM_PROFILE, or ".", the default study.
    """
    if parameters is not None:
        return Stage(name, part_of(parameters))
    os.chdir(ROOT / (profile or os.environ.get("LLICM_PROFILE") or "."))  # Jupyter starts a kernel in notebooks/
    out = Path(".run") / "interactive"
    print(f"opened by hand: reads {Path.cwd()}, writes below {out}")
    return Stage(name, load("params.yaml"), ".", out)
