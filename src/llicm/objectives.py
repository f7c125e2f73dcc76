# SPDX-License-Identifier: Apache-2.0
"""What is minimised: rate-distortion (RDO) and rate-perception (RPO) optimisation, the paper's Figure 2.

    L = lambda · (alpha · D(X̂, X) + gamma · P(X̂_H, X_ideal)) + beta · R

RDO is gamma = 0, pure RPO is alpha = 0. `lambda` belongs to the level at which a sample is coded. Distances are
selected by name; each returns one value a sample, scaled so that a unit of it is comparable with a unit of
`255^2 · MSE` around 28 dB: then one set of lambdas serves every mixture.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from llicm.errors import UserError

__all__ = ["DISTANCES", "bits_per_pixel", "distance", "register_distance"]

DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
_REFERENCE = 100.0  # 255^2 · MSE at 28.1 dB, where the scales of all distances meet


def register_distance(name: str):
    """Decorator: make a distance selectable by name in an arm's `objective`."""

    def add(function):
        DISTANCES[name] = function
        return function

    return add


@register_distance("mse")
def mse(a: Tensor, b: Tensor) -> Tensor:
    """255² · mean squared error, (N,)."""
    return 255.0**2 * (a - b).square().mean((1, 2, 3))


@register_distance("log_mse")
def log_mse(a: Tensor, b: Tensor) -> Tensor:
    """Logarithm of the MSE (minus PSNR up to scale), (N,).

    Its gradient is that of the MSE divided by the sample's own MSE, so a hazy image at 12 dB does not outweigh a
    blurred one at 25 dB: it balances tasks. The scale makes its slope equal that of `mse` at 28.1 dB.
    """
    return _REFERENCE * torch.log(mse(a, b) / _REFERENCE + 1e-3)


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
    return sum(weight * DISTANCES[name](a, b) for name, weight in mixture.items())


def bits_per_pixel(likelihoods: dict[str, Tensor], height: int, width: int) -> Tensor:
    """Estimated rate of each sample in bits per pixel of the coded image, (N,)."""
    bits = sum(-value.log2().flatten(1).sum(1) for value in likelihoods.values())
    return bits / (height * width)
