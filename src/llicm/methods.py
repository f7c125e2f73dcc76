# SPDX-License-Identifier: Apache-2.0
"""The rows of the benchmark: complete ways from a degraded image to an output image through real bytes.

A method is a codec, a restorer, and their order:

    alone    X ─codec─► bytes ─► X̂
    after    X ─codec─► bytes ─► X̂ ─restorer─► X̂_H        (the paper's simplest framework, and LL-ICM itself)
    before   X ─restorer─► X_H ─codec─► bytes ─► X̂_H      (restoration before encoding)
    around   X ─prefilter─► X_H ─codec─► bytes ─► X̂ ─restorer─► X̂_H     (both; the prefilter is a restorer too)
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from llicm.codec.conventional import find_codec
from llicm.errors import UserError
from llicm.framework import LLICM, load_part
from llicm.images import quantize8
from llicm.vlm.conditioner import Oracle, conditioner_for

__all__ = ["Clock", "Coded", "Method", "ORDERS", "find_part", "load_methods"]

ORDERS = ("alone", "after", "before", "around")


@dataclass(frozen=True)
class Coded:
    """The bytes of one compressed image, the decoded image, and the method's output, each (3, H, W) in [0, 1].

    `seconds` is what restoration took, with the look at the image by the vision-language model.
    """

    data: bytes
    decoded: Tensor
    output: Tensor
    seconds: float = 0.0

    @property
    def bpp(self) -> float:
        """Bits of the whole file per pixel."""
        return 8 * len(self.data) / self.output[0].numel()


class Clock:
    """Seconds by name: ``with clock("encode"): ...`` adds to ``clock.seconds["encode"]``."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - started


class RawCodec:
    """No compression: 8-bit RGB samples, 24 bpp; the reference that shows what restoration alone does."""

    def encode(self, image: Tensor, level: float) -> bytes:
        self.shape = image.shape
        return (image * 255).round().clamp(0, 255).to(torch.uint8).numpy().tobytes()

    def decode(self, data: bytes) -> Tensor:
        return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(self.shape).float() / 255


@dataclass(frozen=True)
class Coder:
    """A codec as the methods use it.

    `encode(image, level) -> bytes`, `decode(bytes) -> (image, code)` where code is the relative level for the restorer
    or None; `network` is a learned codec's, None otherwise.
    """

    name: str
    encode: Callable[[Tensor, float], bytes]
    decode: Callable[[bytes], tuple[Tensor, float | None]]
    network: nn.Module | None = None


@dataclass(frozen=True)
class Method:
    """One row of the benchmark.

    `levels` are the codec's own settings, in ascending rate; `steps` are those of a diffusion restorer, None for its
    own number. `prefilter` is the restorer before the codec where the order is "around".
    """

    name: str
    family: str
    order: str
    levels: tuple[float, ...]
    coder: Coder
    restorer: nn.Module | None
    conditioner: nn.Module | None = None
    steps: int | None = None
    prefilter: nn.Module | None = None

    @property
    def continuous(self) -> bool:
        """Whether levels between whole numbers mean something."""
        return self.coder.network is not None

    @torch.no_grad()
    def run(
        self, x: Tensor, level: float, task: str | None = None, memo: dict | None = None, clock: Clock | None = None
    ) -> Coded:
        """Send X (3, H, W) through the method at a level; the output is decoded from the bytes alone.

        Args:
            task: the true degradation; only a restorer steered by an oracle is told.
            memo: for one X and one family, {} at first: what its methods share is computed once, such as the file of
                X or X restored. None to compute everything.
            clock: counts the seconds of encoding, decoding and restoring; or None.
        """
        task = task if isinstance(self.conditioner, Oracle) else None
        memo, clock, seconds = {} if memo is None else memo, clock or Clock(), 0.0
        first = self.order if self.order in ("before", "around") else None
        if first:
            if (first, self.steps) not in memo:
                memo[first, self.steps] = self._restore(x, None, task, clock, self.prefilter)
            restored, seconds = memo[first, self.steps]
            x = quantize8(restored)
        key = (self.coder.name, level, self.steps if first else None, first)
        if key not in memo:
            with clock("encode"):
                data = self.coder.encode(x, level)
            with clock("decode"):
                memo[key] = data, *self.coder.decode(data)
        data, decoded, code = memo[key]
        output = decoded
        if self.order in ("after", "around"):
            output, more = self._restore(decoded, code, task, clock)
            seconds += more
        return Coded(data, quantize8(decoded), quantize8(output), seconds)

    def at_bpp(self, x: Tensor, target: float, task: str | None = None) -> Coded:
        """The result whose rate is nearest to `target` bits per pixel, by bisection over the codec's setting.

        Args:
            task: as for `run`.
        """
        low, high = min(self.levels), max(self.levels)
        memo: dict = {}
        best = min((self.run(x, level, task, memo) for level in (low, high)), key=lambda c: abs(c.bpp - target))
        for _ in range(10 if self.continuous else 8):
            middle = (low + high) / 2 if self.continuous else (low + high) // 2
            if middle in (low, high):
                break
            coded = self.run(x, middle, task, memo)
            best = min(best, coded, key=lambda c: abs(c.bpp - target))
            low, high = (middle, high) if coded.bpp < target else (low, middle)
        return best

    def _restore(
        self, image: Tensor, code: float | None, task: str | None, clock: Clock, restorer: nn.Module | None = None
    ) -> tuple[Tensor, float]:
        """An image (3, H, W) restored, by the method's restorer if no other is given, and the seconds that took."""
        system = LLICM(None, restorer or self.restorer, self.conditioner)
        if self.steps is not None:  # the methods of a family share one restorer
            self.restorer.steps = self.steps
        before = clock.seconds["restore"]
        with clock("restore"):
            out = system.enhance(image[None], None if code is None else torch.tensor([code]), [task])[0].clamp(0, 1)
        return out, clock.seconds["restore"] - before


