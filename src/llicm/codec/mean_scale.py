# SPDX-License-Identifier: Apache-2.0
"""The learned codec: a mean-scale hyperprior with gain units, one model for the whole rate range.

The arrangement is

    x ─DCT + g_a─► y ─·gain(level)─► ỹ ──Q──► ŷ ─·inverse gain(level)─► DCT⁻¹ + g_s ─► x̂
                                      │  ▲ means, scales
                                     h_a │
                                      ▼  h_s
                                      z ─Q─► ẑ

The transforms and all around the latent are `llicm.codec.learned`'s; here, g_s adds to the decoded picture.

Which table codes which symbol of ŷ depends on h_s alone, and h_s computes with integers (`llicm.integer`): the
same on every machine. g_a, h_a and g_s are ordinary float networks; the encoder sends what they decide, and a decoder
on other hardware gets the same ŷ and, but for the last bits of a float, the same x̂.

Sources: Minnen, Ballé, Toderici, "Joint autoregressive and hierarchical priors", NeurIPS 2018 (the model without
its context part).
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor, nn

from llicm.codec.entropy import Decoder
from llicm.codec.learned import (
    HYPER_LIMIT,
    OCTAVE,
    HyperSynthesis,
    LearnedCodec,
    Quantizer,
    bands,
    hyper_analysis,
    zeroed,
)
from llicm.codec.priors import FactorisedPrior, GaussianPrior
from llicm.integer import quantize_ste
from llicm.registry import CODECS

__all__ = ["MeanScaleHyperprior"]


@CODECS.register("mean-scale")
class MeanScaleHyperprior(LearnedCodec):
    """Variable-rate mean-scale hyperprior; arguments as of `LearnedCodec`."""

    # From a standard deviation of 1/8 of a quantiser step on: there a symbol is zero but for one in 16,000.
    first_scale, tables = -3 * OCTAVE, 81
    reach = 4  # 32 + 16 + 12 pixels by g_s

    def __init__(self, N: int, M: int, lambdas: list[float]):
        super().__init__("mean-scale", N, M, lambdas)
        self.g_s.extend([zeroed(nn.Conv2d(N, 48, 3, padding=1)), nn.PixelShuffle(4)])
        self.h_a = hyper_analysis(N, M)
        self.h_s = HyperSynthesis(N, 2 * M)
        self.eb_z = FactorisedPrior(N)
        self.gaussian_y = GaussianPrior()

    def estimate(
        self, y: Tensor, z: Tensor, level: Tensor, gains: tuple[Tensor, Tensor], quantize: Quantizer | None = None
    ) -> dict:
        gain, inverse = gains
        with torch.autocast(y.device.type, enabled=False):  # likelihoods need float32
            # laid out by channel: the order in which noise is drawn, and so what a seed gives, is compressai's
            z_likelihoods = self.eb_z(z.transpose(0, 1).contiguous().transpose(0, 1)).contiguous()
        log_scale, mean = self.h_s(quantize_ste(z.clamp(-HYPER_LIMIT, HYPER_LIMIT))).chunk(2, 1)
        unit = gain * self.unit  # h_s predicts in units of each coefficient's usual standard deviation
        scales, means = unit * torch.exp2(log_scale.clamp(-14, 8)), unit * mean
        with torch.autocast(y.device.type, enabled=False):
            if quantize:
                symbols = quantize(y - means)
                y_likelihoods = self.gaussian_y.likelihood(symbols, scales)
            else:
                y_likelihoods = self.gaussian_y(y, scales, means)
                symbols = quantize_ste(y - means)
        y_hat = symbols + means
        x_hat = self._synthesise(y_hat * inverse, level)
        return {"x_hat": x_hat, "likelihoods": {"y": y_likelihoods, "z": z_likelihoods}}

    def _likely(self, scale: float) -> np.ndarray:
        most = math.ceil(4.5 * scale)
        edges = ndtr((np.arange(-most, most + 2) - 0.5) / scale)
        return np.append(np.diff(edges), 2 * edges[0])

    def _encode(self, y: Tensor, z_hat: Tensor, level: float) -> tuple[Tensor, Tensor]:
        tables, residuals = torch.empty(y.shape[1:], dtype=torch.uint8), torch.empty(y.shape[1:])
        for rows, indexes, means in self._indexes_and_means(z_hat, level):
            tables[:, rows] = indexes
            residuals[:, rows] = torch.where(indexes > 0, (y[0, :, rows] - means).round(), 0.0)
        return tables, residuals

    def _decode(self, decoder: Decoder, z_hat: Tensor, level: float) -> tuple[Tensor, Tensor, Tensor]:
        tables: list[Tensor] = []
        residuals: list[Tensor] = []
        values: list[Tensor] = []
        for rows, indexes, means in self._indexes_and_means(z_hat, level):
            residual = self._fetch(decoder, indexes).float()
            if rows.start == 0 and rows.stop < 4 * z_hat.shape[2]:
                decoder.check()
            for whole, found in ((tables, indexes), (residuals, residual), (values, residual + means)):
                whole.append(found)
        return torch.cat(tables, 1), torch.cat(residuals, 1), torch.cat(values, 1)

    def _pieces(self, height: int, width: int) -> Iterator[tuple[slice, Tensor]]:
        for start, stop in bands(height // 4, width // 4):
            yield slice(None), torch.arange(4 * start * width, 4 * stop * width)

    def _indexes_and_means(self, z_hat: Tensor, level: float) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Band by band: rows of y; for each symbol its table (uint8, 0: not coded), by integers alone, and its mean in
        quantiser steps."""
        offset = self._offset(level).int()[:, None, None]
        unit = (self.gains(torch.tensor([level]))[0] * self.unit)[0]
        for start, stop in bands(*z_hat.shape[2:]):
            log_scale, mean = self.h_s.rows(z_hat, start, stop)[0].chunk(2)
            yield slice(4 * start, 4 * stop), self._index(log_scale, offset), unit * mean

    def _synthesise(self, y: Tensor, level: Tensor) -> Tensor:
        return self.dct.inverse(y) + self.g_s(y / self.unit, self.relative_level(level)).float() + 0.5
