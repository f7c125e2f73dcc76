# SPDX-License-Identifier: Apache-2.0
"""Encoder effort: the latent of one picture, refined by gradient descent on what its file costs.

The encoder's networks guess, in one pass, what is worth its bits. Effort goes on from there for this one picture, and
minimises

    J = R + lambda · 255² · MSE(X̂, X)

with the level's lambda: rate and X̂ as the decoder will find them, context and loop filter included. Only y is refined,
not the hyper-latent. The decoder knows nothing of it.

X is what is coded, behind a prefilter X_r. So this is the loss of rate-distortion optimisation, whatever a model was
trained on: the encoder knows no ideal picture to compare X̂_H with, and a weight file names no objective.

Rounding is annealed: a symbol is drawn, as a mixture of its two neighbours, with odds that favour the nearer one the
more, the colder it gets (stochastic Gumbel annealing). The noise is seeded, so a second run on the same machine gives
the same bytes. Another machine may give others, as its float sums differ; what they decode to is exact all the same.

Source: Yang, Bamler, Mandt, "Improving inference for neural image compression", NeurIPS 2020.
"""

import math
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

__all__ = ["MOST", "better", "check_effort", "refine"]

MOST = 10_000  # steps
_RATE = 0.02  # of Adam, in quantiser steps; at 40 steps better than 0.01 and 0.03, at 100 they are alike
_HOT, _COLD = 0.5, 0.1  # temperatures, from the first step to the last
_TILE = 10  # hyper-latent's elements to a side, 640 pixels: for gradients up to 0.9 GB of memory
_BORDER = 1  # elements around a tile that are looked at and not changed


def check_effort(effort: int) -> int:
    """A number of steps.

    Raises:
        ValueError: it is none.
    """
    if isinstance(effort, bool) or not isinstance(effort, Integral) or not 0 <= effort <= MOST:
        raise ValueError(f"an effort of {effort!r}: give a whole number of steps from 0 to {MOST}")
    return int(effort)


def better(codec: Any, x: Tensor, *files: bytes) -> bytes:
    """The file of the picture x (3, H, W) that has the lowest J; the first of equal ones."""

    def cost(data: bytes) -> float:
        decoded, level = codec.decompress(data)
        weight = float(codec.lambdas(torch.tensor([level], device=x.device))) * 255**2
        return 8 * len(data) / x[0].numel() + weight * float((decoded - x).double().square().mean())

    return min(files, key=cost)


def refine(codec: Any, x: Tensor, y: Tensor, z_hat: Tensor, level: float, steps: int) -> Tensor:
    """The latent y of a picture, refined tile by tile, each in view of those before.

    Args:
        x: (3, H, W) in [0, 1]. y: (1, M, 4 h, 4 w), and z_hat: (1, N, h, w), symbols, of x padded to sides of 64 h and
            64 w. steps: for each tile.

    Returns:
        Like y, before rounding.
    """
    y, noise = y.clone(), torch.Generator().manual_seed(0)
    for top in range(0, z_hat.shape[2], _TILE):
        for left in range(0, z_hat.shape[3], _TILE):
            seen = [(max(start - _BORDER, 0), start + _TILE + _BORDER) for start in (top, left)]

            def cut(whole: Tensor, unit: int, seen: list[tuple[int, int]] = seen) -> Tensor:
                rows, columns = (slice(unit * start, unit * stop) for start, stop in seen)
                return whole[..., rows, columns]

            tile = cut(y, 4)
            changes = tile.new_zeros(tile.shape[2:])
            row, column = 4 * (top - seen[0][0]), 4 * (left - seen[1][0])
            changes[row : row + 4 * _TILE, column : column + 4 * _TILE] = 1
            _descend(codec, cut(x[None], codec.stride), tile, cut(z_hat, 1), changes, level, steps, noise)
    return y


def _descend(
    codec: Any, x: Tensor, y: Tensor, z_hat: Tensor, changes: Tensor, level: float, steps: int,
    noise: torch.Generator,
) -> None:  # fmt: skip
    """Refine y in place where the map `changes` (4 h, 4 w) is one, by Adam (Kingma, Ba, ICLR 2015)."""
    at, first, second = torch.tensor([level], device=y.device), torch.zeros_like(y), torch.zeros_like(y)
    gains = codec.gains(at)
    weight = float(codec.lambdas(at)) * 255**2 / 3
    for step in range(steps):
        done = step / max(steps - 1, 1)
        heat = _HOT * (_COLD / _HOT) ** done

        def quantize(residual: Tensor, heat: float = heat) -> Tensor:
            low = residual.detach().floor()
            share = (residual - low).clamp(1e-4, 1 - 1e-4)
            odds = (torch.atanh(share) - torch.atanh(1 - share)) / heat
            drawn = torch.empty(share.shape).uniform_(generator=noise).to(share.device).logit(1e-7)
            return low + torch.sigmoid((odds + drawn) / heat)

        with torch.enable_grad():
            refined = y.detach().requires_grad_()
            out = codec.estimate(refined, z_hat, at, gains, quantize)
            error = out["x_hat"][..., : x.shape[2], : x.shape[3]] - x
            bits = -out["likelihoods"]["y"].log2().sum() + weight * error.square().sum()
            (gradient,) = torch.autograd.grad(bits, refined)
        gradient *= changes
        first.lerp_(gradient, 0.1)
        second.lerp_(gradient.square(), 0.001)
        rate = _RATE * (0.55 + 0.45 * math.cos(math.pi * done))
        deviation = (second / (1 - 0.999 ** (step + 1))).sqrt_().add_(1e-3)
        y -= rate / (1 - 0.9 ** (step + 1)) * first / deviation
