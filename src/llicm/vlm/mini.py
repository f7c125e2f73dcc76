# SPDX-License-Identifier: Apache-2.0
"""The mini vision-language model, trained inside the study: a small open_clip CLIP, then its DA-CLIP controller.

First CLIP learns clean crops and their captions (`llicm.vlm.captions`). Then it is frozen and the controller learns,
on degraded and then compressed crops, to tell the degradation (its own embedding against the word's) and to give CLIP
back the content of the clean crop (CLIP's embedding against the clean crop's caption): the two stages and losses of
DA-CLIP (Luo et al., ICLR 2024, section 3), at a size that takes minutes on a CPU.
"""

import functools
import itertools
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Generator, Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from llicm.codec.conventional import CONVENTIONAL
from llicm.data.photo import Photo
from llicm.data.stream import Batch, PairStream
from llicm.degradations import CLEAN, linear_to_srgb, srgb_to_linear
from llicm.errors import UserError
from llicm.files import json_text
from llicm.registry import Codec
from llicm.transforms import OPPONENT, cosines
from llicm.vlm.captions import caption, subject
from llicm.vlm.clip import WORDS, degradation_text, make_clip, preprocess, tokenize
from llicm.vlm.conditioner import Conditioner
from llicm.vlm.daclip import DACLIP, MAX_LOGIT_SCALE
from llicm.vlm.losses import contrastive_loss, daclip_losses, text_labels

__all__ = ["compressed", "mini_config", "train_mini", "with_judge"]


