# SPDX-License-Identifier: Apache-2.0
"""What a study needs that no repository holds, released weights and public sets: one table, before anything runs."""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

from llicm.data.catalogue import catalogue, entry_of
from llicm.errors import UserError
from llicm.images import list_images
from llicm.parameters import Parameters
from llicm.vlm.pretrained import DACLIP_REPOSITORY, places_of

# Released files: size and SHA-256 as their host gives them; of the first, that of a copy elsewhere.
RELEASED = {
    "daclip_ViT-B-32.pt": ("1.74 GB", "ea948854d4293f2d222ead043fd5b4090fba984c8e2db8656934d768dc4f8230"),
    "universal-ir.pth": ("196 MB", "87575b2559ca122d27b56fe7f24fe63d8099795cdd5b16af2bab41ecc2bb02a8"),
    "wild-daclip_ViT-L-14.pt": ("5.66 GB", "35db86f3cf74a42360b7346a124d3484605d24bcbdc33057e74449eab65fe246"),
}
UNKNOWN = "not known here"
MISSING = "MISSING"


class Need(NamedTuple):
    """A row of the table: what, whether it is there, where it must be, its size and checksum, where it is from."""

    what: str
    state: str
    where: str
    size: str
    checksum: str
    source: str


def check_needs(parameters: Parameters) -> None:
    """Show what the params.yaml of the current folder needs and whether it is there; nothing to show, nothing said.

    Other bytes than the released ones are shown and not refused: a file may have been converted. What reads it checks
    every name and shape.

    Raises:
        UserError: something is missing, or a set is not in the catalogue.
    """
    needs = [*_weights(parameters), *_sets(parameters)]
    if not needs:
        return
    photos = Path(parameters.photos)
    found = MISSING if not photos.is_dir() else "there"
    needs.append(Need("clean photos", found, str(photos), "any", "in dvc.lock", "yours, or `llicm data split`"))
    print("What this study needs beside the repository:\n", file=sys.stderr)
    print(tabulate(needs, headers=[*Need._fields], disable_numparse=True), end="\n\n", file=sys.stderr)
    if missing := [need for need in needs if need.state.startswith(MISSING)]:
        raise UserError(
            f"{len(missing)} of the {len(needs)} things that this study needs are missing: get each from its source, "
            "put it where the table says, and run the same command again; nothing was run"
        )


def _weights(parameters: Parameters) -> Iterator[Need]:
    if parameters.vlm.name != "mini":
        places, source = places_of(parameters.vlm.name, parameters.vlm.pretrained or "", parameters.vlm.folder or ".")
        yield _file(next((path for path in places if path.is_file()), places[-1]), source)
    parts = [part for model in parameters.models.values() for part in (model.codec, model.restorer) if part]
    named = [getattr(part, "weights", None) or [] for part in parts]
    files = dict.fromkeys(file for files in named for file in ([files] if isinstance(files, str) else files))
    for file in files:
        if file != "zoo":  # which compressai fetches
            yield _file(Path(file), DACLIP_REPOSITORY if Path(file).name in RELEASED else "")


def _file(path: Path, repository: str) -> Need:
    size, checksum = RELEASED.get(path.name, (UNKNOWN, ""))
    state = MISSING
    if path.is_file():
        with path.open("rb") as file:
            other = checksum and hashlib.file_digest(file, "sha256").hexdigest() != checksum
        state = "there, not the released bytes" if other else "there"
    source = f"Hugging Face {repository}" if repository else "as params.yaml names it"
    shown = f"sha256 {checksum[:16]}…" if checksum else UNKNOWN
    return Need(path.name, state, str(path.parent), size, shown, source)


def _sets(parameters: Parameters) -> Iterator[Need]:
    for name in parameters.sets:
        entry = entry_of(name)
        if entry.kind != "pairs" or parameters.paired is None:
            pairs = ", ".join(name for name, entry in catalogue().items() if entry.kind == "pairs")
            raise UserError(f"params.yaml: sets names {name}; it takes sets of pairs ({pairs}), below `paired`")
        root = Path(parameters.paired)
        folders = [root / split / entry.degradation / kind for split in ("train", "val") for kind in ("GT", "LQ")]
        counts = [len(list_images(folder)) if folder.is_dir() else 0 for folder in folders]
        there = min(counts[:2]), min(counts[2:])
        state = "there" if there == (entry.train, entry.val) else f"there, {there[0]} + {there[1]}"
        if not all(counts):
            state = f"{MISSING}: {folders[counts.index(0)].relative_to(root)}"
        where = f"{root}/{{train,val}}/{entry.degradation}/{{GT,LQ}}"
        size = f"{entry.train} + {entry.val} pairs, {entry.size}"
        yield Need(entry.title, state, where, size, UNKNOWN, entry.source)
