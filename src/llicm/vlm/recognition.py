# SPDX-License-Identifier: Apache-2.0
"""How well the conditioner recognises degradations in decoded images it has never seen."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Generator, Tensor

from llicm.degradations import CLEAN, degrade
from llicm.registry import Codec
from llicm.vlm.clip import WORDS
from llicm.vlm.conditioner import Conditioner

__all__ = ["accuracy", "recognise_all", "tiles"]


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
