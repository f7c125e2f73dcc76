# SPDX-License-Identifier: Apache-2.0
"""Whether anything is wrong with a picture at all, and with its tones, and how surely.

Degradations are told apart by a contrast of pictures with words, which is no measure of certainty: of clean wallpapers
it called 1 in 30 clean. What tells a pale picture from a hazy one, or a dim one from one that is too dark, is seen best
in its tones: haze leaves no black, darkness no white. So a small network of its own looks at both embeddings and at
statistics of the picture, and is fitted to say how often such a picture turns out to be degraded.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llicm.vlm.clip import windows
from llicm.vlm.context import Context

_SIDE = 256  # to which a picture's longer side is reduced before its tones are counted
_WINDOW = 128
_SHARES = (0.0, 0.005, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98, 0.995, 1.0)  # at which quantiles are taken
_FEW = (0.1, 0.5, 0.9, 0.995)
_HIDDEN = 64
STATISTICS = 95  # numbers that `statistics` gives


class Judge(nn.Module):
    """Probability that something is wrong with a picture, and that it is of a kind that changes its tones.

    It learns to tell all kinds of wrong apart, though only sums are asked for: so it judged photos that it had not seen
    better than with two answers.

    Args:
        width: length of an embedding.
        tonal: of each kind of wrong, whether it changes a picture's tones (see `llicm.degradations.TONAL`).
    """

    def __init__(self, width: int, tonal: Sequence[bool]):
        super().__init__()
        self.register_buffer("sums", torch.tensor([[1.0, float(kind)] for kind in tonal]))
        self.sums: Tensor
        self.mean: Tensor
        self.deviation: Tensor
        inputs = 2 * width + STATISTICS
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("deviation", torch.ones(inputs))
        self.layers = nn.Sequential(
            nn.Linear(inputs, _HIDDEN), nn.GELU(), nn.Dropout(0.3), nn.Linear(_HIDDEN, _HIDDEN), nn.GELU(),
            nn.Dropout(0.3), nn.Linear(_HIDDEN, 1 + len(tonal)),
        )  # fmt: skip

    def forward(self, pictures: Tensor, context: Context) -> Tensor:
        """Both of pictures (N, 3, H, W) in [0, 1] and what a conditioner makes of them: (N, 2)."""
        return self.scores(features(pictures, context)).softmax(1)[:, 1:] @ self.sums

    def scores(self, found: Tensor) -> Tensor:
        """Logits of nothing wrong and of each kind, (N, 1 + kinds), of `features` (N, C)."""
        return self.layers(((found - self.mean) / self.deviation).clamp(-6, 6))

    def fit(self, found: Tensor, kind: Tensor, seed: int, updates: int = 2000) -> "Judge":
        """Fit it to `features` (N, C) and what is wrong with each, (N,) int64, 0 for nothing; returns itself.

        Clean and other pictures count the same, however many there are.
        """
        self.mean.copy_(found.mean(0))
        self.deviation.copy_(found.std(0) + 1e-3)
        share = (kind > 0).float().mean()
        weight = 0.5 / torch.where(kind > 0, share, 1 - share)
        optimizer = torch.optim.AdamW(self.parameters(), 3e-3, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
        generator = torch.Generator().manual_seed(seed)
        with torch.enable_grad(), torch.random.fork_rng([]):
            torch.manual_seed(seed)
            for layer in self.layers:
                if isinstance(layer, nn.Linear):
                    layer.reset_parameters()
            self.train()
            for _ in range(updates):
                rows = torch.randint(len(found), (min(256, len(found)),), generator=generator)
                loss = F.cross_entropy(self.scores(found[rows]), kind[rows], reduction="none")
                (weight[rows] * loss).mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
        return self.eval().requires_grad_(False)


def features(pictures: Tensor, context: Context) -> Tensor:
    """What a judge goes by, (N, 2 width + `STATISTICS`): both embeddings at length 1, and the pictures' statistics."""
    embeddings = [F.normalize(embedding, dim=-1) for embedding in context if embedding is not None]
    return torch.cat([*embeddings, torch.stack([statistics(picture) for picture in pictures])], -1)


def statistics(picture: Tensor) -> Tensor:
    """Quantiles (`STATISTICS`,) of the tones of a picture (3, H, W) in [0, 1], reduced to 256 pixels, and of its edges
    and second derivatives, in windows at full resolution."""
    height, width = picture.shape[1:]
    if min(height, width) < 8:
        picture = F.pad(picture, (0, max(8 - width, 0), 0, max(8 - height, 0)), mode="replicate")
    small, scale = picture[None], _SIDE / max(picture.shape[1:])
    if scale < 1:
        small = F.interpolate(small, [max(round(scale * side), 1) for side in picture.shape[1:]], mode="area")
    luma = small.mean(1)
    darkest, brightest = small.amin(1), small.amax(1)
    tones = [_quantiles(luma, _SHARES), *(_quantiles(channel, _FEW) for channel in small[0])]
    tones += [_quantiles(darkest, _FEW), _quantiles(brightest - darkest, _FEW)]
    tones.append(_quantiles(-F.max_pool2d(-darkest, 7, 4, 3), _SHARES[::2]))  # the dark channel (He et al., CVPR 2009)
    tones.append(_quantiles(F.max_pool2d(brightest, 7, 4, 3), _SHARES[::2]))
    parts = windows(picture, (_WINDOW, _WINDOW))
    level, green = parts.mean(1, keepdim=True), parts[:, 1:2]
    edges = [_quantiles(_second(torch.cat([parts[:, :1] - green, parts[:, 2:] - green])), _FEW)]
    for _ in range(4):
        across, down = level.diff(dim=3), level.diff(dim=2)
        edges += [_quantiles(values.abs(), _FEW) for values in (_second(level), across, down)]
        level = F.avg_pool2d(level, 2) if min(level.shape[2:]) >= 16 else level
    return torch.cat([*tones, (torch.cat(edges) + 1 / 512).log()])


def _quantiles(values: Tensor, shares: Sequence[float]) -> Tensor:
    values = values.flatten().sort().values
    return values[[round(share * (len(values) - 1)) for share in shares]]


def _second(level: Tensor) -> Tensor:
    """Second derivatives along both axes at once of (N, 1, H, W): noise has them everywhere, pictures at corners."""
    return level.diff(n=2, dim=2).diff(n=2, dim=3).abs() / 4
