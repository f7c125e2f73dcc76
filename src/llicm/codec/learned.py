# SPDX-License-Identifier: Apache-2.0
"""What the learned codecs share: transforms, gains, hyper-latent, the entropy coder's tables and the file around them.

The transforms are a fixed block DCT and networks that correct it, without effect to begin with: g_a sees the picture,
its coefficients and how fine they will be quantised, and attenuates each (in joint training: those that only describe
noise) or adds to it; g_s looks at the decoded latent. All are ordinary float networks: the encoder sends what they
decide.

Sources: Cui et al., "Asymmetric gained deep image compression", CVPR 2021 (gain units, geometric interpolation between
levels); Minnen, Ballé, Toderici, "Joint autoregressive and hierarchical priors", NeurIPS 2018 (the hyper-latent).
"""

import copy
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llicm.codec.bitstream import LEVEL_UNIT, Bitstream, frame, pack, quantize_level, unpack
from llicm.codec.effort import better, check_effort, refine
from llicm.codec.entropy import SYMBOL_LIMIT, Decoder, Encoder, Tables
from llicm.codec.priors import FactorisedPrior
from llicm.errors import BitstreamError, UserError
from llicm.integer import ACTIVATION_UNIT, IntegerConv, activate
from llicm.limits import as_pictures, check_size, is_grey
from llicm.strips import by_strips
from llicm.transforms import BlockDCT, alone, pointwise, squash
from llicm.weights import round_parameters

__all__ = [
    "HYPER_LIMIT", "OCTAVE", "Block", "BoundCodec", "HyperSynthesis", "LearnedCodec", "Quantizer", "Transform",
    "bands", "coding", "hyper_analysis", "zeroed",
]  # fmt: skip

STRIDE = 64  # of the hyper-latent: sides are padded to multiples of it
BAND = 1 << 20  # pixels that a decoder reads between two checks before it lays out a whole picture
HYPER_LIMIT = 127  # of the hyper-latent's symbols: h_s takes 8-bit integers

# Scales of the latent are whole numbers of 1/64 octave; tables stand at every eighth.
OCTAVE = 64
TABLE_STEP = 8

Quantizer = Callable[[Tensor], Tensor]
Method = TypeVar("Method", bound=Callable)


def zeroed(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    """A layer that gives zero until it is trained."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Block(nn.Module):
    """Residual block of two 3x3 convolutions, conditioned on the level by FiLM (Perez et al., AAAI 2018).

    Of one picture that is only coded the sum is written over the input: a new map of that size costs time.
    """

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.film = zeroed(nn.Linear(2, 2 * width))
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            self.conv2.weight.mul_(0.3)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        scale, shift = self.film(torch.stack([level, level.square()], 1))[..., None, None].chunk(2, 1)
        if not alone(x):
            return x + self.conv2(F.gelu(self.conv1(x) * (1 + scale) + shift, approximate="tanh"))
        # of one picture FiLM goes into the weights; activation and sum are done while the products are at hand
        weight, bias = self.conv1.weight * (1 + scale[0, ..., None]), self.conv1.bias * (1 + scale[0, :, 0, 0])
        how = ([1, 1], [1, 1], [1, 1], 1)
        inner = torch.ops.mkldnn._convolution_pointwise(x, weight, bias + shift[0, :, 0, 0], *how, "gelu", [], "tanh")
        add = torch.ops.mkldnn._convolution_pointwise_.binary
        return add(x, inner, self.conv2.weight, self.conv2.bias, *how, "add", 1.0, None, [], None)


class Pointwise(nn.Conv2d):
    """`pointwise` with trained weights."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return pointwise(x, self.weight, self.bias)


class Transform(nn.ModuleList):
    """Layers in a row, of which blocks also take the relative level (N,) in [0, 1]."""

    def __init__(self, *layers: nn.Module):
        super().__init__(layers)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, level) if isinstance(layer, Block) else layer(x)
        return x


