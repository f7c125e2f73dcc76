# SPDX-License-Identifier: Apache-2.0
"""The codecs of the field: compressai's networks by name, with released weights or trained here, in our files.

A variable-rate architecture (`...-vbr`) has eight levels, and what is between them by its gain. Of the others each
level is a network of its own, of one quality; levels between them are rounded.

Their symbols go through our entropy coder in place of compressai's, which reads beyond the end of short input and hangs
on latents that are not finite: so damaged files are refused as ours are. But which table codes a symbol is decided in
floats. A file decodes where it was written; on another kind of machine it may be refused. It never decodes to something
else.

Source: Bégaint, Racapé, Feltman, Pushparaja, "CompressAI: a PyTorch library and evaluation platform for end-to-end
compression research", arXiv 2011.03029; the architectures' papers are in its documentation.
"""

import contextlib
import functools
import math
import textwrap
import threading
from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llicm.codec.bitstream import Bitstream, frame, pack, quantize_level, unpack
from llicm.codec.effort import check_effort
from llicm.codec.entropy import Decoder, Encoder, Tables
from llicm.codec.learned import STRIDE, BoundCodec, coding, interpolate
from llicm.errors import BitstreamError, PictureError, UserError
from llicm.limits import as_pictures, check_size, is_grey
from llicm.registry import CODECS
from llicm.weights import check_weights

__all__ = ["ARCHITECTURES", "CompressAI"]

ARCHITECTURES = (
    "bmshj2018-hyperprior", "mbt2018-mean", "mbt2018", "cheng2020-anchor", "cheng2020-attn",
    "cheng2020-anchor-checkerboard", "elic2022-official", "elic2022-chandelier", "bmshj2018-hyperprior-vbr",
    "mbt2018-mean-vbr", "mbt2018-vbr",
)  # fmt: skip
_ZOO = (0.0018, 0.0035, 0.0067, 0.0130, 0.0250, 0.0483, 0.0932, 0.1800)  # lambdas of the qualities 1 to 8
_LARGEST = 1 << 24  # pixels: the networks compute whole pictures
_ANS = threading.Lock()  # compressai's coders are replaced for all threads


