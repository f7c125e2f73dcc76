# SPDX-License-Identifier: Apache-2.0
"""Methods with their weights: X in, real bytes, output image out."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llicm.codec.conventional import ConventionalCodec, find_codec
from llicm.errors import UserError
from llicm.framework import LLICM
from llicm.images import quantize8, to_pixels
from llicm.methods import Method
from llicm.vlm.conditioner import Conditioner, Oracle, conditioner_for
from llicm.weights import load_part


@dataclass(frozen=True)
class Coded:
    """The bytes of one compressed image, what was compressed, the decoded image, and the method's output, each
    (3, H, W) in [0, 1].

    `source` is X, or X as the prefilter restores it. `seconds` is what restoration took, with the look
    at the image by the vision-language model.
    """

    data: bytes
    source: Tensor
    decoded: Tensor
    output: Tensor
    seconds: float = 0.0

    @property
    def bpp(self) -> float:
        """Bits of the whole file per pixel."""
        return 8 * len(self.data) / self.output[0].numel()


class Clock:
    """Seconds by name: ``with clock("encode"): ...`` adds to ``clock.seconds["encode"]``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - started


class RawCodec:
    """No compression: 8-bit RGB samples, 24 bpp; the reference that shows what restoration alone does."""

    def compress(self, image: Tensor, level: float) -> bytes:
        pixels = to_pixels(image)
        self.shape = pixels.shape
        return pixels.tobytes()

    def decompress(self, data: bytes) -> tuple[Tensor, float | None]:
        return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(self.shape).permute(
            2, 0, 1
        ).float() / 255, None


class LearnedCodec:
    """A trained codec; its files tell the level, so the decoder knows it."""

    def __init__(self, network: Any):
        self.network = network

    def compress(self, image: Tensor, level: float) -> bytes:
        return self.network.compress(image, level)

    def decompress(self, data: bytes) -> tuple[Tensor, float | None]:
        image, level = self.network.decompress(data)
        return image, float(self.network.relative_level(torch.tensor(level)))


class FileCodec:
    """A conventional codec.

    These formats do not tell their quality, and a learned codec's file does. So that the comparison is fair both ways,
    a restorer that is conditioned on the level gets it by one byte more (`tells_level`), and the byte counts.
    """

    def __init__(self, codec: ConventionalCodec, tells_level: bool):
        self.codec, self.tells_level = codec, tells_level

    def compress(self, image: Tensor, level: float) -> bytes:
        more = bytes([round(255 * self.codec.relative_level(level))]) if self.tells_level else b""
        return self.codec.compress(image, level) + more

    def decompress(self, data: bytes) -> tuple[Tensor, float | None]:
        if not self.tells_level:
            return self.codec.decompress(data), None
        return self.codec.decompress(data[:-1]), data[-1] / 255


@dataclass(frozen=True)
class _Restorer:
    """A restorer and what steers it."""

    network: Any
    conditioner: Conditioner | Oracle | None
    steps: int | None
    """The network's own number, of a diffusion restorer."""

    def __call__(self, image: Tensor, level: float | None, task: str | None, steps: int | None) -> Tensor:
        """An image (3, H, W) restored, in [0, 1]; only an oracle hears of the true task."""
        if self.steps is not None:  # methods of a group share one network, each with steps of its own
            self.network.steps = steps or self.steps
        hint = task if isinstance(self.conditioner, Oracle) else None
        relative = None if level is None else torch.tensor([level])
        return LLICM(None, self.network, self.conditioner).enhance(image[None], relative, [hint])[0].clamp(0, 1)


