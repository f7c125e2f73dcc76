# SPDX-License-Identifier: Apache-2.0
"""The endless stream of training batches: crops of photos and dead leaves, degraded on the fly, and graphics."""

import bisect
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from llicm.data.crops import Crop, crops_at_once, cut
from llicm.data.dead_leaves import dead_leaves
from llicm.data.graphics import GRAPHICS, graphic
from llicm.data.pairs import Pair, TrainingPair
from llicm.data.photo import Photo
from llicm.degradations import CLEAN, DEGRADATIONS, IN_ORDER, camera_noise, degrade, degrade_at_once
from llicm.errors import UserError


class Batch(NamedTuple):
    """One training batch; images are (N, 3, crop, crop) float32 in [0, 1].

    ``task`` (N,) int64 indexes the stream's tasks and ``second`` (N,) the further task of a mixed row, -1 for none.
    ``severity`` (N,) float32 lies in [0, 1] and is NaN for crops of ready-made pairs, whose severity nobody knows.
    ``photo`` (N,) int64 indexes the stream's photos; -1 for what is made and for ready-made pairs. The images are on
    the stream's device, the others on the processor.
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

    On a device, batches are made there, at once, from photos that lie there as bytes. Tasks, severities and crops
    are those of the processor's batches, but for rounding; the degradations are other ones of the same distribution.

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
        graphics_share: probability that a row of the task "clean" shows neither a photo nor dead leaves but one of
            `llicm.data.graphics`.
        device: where batches are made at once; None to make them on the processor, row by row.

    Raises:
        UserError: an unknown degradation word.
        ValueError: another argument outside these ranges.
    """

    def __init__(
        self, photos: Sequence[Tensor | Photo], tasks: Sequence[str], crop: int, batch: int, seed: int,
        dead_leaves_share: float, severity: tuple[float, float], pool: int, refresh: int,
        paired: Mapping[str, Sequence[Pair | TrainingPair]] | None = None, mixed: float = 0.0,
        device: torch.device | str | None = None, graphics_share: float = 0.0,
    ):  # fmt: skip
        low, high = severity
        if not photos or not tasks or min(crop, batch, pool, refresh) < 1:
            raise ValueError("PairStream needs photos, tasks, and crop, batch, pool, refresh >= 1")
        if not (0 <= low <= high <= 1 and all(0 <= v <= 1 for v in (dead_leaves_share, mixed, graphics_share))):
            raise ValueError("severity, dead_leaves_share, mixed and graphics_share must lie in [0, 1]")
        if unknown := [word for word in tasks if word not in DEGRADATIONS and word != CLEAN]:
            known = ", ".join(DEGRADATIONS)
            raise UserError(f"tasks: unknown degradation {unknown[0]!r}; use one of {known}.")
        self.tasks = tuple(tasks)
        self.crop, self.rows, self.seed = crop, batch, seed
        self.dead_leaves_share, self.severity, self.mixed = dead_leaves_share, (low, high), mixed
        self.graphics_share = graphics_share
        self._degrading = [index for index, word in enumerate(self.tasks) if word != CLEAN]
        self.pool, self.refresh = pool, refresh
        self._photos = [Photo.of(photo) for photo in photos]
        self._scales = [photo.scales(crop) for photo in self._photos]
        self._cumulative = _cumulative(photo.shape[1:] for photo in self._photos)
        self._leaf_size = max(2 * crop, 16)
        self._leaves: dict[int, Photo] = {}
        self._paired = {
            word: [(Photo.of(p.degraded), Photo.of(p.ideal)) for p in found]
            for word, found in (paired or {}).items()
            if found
        }
        self._paired_cumulative = {
            word: _cumulative([max(side, crop) for side in ideal.shape[1:]] for _, ideal in found)
            for word, found in self._paired.items()
        }
        self.device = None if device is None else torch.device(device)

    def batch(self, step: int) -> Batch:
        """The batch of a step (0, 1, 2, ...): the same bytes whichever batches were made before."""
        generator = Generator().manual_seed(_mix(self.seed, 1, step))
        task = torch.tensor([(step * self.rows + row) % len(self.tasks) for row in range(self.rows)])
        low, high = self.severity
        severity = torch.rand(self.rows, generator=generator) * (high - low) + low
        rows = [self._row(int(index), step, generator) for index in task]
        ready = torch.tensor([len(crops) == 2 for _, crops in rows])
        photo = torch.tensor([index for index, _ in rows])
        severity[ready] = math.nan
        second, level = self._second(task, ready, generator)
        ideal = self._cut([crops[-1] for _, crops in rows])
        degraded = ideal.clone()
        if ready.any():
            degraded[ready.nonzero()[:, 0].to(ideal.device)] = self._cut([crops[0] for _, crops in rows if crops[1:]])
        for word in IN_ORDER:
            if word not in self.tasks:
                continue
            index = self.tasks.index(word)
            hit = ((task == index) & ~ready) | (second == index)
            if hit.any():
                severities = torch.where(second == index, level, severity)[hit]
                where = hit.nonzero()[:, 0].to(ideal.device)
                function = degrade if self.device is None else degrade_at_once
                before = degraded[where]
                made = function(word, before, severities, generator)
                if word == "noisy":  # half of the rows as a camera writes them
                    own = Generator().manual_seed(_mix(self.seed, 4, step))
                    half = torch.rand(len(made), generator=own).lt(0.5).to(made.device)[:, None, None, None]
                    made = torch.where(half, camera_noise(made, before, own), made)
                degraded[where] = made
        return Batch(degraded, ideal, task, severity, second, photo)

    def _cut(self, crops: Sequence[Crop]) -> Tensor:
        if self.device is None:
            return torch.stack([cut(crop, self.crop) for crop in crops])
        return crops_at_once(crops, self.crop, self.device)

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

    def _row(self, task: int, step: int, generator: Generator) -> tuple[int, tuple[Crop, ...]]:
        """The photo's index, -1 if it is none of the stream's, and its crop; of a ready-made pair the degraded and the
        ideal one."""
        u = torch.rand(12, generator=generator, dtype=torch.float64).tolist()
        word, drawn = self.tasks[task], ((u[3], u[4]), u[5])
        if word in self._paired and u[0] < 0.5:
            pair = self._paired[word][bisect.bisect_right(self._paired_cumulative[word], u[2])]
            return -1, tuple(Crop(picture, 1.0, *drawn) for picture in pair)
        if word == CLEAN and u[1] >= 1 - self.graphics_share:
            kind, own = list(GRAPHICS)[int(u[2] * len(GRAPHICS))], Generator().manual_seed(int(u[7] * 2**62))
            return -1, (Crop(Photo.of(graphic(kind, self.crop, own)), 1.0, *drawn),)
        if u[1] < self.dead_leaves_share:
            first = step // self.refresh
            return -1, (Crop(self._leaf(first + int(u[2] * self.pool), first), 1.0, *drawn, u[7:]),)
        index = bisect.bisect_right(self._cumulative, u[2])
        scales = self._scales[index]
        return index, (Crop(self._photos[index], scales[int(u[6] * len(scales))], *drawn, u[7:]),)

    def _leaf(self, index: int, first: int) -> Photo:
        if index not in self._leaves:
            generator = Generator().manual_seed(_mix(self.seed, 2, index))
            leaves = dead_leaves(self._leaf_size, [photo.pixels for photo in self._photos], generator)
            self._leaves[index] = Photo.of(leaves)
            if len(self._leaves) > 2 * self.pool:
                for old in [i for i in self._leaves if not first <= i < first + self.pool]:
                    del self._leaves[old]
        return self._leaves[index]


def _cumulative(sizes: Iterable[Sequence[int]]) -> list[float]:
    """Upper ends of the images' shares of [0, 1), each proportional to the square root of the area; of their sizes."""
    weights = [math.sqrt(height * width) for height, width in sizes]
    return [*itertools.accumulate(w / sum(weights) for w in weights[:-1])]


def _mix(*numbers: int) -> int:
    """A seed from several numbers (splitmix64 steps): neighbours get unrelated generators."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return state & (2**63 - 1)