def find_part(kind: str, folder: Path) -> Path:
    """The one `<kind>.safetensors` under a folder of models.

    Raises:
        UserError: there is none, or more than one.
    """
    found = sorted(Path(folder).rglob(f"{kind}.safetensors"))
    if len(found) != 1:
        raise UserError(f"{folder}: {len(found)} files named {kind}.safetensors, one is needed; run `dvc repro`")
    return found[0]


def load_methods(family: str, spec: dict, models: Path, vlm: Path) -> list[Method]:
    """The methods of one family, as declared in params.yaml.

    Args:
        family: its name. spec: `codec` ("learned", "raw" or a conventional codec), `models` (folder below `models`),
            `restorer` (that of the restorer below it, if there are several), `levels`, and `methods` (name -> order, or
            `order` with any of: `steps` of a diffusion restorer, `codec` and `levels` in place of the family's).
        models: folder of the trained parts. vlm: folder of the vision-language model (see `llicm.vlm.conditioner`).

    Raises:
        UserError: unknown codec or order, or missing weights.
    """
    folder = Path(models) / spec["models"]
    entries = {name: e if isinstance(e, dict) else {"order": e} for name, e in spec["methods"].items()}
    for name, entry in entries.items():
        if entry["order"] not in ORDERS:
            raise UserError(
                f"params.yaml: method '{name}' has order '{entry['order']}'; choose one of {', '.join(ORDERS)}"
            )
    restorer = None
    if {entry["order"] for entry in entries.values()} - {"alone"}:
        restorer = load_part("restorer", find_part("restorer", folder / spec.get("restorer", "")))
    prefilter = None
    if "around" in {entry["order"] for entry in entries.values()}:
        prefilter = load_part("prefilter", find_part("prefilter", folder))
    for name, entry in entries.items():
        if entry.get("steps") and not hasattr(restorer, "steps"):
            raise UserError(f"params.yaml: method '{name}' has steps, but its restorer is no diffusion model")
    told, conditioner = restorer is not None and restorer.level_conditioned, conditioner_for(restorer, vlm)
    coders = {name: _coder(name, folder, told) for name in {e.get("codec", spec["codec"]) for e in entries.values()}}
    return [
        Method(
            name=name, family=family, order=entry["order"], levels=tuple(entry.get("levels", spec["levels"])),
            coder=coders[entry.get("codec", spec["codec"])], restorer=restorer, conditioner=conditioner, steps=entry.get("steps"),
            prefilter=prefilter if entry["order"] == "around" else None,
        )
        for name, entry in entries.items()
    ]  # fmt: skip


def _coder(name: str, folder: Path, told: bool) -> Coder:
    """The codec of that name; `told`: the restorer knows the relative level."""
    if name == "raw":
        codec = RawCodec()
        return Coder(name, codec.encode, lambda data: (codec.decode(data), None))
    if name == "learned":
        system = LLICM(load_part("codec", find_part("codec", folder)), None)

        def decode(data: bytes) -> tuple[Tensor, float]:
            image, level = system.codec.decode(data)
            return image, float(system.relative_level(torch.tensor(level)))

        return Coder(name, system.compress, decode, system.codec)
    codec = find_codec(name)
    if not told:
        return Coder(name, codec.encode, lambda data: (codec.decode(data), None))
    # These formats do not tell their quality, and a learned codec's file does. So that the comparison is fair both
    # ways, a restorer adapted to them is told it by one byte more, and the byte counts.
    return Coder(
        name,
        lambda image, quality: codec.encode(image, quality) + bytes([round(255 * codec.relative_level(quality))]),
        lambda data: (codec.decode(data[:-1]), data[-1] / 255),
    )
