# SPDX-License-Identifier: Apache-2.0
"""The learned codec: a mean-scale hyperprior with gain units, one model for the whole rate range.

Layers and entropy models are compressai's; the arrangement is

    x ─g_a─► y ─·gain(level)─► ỹ ──Q──► ŷ ─·inverse gain(level)─► g_s ─► x̂
                                │  ▲ means, scales
                               h_a │
                                ▼  h_s
                                z ─Q─► ẑ

Sources: Minnen, Ballé, Toderici, "Joint autoregressive and hierarchical priors", NeurIPS 2018 (the model without
its context part); Cui et al., "Asymmetric gained deep image compression", CVPR 2021 (gain units, geometric
interpolation between levels).
"""

import hashlib
import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from compressai.layers import GDN1
from compressai.models import CompressionModel
from compressai.models.utils import conv, deconv
from compressai.ops import quantize_ste
from torch import Tensor

from llicm.codec.bitstream import MAX_SIDE, Bitstream, pack, quantize_level, unpack
from llicm.errors import BitstreamError, UserError

__all__ = ["CODECS", "GainedHyperprior", "make_codec", "register_codec"]

CODECS: dict[str, type[nn.Module]] = {}
STRIDE = 64  # of the hyper-latent: sides are padded to multiples of it
SYMBOL_LIMIT = 1 << 20  # the range coder does not return from symbols beyond about 2^27


def register_codec(name: str):
    """Class decorator: make a codec selectable as `codec.name` in params.yaml."""

    def add(cls):
        CODECS[name] = cls
        return cls

    return add


def make_codec(name: str, **config) -> nn.Module:
    """The codec registered as `name`.

    Raises:
        UserError: no codec of that name.
    """
    if name not in CODECS:
        raise UserError(f"params.yaml: codec.name '{name}' is unknown; choose one of {', '.join(sorted(CODECS))}")
    return CODECS[name](**config)


