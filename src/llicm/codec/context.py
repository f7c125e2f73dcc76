# SPDX-License-Identifier: Apache-2.0
"""A learned codec with memory and a loop filter: what is decoded predicts what is not, and a network sees the picture.

    encoder  x ─► DCT ─► attenuate, add (g_a looks at x) ─· gain ─► Q ─► ŷ ─► bytes
    decoder  bytes ─► frequency groups, each in interlaced passes ─► ŷ ─· inverse gain ─► DCT⁻¹ ─► loop filter ─► x̂
                                    ▲ z: features for all blocks                                     ▲ g_s(ŷ)

Transforms and hyper-latent are those of `mean-scale` (`llicm.codec.learned`). New are two parts:

- *Context.* The coefficients of a block fall into five groups, from low frequencies to high. A group is decoded in
  passes over interlaced blocks: five for the first group, three for the second, two (a checkerboard) for the others. In
  each pass a small network at 1/16 of the resolution says mean and scale of every coefficient of that pass's blocks. It
  sees the features that the hyper-latent gives, all groups decoded before, and of this group the blocks decoded before.
  No symbol waits for its neighbour: a pass is a few matrix products and one call of the entropy coder.
- *Loop filter.* A small U-Net on the decoded picture, with the latent's features beside it, repairs block edges and
  ringing. It starts without effect. The decoder runs it behind the last symbol, so it is an ordinary float network.

Which table codes a symbol now depends on symbols decoded before. So all of the context is integers, the same on every
machine: decoded values and their means are whole numbers of 1/64 quantiser step; a coefficient in units of its usual
spread is one product with a 15-bit integer, divided by a power of two; what the networks see is looked up in a table;
the networks are `IntegerConv`, and linear prediction is a sum of integers. Floats hold them, as long as they are exact:
up to 2^24 in float32, 2^53 in float64. Encoder and decoder go through the same function, `ContextCodec._walk`.

Training takes the same steps in floats, rounded straight-through, for all blocks of a batch at once.

Sources: He et al., "Checkerboard context model for efficient learned image compression", CVPR 2021; Minnen, Singh,
"Channel-wise autoregressive entropy models for learned image compression", ICIP 2020 (groups); Ballé, Johnston,
Minnen, "Integer networks for data compression with latent-variable models", ICLR 2019; Ronneberger, Fischer, Brox,
"U-Net: convolutional networks for biomedical image segmentation", MICCAI 2015 (the form of the loop filter).
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llicm.codec.bitstream import LEVEL_UNIT
from llicm.codec.entropy import Decoder
from llicm.codec.learned import (
    HYPER_LIMIT,
    OCTAVE,
    Block,
    HyperSynthesis,
    LearnedCodec,
    Pointwise,
    Quantizer,
    Transform,
    bands,
    hyper_analysis,
    zeroed,
)
from llicm.codec.priors import FactorisedPrior
from llicm.integer import ACTIVATION_UNIT, IntegerConv, products, quantize_ste
from llicm.registry import CODECS
from llicm.strips import fits, give_back
from llicm.transforms import BlockDCT, interleave, squash

__all__ = ["ContextCodec", "LoopFilter", "group_sizes", "places"]

# Groups of coefficients in the DCT's order, measured best at 320, and the passes of each.
GROUPS = (16, 32, 64, 96, 112)
PASSES = (5, 3, 2, 2, 2)
PREDICTED = 3  # groups with linear prediction of means

# Tables stand from a standard deviation of 1/16 of a quantiser step on. There a Laplace symbol is zero but for one in
# 80,000, so it is not coded: it is zero.
FIRST_SCALE = -4 * OCTAVE
_TAIL = 7  # standard deviations that a table covers

# Fixed point. A spread in quantiser steps is 2^(offset / 64), offset within these bounds, so no shift is negative.
_LOWEST, _HIGHEST = -10 * OCTAVE, 15 * OCTAVE
_VALUE = 6  # bits behind the point of decoded values and means, in quantiser steps
_MEAN, _MEAN_LIMIT = 12, 1 << 18  # of means in units of the spread; limited to ±64
_SIGHT, _SIGHT_LIMIT = 8, 1 << 17  # of decoded values in units of the spread; limited to ±512
_WEIGHT, _WEIGHT_LIMIT = 12, 1 << 15  # of weights of linear prediction; limited to ±8
_MANTISSA = 14
SEEN_UNIT, SEEN_LIMIT = 16, 127  # what networks see of decoded values: squashed, in 1/16
_SEEN_LAST = 8191  # 1/256 of the spread, from where it does not change
_FEATURE_UNIT, _FEATURE_LIMIT = 1024, 1 << 20  # up to 16 such numbers add up to at most 2^24, which float32 holds
_PLACE = 256  # fixed-point steps of the relative level
_ROWS = 1 << 14  # blocks whose neighbourhoods are laid out at a time, a bound on memory

# log2 of the mean absolute value of each DCT coefficient of the study's training photos (data/train, at scales 1, 0.75,
# 0.5 and 0.35, pixels in [0, 1]) in 1/8 octave, as the character 108 places up. `ContextCodec.measure` measures anew.
_SPREADS = (
    r"}wohfac`^]USLL[_\[ZXXLE\YXWVVUYTTUMIECVTTSGFAARRQVSSRQPPPPOD?SPQOOIEA@ONONDC?>NNMMQNOMMMMMLAA==L"
    r"LKLKKOLMKLJKKFA>=JJJJA@<<III?<LIIJKIJIHI??;;HHHHGGHGJHIHHGGGFFFGGD==><::;FFFF?=;:HFGEFFEEFEEEED="
    r"<99DEDDDDDFCCEECDD;8DCCCBC;;88CCBCCBA<:9BBBB>;98DCCBBABBBAABB@A:976@A::76AA@AAAC@@BBAAA?@@@@A996"
    r"6@@@>??@???@?:97>>?@<99756>?>?7744>?9855>><>>=><=8854=><=7733<<<==75396764333<:;<=7522;;;;515521"
    r"66329;;4400;653::95326454211193400441134004092231..0630/32/.330021..22..11--12..8310520/3011/--/"
    r"0,2121/.../0,,00--40.,3000-,,,00--1/,+/0,,//,,/0,,..+*0,./**4-.0/+*-2./0.,+-1/-,/.,,-.**..**.-.."
    r"+**+,-))-.++1.,+0-+*.-,*))-.**-,-,***)+,((++)(,-)*+,-+))((2+,.-((+0.,+/-++*+'(+,()-,**,,**,(*+''"
    r"*+'(++,+)(())*&'*+()**''**''*+(()*&')%)*''**''()%&)*''()%%'(%%((%%(%''$$'(%&&'$$&'$$&#&'$$%%##%#"
)


def group_sizes(channels: int) -> list[int]:
    """Sizes of the frequency groups of a latent of so many channels: `GROUPS` in proportion, without empty ones."""
    ends = [round(channels * sum(GROUPS[: k + 1]) / sum(GROUPS)) for k in range(len(GROUPS))]
    return [size for size in np.diff(ends, prepend=0).tolist() if size]


@functools.lru_cache(maxsize=64)
def places(passes: int, height: int, width: int) -> tuple[Tensor, ...]:
    """Which blocks each of 2, 3 or 5 interlaced passes decodes: indices into the rows, one after the other, of a grid.

    Two are a checkerboard. Three take one block in four, the one across from it, and the rest; five begin with one in
    sixteen, and each then stands in the middle of four that are known, or two.
    """
    grid = torch.arange(height * width).view(height, width)

    def lattices(step: int, *starts: tuple[int, int]) -> Tensor:
        return torch.cat([grid[i::step, j::step].flatten() for i, j in starts]).sort().values

    even, odd, rest = lattices(2, (0, 0)), lattices(2, (1, 1)), lattices(2, (0, 1), (1, 0))
    if passes == 2:
        return lattices(2, (0, 0), (1, 1)), rest
    if passes == 3:
        return even, odd, rest
    return lattices(4, (0, 0)), lattices(4, (2, 2)), lattices(4, (0, 2), (2, 0)), odd, rest


def in_order(group: int, height: int, width: int) -> Iterator[tuple[int, Tensor]]:
    """The passes of a group, and the blocks of each as `places` has them: the first of all in bands."""
    for p, at in enumerate(places(PASSES[group], height, width)):
        if group == p == 0:
            ends = [4 * stop * width for _, stop in bands(height // 4, width // 4)[:-1]]
            yield from ((0, part) for part in at.tensor_split(torch.searchsorted(at, torch.tensor(ends))))
        else:
            yield p, at


class _Enough(Exception):
    """Of a copy of the decoder: the first band was read."""


@functools.lru_cache(maxsize=64)
def _taps(passes: int, number: int, kernel: int) -> Tensor:
    """Of the kernel x kernel neighbours of a pass's blocks (in rows), those that passes before it decode."""
    when = torch.empty(64, dtype=torch.int64)  # does each of 8x8 blocks; the pattern repeats after four
    for p, at in enumerate(places(passes, 8, 8)):
        when[at] = p
    when, reach = when.view(8, 8), range(-(kernel // 2), kernel // 2 + 1)
    ours = when == number if number < passes else when >= 0
    shifts = list(itertools.product(reach, reach))
    known = [bool((when.roll((-i, -j), (0, 1))[ours] < number).any()) for i, j in shifts]
    return torch.tensor(known).nonzero()[:, 0]


class _Swish(torch.autograd.Function):
    """Real values to integers -12 to 255 that count in 1/32: x · clamp(x + 3, 0, 6) / 6, exact on any machine.

    It bends as GELU does, and integers suffice for it. Source: Howard et al., "Searching for MobileNetV3", ICCV 2019.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        whole = (x * ACTIVATION_UNIT).round_().clamp_(-96, 255)
        # Whole numbers below 2^16 plus a half: the quotient is never closer to an integer than 1/384, so that a product
        # with the rounded reciprocal gives the same.
        return (whole + 96).clamp_(max=192).mul_(whole).add_(96.5).mul_(1 / 192).floor_()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope = torch.where(x > 3, 1.0, (x * 2 + 3).div_(6)).mul_(ACTIVATION_UNIT)
        return grad * slope.masked_fill_((x < -3) | (x > 16), 0.0)


def _fixed(x: Tensor) -> Tensor:
    """Features as multiples of 1/1024 within ±1024, with a gradient: sums of up to 16 are exact."""
    return quantize_ste((x * _FEATURE_UNIT).clamp(-_FEATURE_LIMIT, _FEATURE_LIMIT)) / _FEATURE_UNIT


def _seen(x: Tensor) -> Tensor:
    """Decoded values in units of their spread to integers within ±127, with a gradient (in training)."""
    return quantize_ste((SEEN_UNIT * squash(2 * x)).clamp(-SEEN_LIMIT, SEEN_LIMIT))


@functools.lru_cache(maxsize=1)
def _seen_table() -> Tensor:
    """The same for x in 1/256, -8191 to 8191, by integers: round(16 · 2x / sqrt(1 + 2|x|))."""
    values = [min((math.isqrt(8 * t * t // (128 + t)) + 1) // 2, SEEN_LIMIT) for t in range(_SEEN_LAST + 1)]
    return torch.tensor([-value for value in values[:0:-1]] + values, dtype=torch.float32)


@functools.lru_cache(maxsize=1)
def _mantissas() -> Tensor:
    """2^(i / 64) for i in 0..63 as integers of 15 bits."""
    return torch.tensor([round(2 ** (i / OCTAVE + _MANTISSA)) for i in range(OCTAVE)])


def _power(exponent: Tensor, before: int, behind: int) -> Tensor:
    """2^(exponent / 64), a 15-bit integer over a power of two, for `_times`: float64 like exponent, which is int64.

    Args:
        before, behind: bits behind the point in what it will be multiplied with, and in the product.
    """
    shift = before + _MANTISSA - behind - torch.div(exponent, OCTAVE, rounding_mode="floor")
    return _mantissas()[exponent % OCTAVE].double() / (1 << shift).double()


def _times(x: Tensor, power: Tensor) -> Tensor:
    """x · power, rounded, for whole x up to 2^30 in float64: they have less than 53 bits."""
    return (x * power).add_(0.5).floor_()


class _Head(nn.Module):
    """Features (..., features), multiples of 1/1024, to log2 scale and mean (..., outputs), in units of the spread."""

    def __init__(self, features: int, outputs: int):
        super().__init__()
        self.hidden, self.last = (IntegerConv(features, n, 1, ACTIVATION_UNIT, 255) for n in (features, outputs))
        with torch.no_grad():
            self.last.weight.mul_(0.3)
            self.last.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.hidden, self.last):
            weight, bias, worth = layer.integers()
            x = (F.linear(_Swish.apply(x), weight).float() + bias[:, 0]) * worth[:, 0]
        return x


class _Near(IntegerConv):
    """What decoded values around a block, integers within ±127 that count in 1/16, add to its features."""

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__(inputs, outputs, kernel, SEEN_UNIT, SEEN_LIMIT)
        with torch.no_grad():
            self.weight.mul_(0.5)
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """For training: (N, inputs, h, w) to (N, outputs, h, w), by an ordinary convolution in autocast's precision."""
        weight, bias, worth = (value[..., None] for value in self.integers())
        out = F.conv2d(x, weight.view_as(self.weight), padding=self.kernel // 2).float()
        return _fixed((out + bias) * worth)


class _Prediction(nn.Module):
    """Linear prediction of means from decoded values around a block; zero to begin with.

    The weights are whole numbers of 2^-12, up to 2^15; inputs are up to 2^17: sums stay far below 2^53.
    """

    def __init__(self, channels: int, kernel: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, channels, kernel, kernel))
        self.kernel = kernel

    def integers(self) -> Tensor:
        """Weights (channels, channels, kernel, kernel) as integers; rounding is straight-through."""
        return quantize_ste((self.weight.float() * (1 << _WEIGHT)).clamp(-_WEIGHT_LIMIT, _WEIGHT_LIMIT))

    def forward(self, x: Tensor) -> Tensor:
        """For training: (N, channels, h, w) to the same, both in units of the spread."""
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x, self.integers() / (1 << _WEIGHT), padding=self.kernel // 2)


class LoopFilter(nn.Module):
    """What the decoded picture still lacks, from its pixels at 1/2 and 1/4 of the resolution; zero to begin with.

    Args:
        features: channels of the latent's features at 1/4 of the resolution.
        width: channels at 1/2, twice as many at 1/4; 32 take 14 thousand products a pixel.
    """

    def __init__(self, features: int, width: int):
        super().__init__()
        self.enter, self.first = nn.Conv2d(12, width, 3, padding=1), Block(width)
        self.down, self.features = nn.Conv2d(width, 2 * width, 2, stride=2), Pointwise(features, 2 * width)
        self.middle = Transform(Block(2 * width), Block(2 * width))
        self.up, self.last = Pointwise(2 * width, 4 * width), Block(width)
        self.leave = zeroed(nn.Conv2d(width, 12, 3, padding=1))

    def forward(self, x: Tensor, features: Tensor, level: Tensor) -> Tensor:
        """Picture (N, 3, H, W) around 0, features (N, C, H/4, W/4) and relative level (N,) to what to add."""
        fine = self.first(self.enter(F.pixel_unshuffle(x, 2).mul_(4)), level)
        coarse = self.middle(self.down(fine).add_(self.features(features)), level)
        fine = self.last(F.pixel_shuffle(self.up(coarse), 2).add_(fine), level)
        return interleave(self.leave(fine), 2).mul_(0.1)


@CODECS.register("context")
class ContextCodec(LearnedCodec):
    """Variable-rate codec with a context over frequency groups and interlaced blocks, and a loop filter.

    Args:
        N, M, lambdas: as of `LearnedCodec`.
        features: of a block that the context hands on from pass to pass.
        loop: channels of the loop filter at half the resolution.
    """

    reach = 5  # 32 + 16 + 8 pixels by g_s, and 22 by the loop filter behind it
    first_scale, tables = FIRST_SCALE, 89
    heads: Any  # of each group and pass
    near: Any  # of each group: what each pass before its last adds to the features of later ones
    linear: Any
    spread: Tensor  # (1, M, 1, 1) mean absolute value of each coefficient, of pixels in [0, 1]

    def __init__(self, N: int, M: int, lambdas: list[float], features: int = 192, loop: int = 32):
        super().__init__("context", N, M, lambdas)
        self.config |= {"features": features, "loop": loop}
        self.groups = group_sizes(M)
        ends = np.cumsum(self.groups).tolist()
        self._slices = [slice(end - size, end) for size, end in zip(self.groups, ends, strict=True)]
        self.register_buffer("spread", 2 ** ((torch.tensor([*_SPREADS.encode()][:M]) - 108.0) / 8).view(1, -1, 1, 1))
        self.loop = LoopFilter(N, loop)
        self.h_a = hyper_analysis(N, M)
        self.h_s = HyperSynthesis(N, features)
        self.film = IntegerConv(2, features, 1, _PLACE, _PLACE)  # of the level
        for parameter in self.film.parameters():
            nn.init.zeros_(parameter)
        self.heads, self.near, self.linear = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for k, (size, passes) in enumerate(zip(self.groups, PASSES, strict=False)):
            kernel = 5 if k == 0 else 3
            self.heads.append(nn.ModuleList(_Head(features, 2 * size) for _ in range(passes)))
            self.near.append(nn.ModuleList(_Near(size, features, kernel) for _ in range(passes - 1)))
            predicted = passes - 1 if k < PREDICTED else 0
            self.linear.append(nn.ModuleList(_Prediction(size, kernel) for _ in range(predicted)))
        # of each group: what it adds to the features of later groups
        self.after = nn.ModuleList(_Near(size, features, 3) for size in self.groups[:-1])
        self.eb_z = FactorisedPrior(N)

    @property
    def unit(self) -> Tensor:
        return self.spread

    @torch.no_grad()
    def measure(self, photos: Sequence[Tensor]) -> None:
        """Take the coefficients' spreads from photos (3, H, W) in [0, 1], sides at least 16; before training."""
        total, count = torch.zeros(self.dct.kernels.shape[0], dtype=torch.float64), 0
        for photo in photos:
            for scale in (1.0, 0.75, 0.5, 0.35):
                height, width = (round(side * scale) for side in photo.shape[1:])
                if min(height, width) < BlockDCT.STRIDE:
                    continue
                small = F.interpolate(photo[None], (height, width), mode="bicubic", antialias=True).clamp(0, 1)
                whole = small if scale < 1 else photo[None]
                whole = whole[..., : height // BlockDCT.STRIDE * BlockDCT.STRIDE, :]
                whole = whole[..., : width // BlockDCT.STRIDE * BlockDCT.STRIDE]
                blocks = self.dct(whole.to(self.dct.kernels) - 0.5)[0].flatten(1)
                total += blocks.abs().double().sum(1).cpu()
                count += blocks.shape[1]
        self.spread.copy_((total / count).clamp_min(2.0**-12).view_as(self.spread))

    def estimate(
        self, y: Tensor, z: Tensor, level: Tensor, gains: tuple[Tensor, Tensor], quantize: Quantizer | None = None
    ) -> dict:
        gain, inverse = gains
        with torch.autocast(y.device.type, enabled=False):  # likelihoods need float32
            z_likelihoods = self.eb_z(z)
        place = (_PLACE * self.relative_level(level)).round()
        context = self._start(quantize_ste(z.clamp(-HYPER_LIMIT, HYPER_LIMIT)), place, z.shape[2])
        y_hat, y_likelihoods = self._train_passes(y, gain * self.spread, context, quantize)
        x_hat = self._synthesise(y_hat * inverse, level)
        return {"x_hat": x_hat, "likelihoods": {"y": y_likelihoods, "z": z_likelihoods}}

    def _train_passes(
        self, y: Tensor, unit: Tensor, context: Tensor, quantize: Quantizer | None = None
    ) -> tuple[Tensor, Tensor]:
        """All passes, as `_walk` makes them, in floats.

        Args:
            y: (N, M, h, w), and unit: (N, M, 1, 1), the spreads; in quantiser steps. context: features (N, C, h, w).
            quantize: see `estimate`.

        Returns:
            ŷ and the likelihoods of its symbols, both like y.
        """
        grid = y.shape[-2:]
        y, unit, context = (v.permute(0, 2, 3, 1).flatten(1, 2) for v in (y, unit, context))  # (N, blocks, channels)

        def planes(rows: Tensor) -> Tensor:
            return rows.unflatten(1, grid).permute(0, 3, 1, 2)

        decoded, likelihoods, noisy = [], [], self.training and quantize is None
        for k, part in enumerate(self._slices):
            y_k, u = y[..., part], unit[..., part]
            known = torch.zeros_like(y_k)  # what is decoded, in units of the spread
            order, residuals, scales = [at.to(y.device) for at in places(PASSES[k], *grid)], [], []
            for p, at in enumerate(order):
                c = context[:, at]
                if p:
                    c = c + self._rows(self.near[k][p - 1](planes(_seen(known))))[:, at]
                log_scale, mean = self.heads[k][p](c).chunk(2, -1)
                if p and k < PREDICTED:
                    mean = mean + self._rows(self.linear[k][p - 1](planes(known)))[:, at]
                mean = u * mean
                residual = y_k[:, at] - mean
                symbols = (quantize or quantize_ste)(residual)
                known = known.index_copy(1, at, (symbols + mean) / u)
                residuals.append(residual if noisy else symbols)
                scales.append(u * torch.exp2(log_scale.clamp(-14, 8)))
            back = torch.cat(order).argsort()
            likelihoods.append(self._likelihood(torch.cat(residuals, 1), torch.cat(scales, 1), noisy)[:, back])
            decoded.append(known * u)
            if k + 1 < len(self.groups):
                context = context + self._rows(self.after[k](planes(_seen(known))))
        return planes(torch.cat(decoded, -1)), planes(torch.cat(likelihoods, -1))

    @staticmethod
    def _rows(planes: Tensor) -> Tensor:
        return planes.permute(0, 2, 3, 1).flatten(1, 2)

    @staticmethod
    def _likelihood(residual: Tensor, scale: Tensor, noisy: bool) -> Tensor:
        """Of a residual (rounded, or with uniform noise added here) under a Laplace distribution of this deviation."""
        if noisy:
            residual = residual + torch.empty_like(residual).uniform_(-0.5, 0.5)
        size, slope = residual.abs(), math.sqrt(2) / scale.clamp_min(2 ** (FIRST_SCALE / OCTAVE))
        near = 0.5 * torch.exp(-(size - 0.5).abs() * slope)
        upper = torch.where(size > 0.5, near, 1 - near)
        return (upper - 0.5 * torch.exp(-(size + 0.5) * slope)).clamp_min(1e-9)

    def _likely(self, scale: float) -> np.ndarray:
        most, slope = math.ceil(_TAIL * scale), math.sqrt(2) / scale
        size = np.abs(np.arange(-most, most + 1))
        likely = 0.5 * (np.exp(-slope * np.abs(size - 0.5)) - np.exp(-slope * (size + 0.5)))
        likely[most] = 1 - math.exp(-0.5 * slope)
        return np.append(likely, math.exp(-slope * (most + 0.5)))

    @torch.no_grad()
    def update(self) -> None:
        super().update()
        self.offsets.clamp_(_LOWEST, _HIGHEST)

    def _forget(self) -> None:
        super()._forget()
        self._whole: dict[nn.Module, Sequence[Tensor]] = {}

    def _encode(self, y: Tensor, z_hat: Tensor, level: float) -> tuple[Tensor, Tensor]:
        rows = y[0].flatten(1).T.contiguous()

        def choose(part: slice, at: Tensor, indexes: Tensor, means: Tensor) -> Tensor:
            steps = rows[:, part].index_select(0, at).T
            return (steps - means.float().div_(1 << _VALUE)).round_().mul_(indexes > 0)

        return self._walk(z_hat, level, choose)[:2]

    def _decode(self, decoder: Decoder, z_hat: Tensor, level: float) -> tuple[Tensor, Tensor, Tensor]:
        band = bands(*z_hat.shape[2:])[0][1]
        several = band < z_hat.shape[2]

        def choose(part: slice, at: Tensor, indexes: Tensor, means: Tensor) -> Tensor:
            residual = self._fetch(decoder, indexes)
            if several and part.start == at[0] == 0:
                decoder.check()
            return residual

        if several:  # what was not made for this image ends here, before anything as large as it is laid out
            trial = decoder.copy()

            def try_one(part: slice, at: Tensor, indexes: Tensor, means: Tensor) -> Tensor:
                self._fetch(trial, indexes)
                trial.check()
                raise _Enough

            with contextlib.suppress(_Enough):
                self._walk(z_hat, level, try_one, band)
        return self._walk(z_hat, level, choose)

    def _steps(self, values: Tensor) -> Tensor:
        return values.float().div_(1 << _VALUE)

    def _pieces(self, height: int, width: int) -> Iterator[tuple[slice, Tensor]]:
        for k, part in enumerate(self._slices):
            for _, at in in_order(k, height, width):
                yield part, at

    @torch.no_grad()
    def _walk(
        self, z_hat: Tensor, level: float, choose: Callable[[slice, Tensor, Tensor, Tensor], Tensor], rows: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Go through all passes as encoder and decoder do, with integers alone.

        Args:
            z_hat: symbols of the hyper-latent (1, N, h, w).
            choose: gives the residuals of a pass, whole numbers (channels, blocks); it is told which channels and which
                blocks (indices into the rows of the grid), for each symbol its table (uint8, 0: not coded, residual 0)
                and its mean in 1/64 quantiser step (whole, float64).
            rows: take the picture as ending behind these rows of z; 0 for all. (The first pass does not see it end.)

        Returns:
            Tables (uint8), residuals and values in 1/64 quantiser step (int32), each (M, 4 h, 4 w).
        """
        offset, place = self._offsets(level)
        with torch.autocast("cpu", enabled=False):
            rows = rows or z_hat.shape[2]
            context = self._start(z_hat, torch.tensor([float(place)]), rows)[0].flatten(1).T.contiguous()
            grid = (4 * rows, 4 * z_hat.shape[3])
            # one block a row
            tables = torch.zeros(len(context), len(offset), dtype=torch.uint8)
            residuals, values = (torch.zeros(tables.shape, dtype=torch.int32) for _ in range(2))
            to_steps = _power(offset, _MEAN, _VALUE)
            for k, part in enumerate(self._slices):
                known = _Known(offset[part], grid, k < PREDICTED)
                for p, at in in_order(k, *grid):
                    features = context.index_select(0, at)
                    if p:
                        near = self.near[k][p - 1]
                        taps = _taps(PASSES[k], p, near.kernel)
                        features += self._at(near, known, at, taps)
                    log_scale, mean = self._head(self.heads[k][p], features).chunk(2, 1)
                    index = self._index(log_scale, offset[part])
                    # Multiples of a power of two until here, so products are exact and roundings the same everywhere.
                    mean = (mean.double() * (1 << _MEAN)).clamp_(-_MEAN_LIMIT, _MEAN_LIMIT).round_()
                    if p and k < PREDICTED:
                        mean += self._predict(self.linear[k][p - 1], known, at, taps)
                        mean.clamp_(-_MEAN_LIMIT, _MEAN_LIMIT)
                    mean = _times(mean, to_steps[part])
                    residual = choose(part, at, index.T, mean.T).T.contiguous()
                    value = (residual.double() * (1 << _VALUE)).add_(mean)
                    known.add(at, value)
                    for whole, found in ((tables, index), (residuals, residual.int()), (values, value.int())):
                        whole[:, part].index_copy_(0, at, found)
                if not fits(grid[0] * grid[1] * BlockDCT.STRIDE**2):
                    give_back()
                if k + 1 < len(self.groups):
                    everywhere = torch.arange(len(context))
                    context += self._at(self.after[k], known, everywhere, _taps(PASSES[k], PASSES[k], 3))
        tables, residuals, values = (whole.T.unflatten(1, grid) for whole in (tables, residuals, values))
        return tables, residuals, values

    def _offsets(self, level: float) -> tuple[Tensor, int]:
        """At a level the spread of each channel in quantiser steps, log2 in 1/64 octave (M,), and the relative level in
        1/256; by integers."""
        position = round(level * LEVEL_UNIT)
        range_ = max(self.levels - 1, 1) * LEVEL_UNIT
        return self._offset(level), (position * _PLACE + range_ // 2) // range_

    def _start(self, z_hat: Tensor, place: Tensor, rows: int) -> Tensor:
        """Features (N, C, 4 rows, 4 w) before y, from symbols of z (N, channels, h, w) and levels (N,) in 1/256."""
        level = torch.stack([place, (place.square() / _PLACE).floor()], 1)[..., None, None]
        return _fixed(self.h_s.rows(z_hat, 0, rows)) + _fixed(self.film(level))

    def _integers(self, layer: Any, taps: Tensor | None = None) -> Sequence[Tensor]:
        """A layer's integers: weights (outputs, taps · inputs) as `_Known.around` lays out its rows, biases, worths."""
        if layer not in self._whole:
            if isinstance(layer, _Prediction):
                found = [layer.integers().double().flatten(2)]
            else:
                weight, *others = layer.integers()
                found = [weight.unflatten(1, (-1, layer.kernel**2)), *(value[:, 0] for value in others)]
            if taps is not None:
                found[0] = found[0][..., taps]
            self._whole[layer] = [found[0].transpose(1, 2).flatten(1).contiguous(), *found[1:]]
        return self._whole[layer]

    def _head(self, head: Any, features: Tensor) -> Tensor:
        """The same as `head`."""
        for layer in (head.hidden, head.last):
            weight, bias, worth = self._integers(layer)
            features = products(_Swish.apply(features), weight, bias).mul_(worth)
        return features

    def _at(self, layer: Any, known: "_Known", at: Tensor, taps: Tensor) -> Tensor:
        """Features (n, C) that decoded values add to the blocks `at` (n,), of which they are at these taps."""
        weight, bias, worth = self._integers(layer, taps)
        parts = [products(known.around(known.seen, some, layer.kernel, taps), weight, bias) for some in at.split(_ROWS)]
        # as `_fixed`, in place
        out = _joined(parts).mul_(worth * _FEATURE_UNIT).clamp_(-_FEATURE_LIMIT, _FEATURE_LIMIT)
        return out.round_().mul_(1 / _FEATURE_UNIT)

    def _predict(self, layer: Any, known: "_Known", at: Tensor, taps: Tensor) -> Tensor:
        """Linear prediction (n, channels) of means in 2^-12 of the spread for the blocks `at` (n,)."""
        (weight,) = self._integers(layer, taps)
        parts = [F.linear(known.around(known.sight, some, layer.kernel, taps), weight) for some in at.split(_ROWS)]
        return _joined(parts).mul_(2.0 ** (_MEAN - _SIGHT - _WEIGHT)).add_(0.5).floor_()

    def _synthesise(self, y: Tensor, level: Tensor) -> Tensor:
        place, x = self.relative_level(level), self.dct.inverse(y)
        return (x + self.loop(x, self.g_s(y / self.spread, place), place).float()).add_(0.5)


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


class _Known:
    """The decoded values of one group, as the context sees them: rows of a grid of blocks with a border of two.

    Args:
        offset: (C,) log2 of each channel's spread in quantiser steps, in 1/64 octave. grid: height and width in blocks.
        predicts: whether `sight` is needed.

    Attributes:
        seen: (rows, C) float32, squashed integers; sight: (rows, C) float64, integers in 1/256 of the spread.
            Both are zero where nothing is decoded.
    """

    BORDER = 2

    def __init__(self, offset: Tensor, grid: tuple[int, ...], predicts: bool):
        self.to_spread = _power(-offset, _VALUE, _SIGHT)
        self.width, self.stride = grid[1], grid[1] + 2 * self.BORDER
        rows = (grid[0] + 2 * self.BORDER) * self.stride
        self.seen = torch.zeros(rows, len(offset))
        self.sight = torch.zeros(rows if predicts else 0, len(offset), dtype=torch.float64)

    def _row(self, at: Tensor) -> Tensor:
        return (at // self.width + self.BORDER) * self.stride + at % self.width + self.BORDER

    def add(self, at: Tensor, values: Tensor) -> None:
        """Values (n, C) in 1/64 quantiser step, float64, of the blocks `at` (n,)."""
        sight, row = _times(values, self.to_spread).clamp_(-_SIGHT_LIMIT, _SIGHT_LIMIT), self._row(at)
        if len(self.sight):
            self.sight.index_copy_(0, row, sight)
        entry = (sight + _SEEN_LAST).clamp_(0, 2 * _SEEN_LAST).long()
        self.seen.index_copy_(0, row, _seen_table().index_select(0, entry.flatten()).view_as(entry))

    def around(self, rows: Tensor, at: Tensor, kernel: int, taps: Tensor) -> Tensor:
        """`seen` or `sight` at these taps of kernel x kernel around the blocks `at` (n,): (n, taps · C)."""
        reach = torch.arange(kernel) - kernel // 2
        shifts = (reach[:, None] * self.stride + reach).flatten()[taps]
        return rows.index_select(0, (self._row(at)[:, None] + shifts).flatten()).view(len(at), -1)
