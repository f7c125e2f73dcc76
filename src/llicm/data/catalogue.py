# SPDX-License-Identifier: Apache-2.0
"""The catalogue of public datasets: where each comes from, how to know it is whole, and which must not meet.

It holds no pictures. `add` verifies a copy that a user has and registers its place in ``registry.json``; `split` then
lays a training set and a test set side by side, as a study reads photos, and refuses two that share pictures. What is
known of the sets is in ``catalogue.json`` beside this file, so that a further one is an entry there.
"""

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from llicm.errors import UserError
from llicm.files import atomic_folder, write_json
from llicm.images import list_images

__all__ = ["DataSet", "add", "catalogue", "check_apart", "folder_of", "known_sets", "overlap", "registry", "split"]

_DIGITS = 16  # of a SHA-256, in hexadecimal; enough to tell a wrong copy


@dataclass(frozen=True)
class DataSet:
    """One public dataset.

    Attributes:
        name: in commands and in params.yaml. title: as its authors call it. source: where it comes from.
        licence: in a few words; read the terms that come with the set. size: of its pictures, width x height.
        kind: "photos" (clean), or "pairs" in the layout ``{train,val}/<degradation>/{GT,LQ}``.
        count: clean photos. train, val: pairs. degradation: the word of the pairs.
        sha256: file name -> first 16 hexadecimal digits, where known.
    """

    name: str
    title: str
    source: str
    licence: str
    size: str
    kind: str
    count: int = 0
    train: int = 0
    val: int = 0
    degradation: str = ""
    sha256: dict[str, str] = field(default_factory=dict, repr=False)


@functools.cache
def _raw() -> dict:
    return json.loads(files("llicm.data").joinpath("catalogue.json").read_text(encoding="utf-8"))


@functools.cache
def catalogue() -> dict[str, DataSet]:
    """All datasets by name."""
    return {name: DataSet(name, **entry) for name, entry in _raw()["sets"].items()}


def overlap(first: str, second: str) -> str | None:
    """What two sets share, in a sentence; None if nothing is known to be shared. A set shares all with itself."""
    if first == second:
        return f"{first} is both"
    return next((entry["what"] for entry in _raw()["overlaps"] if {first, second} == set(entry["sets"])), None)


def _entry(name: str) -> DataSet:
    if name not in catalogue():
        raise UserError(f"{name}: not in the catalogue of datasets; choose one of {', '.join(catalogue())}.")
    return catalogue()[name]


def registry(root: str | os.PathLike) -> dict[str, dict]:
    """The sets registered below `root`: name -> `path` and `sha256` of the whole.

    Raises:
        UserError: ``registry.json`` there is damaged.
    """
    path = Path(root) / "registry.json"
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): {"path": str(v["path"]), "sha256": str(v["sha256"])} for name, v in found.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path}: damaged; delete it and add the datasets again with `llicm data add`.") from None


def add(name: str, path: str | os.PathLike, root: str | os.PathLike) -> int:
    """Verify a local copy of a dataset and register it; nothing is copied.

    Args:
        name: in the catalogue. path: its folder. root: folder of the registry, made if need be.

    Returns:
        The number of pictures (of pairs for a paired set).

    Raises:
        UserError: an unknown name, a missing folder, too few or too many pictures, or a picture whose checksum differs.
            The message names the file. Nothing is registered then.
    """
    entry, folder = _entry(name), Path(path).resolve()
    if not folder.is_dir():
        raise UserError(f"{path}: no such folder.")
    count, digest = (_verify_pairs if entry.kind == "pairs" else _verify_photos)(entry, folder)
    known = registry(root) | {name: {"path": str(folder), "sha256": digest}}
    write_json(known, Path(root) / "registry.json", sort_keys=True)
    return count


def folder_of(name: str, root: str | os.PathLike) -> Path:
    """The folder of a registered dataset.

    Raises:
        UserError: it is unknown, not registered, or no longer there; the message says what to do.
    """
    entry, known = _entry(name), registry(root)
    if name not in known or not Path(known[name]["path"]).is_dir():
        raise UserError(
            f"{name}: no copy is registered in {Path(root) / 'registry.json'}. Get it from its source "
            f"({entry.source}), then run `llicm data add {name} FOLDER`."
        )
    return Path(known[name]["path"])