def mini_config(
    image_size: int, patch_size: int, width: int, layers: int, embed_dim: int, text_width: int, text_layers: int
) -> dict:
    """An open_clip configuration with CLIP's own vocabulary; heads are 32 wide. Arguments: group `vlm.mini`."""
    return {
        "embed_dim": embed_dim,
        "vision_cfg": {
            "image_size": image_size, "patch_size": patch_size, "width": width, "layers": layers, "head_width": 32,
        },
        "text_cfg": {
            "context_length": 40, "vocab_size": 49408, "width": text_width, "heads": max(text_width // 32, 1),
            "layers": text_layers,
        },
    }  # fmt: skip


def start_from_cosines(visual: VisionTransformer, images: Tensor) -> None:
    """Let a vision tower's patch embedding start as the lowest frequencies of the patches' cosine transform.

    Each is scaled to unit variance, as it is over `images` (N, 3, H, W, preprocessed), so that a faint high frequency,
    which tells noise from blur, is as visible as the mean. Three quarters are of the luminance, the rest of two colour
    differences. (Measured on held-out photos after equal time: 62% instead of 36% of core-task images recognised.)
    """
    width, _, size, _ = visual.conv1.weight.shape
    basis = torch.from_numpy(cosines(size)).float()
    order = sorted(range(size * size), key=lambda i: (i // size) ** 2 + (i % size) ** 2)
    planes = torch.stack([torch.outer(basis[i // size], basis[i % size]) for i in order])
    colours = torch.from_numpy(OPPONENT).float()[:, :, None, None]
    bright = min(len(planes), 3 * width // 4)
    pale = min(len(planes), (width - bright) // 2)
    weight = torch.cat([planes[:bright, None] * colours[0], *(planes[:pale, None] * c for c in colours[1:])])
    deviation = F.conv2d(images, weight, stride=size).std((0, 2, 3)).clamp_min(1e-3)
    with torch.no_grad():  # what is left beyond the number of planes keeps its random start
        visual.conv1.weight[: len(weight)] = weight / deviation[:, None, None, None]


def compressed(images: Tensor, codec: Codec | None, generator: Generator) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] as a decoder would see them.

    Three in ten stay as they are, one in ten goes through WebP at qualities 5 to 80, the others through the learned
    codec at levels of its whole range, low ones more often, for there the traces of a degradation are the faintest.

    Args:
        codec: in eval mode; without one WebP does its part.
    """
    u = torch.rand(len(images), 2, generator=generator)
    out = images.clone()
    webp = CONVENTIONAL["webp"]
    others = (u[:, 0] >= 0.3) & ((u[:, 0] < 0.4) | (codec is None))
    for row in others.nonzero().flatten().tolist():
        out[row] = webp.decompress(webp.compress(images[row], 5 + int(75 * u[row, 1])))
    rows = (u[:, 0] >= 0.3) & ~others
    if codec is not None and rows.any():
        with torch.no_grad():
            height, width = images.shape[2:]
            padded = F.pad(images[rows], (0, -width % codec.stride, 0, -height % codec.stride), mode="replicate")
            decoded = codec.forward(padded, u[rows, 1].square() * (codec.levels - 1))["x_hat"]
            out[rows] = decoded[..., :height, :width].clamp(0, 1)
    return out


def train_mini(
    photos: Mapping[str, Tensor | Photo], tasks: Sequence[str], *, mini: dict, data: dict, steps: Sequence[int],
    batch: int, lr: float, severity: tuple[float, float], mixed: float, codec: Codec | None, seed: int,
    checkpoint: Any = None, checkpoint_every: int = 0, log_every: int = 20,
) -> tuple[DACLIP, list[dict]]:  # fmt: skip
    """Train CLIP, then the controller; returns the DA-CLIP in eval mode and the log.

    Args:
        photos: clean training photos (3, H, W) by name; the name is the subject in captions, if it is words.
        tasks: degradation words of the study; a third of the controller's crops show these alone, the others all words.
        mini: see `mini_config`. data: group of params.yaml (dead leaves). steps: updates of CLIP and of the controller.
        batch: crops per update. lr: peak learning rate of AdamW. severity: (low, high) of training degradations.
        mixed: share of crops with two degradations. codec: see `compressed`.
        checkpoint: see `llicm.pipeline.checkpoint`; None to go without.
        checkpoint_every, log_every: in updates, the former a multiple of the latter.

    Returns:
        The model, and a row per `log_every` updates, means over them: `phase`, `step`, `content` loss in nats, and for
        the controller `degradation` loss and `accuracy` of its word on the crops with one degradation.

    Raises:
        UserError: training diverged.
    """
    torch.manual_seed(seed)
    sources = [Photo.of(photo) for photo in photos.values()]
    config, size, subjects = mini_config(**mini), mini["image_size"], [subject(name) for name in photos]

    def stream(words: Sequence[str], rows: int, seed: int, mixed: float = 0.0) -> PairStream:
        leaves = data["dead_leaves_share"], data["pool"], data["refresh"]
        shares = {"mixed": mixed, "graphics_share": data.get("graphics_share", 0.0)}
        return PairStream(sources, words, size, rows, seed, leaves[0], severity, *leaves[1:], **shares)

    clean, extra = stream([CLEAN], batch, seed), batch // 3
    every = stream(WORDS, batch - extra, seed, mixed)
    chosen = stream(tasks, extra, seed + 1, mixed) if extra else None  # another seed: other crops than those of `every`
    clip = make_clip(config)
    start_from_cosines(clip.visual, preprocess(clean.batch(0).ideal, clip.visual.image_size))
    training = _Training(lr, seed, checkpoint, checkpoint_every, log_every)
    training.run("clip", clip, steps[0], clean.batch, _ClipLosses(clip, subjects))
    model = DACLIP(clip, config)  # the controller starts as a copy of the CLIP that has just been trained
    losses = _ControllerLosses(model, subjects, codec)
    training.run("controller", model, steps[1], lambda step: _joined(every, chosen, step), losses)
    with torch.no_grad():  # to what a file in half precision holds, as with codecs and restorers
        for value in model.parameters():
            value.copy_(value.half().float())
    return model.eval(), training.rows


def with_judge(
    conditioner: Conditioner, photos: Sequence[Tensor | Photo], tasks: Sequence[str], *, data: dict,
    severity: Sequence[float], codec: Codec | None, seed: int, batches: int,
) -> Conditioner:  # fmt: skip
    """The conditioner with a judge (see `llicm.vlm.judge`), fitted to so many batches of 16 crops, half of them clean.

    Crops are one to three times as large as what the model looks at; half of the batches are as captured, the others as
    `compressed`. Two in five clean crops are dimmed or paled, and clean all the same: not all that is dim is too dark.

    Args: as of `train_mini`.
    """
    words, (low, high) = [word for task in tasks for word in (task, CLEAN)], severity
    streams = [
        PairStream(
            photos, words, size * conditioner.model.image_size[0], 16, seed + size, data["dead_leaves_share"],
            (low, high), data["pool"], data["refresh"], mixed=data["mixed"],
            graphics_share=data.get("graphics_share", 0.0),
        )
        for size in (1, 2, 3)
    ]  # fmt: skip

    def seen(step: int) -> tuple[Tensor, Tensor]:
        batch, generator = streams[step % 3].batch(step), Generator().manual_seed(seed * 1_000_003 + step)
        kind = torch.where(batch.task % 2 == 0, batch.task // 2 + 1, 0)
        pictures = toned(batch.degraded, (kind == 0) & (torch.rand(16, generator=generator) < 0.4), generator)
        return pictures if step % 2 else compressed(pictures, codec, generator), kind

    conditioner.fit_judge(map(seen, range(batches)), tasks, seed)
    return conditioner


def toned(images: Tensor, rows: Tensor, generator: Generator) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] of which `rows` (N,) are dimmer, with 0.4 to 1 of their light, or paler, behind up
    to 0.15 of a bright veil."""
    u = torch.rand(3, len(images), 1, 1, 1, generator=generator)
    veil = torch.where(u[0] < 0.5, 0, 0.15 * u[1])
    light = torch.where(u[0] < 0.5, 0.4 + 0.6 * u[1], 1 - veil)
    tone = linear_to_srgb(srgb_to_linear(images) * light + veil * (0.7 + 0.3 * u[2]))
    return torch.where(rows.view(-1, 1, 1, 1), tone, images)


class _Training:
    """Trains the models of one phase after the other; resumes from a checkpoint, and keeps the log of all phases."""

    PHASES = ("clip", "controller")

    def __init__(self, lr: float, seed: int, checkpoint: Any, checkpoint_every: int, log_every: int):
        self.lr, self.seed, self.log_every = lr, seed, log_every
        self.checkpoint, self.checkpoint_every = checkpoint, checkpoint_every
        self.saved = None if checkpoint is None else checkpoint.load()
        self.rows: list[dict] = json.loads(self.saved["rows"]) if self.saved else []

    def run(
        self, name: str, model: open_clip.CLIP | DACLIP, steps: int, batches: Callable[[int], Batch],
        losses: Callable[[Batch, Generator, int], dict],
    ) -> None:  # fmt: skip
        """One phase: `losses` of a batch, a generator and the step gives `loss` and numbers for the log."""
        phase, first = self.PHASES.index(name), 0
        if self.saved and phase < self.saved["phase"]:
            return
        optimizers = _optimizers(model, self.lr)
        parts: list[Any] = [*optimizers, *(_schedule(optimizer, steps) for optimizer in optimizers)]
        if self.saved and phase == self.saved["phase"]:
            first = self.saved["step"]
            model.load_state_dict(self.saved["model"])
            for part, state in zip(parts, self.saved["parts"], strict=True):
                part.load_state_dict(state)
        model.train()
        window = []
        for step in range(first, steps):
            row = losses(batches(step), Generator().manual_seed(self.seed * 1_000_003 + step), step)
            row.pop("loss").backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for part in parts:  # the optimizers, then their schedules
                part.step()
            model.zero_grad(set_to_none=True)
            with torch.no_grad():
                model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
            window.append(row)
            if (step + 1) % self.log_every == 0 or step + 1 == steps:
                self.rows.append({"phase": name, "step": step + 1} | _mean(window))
                window = []
                print(json_text(self.rows[-1], None), file=sys.stderr)
            if self.checkpoint is not None and self.checkpoint_every and (step + 1) % self.checkpoint_every == 0:
                state = {"phase": phase, "step": step + 1, "rows": json.dumps(self.rows), "model": model.state_dict()}
                self.checkpoint.save(state | {"parts": [part.state_dict() for part in parts]})


def _joined(every: PairStream, chosen: PairStream | None, step: int) -> Batch:
    """A batch over `WORDS`, of which some rows come from the stream over the chosen tasks."""
    batch = every.batch(step)
    if chosen is None:
        return batch
    extra = chosen.batch(step)
    index = torch.tensor([*(WORDS.index(word) for word in chosen.tasks), -1])  # the last for "no second task"
    extra = extra._replace(task=index[extra.task], second=index[extra.second])
    return Batch(*(torch.cat(parts) for parts in zip(batch, extra, strict=True)))


class _ClipLosses:
    """Images against their captions."""

    def __init__(self, clip: open_clip.CLIP, subjects: list[str | None]):
        self.clip, self.subjects = clip, subjects

    def __call__(self, batch: Batch, generator: Generator, step: int) -> dict:
        clip = self.clip
        tokens = tokenize(_captions(batch, self.subjects), {"text_cfg": {"context_length": clip.context_length}})
        image = F.normalize(clip.encode_image(preprocess(batch.ideal, clip.visual.image_size)), dim=-1)
        text = F.normalize(clip.encode_text(tokens), dim=-1)
        loss = contrastive_loss(image, text, clip.logit_scale.exp(), text_labels(tokens))
        return {"loss": loss, "content": float(loss.detach())}


class _ControllerLosses:
    """Both losses at every second step, that of the degradation alone at the others: it is the harder one to learn, and
    the content costs half of the time."""

    def __init__(self, model: DACLIP, subjects: list[str | None], codec: Codec | None):
        self.model, self.subjects, self.codec = model, subjects, codec

    @functools.cached_property
    @torch.no_grad()
    def texts(self) -> dict[str, Tensor]:
        """Embeddings of the words and their pairs, once: the text tower is frozen."""
        texts = [degradation_text(pair) for pair in itertools.combinations_with_replacement(WORDS, 2)]
        known = self.model.encode_text(tokenize(texts, self.model.clip_config), normalize=True)
        return dict(zip(texts, known, strict=True))

    def __call__(self, batch: Batch, generator: Generator, step: int) -> dict:
        model = self.model
        image = preprocess(compressed(batch.degraded, self.codec, generator), model.image_size)
        pairs = zip(batch.task.tolist(), batch.second.tolist(), strict=True)
        texts = [degradation_text(WORDS[i] for i in pair if i >= 0) for pair in pairs]
        labels = torch.tensor([texts.index(text) for text in texts])
        features = {"text_degra_features": torch.stack([self.texts[text] for text in texts])}
        scale = model.logit_scale.exp()
        if step % 2:
            captions = tokenize(_captions(batch, self.subjects), model.clip_config)
            names = ("image_features", "image_degra_features")
            features |= zip(names, model.encode_image(image, control=True, normalize=True), strict=True)
            features |= {"text_features": model.encode_text(captions, normalize=True), "logit_scale": scale}
            losses = daclip_losses(features, labels)
            degradation = features["image_degra_features"]
        else:
            degradation = F.normalize(model.controller.tower(image), dim=-1)
            losses = {"degradation": contrastive_loss(degradation, features["text_degra_features"], scale, labels)}
        words = torch.stack([self.texts[word] for word in WORDS])
        right = ((degradation.detach() @ words.T).argmax(1) == batch.task)[batch.second < 0].float()
        return {"loss": sum(losses.values()), "accuracy": float(right.mean())} | {
            name: float(loss.detach()) for name, loss in losses.items()
        }


def _captions(batch: Batch, subjects: list[str | None]) -> list[str]:
    return [
        caption(image, "" if index < 0 else subjects[index])
        for image, index in zip(batch.ideal, batch.photo.tolist(), strict=True)
    ]


def _optimizers(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the vision tower's blocks, AdamW as in DA-CLIP for all else.

    Muon (Jordan et al., 2024) learns several times as fast here: 75% instead of 59% of training crops recognised after
    the same time. DA-CLIP's own AdamW alone has 800 updates of 3,136 images behind a pretrained CLIP.
    """
    free = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = {n for n, p in free.items() if p.ndim == 2 and ("visual." in n or "tower." in n) and "resblocks" in n}
    rest = [p for name, p in free.items() if name not in matrices]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [
        torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-6),
        torch.optim.Muon(
            [free[n] for n in sorted(matrices)], lr=10 * lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
        ),
    ]


def _schedule(optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """Linear warm-up over a twentieth of the steps, then a cosine to zero."""
    warmup = max(steps // 20, 1)
    rise = LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
    return SequentialLR(optimizer, [rise, CosineAnnealingLR(optimizer, max(steps - warmup, 1))], [warmup])


def _mean(rows: list[dict]) -> dict:
    mean = {}
    for key in sorted({key for row in rows for key in row}):
        values = [row[key] for row in rows if key in row]
        mean[key] = math.fsum(values) / len(values)
    if not all(math.isfinite(value) for value in mean.values()):
        raise UserError("training of the vision-language model diverged: lower vlm.lr in params.yaml")
    return mean
