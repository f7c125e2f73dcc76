# SPDX-License-Identifier: Apache-2.0
"""Short trials of what the context codec leaves open: each changes one thing, all get the same crops and updates.

    python bench/trials.py --photos FOLDER ... --test FOLDER --every 4 --only base seed

Rates of trained trials are the entropy model's estimates on whole clean photos, PSNR is of 8-bit pictures. `encoder` is
no training: real files of the codec that studies start from, with a dead zone in its encoder. Without --only all are
made, with --only and no name none. Points are kept in docs/trials.json; what is there is not made again. `make trials`
puts the tables into docs/training-log.md.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from codec import Crops
from codec import curve as files
from common import ROOT, read, table, write_page
from torch import Tensor, nn

from llicm.benchmark.bdrate import bd
from llicm.codec import context
from llicm.codec.context import ContextCodec, LoopFilter
from llicm.codec.learned import OCTAVE, Block, Pointwise, Transform
from llicm.data.stream import Batch
from llicm.files import write_json
from llicm.framework import LLICM
from llicm.images import quantize8
from llicm.objectives import Objective
from llicm.report.show import psnr
from llicm.training.loop import Trainer
from llicm.transforms import BlockDCT
from llicm.weights import load_part

POINTS = ROOT / "docs" / "trials.json"
WIDTHS = {"N": 48, "M": 192, "features": 128, "lambdas": [0.0006, 0.0016, 0.004, 0.01]}
DEAD = 0.1  # of a quantiser step


class DeadZone(ContextCodec):
    """Rounds towards zero by a tenth of a step more, in training too: for the rate noise is added to what is left."""

    def _train_passes(self, y: Tensor, unit: Tensor, context: Tensor, quantize: Any = None) -> tuple[Tensor, Tensor]:
        self.left: list[Tensor] = []
        return super()._train_passes(y, unit, context, self._round)

    def _round(self, residual: Tensor) -> Tensor:
        left = residual - residual.clamp(-DEAD, DEAD)
        self.left.append(left)
        return residual + (left.round() - residual).detach()

    def _likelihood(self, residual: Tensor, scale: Tensor, noisy: bool) -> Tensor:  # type: ignore[override]
        left, self.left = torch.cat(self.left, 1), []
        return ContextCodec._likelihood(left if self.training else residual, scale, self.training)


class Prefiltered(ContextCodec):
    """A U-Net like the loop filter before the transform."""

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self.before = LoopFilter(1, self.config["loop"])

    def _analyse(self, x: Tensor, level: Tensor, gain: Tensor) -> Tensor:
        none = x.new_zeros(len(x), 1, x.shape[2] // 4, x.shape[3] // 4)
        x = x + self.before(x - 0.5, none, self.relative_level(level)).float()
        return super()._analyse(x, level, gain)


class Lower(Block):
    """Two residual blocks of twice the width at half the resolution."""

    def __init__(self, width: int):
        nn.Module.__init__(self)
        self.down, self.up = nn.Conv2d(width, 2 * width, 2, stride=2), Pointwise(2 * width, 4 * width)
        self.blocks = Transform(Block(2 * width), Block(2 * width))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return x + F.pixel_shuffle(self.up(self.blocks(self.down(x), level)), 2)


class SmallDCT(BlockDCT):
    STRIDE = 8


class SmallBlocks(ContextCodec):
    """DCT of 8x8 blocks: the latent at 1/8 of the resolution with a quarter of the coefficients, half the features."""

    def __init__(self, **arguments: Any):
        M = arguments["M"] // 4
        super().__init__(**arguments | {"M": M, "features": 64})
        N, self.dct = self.config["N"], SmallDCT(M)
        self.g_a = Transform(
            nn.PixelUnshuffle(4), nn.Conv2d(48, N, 3, padding=1), Block(N), nn.Conv2d(N, 2 * N, 2, stride=2),
            Block(2 * N), Block(2 * N),
        )  # fmt: skip
        self.g_s = Transform(
            Pointwise(M, 2 * N), Block(2 * N), Block(2 * N), Pointwise(2 * N, 4 * N), nn.PixelShuffle(2), Block(N)
        )


class Mixture(ContextCodec):
    """Two Laplace distributions a symbol: heads also say offset and scale of the second, relative to the first's scale,
    and its share."""

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self.others: list[Tensor] = []
        for size, heads in zip(self.groups, self.heads, strict=True):
            for p in range(len(heads)):
                heads[p] = _MixtureHead(self.config["features"], size, self.others)

    def _likelihood(self, residual: Tensor, scale: Tensor, noisy: bool) -> Tensor:  # type: ignore[override]
        wider, offset, share = torch.cat(self.others, 1).chunk(3, -1)
        self.others.clear()
        if noisy:
            residual = residual + torch.empty_like(residual).uniform_(-0.5, 0.5)
        second = scale * torch.exp2(1 + wider.clamp(-6, 6))
        one = ContextCodec._likelihood(residual, scale, False)
        other = ContextCodec._likelihood(residual - offset.clamp(-8, 8) * scale, second, False)
        return one.lerp(other, torch.sigmoid(share - 2))


class _MixtureHead(context._Head):
    def __init__(self, features: int, size: int, others: list[Tensor]):
        super().__init__(features, 5 * size)
        self.size, self.others = size, others

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        self.others.append(out[..., 2 * self.size :])
        return out[..., : 2 * self.size]


class Pupil(ContextCodec):
    """Learns besides from the encoder of the codec that studies start from: wider, and trained twenty times as long."""

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self.teacher = [
            load_part("codec", ROOT / "init/context/rdo.safetensors")
        ]  # in a list it is no part of this one

    def _analyse(self, x: Tensor, level: Tensor, gain: Tensor) -> Tensor:
        y = super()._analyse(x, level, gain)
        if self.training:
            with torch.no_grad():
                theirs = self.teacher[0].gains(level)[0]  # its first levels are of the same lambdas
                goal = self.teacher[0]._analyse(x, level, theirs) / theirs
            self.distance = (y / gain - goal[:, : y.shape[1]]).square().sum((1, 2, 3)) / x[0].numel()
        return y


@dataclass(frozen=True)
class Lessons(Objective):
    """With the distance of the pupil's coefficients from its teacher's at a fifth of the weight of the distortion."""

    pupil: Any = None

    def __call__(self, output: Any, x: Tensor, prefiltered: Tensor, ideal: Tensor, lmbda: Any) -> tuple[Tensor, Tensor]:
        loss, bpp = super().__call__(output, x, prefiltered, ideal, lmbda)
        weight = (lmbda.log().mean().exp() * lmbda).sqrt()
        return loss + 0.2 * 255**2 * (weight * self.pupil.distance).mean(), bpp


class Growing:
    """Crops as of `Crops` up to a step, and from there on fewer and larger ones."""

    def __init__(self, photos: Sequence[Tensor], rows: int, step: int):
        self.parts, self.step = (Crops(photos, 128, rows), Crops(photos, 192, rows // 2)), step

    def batch(self, step: int) -> Batch:
        return self.parts[step >= self.step].batch(step)


def as_it_is(codec: Any) -> None:
    pass


def deeper(codec: Any) -> None:
    codec.loop.middle.extend(Block(2 * codec.config["loop"]) for _ in range(3))


def lower(codec: Any) -> None:
    codec.loop.middle.insert(1, Lower(2 * codec.config["loop"]))


# Name: what it is, the codec, what is done to it, arguments.
TRIALS: dict[str, tuple[str, type[ContextCodec], Callable[[Any], None], dict]] = {
    "base": ("the codec as it is", ContextCodec, as_it_is, {}),
    "lower": ("loop filter: two blocks of 128 channels more, at 1/8", ContextCodec, lower, {}),
    "prefiltered": ("a U-Net like the loop filter in the encoder, before the transform", Prefiltered, as_it_is, {}),
    "mixture": ("mixtures of two Laplace distributions", Mixture, as_it_is, {}),
    "seed": ("the same, other seed of weights, noise and levels", ContextCodec, as_it_is, {}),
    "dead": ("a dead zone of a tenth of a step, trained through", DeadZone, as_it_is, {}),
    "late": ("the last quarter of the updates on half as many crops of 192", ContextCodec, as_it_is, {}),
    "small": ("DCT of 8x8 blocks, latent at 1/8", SmallBlocks, as_it_is, {}),
    "pupil": ("encoder taught by the published codec's", Pupil, as_it_is, {}),
    "bound": ("smallest scale 1/64 of a step in place of 1/16", ContextCodec, as_it_is, {}),
    "deeper": ("loop filter: five blocks at 1/4 in place of two", ContextCodec, deeper, {}),
    "wider": ("loop filter: 48 and 96 channels in place of 32 and 64", ContextCodec, as_it_is, {"loop": 48}),
}


def trained(name: str, photos: Sequence[Tensor], a: argparse.Namespace) -> tuple[Any, dict]:
    """The trained codec in evaluation, and what it took."""
    _, kind, change, arguments = TRIALS[name]
    seed = int(name == "seed")
    torch.manual_seed(seed)
    codec: Any = kind(**WIDTHS | arguments)
    change(codec)
    codec.measure([photo / 255 for photo in photos[:: max(len(photos) // 50, 1)]])
    crops = Growing(photos, a.rows, a.updates * 3 // 4) if name == "late" else Crops(photos, 128, a.rows)
    weights = {"alpha": 1.0, "beta": 1.0, "distortion": {"mse": 1.0}}
    loss = Lessons(**weights, pupil=codec) if name == "pupil" else Objective(**weights)
    trainer = Trainer(
        LLICM(codec, None), ["codec"], loss, crops, ["clean"], steps=a.updates, warmup=200, lr=2e-3,
        max_grad_norm=1.0, precision="bf16", seed=seed, log_every=100,
    )  # fmt: skip
    # as the trainer's, of fewer small operations
    adam = torch.optim.Adam(trainer.trained, lr=2e-3, betas=(0.9, 0.99), fused=True)
    trainer.optimizer = trainer.accelerator.prepare_optimizer(adam)
    began = time.process_time()
    rows = trainer.run()
    pace = (time.process_time() - began) / a.updates
    size = sum(p.numel() for p in codec.parameters())
    last = round(float(np.mean([row["loss"] for row in rows[-5:]])), 5)
    return codec.eval(), {"cpu_seconds_an_update": round(pace, 3), "parameters": size, "loss": last}


@torch.no_grad()
def curve(codec: Any, images: Sequence[Tensor]) -> list[dict]:
    """Mean estimated bits per pixel and mean PSNR of 8-bit pictures, by level."""
    points = []
    for level in range(codec.levels):
        bits, values = [], []
        for x in images:
            height, width = x.shape[1:]
            out = codec(
                F.pad(x[None], (0, -width % 64, 0, -height % 64), mode="replicate"), torch.tensor([level * 1.0])
            )
            bits.append(sum(-float(v.double().log2().sum()) for v in out["likelihoods"].values()) / (height * width))
            values.append(psnr(quantize8(out["x_hat"][0, :, :height, :width].clamp(0, 1)), x))
        points.append({"level": level, "bpp": round(float(np.mean(bits)), 5), "psnr": round(float(np.mean(values)), 4)})
    return points


def rate(anchor: list[dict], points: list[dict]) -> float | None:
    return bd(*([p[key] for p in c] for c in (anchor, points) for key in ("bpp", "psnr")), unit="dB").rate


class Thrifty(ContextCodec):
    """Rounds towards zero by this part of a step more, in the encoder alone: for weights trained without."""

    zone = 0.0

    def _encode(self, y: Tensor, z_hat: Tensor, level: float, gain: Tensor) -> tuple[Tensor, Tensor]:
        rows = y[0].flatten(1).T.contiguous()

        def choose(part: slice, at: Tensor, indexes: Tensor, means: Tensor) -> Tensor:
            residual = rows[:, part].index_select(0, at).T - self._steps(means)
            return (residual - residual.clamp(-self.zone, self.zone)).round_().mul_(indexes > 0)

        return self._walk(z_hat, level, choose)[:2]


def thresholds(images: Sequence[Tensor]) -> dict[str, list[dict]]:
    """Points of real files of the codec that studies start from, by dead zone of its encoder."""
    codec: Any = load_part("codec", ROOT / "init/context/rdo.safetensors")
    codec.__class__, levels, found = Thrifty, range(0, codec.levels, 2), {}
    for zone in (0.0, 0.02, 0.05, 0.1):
        Thrifty.zone = zone
        found[f"{zone:g}"] = files(codec.compress, lambda data: codec.decompress(data)[0], levels, images)
    return found


def summary(found: dict[str, Any]) -> list[str]:
    """The tables of all that was measured."""
    base, zones = found["base"], found["encoder"]
    rows = [
        {
            "trial": TRIALS[name][0],
            "BD-rate": "" if name == "base" else f"{rate(base['points'], found[name]['points']):+.1f}%",
            "weights": f"{found[name]['parameters'] / 1e6:.2f} M",
            "CPU time of an update": f"{found[name]['cpu_seconds_an_update'] / base['cpu_seconds_an_update']:.2f}",
        }
        for name in TRIALS if name in found
    ]  # fmt: skip
    at_encoder = [
        {"dead zone of the encoder, steps": zone, "BD-rate": f"{rate(zones['0'], zones[zone]):+.2f}%"} for zone in zones
    ]
    return [table(rows), table(at_encoder)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=Path, nargs="+", default=[ROOT / "data" / "train"], help="to learn from")
    parser.add_argument("--test", type=Path, default=ROOT / "data" / "test")
    parser.add_argument("--every", type=int, default=1, help="use each so manieth test photo")
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=6, help="crops of an update")
    parser.add_argument("--only", nargs="*", choices=["encoder", *TRIALS], help="these; else all")
    parser.add_argument("--points", type=Path, default=POINTS)
    a = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(a.points.read_text(encoding="utf-8")) if a.points.exists() else {}
    missing = [name for name in (["encoder", *TRIALS] if a.only is None else a.only) if name not in found]
    photos = [photo for photo in read(a.photos if set(missing) & set(TRIALS) else []) if min(photo.shape[1:]) >= 192]
    images = [photo / 255 for photo in read([a.test] if missing else [])[:: a.every]]
    for name in missing:
        if name == "encoder":
            found[name] = thresholds(images)
        else:
            with patch.object(context, "FIRST_SCALE", (-6 if name == "bound" else -4) * OCTAVE):
                codec, taken = trained(name, photos, a)
                found[name] = taken | {"points": curve(codec, images)}
        write_json(found, a.points)
    if a.points == POINTS:
        write_page("training-log", summary(found))


if __name__ == "__main__":
    main()
