# SPDX-License-Identifier: Apache-2.0
"""The rows of the benchmark: complete ways from a degraded image to an output image through real bytes.

A method is a codec, a restorer, and their order:

    alone    X ─codec─► bytes ─► X̂
    after    X ─codec─► bytes ─► X̂ ─restorer─► X̂_H        (the paper's simplest framework, and LL-ICM itself)
    before   X ─restorer─► X_H ─codec─► bytes ─► X̂_H      (restoration before encoding)
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from llicm.codec.conventional import ConventionalCodec, find_codec
from llicm.errors import UserError
from llicm.framework import LLICM, load_part
from llicm.images import quantize8
from llicm.vlm.guide import Oracle, guide_for

__all__ = ["Coded", "Method", "ORDERS", "load_methods"]

ORDERS = ("alone", "after", "before")


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


class RawCodec:
    """No compression: 8-bit RGB samples, 24 bpp; the reference that shows what restoration alone does."""

    def encode(self, image: Tensor, level: float) -> bytes:
        self.shape = image.shape
        return (image * 255).round().clamp(0, 255).to(torch.uint8).numpy().tobytes()

    def decode(self, data: bytes) -> Tensor:
        return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(self.shape).float() / 255


@dataclass(frozen=True)
class Method:
    """One row of the benchmark.

    `encode(image, level) -> bytes`, `decode(bytes) -> (image, code)` where code is the relative level for the
    restorer or None; `levels` are the codec's own settings, in ascending rate; `steps` are those of a diffusion
    restorer, None for its own number.
    """

    name: str
    family: str
    order: str
    levels: tuple[float, ...]
    encode: Callable[[Tensor, float], bytes]
    decode: Callable[[bytes], tuple[Tensor, float | None]]
    restorer: nn.Module | None
    continuous: bool = False
    guide: nn.Module | None = None
    steps: int | None = None

    @torch.no_grad()
    def run(self, x: Tensor, level: float, task: str | None = None) -> Coded:
        """Send X (3, H, W) through the method at a level; the output is decoded from the bytes alone.

        Args:
            task: the true degradation; only a restorer steered by an oracle is told.
        """
        task, seconds = task if isinstance(self.guide, Oracle) else None, 0.0
        if self.order == "before":
            restored, seconds = self._restore(x, None, task)
            x = quantize8(restored)
        data = self.encode(x, level)
        decoded, code = self.decode(data)
        output = decoded
        if self.order == "after":
            output, seconds = self._restore(decoded, code, task)
        return Coded(data, quantize8(decoded), quantize8(output), seconds)

    def at_bpp(self, x: Tensor, target: float, task: str | None = None) -> Coded:
        """The result whose rate is nearest to `target` bits per pixel, by bisection over the codec's setting.

        Args:
            task: as for `run`.
        """
        low, high = min(self.levels), max(self.levels)
        best = min((self.run(x, level, task) for level in (low, high)), key=lambda c: abs(c.bpp - target))
        for _ in range(10 if self.continuous else 8):
            middle = (low + high) / 2 if self.continuous else (low + high) // 2
            if middle in (low, high):
                break
            coded = self.run(x, middle, task)
            best = min(best, coded, key=lambda c: abs(c.bpp - target))
            low, high = (middle, high) if coded.bpp < target else (low, middle)
        return best

    def _restore(self, image: Tensor, code: float | None, task: str | None) -> tuple[Tensor, float]:
        system = LLICM(None, self.restorer, self.guide)
        if self.steps is not None:  # the methods of a family share one restorer
            self.restorer.steps = self.steps
        started = time.perf_counter()
        out = system.enhance(image[None], None if code is None else torch.tensor([code]), [task])[0].clamp(0, 1)
        return out, time.perf_counter() - started


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
            `restorer` (that of the restorer below it, if there are several), `methods` (name -> order, or `order` and
            `steps` of a diffusion restorer) and `levels`.
        models: folder of the trained parts. vlm: folder of the vision-language model (see `llicm.vlm.guide`).

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
    for name, entry in entries.items():
        if entry.get("steps") and not hasattr(restorer, "steps"):
            raise UserError(f"params.yaml: method '{name}' has steps, but its restorer is no diffusion model")
    guide = guide_for(restorer, vlm)
    continuous = spec["codec"] == "learned"
    if continuous:
        system = LLICM(load_part("codec", find_part("codec", folder)), None)
        encode = system.compress

        def decode(data):
            image, level = system.codec.decode(data)
            return image, float(system.relative_level(torch.tensor(level)))
    else:
        codec = RawCodec() if spec["codec"] == "raw" else find_codec(spec["codec"])
        encode, decode = codec.encode, _uncoded(codec)
        if restorer is not None and restorer.coded and spec["codec"] != "raw":
            encode, decode = _with_level(codec)

    return [
        Method(
            name,
            family,
            entry["order"],
            tuple(spec["levels"]),
            encode,
            decode,
            restorer,
            continuous,
            guide,
            entry.get("steps"),
        )
        for name, entry in entries.items()
    ]


def _uncoded(codec):
    return lambda data: (codec.decode(data), None)


def _with_level(codec: ConventionalCodec):
    """Encoder and decoder of files with one byte more, for a restorer that knows the relative level.

    These formats do not tell their quality, and a learned codec's file does; so that the comparison is fair both ways,
    the restorer adapted to them is told too, and the byte counts.
    """

    def encode(image: Tensor, quality: float) -> bytes:
        return codec.encode(image, quality) + bytes([round(255 * codec.relative_level(quality))])

    def decode(data: bytes) -> tuple[Tensor, float]:
        return codec.decode(data[:-1]), data[-1] / 255

    return encode, decode