@register_codec("mean-scale")
class GainedHyperprior(CompressionModel):
    """Variable-rate mean-scale hyperprior.

    Args:
        N: channels of the transforms. M: channels of the latent y.
        lambdas: one Lagrangian weight per level, ascending (compressai's convention: `lambda * 255^2 * MSE + bpp`).
            Level l in [0, len(lambdas) - 1] is continuous; between two levels gains are interpolated geometrically.
    """

    def __init__(self, N: int, M: int, lambdas: list[float]):
        super().__init__()
        self.config = {"name": "mean-scale", "N": N, "M": M, "lambdas": list(lambdas)}
        self.g_a = nn.Sequential(conv(3, N), GDN1(N), conv(N, N), GDN1(N), conv(N, N), GDN1(N), conv(N, M))
        self.g_s = nn.Sequential(
            deconv(M, N), GDN1(N, inverse=True), deconv(N, N), GDN1(N, inverse=True),
            deconv(N, N), GDN1(N, inverse=True), deconv(N, 3),
        )  # fmt: skip
        self.h_a = nn.Sequential(
            conv(M, N, stride=1, kernel_size=3), nn.LeakyReLU(inplace=True), conv(N, N), nn.LeakyReLU(inplace=True),
            conv(N, N),
        )  # fmt: skip
        self.h_s = nn.Sequential(
            deconv(N, N), nn.LeakyReLU(inplace=True), deconv(N, N), nn.LeakyReLU(inplace=True),
            conv(N, 2 * M, stride=1, kernel_size=3),
        )  # fmt: skip
        self.eb_z = EntropyBottleneck(N)
        self.gaussian_y = GaussianConditional(None)
        # A step of the quantiser should shrink as lambda^-1/2 (high-rate theory): start the gains there.
        middle = math.sqrt(lambdas[0] * lambdas[-1])
        start = torch.tensor([0.5 * math.log(value / middle) for value in lambdas]).view(-1, 1).repeat(1, M)
        self.log_gain = nn.Parameter(start.clone())
        self.log_inverse_gain = nn.Parameter(-start.clone())

    @property
    def levels(self) -> int:
        """Number of trained levels."""
        return self.log_gain.shape[0]

    def lambdas(self, level: Tensor) -> Tensor:
        """Lagrangian weight at each continuous level of `level` (N,), interpolated geometrically."""
        table = torch.tensor(self.config["lambdas"], device=level.device).log().view(-1, 1)
        return _interpolate(table, level).view(-1).exp()

    def gains(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Gain and inverse gain (N, M, 1, 1) at each continuous level of `level` (N,)."""
        both = (_interpolate(t, level).exp()[..., None, None] for t in (self.log_gain, self.log_inverse_gain))
        return tuple(both)

    def forward(self, x: Tensor, level: Tensor) -> dict:
        """Training pass: noise for the rate, straight-through rounding for the decoder.

        Args:
            x: (N, 3, H, W) in [0, 1], sides multiples of 64. level: (N,) in [0, levels - 1].

        Returns:
            `x_hat` (N, 3, H, W), not clamped, and `likelihoods` {"y", "z"} in float32.
        """
        gain, inverse = self.gains(level)
        y = self.g_a(x).float() * gain
        z = self.h_a(y)
        with torch.autocast(x.device.type, enabled=False):  # likelihoods need float32
            z_hat, z_likelihoods = self.eb_z(z.float())
        scales, means = self.h_s(z_hat).float().chunk(2, 1)
        with torch.autocast(x.device.type, enabled=False):
            _, y_likelihoods = self.gaussian_y(y, scales, means)
        y_hat = quantize_ste(y - means) + means
        x_hat = self.g_s(y_hat * inverse)
        return {"x_hat": x_hat.float(), "likelihoods": {"y": y_likelihoods, "z": z_likelihoods}}

    def finish(self) -> None:
        """Build the entropy coder's tables from the trained weights; call once, before saving or coding."""
        self.update(force=True, update_quantiles=True)

    def model_id(self) -> bytes:
        """SHA-256 over names and bytes of all weights and tables: binds a bitstream to its decoder."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.digest()

    @torch.no_grad()
    def encode(self, x: Tensor, level: float) -> tuple[bytes, Tensor]:
        """Compress one image to the bytes of a `.llicm` file.

        Args:
            x: (3, H, W) in [0, 1], any size up to 16384 a side. level: continuous, clamped to the trained range.

        Returns:
            The file's bytes and the reconstruction (3, H, W) that `decode` gives for them.

        Raises:
            ValueError: x is not finite, or too large.
        """
        height, width = x.shape[-2:]
        if not torch.isfinite(x).all():
            raise ValueError("the image has NaN or infinite values")
        if max(height, width) > MAX_SIDE:
            raise ValueError(f"image of {width}x{height}: sides must be at most {MAX_SIDE} pixels")
        level = quantize_level(min(max(float(level), 0.0), self.levels - 1.0))
        gain, inverse = self.gains(torch.tensor([level]))
        pad = (0, -width % STRIDE, 0, -height % STRIDE)
        y = self.g_a(F.pad(x[None], pad, mode="replicate")) * gain
        z = self.h_a(y)
        _check_symbols(z)
        z_string = self.eb_z.compress(z)
        z_hat = self.eb_z.decompress(z_string, z.shape[-2:])
        indexes, means = self._y_parameters(z_hat)
        _check_symbols(y - means)
        y_string = self.gaussian_y.compress(y, indexes, means=means)
        data = pack(Bitstream(self._id(), height, width, level, z_string[0], y_string[0]))
        y_hat = self.gaussian_y.quantize(y, "symbols", means).float() + means
        return data, self._reconstruct(y_hat, inverse, height, width)

    @torch.no_grad()
    def decode(self, data: bytes) -> tuple[Tensor, float]:
        """Decompress the bytes of a `.llicm` file.

        Returns:
            The image (3, H, W) in [0, 1] and the level it was written at.

        Raises:
            BitstreamError: see `llicm.codec.bitstream.unpack`; also when the payload decodes to nonsense.
        """
        stream = unpack(data, self._id())
        if stream.level > self.levels - 1:
            raise BitstreamError(f"level {stream.level:g} is beyond this model's {self.levels - 1}")
        gain, inverse = self.gains(torch.tensor([stream.level]))
        rows, columns = (math.ceil(side / STRIDE) for side in (stream.height, stream.width))
        # The range coder reads past the end of short strings: the zeros make that defined.
        z_hat = self.eb_z.decompress([stream.z + bytes(16)], (rows, columns))
        indexes, means = self._y_parameters(z_hat)
        y_hat = self.gaussian_y.decompress([stream.y + bytes(16)], indexes, means=means)
        x_hat = self._reconstruct(y_hat, inverse, stream.height, stream.width)
        if not torch.isfinite(x_hat).all():
            raise BitstreamError("the file does not decode to finite pixels: it was made by an incompatible encoder")
        return x_hat, stream.level

    def _y_parameters(self, z_hat: Tensor) -> tuple[Tensor, Tensor]:
        scales, means = self.h_s(z_hat).chunk(2, 1)
        return self.gaussian_y.build_indexes(scales), means

    def _reconstruct(self, y_hat: Tensor, inverse: Tensor, height: int, width: int) -> Tensor:
        return self.g_s(y_hat * inverse)[0, :, :height, :width].clamp(0, 1)

    def _id(self) -> bytes:
        if getattr(self, "_cached_id", None) is None:
            self._cached_id = self.model_id()
        return self._cached_id

    def train(self, mode: bool = True):
        self._cached_id = None  # weights may change from here on
        return super().train(mode)


def _interpolate(table: Tensor, level: Tensor) -> Tensor:
    """Rows of `table` (L, C) at continuous positions `level` (N,), linearly interpolated."""
    level = level.clamp(0, table.shape[0] - 1)
    low = level.floor().long().clamp(max=max(table.shape[0] - 2, 0))
    high = (low + 1).clamp(max=table.shape[0] - 1)
    share = (level - low).view(-1, 1)
    return table[low] * (1 - share) + table[high] * share


def _check_symbols(values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()) or float(values.abs().max()) > SYMBOL_LIMIT:
        raise ValueError("the latent is not finite or too large to code: the weights are damaged or not trained")