class HyperSynthesis(nn.Sequential):
    """Hyper-latent, integers (N, C, h, w) of at most `HYPER_LIMIT`, to (N, outputs, 4 h, 4 w); exact on any machine."""

    def __init__(self, channels: int, outputs: int):
        inner = {"unit": ACTIVATION_UNIT, "largest": 255}
        first = IntegerConv(channels, 4 * channels, 3, 1, HYPER_LIMIT)
        second, third = (IntegerConv(channels, n * channels, 3, **inner) for n in (4, 2))
        last = IntegerConv(2 * channels, outputs, 1, **inner)
        with torch.no_grad():
            last.weight.mul_(0.3)
        super().__init__(first, nn.PixelShuffle(2), second, nn.PixelShuffle(2), third, last)

    def forward(self, z: Tensor) -> Tensor:
        return self.rows(z, 0, z.shape[2])

    def rows(self, z: Tensor, start: int, stop: int) -> Tensor:
        """What belongs to these rows of z."""
        first, shuffle, second, _, third, last = self
        above = min(start, 2)  # each convolution sees one row more, at 1, 2 and 4 times the resolution
        x = activate(shuffle(first(z[:, :, start - above : stop + 2])))
        skip = max(4 * above - 1, 0)
        x = activate(shuffle(second(x)))[:, :, skip : 4 * (above + stop - start) + 1]
        return last(activate(third(x))[:, :, 4 * above - skip :][:, :, : 4 * (stop - start)])


def hyper_analysis(N: int, M: int) -> nn.Sequential:
    """Squashed latent (n, M, 4 h, 4 w) to the hyper-latent (n, N, h, w)."""
    return nn.Sequential(
        nn.Conv2d(M, N, 3, padding=1), nn.LeakyReLU(inplace=True),
        nn.Conv2d(N, N, 3, 2, 1), nn.LeakyReLU(inplace=True), nn.Conv2d(N, N, 3, 2, 1),
    )  # fmt: skip


def coding(method: Method) -> Method:
    """A method of a module that codes: without gradients, in float32 and not TF32, wherever the weights are. The result
    is the same, whatever surrounds the call."""

    @functools.wraps(method)
    def exactly(self: nn.Module, *args: Any, **options: Any) -> Any:
        device, cudnn = next(self.parameters()).device.type, torch.backends.cudnn  # type: str, Any
        usual = cudnn.conv.fp32_precision
        with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast(device, enabled=False):
            if device == "cpu":
                return method(self, *args, **options)
            try:
                cudnn.conv.fp32_precision = "ieee"
                return method(self, *args, **options)
            finally:
                cudnn.conv.fp32_precision = usual

    return cast(Method, exactly)


