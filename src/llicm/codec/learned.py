# SPDX-License-Identifier: Apache-2.0
"""The learned codec: a mean-scale hyperprior with gain units, one model for the whole rate range.

Layers and entropy models are compressai's; the arrangement is

    x ─DCT + g_a─► y ─·gain(level)─► ỹ ──Q──► ŷ ─·inverse gain(level)─► DCT⁻¹ + g_s ─► x̂
                                      │  ▲ means, scales
                                     h_a │
                                      ▼  h_s
                                      z ─Q─► ẑ

The transforms are a fixed block DCT and networks that correct it, without effect to begin with: g_a sees the picture,
its coefficients and how fine they will be quantised, and attenuates each (in joint training: those that only describe
noise) or adds to it; g_s adds to the decoded picture.

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
from compressai.models import CompressionModel
from compressai.models.utils import conv, deconv
from compressai.ops import quantize_ste
from torch import Tensor

from llicm.codec.bitstream import MAX_SIDE, Bitstream, pack, quantize_level, unpack
from llicm.errors import BitstreamError, UserError
from llicm.transforms import BlockDCT

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


class _Block(nn.Module):
    """Residual block of two 3x3 convolutions, told the level by FiLM (Perez et al., AAAI 2018)."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.film = nn.Linear(2, 2 * width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)
        with torch.no_grad():
            self.conv2.weight.mul_(0.3)

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        scale, shift = self.film(torch.stack([place, place.square()], 1))[..., None, None].chunk(2, 1)
        return x + self.conv2(F.gelu(self.conv1(x) * (1 + scale) + shift, approximate="tanh"))


class _Transform(nn.Sequential):
    """Layers in a row; the blocks among them are told the `place` (N,) of the level in [0, 1]."""

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, place) if isinstance(layer, _Block) else layer(x)
        return x


