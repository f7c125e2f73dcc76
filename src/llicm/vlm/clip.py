# SPDX-License-Identifier: Apache-2.0
"""CLIP as upstream `open_clip` builds it: configurations by name, image preprocessing, tokens. Nothing is downloaded.

Source: Radford et al., "Learning transferable visual models from natural language supervision", ICML 2021; Cherti et
al., "Reproducible scaling laws for contrastive language-image learning", CVPR 2023 (open_clip and its weights).
"""

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llicm.degradations import CLEAN, DEGRADATIONS
from llicm.errors import UserError
from llicm.limits import as_pictures

if TYPE_CHECKING:  # else where it is needed: it loads transformers and timm, and compression does without
    import open_clip

__all__ = ["DEGRADATION_WORDS", "WORDS", "degradation_text", "make_clip", "model_config", "preprocess", "tokenize"]

# The words that DA-CLIP's controller was trained with, in its order, bare (no prompt around them).
DEGRADATION_WORDS = tuple(DEGRADATIONS)
WORDS = (*DEGRADATION_WORDS, CLEAN)  # that the mini model learns and a conditioner chooses from
THIN = 16  # times as long as wide
_MAX_WINDOWS = 3  # along a side


def degradation_text(words: Iterable[str]) -> str:
    """The text for one or several of `WORDS`, without repeats and in their order: "low-light, noisy"."""
    return ", ".join(sorted(set(words), key=WORDS.index))


def model_config(name: str) -> dict:
    """The open_clip configuration of that name: a new dict with `embed_dim`, `vision_cfg`, `text_cfg`.

    Args:
        name: a name known to open_clip (e.g. "ViT-B-32"), with or without DA-CLIP's prefix `daclip_`, or the path of
            a JSON file that holds such a configuration.

    Raises:
        UserError: open_clip knows no such name, or the file is missing or no JSON object.
    """
    if str(name).endswith(".json"):
        try:
            config = json.loads(Path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{name}: no readable model configuration ({error})") from None
        if not isinstance(config, dict):
            raise UserError(f"{name}: no model configuration: it must be a JSON object with embed_dim and vision_cfg")
    else:
        import open_clip

        config = open_clip.get_model_config(name.removeprefix("daclip_"))
        if config is None:
            raise UserError(f"open_clip knows no model '{name}'; choose one of open_clip.list_models(), e.g. ViT-B-32")
    # DA-CLIP's published configuration says custom_text, yet its weights have CLIP's built-in text layout.
    config.pop("custom_text", None)
    return config


def make_clip(config: dict) -> "open_clip.CLIP":
    """An open_clip CLIP with random weights, from a configuration as `model_config` returns it.

    Models whose parts come from other libraries (timm, transformers) are refused: to build those may download.

    Raises:
        UserError: the vision tower is no VisionTransformer of open_clip, the text tower is not its own, or a field is
            unknown or missing.
    """
    import open_clip

    vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    if vision.get("timm_model_name") or not isinstance(vision.get("layers", 12), int):
        raise UserError("DA-CLIP needs a model whose vision tower is open_clip's VisionTransformer, such as ViT-B-32")
    if text.get("hf_model_name") or "multimodal_cfg" in config:
        raise UserError("DA-CLIP needs a model with CLIP's own text tower, such as ViT-B-32")
    try:
        return open_clip.CLIP(**config)
    except (TypeError, ValueError, AssertionError, ArithmeticError, RuntimeError) as error:
        raise UserError(f"the model configuration cannot be built: {error}") from None


@functools.lru_cache(maxsize=4)
def _transform(size: tuple[int, int]) -> Callable[[Image.Image], Tensor]:
    import open_clip

    return open_clip.image_transform(size, is_train=False)


def windows(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut an image (3, H, W) into at most 3 x 3 evenly spaced windows of `size`: (K, 3, h, w).

    An image that is smaller along either side is returned whole, (1, 3, H, W).
    """
    if image.shape[1] < size[0] or image.shape[2] < size[1]:
        return image[None]
    corners = []
    for side, part in zip(image.shape[1:], size, strict=True):
        count = min(-(-side // part), _MAX_WINDOWS)
        corners.append([round(i * (side - part) / max(count - 1, 1)) for i in range(count)])
    h, w = size
    return torch.stack([image[:, top : top + h, left : left + w] for top in corners[0] for left in corners[1]])


def preprocess(images: Tensor, size: int | tuple[int, int] = 224) -> Tensor:
    """CLIP's evaluation transform of tensors: shorter side to `size` (bicubic), centre crop, normalise.

    The values are rounded to 8 bits and resized by Pillow, as in CLIP's training and in DA-CLIP: Pillow also rounds
    after each of its two passes, and to be off by one level there would be an error of 0.015 here. Not differentiable.

    Args:
        images: (N, 3, H, W) RGB in [0, 1], any size; values outside are clamped. Of a thin image only the middle is
            looked at, `THIN` times as long as it is thin: the crop would leave less of it anyway.
        size: side of the square, or (height, width), that the model takes (`DACLIP.image_size`).

    Returns:
        (N, 3, size, size) float32 on the same device, less CLIP's mean colour, by its deviation (about -2 to 2.7).

    Raises:
        PictureError: not a batch of RGB images.
    """
    images = as_pictures(images, bounded=False)
    height, width = (size, size) if isinstance(size, int) else size
    for dim in (2, 3):
        if (rest := images.shape[dim] - THIN * min(images.shape[2:])) > 0:
            images = images.narrow(dim, rest // 2, images.shape[dim] - rest)
    pixels = images.detach().clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
    transform = _transform((height, width))
    out = [transform(Image.fromarray(np.ascontiguousarray(image))) for image in pixels.cpu().numpy()]
    return torch.stack(out).to(images.device) if out else images.new_zeros(0, 3, height, width, dtype=torch.float32)


@functools.cache
def _tokenizer() -> "open_clip.SimpleTokenizer":
    import open_clip

    return open_clip.SimpleTokenizer()


def tokenize(texts: Sequence[str], config: dict) -> Tensor:
    """Texts to tokens (len(texts), context_length), int64; a longer text is cut, a shorter one padded with zeros.

    Args:
        config: configuration of the model (see `model_config`).

    Raises:
        UserError: the model does not use CLIP's own vocabulary (one that is inside open_clip).
    """
    text = config.get("text_cfg", {})
    tokenizer = _tokenizer()
    if text.get("hf_tokenizer_name") or text.get("vocab_size", tokenizer.vocab_size) < tokenizer.vocab_size:
        raise UserError("the model's vocabulary is not CLIP's own; give it tokens instead of texts")
    return tokenizer(list(texts), context_length=text.get("context_length", 77))