@CODECS.register("compressai")
class CompressAI(BoundCodec):
    """An architecture of compressai with one level or several.

    Args:
        architecture: one of `ARCHITECTURES`.
        quality: of a fixed-rate architecture, 1 to 8; or several, ascending, one for each level. It says which released
            weights are meant, and how large the networks are and what they are trained for, as in compressai's zoo.
        weights: "zoo" for the released weights, which compressai downloads; or their file, one for each quality. None
            to begin with random ones.
        lambdas: trade-off of each level in training, in place of the zoo's.
        size: arguments of the architecture, such as N and M, in place of the zoo's.

    Raises:
        UserError: an unknown architecture or quality, or weights that cannot be had or do not fit.
    """

    stride = STRIDE
    exact = True  # in files as they are (see `llicm.weights`)

    def __init__(
        self, architecture: str, quality: int | Sequence[int] | None = None,
        weights: str | Sequence[str] | None = None, lambdas: Sequence[float] | None = None, **size: Any,
    ):  # fmt: skip
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise UserError(
                f"params.yaml: compressai's architecture '{architecture}' is unknown or has no hyperprior; choose one "
                f"of {', '.join(ARCHITECTURES)}"
            )
        self.variable = architecture.endswith("-vbr")
        qualities = [quality] if isinstance(quality, int) else list(quality or ())
        if self.variable == bool(qualities) or not set(qualities) <= set(range(1, len(_ZOO) + 1)):
            wanted = "takes no quality" if self.variable else f"needs a quality from 1 to {len(_ZOO)}, or several"
            raise UserError(f"params.yaml: compressai's {architecture} {wanted}; correct it")
        count = max(len(qualities), 1)
        files = [weights] * count if weights in ("zoo", None) else [weights] if isinstance(weights, str) else weights
        own = _ZOO if self.variable else [_ZOO[q - 1] for q in qualities]
        lambdas = list(lambdas or own)
        for what, given, needed in (("weights", files, count), ("lambdas", lambdas, len(own))):
            if len(given) != needed:
                raise UserError(f"params.yaml: compressai's {architecture} needs {needed} {what}, not {len(given)}")
        self.pretrained = weights is not None
        made = [_network(architecture, q, file, size) for q, file in zip(qualities or [0], files, strict=True)]
        self.networks: Any = nn.ModuleList(made)
        # what builds it again: a file of ours has the weights
        self.config = {"name": "compressai", "architecture": architecture, "quality": quality, "weights": None}
        variable = {"vr_entbttlnck": True} if getattr(made[0], "vr_entbttlnck", False) else {}
        self.config |= {"lambdas": lambdas, **size, **variable}
        self._forget()

    def forward(self, x: Tensor, level: Tensor) -> dict:
        """As `llicm.codec.learned.LearnedCodec.forward`; pictures of a level go through its network together."""
        x, level = as_pictures(x), self._clamped(level)
        if self.training:  # where variable rates are whole levels
            level = level.round()
        rows = [(level == value).nonzero()[:, 0] for value in level.unique()]
        made = [self._at(float(level[at[0]])) for at in rows]
        outs = [network(x[at], **options) for at, (network, options) in zip(rows, made, strict=True)]
        back = torch.cat(rows).argsort()
        parts = {name: [out["likelihoods"][name].float() for out in outs] for name in outs[0]["likelihoods"]}
        likelihoods = {name: torch.cat(found)[back] for name, found in parts.items()}
        return {"x_hat": torch.cat([out["x_hat"].float() for out in outs])[back], "likelihoods": likelihoods}

    @torch.no_grad()
    def update(self) -> None:
        """Make the entropy coder's tables from the trained weights; call once, before saving or coding."""
        from compressai.entropy_models import EntropyBottleneck

        module: Any
        for module in self.modules():
            if isinstance(module, EntropyBottleneck):
                median = module.quantiles[:, 0, 1].clone()  # where training has rounded
                module.update(force=True, update_quantiles=True)
                module.quantiles[:, 0, 1] = median
            elif hasattr(module, "mask"):  # of a convolution, which each pass applies to the weights themselves
                module.weight.mul_(module.mask)
        for network in self.networks:
            network.update(force=True)
        self._forget()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        for name, buffer in list(self.named_buffers()):  # the tables' sizes are known after training only
            if name in state_dict and buffer.shape != state_dict[name].shape:
                place, _, last = name.rpartition(".")
                setattr(self.get_submodule(place), last, buffer.new_zeros(state_dict[name].shape))
        self._forget()
        return super().load_state_dict(state_dict, strict, assign)

    @coding
    def compress(self, x: Tensor, level: float, effort: int = 0) -> bytes:
        """Compress one image to the bytes of a `.llicm` file.

        Args:
            x: (3, H, W) in [0, 1], sides up to 16384 and 2^24 pixels. level: clamped, and rounded for a fixed rate.
            effort: not used.

        Raises:
            PictureError: x is no such picture. ValueError: it is too large, or level or effort is no such number, or
                the latent is too large to code.
        """
        x = as_pictures(x, 3).cpu()
        check_effort(effort)
        grey, (height, width) = is_grey(x), x.shape[-2:]
        if reason := _refused(width, height):
            raise PictureError(f"image of {reason}")
        level = float(self._clamped(torch.tensor(quantize_level(level))))
        padded = F.pad(x[None], (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
        encoder = Encoder(frame(height, width, level, grey))
        self._code(padded, level, encoder)
        encoder.check()
        return pack(Bitstream(self._id(), height, width, level, encoder.finish(), grey))

    @coding
    def decompress(self, data: bytes) -> tuple[Tensor, float]:
        """Decompress the bytes of a `.llicm` file: the image (3, H, W) in [0, 1], grey if it was, and its level.

        Raises:
            BitstreamError: see `llicm.codec.bitstream.unpack`; also when the payload was not made for this image.
        """
        stream = unpack(data, self._id())
        if reason := _refused(stream.width, stream.height):
            raise BitstreamError(f"a .llicm file that declares {reason}")
        if stream.level != float(self._clamped(torch.tensor(stream.level))):
            raise BitstreamError(f"level {stream.level:g} is none of this model's {self.levels}")
        strings, shape = self._form(stream.level)
        rows, columns = (math.ceil(side / STRIDE) for side in (stream.height, stream.width))
        decoder = Decoder(stream.payload, stream.frame)
        x_hat = self._code((strings, _scaled(shape, rows, columns)), stream.level, decoder)["x_hat"]
        x_hat = x_hat[0, :, : stream.height, : stream.width].to(self.device)
        if not bool(torch.isfinite(x_hat).all()):
            raise BitstreamError("the file does not decode to finite pixels: its encoder was an incompatible one")
        return x_hat.mean(0, keepdim=True).expand_as(x_hat) if stream.grey else x_hat, stream.level

    def _clamped(self, level: Tensor) -> Tensor:
        level = level.clamp(0, self.levels - 1)
        return level if self.variable else level.round()

    def _at(self, level: float) -> tuple[Any, dict]:
        """The network of a level, and the arguments that name the level to it."""
        if not self.variable:
            return self.networks[round(level)], {}
        network = self.networks[0]
        if level.is_integer():
            return network, {"s": round(level)}
        gain = interpolate(network.Gain.detach().abs().log().view(-1, 1), torch.tensor([level]).to(network.Gain))
        return network, {"inputscale": gain.exp().view(())}

    def _form(self, level: float) -> tuple[Any, Any]:
        """What a decoder is given beside the symbols: strings, and the shapes of the latents of 64x64 pixels."""
        coded = self._code(torch.zeros(1, 3, STRIDE, STRIDE), level, Encoder(b""))
        return coded["strings"], coded["shape"]

    def _code(self, what: Any, level: float, coder: Encoder | Decoder) -> dict:
        """Compress a picture (1, 3, H, W), or decompress (strings, shape), with this coder in place of compressai's.

        On a device only the transforms g_a and g_s compute there, which no table depends on.
        """
        (there, _), (network, options) = self._at(level), self._exact()._at(level)
        calls, self._coding = _Calls(coder), {} if self._coding is None else self._coding
        with contextlib.ExitStack() as stack:
            stack.enter_context(_ANS)
            for name in ("g_a", "g_s") if there is not network else ():
                far = functools.partial(_sent, getattr(there, name), self.device)
                stack.enter_context(mock.patch.object(getattr(network, name), "forward", far))
            if getattr(network, "vr_entbttlnck", False):  # tables of the hyper-latent depend on the level
                network.update(force=True, scale=options.get("inputscale", network.Gain[options.get("s", 0)]))
                stack.callback(network.update, force=True)
                stack.callback(self._coding.clear)
                self._coding.clear()
            for module in network.modules():
                if hasattr(module, "entropy_coder"):
                    if module not in self._coding:
                        self._coding[module] = _tables(module)
                    link = _Link(calls, self._coding[module])
                    stack.enter_context(mock.patch.object(module, "entropy_coder", link))
            if hasattr(network, "context_prediction"):  # a raster scan, which does not ask its entropy model
                scan = _Scan(calls, self._coding[network.gaussian_conditional], network.M)
                for name in ("BufferedRansEncoder", "RansDecoder"):
                    for room in ("google", "vbr"):
                        stack.enter_context(mock.patch(f"compressai.models.{room}.{name}", lambda: scan))
            if isinstance(coder, Encoder):
                return network.compress(what, **options)
            checks = network.g_s.register_forward_pre_hook(lambda *_: calls.end())
            stack.callback(checks.remove)  # no picture is made of symbols that no encoder has written
            return network.decompress(*what, **options)


def _sent(network: nn.Module, device: torch.device, x: Tensor) -> Tensor:
    """What a network on a device makes of x, which is on the processor."""
    return network(x.to(device)).cpu()


class _Calls:
    """A coder; behind the symbols of the first call, those of the hyper-latent, it has a check."""

    def __init__(self, coder: Encoder | Decoder):
        self.coder, self.kept = coder, []  # type: Any, list[np.ndarray]
        self.first = True

    def symbols(self, tables: Tables, indexes: np.ndarray, *values: np.ndarray) -> Any:
        found = self.coder.symbols(tables, indexes, *values)
        if self.first:
            self.coder.check()
        self.first = False
        return found

    def end(self) -> None:
        self.coder.check()
        self.coder.finish()


class _Link:
    """What an entropy model of compressai's takes for its coder; a string of it is the number of a call."""

    def __init__(self, calls: _Calls, tables: Tables):
        self.calls, self.tables = calls, tables

    def encode_with_indexes(self, symbols: Sequence[int], indexes: Sequence[int], *_: Any) -> bytes:
        values = np.asarray(symbols, np.int64)
        self.calls.symbols(self.tables, np.asarray(indexes), values)
        self.calls.kept.append(values)
        return str(len(self.calls.kept) - 1).encode()

    def decode_with_indexes(self, string: bytes, indexes: Sequence[int], *_: Any) -> np.ndarray:
        if self.calls.kept:  # an encoder looks at what it has written
            return self.calls.kept[int(string)]
        return self.calls.symbols(self.tables, np.asarray(indexes))


class _Scan:
    """What a raster scan of compressai's takes for its coders: it puts in all at once, and takes out so many channels a
    call."""

    def __init__(self, calls: _Calls, tables: Tables, channels: int):
        self.calls, self.tables, self.channels = calls, tables, channels

    def encode_with_indexes(self, symbols: Sequence[int], indexes: Sequence[int], *_: Any) -> None:
        rows = (np.asarray(values, np.int64).reshape(-1, self.channels) for values in (indexes, symbols))
        for tables, values in zip(*rows, strict=True):
            self.calls.symbols(self.tables, tables, values)

    def flush(self) -> bytes:
        return b""

    def set_stream(self, string: bytes) -> None:
        pass

    def decode_stream(self, indexes: Sequence[int], *_: Any) -> np.ndarray:
        return self.calls.symbols(self.tables, np.asarray(indexes))


def _refused(width: int, height: int) -> str | None:
    if width * height > _LARGEST:
        return (
            f"{width}x{height} pixels; {_LARGEST} are the limit of compressai's networks, which see the whole picture"
        )
    return check_size(width, height)


def _scaled(shape: Any, rows: int, columns: int) -> Any:
    """Shapes of latents of 64x64 pixels, as compressai nests them, to those of so many times as many."""
    if isinstance(shape, Mapping):
        return {name: _scaled(inner, rows, columns) for name, inner in shape.items()}
    if isinstance(shape[0], int):
        return (*shape[:-2], shape[-2] * rows, shape[-1] * columns)
    return [_scaled(inner, rows, columns) for inner in shape]


def _tables(module: Any) -> Tables:
    """Those of an entropy model of compressai's: the last frequency of each is that of the escape, there as here."""
    if not module.quantized_cdf.numel():
        raise UserError("this codec has no tables yet: train it to the end (`dvc repro`), or call update()")
    rows = zip(module.quantized_cdf.cpu(), module.cdf_length.tolist(), strict=True)
    return Tables([np.diff(cdf[:length].numpy()) for cdf, length in rows], module.offset.tolist())


def _network(architecture: str, quality: int, weights: str | None, size: dict) -> nn.Module:
    """An architecture as the zoo has it (quality 0: of a variable rate), or of this size, with these weights."""
    from compressai.registry import MODELS
    from compressai.zoo import image, image_vbr

    known: Any = (image_vbr if architecture.endswith("-vbr") else image).cfgs.get(architecture, ())
    if isinstance(known, dict) and quality not in known:
        raise UserError(f"params.yaml: compressai's {architecture} has no quality {quality}; choose 1 to {max(known)}")
    usual = known[quality] if isinstance(known, dict) else known
    size = dict(zip(("N", "M"), usual, strict=False)) | size
    state = {} if weights is None else _read(architecture, quality, weights)
    if any(name.startswith("gayn2zqstep") for name in state):
        size["vr_entbttlnck"] = True  # which the published variable-rate weights have
    network = MODELS[architecture](**size)
    if state:
        try:
            network.load_state_dict(state)
        except (RuntimeError, KeyError, IndexError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise UserError(f"{weights}: not compressai's weights of {architecture} of this size ({reason})") from None
    return network


def _read(architecture: str, quality: int, weights: str) -> dict[str, Tensor]:
    """The tensors of a weight file of compressai's, which the zoo names if `weights` is "zoo"."""
    from compressai.zoo import image, image_vbr, load_state_dict

    urls: Any = (image.model_urls | image_vbr.model_urls).get(architecture, {}).get("mse")
    url: Any = urls.get(quality) if isinstance(urls, dict) else urls
    if weights == "zoo" and url is None:
        raise UserError(f"params.yaml: compressai has no weights of {architecture}; name a file, or train it (null)")
    try:
        if weights == "zoo":
            state = torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
        else:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        state = load_state_dict(dict(state.get("state_dict", state)))
        return check_weights({name: value for name, value in state.items() if name != "QuantOffset"}, weights)
    except UserError:
        raise
    except Exception as error:  # torch names no common type for a damaged archive, nor for a network that is not there
        place = f"{url} could not be fetched" if weights == "zoo" else f"{weights}: cannot be read as weights"
        raise UserError(
            f"{place} ({textwrap.shorten(str(error), 160) or type(error).__name__}); get the file of compressai's "
            f"{architecture} where you can, and name its path as `weights`"
        ) from None
