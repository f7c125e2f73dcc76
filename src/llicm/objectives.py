# SPDX-License-Identifier: Apache-2.0
"""What is minimised: rate-distortion (RDO) and rate-perception (RPO) optimisation, the paper's Figure 2.

    L = lambda · (alpha · D(X̂, X) + gamma · P(X̂_H, X_ideal)) + beta · R

Where the encoder restores first, D may be measured against what is coded or against X_ideal in place of X. RDO is
gamma = 0, pure RPO is alpha = 0. `lambda` belongs to the level at which a sample is coded. Distances are selected by
name; each returns one value a sample, scaled so that a unit of it is comparable with a unit of `255^2 · MSE` around
28 dB: then one set of lambdas serves every mixture.

All levels share the weights of a model, so the loss of each sample is divided by the square root of its lambda
(relative to the batch): the optimum of a level stays what it is, but neither the lowest nor the highest rates own the
gradient. To the restorer all levels count the same, so P is weighted by the batch's mean lambda, and by the sample's
own on its way from the restorer back to the codec (`Objective.fork`), where it is limited besides.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from llicm.errors import UserError

DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
_REFERENCE = 100.0  # 255^2 · MSE at 28.1 dB, where the scales of all distances meet


def register_distance(name: str):
    """Decorator: make a distance selectable by name in params.yaml's `objectives`."""

    def add(function):
        DISTANCES[name] = function
        return function

    return add


@register_distance("mse")
def mse(a: Tensor, b: Tensor) -> Tensor:
    """255² · mean squared error, (N,)."""
    return 255.0**2 * (a - b).square().mean((1, 2, 3))