def split(train: str, test: str, out: str | os.PathLike, root: str | os.PathLike) -> dict[str, int]:
    """Lay two registered sets of clean photos side by side, ``out/train`` and ``out/test``, as a study reads them.

    The pictures are hard links where the file system allows, else copies.

    Returns:
        The number of photos in each part.

    Raises:
        UserError: the sets share pictures, one is not registered or not of clean photos, or `out` exists.
    """
    out = Path(out)
    shared = overlap(train, test)
    if shared:
        raise UserError(f"{train} cannot train what {test} is to test: {shared}. Choose another training set.")
    parts = {"train": train, "test": test}
    for name in parts.values():
        if _entry(name).kind != "photos":
            raise UserError(f"{name}: a set of pairs; name its folder as `paired` in params.yaml instead.")
    sources = {part: list_images(folder_of(name, root)) for part, name in parts.items()}
    if out.exists():
        raise UserError(f"{out}: exists already; remove it or choose another folder.")
    with atomic_folder(out) as new:
        for part, paths in sources.items():
            (new / part).mkdir(parents=True)
            for path in paths:
                _link(path, new / part / path.name)
        lines = [f"{part}: {catalogue()[name].title} ({catalogue()[name].source})" for part, name in parts.items()]
        (new / "SOURCES.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {part: len(paths) for part, paths in sources.items()}


def known_sets(paths: Iterable[Path]) -> set[str]:
    """The datasets of the catalogue that any of these files belongs to, by checksum."""
    owners = {digest: name for name, entry in catalogue().items() for digest in entry.sha256.values()}
    return {owners[digest] for path in paths if (digest := _digest(path)) in owners}


def check_apart(photos: str | os.PathLike) -> None:
    """Refuse a folder of photos whose ``train`` and ``test`` come from public datasets that share pictures.

    The files are known by their checksums, whatever their names. A flat folder, which is split by file, is not looked
    at: there `llicm.data.corpus.load_photos` compares the pictures themselves.

    Raises:
        UserError: two sets overlap; the message names them and what they share.
    """
    found = {part: Path(photos) / part for part in ("train", "test")}
    if not all(folder.is_dir() for folder in found.values()):
        return
    train, test = (known_sets(list_images(found[part])) for part in ("train", "test"))
    for first in sorted(train):
        for second in sorted(test):
            if (shared := overlap(first, second)) and first != second:
                raise UserError(
                    f"{photos}: train holds photos of {first}, and test of {second}: {shared}. Choose another "
                    "training set, since training and test photos must never mix."
                )


def _verify_photos(entry: DataSet, folder: Path) -> tuple[int, str]:
    paths = list_images(folder)
    if len(paths) != entry.count:
        counts = f"{len(paths)} pictures, but {entry.title} has {entry.count}"
        raise UserError(f"{folder}: {counts}; get the whole set again.")
    sums = {path.name: _digest(path) for path in paths}
    for path in paths:
        if entry.sha256 and entry.sha256.get(path.name) != sums[path.name]:
            known = "is none of the set's" if path.name not in entry.sha256 else "differs from the set's"
            raise UserError(f"{path}: this file {known} (by its checksum); get {entry.title} from {entry.source}.")
    return len(paths), _of_all(sums)


def _verify_pairs(entry: DataSet, folder: Path) -> tuple[int, str]:
    sums: dict[str, str] = {}
    for part, count in (("train", entry.train), ("val", entry.val)):
        places = {kind: folder / part / entry.degradation / kind for kind in ("GT", "LQ")}
        for place in places.values():
            if not place.is_dir():
                layout = f"{{train,val}}/{entry.degradation}/{{GT,LQ}}"
                raise UserError(f"{place}: no such folder; lay {entry.title} out as {layout}.")
        degraded = list_images(places["LQ"])
        if len(degraded) != count:
            counts = f"{len(degraded)} pictures, but {entry.title} has {count} there"
            raise UserError(f"{places['LQ']}: {counts}; get the whole set again.")
        stems = {path.stem for path in list_images(places["GT"])}
        for path in degraded:
            if path.stem not in stems:
                raise UserError(f"{path}: no ideal picture {path.stem}.* in {places['GT']}.")
        # Names and sizes, not contents: these sets have up to 60,000 pictures, and no checksums to compare with.
        sums |= {f"{part}/{path.name}": str(path.stat().st_size) for path in degraded}
    return len(sums), _of_all(sums)


def _of_all(sums: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