@register_codec("mean-scale")
class GainedHyperprior(CompressionModel):
    """Variable-rate mean-scale hyperprior.

    Args:
        N: channels of the transforms at 1/4 of the resolution (doubled below) and of the hyper-transforms.
        M: channels of the latent y, 3 to 768 (DCT coefficients of a block).
        lambdas: one Lagrangian weight per level, ascending (compressai's convention: `lambda * 255^2 * MSE + bpp`).
            Level l in [0, len(lambdas) - 1] is continuous; between two levels gains are interpolated geometrically.
    """

    def __init__(self, N: int, M: int, lambdas: list[float]):
        super().__init__()
        self.config = {"name": "mean-scale", "N": N, "M": M, "lambdas": list(lambdas)}
        self.dct = BlockDCT(M)
        self.g_a = _Transform(
            nn.PixelUnshuffle(4), nn.Conv2d(48, N, 3, padding=1), _Block(N),
            nn.Conv2d(N, 2 * N, 2, stride=2), _Block(2 * N), nn.Conv2d(2 * N, 2 * N, 2, stride=2), _Block(2 * N),
        )  # fmt: skip
        self.decide = nn.Sequential(nn.Conv2d(M + 2 * N, 2 * N, 1), nn.GELU("tanh"), nn.Conv2d(2 * N, 2 * M, 1))
        self.g_s = _Transform(
            nn.Conv2d(M, 2 * N, 1), _Block(2 * N), nn.Conv2d(2 * N, 8 * N, 1), nn.PixelShuffle(2),
            _Block(2 * N), nn.Conv2d(2 * N, 4 * N, 1), nn.PixelShuffle(2),
            _Block(N), nn.Conv2d(N, 48, 3, padding=1), nn.PixelShuffle(4),
        )  # fmt: skip
        for last in (self.decide[-1], self.g_s[-2]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.h_a = nn.Sequential(
            conv(M, N, stride=1, kernel_size=3), nn.LeakyReLU(inplace=True), conv(N, N), nn.LeakyReLU(inplace=True),
            conv(N, N),
        )  # fmt: skip
        self.h_s = nn.Sequential(
            deconv(N, N), nn.LeakyReLU(inplace=True), deconv(N, N), nn.LeakyReLU(inplace=True),
            conv(N, 2 * M, stride=1, kernel_size=3),
        )  # fmt: skip
        with torch.no_grad():
            self.h_s[-1].weight.mul_(0.3)
        self.eb_z = EntropyBottleneck(N)
        self.gaussian_y = GaussianConditional(None)
        # The best uniform step of an orthonormal transform at high rate: lambda · 255² · step²/12 / 3 colours has the
        # slope of one bit a doubling, so step² = 36 / (lambda · 255² · 2 ln 2) (Gish, Pierce, IEEE Trans. IT 1968).
        start = torch.tensor([0.5 * math.log(value * 255**2 * 2 * math.log(2) / 36) for value in lambdas])
        self.log_gain = nn.Parameter(start.view(-1, 1).repeat(1, M))
        self.log_inverse_gain = nn.Parameter(-self.log_gain.detach().clone())

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
        y = self._analyse(x, level, gain)
        z = self.h_a(torch.asinh(y))
        with torch.autocast(x.device.type, enabled=False):  # likelihoods need float32
            z_hat, z_likelihoods = self.eb_z(z.float())
        scales, means = self._y_parameters(z_hat, gain)
        with torch.autocast(x.device.type, enabled=False):
            _, y_likelihoods = self.gaussian_y(y, scales, means)
        y_hat = quantize_ste(y - means) + means
        x_hat = self._synthesise(y_hat * inverse, level)
        return {"x_hat": x_hat, "likelihoods": {"y": y_likelihoods, "z": z_likelihoods}}

    def finish(self) -> None:
        """Build the entropy coder's tables from the trained weights; call once, before saving or coding."""
        self.update(force=True, update_quantiles=True)

    def model_id(self) -> bytes:
        """SHA-256 over names and bytes of all weights and tables: binds a bitstream to its decoder."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
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
        at = torch.tensor([level])
        gain, inverse = self.gains(at)
        pad = (0, -width % STRIDE, 0, -height % STRIDE)
        y = self._analyse(F.pad(x[None], pad, mode="replicate"), at, gain)
        z = self.h_a(torch.asinh(y))
        _check_symbols(z)
        z_string = self.eb_z.compress(z)
        z_hat = self.eb_z.decompress(z_string, z.shape[-2:])
        scales, means = self._y_parameters(z_hat, gain)
        indexes = self.gaussian_y.build_indexes(scales)
        _check_symbols(y - means)
        y_string = self.gaussian_y.compress(y, indexes, means=means)
        data = pack(Bitstream(self._id(), height, width, level, z_string[0], y_string[0]))
        y_hat = self.gaussian_y.quantize(y, "symbols", means).float() + means
        return data, self._synthesise(y_hat * inverse, at)[0, :, :height, :width].clamp(0, 1)

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
        at = torch.tensor([stream.level])
        gain, inverse = self.gains(at)
        rows, columns = (math.ceil(side / STRIDE) for side in (stream.height, stream.width))
        # The range coder reads past the end of short strings: the zeros make that defined.
        z_hat = self.eb_z.decompress([stream.z + bytes(16)], (rows, columns))
        scales, means = self._y_parameters(z_hat, gain)
        indexes = self.gaussian_y.build_indexes(scales)
        y_hat = self.gaussian_y.decompress([stream.y + bytes(16)], indexes, means=means)
        x_hat = self._synthesise(y_hat * inverse, at)[0, :, : stream.height, : stream.width].clamp(0, 1)
        if not torch.isfinite(x_hat).all():
            raise BitstreamError("the file does not decode to finite pixels: it was made by an incompatible encoder")
        return x_hat, stream.level

    def _analyse(self, x: Tensor, level: Tensor, gain: Tensor) -> Tensor:
        """Image (N, 3, H, W), sides multiples of 16, to the latent (N, M, H/16, W/16) in quantiser steps."""
        x = x - 0.5
        y = self.dct(x) * gain
        known = torch.cat([torch.asinh(y), self.g_a(x, self._place(level)).float()], 1)
        attenuation, addition = self.decide(known).float().chunk(2, 1)
        return y * (1 + attenuation) + gain * self.dct.spread * addition

    def _synthesise(self, y: Tensor, level: Tensor) -> Tensor:
        """Latent behind the inverse gain to image, not clamped."""
        return self.dct.inverse(y) + self.g_s(y / self.dct.spread, self._place(level)).float() + 0.5

    def _y_parameters(self, z_hat: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        """Scales and means of y in quantiser steps; predicted in units of each coefficient's usual spread."""
        log_scale, mean = self.h_s(z_hat).float().chunk(2, 1)
        unit = gain * self.dct.spread
        return unit * torch.exp(log_scale.clamp(-9, 6) - 1), unit * mean

    def _place(self, level: Tensor) -> Tensor:
        return level / max(self.levels - 1, 1)

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