@dataclass(frozen=True)
class Runner:
    """A method that can be run: the row of the benchmark, its codec, and its restorers before and behind it."""

    method: Method
    codec: RawCodec | LearnedCodec | FileCodec
    prefilter: _Restorer | None = None
    restorer: _Restorer | None = None

    @property
    def network(self) -> Any:
        """The learned codec; None for another."""
        return self.codec.network if isinstance(self.codec, LearnedCodec) else None

    @property
    def plain(self) -> "Runner":
        """The same codec without any restorer."""
        alone = replace(self.method, prefilter=None, restorer=None)
        return replace(self, method=alone, prefilter=None, restorer=None)

    @torch.no_grad()
    def run(
        self, x: Tensor, level: float, task: str | None = None, memo: dict | None = None, clock: Clock | None = None
    ) -> Coded:
        """Send X (3, H, W) through the method at a level; the output is decoded from the bytes alone.

        Args:
            task: the true degradation; only a restorer steered by an oracle hears of it.
            memo: for one X and one group, {} at first: what its methods share is computed once, such as the file of X
                or X restored. None to compute everything.
            clock: counts the seconds of encoding, decoding and restoring; or None.
        """
        memo, clock, seconds, steps = {} if memo is None else memo, clock or Clock(), 0.0, self.method.steps
        first = self.method.prefilter
        if self.prefilter is not None:
            if (first, steps) not in memo:
                memo[first, steps] = self._restore(self.prefilter, x, None, task, clock)
            restored, seconds = memo[first, steps]
            x = quantize8(restored)
        tells = isinstance(self.codec, FileCodec) and self.codec.tells_level
        key = (self.method.codec, tells, level, steps if first else None, first)
        if key not in memo:
            with clock("encode"):
                data = self.codec.compress(x, level)
            with clock("decode"):
                memo[key] = data, *self.codec.decompress(data)
        data, decoded, relative = memo[key]
        output = decoded
        if self.restorer is not None:
            output, more = self._restore(self.restorer, decoded, relative, task, clock)
            seconds += more
        return Coded(data, x, quantize8(decoded).cpu(), quantize8(output).cpu(), seconds)

    def at_bpp(self, x: Tensor, target: float, task: str | None = None) -> Coded:
        """The result whose rate is nearest to `target` bits per pixel, by bisection over the codec's setting.

        Args:
            task: as for `run`.
        """
        continuous = self.network is not None  # whether levels between whole numbers mean something
        low, high = min(self.method.levels), max(self.method.levels)
        memo: dict = {}
        best = min((self.run(x, level, task, memo) for level in (low, high)), key=lambda c: abs(c.bpp - target))
        for _ in range(10 if continuous else 8):
            middle = (low + high) / 2 if continuous else (low + high) // 2
            if middle in (low, high):
                break
            coded = self.run(x, middle, task, memo)
            best = min(best, coded, key=lambda c: abs(c.bpp - target))
            low, high = (middle, high) if coded.bpp < target else (low, middle)
        return best

    def _restore(
        self, restorer: _Restorer, image: Tensor, level: float | None, task: str | None, clock: Clock
    ) -> tuple[Tensor, float]:
        """An image (3, H, W) restored, and the seconds that took."""
        before = clock.seconds["restore"]
        with clock("restore"):
            out = restorer(image, level, task, self.method.steps)
        return out, clock.seconds["restore"] - before


def load_runners(methods: Sequence[Method], models: Path, device: str = "cpu") -> list[Runner]:
    """Methods with their weights, each file read once.

    Args:
        models: folder of the trained models, `vlm` among them (see `llicm.vlm.conditioner`).
        device: where networks compute.

    Raises:
        UserError: unknown codec, missing weights, or steps for a restorer that is no diffusion model.
    """
    restorers: dict[Path, _Restorer] = {}
    networks: dict[str, Any] = {}

    def restorer(path: Path) -> _Restorer:
        if path not in restorers:
            network = load_part("restorer", path).to(device)
            conditioner = conditioner_for(network, models / "vlm")
            if conditioner is not None:
                conditioner.to(device)
            restorers[path] = _Restorer(network, conditioner, getattr(network, "steps", None))
        return restorers[path]

    def runner(method: Method) -> Runner:
        before = after = None
        if method.prefilter is not None:
            own = method.prefilter == method.codec  # a model with a prefilter of its own
            before = restorer(models / method.prefilter / f"{'prefilter' if own else 'restorer'}.safetensors")
        if method.restorer is not None:
            after = restorer(models / method.restorer / "restorer.safetensors")
        last = after or before
        if method.steps and not (last is not None and hasattr(last.network, "steps")):
            raise UserError(f"params.yaml: method '{method.name}' has steps, but its restorer is no diffusion model")
        codec: RawCodec | LearnedCodec | FileCodec
        if method.learned:
            if method.codec not in networks:
                networks[method.codec] = load_part("codec", models / method.codec / "codec.safetensors").to(device)
            codec = LearnedCodec(networks[method.codec])
        elif method.codec == "raw":
            codec = RawCodec()
        else:
            codec = FileCodec(find_codec(method.codec), after is not None and after.network.level_conditioned)
        return Runner(method, codec, before, after)

    return [runner(method) for method in methods]
