# SPDX-License-Identifier: Apache-2.0
"""Own photos on the command line: which files to read, what to call the results, and how to write them.

A photo is (3, H, W) RGB float32 in [0, 1] here too. A path of None stands for a pipe: standard input or output.
`llicm.images` is imported where it is needed, because it loads torch, and `llicm inspect` does without.
"""

import functools
import io
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from llicm.errors import UserError
from llicm.files import place, printable, write_atomically

if TYPE_CHECKING:
    from torch import Tensor

STREAM_SUFFIX = ".llicm"
# Suffix -> Pillow's name of a format that keeps the 8-bit pixels exactly, and its options.
EXACT: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".webp": ("WEBP", {"lossless": True}),
    ".tif": ("TIFF", {"compression": "tiff_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_deflate"}),
}
# Suffix -> codec of `llicm.codec.conventional`, in the form that every viewer opens, and its usual quality, 0 to 100.
# WebP is exact, unless a quality or a size is asked for.
LOSSY: dict[str, tuple[str, int]] = {
    ".jpg": ("jpeg444", 95), ".jpeg": ("jpeg444", 95), ".webp": ("webp", 95),
    ".avif": ("avif420", 85), ".heic": ("heic420", 75), ".jxl": ("jxl", 90),
}  # fmt: skip
FORMATS = tuple(dict.fromkeys([*EXACT, *LOSSY]))
_FILES = {STREAM_SUFFIX, *FORMATS}  # suffixes that no folder to be made has


@dataclass(frozen=True)
class Job:
    """One file to make: from `source` (None: standard input) to `target` (None: standard output)."""

    source: Path | None
    target: Path | None

    @property
    def name(self) -> str:
        """What messages call the input."""
        return name_of(self.source)


def name_of(source: Path | None) -> str:
    """A path as text; "standard input" for None."""
    return "standard input" if source is None else printable(source)


def expand(inputs: Iterable[str], streams: bool = False) -> list[Path | None]:
    """Arguments to files: a folder stands for the files directly in it, `-` for standard input (None).

    Args:
        streams: take the `.llicm` files of a folder, not its images.

    Raises:
        UserError: a folder has no such file, a file is named twice, or `-` is not alone.
    """
    found: list[Path | None] = []
    for text in inputs:
        path = Path(text)
        if text == "-":
            found.append(None)
        elif not path.is_dir():
            found.append(path)
        elif streams:
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() == STREAM_SUFFIX and p.is_file())
            inside = [p for p in inside if not p.name.startswith(".")]
            if not inside:
                raise UserError(f"{path}: no {STREAM_SUFFIX} files in this folder; compress some into it first.")
            found += inside
        else:
            from llicm.images import list_images

            found += list_images(path)
    if None in found and len(found) > 1:
        raise UserError("-: standard input holds one image and cannot be mixed with files; name the files alone.")
    places: set[Path] = set()
    for path in (path for path in found if path is not None):
        if place(path) in places:
            raise UserError(f"{name_of(path)}: named twice; name it once.")
        places.add(place(path))
    return found


def plan(inputs: Sequence[str], output: str | None, suffix: str, label: str = "", streams: bool = False) -> list[Job]:
    """Which file is made of which.

    Without `output`, results lie beside their inputs. One file goes to the file or existing folder `output`; several,
    or those of a folder, into the folder `output`, which is made when it is needed. Input from a pipe goes to one by
    default, and `output` can be `-`.

    A named pipe, such as `<(...)` of a shell, is read like standard input, but has no name to go by: it needs `output`.

    Args:
        suffix: of the results, e.g. ".png"; a file that is named by `output` keeps its own.
        label: put before the suffix of results beside their inputs, e.g. ".restored"; for images made of images.
        streams: the inputs are `.llicm` files.

    Raises:
        UserError: see `expand`; two results would have one name, a result would replace an input, several files were
            to become one, or images would be put beside those of a whole folder.
    """
    sources = expand(inputs, streams)
    folders = any(Path(text).is_dir() for text in inputs)
    several = len(sources) > 1 or folders
    if label and output is None and folders:
        raise UserError(
            f"{label[1:]} copies beside their photos would be taken for photos next time; give a folder to -o."
        )
    folder = None
    if output is not None and output != "-":
        out = Path(output)
        if several or out.is_dir() or output.endswith("/"):
            if (out.exists() and not out.is_dir()) or (not out.exists() and out.suffix.lower() in _FILES):
                raise UserError(f"{out}: {len(sources)} files cannot become one; give a folder to -o.")
            folder = out
    if output == "-" and several:
        raise UserError(f"-: {len(sources)} files cannot all go to standard output; give a folder to -o.")
    if sources == [None] and folder is not None:
        raise UserError(f"{folder}: a folder, but what comes from standard input has no name; give a file to -o.")
    jobs: list[Job] = []
    takers: dict[Path, str] = {}
    known = {file for path in sources if path is not None for file in (path.resolve(), place(path))}
    for source in sources:
        target = None  # a pipe
        if source is not None and is_pipe(source) and (folder is not None or output is None):
            raise UserError(f"{name_of(source)}: a pipe has no name to call the result by; give a file to -o.")
        if folder is not None and source is not None:
            target = folder / f"{source.stem}{suffix}"
        elif output is not None and output != "-":
            target = Path(output)
        elif output is None and source is not None:
            target = source.with_name(f"{source.stem}{label}{suffix}")
        if target is not None:
            if {target.resolve(), place(target)} & known:
                raise UserError(
                    f"{name_of(target)}: the result would replace this input; give another name or folder to -o."
                )
            if (there := place(target)) in takers:
                both = f"both {takers[there]} and {name_of(source)}"
                raise UserError(f"{name_of(target)}: {both} would be written there; rename one, or run them apart.")
            takers[there] = name_of(source)
        jobs.append(Job(source, target))
    return jobs


