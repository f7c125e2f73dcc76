# SPDX-License-Identifier: Apache-2.0
"""The rows of the benchmark: complete ways from a degraded image to an output image through real bytes.

A method is a codec, a restorer, and their order:

    alone    X ─codec─► bytes ─► X̂
    after    X ─codec─► bytes ─► X̂ ─restorer─► X̂_H        (the paper's simplest framework, and LL-ICM itself)
    before   X ─restorer─► X_H ─codec─► bytes ─► X̂_H      (restoration before encoding)
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from llicm.errors import UserError
from llicm.framework import LLICM, load_part
from llicm.images import quantize8
from llicm.vlm.guide import Oracle, guide_for

__all__ = ["Coded", "Method", "ORDERS", "load_methods"]

ORDERS = ("alone", "after", "before")


@dataclass(frozen=True)
class Coded:
    """The bytes of one compressed image, the decoded image, and the method's output, each (3, H, W) in [0, 1]."""

    data: bytes
    decoded: Tensor
    output: Tensor

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
    restorer or None; `levels` are the codec's own settings, in ascending rate.
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

    @torch.no_grad()
    def run(self, x: Tensor, level: float, task: str | None = None) -> Coded:
        """Send X (3, H, W) through the method at a level; the output is decoded from the bytes alone.

        Args:
            task: the true degradation; only a restorer steered by an oracle is told.
        """
        task = task if isinstance(self.guide, Oracle) else None
        if self.order == "before":
            x = quantize8(self._restore(x, None, task))
        data = self.encode(x, level)
        decoded, code = self.decode(data)
        output = self._restore(decoded, code, task) if self.order == "after" else decoded
        return Coded(data, quantize8(decoded), quantize8(output))

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

    def _restore(self, image: Tensor, code: float | None, task: str | None) -> Tensor:
        system = LLICM(None, self.restorer, self.guide)
        return system.enhance(image[None], None if code is None else torch.tensor([code]), [task])[0].clamp(0, 1)


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
            `methods` (name -> order) and `levels`.
        models: folder of the trained parts. vlm: folder of the vision-language model (see `llicm.vlm.guide`).

    Raises:
        UserError: unknown codec or order, or missing weights.
    """
    folder = Path(models) / spec["models"]
    for name, order in spec["methods"].items():
        if order not in ORDERS:
            raise UserError(f"params.yaml: method '{name}' has order '{order}'; choose one of {', '.join(ORDERS)}")
    restorer = None
    if set(spec["methods"].values()) - {"alone"}:
        restorer = load_part("restorer", find_part("restorer", folder))
    guide = guide_for(restorer, vlm)
    continuous = spec["codec"] == "learned"
    if continuous:
        system = LLICM(load_part("codec", find_part("codec", folder)), None)
        encode = system.compress

        def decode(data):
            image, level = system.codec.decode(data)
            return image, float(system.relative_level(torch.tensor(level)))
    else:
        codec = _conventional(spec["codec"])
        encode = codec.encode

        def decode(data):
            return codec.decode(data), None

    return [
        Method(name, family, order, tuple(spec["levels"]), encode, decode, restorer, continuous, guide)
        for name, order in spec["methods"].items()
    ]


def _conventional(name: str):
    from llicm.codec.conventional import CONVENTIONAL

    if name == "raw":
        return RawCodec()
    if name not in CONVENTIONAL:
        names = ", ".join(["learned", "raw", *sorted(CONVENTIONAL)])
        raise UserError(f"params.yaml: codec '{name}' is unknown; choose one of {names}")
    codec = CONVENTIONAL[name]
    return codec() if isinstance(codec, type) else codec
