# SPDX-License-Identifier: Apache-2.0
"""The corpus: clean photos, split into training and test by file."""

import functools
import hashlib
import os
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import torch

from llicm import colour
from llicm import images as reader
from llicm.data.photo import Photo, Photos, as_bytes, mapped
from llicm.errors import UserError
from llicm.images import by_stem, list_images, read_image

SMALLEST_SIDE = 64
_REMEDY = "run `dvc pull data.dvc`, or set data.photos in params.yaml to a folder of photos"


@dataclass(frozen=True)
class Corpus:
    """Photos by name (the file's stem); each (3, H, W), RGB float32 in [0, 1]. They are in memory as bytes."""

    train: Photos
    test: Photos


def load_photos(root: str | os.PathLike, keep: str | os.PathLike | None = None) -> Corpus:
    """Read all photos below ``root``.

    With folders ``root/train`` and ``root/test`` the split is theirs. A flat folder is split by file: of the
    names in alphabetical order every third (the 3rd, 6th, ...) is for testing, the others are for training;
    with two photos the second is for testing. So adding a photo may move others to the other part.

    Args:
        keep: folder for what was read, so that the next run need not decode it, and processes share it in memory (see
            `llicm.data.photo`). It is this function's own: what belongs to other photos is removed. None to keep all
            in this process's memory.

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
    folder = None if keep is None else Path(keep)
    corpus = Corpus(**{part: Photos(_read(paths, folder)) for part, paths in files.items()})
    _refuse_mixing(corpus, root)
    if folder is not None:
        used = {photo.file.stem for part in (corpus.train, corpus.test) for photo in part.kept.values() if photo.file}
        for path in folder.glob("*.npy"):
            if path.stem.partition("-")[0] not in used:
                path.unlink(missing_ok=True)
    return corpus


def _split(paths: list[Path], root: Path) -> dict[str, list[Path]]:
    if len(paths) < 2:
        raise UserError(f"{root}: a single photo cannot be split into training and test; add at least one more.")
    test = paths[2::3] or paths[1:]
    return {"train": [p for p in paths if p not in test], "test": test}


def _read(paths: list[Path], folder: Path | None) -> dict[str, Photo]:
    photos: dict[str, Photo] = {}
    for name, path in by_stem(paths).items():
        photo = read_photo(path, folder)
        height, width = photo.shape[1:]
        if min(height, width) < SMALLEST_SIDE:
            least = f"at least {SMALLEST_SIDE} pixels a side"
            raise UserError(f"{path}: {width}x{height} pixels is too small; remove it or use photos of {least}.")
        photos[name] = photo
    return photos


def read_photo(path: Path, keep: Path | None) -> Photo:
    """A picture; what was read of it is kept in the folder `keep`, for the next run and for other processes.

    Raises:
        UserError: it cannot be read.
    """
    file = None if keep is None else keep / f"{_hash(path)}.npy"
    return Photo(mapped(file, partial(_decode, path)), file)


def _decode(path: Path) -> torch.Tensor:
    return as_bytes(read_image(path))


def _hash(path: Path) -> str:
    """What the pixels follow from: the file, and what reads it."""
    try:
        digest = hashlib.sha256(path.read_bytes())
    except OSError:
        return "unreadable"  # the reader says why
    digest.update(_reader())
    return digest.hexdigest()[:32]


@functools.cache
def _reader() -> bytes:
    versions = [metadata.version(package) for package in ("pillow", "pillow-heif")]
    return repr(versions).encode() + b"".join(Path(str(m.__file__)).read_bytes() for m in (colour, reader))


def _refuse_mixing(corpus: Corpus, root: Path) -> None:
    def sample(photo: Photo) -> tuple:  # photos that may be the same: their pixels are compared then
        return (*photo.shape, photo.pixels[:, ::61, ::67].numpy().tobytes())

    training: dict[tuple, list[str]] = {}
    for name, photo in corpus.train.kept.items():
        training.setdefault(sample(photo), []).append(name)
    for name, photo in corpus.test.kept.items():
        for twin in training.get(sample(photo), []):
            if torch.equal(photo.pixels, corpus.train.kept[twin].pixels):
                same = f"the test photo {name} is the same picture as the training photo {twin}"
                raise UserError(f"{root}: {same}; remove one of them, since training and test photos must never mix.")