class BoundCodec(nn.Module):
    """A codec whose files tell which weights wrote them; `config` has its `lambdas`, one for each level.

    On a device its float networks compute there. All that must be the same on every machine, tables and symbols, is
    left to a copy on the processor, `_exact`.
    """

    config: dict[str, Any]
    _coding: Any  # what `_forget` makes anew, as the tables in the coder's form
    _cached_id: bytes | None
    _copies: list[Self]  # none or one, in a list: a module would take it for a part of itself

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def _exact(self) -> Self:
        """The same codec on the processor."""
        if self.device.type == "cpu":
            return self
        if not self._copies:
            self._forget()
            self._copies = [copy.deepcopy(self).cpu()]
        return self._copies[0]

    @property
    def levels(self) -> int:
        """Number of trained levels."""
        return len(self.config["lambdas"])

    def lambdas(self, level: Tensor) -> Tensor:
        """Lagrangian weight at each continuous level of `level` (N,), interpolated geometrically."""
        table = torch.tensor(self.config["lambdas"], device=level.device).log().view(-1, 1)
        return interpolate(table, level).view(-1).exp()

    def relative_level(self, level: Tensor) -> Tensor:
        """Level on a scale from 0 (lowest rate) to 1 (highest)."""
        return level / max(self.levels - 1, 1)

    def model_id(self) -> bytes:
        """SHA-256 over names and bytes of all weights and tables: binds a bitstream to its decoder."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        return digest.digest()

    def _id(self) -> bytes:
        if self._cached_id is None:
            self._cached_id = self.model_id()
        return self._cached_id

    def train(self, mode: bool = True) -> Self:
        self._forget()  # weights may change from here on
        return super().train(mode)

    def _forget(self) -> None:
        self._coding, self._cached_id, self._copies = None, None, []


class LearnedCodec(BoundCodec):
    """Variable-rate codec on a block DCT with gains and a hyper-latent.

    A codec builds `h_a`, `h_s` and `eb_z` (after `g_s`, whose end is its own), says what latents cost and give
    (`estimate`) and how likely symbols of y are (`_likely`), and goes through the latent as encoder and decoder
    (`_encode`, `_decode`).

    Args:
        name: of the codec in params.yaml.
        N: channels of the transforms at 1/4 of the resolution (doubled below) and of the hyper-transforms.
        M: channels of the latent y, 3 to 768 (DCT coefficients of a block).
        lambdas: one Lagrangian weight per level, ascending (compressai's convention: `lambda * 255^2 * MSE + bpp`).
            Level l in [0, len(lambdas) - 1] is continuous; between two levels gains are interpolated geometrically.
    """

    stride = STRIDE
    reach: int  # of the synthesis, in blocks: how far from a block its pixels depend on the latent
    first_scale: int  # of the tables of y, log2 in 1/64 octave: what is likelier to be zero is not coded
    tables: int  # their number
    h_a: Any
    h_s: Any
    eb_z: FactorisedPrior
    # What the entropy coder needs, shipped with the weights and made once, by `update`.
    offsets: Tensor  # for each level and channel log2 of gain and spread in 1/64 octave
    frequencies: Tensor  # of all tables, one after the other, those of z before those of y
    lengths: Tensor  # of the tables
    first: Tensor  # symbol of each table's first entry
    _coding: tuple[Tables, Tables] | None

    def __init__(self, name: str, N: int, M: int, lambdas: list[float]):
        super().__init__()
        self.config: dict[str, Any] = {"name": name, "N": N, "M": M, "lambdas": list(lambdas)}
        self.dct = BlockDCT(M)
        self.g_a = Transform(
            nn.PixelUnshuffle(4), nn.Conv2d(48, N, 3, padding=1), Block(N),
            nn.Conv2d(N, 2 * N, 2, stride=2), Block(2 * N), nn.Conv2d(2 * N, 2 * N, 2, stride=2), Block(2 * N),
        )  # fmt: skip
        self.decide = nn.Sequential(nn.Conv2d(M + 2 * N, 2 * N, 1), nn.GELU("tanh"), zeroed(nn.Conv2d(2 * N, 2 * M, 1)))
        self.g_s = Transform(
            Pointwise(M, 2 * N), Block(2 * N), Pointwise(2 * N, 8 * N), nn.PixelShuffle(2),
            Block(2 * N), Pointwise(2 * N, 4 * N), nn.PixelShuffle(2), Block(N),
        )  # fmt: skip
        # The best uniform step of an orthonormal transform at high rate: lambda · 255² · step²/12 / 3 colours has the
        # slope of one bit a doubling, so step² = 36 / (lambda · 255² · 2 ln 2) (Gish, Pierce, IEEE Trans. IT 1968).
        start = torch.tensor([0.5 * math.log(value * 255**2 * 2 * math.log(2) / 36) for value in lambdas])
        self.log_gain = nn.Parameter(start.view(-1, 1).repeat(1, M))
        self.log_inverse_gain = nn.Parameter(-self.log_gain.detach().clone())
        self.register_buffer("offsets", torch.zeros(len(lambdas), M, dtype=torch.int32))
        self.register_buffer("frequencies", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("lengths", torch.zeros(N + self.tables, dtype=torch.int32))
        self.register_buffer("first", torch.zeros(N + self.tables, dtype=torch.int32))
        self._forget()

    @property
    def unit(self) -> Tensor:
        """Usual spread (1, M, 1, 1) of each coefficient, of pixels in [0, 1]: what networks measure them in."""
        return self.dct.std

    def forward(self, x: Tensor, level: Tensor) -> dict:
        """Training pass: noise for the rate, straight-through rounding for context and decoder.

        Args:
            x: (N, 3, H, W) in [0, 1], sides multiples of 64. level: (N,) in [0, levels - 1].

        Returns:
            `x_hat` (N, 3, H, W), not clamped, and `likelihoods` {"y", "z"} in float32.
        """
        x = as_pictures(x)
        gains = self.gains(level)
        y = self._analyse(x, level, gains[0])
        return self.estimate(y, self.h_a(squash(y)).float(), level, gains)

    def estimate(
        self, y: Tensor, z: Tensor, level: Tensor, gains: tuple[Tensor, Tensor], quantize: Quantizer | None = None
    ) -> dict:
        """What `forward` returns, of the latents y (N, M, 4 h, 4 w) and z (N, C, h, w) before rounding.

        Args:
            gains: `self.gains(level)`.
            quantize: differences of y from its means to what stands for their symbols, in rate and picture; without it
                as in training, or rounded if that is over.
        """
        raise NotImplementedError

    def _likely(self, scale: float) -> np.ndarray:
        """Probabilities of the symbols -n to n of this standard deviation, and of all beyond."""
        raise NotImplementedError

    def _encode(self, y: Tensor, z_hat: Tensor, level: float) -> tuple[Tensor, Tensor]:
        """Of y (1, M, 4 h, 4 w) tables (0: not coded) and residuals (M, 4 h, 4 w), from symbols of z (1, N, h, w)."""
        raise NotImplementedError

    def _decode(self, decoder: Decoder, z_hat: Tensor, level: float) -> tuple[Tensor, Tensor, Tensor]:
        """Of y tables, residuals, values for `_steps` (M, 4 h, 4 w), read after the symbols of z (1, N, h, w)."""
        raise NotImplementedError

    def _steps(self, values: Tensor) -> Tensor:
        """Values that `_decode` gives in quantiser steps."""
        return values

    def gains(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Gain and inverse gain (N, M, 1, 1) at each continuous level of `level` (N,)."""
        gain, inverse = (interpolate(t, level).exp()[..., None, None] for t in (self.log_gain, self.log_inverse_gain))
        return gain, inverse

    @torch.no_grad()
    def update(self) -> None:
        """Make the entropy coder's tables from the trained weights; call once, before saving or coding.

        The weights are rounded to what a file holds (see `llicm.weights`), so that the saved model is this one.
        """
        if (exact := self._exact()) is not self:
            exact.update()
            self.load_state_dict(exact.state_dict())
            return
        round_parameters(self)
        counts, first = self.eb_z.update()
        for index in range(self.tables):
            likely = self._likely(2.0 ** ((self.first_scale + index * TABLE_STEP) / OCTAVE))
            counts.append(np.maximum(np.rint(likely * 2**20), 1))
            first.append(1 - len(likely) // 2)
        self.frequencies = torch.tensor(np.concatenate(counts), dtype=torch.int32)
        self.lengths.copy_(torch.tensor([len(c) for c in counts]))
        self.first.copy_(torch.tensor(first))
        spread = self.unit.double().log2().view(1, -1)
        self.offsets.copy_((OCTAVE * (self.log_gain.double() / math.log(2) + spread)).round())
        self._forget()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        # their number is known after training only
        self.frequencies = torch.zeros_like(state_dict["frequencies"], device=self.device)
        self._forget()
        return super().load_state_dict(state_dict, strict, assign)

    @coding
    def compress(self, x: Tensor, level: float, effort: int = 0) -> bytes:
        """Compress one image to the bytes of a `.llicm` file.

        Args:
            x: (3, H, W) in [0, 1], sides up to 16384 and 2^26 pixels. level: continuous, clamped to the trained range.
            effort: gradient steps on the latent of this image (see `llicm.codec.effort`), up to 10,000; 0 for none.

        Raises:
            PictureError: x is no such picture. ValueError: it is too large, or level or effort is no such number.
        """
        x, effort, exact = as_pictures(x, 3).to(self.device), check_effort(effort), self._exact()
        grey, (height, width) = is_grey(x), x.shape[-2:]
        if reason := check_size(width, height):
            raise ValueError(f"image of {reason}")
        level = quantize_level(min(max(float(level), 0.0), self.levels - 1.0))
        at = torch.tensor([level], device=self.device)
        gain, _ = self.gains(at)

        def analyse(rows: Tensor) -> Tensor:
            pad = (0, -width % STRIDE, 0, -rows.shape[2] % STRIDE)
            return self._analyse(F.pad(rows, pad, mode="replicate") if any(pad) else rows, at, gain)

        y = by_strips(analyse, [x[None]], [STRIDE], 1, STRIDE * width)
        z = self.h_a(squash(y))
        if not bool(torch.isfinite(z).all()) or not float(y.abs().max()) < SYMBOL_LIMIT / 2:
            raise ValueError("the latent is not finite or too large to code: the weights are damaged or not trained")
        z_hat = z.round().clamp(-HYPER_LIMIT, HYPER_LIMIT)

        def file(y: Tensor) -> bytes:
            symbols = z_hat.cpu()
            indexes, residual = exact._encode(y.cpu(), symbols, level)
            payload = exact.code(symbols[0], indexes, residual, frame(height, width, level, grey))
            return pack(Bitstream(self._id(), height, width, level, payload, grey))

        data = file(y)
        return better(self, x, data, file(refine(self, x, y, z_hat, level, effort))) if effort else data

    @coding
    def decompress(self, data: bytes) -> tuple[Tensor, float]:
        """Decompress the bytes of a `.llicm` file.

        Returns:
            The image (3, H, W) in [0, 1], grey if it was, and the level it was written at.

        Raises:
            BitstreamError: see `llicm.codec.bitstream.unpack`; also when the payload was not made for this image.
        """
        stream = unpack(data, self._id())
        if stream.level > self.levels - 1:
            raise BitstreamError(f"level {stream.level:g} is beyond this model's {self.levels - 1}")
        at = torch.tensor([stream.level], device=self.device)
        _, inverse = self.gains(at)
        values, side = self._exact()._read(stream)[3], BlockDCT.STRIDE

        def synthesise(values: Tensor) -> Tensor:
            y_hat = self._steps(values.to(self.device)) * inverse
            x_hat = self._synthesise(y_hat, at)[..., : stream.width].clamp_(0, 1)
            if not bool(torch.isfinite(x_hat.sum())):  # clamped values have a finite sum, but for NaN
                raise BitstreamError("the file does not decode to finite pixels: its encoder was an incompatible one")
            return x_hat.mean(1, keepdim=True).expand_as(x_hat) if stream.grey else x_hat

        x_hat = torch.empty(1, 3, stream.height, stream.width, device=self.device)
        by_strips(synthesise, [values[None]], [1], self.reach, side * stream.width, into=x_hat)
        return x_hat[0], stream.level

    def code(self, z_hat: Tensor, indexes: Tensor, residual: Tensor, frame: bytes) -> bytes:
        """The payload: z (C, h, w) by channel, a check, y's residuals (M, 4 h, 4 w), a check; see `_write` for another.

        Args:
            indexes: for each symbol of y its table, 0 if it is not coded. frame: see `llicm.codec.bitstream.frame`.

        Raises:
            ValueError: a symbol is too large.
        """
        z_tables, _ = self._tables()
        encoder = Encoder(frame)
        encoder.symbols(z_tables, channels(z_hat.shape), z_hat.flatten().numpy().astype(np.int32))
        encoder.check()
        self._write(encoder, indexes, residual)
        encoder.check()
        return encoder.finish()

    def _pieces(self, height: int, width: int) -> Iterator[tuple[slice, Tensor]]:
        """In which order y is coded, of so many rows and columns of blocks: channels, and blocks (indices into the
        rows, one after the other). The first piece is the first of `bands`."""
        raise NotImplementedError

    def _write(self, encoder: Encoder, indexes: Tensor, residual: Tensor) -> None:
        """Code residuals of y piece by piece, with a check behind the first band if there are several."""
        several = len(bands(indexes.shape[1] // 4, indexes.shape[2] // 4)) > 1
        for number, (part, at) in enumerate(self._pieces(*indexes.shape[1:])):
            self._put(encoder, *(whole[part].flatten(1).index_select(1, at) for whole in (indexes, residual)))
            if several and number == 0:
                encoder.check()

    def _put(self, encoder: Encoder, indexes: Tensor, residual: Tensor) -> None:
        """Code residuals by their tables, but for those of table 0."""
        flat = indexes.flatten().numpy()
        coded = np.flatnonzero(flat)
        encoder.symbols(self._tables()[1], flat[coded], residual.flatten().numpy()[coded].astype(np.int32))

    def _fetch(self, decoder: Decoder, indexes: Tensor) -> Tensor:
        """Residuals (int32, like the tables `indexes`) that `_put` coded."""
        flat = indexes.flatten().numpy()
        coded = np.flatnonzero(flat)
        residual = np.zeros(len(flat), np.int32)
        residual[coded] = decoder.symbols(self._tables()[1], flat[coded])
        return torch.from_numpy(residual).view_as(indexes)

    @coding
    def latent(self, stream: Bitstream) -> tuple[Tensor, Tensor, Tensor]:
        """Symbols of z (N, h, w), tables and residuals of y (M, 4 h, 4 w): all that is coded, exact on any machine.

        `code` codes them again.

        Raises:
            BitstreamError: the payload was not made for this image.
        """
        z_hat, indexes, residual, _ = self._exact()._read(stream)
        return z_hat, indexes, residual

    def _read(self, stream: Bitstream) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """z (N, h, w); of y what `_decode` gives."""
        z_tables, _ = self._tables()
        rows, columns = (math.ceil(side / STRIDE) for side in (stream.height, stream.width))
        decoder = Decoder(stream.payload, stream.frame)
        shape = torch.Size((self.config["N"], rows, columns))
        z_hat = torch.from_numpy(decoder.symbols(z_tables, channels(shape))).float().view(shape)
        decoder.check()
        if float(z_hat.abs().max()) > HYPER_LIMIT:
            raise BitstreamError("damaged payload: it decodes to a symbol that no encoder writes")
        found = self._decode(decoder, z_hat[None], stream.level)
        decoder.check()
        decoder.finish()
        return z_hat, *found

    def _offset(self, level: float) -> Tensor:
        """At a level the spread of each channel in quantiser steps, log2 in 1/64 octave (M,); by integers."""
        position = round(level * LEVEL_UNIT)
        low = min(position // LEVEL_UNIT, max(self.levels - 2, 0))
        share = position - low * LEVEL_UNIT
        ends = self.offsets[[low, min(low + 1, self.levels - 1)]].long()
        return (ends[0] * (LEVEL_UNIT - share) + ends[1] * share + LEVEL_UNIT // 2) // LEVEL_UNIT

    def _index(self, log_scale: Tensor, offset: Tensor) -> Tensor:
        """Table (uint8, 0: not coded) of each symbol, from log2 of its scale in units of the spread of that offset."""
        # Multiples of a power of two until here, so the product is exact and the rounding the same everywhere.
        scale = (log_scale * OCTAVE).clamp_(-(2**12), 2**12).round_().add_(offset - self.first_scale)
        return scale.add_(TABLE_STEP // 2).div_(TABLE_STEP).floor_().clamp_(0, self.tables - 1).to(torch.uint8)

    def _tables(self) -> tuple[Tables, Tables]:
        if self._coding is None:
            if not len(self.frequencies):
                raise UserError("this codec has no tables yet: train it to the end (`dvc repro`), or call update()")
            ends = self.lengths.cumsum(0)[:-1].tolist()
            parts, first, n = np.split(self.frequencies.cpu().numpy(), ends), self.first.tolist(), self.config["N"]
            self._coding = Tables(parts[:n], first[:n]), Tables(parts[n:], first[n:])
        return self._coding

    def _analyse(self, x: Tensor, level: Tensor, gain: Tensor) -> Tensor:
        """Image (N, 3, H, W), sides multiples of 64, to the latent (N, M, H/16, W/16) in quantiser steps."""
        x = x - 0.5
        y = self.dct(x) * gain
        known = torch.cat([squash(y), self.g_a(x, self.relative_level(level)).float()], 1)
        attenuation, addition = self.decide(known).float().chunk(2, 1)
        return y * (1 + attenuation) + gain * self.unit * addition

    def _synthesise(self, y: Tensor, level: Tensor) -> Tensor:
        """Latent behind the inverse gain to image, not clamped."""
        raise NotImplementedError


def bands(height: int, width: int) -> list[tuple[int, int]]:
    """Where bands of a hyper-latent of so many rows and columns begin and end, in rows."""
    rows = max(BAND // (STRIDE**2 * width), 1)
    return [(start, min(start + rows, height)) for start in range(0, height, rows)]


def interpolate(table: Tensor, level: Tensor) -> Tensor:
    """Rows of `table` (L, C) at continuous positions `level` (N,), linearly interpolated."""
    level = level.clamp(0, table.shape[0] - 1)
    low = level.floor().long().clamp(max=max(table.shape[0] - 2, 0))
    high = (low + 1).clamp(max=table.shape[0] - 1)
    share = (level - low).view(-1, 1)
    return table[low] * (1 - share) + table[high] * share


def channels(shape: torch.Size) -> np.ndarray:
    """The channel of each element of a flattened (C, h, w)."""
    return np.repeat(np.arange(shape[0], dtype=np.int16), shape[1] * shape[2])
