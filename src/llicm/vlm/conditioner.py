# SPDX-License-Identifier: Apache-2.0
"""The guide: CLIP and its controller look at a decoded image X̂ and say how to restore it.

The decoder has X̂ and so sees what the guide sees: nothing is sent for it. A user who knows better names the
degradation in words instead.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llicm.errors import UserError
from llicm.files import write_atomically
from llicm.vlm.checkpoint import load_daclip, save_daclip
from llicm.vlm.clip import WORDS, preprocess, tokenize
from llicm.vlm.context import Context
from llicm.vlm.daclip import DACLIP

__all__ = ["VIEWS", "Guide", "Oracle", "guide_for", "load_guide", "save_guide", "windows"]

VIEWS = ("whole", "windows")
_MOST = 3  # windows along a side


def windows(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut an image (3, H, W) into at most 3 x 3 evenly spaced windows of `size`: (K, 3, h, w).

    An image that is smaller along either side is returned whole, (1, 3, H, W).
    """
    if image.shape[1] < size[0] or image.shape[2] < size[1]:
        return image[None]
    corners = []
    for side, part in zip(image.shape[1:], size, strict=True):
        count = min(-(-side // part), _MOST)
        corners.append([round(i * (side - part) / max(count - 1, 1)) for i in range(count)])
    h, w = size
    return torch.stack([image[:, top : top + h, left : left + w] for top in corners[0] for left in corners[1]])


class Conditioner(nn.Module):
    """A frozen DA-CLIP that turns decoded images, or words, into the restorer's context.

    Args:
        model: the DA-CLIP.
        view: "whole" for CLIP's own way, the image reduced to the size that the towers take (as in DA-CLIP);
            "windows" for the mean embedding of windows in full resolution, which keeps fine traces such as noise.
        vocabulary: texts with their embeddings (width,), for a model that comes without its text tower: then no other
            text will do.

    Raises:
        UserError: no such view.
    """

    def __init__(self, model: DACLIP, view: str, vocabulary: dict[str, Tensor] | None = None):
        super().__init__()
        if view not in VIEWS:
            raise UserError(f"params.yaml: vlm.view '{view}' is unknown; choose one of {', '.join(VIEWS)}")
        self.model, self.view = model.requires_grad_(False).eval(), view
        self._known: dict[str, Tensor] = dict(vocabulary or {})
        self.closed = vocabulary is not None  # no text tower

    @property
    def width(self) -> int:
        """Length of an embedding."""
        return self.model.clip.visual.proj.shape[1]

    @torch.no_grad()
    def forward(self, decoded: Tensor, hints: Sequence[str | None] | None = None) -> Context:
        """Context of X̂ (N, 3, H, W) in [0, 1], each embedding (N, width). No gradient passes.

        Args:
            told: for each image the degradation in words, whose embedding then replaces that of the image, or None.
        """
        size = self.model.image_size
        if self.view == "whole" or (decoded.shape[2], decoded.shape[3]) == size:
            parts = [image[None] for image in decoded]
        else:
            parts = [windows(image, size) for image in decoded]
        # Not under autocast: what is recognised should not depend on the precision of training.
        with torch.autocast(decoded.device.type, enabled=False):
            content, degradation = self.model.encode_image(
                torch.cat([preprocess(part, size) for part in parts]), control=True
            )
        counts = [len(part) for part in parts]
        if max(counts, default=1) > 1:
            content, degradation = (
                torch.stack([piece.mean(0) for piece in embedding.split(counts)])
                for embedding in (content, degradation)
            )
        if hints is not None and any(hints):
            rows = [row for row, text in enumerate(hints) if text]
            degradation = degradation.clone()
            degradation[rows] = self.text([hints[row] for row in rows]).to(degradation)
        return Context(degradation, content)

    @torch.no_grad()
    def text(self, words: Iterable[str]) -> Tensor:
        """Embeddings of degradations in words, (N, width), to stand in for `Context.degradation`.

        Any text will do; the model was trained with its `DEGRADATION_WORDS`, "clean", and pairs of words joined by
        ", " for mixed degradations.

        Raises:
            UserError: the model has no text tower, and a text is not of its vocabulary.
        """
        words = list(words)
        new = [word for word in dict.fromkeys(words) if word not in self._known]
        if new and self.closed:
            raise UserError(f"'{new[0]}': this model knows {', '.join(WORDS)}, and two of them joined by ', '")
        if new:
            tokens = tokenize(new, self.model.clip_config).to(self.model.logit_scale.device)
            self._known |= dict(zip(new, self.model.encode_text(tokens), strict=True))
        return torch.stack([self._known[word] for word in words])

    @torch.no_grad()
    def recognise(self, decoded: Tensor, words: Sequence[str] = WORDS) -> Tensor:
        """Probability of each word for X̂ (N, 3, H, W): (N, len(words)), rows sum to 1 (zero-shot, scale 100)."""
        degradation = F.normalize(self(decoded).degradation, dim=-1)
        return (100 * degradation @ F.normalize(self.text(words), dim=-1).T).softmax(-1)


class Oracle(nn.Module):
    """Knows the degradation because it is told: the bound of what recognition can give, for comparison.

    Args:
        words: what it can be told, alone or several joined by ", ".
    """

    def __init__(self, words: Sequence[str]):
        super().__init__()
        self.words = list(words)

    def forward(self, decoded: Tensor, hints: Sequence[str | None] | None = None) -> Context:
        """Context with `degradation` (N, len(words)), 1 for each word that is told.

        Raises:
            ValueError: it was not told, or a word that it does not know.
        """
        if hints is None or not all(hints):
            raise ValueError("an oracle must be told the degradation of every image")
        rows = [[self.words.index(word) for word in text.split(", ")] for text in hints]
        degradation = decoded.new_zeros(len(rows), len(self.words))
        for row, found in enumerate(rows):
            degradation[row, found] = 1
        return Context(degradation)


def conditioner_for(restorer: nn.Module | None, folder: Path) -> "Guide | Oracle | None":
    """What steers this restorer: nothing, an oracle, or the guide in `folder` (see `load_guide`).

    Raises:
        UserError: see `load_guide`; or the guide's embeddings have another length than the restorer was trained with.
    """
    context = None if restorer is None else restorer.config.get("context")
    if not context:
        return None
    if "words" in context:
        return Oracle(context["words"])
    conditioner = load_conditioner(folder)
    if any(length not in (0, conditioner.width) for length in context.values()):
        raise UserError(f"{folder}: this model's embeddings have {guide.width} numbers, the restorer wants {context}")
    return conditioner


def save_conditioner(conditioner: Conditioner, folder: Path) -> None:
    """Write the model and how it looks at images into a folder, for `load_guide`.

    Raises:
        UserError: the folder cannot be written.
    """
    if conditioner.closed:
        from llicm.framework import LLICM
        from llicm.model import save_model

        save_model(LLICM(None, None, conditioner), Path(folder) / "guide.safetensors")
        return
    save_daclip(conditioner.model, Path(folder) / "daclip.safetensors")
    write_atomically(Path(folder) / "guide.json", (json.dumps({"view": conditioner.view}) + "\n").encode())


def load_conditioner(folder: Path) -> Conditioner:
    """The guide that the stage `vlm` has written into a folder.

    Raises:
        UserError: it is not there or cannot be read.
    """
    closed = Path(folder) / "guide.safetensors"  # without a text tower
    if closed.is_file():
        from llicm.model import load_model

        return load_model(closed).conditioner
    path = Path(folder) / "guide.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; run `dvc repro` (or `dvc pull`) to make the vision-language model")
    return Conditioner(load_daclip(Path(folder) / "daclip.safetensors"), json.loads(path.read_text())["view"])
