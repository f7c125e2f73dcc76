# SPDX-License-Identifier: Apache-2.0
"""Released weights of the universal restorer (`universal-ir.pth` of DA-CLIP), read safely and strictly.

Their names are those of `ConditionalUNet`; a training checkpoint around them and the prefix of distributed training
are taken off, and nothing is unpickled but tensors (see `llicm.vlm.checkpoint.read_checkpoint`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llicm.restore.irsde import IRSDERestorer
from llicm.vlm.checkpoint import check_layout, read_checkpoint, write_checkpoint

# ViT-B/32's embeddings; all else are the restorer's defaults.
UNIVERSAL_IR: dict[str, Any] = {"context": {"degradation": 512, "content": 512}}


def irsde_from_state(state: Mapping[str, Tensor], source: str | Path = "state dict", **config: Any) -> IRSDERestorer:
    """The restorer from a state dict of its network in the published layout, in eval mode. Values become float32.

    Args:
        state: as `read_checkpoint` returns it.
        source: what messages call the state dict.
        config: arguments of `IRSDERestorer` other than those of the universal restorer, e.g. steps.

    Raises:
        UserError: a name or shape does not fit; the message begins with `source`.
    """
    with torch.device("meta"):  # no memory and no random numbers for weights that are about to be replaced
        restorer = IRSDERestorer(**(UNIVERSAL_IR | config))
    check_layout(state, {name: value.shape for name, value in restorer.unet.state_dict().items()}, source)
    own = {f"unet.{name}": value.float().clone() for name, value in state.items()}
    own["level.weight"] = torch.zeros(restorer.level.weight.shape)
    restorer.load_state_dict(own, assign=True)
    return restorer.requires_grad_(True).eval()


def load_universal_ir(path: str | Path, **config: Any) -> IRSDERestorer:
    """The released restorer from its file, in eval mode.

    Args:
        path: universal-ir.pth, or the same as safetensors.
        config: as for `irsde_from_state`.

    Raises:
        UserError: the file is missing, cannot be read safely, or its weights do not fit.
    """
    return irsde_from_state(read_checkpoint(path), path, **config)


def convert_universal_ir(source: str | Path, target: str | Path, **config: Any) -> None:
    """Write released weights as a restorer of this project, in full precision, for `llicm.weights.load_part`.

    Args:
        source: universal-ir.pth.
        target: the file to write, with the suffix .safetensors.
        config: as for `irsde_from_state`; it is written along.

    Raises:
        UserError: see `load_universal_ir`; or the target has another suffix or cannot be written.
    """
    restorer = load_universal_ir(source, **config)
    write_checkpoint(target, restorer.state_dict(), restorer.config)
