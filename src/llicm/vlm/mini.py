# SPDX-License-Identifier: Apache-2.0
"""The mini vision-language model, trained inside the study: a small open_clip CLIP, then its DA-CLIP controller.

First CLIP learns clean crops and their captions (`llicm.vlm.captions`). Then it is frozen and the controller learns,
on degraded and then compressed crops, to tell the degradation (its own embedding against the word's) and to give CLIP
back the content of the clean crop (CLIP's embedding against the clean crop's caption): the two stages and losses of
DA-CLIP (Luo et al., ICLR 2024, section 3), at a size that takes minutes on a CPU.
"""

import itertools
import json
import math
import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from llicm.codec.conventional import CONVENTIONAL
from llicm.codec.mean_scale import STRIDE
from llicm.data.stream import Batch, PairStream
from llicm.degradations import CLEAN
from llicm.errors import UserError
from llicm.transforms import OPPONENT, cosines
from llicm.vlm.captions import caption, subject
from llicm.vlm.clip import WORDS, degradation_text, make_clip, preprocess, tokenize
from llicm.vlm.daclip import DACLIP, MAX_LOGIT_SCALE
from llicm.vlm.losses import contrastive_loss, daclip_losses, text_labels

__all__ = ["compressed", "mini_config", "train_mini"]


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


def start_from_cosines(visual: nn.Module, images: Tensor) -> None:
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


