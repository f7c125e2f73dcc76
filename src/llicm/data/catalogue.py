# SPDX-License-Identifier: Apache-2.0
"""The catalogue of public datasets: where each comes from, how to know it is whole, and which must not meet.

It holds no pictures. `add` verifies a copy that a user has and registers its place in ``registry.json``; `split` then
lays a training set and a test set side by side, as a study reads photos, and refuses two that share pictures. What is
known of the sets is in ``catalogue.json`` beside this file, so that a further one is an entry there; ``photos.tsv`` has
the checksums of larger sets, and of sets that are scaled down the original, its checksum and its author of each photo.
"""

import csv
import functools
import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from PIL import Image, ImageOps

from llicm.errors import UserError
from llicm.files import atomic_folder, write_json
from llicm.images import list_images

_DIGITS = 16  # of a SHA-256, in hexadecimal; enough to tell a wrong copy


@dataclass(frozen=True)
class Original:
    """The file that a photo was made from: its path in the source, its whole SHA-256, and its author if known."""

    path: str
    sha256: str
    author: str


@dataclass(frozen=True)
class DataSet:
    """One public dataset.

    Attributes:
        name: in commands and in params.yaml. title: as its authors call it. source: where it comes from.
        licence: in a few words; read the terms that come with the set. size: of its pictures, width x height.
        kind: "photos" (clean), "pairs" in the layout ``{train,val}/<degradation>/{GT,LQ}``, or "real": pairs with a
            real degradation in the layout ``{GT,LQ}``, to measure on only.
        count: clean photos. train, val: pairs. degradation: the word of the pairs.
        sha256: file name (of a real pair with its folder) -> first 16 hexadecimal digits, where known.
        originals: file name -> what the photo is made from by `prepare`; {} where photos are used as they are.
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
    originals: dict[str, Original] = field(default_factory=dict, repr=False)


@functools.cache
def _raw() -> dict:
    return json.loads(files("llicm.data").joinpath("catalogue.json").read_text(encoding="utf-8"))


@functools.cache
def catalogue() -> dict[str, DataSet]:
    """All datasets by name."""
    sets = {name: DataSet(name, **entry) for name, entry in _raw()["sets"].items()}
    lines = files("llicm.data").joinpath("photos.tsv").read_text(encoding="utf-8").splitlines()
    for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
        entry = sets[row["set"]]
        entry.sha256[row["file"]] = row["sha256"]
        if row["original"]:
            entry.originals[row["file"]] = Original(row["original"], row["original_sha256"], row["author"])
    return sets


def overlap(first: str, second: str) -> str | None:
    """What two sets share, in a sentence; None if nothing is known to be shared. A set shares all with itself."""
    if first == second:
        return f"{first} is both"
    return next((entry["what"] for entry in _raw()["overlaps"] if {first, second} == set(entry["sets"])), None)


def entry_of(name: str) -> DataSet:
    """A dataset by name. Raises: UserError: it is not in the catalogue."""
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
        name: in the catalogue. path: its folder; of a set that `prepare` makes also a clone of its source.
        root: folder of the registry, made if need be.

    Returns:
        The number of pictures (of pairs for a paired set).

    Raises:
        UserError: an unknown name, a missing folder, too few or too many pictures, or a picture whose checksum differs.
            The message names the file. Nothing is registered then.
    """
    entry, folder = entry_of(name), Path(path).resolve()
    if not folder.is_dir():
        raise UserError(f"{path}: no such folder.")
    kind = "originals" if _is_clone(entry, folder) else entry.kind
    count, digest = _VERIFY[kind](entry, folder)
    _register(name, folder, digest, root)
    return count


def _register(name: str, folder: Path, digest: str, root: str | os.PathLike) -> None:
    known = registry(root) | {name: {"path": str(folder), "sha256": digest}}
    write_json(known, Path(root) / "registry.json", sort_keys=True)


def prepare(name: str, clone: str | os.PathLike, out: str | os.PathLike, root: str | os.PathLike) -> tuple[int, int]:
    """Make the photos of a set from the originals in a clone of its source, and register them.

    Originals of more than a megapixel are scaled down (Lanczos) by at least 2, to about 1.1 megapixels, which also
    removes the traces of the JPEG coding they were published in. Photos are stored as AVIF 4:4:4 of quality 92, or
    losslessly as PNG, as their names say.

    Args:
        name: in the catalogue. clone: folder. out: folder to make. root: folder of the registry, made if need be.

    Returns:
        The number of photos, and how many of them are those of the catalogue to the byte; all, if the encoder is of the
        same version (libavif 1.4.2). Others differ by what an encoder does: the originals were verified.

    Raises:
        UserError: an unknown name or one without originals, an original that is missing or differs, or `out` exists.
    """
    entry, clone, out = entry_of(name), Path(clone), Path(out)
    if not entry.originals:
        raise UserError(f"{name}: its photos are used as they are; run `llicm data add {name} FOLDER`.")
    if out.exists():
        raise UserError(f"{out}: exists already; remove it or choose another folder.")
    with atomic_folder(out) as new:
        new.mkdir()
        for file, original in entry.originals.items():
            _scale_down(_verified_original(entry, clone, original), new / file)
        sums = {file: _digest(new / file) for file in sorted(entry.originals)}
    _register(name, out.resolve(), _of_all(sums), root)
    return len(sums), sum(entry.sha256[file] == found for file, found in sums.items())


def _scale_down(data: bytes, target: Path) -> None:
    with Image.open(io.BytesIO(data)) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    megapixels = picture.width * picture.height / 1e6
    if megapixels > 1:
        factor = max(2.0, math.sqrt(megapixels / 1.1))
        size = (round(picture.width / factor), round(picture.height / factor))
        picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=4)
    if target.suffix == ".png":
        picture.save(target, optimize=True)
    else:  # one thread: the number of threads changes the bytes
        picture.save(target, quality=92, subsampling="4:4:4", speed=6, max_threads=1)


