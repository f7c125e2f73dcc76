# SPDX-License-Identifier: Apache-2.0
"""A whole LL-ICM in one file: codec, restorer, prefilter and guide, as the command line uses it.

The guide comes without its text tower, nine tenths of a small model's weights; the embeddings of the degradation words
and of all pairs of them take its place.
"""

import itertools
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from llicm.errors import UserError
from llicm.files import write_atomically
from llicm.framework import LLICM, make_part
from llicm.weights import halve, pack, unpack
from llicm.vlm.clip import WORDS, degradation_text
from llicm.vlm.daclip import make_daclip
from llicm.vlm.conditioner import Conditioner

__all__ = ["DEFAULT_MODEL", "PUBLISHED_MODEL", "default_model", "load_model", "save_model"]

DEFAULT_MODEL = Path("artifacts/release/llicm.safetensors")  # of a study, made by its pipeline
PUBLISHED_MODEL = Path("init/published/llicm.safetensors")
_FORMAT = 2
_PARTS = ("codec", "restorer", "prefilter")
_VISION = ("clip.visual.", "clip.logit_scale", "controller.", "logit_scale")


def default_model() -> Path:
    """The published model: below the working folder, or else in the repository of this package."""
    roots = (Path.cwd(), Path(__file__).resolve().parents[2])
    return next((path for root in roots if (path := root / PUBLISHED_MODEL).is_file()), roots[1] / PUBLISHED_MODEL)


def save_model(system: LLICM, path: str | Path) -> None:
    """Write the parts of a system, each of which may be absent, as one safetensors file, atomically, with stable bytes.

    Codec and restorers are packed as `llicm.framework.save_part` does; the guide is in half precision.

    Raises:
        ValueError: the guide is an oracle; no file could hold what it knows.
    """
    state, config = {}, {"format": _FORMAT}
    for kind in _PARTS:
        part = getattr(system, kind)
        config[kind] = None if part is None else part.config
        if part is not None:
            state |= {f"{kind}.{name}": value for name, value in pack(part).items()}
    config["guide"] = None
    if system.conditioner is not None:
        if not isinstance(system.conditioner, Conditioner):
            raise ValueError("only a guide that looks at images can be saved")
        texts = [degradation_text(pair) for pair in itertools.combinations_with_replacement(WORDS, 2)]
        model = system.conditioner.model
        config["guide"] = {"view": system.conditioner.view, "clip": model.clip_config, "words": texts}
        state |= {
            f"guide.{name}": v for name, v in halve(model, model.state_dict()).items() if name.startswith(_VISION)
        }
        state["guide.words"] = system.conditioner.text(texts)
    state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    write_atomically(path, save(state, metadata={"config": json.dumps(config, sort_keys=True)}))


def load_model(path: str | Path | None = None) -> LLICM:
    """Read what `save_model` wrote, in eval mode.

    Args:
        path: the file; None for the published model.

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
        with safe_open(path, "pt") as file:
            config = json.loads((file.metadata() or {})["config"])
            if config["format"] != _FORMAT:
                raise UserError(f"{path}: a model of format {config['format']}, but this program reads {_FORMAT}")
            state = unpack({name: file.get_tensor(name) for name in file.keys()})
        parts = {
            kind: make_part(kind, config[kind], _below(state, f"{kind}.")) if config[kind] else None for kind in _PARTS
        }
        conditioner = _guide(config["guide"], _below(state, "guide.")) if config["guide"] else None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: not a model of this project ({reason}); get it again with `make model`") from None
    return LLICM(parts["codec"], parts["restorer"], conditioner, parts["prefilter"]).eval()


def _guide(config: dict, state: dict[str, torch.Tensor]) -> Conditioner:
    vocabulary = dict(zip(config["words"], state.pop("words"), strict=True))
    with torch.random.fork_rng(devices=[]):
        model = make_daclip(config["clip"])
    faults = model.load_state_dict(state, strict=False)
    missing = [name for name in faults.missing_keys if name.startswith(_VISION)]
    if missing or faults.unexpected_keys:
        raise ValueError(f"the guide's weights do not fit: {[*missing, *faults.unexpected_keys][0]}")
    return Conditioner(model.eval(), config["view"], vocabulary)


def _below(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
