# SPDX-License-Identifier: Apache-2.0
"""The conditioner: CLIP and its controller look at a decoded image X̂ and say how to restore it.

The decoder has X̂ and so sees what the conditioner sees: nothing is sent for it. A user who knows better gives a hint,
the degradation in words, instead.
"""

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llicm import weights
from llicm.degradations import CLEAN, TONAL
from llicm.errors import UserError
from llicm.limits import as_pictures
from llicm.vlm.checkpoint import check_layout, load_daclip, without_drawing
from llicm.vlm.clip import WORDS, degradation_text, preprocess, tokenize, windows
from llicm.vlm.context import Context
from llicm.vlm.daclip import DACLIP, make_daclip
from llicm.vlm.judge import Judge, features

VIEWS = ("whole", "windows")
_WITHOUT_TEXT = ("clip.visual.", "clip.logit_scale", "controller.", "logit_scale")  # all weights but the text tower's


class Conditioner(nn.Module):
    """A frozen DA-CLIP that turns decoded images, or words, into the restorer's context.

    Args:
        model: the DA-CLIP.
        view: "whole" for CLIP's own way, the image reduced to the size that the towers take (as in DA-CLIP);
            "windows" for the mean embedding of windows in full resolution, which keeps fine traces such as noise.
        vocabulary: texts with their embeddings (width,), for a model that comes without its text tower; it then takes
            no other text.
        judge: what tells clean pictures from others, or None.

    Raises:
        UserError: no such view.
    """

    def __init__(
        self, model: DACLIP, view: str, vocabulary: dict[str, Tensor] | None = None, judge: Judge | None = None
    ):  # fmt: skip
        super().__init__()
        if view not in VIEWS:
            raise UserError(f"params.yaml: vlm.view '{view}' is unknown; choose one of {', '.join(VIEWS)}")
        self.model, self.view = model.requires_grad_(False).eval(), view
        self._known: dict[str, Tensor] = dict(vocabulary or {})
        self.closed = vocabulary is not None  # no text tower
        self.judge = None if judge is None else judge.requires_grad_(False).eval()

    @property
    def width(self) -> int:
        """Length of an embedding."""
        return self.model.clip_config["embed_dim"]

    @torch.no_grad()
    def forward(self, decoded: Tensor, hints: Sequence[str | None] | None = None) -> Context:
        """Context of X̂ (N, 3, H, W) in [0, 1], each embedding (N, width). No gradient passes.

        Args:
            hints: for each image the degradation in words, whose embedding then replaces that of the image, or None.
        """
        decoded, size = as_pictures(decoded, bounded=False).to(self.model.logit_scale.device), self.model.image_size
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
            given = {row: text for row, text in enumerate(hints) if text}
            degradation = degradation.clone()
            degradation[list(given)] = self.text(given.values()).to(degradation)
        return Context(degradation, content)

    def fit_judge(self, batches: Iterable[tuple[Tensor, Tensor]], tasks: Sequence[str], seed: int) -> None:
        """Give the model a judge, fitted to what it makes of some pictures.

        Args:
            batches: pictures (N, 3, H, W) in [0, 1] as decoders see them, and what is wrong with each, (N,) int64: 0
                for nothing, 1 for the first of the tasks.
            tasks: degradation words.
        """
        seen = [(features(pictures, self(pictures)), kind) for pictures, kind in batches]
        found, kind = (torch.cat(part) for part in zip(*seen, strict=True))
        self.judge = Judge(self.width, [task in TONAL for task in tasks]).fit(found, kind, seed)

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
        return torch.stack([self._known[word].to(self.model.logit_scale.device) for word in words])

    @torch.no_grad()
    def recognise(self, decoded: Tensor, words: Sequence[str] = WORDS, context: Context | None = None) -> Tensor:
        """Probability of each word for X̂ (N, 3, H, W): (N, len(words)), rows sum to 1.

        Zero-shot, scale 100; but whether anything is wrong at all, the word "clean", is for the judge, if there is one.

        Args:
            context: of X̂, if it is known already.
        """
        context = self(decoded) if context is None else context
        scores = self._scores(context, words)
        if self.judge is None or CLEAN not in words:
            return scores.softmax(-1)
        clean = torch.tensor([word == CLEAN for word in words], device=scores.device)
        wrong = self.judge(decoded, context)[:, :1]
        return torch.where(clean, 1 - wrong, wrong * scores.masked_fill(clean, -torch.inf).softmax(-1))

    @torch.no_grad()
    def judged(self, decoded: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Probability that anything is wrong with X̂ (N, 3, H, W), and that it is of a kind that changes tones, each
        (N,); by the words where there is no judge."""
        if self.judge is not None:
            wrong, tonal = self.judge(decoded, context).T
            return wrong, tonal
        found = self._scores(context, WORDS).softmax(-1)
        return 1 - found[:, WORDS.index(CLEAN)], found[:, [WORDS.index(word) for word in TONAL]].sum(1)

    def _scores(self, context: Context, words: Sequence[str]) -> Tensor:
        assert context.degradation is not None
        degradation = F.normalize(context.degradation, dim=-1)
        return 100 * degradation @ F.normalize(self.text(words), dim=-1).T


class Oracle(nn.Module):
    """Gets the degradation as a hint: the bound of what recognition can give, for comparison.

    Args:
        words: of which hints consist, one or several joined by ", ".
    """

    def __init__(self, words: Sequence[str]):
        super().__init__()
        self.words = list(words)

    def forward(self, decoded: Tensor, hints: Sequence[str | None] | None = None) -> Context:
        """Context with `degradation` (N, len(words)), 1 for each word of the hint.

        Raises:
            ValueError: an image has no hint, or one with a word that the oracle does not know.
        """
        degradation = decoded.new_zeros(len(decoded), len(self.words))
        for row, text in zip(degradation, hints or [None] * len(decoded), strict=True):
            if not text:
                raise ValueError("an oracle needs a hint for every image")
            row[[self.words.index(word) for word in text.split(", ")]] = 1
        return Context(degradation)


def conditioner_for(restorer: nn.Module | None, folder: Path) -> Conditioner | Oracle | None:
    """What steers this restorer: nothing, an oracle, or the conditioner in `folder`.

    Raises:
        UserError: see `load_conditioner`; or its embeddings have another length than the restorer was trained with.
    """
    config: Any = {} if restorer is None else restorer.config
    context = config.get("context")
    if not context:
        return None
    if "words" in context:
        return Oracle(context["words"])
    conditioner = load_conditioner(folder)
    if any(length not in (0, conditioner.width) for length in context.values()):
        raise UserError(
            f"{folder}: this model's embeddings have {conditioner.width} numbers, the restorer wants {context}"
        )
    return conditioner


def conditioner_state(conditioner: Conditioner) -> tuple[dict[str, Tensor], dict]:
    """Weights, in half precision, and configuration of a conditioner without its text tower.

    That is nine tenths of a small model; the embeddings of all degradation words and pairs of them take its place.
    """
    texts = [degradation_text(pair) for pair in itertools.combinations_with_replacement(WORDS, 2)]
    model = conditioner.model
    state = weights.halve(model, {n: v for n, v in model.state_dict().items() if n.startswith(_WITHOUT_TEXT)})
    config = {"view": conditioner.view, "clip": model.clip_config, "words": texts}
    return state | {"words": conditioner.text(texts)} | _judge(conditioner), config


def _judge(conditioner: Conditioner) -> dict[str, Tensor]:
    judge = {} if conditioner.judge is None else conditioner.judge.state_dict()
    return {f"judge.{name}": value for name, value in judge.items()}


def conditioner_from(state: dict[str, Tensor], config: dict, source: str | Path = "conditioner") -> Conditioner:
    """The conditioner of these weights, with a text tower unless the configuration has `words`, in eval mode.

    Args:
        source: what messages call the weights.

    Raises:
        UserError: the weights do not fit the configuration.
    """
    model, texts = without_drawing(make_daclip, config["clip"]), config.get("words")
    shapes = {n: v.shape for n, v in model.state_dict().items() if texts is None or n.startswith(_WITHOUT_TEXT)}
    if texts is not None:
        shapes["words"] = torch.Size([len(texts), config["clip"]["embed_dim"]])
    judge = Judge(config["clip"]["embed_dim"], [False] * len(state["judge.sums"])) if "judge.sums" in state else None
    given = {} if judge is None else judge.state_dict()
    check_layout(state, shapes | {f"judge.{name}": value.shape for name, value in given.items()}, source)
    if judge is not None:
        judge.load_state_dict({name: state[f"judge.{name}"] for name in given})
    own = {name: value for name, value in state.items() if name != "words" and not name.startswith("judge.")}
    model.load_state_dict(own, strict=texts is None)
    vocabulary = None if texts is None else dict(zip(texts, state["words"], strict=True))
    return Conditioner(model, config["view"], vocabulary, judge)


def save_conditioner(conditioner: Conditioner, folder: Path) -> None:
    """Write the model and how it looks at images into a folder, for `load_conditioner`.

    Raises:
        OSError: the folder cannot be written.
    """
    if conditioner.closed:
        state, config = conditioner_state(conditioner)
    else:
        state = conditioner.model.state_dict() | _judge(conditioner)
        config = {"view": conditioner.view, "clip": conditioner.model.clip_config}
    weights.write(Path(folder) / "conditioner.safetensors", state, config)


def load_conditioner(folder: Path) -> Conditioner:
    """The conditioner that the stage `vlm` has written into a folder.

    Raises:
        UserError: it is not there or cannot be read.
    """
    folder = Path(folder)
    if (path := folder / "guide.json").is_file():  # three names of the first edition
        return Conditioner(load_daclip(folder / "daclip.safetensors"), json.loads(path.read_text())["view"])
    if (path := folder / "guide.safetensors").is_file():
        state, config = weights.read(path)
        return conditioner_from({n.removeprefix("guide."): v for n, v in state.items()}, config["guide"], path)
    path = folder / "conditioner.safetensors"
    return conditioner_from(*weights.read(path), path)