def attributions(name: str) -> str:
    """What the licence of a set wants told: its photos with their authors, as Markdown; "" for sets of no such list."""
    entry = entry_of(name)
    if not entry.originals:
        return ""
    made = "Scaled down where larger than a megapixel, and stored anew."
    lines = [f"## {entry.title}", "", f"{entry.source}, {entry.licence}. {made}", ""]
    for original in entry.originals.values():
        lines.append(f"- `{original.path}`{f', by {original.author}' if original.author else ''}")
    return "\n".join(lines) + "\n"


def folder_of(name: str, root: str | os.PathLike) -> Path:
    """The folder of a registered dataset.

    Raises:
        UserError: it is unknown, not registered, or no longer there; the message says what to do.
    """
    entry, known = entry_of(name), registry(root)
    if name not in known or not Path(known[name]["path"]).is_dir():
        raise UserError(
            f"{name}: no copy is registered in {Path(root) / 'registry.json'}. Get it from its source "
            f"({entry.source}), then run `llicm data add {name} FOLDER`."
        )
    return Path(known[name]["path"])


def split(train: str, test: str, out: str | os.PathLike, root: str | os.PathLike) -> dict[str, int]:
    """Lay registered sets of clean photos side by side, ``out/train`` and ``out/test``, as a study reads them.

    The pictures are hard links where the file system allows, else copies. ``SOURCES.txt`` beside them names the sets,
    and ``ATTRIBUTION.md`` the authors of the training photos where a licence wants it.

    Args:
        train: a name, or several joined by commas. test: a name. root: folder of the registry.

    Returns:
        The number of photos in each part.

    Raises:
        UserError: the sets share pictures, one is not registered or not of clean photos, two photos have one name, or
            `out` exists.
    """
    out = Path(out)
    parts = {"train": train.split(","), "test": [test]}
    for name in parts["train"]:
        if shared := overlap(name, test):
            raise UserError(f"{name} cannot train what {test} is to test: {shared}. Choose another training set.")
    for name in (*parts["train"], test):
        if entry_of(name).kind != "photos":
            raise UserError(f"{name}: a set of pairs; name its folder as `paired` in params.yaml instead.")
    sources = {part: [file for name in names for file in _photos(name, root)] for part, names in parts.items()}
    if out.exists():
        raise UserError(f"{out}: exists already; remove it or choose another folder.")
    with atomic_folder(out) as new:
        for part, found in sources.items():
            (new / part).mkdir(parents=True)
            for path, name in found:
                if (new / part / name).exists():
                    raise UserError(f"{path}: another photo of {', '.join(parts[part])} is also called {name}.")
                _link(path, new / part / name)
        sets = [(part, catalogue()[name]) for part, names in parts.items() for name in names]
        lines = [f"{part}: {entry.title} ({entry.source})" for part, entry in sets]
        (new / "SOURCES.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        if credits := "\n".join(filter(None, map(attributions, parts["train"]))):
            (new / "ATTRIBUTION.md").write_text(f"# Photos that were trained on\n\n{credits}", encoding="utf-8")
    return {part: len(found) for part, found in sources.items()}


def _photos(name: str, root: str | os.PathLike) -> list[tuple[Path, str]]:
    """The files of a registered set of photos, and what to call them. Originals lie deep in a clone."""
    folder, entry = folder_of(name, root), entry_of(name)
    if _is_clone(entry, folder):
        return [(folder / o.path, Path(file).stem + Path(o.path).suffix) for file, o in entry.originals.items()]
    return [(path, path.name) for path in list_images(folder)]


def _is_clone(entry: DataSet, folder: Path) -> bool:
    return any((folder / original.path).exists() for original in entry.originals.values())


def known_sets(paths: Iterable[Path]) -> set[str]:
    """The datasets of the catalogue that any of these files belongs to, by checksum."""
    owners = {digest: name for name, entry in catalogue().items() for digest in entry.sha256.values()}
    for name, entry in catalogue().items():
        owners |= {original.sha256[:_DIGITS]: name for original in entry.originals.values()}
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


def _verified_original(entry: DataSet, clone: Path, original: Original) -> bytes:
    path = clone / original.path
    if not path.is_file():
        raise UserError(f"{path}: no such original; get {entry.title} from {entry.source}.")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != original.sha256:
        raise UserError(f"{path}: this file differs from the set's original (by its checksum); get {entry.source}.")
    return data


def _verify_originals(entry: DataSet, clone: Path) -> tuple[int, str]:
    for original in entry.originals.values():
        _verified_original(entry, clone, original)
    return len(entry.originals), _of_all({file: original.sha256 for file, original in entry.originals.items()})


def _verify_real(entry: DataSet, folder: Path) -> tuple[int, str]:
    for kind in ("GT", "LQ"):
        if not (folder / kind).is_dir():
            raise UserError(f"{folder / kind}: no such folder; lay {entry.title} out as {{GT,LQ}}.")
    sums = {f"{kind}/{path.name}": _digest(path) for kind in ("GT", "LQ") for path in list_images(folder / kind)}
    for file in sorted(sums.keys() | entry.sha256.keys()):
        if sums.get(file) != entry.sha256.get(file):
            what = "missing" if file not in sums else "none of the set's, or differs (by its checksum)"
            raise UserError(f"{folder / file}: {what}; get {entry.title} from {entry.source}.")
    return entry.val, _of_all(sums)


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


_VERIFY = {"photos": _verify_photos, "originals": _verify_originals, "pairs": _verify_pairs, "real": _verify_real}


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
