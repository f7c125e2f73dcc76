# SPDX-License-Identifier: Apache-2.0
"""Read released CLIP and DA-CLIP checkpoints safely, and keep DA-CLIP as one safetensors file with its configuration.

The released DA-CLIP file is a training checkpoint, most of it optimizer state. `convert` reads it once, with strict
names and shapes, and writes what a model needs. Nothing from outside is unpickled beyond tensors, plain containers and
the one kind of numpy number in that optimizer state (`torch.load(weights_only=True)`).

Names in the published layout and here:
    clip.*                                        the same
    visual.*                                      left out: a second name of clip.visual.*
    visual_control.transformer.transformer.*      controller.tower.transformer.*
    visual_control.transformer.zero_modules.*     controller.zero.*
    visual_control.*                              controller.tower.*
    logit_scale                                   the same
"""

import _codecs
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from llicm import weights
from llicm.errors import UserError
from llicm.vlm.clip import make_clip, model_config
from llicm.vlm.daclip import DACLIP, make_daclip

T = TypeVar("T")
# Own prefix -> published prefix; the first that fits counts.
_PREFIXES = {
    "controller.tower.transformer.": "visual_control.transformer.transformer.",
    "controller.tower.": "visual_control.",
    "controller.zero.": "visual_control.transformer.zero_modules.",
}


def _allowed_globals() -> list:
    """What a float64 of numpy, left in the optimizer state by a learning-rate schedule, is pickled with.

    numpy 2 moved its function `scalar`, so both of its names are given.
    """
    scalar = np.float64().__reduce__()[0]
    names = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]
    return [*((scalar, name) for name in names), np.dtype, type(np.dtype("float64")), _codecs.encode]


def _load_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_allowed_globals()):
            # Mapped where the format allows it: of 1.7 GB only the weights are then read.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # foreign bytes make the unpickler fail with almost any type of error
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            reason = f"it needs the Python object {found[1]}, which is not allowed"
        else:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"{path}: not a checkpoint that can be read safely: {reason}") from None


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file: safetensors, or a pickle of torch, with the names as they are in the file.

    A pickle may hold the state dict bare or in a training checkpoint under `state_dict`. If all names begin with
    `module.` (from distributed training), that is stripped.

    Returns:
        Name to tensor, on the CPU; the tensors may be mapped from the file.

    Raises:
        UserError: the file is missing, cannot be read safely, holds no state dict, or one with NaN or infinite values.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file of weights; check the path")
    state: Any
    if path.suffix == ".safetensors":
        try:
            state = load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a safetensors file ({error})") from None
    else:
        state = _load_pickle(path)
        if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
            state = state["state_dict"]
    found = isinstance(state, Mapping) and bool(state)
    if not found or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise UserError(f"{path}: holds no state dict (names and tensors, bare or under 'state_dict')")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return weights.check_weights(dict(state), path)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def check_layout(state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], source: str | Path) -> None:
    """Check that a state dict has exactly these names and shapes, and floating-point values.

    Args:
        source: what the message calls the state dict.

    Raises:
        UserError: it has not; the one message names what is missing, unexpected and of the wrong shape.
    """
    faults = {
        "missing": [name for name in shapes if name not in state],
        "unexpected": [name for name in state if name not in shapes],
        "of the wrong shape": [
            f"{name} {list(state[name].shape)} instead of {list(shape)}"
            for name, shape in shapes.items()
            if name in state and state[name].shape != shape
        ],
        "not floating-point": [n for n in shapes if n in state and not state[n].is_floating_point()],
    }
    if found := [f"{kind}: {_some(names)}" for kind, names in faults.items() if names]:
        raise UserError(f"{source}: these weights do not fit the model ({'; '.join(found)})")


def official_names(model: DACLIP) -> dict[str, str]:
    """Names in DA-CLIP's published layout to names in `model.state_dict()`; without the duplicates `visual.*`."""
    names = {}
    for own in model.state_dict():
        prefix = next((prefix for prefix in _PREFIXES if own.startswith(prefix)), "")
        names[_PREFIXES.get(prefix, "") + own[len(prefix) :]] = own
    return names


