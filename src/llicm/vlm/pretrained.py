# SPDX-License-Identifier: Apache-2.0
"""Released models by name, from weight files in a folder. Nothing is ever downloaded: a missing file is named instead.

`load_vlm("ViT-B-32", "laion2b_s34b_b79k", folder)` is CLIP with an untrained controller, ready to train;
`load_vlm("ViT-B-32", "daclip", folder)` is the released DA-CLIP.
"""

from pathlib import Path

import open_clip

from llicm.errors import UserError
from llicm.vlm.checkpoint import clip_from_state, daclip_from_state, load_daclip, read_checkpoint, read_config
from llicm.vlm.clip import model_config
from llicm.vlm.daclip import DACLIP

__all__ = ["DACLIP_REPOSITORY", "DACLIP_WEIGHTS", "load_vlm", "places_of"]

DACLIP_REPOSITORY = "weblzw/daclip-uir-ViT-B-32-irsde"
# (model, tag) -> name of the released file; one converted by `llicm vlm convert` under the same name goes first.
DACLIP_WEIGHTS = {
    ("ViT-B-32", "daclip"): "daclip_ViT-B-32.pt",
    ("ViT-B-32", "daclip_mix"): "daclip_ViT-B-32_mix.pt",
    ("ViT-L-14", "wild-daclip"): "wild-daclip_ViT-L-14.pt",
}
CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
# What `llicm.vlm.clip.preprocess` does; weights that want something else would silently work badly.
PREPROCESSING = {
    "mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD, "interpolation": "bicubic",
    "resize_mode": "shortest",
}  # fmt: skip


def _source(name: str, pretrained: str, config: dict) -> tuple[str, str, tuple[str, ...]]:
    """Of a released model: the hub repository, the file to get there, and the names to look for, best first."""
    if released := DACLIP_WEIGHTS.get((name, pretrained)):
        return DACLIP_REPOSITORY, released, (str(Path(released).with_suffix(".safetensors")), released)
    known = open_clip.get_pretrained_cfg(name, pretrained)
    if not known.get("hf_hub"):
        tags = [tag for model, tag in DACLIP_WEIGHTS if model == name] + open_clip.list_pretrained_tags_by_model(name)
        raise UserError(
            f"no released weights '{pretrained}' of {name} are known; choose one of "
            f"{', '.join(tags) or 'another model'}, or name a file ({', '.join(SUFFIXES)})"
        )
    if known.get("quick_gelu", False) != config.get("quick_gelu", False):
        other = f"{name}-quickgelu" if known.get("quick_gelu") else name.removesuffix("-quickgelu")
        raise UserError(f"the weights '{pretrained}' were trained with another activation; name the model {other}")
    if any(known.get(key, value) != value for key, value in PREPROCESSING.items()):
        raise UserError(f"the weights '{pretrained}' of {name} need another preprocessing than CLIP's")
    owner, repository, file = (known["hf_hub"] + "/").split("/", 3)[:3]
    files = (file,) if file else CLIP_FILES
    return f"{owner}/{repository}", files[0], files


def _load(path: Path, config: dict) -> DACLIP:
    """Whatever the file holds: DA-CLIP as this project or its authors write it, or a plain CLIP."""
    own = read_config(path)
    if own is not None:
        if own != config:
            raise UserError(f"{path}: holds another model than the one that is named")
        return load_daclip(path)
    state = read_checkpoint(path)
    published = any(name.startswith("visual_control.") for name in state)
    return (daclip_from_state if published else clip_from_state)(state, config, path)


def places_of(name: str, pretrained: str, folder: str | Path) -> tuple[list[Path], str]:
    """Where a model's weight file may be, best first, the last being where to put it; and its hub repository, "" for a
    file that `pretrained` names.

    Args, Raises: as `load_vlm`, but for what is in the file.
    """
    folder = Path(folder)
    if pretrained.endswith(SUFFIXES):
        return [folder / pretrained], ""
    repository, wanted, files = _source(name.removeprefix("daclip_"), pretrained, model_config(name))
    found = [place / file for place in (folder / repository.split("/")[1], folder) for file in files]
    return [*found, folder / wanted], repository


def load_vlm(name: str, pretrained: str, folder: str | Path) -> DACLIP:
    """A DA-CLIP by name, from a weight file in `folder`, on the CPU in eval mode.

    Args:
        name: as for `llicm.vlm.clip.model_config`, e.g. "ViT-B-32".
        pretrained: a tag of released weights: one of DA-CLIP's (see `DACLIP_WEIGHTS`), or one of open_clip's, which
            gives CLIP with an untrained controller. Or the name of a weight file in `folder`.
        folder: holds the weight file, directly or in a folder named like its hub repository (without the owner).

    Raises:
        UserError: no such model or weights; the file is absent (the message names the file, where to get it and where
            to put it), cannot be read, or does not fit the model.
    """
    config = model_config(name)
    places, source = places_of(name, pretrained, folder)
    for path in places:
        if path.is_file():
            return _load(path, config)
    if len(places) == 1:  # which says that it is not there
        return _load(places[0], config)
    raise UserError(
        f"the weights '{pretrained}' of {name} are not in {folder}: get {places[-1].name} from the Hugging Face "
        f"repository {source} and put it there"
    )
