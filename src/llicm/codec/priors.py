# SPDX-License-Identifier: Apache-2.0
"""The codecs' two probability models, with compressai's names of parameters and buffers, and its numbers.

compressai's own modules import torch-geometric and more, 2.5 s and 300 MB before a picture is coded. What codes and
trains is here; `update`, once after training, hands the weights to compressai, which makes the tables.

Source: Ballé, Minnen, Singh, Hwang, Johnston, "Variational image compression with a scale hyperprior", ICLR 2018
(the factorised prior is in appendix 6.1).
"""

from itertools import zip_longest
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FactorisedPrior", "GaussianPrior"]

_TABLES = ("_offset", "_quantized_cdf", "_cdf_length")
_TAIL, _START, _WIDTHS = 1e-9, 10.0, (1, 3, 3, 3, 3, 1)


class _Max(torch.autograd.Function):
    """The larger of x and a bound; below it only a gradient that raises x passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: Tensor) -> Tensor:
        ctx.save_for_backward(x, bound)
        return torch.max(x, bound)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, bound = ctx.saved_tensors
        return ((x >= bound) | (grad < 0)) * grad, None


class _LowerBound(nn.Module):
    bound: Tensor

    def __init__(self, bound: float):
        super().__init__()
        self.register_buffer("bound", torch.tensor([bound]))

    def forward(self, x: Tensor) -> Tensor:
        return _Max.apply(x, self.bound)


class _Prior(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.likelihood_lower_bound = _LowerBound(1e-9)
        for name in _TABLES:
            self.register_buffer(name, torch.zeros(0, dtype=torch.int32))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for name in (*_TABLES, "scale_table"):  # their sizes are known after training only
            if name in self._buffers and prefix + name in state_dict:
                setattr(self, name, torch.zeros_like(state_dict[prefix + name], device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def quantize(self, x: Tensor, mean: Tensor) -> Tensor:
        """In training x with uniform noise, else rounded at whole distances from the mean."""
        return x + torch.empty_like(x).uniform_(-0.5, 0.5) if self.training else torch.round(x - mean) + mean


class FactorisedPrior(_Prior):
    """A learned distribution for each channel: compressai's `EntropyBottleneck`."""

    def __init__(self, channels: int):
        super().__init__()
        self.matrices, self.biases, self.factors = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        scale = _START ** (1 / (len(_WIDTHS) - 1))
        for width, wide in zip(_WIDTHS, _WIDTHS[1:], strict=False):
            self.matrices.append(torch.full((channels, wide, width), float(np.log(np.expm1(1 / scale / wide)))))
            self.biases.append(nn.init.uniform_(torch.empty(channels, wide, 1), -0.5, 0.5))
            if len(self.matrices) < len(_WIDTHS) - 1:
                self.factors.append(torch.zeros(channels, wide, 1))
        self.quantiles = nn.Parameter(torch.tensor([-_START, 0, _START]).repeat(channels, 1, 1))
        target = float(np.log(2 / _TAIL - 1))
        self.register_buffer("target", torch.tensor([-target, 0, target]))

    def _logits(self, x: Tensor) -> Tensor:
        for matrix, bias, factor in zip_longest(self.matrices, self.biases, self.factors):
            x = torch.matmul(F.softplus(matrix), x) + bias
            if factor is not None:
                x = x + torch.tanh(factor) * torch.tanh(x)
        return x

    def forward(self, z: Tensor) -> Tensor:
        """Likelihood of each value of z (N, C, H, W), which gets noise in training and is rounded otherwise."""
        rows = z.permute(1, 0, 2, 3)
        values = self.quantize(rows.reshape(len(rows), 1, -1), self.quantiles[:, :, 1:2])
        lower, upper = self._logits(values - 0.5), self._logits(values + 0.5)
        likelihood = self.likelihood_lower_bound(torch.sigmoid(upper) - torch.sigmoid(lower))
        return likelihood.view(rows.shape).permute(1, 0, 2, 3)

    @torch.no_grad()
    def update(self) -> tuple[list[np.ndarray], list[int]]:
        """Make the tables, with medians that are whole numbers: each channel's frequencies, and its first symbol."""
        from compressai.entropy_models import EntropyBottleneck

        with torch.random.fork_rng(devices=[]):
            full = EntropyBottleneck(len(self.quantiles)).to(self.quantiles.device)
        full.load_state_dict({n: v for n, v in self.state_dict().items() if n not in _TABLES}, strict=False)
        full.update(force=True, update_quantiles=True)
        # compressai subtracts the medians before rounding, so they are rounded themselves.
        full.quantiles[:, 0, 1].round_()
        full.quantiles.copy_(full.quantiles.half().float())
        full.update(force=True)
        self.load_state_dict(full.state_dict())
        cdfs = zip(full.quantized_cdf, full.cdf_length, strict=True)
        counts = [np.diff(cdf[:length].numpy()) for cdf, length in cdfs]
        return counts, (full.quantiles[:, 0, 1].int() + full.offset).tolist()


class GaussianPrior(_Prior):
    """Normal distributions of given mean and deviation: compressai's `GaussianConditional`."""

    def __init__(self) -> None:
        super().__init__()
        self.lower_bound_scale = _LowerBound(0.11)
        self.register_buffer("scale_table", torch.zeros(0))
        self.register_buffer("scale_bound", torch.tensor([0.11]))

    def forward(self, y: Tensor, scale: Tensor, mean: Tensor) -> Tensor:
        """Likelihood of each value of y, which gets noise in training and is rounded otherwise."""
        return self.likelihood(self.quantize(y, mean) - mean, scale)

    def likelihood(self, difference: Tensor, scale: Tensor) -> Tensor:
        """Likelihood of each difference from the mean, neither rounded nor with noise."""
        size, scale = torch.abs(difference), self.lower_bound_scale(scale)
        upper, lower = (0.5 * torch.erfc(-(2**-0.5) * ((half - size) / scale)) for half in (0.5, -0.5))
        return self.likelihood_lower_bound(upper - lower)