def compressed(images: Tensor, codec: nn.Module | None, generator: Generator) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] as a decoder would see them: three in ten as they are, one in ten through WebP at
    qualities 5 to 80, the others through the learned codec at levels of its whole range, the lower the more often:
    there the traces of a degradation are the faintest.

    Args:
        codec: in eval mode; None to have WebP do its part.
    """
    u = torch.rand(len(images), 2, generator=generator)
    out = images.clone()
    webp = CONVENTIONAL["webp"]
    others = (u[:, 0] >= 0.3) & ((u[:, 0] < 0.4) | (codec is None))
    for row in others.nonzero().flatten().tolist():
        out[row] = webp.decode(webp.encode(images[row], 5 + int(75 * u[row, 1])))
    rows = (u[:, 0] >= 0.3) & ~others
    if rows.any():
        with torch.no_grad():
            height, width = images.shape[2:]
            padded = F.pad(images[rows], (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
            decoded = codec(padded, u[rows, 1].square() * (codec.levels - 1))["x_hat"]
            out[rows] = decoded[..., :height, :width].clamp(0, 1)
    return out


def train_mini(
    photos: dict[str, Tensor], tasks: Sequence[str], *, mini: dict, data: dict, steps: Sequence[int], batch: int,
    lr: float, severity: Sequence[float], mixed: float, codec: nn.Module | None, seed: int, checkpoint=None,
    checkpoint_every: int = 0, log_every: int = 20,
) -> tuple[DACLIP, list[dict]]:  # fmt: skip
    """Train CLIP, then the controller; returns the DA-CLIP in eval mode and the log.

    Args:
        photos: clean training photos (3, H, W) by name; the name is the subject in captions, if it is words.
        tasks: degradation words of the study; a third of the controller's crops show these alone, the others all words.
        mini: see `mini_config`. data: group of params.yaml (dead leaves). steps: updates of CLIP and of the controller.
        batch: crops per update. lr: peak learning rate of AdamW. severity: (low, high) of training degradations.
        mixed: share of crops with two degradations. codec: see `compressed`.
        checkpoint: see `llicm.pipeline.checkpoint`; None to go without. checkpoint_every, log_every: in updates, the former
            a multiple of the latter.

    Returns:
        The model, and a row per `log_every` updates, means over them: `phase`, `step`, `content` loss in nats, and for
        the controller `degradation` loss and `accuracy` of its word on the crops with one degradation.

    Raises:
        UserError: training diverged.
    """
    torch.manual_seed(seed)
    config = mini_config(**mini)
    subjects = [subject(name) for name in photos]
    sources, size = list(photos.values()), mini["image_size"]
    rest = (seed, data["dead_leaves_share"], tuple(severity), data["pool"], data["refresh"])
    extra = batch // 3
    clean = PairStream(sources, [CLEAN], size, batch, *rest)
    every = PairStream(sources, WORDS, size, batch - extra, *rest, mixed=mixed)
    # another seed: other crops than those of `every`
    chosen = PairStream(sources, tasks, size, extra, seed + 1, *rest[1:], mixed=mixed) if extra else None
    clip_batch, controller_batch = clean.batch, lambda step: _joined(every, chosen, step)
    saved = checkpoint.load() if checkpoint is not None else None
    rows = json.loads(saved["rows"]) if saved else []
    model = make_clip(config)
    start_from_cosines(model.visual, preprocess(clean.batch(0).ideal, model.visual.image_size))
    measure = _clip_step
    for phase, make_batch in enumerate((clip_batch, controller_batch)):
        if phase == 1:  # the controller starts as a copy of the CLIP that has just been trained
            model = DACLIP(model, config)
        if saved and phase < saved["phase"]:
            continue
        optimizers = _optimizers(model, lr)
        schedules = [_schedule(optimizer, steps[phase]) for optimizer in optimizers]
        first, window = 0, []
        if saved and phase == saved["phase"]:
            model.load_state_dict(saved["model"])
            for part, state in zip((*optimizers, *schedules), saved["parts"], strict=True):
                part.load_state_dict(state)
            first = saved["step"]
        if phase == 1:
            measure = _ControllerStep(model)
        model.train()
        for step in range(first, steps[phase]):
            batch_, generator = make_batch(step), Generator().manual_seed(seed * 1_000_003 + step)
            row = measure(model, batch_, subjects, codec, generator, step)
            row.pop("loss").backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
            window.append(row)
            if (step + 1) % log_every == 0 or step + 1 == steps[phase]:
                rows.append({"phase": ("clip", "controller")[phase], "step": step + 1} | _mean(window))
                window = []
                print(json.dumps(rows[-1]), file=sys.stderr)
            if checkpoint is not None and checkpoint_every and (step + 1) % checkpoint_every == 0:
                state = {"phase": phase, "step": step + 1, "rows": json.dumps(rows), "model": model.state_dict()}
                checkpoint.save(state | {"parts": [part.state_dict() for part in (*optimizers, *schedules)]})
    with torch.no_grad():  # to what a file in half precision holds, as with codecs and restorers
        for value in model.parameters():
            value.copy_(value.half().float())
    return model.eval(), rows


def _joined(every: PairStream, chosen: PairStream | None, step: int) -> Batch:
    """A batch over `WORDS`, of which some rows come from the stream over the chosen tasks."""
    batch = every.batch(step)
    if chosen is None:
        return batch
    extra = chosen.batch(step)
    index = torch.tensor([*(WORDS.index(word) for word in chosen.tasks), -1])  # the last for "no second task"
    extra = extra._replace(task=index[extra.task], second=index[extra.second])
    return Batch(*(torch.cat(parts) for parts in zip(batch, extra, strict=True)))


def _clip_step(clip: nn.Module, batch: Batch, subjects: list[str | None], codec, generator, step: int) -> dict:
    tokens = tokenize(_captions(batch, subjects), {"text_cfg": {"context_length": clip.context_length}})
    image = F.normalize(clip.encode_image(preprocess(batch.ideal, clip.visual.image_size)), dim=-1)
    text = F.normalize(clip.encode_text(tokens), dim=-1)
    loss = contrastive_loss(image, text, clip.logit_scale.exp(), text_labels(tokens))
    return {"loss": loss, "content": float(loss.detach())}


class _ControllerStep:
    """Both losses at every second step, that of the degradation alone at the others: it is the harder one to learn, and
    the content costs half of the time. The text tower is frozen, so what it says of the words is asked for once."""

    def __init__(self, model: DACLIP):
        texts = [degradation_text(pair) for pair in itertools.combinations_with_replacement(WORDS, 2)]
        with torch.no_grad():
            known = model.encode_text(tokenize(texts, model.clip_config), normalize=True)
        self.known = dict(zip(texts, known, strict=True))
        self.words = torch.stack([self.known[word] for word in WORDS])

    def __call__(
        self, model: DACLIP, batch: Batch, subjects: list[str | None], codec: nn.Module | None, generator: Generator,
        step: int,
    ) -> dict:  # fmt: skip
        image = preprocess(compressed(batch.degraded, codec, generator), model.image_size)
        pairs = zip(batch.task.tolist(), batch.second.tolist(), strict=True)
        texts = [degradation_text(WORDS[i] for i in pair if i >= 0) for pair in pairs]
        labels = torch.tensor([texts.index(text) for text in texts])
        features = {"text_degra_features": torch.stack([self.known[text] for text in texts])}
        scale = model.logit_scale.exp()
        if step % 2:
            captions = tokenize(_captions(batch, subjects), model.clip_config)
            names = ("image_features", "image_degra_features")
            features |= zip(names, model.encode_image(image, control=True, normalize=True), strict=True)
            features |= {"text_features": model.encode_text(captions, normalize=True), "logit_scale": scale}
            losses = daclip_losses(features, labels)
            degradation = features["image_degra_features"]
        else:
            degradation = F.normalize(model.controller.tower(image), dim=-1)
            losses = {"degradation": contrastive_loss(degradation, features["text_degra_features"], scale, labels)}
        right = ((degradation.detach() @ self.words.T).argmax(1) == batch.task)[batch.second < 0].float()
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
