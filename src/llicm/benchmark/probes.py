# SPDX-License-Identifier: Apache-2.0
"""What is measured of the coding itself, beside the quality of the output image; records have it as if it were metrics.

| name | value |
|---|---|
| ``bpp_estimated`` | bits per pixel by the entropy model's likelihoods, as papers report them when nothing is written |
| ``kept`` | share of the degradation's energy that is still in the decoded image X̂ |
| ``harm`` | of clean pictures: PSNR in dB that restoring loses, against the same codec and level without restoring |
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from llicm.objectives import bits_per_pixel
from llicm.registry import Codec

PROBES = {"bpp_estimated": "estimated rate", "kept": "degradation kept in X̂", "harm": "PSNR lost by restoring"}


@torch.no_grad()
def estimated_bpp(codec: Codec, x: Tensor, level: float) -> float:
    """Bits per pixel that a learned codec's likelihoods promise for a picture (3, H, W), without header or coder."""
    height, width = x.shape[1:]
    padded = F.pad(x[None], (0, -width % codec.stride, 0, -height % codec.stride), mode="replicate")
    return float(bits_per_pixel(codec.forward(padded, padded.new_tensor([float(level)]))["likelihoods"], height, width))


def kept_energy(decoded: Tensor, degraded: Tensor, ideal: Tensor) -> float | None:
    """Energy of the degradation d = X - X_ideal that X̂ still holds, relative to d's own: (<X̂ - X_ideal, d> / <d, d>)².

    1 if X̂ = X, 0 if X̂ has nothing of it: errors of coding that have nothing to do with d do not count. For noise, which
    no codec can predict, it says what share of the bits' object is the noise itself.

    Args:
        decoded, degraded, ideal: X̂, X and X_ideal, (3, H, W) in [0, 1].

    Returns:
        The share, or None if nothing is degraded.
    """
    d = (degraded - ideal).double()
    energy = d.square().sum()
    if not energy:
        return None
    return float((((decoded - ideal).double() * d).sum() / energy) ** 2)
