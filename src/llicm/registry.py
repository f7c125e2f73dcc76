# SPDX-License-Identifier: Apache-2.0
"""Parts by name: codecs and restorers, each in a file of its own that is imported when the name is asked for.

    @CODECS.register("mean-scale")        # in llicm/codec/mean_scale.py
    class MeanScaleHyperprior(nn.Module): ...

A name in params.yaml is found as a module of the room (`mean-scale` in llicm/codec/mean_scale.py), as an entry point of
an installed package (groups `llicm.codec` and `llicm.restorer`), or as an import path (`my_package.my_module:MyCodec`).
So a new part is one new file, and nothing else imports it: what was trained without it stays up to date.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from llicm.errors import UserError

if TYPE_CHECKING:  # the first stage of the pipeline looks for names alone, and is run often
    from torch import Tensor, nn


class Codec(Protocol):
    """What a learned codec is, beside a torch module."""

    config: dict
    """Its name and the arguments that build it again."""
    levels: int
    """Number of rates it was trained for; a level is any number from 0 (lowest rate) to levels - 1."""
    stride: int
    """In training, sides of images are multiples of this."""

    def forward(self, x: Tensor, level: Tensor) -> dict:
        """X (N, 3, H, W) in [0, 1] at levels (N,) to `x_hat`, like it, and `likelihoods` by latent."""

    def lambdas(self, level: Tensor) -> Tensor:
        """Lagrangian weight of the distortion at each level (N,)."""

    def relative_level(self, level: Tensor) -> Tensor:
        """Level on a scale from 0 to 1."""

    def update(self) -> None:
        """Make the entropy coder's tables from the trained weights; once, before saving or coding."""

    def compress(self, x: Tensor, level: float, effort: int = 0) -> bytes:
        """X (3, H, W) in [0, 1] to the bytes of a file, with so many steps of refinement, if the codec has any."""

    def decompress(self, data: bytes) -> tuple[Tensor, float]:
        """Bytes of a file to X̂ (3, H, W) in [0, 1] and the level; raises BitstreamError."""

    def model_id(self) -> bytes:
        """SHA-256 of all that decoding depends on; a file begins with four bytes of it."""


class Restorer(Protocol):
    """What a restorer is, beside a torch module."""

    config: dict
    """Its name and the arguments that build it again; `context` says what steers it."""
    level_conditioned: bool
    """Whether it was trained on decoded images, and so minds the level."""

    def forward(self, x: Tensor, level: Tensor | None = None, context: Any = None) -> Tensor:
        """Image (N, 3, H, W) in [0, 1] to the restored one, not clamped.

        `level` (N,) in [0, 1] is relative, None for what was never compressed; `context` see `llicm.vlm.context`.
        """


class Registry:
    """The parts of one kind.

    Args:
        kind: "codec" or "restorer", for messages and the group of entry points.
        package: of the modules that are searched.
    """

    def __init__(self, kind: str, package: str):
        self.kind, self.package = kind, package
        self._parts: dict[str, type[nn.Module]] = {}

    def register(self, name: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
        """Class decorator: the part that params.yaml calls `name`."""

        def add(part: type[nn.Module]) -> type[nn.Module]:
            self._parts[name] = part
            return part

        return add

    def module_of(self, name: str) -> str | None:
        """Name of the module that holds a part, found without importing it; None if there is none."""
        if ":" in name:
            return name.partition(":")[0]
        module = f"{self.package}.{name.replace('-', '_')}"
        if importlib.util.find_spec(module):
            return module
        return next((point.module for point in self._entry_points(name)), None)

    def find(self, name: str) -> type[nn.Module]:
        """The class of a part.

        Raises:
            UserError: no part of that name.
        """
        if name not in self._parts and (module := self.module_of(name)):
            try:
                found = importlib.import_module(module)
            except ModuleNotFoundError as error:
                raise UserError(f"params.yaml: {self.kind} '{name}': {error}; install it") from None
            if ":" in name:
                part = getattr(found, name.partition(":")[2], None)
                if not isinstance(part, type):
                    raise UserError(f"params.yaml: {self.kind} '{name}': {module} has no such class; correct the name")
                self._parts[name] = part
            elif points := self._entry_points(name):
                self._parts.setdefault(name, points[0].load())
        if name not in self._parts:
            raise UserError(
                f"params.yaml: {self.kind} '{name}' is unknown; choose one of {', '.join(self.names())}, or name an "
                "import path, package.module:Class"
            )
        return self._parts[name]

    def make(self, name: str, **config: Any) -> Any:
        """The part called `name`, built with the arguments `config`.

        Raises:
            UserError: no part of that name, or an argument that it does not have or lacks.
        """
        part = self.find(name)
        try:
            return part(**config)
        except TypeError as error:
            raise UserError(f"params.yaml: {self.kind} '{name}': {error}; correct it") from None

    def names(self) -> list[str]:
        """Names of all parts that can be had: imports every module of the room."""
        for found in pkgutil.iter_modules(importlib.import_module(self.package).__path__, f"{self.package}."):
            importlib.import_module(found.name)
        return sorted({*self._parts, *(point.name for point in self._entry_points())})

    def _entry_points(self, name: str | None = None) -> list[importlib.metadata.EntryPoint]:
        points = importlib.metadata.entry_points(group=f"llicm.{self.kind}")
        return [point for point in points if name in (None, point.name)]


CODECS = Registry("codec", "llicm.codec")
RESTORERS = Registry("restorer", "llicm.restore")