EQUAL_PSNR = 80.0
"""PSNR in dB of equal pictures, which have none, and the highest of any: that of a mean squared error of 1e-8."""


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pictures (N, 3, H, W) in [0, 1], (N,); at most `EQUAL_PSNR`."""
    return -10 * (a - b).square().mean((1, 2, 3)).clamp_min(10 ** (-EQUAL_PSNR / 10)).log10()


@register_distance("log_mse")
def log_mse(a: Tensor, b: Tensor) -> Tensor:
    """Logarithm of the MSE (minus PSNR up to scale), (N,).

    Its gradient is that of the MSE divided by the sample's own MSE, so a hazy image at 12 dB does not outweigh a
    blurred one at 25 dB: it balances tasks. The scale makes its slope equal that of `mse` at 28.1 dB.
    """
    return _REFERENCE * torch.log(mse(a, b) / _REFERENCE + 1e-3)


@register_distance("bounded_log_mse")
def bounded_log_mse(a: Tensor, b: Tensor) -> Tensor:
    """`log_mse` with its floor at 38.1 dB instead of 58.1, for data that have clean pictures, (N,).

    The gradient of `log_mse` grows as the error falls, to 16 times that at 28.1 dB, so what is nearly perfect outweighs
    every task. Here it is at most 1.7 times that, and falls again above 38.1 dB. The slope at 28.1 dB is that of `mse`.
    """
    return 1.1 * _REFERENCE * torch.log(mse(a, b) / _REFERENCE + 0.1)


@register_distance("charbonnier")
def charbonnier(a: Tensor, b: Tensor) -> Tensor:
    """Smooth L1, sqrt(d² + 10⁻⁶), scaled to meet `mse` at 28.1 dB, (N,)."""
    return 2 * math.sqrt(_REFERENCE) * 255 * ((a - b).square() + 1e-6).sqrt().mean((1, 2, 3))


@register_distance("ms_ssim")
def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """1 - MS-SSIM (RGB, 7x7 window so that 128-pixel crops have five scales), times 10⁴, (N,)."""
    from pytorch_msssim import ms_ssim as value

    return 1e4 * (1 - value(a.clamp(0, 1), b, data_range=1.0, win_size=7, size_average=False))


def distance(mixture: dict[str, float], a: Tensor, b: Tensor) -> Tensor:
    """Weighted sum of distances by name between image batches (N, 3, H, W), one value a sample (N,).

    Raises:
        UserError: a name in `mixture` is not registered.
    """
    unknown = sorted(set(mixture) - set(DISTANCES))
    if unknown:
        raise UserError(f"params.yaml: unknown distance '{unknown[0]}'; choose from {', '.join(sorted(DISTANCES))}")
    return cast(Tensor, sum(weight * DISTANCES[name](a, b) for name, weight in mixture.items()))


def bits_per_pixel(likelihoods: dict[str, Tensor], height: int, width: int) -> Tensor:
    """Estimated rate of each sample in bits per pixel of the coded image, (N,)."""
    bits = cast(Tensor, sum(-value.log2().flatten(1).sum(1) for value in likelihoods.values()))
    return bits / (height * width)


class _Output(Protocol):  # llicm.framework.Output
    decoded: Tensor
    enhanced: Tensor
    likelihoods: dict[str, Tensor]
    diffusion: Tensor | None


@dataclass(frozen=True)
class Objective:
    """The whole loss: L = lambda · (alpha · D(X̂, X) + gamma · P(X̂_H, X_ideal)) + beta · R + delta · diffusion.

    Args:
        alpha, beta, gamma: weights of D, R and P.
        distortion, perception: the distances of which D and P are made, name -> weight (see `distance`).
        against: what D compares X̂ with: "input" X; "prefiltered" X_r, what is coded, which is X without a prefilter;
            or "ideal".
        delta: weight of a diffusion restorer's own loss, which `diffusion` names (see `llicm.restore.irsde`).
    """

    alpha: float = 0.0
    beta: float = 0.0
    gamma: float = 0.0
    distortion: dict[str, float] = field(default_factory=dict)
    perception: dict[str, float] = field(default_factory=dict)
    delta: float = 0.0
    diffusion: str | None = None
    against: str = "prefiltered"

    def __call__(
        self, output: _Output, x: Tensor, prefiltered: Tensor, ideal: Tensor, lmbda: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Loss (scalar) and estimated bits per pixel (N,) of a batch of X, X_r and X_ideal (N, 3, H, W).

        Args:
            output: see `llicm.framework.Output`.
            lmbda: Lagrangian weight (N,) of each sample's level; None without a codec. An objective without a rate term
                has no trade-off, so it ignores lambda.

        Raises:
            UserError: an unknown distance, or `delta` without a diffusion restorer.
        """
        if lmbda is None or not self.beta:
            lmbda = x.new_ones(len(x))
        mean = lmbda.log().mean().exp()
        per_sample = bpp = x.new_zeros(len(x))
        if self.alpha:
            reference = {"input": x, "prefiltered": prefiltered, "ideal": ideal}[self.against]
            per_sample = per_sample + self.alpha * lmbda * distance(self.distortion, output.decoded, reference)
        if output.likelihoods:
            bpp = bits_per_pixel(output.likelihoods, *x.shape[-2:])
        loss = (mean / lmbda).sqrt() * (per_sample + self.beta * bpp)
        if self.gamma:
            loss = loss + self.gamma * mean * distance(self.perception, output.enhanced, ideal)
        if self.delta:
            if output.diffusion is None:
                raise UserError("params.yaml: an objective with delta needs a restorer named irsde")
            loss = loss + self.delta * mean * output.diffusion
        return loss.mean(), bpp

    def fork(self, decoded: Tensor, lmbda: Tensor) -> tuple[Tensor, Tensor]:
        """X̂ (N, 3, H, W) as D sees it, and as the restorer sees it: the same values, but on the way back P pulls each
        sample by its lambda (N,), and no more strongly than D does, weights of both included.

        The restorer of a hazy or dark image amplifies, and its error is mostly none that better coding could repair;
        unlimited, such samples pull the codec ten times as strongly as a noisy one (measured), and all share its
        weights. The restorer's own gradient is left whole. Without D (alpha = 0) nothing is limited. Compare the
        adaptive weight of Esser et al., "Taming transformers for high-resolution image synthesis", CVPR 2021.
        """
        max_grad_ratio = self.gamma / self.alpha if self.alpha else 1.0
        return _Fork.apply(decoded, (lmbda / lmbda.log().mean().exp()).sqrt(), max_grad_ratio)


class _Fork(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, max_grad_ratio: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(weight)
        ctx.max_grad_ratio = max_grad_ratio
        return x.view_as(x), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, distortion: Tensor, perception: Tensor) -> tuple[Tensor, None, None]:
        perception = ctx.saved_tensors[0].view(-1, 1, 1, 1) * perception
        limit, size = (g.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for g in (distortion, perception))
        share = torch.where(limit > 0, (ctx.max_grad_ratio * limit / size.clamp_min(1e-30)).clamp(max=1), 1.0)
        return distortion + share * perception, None, None
