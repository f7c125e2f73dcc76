# SPDX-License-Identifier: Apache-2.0
"""The endless stream of training batches: crops of photos and dead leaves, degraded on the fly."""

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from llicm.data.dead_leaves import dead_leaves
from llicm.data.pairs import Pair
from llicm.data.photo import Photo, as_floats
from llicm.degradations import CLEAN, DEGRADATIONS, IN_ORDER, degrade
from llicm.errors import UserError

__all__ = ["Batch", "PairStream"]


class Batch(NamedTuple):
    """One training batch; images are (N, 3, crop, crop) float32 in [0, 1].

    ``task`` (N,) int64 indexes the stream's tasks and ``second`` (N,) the further task of a mixed row, -1 for none.
    ``severity`` (N,) float32 lies in [0, 1] and is NaN for crops of ready-made pairs, whose severity nobody knows.
    ``photo`` (N,) int64 indexes the stream's photos; -1 for dead leaves and ready-made pairs.
    """

    degraded: Tensor
    ideal: Tensor
    task: Tensor
    severity: Tensor
    second: Tensor
    photo: Tensor


class PairStream:
    """Training batches by number: ``batch(step)`` depends on the arguments and the step alone.

    So training resumes at any step with the bytes it would have seen. Tasks take turns row by row, and the
    turn goes on from one step to the next: every task is seen equally often.

    Args:
        photos: clean photos, or images (3, H, W) in [0, 1]; at least one. A photo is chosen with a probability
            proportional to the square root of its area, at a scale of 1, 0.75, 0.5 or 0.35 that is not smaller than
            the crop; photos smaller than the crop are mirrored at the border.
        tasks: degradation words, or "clean", in the order that ``Batch.task`` counts.
        crop: side of the crops in pixels.
        batch: rows per batch.
        seed: seed of everything.
        dead_leaves_share: probability that a row shows dead leaves instead of a photo, 0 to 1.
        severity: (low, high) of the uniform severity, within [0, 1].
        pool: number of dead-leaves images at hand at a time.
        refresh: steps after which the oldest of them is replaced by a new one.
        paired: ready-made training pairs by word; half of that task's rows are then crops of these.
        mixed: probability, 0 to 1, that a row suffers a second of the tasks too, at a severity of its own.

    Raises:
        UserError: an unknown degradation word.
        ValueError: another argument outside these ranges.
    """

    def __init__(
        self, photos: Sequence[Tensor | Photo], tasks: Sequence[str], crop: int, batch: int, seed: int,
        dead_leaves_share: float, severity: tuple[float, float], pool: int, refresh: int,
        paired: Mapping[str, Sequence[Pair]] | None = None, mixed: float = 0.0,
    ):  # fmt: skip
        low, high = severity
        if not photos or not tasks or min(crop, batch, pool, refresh) < 1:
            raise ValueError("PairStream needs photos, tasks, and crop, batch, pool, refresh >= 1")
        if not (0 <= low <= high <= 1 and 0 <= dead_leaves_share <= 1 and 0 <= mixed <= 1):
            raise ValueError("severity, dead_leaves_share and mixed must lie in [0, 1]")
        if unknown := [word for word in tasks if word not in DEGRADATIONS and word != CLEAN]:
            known = ", ".join(DEGRADATIONS)
            raise UserError(f"tasks: unknown degradation {unknown[0]!r}; use one of {known}.")
        self.tasks = tuple(tasks)
        self.crop, self.rows, self.seed = crop, batch, seed
        self.dead_leaves_share, self.severity, self.mixed = dead_leaves_share, (low, high), mixed
        self._degrading = [index for index, word in enumerate(self.tasks) if word != CLEAN]
        self.pool, self.refresh = pool, refresh
        self._photos = [Photo.of(photo) for photo in photos]
        self._scales = [photo.scales(crop) for photo in self._photos]
        self._cumulative = _cumulative(self._photos)
        self._leaf_size = max(2 * crop, 16)
        self._leaves: dict[int, Tensor] = {}
        self._paired = {
            word: [(_at_least(p.degraded, crop), _at_least(p.ideal, crop)) for p in found]
            for word, found in (paired or {}).items()
            if found
        }
        self._paired_cumulative = {word: _cumulative([i for _, i in found]) for word, found in self._paired.items()}

    def batch(self, step: int) -> Batch:
        """The batch of a step (0, 1, 2, ...): the same bytes whichever batches were made before."""
        generator = Generator().manual_seed(_mix(self.seed, 1, step))
        task = torch.tensor([(step * self.rows + row) % len(self.tasks) for row in range(self.rows)])
        low, high = self.severity
        severity = torch.rand(self.rows, generator=generator) * (high - low) + low
        ideal = torch.empty(self.rows, 3, self.crop, self.crop)
        degraded = torch.empty_like(ideal)
        photos = [self._row(row, int(task[row]), step, ideal, degraded, generator) for row in range(self.rows)]
        ready = torch.tensor([index is None for index in photos])
        photo = torch.tensor([-1 if index is None else index for index in photos])
        severity[ready] = math.nan
        second, level = self._second(task, ready, generator)
        degraded = torch.where(ready[:, None, None, None], degraded, ideal)
        for word in IN_ORDER:
            if word not in self.tasks:
                continue
            index = self.tasks.index(word)
            rows = ((task == index) & ~ready) | (second == index)
            if rows.any():
                severities = torch.where(second == index, level, severity)[rows]
                degraded[rows] = degrade(word, degraded[rows], severities, generator)
        return Batch(degraded, ideal, task, severity, second, photo)

    def _second(self, task: Tensor, ready: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Of each row the further task, or -1, and its severity."""
        second = torch.full_like(task, -1)
        if not self.mixed or len(self._degrading) < 2:
            return second, torch.zeros(len(task))
        low, high = self.severity
        u = torch.rand(3, self.rows, generator=generator)
        degrading = torch.tensor(self._degrading)
        # another one: a turn of 1 to len - 1 places round the list
        place = (task[:, None] == degrading).int().argmax(1)
        turn = 1 + (u[1] * (len(degrading) - 1)).long()
        other = degrading[(place + turn) % len(degrading)]
        rows = (u[0] < self.mixed) & ~ready & (task[:, None] == degrading).any(1)
        return torch.where(rows, other, second), u[2] * (high - low) + low

    def _row(self, row: int, task: int, step: int, ideal: Tensor, degraded: Tensor, generator: Generator) -> int | None:
        """Fill the row's ideal crop; returns the photo's index, -1 for dead leaves, or None if it is from a ready-made
        pair, which then has filled the degraded crop as well."""
        u = torch.rand(12, generator=generator, dtype=torch.float64).tolist()
        word = self.tasks[task]
        if word in self._paired and u[0] < 0.5:
            index = bisect.bisect_right(self._paired_cumulative[word], u[2])
            for image, target in zip(self._paired[word][index], (degraded, ideal), strict=True):
                target[row] = _cut(image, self.crop, u[3], u[4], u[5])
            return None
        photo = -1
        if u[1] < self.dead_leaves_share:
            first = step // self.refresh
            image = self._leaf(first + int(u[2] * self.pool), first)
        else:
            photo = bisect.bisect_right(self._cumulative, u[2])
            scales = self._scales[photo]
            image = _at_least(self._photos[photo].at(scales[int(u[6] * len(scales))]), self.crop)
        ideal[row] = _recolour(as_floats(_cut(image, self.crop, u[3], u[4], u[5])), u[7:])
        return photo

    def _leaf(self, index: int, first: int) -> Tensor:
        if index not in self._leaves:
            generator = Generator().manual_seed(_mix(self.seed, 2, index))
            self._leaves[index] = dead_leaves(self._leaf_size, [photo.pixels for photo in self._photos], generator)
            if len(self._leaves) > 2 * self.pool:
                for old in [i for i in self._leaves if not first <= i < first + self.pool]:
                    del self._leaves[old]
        return self._leaves[index]


def _cumulative(images: Sequence[Tensor | Photo]) -> list[float]:
    """Upper ends of the images' shares of [0, 1), each proportional to the square root of the area."""
    weights = [math.sqrt(i.shape[1] * i.shape[2]) for i in images]
    return [*itertools.accumulate(w / sum(weights) for w in weights[:-1])]


def _at_least(image: Tensor, side: int) -> Tensor:
    """The image, mirrored below and to the right until both sides reach ``side``."""
    for dim in (1, 2):
        while image.shape[dim] < side:
            mirrored = image.flip(dim).narrow(dim, 0, min(image.shape[dim], side - image.shape[dim]))
            image = torch.cat((image, mirrored), dim)
    return image


def _cut(image: Tensor, crop: int, v: float, u: float, pose: float) -> Tensor:
    """The crop at the relative place (v, u), in one of the eight poses of a square; v, u, pose in [0, 1)."""
    top = int(v * (image.shape[1] - crop + 1))
    left = int(u * (image.shape[2] - crop + 1))
    piece = image[:, top : top + crop, left : left + crop]
    pose = int(pose * 8)
    if pose & 1:
        piece = piece.flip(2)
    if pose & 2:
        piece = piece.flip(1)
    return piece.transpose(1, 2) if pose & 4 else piece


def _recolour(image: Tensor, u: Sequence[float]) -> Tensor:
    """Another light and palette for a crop (3, H, W): hue, saturation, contrast and brightness from u in [0, 1)^5.

    Few photos mean few palettes, and a restorer that has seen only those takes every pale one for haze. Hue turns by
    up to 1 rad about the grey axis, saturation is scaled by 0.3 to 1.2, contrast by 0.8 to 1.1, and brightness shifts
    by up to 0.1; a quarter of the crops stay as they are.
    """
    if u[0] < 0.25:
        return image
    turn, saturation, contrast, shift = 2 * u[1] - 1, 0.3 + 0.9 * u[2], 0.8 + 0.3 * u[3], 0.2 * u[4] - 0.1
    cosine, sine = saturation * math.cos(turn), saturation * math.sin(turn) / math.sqrt(3)
    same, next_, last = (1 + 2 * cosine) / 3, (1 - cosine) / 3 - sine, (1 - cosine) / 3 + sine
    matrix = contrast * torch.tensor([[same, next_, last], [last, same, next_], [next_, last, same]])
    pixels = image.reshape(3, -1)
    mean = pixels.mean(1, keepdim=True)
    return torch.addmm(mean + shift - matrix @ mean, matrix, pixels).clamp_(0, 1).view_as(image)


def _mix(*numbers: int) -> int:
    """A seed from several numbers (splitmix64 steps): neighbours get unrelated generators."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return state & (2**63 - 1)