def is_pipe(path: Path) -> bool:
    """Whether it can be read only once: a named pipe, or what a shell makes of `<(...)`."""
    return path.is_fifo() or path.is_char_device() or path.is_socket()


def format_of(target: Path | None, wanted: str | None) -> str:
    """The key of `FORMATS` for an image to write: the suffix of `target`, else `wanted` ("jpg", ...), else ".png".

    Raises:
        UserError: the suffix is not among `FORMATS`, or contradicts `wanted`.
    """
    asked = f".{wanted}" if wanted else None
    own = target.suffix.lower() if target else ""
    if not own:  # a pipe, or a name without a suffix
        return asked or ".png"
    if own not in FORMATS:
        raise UserError(f"{target}: images are written as {', '.join(FORMATS)}; give one of these suffixes.")
    if asked and EXACT.get(own, LOSSY.get(own)) != EXACT.get(asked, LOSSY.get(asked)):
        raise UserError(f"{target}: its suffix says {own[1:]}, --format says {wanted}; leave one of them out.")
    return own


def check_target(job: Job, force: bool) -> None:
    """Whether the result may be written, asked before the work is done.

    Raises:
        UserError: the file exists and is not to be replaced (`force`), is none that can be, or standard output is a
            terminal.
    """
    if job.target is None:
        if sys.__stdout__ is None:
            raise UserError("standard output is closed; give -o FILE.")
        if sys.stdout.isatty():
            raise UserError("standard output is a terminal, which cannot show this file; redirect it, or give -o FILE.")
        return
    if job.target.exists():
        if not job.target.is_file():
            raise UserError(f"{job.target}: not a file that can be replaced; give another name to -o (- for a pipe).")
        if not force:
            raise UserError(f"{job.target}: exists already; add --force to replace it.")


def read_bytes(source: Path | None) -> bytes:
    """The content of a file, or all of standard input.

    Raises:
        UserError: it cannot be read.
    """
    if source is None and sys.__stdin__ is None:
        raise UserError("standard input is closed; name a file.")
    try:
        return sys.stdin.buffer.read() if source is None else source.read_bytes()
    except OSError as error:
        raise UserError(f"{name_of(source)}: cannot be read ({error.strerror or error}); check the path.") from None


def read_photo(source: Path | None) -> "Tensor":
    """A photo (3, H, W) from a file, a pipe or standard input; see `llicm.images.read_image`."""
    from llicm.images import read_image

    once = source is None or is_pipe(source)
    return read_image(read_bytes(source), name_of(source)) if once else read_image(cast(Path, source))


def encode_photo(image: "Tensor", suffix: str, quality: int | None = None, size: float | None = None) -> bytes:
    """A photo (3, H, W) in [0, 1], rounded to 8 bits, as the bytes of an image file, grey if the photo is.

    Args:
        suffix: one of `FORMATS`. quality: 0 to 100, of the formats in `LOSSY` only. size: take the highest quality that
            needs no more bytes.

    Raises:
        UserError: the format cannot hold an image of this size (WebP ends at 16383 pixels a side), has no quality, or
            not so small a file, or its library is missing.
    """
    from PIL import Image

    from llicm.codec.conventional import find_codec
    from llicm.codec.rate import compress_to
    from llicm.images import to_pixels

    pixels = to_pixels(image)
    if (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0].copy()
    try:
        if suffix not in LOSSY or (suffix in EXACT and quality is None and size is None):
            kind, options = EXACT[suffix]
            if quality is not None:
                raise UserError(f"{kind} keeps every pixel and has no quality; name a file such as .jpg or .avif.")
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, format=kind, **options)
            if size is not None and buffer.tell() > size:
                raise UserError(
                    f"{kind} keeps every pixel, in {buffer.tell()} bytes; {int(size)} are too few: name a file such as "
                    ".jpg or .avif."
                )
            return buffer.getvalue()
        name, usual = LOSSY[suffix]
        kind, codec = suffix[1:].upper(), find_codec(name)
        if missing := codec.missing():
            raise UserError(missing)
        low, high = codec.quality_range
        encode = functools.cache(lambda own: codec.write(pixels, own))
        if size is not None:
            return compress_to(lambda level: encode(int(level)), size, low, high)[0]
        return encode(low + round((high - low) * (usual if quality is None else quality) / 100))
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{kind} cannot hold this image ({error}); choose PNG.") from None


def write_file(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all; its folder is made.

    Raises:
        UserError: the disk is full or the place is not writable; an older file is then still there, untouched.
    """
    try:
        write_atomically(path, data)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); nothing was changed.") from None


def references(sources: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """For each photo its reference in a folder: the file of the same name, or else the only one of the same stem.

    Raises:
        UserError: the folder is missing or has no image, or a photo has no reference or several.
    """
    from llicm.images import list_images

    every = list_images(folder)
    found = {}
    for source in sources:
        fitting = [p for p in every if p.name == source.name] or [p for p in every if p.stem == source.stem]
        if len(fitting) != 1:
            count = "several references" if fitting else "no reference"
            raise UserError(f"{source}: {count} named {source.stem}.* in {folder}; there must be one.")
        found[source] = fitting[0]
    return found
