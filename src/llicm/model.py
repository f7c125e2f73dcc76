# SPDX-License-Identifier: Apache-2.0
"""A whole LL-ICM in one file: codec, restorer, prefilter and conditioner, as the command line uses it.

The conditioner comes without its text tower, nine tenths of a small model's weights; the embeddings of the degradation
words and of all pairs of them take its place.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from llicm.errors import UserError
from llicm.framework import LLICM
from llicm.vlm.conditioner import Conditioner, conditioner_from, conditioner_state
from llicm.weights import make_part, pack, read, write

DEFAULT_MODEL = Path("artifacts/release/llicm.safetensors")  # of a study, made by its pipeline
PUBLISHED_MODEL = Path("init/context/llicm.safetensors")
_FORMAT = 3
_PARTS = ("codec", "restorer", "prefilter")


def default_model() -> Path:
    """The published model: below the working folder, or else in the repository of this package."""
    roots = (Path.cwd(), Path(__file__).resolve().parents[2])
    return next((path for root in roots if (path := root / PUBLISHED_MODEL).is_file()), roots[1] / PUBLISHED_MODEL)


def save_model(system: LLICM, path: str | Path) -> None:
    """Write the parts of a system, each of which may be absent, as one weight file (see `llicm.weights`).

    Codec and restorers are packed in 8 bits; the conditioner is in half precision. A restorer that is the prefilter too
    is written once.

    Raises:
        ValueError: the conditioner is an oracle; no file could hold what it knows.
    """
    state: dict[str, Tensor] = {}
    config: dict[str, Any] = {"format": _FORMAT, "conditioner": None}
    for kind in _PARTS:
        part = getattr(system, kind)
        if kind == "prefilter" and part is not None and part is system.restorer:
            config[kind] = "restorer"
            continue
        config[kind] = None if part is None else part.config
        if part is not None:
            state |= {f"{kind}.{name}": value for name, value in pack(part).items()}
    if system.conditioner is not None:
        if not isinstance(system.conditioner, Conditioner):
            raise ValueError("only a conditioner that looks at images can be saved")
        tensors, config["conditioner"] = conditioner_state(system.conditioner)
        state |= {f"conditioner.{name}": value for name, value in tensors.items()}
    write(path, state, config)


def load_model(path: str | Path | None = None, coding: bool = False) -> LLICM:
    """Read what `save_model` wrote, in eval mode.

    Args:
        path: the file; None for the published model.
        coding: only what codes: no restorer, and a conditioner only for a prefilter. It is faster to load.

    Raises:
        UserError: the file is missing, is none of these, or is of a later format; the message says how to get it.
    """
    path = default_model() if path is None else Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: no such model. Get the published one with `make model` in the repository (it runs `dvc pull "
            f"{PUBLISHED_MODEL.parent}.dvc`), or name a file with --model, such as {DEFAULT_MODEL}, which `dvc repro` "
            "makes"
        )
    try:
        state, config = read(path)
        if config["format"] == 2:  # of the first edition
            config["conditioner"] = config.pop("guide")
            state = {f"conditioner.{n[6:]}" if n.startswith("guide.") else n: v for n, v in state.items()}
        elif config["format"] != _FORMAT:
            raise UserError(f"{path}: a model of format {config['format']}, but this program reads {_FORMAT}")
        wanted, once = {kind: config[kind] for kind in _PARTS}, config["prefilter"] == "restorer"
        if once:
            wanted["prefilter"] = None
        elif coding:
            wanted["restorer"] = None
        if coding and not config["prefilter"]:
            config["conditioner"] = None
        parts = {
            kind: make_part(kind, given, _below(state, kind), path) if given else None for kind, given in wanted.items()
        }
        if once:
            parts["prefilter"] = parts["restorer"]
        conditioner = None
        if config["conditioner"]:
            conditioner = conditioner_from(_below(state, "conditioner"), config["conditioner"], path)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: not a model of this project ({reason}); get it again with `make model`") from None
    return LLICM(parts["codec"], parts["restorer"], conditioner, parts["prefilter"]).eval()


def _below(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")}