def _drop_aliases(state: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """Without `visual.*`, which DA-CLIP's checkpoints hold as a second name of `clip.visual.*`."""
    kept = dict(state)
    for name in [name for name in state if name.startswith("visual.")]:
        original = state.get(f"clip.{name}")
        if original is not None and torch.equal(original, state[name]):
            del kept[name]
        elif original is not None:
            raise UserError(f"{source}: {name} differs from clip.{name}, of which it should be a copy")
    return kept


def _own_state(state: Mapping[str, Tensor], model: DACLIP, source: str | Path) -> dict[str, Tensor]:
    """Published names to own names, after all checks."""
    state, names, own = _drop_aliases(state, source), official_names(model), model.state_dict()
    check_layout(state, {name: own[target].shape for name, target in names.items()}, source)
    return {target: state[name] for name, target in names.items()}


def without_drawing(make: Callable[[dict], T], config: dict) -> T:
    """Make a model whose weights are about to be replaced, without drawing from the caller's random numbers."""
    with torch.random.fork_rng(devices=[]):
        return make(config)


def daclip_from_state(state: Mapping[str, Tensor], config: dict, source: str | Path = "state dict") -> DACLIP:
    """DA-CLIP from a state dict in the published layout, with or without the duplicates `visual.*`, in eval mode.

    CLIP is frozen (the published code leaves it trainable when it reads a checkpoint). Values become float32.

    Args:
        state: as `read_checkpoint` returns it.
        config: open_clip configuration of the model (see `llicm.vlm.clip.model_config`).
        source: what messages call the state dict.

    Raises:
        UserError: a name or shape does not fit, or a duplicate differs.
    """
    model = without_drawing(make_daclip, config)
    model.load_state_dict(_own_state(state, model, source))
    return model.eval()


def clip_from_state(state: Mapping[str, Tensor], config: dict, source: str | Path = "state dict") -> DACLIP:
    """DA-CLIP with an untrained controller from the state dict of a plain CLIP, in eval mode.

    Args, Raises: as `daclip_from_state`, for open_clip's layout.
    """
    clip = without_drawing(make_clip, config)
    check_layout(state, {name: value.shape for name, value in clip.state_dict().items()}, source)
    clip.load_state_dict(state)
    return without_drawing(lambda config: DACLIP(clip, config), config).eval()


def write_checkpoint(target: str | Path, state: Mapping[str, Tensor], config: dict) -> None:
    """Write weights where the user says, as `llicm.weights.write` does.

    Raises:
        UserError: the target has another suffix than .safetensors, or cannot be written.
    """
    if Path(target).suffix != ".safetensors":
        raise UserError(f"{target}: the file to write must have the suffix .safetensors")
    try:
        # Copies, for safetensors refuses tensors that share memory.
        weights.write(target, {name: value.detach().clone() for name, value in state.items()}, config)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error})") from None


def save_daclip(model: DACLIP, path: str | Path) -> None:
    """Write DA-CLIP with its configuration. Raises: as `write_checkpoint`."""
    write_checkpoint(path, model.state_dict(), model.config)


def read_config(path: str | Path) -> dict | None:
    """The open_clip configuration in a file written by `save_daclip` or `convert`; None if it is no such file."""
    try:
        _, config = weights.read(path)
        return config["clip"] if config["name"] == "daclip" else None
    except (UserError, KeyError, TypeError):
        return None


def load_daclip(path: str | Path) -> DACLIP:
    """Read DA-CLIP from a file written by `save_daclip` or `convert`, in eval mode.

    Raises:
        UserError: the file is missing, is none of these, or its weights do not fit its configuration.
    """
    state, config = read_checkpoint(path), read_config(path)
    if config is None:
        raise UserError(f"{path}: no DA-CLIP of this project; make it with `llicm vlm convert`")
    model = without_drawing(make_daclip, config)
    check_layout(state, {name: value.shape for name, value in model.state_dict().items()}, path)
    model.load_state_dict(state)
    return model.eval()


def convert(source: str | Path, target: str | Path, model: str = "ViT-B-32") -> None:
    """Convert a released DA-CLIP checkpoint to safetensors with its configuration; number formats are kept.

    Args:
        source: e.g. daclip_ViT-B-32.pt.
        target: the file to write, with the suffix .safetensors.
        model: what `source` holds, a name or file as `llicm.vlm.clip.model_config` takes it.

    Raises:
        UserError: see `read_checkpoint`, `check_layout`, `model_config`; or the target has another suffix or cannot be
            written.
    """
    state, config = read_checkpoint(source), model_config(model)
    with torch.device("meta"):  # for the layout alone: no memory, no random numbers
        layout = make_daclip(config)
    write_checkpoint(target, _own_state(state, layout, source), layout.config)
