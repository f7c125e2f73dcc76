# SPDX-License-Identifier: Apache-2.0
"""Fixed cosine transforms that the codec and the restorer start from.

A network that must first discover that pictures are smooth spends thousands of updates on it. Both our networks work
beside a cosine transform instead and learn what it lacks: untrained, the codec is a transform codec and the restorer
the identity. (Measured for the codec at 1,200 updates: 4 dB better at the same rate than the same network without.)

Source: Ahmed, Natarajan, Rao, "Discrete cosine transform", IEEE Trans. Computers 1974; for overlapping windows Malvar,
"Signal Processing with Lapped Transforms", 1992.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import dct
from torch import Tensor, nn

from llicm.integer import onednn

# Grey, red against blue, green against both: an orthonormal stand-in for YCbCr, so that errors keep their size.
OPPONENT = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])


def cosines(side: int) -> np.ndarray:
    """The orthonormal DCT-II of `side` samples, (frequency, sample) float64."""
    return dct(np.eye(side), axis=0, norm="ortho")


def squash(x: Tensor) -> Tensor:
    """Coefficients of any shape and size to a range that suits a network: x near 0, the root of its size far from it.

    (A logarithm serves as well; it takes ten times as long on a CPU.)
    """
    return x * (1 + x.abs()).rsqrt()


def alone(x: Tensor) -> bool:
    """Whether x (N, ...) is one picture in float32 that is only coded: oneDNN's own operations have no gradients."""
    return len(x) == 1 and x.dtype == torch.float32 and not torch.is_grad_enabled() and onednn(x)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution of 1x1: on one thread PyTorch leaves it to MKL, which takes twice as long on AMD's processors."""
    if not alone(x):
        return F.conv2d(x, weight, bias)
    return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, [0, 0], [1, 1], [1, 1], 1, "none", [], "")


def interleave(x: Tensor, side: int) -> Tensor:
    """`F.pixel_shuffle`; of one picture that is only coded to one plane a colour, in a third of the time."""
    if not alone(x):
        return F.pixel_shuffle(x, side)
    cells = x.unflatten(1, (-1, side, side)).permute(0, 1, 4, 2, 5, 3)  # (N, C, h, side, w, side)
    return cells.flatten(4).flatten(2, 3)


class BlockDCT(nn.Module):
    """Orthonormal DCT of 16x16 blocks in opponent colours, its `channels` most important coefficients.

    Coefficients are ordered by frequency, with colour counted as 2.2 times as high.

    Attributes:
        std: (1, channels, 1, 1), rough standard deviation of each coefficient for natural images in [0, 1], whose
            amplitude falls as 1/frequency (Field, "Relations between the statistics of natural images and the
            response properties of cortical cells", JOSA A 1987).
    """

    STRIDE = 16
    kernels: Tensor
    std: Tensor

    def __init__(self, channels: int):
        super().__init__()
        side = self.STRIDE
        if not 3 <= channels <= 3 * side * side:
            raise ValueError(f"a block has 3 to {3 * side * side} coefficients, not {channels}")
        basis = cosines(side)
        chosen = sorted(
            ((math.hypot(u, v) + 0.5) * (2.2 if colour else 1.0), colour, u, v)
            for colour in range(3) for u in range(side) for v in range(side)
        )[:channels]  # fmt: skip
        kernels = [np.einsum("c,i,j->cij", OPPONENT[colour], basis[u], basis[v]) for _, colour, u, v in chosen]
        std = [(1.2 if colour else 4.0) / (1 + 1.5 * math.hypot(u, v)) for _, colour, u, v in chosen]
        self.register_buffer("kernels", torch.tensor(np.stack(kernels), dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Image (N, 3, H, W), sides multiples of 16, to coefficients (N, channels, H/16, W/16), in float32."""
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 would round away fine quantiser steps
            return F.conv2d(x.float(), self.kernels, stride=self.STRIDE)

    def inverse(self, coefficients: Tensor) -> Tensor:
        """Coefficients (N, channels, h, w) to the image (N, 3, 16 h, 16 w) that has them and no others."""
        with torch.autocast(coefficients.device.type, enabled=False):
            # the same as a transposed convolution, in a third of the time
            return interleave(pointwise(coefficients.float(), self.kernels.flatten(1).T[..., None, None]), self.STRIDE)


class LappedDCT(nn.Module):
    """DCT of 8x8 windows that overlap by half, in opponent colours: a tight frame, so `inverse(forward(x)) == x`."""

    SIDE = 8
    STRIDE = 4
    CHANNELS = 3 * SIDE * SIDE
    kernels: Tensor
    gather: Tensor

    def __init__(self):
        super().__init__()
        window = np.sin(math.pi * (np.arange(self.SIDE) + 0.5) / self.SIDE)  # its square and its shift's add up to 1
        basis = cosines(self.SIDE) * window
        kernels = np.einsum("kc,ui,vj->kuvcij", OPPONENT, basis, basis).reshape(-1, 3, self.SIDE, self.SIDE)
        self.register_buffer("kernels", torch.tensor(kernels, dtype=torch.float32), persistent=False)
        # Each 4x4 cell lies in four windows. To gather from those is to overlap and add, in half the time.
        halves = kernels.reshape(-1, 3, 2, self.STRIDE, 2, self.STRIDE)[:, :, ::-1, :, ::-1]
        gather = halves.transpose(1, 3, 5, 0, 2, 4).reshape(-1, self.CHANNELS, 2, 2).copy()
        self.register_buffer("gather", torch.tensor(gather, dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Image (N, 3, H, W), sides multiples of 4 and at least 8, to (N, 192, H/4 + 1, W/4 + 1), in float32.

        Windows are centred at the corners of 4x4 cells, from the image's first corner to its last.
        """
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(F.pad(x.float(), [self.STRIDE] * 4, mode="reflect"), self.kernels, stride=self.STRIDE)

    def inverse(self, coefficients: Tensor) -> Tensor:
        """Coefficients (N, 192, h, w) to the image (N, 3, 4 (h - 1), 4 (w - 1))."""
        with torch.autocast(coefficients.device.type, enabled=False):
            return F.pixel_shuffle(F.conv2d(coefficients.float(), self.gather), self.STRIDE)
