# SPDX-License-Identifier: Apache-2.0
"""Degraded and ideal pictures side by side on disk: ``<root>/<split>/<degradation>/{GT,LQ}/<name>.png``.

The layout is that of the public paired datasets used for universal restoration, so that they drop in. Beside the
degradations of one word there are sets of other names (see :func:`set_of`), as ``low-light+noisy`` or ``hazy@0.8``.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Generator, Tensor

from llicm.data.corpus import read_photo
from llicm.data.photo import Photo
from llicm.degradations import CLEAN, IN_ORDER, degrade
from llicm.errors import UserError
from llicm.files import atomic_folder
from llicm.images import by_stem, list_images, quantize8, read_image, write_png


class Pair(NamedTuple):
    """A picture twice, both (3, H, W) float32 in [0, 1]: pristine and degraded."""

    name: str
    ideal: Tensor
    degraded: Tensor


class TrainingPair(NamedTuple):
    """The same as they are kept for training."""

    name: str
    ideal: Photo
    degraded: Photo


def set_of(name: str, severity: float) -> tuple[list[str], float]:
    """What a set of test pairs suffers: its degradations in the order in which they happen, and their severity.

    A name is a degradation word, or several joined by ``+``, or ``clean`` for none; ``@`` and a number in [0, 1] at the
    end set the severity, which is otherwise the given one. ``clean`` is a control: what does a method cost when
    nothing is wrong?

    Raises:
        UserError: an unknown word, a word twice, or a wrong severity.
    """
    joined, at, number = name.partition("@")
    words = joined.split("+")
    known = [*IN_ORDER, CLEAN]
    for word in words:
        if word not in known or words.count(word) > 1 or (word == CLEAN and len(words) > 1):
            raise UserError(f"tasks: no set of pairs can be called {name!r}; use one or more of {', '.join(known)}.")
    if at:
        try:
            severity = float(number)
        except ValueError:
            severity = -1.0
        if not 0 <= severity <= 1:
            raise UserError(f"tasks: {name!r} must end in a severity from 0 to 1, such as @0.8.")
    return sorted((word for word in words if word != CLEAN), key=IN_ORDER.index), severity


def write_pairs(
    photos: Mapping[str, Tensor], root: str | os.PathLike, words: Iterable[str], severity: float, seed: int, split: str,
    max_side: int | None,
) -> list[Path]:  # fmt: skip
    """Degrade photos and write ``<root>/<split>/<word>/{GT,LQ}/<name>.png`` for every word.

    Args:
        photos: name -> (3, H, W) in [0, 1].
        root: folder of the splits; created.
        words: degradation words, or other names of sets (see :func:`set_of`).
        severity: in [0, 1], the same for all without one of their own.
        seed: with word and name it makes the seed of each picture, so neither order nor company matters.
        split: ``train`` or ``val``.
        max_side: photos are cut to at most this many pixels a side, at the centre; None keeps them whole.

    Returns:
        The word folders. Each is written under a temporary name first, then put in place of an older one.

    Raises:
        UserError: an unknown degradation word or name of a set.
    """
    folders = []
    for word in words:
        suffered, level = set_of(word, severity)
        folders.append(Path(root) / split / word)
        with atomic_folder(folders[-1]) as new:
            new.mkdir()
            for name, photo in photos.items():
                ideal = quantize8(centre_crop(photo, max_side))
                # the same for all severities: what differs between them is then the severity alone
                generator = Generator().manual_seed(stable_seed(seed, "+".join(suffered), name))
                degraded = ideal[None]
                for each in suffered:
                    degraded = degrade(each, degraded, level, generator)
                write_png(ideal, new / "GT" / f"{name}.png")
                write_png(degraded[0], new / "LQ" / f"{name}.png")
    return folders


def read_pairs(root: str | os.PathLike, split: str, word: str) -> list[Pair]:
    """Read the pairs of one degradation; GT and LQ files belong together by stem, whatever their extensions.

    Ideal pictures without a degraded one are ignored.

    Raises:
        UserError: a missing or empty folder, a degraded picture without its ideal one, two files of one stem,
            different sizes, or an unreadable file.
    """
    return [Pair(*found) for found in _read(Path(root) / split / word, read_image)]


def _read(folder: Path, read: Callable[[Path], Any]) -> Iterator[tuple[str, Any, Any]]:
    """Name, ideal and degraded picture of each pair, as `read` has them."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of pairs; make it with the stage `degrade` or copy pairs there.")
    ideals, degraded = (by_stem(list_images(folder / kind)) for kind in ("GT", "LQ"))
    for name, path in degraded.items():
        if name not in ideals:
            raise UserError(f"{path}: no ideal picture {name}.* in {folder / 'GT'}; add it or remove this file.")
        pair = read(ideals[name]), read(path)
        (h1, w1), (h2, w2) = (picture.shape[1:] for picture in pair)
        if (h1, w1) != (h2, w2):
            sizes = f"{w2}x{h2} pixels, but its ideal picture {ideals[name]} has {w1}x{h1}"
            raise UserError(f"{path}: {sizes}; the two must be of one size.")
        yield name, *pair


