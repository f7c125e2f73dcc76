# SPDX-License-Identifier: Apache-2.0
"""Convolutions on integers, whose results are the same on every machine.

What the entropy coder depends on must not differ by a bit between encoder and decoder, and float sums do: between
processors, thread counts, libraries. Here weights and inputs are integers, small enough that every partial sum is an
integer below 2^24 in size, which float32 holds exactly: then the order of summation is of no effect. The products are
of 8-bit numbers, so even hardware that rounds the factors to TF32 or bfloat16 changes nothing. They are multiplied as
matrices, never by an algorithm that transforms its inputs (Winograd, FFT).

Training runs the very same forward pass and rounds with a straight-through gradient, so nothing is lost when it ends.

Source: Ballé, Johnston, Minnen, "Integer networks for data compression with latent-variable models", ICLR 2019.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ACTIVATION = 255
ACTIVATION_UNIT = 32  # integer activations count in 1/32
_EXACT = 1 << 24  # float32 holds all integers up to this
_BIAS = 1 << 22
_WEIGHT = 127


def quantize_ste(x: Tensor) -> Tensor:
    """x rounded, with the gradient of x."""
    return (torch.round(x) - x).detach() + x if torch.is_grad_enabled() else torch.round(x)


def onednn(x: Tensor) -> bool:
    """Whether oneDNN's own operations can be asked for."""
    return x.device.type == "cpu" and torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def products(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Rows (n, inputs) by weight (outputs, inputs), plus bias (outputs,): (n, outputs), of such integers in float32."""
    if onednn(rows):
        # oneDNN has kernels for all processors; MKL, which F.linear takes, is half as fast on AMD's
        return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return F.linear(rows, weight, bias)


class _Activation(torch.autograd.Function):
    """Numbers to integers 0 to 255. A gradient fades soon outside of the range, as Ballé et al. have it.

    (compressai's `QReLU` is the same; it picks elements by a mask, which no compiler can join to what is around it.)
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0, _ACTIVATION).round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        faded = torch.exp(-(0.9943258522851727**100) * (2.0 * x / _ACTIVATION - 1).abs() ** 100)
        return grad * torch.where((x < 0) | (x > _ACTIVATION), faded, 1.0)


def activate(x: Tensor) -> Tensor:
    """Real pre-activations to integers 0 to 255 that count in 1/32, with a gradient."""
    return _Activation.apply(x * ACTIVATION_UNIT)


class IntegerConv(nn.Module):
    """Convolution of stride 1 with zero padding, on integers.

    Each output channel has a power of two as the unit of its weights, so that they fit into 8 bits.

    Args:
        inputs, outputs: channels. kernel: side of the kernel, odd.
        unit: the inputs are integers that count in 1/unit.
        largest: the largest input in size.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, unit: int, largest: int):
        super().__init__()
        plain = nn.Conv2d(inputs, outputs, kernel)  # for its initialisation
        assert plain.bias is not None
        self.weight, self.bias = plain.weight, plain.bias
        self.kernel, self.unit = kernel, unit
        fan_in = inputs * kernel * kernel
        self.limit = min(_WEIGHT, (_EXACT - 1 - _BIAS) // (fan_in * largest))
        if self.limit < 1:
            raise ValueError(f"{fan_in} inputs of up to {largest} have sums beyond 2^24")

    def integers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights (outputs, inputs * kernel²) and biases (outputs, 1) as integers, and what a unit of the sum is worth
        (outputs, 1), a power of two. Rounding is straight-through."""
        weight = self.weight.float().flatten(1)
        scale = self.scale(weight.detach())
        bias = (self.bias.float()[:, None] * scale * self.unit).clamp(-_BIAS, _BIAS)
        return quantize_ste(weight * scale), quantize_ste(bias), 1 / (scale * self.unit)

    def scale(self, weight: Tensor) -> Tensor:
        """Integers to a unit, for each row of a weight (outputs, inputs * kernel²): powers of two (outputs, 1)."""
        most = weight.abs().amax(1, keepdim=True).clamp_min(2.0**-20)
        # floor(log2(limit / most)) without a logarithm, which is not the same everywhere
        return torch.ldexp(torch.ones_like(most), torch.frexp(self.limit / most).exponent - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Integers (N, inputs, H, W) to real values (N, outputs, H, W), multiples of a power of two."""
        with torch.autocast(x.device.type, enabled=False):
            weight, bias, worth = self.integers()
            columns = F.unfold(x, self.kernel, padding=self.kernel // 2) if self.kernel > 1 else x.flatten(2)
            return ((weight @ columns + bias) * worth).unflatten(2, x.shape[2:])
