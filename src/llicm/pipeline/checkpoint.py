# SPDX-License-Identifier: Apache-2.0
"""Resumable training state, kept outside the pipeline's outputs.

DVC deletes a stage's outputs before it runs, and its `persist: true` would let an old state leak into a new
result. So checkpoints live in `.run/scratch/`, under a name that is a hash of everything that determines the
result: a changed parameter, input or line of code simply never finds the old state.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from llicm.files import write_atomically

_PACKAGE = Path(__file__).resolve().parents[1]
_IDLE = {"pipeline", "provenance", "report", "cli"}
_SKIP = {"__pycache__", ".ipynb_checkpoints"}
_KEPT = 14 * 86400  # seconds after which a checkpoint that was not written again is deleted


class Checkpoint:
    """The checkpoint of one training run.

    A resumed run must end in the same bytes as an uninterrupted one: the state handed to `save` holds
    everything that changes between steps, and random numbers are derived from (seed, step), never from a
    global generator.

    Args:
        name: of the run, for the file name.
        params: all parameters that determine the result (anything JSON can hold).
        inputs: files and folders that determine it, apart from the code. In a pipeline run the inputs that the
            stage declares are included anyway (the runner passes their hash in $LLICM_INPUTS).
        code: files and folders of code; by default this package without the rooms that decide no result.
        root: folder of the checkpoints, relative to the profile's folder.
    """

    def __init__(
        self,
        name: str,
        params: dict | list,
        inputs: Iterable[str | os.PathLike] = (),
        code: Iterable[str | os.PathLike] | None = None,
        root: str | os.PathLike = ".run/scratch",
    ):
        if code is None:
            code = [p for p in sorted(_PACKAGE.iterdir()) if p.name not in _IDLE]
        digest = hashlib.sha256(json.dumps(params, sort_keys=True).encode())
        # the number of threads and the device change the order of sums, so also the bytes
        digest.update(f"{torch.__version__} {torch.get_num_threads()} {torch.cuda.is_available()}".encode())
        digest.update(os.environ.get("LLICM_INPUTS", "").encode())
        for kind, paths in (("input", inputs), ("code", code)):
            for number, path in enumerate(paths):
                for relative, file in _files(Path(path)):
                    digest.update(f"\0{kind} {number} {relative} ".encode())
                    digest.update(hashlib.sha256(file.read_bytes()).digest())
        self.path = Path(root) / f"{name}-{digest.hexdigest()[:16]}.pt"
        self._prune()

    @property
    def folder(self) -> Path:
        """A folder in place of one file, for what is kept piece by piece; `done` removes it."""
        return self.path.with_suffix("")

    def load(self) -> dict | None:
        """The state saved last, or None; nothing but tensors and plain values is ever unpickled."""
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch names no common type for a damaged archive
            print(f"{self.path}: unreadable checkpoint ({type(error).__name__}), starting anew", file=sys.stderr)
            return None
        print(f"resuming from {self.path}", file=sys.stderr)
        return state

    def save(self, state: dict) -> None:
        """Replace the checkpoint, so that a crash at any moment leaves the old one or the new one whole.

        A checkpoint that cannot be written ends the training. To go on would be to lose everything when the weights,
        a third of its size, do not fit either; to stop loses what was done since the last checkpoint, which is kept.

        Raises:
            DiskFullError: there is no room for it.
        """
        buffer = io.BytesIO()  # torch tells nothing of why it could not write to a file
        torch.save(state, buffer)
        write_atomically(self.path, buffer.getvalue(), durable=True)

    def done(self) -> None:
        """Forget the checkpoint: the result is written."""
        self.path.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _prune(self) -> None:
        oldest = time.time() - _KEPT
        for path in self.path.parent.glob("*"):
            with contextlib.suppress(FileNotFoundError):  # another stage may prune, too
                if path in (self.path, self.folder) or path.stat().st_mtime >= oldest:
                    continue
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()


def _files(path: Path) -> list[tuple[str, Path]]:
    if not path.is_dir():
        return [(path.name, path)]
    found = (f for f in path.rglob("*") if f.is_file() and not _SKIP & set(f.relative_to(path).parts))
    return sorted((f.relative_to(path).as_posix(), f) for f in found)
