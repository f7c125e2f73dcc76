# SPDX-License-Identifier: Apache-2.0
"""The corpus: clean photos, split into training and test by file."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from llicm.errors import UserError
from llicm.images import by_stem, list_images, read_image

__all__ = ["Corpus", "load_photos"]

SMALLEST_SIDE = 64
_REMEDY = "run `dvc pull data.dvc`, or set data.photos in params.yaml to a folder of photos"


@dataclass(frozen=True)
class Corpus:
    """Photos by name (the file's stem); each (3, H, W), RGB float32 in [0, 1]."""

    train: dict[str, Tensor]
    test: dict[str, Tensor]


def load_photos(root: str | os.PathLike) -> Corpus:
    """Read all photos below ``root``.

    With folders ``root/train`` and ``root/test`` the split is theirs. A flat folder is split by file: of the
    names in alphabetical order every third (the 3rd, 6th, ...) is for testing, the others are for training;
    with two photos the second is for testing. So adding a photo may move others to the other part.

    Raises:
        UserError: the folder is missing or empty, it holds fewer than two photos, a photo cannot be read or
            has a side below 64 pixels, two files of one part share a stem, or a picture is in both parts.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of photos; {_REMEDY}.")
    parts = {part: root / part for part in ("train", "test")}
    present = [part for part, folder in parts.items() if folder.is_dir()]
    if len(present) == 1:
        missing = "test" if present == ["train"] else "train"
        raise UserError(f"{parts[missing]}: no such folder beside {present[0]}/; add it, or {_REMEDY}.")
    if present:
        files = {part: list_images(folder) for part, folder in parts.items()}
    else:
        files = _split(list_images(root, _REMEDY), root)
    corpus = Corpus(**{part: _read(paths) for part, paths in files.items()})
    _refuse_mixing(corpus, root)
    return corpus


def _split(paths: list[Path], root: Path) -> dict[str, list[Path]]:
    if len(paths) < 2:
        raise UserError(f"{root}: a single photo cannot be split into training and test; add at least one more.")
    test = paths[2::3] or paths[1:]
    return {"train": [p for p in paths if p not in test], "test": test}


def _read(paths: list[Path]) -> dict[str, Tensor]:
    photos: dict[str, Tensor] = {}
    for name, path in by_stem(paths).items():
        photo = read_image(path)
        height, width = photo.shape[1:]
        if min(height, width) < SMALLEST_SIDE:
            least = f"at least {SMALLEST_SIDE} pixels a side"
            raise UserError(f"{path}: {width}x{height} pixels is too small; remove it or use photos of {least}.")
        photos[name] = photo
    return photos


def _refuse_mixing(corpus: Corpus, root: Path) -> None:
    def content(photo: Tensor) -> str:
        return hashlib.sha256(str(tuple(photo.shape)).encode() + photo.numpy().tobytes()).hexdigest()

    training = {content(photo): name for name, photo in corpus.train.items()}
    for name, photo in corpus.test.items():
        if (twin := training.get(content(photo))) is not None:
            same = f"the test photo {name} is the same picture as the training photo {twin}"
            raise UserError(f"{root}: {same}; remove one of them, since training and test photos must never mix.")
