# SPDX-License-Identifier: Apache-2.0
"""How well the conditioner recognises degradations in decoded images it has never seen."""

import math
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from llicm.degradations import CLEAN, degrade
from llicm.registry import Codec
from llicm.vlm.clip import WORDS
from llicm.vlm.conditioner import Conditioner, judged

__all__ = ["accuracy", "fit_judge", "recognise_all", "tiles"]


def tiles(photos: Mapping[str, Tensor], side: int) -> dict[str, Tensor]:
    """Photos (3, H, W) cut into squares of `side` that do not overlap, at the centre; smaller photos stay whole."""
    out = {}
    for name, photo in photos.items():
        rows, cols = (max(size // side, 1) for size in photo.shape[1:])
        height, width = (min(size, side) for size in photo.shape[1:])
        top, left = (photo.shape[1] - rows * height) // 2, (photo.shape[2] - cols * width) // 2
        for r in range(rows):
            for c in range(cols):
                out[f"{name} {r},{c}"] = photo[
                    :, top + r * height : top + (r + 1) * height, left + c * width : left + (c + 1) * width
                ]
    return out


def fit_judge(conditioner: Conditioner, batches: Iterable[tuple[Tensor, Tensor]], decay: float = 5e-5) -> None:
    """Give the conditioner a judge: how surely something is wrong with a picture.

    Words are told apart by a contrast of pictures with words, which knows little of what a clean picture may look like
    and is sure of everything: of clean wallpapers, 1 in 30 was called clean. The judge is a logistic regression on the
    same embeddings, so its probabilities mean what they say.

    Args:
        batches: pictures (N, 3, H, W) in [0, 1] as decoders see them, and whether something is wrong with each (N,).
            Clean and other pictures count the same, however many there are.
        decay: of the squared weights.
    """
    seen = [(judged(conditioner(pictures)), wrong) for pictures, wrong in batches]
    x, y = torch.cat([x for x, _ in seen]).double(), torch.cat([wrong for _, wrong in seen]).double()
    share = torch.where(y > 0, y.mean(), 1 - y.mean())
    judge = x.new_zeros(x.shape[1] + 1).requires_grad_()
    optimizer = torch.optim.LBFGS([judge], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        off = F.binary_cross_entropy_with_logits(x @ judge[:-1] + judge[-1], y, 0.5 / share)
        total = off + decay * judge[:-1].square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    conditioner.judge = judge.detach().float()


@torch.no_grad()
def recognise_all(
    conditioner: Conditioner, photos: Mapping[str, Tensor], tasks: Sequence[str], codec: Codec | None, *, side: int,
    severities: Sequence[float], levels: Sequence[float], seed: int,
) -> pd.DataFrame:  # fmt: skip
    """Ask the conditioner for the degradation of every photo, at every severity and level of compression.

    Args:
        photos: clean (3, H, W) by name; cut into `tiles` of `side`.
        tasks: the words that the study is about.
        codec: a learned codec, in eval mode; None for uncompressed images only.
        levels: of the codec.

    Returns:
        A row per image: `photo`, `severity`, `level` (NaN: uncompressed), `word`, the `guess` among the ten
        degradation words and "clean", and `guess_of_tasks`, the likeliest of `tasks`.
    """
    rows = []
    pieces = tiles(photos, side)
    generator = Generator().manual_seed(seed)
    for word in WORDS:
        for severity in severities:
            for name, piece in pieces.items():
                x = piece[None] if word == CLEAN else degrade(word, piece[None], severity, generator)
                seen = [(math.nan, x)]
                if codec is not None:
                    seen += [(v, codec.decompress(codec.compress(x[0], float(v)))[0][None]) for v in levels]
                for level, decoded in seen:
                    likely = conditioner.recognise(decoded)[0]
                    guess, among = WORDS[int(likely.argmax())], max(tasks, key=lambda w: likely[WORDS.index(w)])
                    rows.append({
                        "photo": name, "severity": severity, "level": level, "word": word, "guess": guess,
                        "guess_of_tasks": among,
                    })  # fmt: skip
    return pd.DataFrame(rows)


def accuracy(table: pd.DataFrame, words: Sequence[str]) -> dict[str, float]:
    """Share of right guesses on images of these words, by level ("none": uncompressed, then the levels in order)."""
    of = table[table["word"].isin(words)]
    right = (of["word"] == of["guess"]).groupby(of["level"].fillna(-1.0)).mean()
    return {"none" if level < 0 else f"{level:g}": float(value) for level, value in right.items()}
