# SPDX-License-Identifier: Apache-2.0
"""A photo in memory: its bytes, once, and smaller copies of it, made when one is first asked for.

What a folder is given for is kept there as files (``.npy``) that are mapped into memory, under the hash of what they
are made from: further runs find them, processes share their pages, and the system may drop pages, since it can read
them again.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Union

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llicm.files import atomic_path

SCALES = (1.0, 0.75, 0.5, 0.35)


def as_bytes(image: Tensor) -> Tensor:
    """An image of any shape in [0, 1] as uint8 if all its values are k/255 in float32, as those of 8-bit files are;
    otherwise, as with 16-bit grey, the same float32."""
    found = image.mul(255).round_().to(torch.uint8)
    return found if torch.equal(as_floats(found), image) else image


def as_floats(pixels: Tensor) -> Tensor:
    """What `as_bytes` was given: uint8 to float32 in [0, 1], floats as they are."""
    return pixels if pixels.is_floating_point() else pixels.float().div_(255)


def mapped(path: Path | None, make: Callable[[], Tensor]) -> Tensor:
    """A tensor that is kept in a file, made if it is not there; without a path what `make` gives.

    The file appears whole or not at all. It is mapped privately: writing to the tensor changes no file.

    Raises:
        DiskFullError, OSError: it cannot be written.
    """
    if path is None:
        return make()
    with contextlib.suppress(FileNotFoundError, ValueError, EOFError, RuntimeError):  # not there, or cut short
        return _map(path)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, make().contiguous().numpy())
    return _map(path)


def _map(path: Path) -> Tensor:
    """NumPy's own maps each keep a file open, of which a process may have 1,024; a set has thousands."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        begin = file.tell()
    whole = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
    return whole[begin:].view(getattr(torch, dtype.name)).view(shape)


class Photo:
    """A photo and its smaller copies.

    Attributes:
        pixels: (3, H, W), uint8, or float32 in [0, 1] where 8 bits do not hold it; see `as_floats`.

    Args:
        file: where `pixels` are kept; the copies are kept beside it. None to keep them in memory.
    """

    def __init__(self, pixels: Tensor, file: Path | None = None):
        self.pixels, self.file = pixels, file
        self._smaller: dict[float, Tensor] = {}
        self._copies: dict[torch.device, Tensor] = {}

    @staticmethod
    def of(photo: Union[Tensor, "Photo"]) -> "Photo":
        """The photo itself, or that of an image (3, H, W) in [0, 1]."""
        return photo if isinstance(photo, Photo) else Photo(as_bytes(photo))

    def on(self, device: torch.device) -> Tensor:
        """`pixels` on a device, where they stay."""
        if device not in self._copies:
            self._copies[device] = self.pixels.to(device)
        return self._copies[device]

    @property
    def shape(self) -> torch.Size:
        """(3, H, W)."""
        return self.pixels.shape

    def size(self, scale: float) -> tuple[int, int]:
        """(H, W) at one of `SCALES`."""
        return round(self.shape[1] * scale), round(self.shape[2] * scale)

    def scales(self, least: int) -> list[float]:
        """1, and those of `SCALES` at which no side is smaller than so many pixels."""
        return [scale for scale in SCALES if scale == 1 or min(self.size(scale)) >= least]

    def at(self, scale: float) -> Tensor:
        """The photo at one of `SCALES`, bicubic and antialiased: `pixels`, or float32 (3, H, W) in [0, 1]."""
        if scale == 1:
            return self.pixels
        if scale not in self._smaller:
            file = None if self.file is None else self.file.with_name(f"{self.file.stem}-{scale:g}.npy")
            self._smaller[scale] = mapped(file, lambda: self._reduced(scale))
        return self._smaller[scale]

    def _reduced(self, scale: float) -> Tensor:
        image = as_floats(self.pixels)[None]
        return F.interpolate(image, self.size(scale), mode="bicubic", antialias=True)[0].clamp_(0, 1)


class Photos(Mapping[str, Tensor]):
    """Photos by name: each is (3, H, W), RGB float32 in [0, 1], made when it is asked for.

    Attributes:
        kept: the photos as they are in memory, by name.
    """

    def __init__(self, kept: dict[str, Photo]):
        self.kept = kept

    def __getitem__(self, name: str) -> Tensor:
        return as_floats(self.kept[name].pixels)

    def __iter__(self) -> Iterator[str]:
        return iter(self.kept)

    def __len__(self) -> int:
        return len(self.kept)