def read_training_pairs(
    root: str | os.PathLike, words: Iterable[str], keep: Path | None = None
) -> dict[str, list[TrainingPair]]:
    """Ready-made training pairs ``<root>/train/<word>`` of those words that have such a folder.

    Args:
        keep: folder for what was read, mapped into memory (public sets have 100 GB); None to keep all in memory.

    Raises:
        UserError: see :func:`read_pairs`; also when `root` has no folder for any word, in neither split.
    """
    words = list(words)
    if not any((Path(root) / split / word).is_dir() for split in ("train", "val") for word in words):
        raise UserError(
            f"{root}: no folder of pairs for {', '.join(words)}; lay them out as {{train,val}}/<degradation>/{{GT,LQ}} "
            "or set `paired: null` in params.yaml."
        )
    folders = {word: Path(root) / "train" / word for word in words}
    return {
        word: [TrainingPair(*found) for found in _read(folder, partial(read_photo, keep=keep))]
        for word, folder in folders.items()
        if folder.is_dir()
    }


def copy_pairs(source: str | os.PathLike, root: str | os.PathLike, word: str, max_side: int | None) -> int:
    """Put ready-made test pairs ``<source>/val/<word>`` in place of those in `root`, cut as :func:`write_pairs` cuts.

    Returns:
        The number of pairs; 0 if the source has no such folder, and then nothing changes.
    """
    if not (Path(source) / "val" / word).is_dir():
        return 0
    return put_pairs(read_pairs(source, "val", word), root, word, max_side)


def put_pairs(pairs: Iterable[Pair], root: str | os.PathLike, word: str, max_side: int | None) -> int:
    """Write pairs as ``<root>/val/<word>/{GT,LQ}`` in place of those there, cut as :func:`write_pairs` cuts; returns
    their number."""
    pairs = list(pairs)
    folder = Path(root) / "val" / word
    shutil.rmtree(folder, ignore_errors=True)
    for pair in pairs:
        write_png(centre_crop(pair.ideal, max_side), folder / "GT" / f"{pair.name}.png")
        write_png(centre_crop(pair.degraded, max_side), folder / "LQ" / f"{pair.name}.png")
    return len(pairs)


def parts(photos: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Photos (3, H, W) cut along the longer side into equal parts, named "<name>-1" and so on; as they are for 1.

    Two halves of a photo, each with a degradation of its own, tell more about a restorer than the whole with one.
    """
    if count == 1:
        return dict(photos)
    out: dict[str, Tensor] = {}
    for name, photo in photos.items():
        along = 1 if photo.shape[1] > photo.shape[2] else 2
        side = photo.shape[along] // count
        out |= {f"{name}-{i + 1}": photo.narrow(along, i * side, side) for i in range(count)}
    return out


def centre_crop(photo: Tensor, max_side: int | None) -> Tensor:
    """The middle (3, min(H, max_side), min(W, max_side)) of a photo; None keeps all of it."""
    if max_side is None:
        return photo
    height, width = photo.shape[1:]
    h, w = min(height, max_side), min(width, max_side)
    top, left = (height - h) // 2, (width - w) // 2
    return photo[:, top : top + h, left : left + w]


def stable_seed(*parts: object) -> int:
    """A seed that depends on these values alone, not on the process."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") >> 1
