# SPDX-License-Identifier: Apache-2.0
"""The command `llicm`. What a user can do wrong ends in one sentence and an exit code, not in a traceback.

Results and data go to standard output, everything else to standard error. Exit codes: 0 all done; 1 something failed,
as told in one sentence each; 2 wrong arguments; 130 interrupted.

The parts are imported where they are needed: `llicm --help` should not wait for torch.
"""

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llicm import __version__
from llicm.errors import UserError

if TYPE_CHECKING:
    from llicm.framework import LLICM
    from llicm.cli.files import Job

__all__ = ["TASKS", "main"]

# The words of `llicm.degradations.DEGRADATIONS`, in their order, which cannot be asked without loading torch.
TASKS = (
    "motion-blurry", "hazy", "jpeg-compressed", "low-light", "noisy", "raindrop", "rainy", "shadowed", "snowy",
    "uncompleted",
)  # fmt: skip
DEFAULT_LEVEL = 2
CLOSE = 0.98  # of the wanted size: what is below is worth a note


# --- types of arguments ---


class _Task(click.ParamType):
    """Degradations in words, in the order in which the vision-language model knows them: "low-light, noisy"."""

    name = "words"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        words = {word.strip().lower() for word in value.split(",")}
        unknown = sorted(words - set(TASKS))
        if unknown:
            self.fail(f"unknown degradation {unknown[0]!r}; known are {', '.join(TASKS)}.", param, ctx)
        return ", ".join(sorted(words, key=TASKS.index))


class _List(click.ParamType):
    """Values separated by commas, each of them once: a tuple."""

    def __init__(self, name: str, kind: type):
        self.name, self.kind = name, kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple:
        try:
            values = tuple(self.kind(part.strip()) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of {self.name} separated by commas.", param, ctx)
        if len(set(values)) != len(values) or "" in values:
            self.fail(f"{value!r} names something twice, or nothing between two commas.", param, ctx)
        return values


_PATH = click.Path(path_type=Path)
_inputs = click.argument("inputs", metavar="IN...", nargs=-1, required=True)
_output = click.option(
    "-o", "--output", metavar="OUT", help="File to write, or folder if there are several; - for standard output."
)
_force = click.option("--force", is_flag=True, help="Replace files that exist.")
_model = click.option(
    "--model", type=_PATH, envvar="LLICM_MODEL", show_envvar=True,
    help="Weights to use, one .safetensors file; default: those of the repository.",
)  # fmt: skip
_format = click.option(
    "--format", "wanted", type=click.Choice(["png", "jpg", "webp", "tif"]),
    help="Kind of image to write where OUT does not tell; default: png. PNG, WebP and TIFF keep the result exactly, "
    "JPEG has quality 95.",
)  # fmt: skip
_task = click.option(
    "--task", type=_Task(),
    help="Name what is wrong with the photo instead of having it detected: one, or two joined by a comma, of "
    + ", ".join(TASKS) + ".",
)  # fmt: skip


# --- output and the loop over files ---


class _Stop(Exception):
    """What concerns all files and not only the one at hand: the others need not be tried."""


class _Gone(UserError):
    """Standard output takes no more."""


def _out(data: str | bytes) -> None:
    """Write to standard output, at once.

    Raises:
        _Gone: its reader went away, or the disk is full.
    """
    try:
        if isinstance(data, bytes):
            sys.stdout.buffer.write(data)
        else:
            click.echo(data)
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer would fail a second time, with a traceback, when Python ends.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise _Gone(f"standard output: {error.strerror or error}; not everything was written.") from None


def _clear() -> None:
    """Make room for a line where there may be a progress bar, which then moves down."""
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", nl=False, err=True)


def _error(message: str) -> None:
    _clear()
    click.echo(f"error: {message}".replace("\n", " "), err=True)


def _note(message: str) -> None:
    _clear()
    click.echo(f"note: {message}", err=True)


def _each(items: Sequence, work: Callable[[Any], Any], names: Callable[[Any], list[str]], failed: list) -> Iterator:
    """(item, work(item)) for each item; those that fail are reported and put into `failed`, and the others go on.

    With several items and a terminal there is a progress bar.

    Args:
        names: the item's names; a report that has none of them gets the first.
    """
    bar = None
    if len(items) > 1 and sys.stderr.isatty():
        bar = click.progressbar(length=len(items), file=sys.stderr, show_pos=True)
    with bar or contextlib.nullcontext():
        for item in items:
            try:
                result, message = work(item), None
            except UserError as error:
                message = str(error)
            except (MemoryError, RuntimeError) as error:  # torch has no class of its own for the CPU's memory
                if isinstance(error, RuntimeError) and "memory" not in str(error):
                    raise
                message = "not enough memory for an image of this size; make it smaller."
            if message is None:
                _clear()
                yield item, result
            else:
                failed.append(item)
                named = names(item)
                _error(message if any(name in message for name in named) else f"{named[0]}: {message}")
            if bar:
                bar.update(1)


def _convert(jobs: Sequence["Job"], force: bool, prepare: Callable[[], Callable[["Job"], tuple[bytes, str]]]) -> None:
    """Make each job's file, and a line about it on standard output, or on standard error if the file goes there.

    Args:
        prepare: called once, if there is anything to do, for the function that gives the bytes and the line of a job.

    Raises:
        click.exceptions.Exit: with 1, if any failed.
    """
    from llicm.cli.files import check_target, write_file

    failed: list[Job] = []
    todo = []
    for job in jobs:
        try:
            check_target(job, force)
            todo.append(job)
        except UserError as error:
            failed.append(job)
            _error(str(error))
    if todo:
        work = prepare()

        def whole(job: "Job") -> tuple[bytes, str]:
            data, line = work(job)
            if job.target is not None:
                write_file(job.target, data)
            return data, line

        for job, (data, line) in _each(todo, whole, lambda job: [job.name, str(job.target)], failed):
            if job.target is None:
                _out(data)
                click.echo(line, err=True)
            else:
                _out(f"{job.name} -> {job.target}  {line}")
    if failed:
        raise click.exceptions.Exit(1)


def _size(image: Any) -> str:
    return f"{image.shape[2]}x{image.shape[1]}"


def _rate(size: int, pixels: int, level: float) -> str:
    return f"{size} bytes  {8 * size / pixels:.3f} bpp  level {level:.4g}"


# --- commands ---


class _InOrder(click.Group):
    """Lists its commands as they are defined, which is the order in which a newcomer meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="llicm %(version)s")
def _llicm() -> None:
    """Compress photos that are noisy, hazy, dark or rainy, and enhance them when they are decompressed.

    \b
    Examples:
      llicm compress photo.jpg             writes photo.llicm
      llicm decompress photo.llicm         writes photo.png, enhanced
      llicm decompress photo.llicm --as-captured -o same.png
      llicm COMMAND --help                 options and more examples

    Photos are PNG, JPEG, WebP, TIFF, BMP, GIF, PPM, JPEG 2000 or AVIF files. Their orientation and colour profile are
    applied, transparent parts become white. `-` in place of a file is standard input or output.
    """


@_llicm.command()
@_inputs
@_output
@click.option(
    "--level", type=click.FloatRange(0), metavar="LEVEL",
    help=f"Quality, from 0 (smallest files) to 4 (best pictures), also in between; default: {DEFAULT_LEVEL}.",
)  # fmt: skip
@click.option(
    "--bpp", type=click.FloatRange(0, min_open=True), metavar="BPP",
    help="Take as much quality as fits into so many bits per pixel, e.g. 0.25.",
)  # fmt: skip
@click.option(
    "--bytes", "size", type=click.IntRange(1), metavar="BYTES",
    help="Take as much quality as fits into so many bytes a file, e.g. 20000.",
)  # fmt: skip
@_model
@_force
def compress(
    inputs: tuple[str, ...], output: str | None, level: float | None, bpp: float | None, size: int | None,
    model: Path | None, force: bool,
) -> None:  # fmt: skip
    """Compress photos to .llicm files.

    IN is an image, a folder of images, or - for standard input. By default photo.jpg becomes photo.llicm beside it.

    \b
    Examples:
      llicm compress photo.jpg
      llicm compress photos/ -o small/ --bpp 0.25
      llicm compress photo.png -o photo.llicm --bytes 20000
      cat photo.jpg | llicm compress - --level 3.5 > photo.llicm
    """
    if sum(value is not None for value in (level, bpp, size)) > 1:
        raise click.UsageError("--level, --bpp and --bytes exclude each other: give one of them.")
    from llicm.cli.files import FORMATS, plan, read_photo

    jobs = plan(inputs, output, ".llicm")
    for job in jobs:
        if job.target and job.target.suffix.lower() in FORMATS:
            raise UserError(f"{job.target}: a compressed file is no {job.target.suffix[1:]}; name it .llicm.")

    def prepare() -> Callable[["Job"], tuple[bytes, str]]:
        system = _load(model, "codec")
        top = _check_levels(system, () if level is None else (level,))
        from llicm.codec.bitstream import unpack
        from llicm.codec.rate import compress_to

        def work(job: "Job") -> tuple[bytes, str]:
            x = read_photo(job.source)
            pixels = x.shape[1] * x.shape[2]
            encode = functools.partial(_encode, system, x)
            if bpp is None and size is None:
                data = encode(min(DEFAULT_LEVEL, top) if level is None else level)
            else:
                most = size if bpp is None else bpp * pixels / 8
                data, reached = compress_to(encode, most, 0, top)
                if len(data) < CLOSE * most:
                    why = "the highest level needs no more" if reached >= top else "no level comes closer"
                    _note(f"{job.name}: {len(data)} bytes, less than the {int(most)} allowed: {why}.")
            return data, f"{_size(x)}  {_rate(len(data), pixels, unpack(data).level)}"

        return work

    _convert(jobs, force, prepare)


@_llicm.command()
@_inputs
@_output
@click.option("--as-captured", is_flag=True, help="The photo as it was compressed, without enhancing it.")
@_task
@_format
@_model
@_force
def decompress(
    inputs: tuple[str, ...], output: str | None, as_captured: bool, task: str | None, wanted: str | None,
    model: Path | None, force: bool,
) -> None:  # fmt: skip
    """Decompress .llicm files to enhanced photos.

    IN is a .llicm file, a folder of them, or - for standard input. By default photo.llicm becomes photo.png beside it.
    What is wrong with the photo is detected, unless --task names it.

    \b
    Examples:
      llicm decompress photo.llicm
      llicm decompress photo.llicm -o photo.jpg --task "low-light, noisy"
      llicm decompress small/ -o photos/ --as-captured
      cat photo.llicm | llicm decompress - > photo.png
    """
    if as_captured and task:
        raise click.UsageError("--task tells how to enhance, --as-captured not to: give one of them.")
    from llicm.codec.bitstream import unpack
    from llicm.cli.files import encode_photo, format_of, plan, read_bytes

    jobs = plan(inputs, output, f".{wanted or 'png'}", streams=True)
    formats = {job: format_of(job.target, wanted) for job in jobs}

    parts = ("codec", *([] if as_captured else ["restorer"]), *(["conditioner"] if task else []))

    def prepare() -> Callable[["Job"], tuple[bytes, str]]:
        @functools.cache
        def loaded() -> "LLICM":
            try:
                return _load(model, *parts)
            except UserError as error:
                raise _Stop(str(error)) from None

        def work(job: "Job") -> tuple[bytes, str]:
            data = read_bytes(job.source)
            unpack(data)  # a damaged file need not wait for the model
            system = loaded()
            image = system.codec.decode(data)[0] if as_captured else system.decompress(data, task)[1]
            return encode_photo(image, formats[job]), _size(image)

        return work

    _convert(jobs, force, prepare)


@_llicm.command()
@_inputs
@_output
@_task
@_format
@_model
@_force
def restore(
    inputs: tuple[str, ...], output: str | None, task: str | None, wanted: str | None, model: Path | None, force: bool
) -> None:
    """Enhance photos without compressing them.

    IN is an image, a folder of images, or - for standard input. By default photo.jpg becomes photo.restored.png beside
    it. What is wrong with the photo is detected, unless --task names it.

    \b
    Examples:
      llicm restore photo.jpg
      llicm restore photo.jpg -o better.png --task rainy
      llicm restore photos/ -o better/ --format webp
    """
    from llicm.cli.files import encode_photo, format_of, plan, read_photo

    jobs = plan(inputs, output, f".{wanted or 'png'}", ".restored")
    formats = {job: format_of(job.target, wanted) for job in jobs}

    def prepare() -> Callable[["Job"], tuple[bytes, str]]:
        system = _load(model, "restorer", *(["conditioner"] if task else []))
        import torch

        @torch.no_grad()
        def work(job: "Job") -> tuple[bytes, str]:
            x = read_photo(job.source)
            image = system.enhance(x[None], None, [task])[0].clamp(0, 1)
            return encode_photo(image, formats[job]), _size(image)

        return work

    _convert(jobs, force, prepare)


@_llicm.command()
@_inputs
@_output
@click.option(
    "--task", type=_Task(), required=True, help="What to do to the photo, one or several of: " + ", ".join(TASKS) + "."
)
@click.option("--severity", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="0 mild, 1 severe.")
@click.option(
    "--seed", type=int, default=0, show_default=True,
    help="With the photo's name it decides where drops and noise fall: equal seeds give equal pictures.",
)  # fmt: skip
@_format
@_force
def degrade(
    inputs: tuple[str, ...], output: str | None, task: str, severity: float, seed: int, wanted: str | None, force: bool
) -> None:
    """Make degraded copies of good photos, to try the other commands with.

    IN is an image, a folder of images, or - for standard input. By default photo.jpg becomes photo.noisy.png beside it.

    \b
    Examples:
      llicm degrade photo.jpg --task noisy
      llicm degrade photo.jpg -o night.png --task "low-light, noisy" --severity 0.8
      llicm degrade photos/ -o rain/ --task rainy --seed 7
    """
    from llicm.cli.files import encode_photo, format_of, plan, read_photo

    words = task.split(", ")
    jobs = plan(inputs, output, f".{wanted or 'png'}", f".{'+'.join(words)}")
    formats = {job: format_of(job.target, wanted) for job in jobs}

    def prepare() -> Callable[["Job"], tuple[bytes, str]]:
        from torch import Generator

        # The study makes its test pairs with this: equal seeds, equal pictures.
        from llicm.data.pairs import stable_seed
        from llicm.degradations import IN_ORDER
        from llicm.degradations import degrade as apply

        def work(job: "Job") -> tuple[bytes, str]:
            x = read_photo(job.source)[None]
            generator = Generator().manual_seed(stable_seed(seed, task, job.source.stem if job.source else ""))
            for word in IN_ORDER:
                if word in words:
                    x = apply(word, x, severity, generator)
            return encode_photo(x[0], formats[job]), f"{_size(x[0])}  {task}  severity {severity:g}"

        return work

    _convert(jobs, force, prepare)


@_llicm.command()
@click.argument("inputs", metavar="FILE...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with one object a file.")
def inspect(inputs: tuple[str, ...], as_json: bool) -> None:
    """Tell what .llicm files say of themselves.

    FILE is a .llicm file, a folder of them, or - for standard input. Files are checked for damage, but not decoded.

    \b
    Examples:
      llicm inspect photo.llicm
      llicm inspect small/ --json
    """
    from llicm.codec.bitstream import VERSION, unpack
    from llicm.cli.files import expand, name_of, read_bytes

    def work(source: Path | None) -> dict[str, Any]:
        data = read_bytes(source)
        stream = unpack(data)
        return {
            "file": name_of(source),
            "version": VERSION,  # the only one that `unpack` lets pass
            "model": stream.model.hex(),
            "width": stream.width,
            "height": stream.height,
            "level": stream.level,
            "bytes": len(data),
            "bpp": 8 * len(data) / (stream.width * stream.height),
            "payload": len(stream.payload),
        }

    failed: list[Path | None] = []
    found = []
    for _, facts in _each(expand(inputs, streams=True), work, lambda source: [name_of(source)], failed):
        found.append(facts)
        if not as_json:
            _out(
                f"{facts['file']}\n"
                f"  size     {facts['width']}x{facts['height']} pixels\n"
                f"  file     {_rate(facts['bytes'], facts['width'] * facts['height'], facts['level'])}\n"
                f"  payload  {facts['payload']} bytes\n"
                f"  model    {facts['model']}\n"
                f"  version  {facts['version']}"
            )
    if as_json:
        _out(json.dumps(found, indent=2))
    if failed:
        raise click.exceptions.Exit(1)


@_llicm.command()
@click.argument("inputs", metavar="PATHS...", nargs=-1, required=True)
@click.option(
    "--reference", type=_PATH, metavar="FOLDER",
    help="Folder of ideal photos, with the names of those that are measured.",
)  # fmt: skip
@click.option("--levels", type=_List("numbers", float), metavar="L,L,...", help="Levels; default: 0,1,2,3,4.")
@click.option(
    "--metrics", type=_List("names", str), metavar="NAME,...", default="psnr,ms_ssim", show_default=True,
    help="Metrics: ssim, ms_ssim, and those of pyiqa.",
)  # fmt: skip
@_task
@click.option("-o", "--output", metavar="CSV", help="File for the records; default, and -: standard output.")
@_model
@_force
def evaluate(
    inputs: tuple[str, ...], reference: Path | None, levels: tuple[float, ...] | None, metrics: tuple[str, ...],
    task: str | None, output: str | None, model: Path | None, force: bool,
) -> None:  # fmt: skip
    """Measure rate and quality on own photos.

    PATHS are images and folders of images. Each is compressed at every level, decompressed, and measured as captured
    (method llicm-as-captured) and enhanced (llicm). The records are a CSV table with a row for each value, as the study
    writes them; with -o, their means are printed.

    Without --reference there is no ideal photo: metrics that need one compare what was decompressed, as captured,
    with the photo itself; those that need none are of all pictures. With --reference, everything is compared with the
    ideal photos, also the photos themselves (method captured).

    \b
    Examples:
      llicm evaluate photos/ -o records.csv
      llicm evaluate noisy/ --reference clean/ --metrics psnr,ssim -o records.csv
      llicm evaluate photo.jpg --levels 1,2.5
    """
    from llicm.cli.files import Job, check_target, expand, read_photo, references

    paths = expand(inputs)
    if None in paths:
        raise UserError("-: evaluate reads files and folders only; give a path.")
    names = [path.name for path in paths]
    for path in paths:
        if names.count(path.name) > 1:
            raise UserError(f"{path}: another image of this name is measured too; rename one, or evaluate them apart.")
    target = None if output in (None, "-") else Path(output)
    if target is not None:
        if target.is_dir():
            raise UserError(f"{target}: a folder; name a file, e.g. {target / 'records.csv'}.")
        check_target(Job(None, target), force)
    ideals = references(paths, reference) if reference is not None else {}
    from llicm.benchmark.metrics import make_metrics
    from llicm.images import quantize8

    measures = make_metrics(list(metrics))
    system = _load(model, "codec", "restorer", *(["conditioner"] if task else []))
    top = _check_levels(system, levels or ())

    def work(path: Path) -> list[dict[str, Any]]:
        x = read_photo(path)
        pixels = x.shape[1] * x.shape[2]
        ideal = read_photo(ideals[path]) if ideals else None
        if ideal is not None and ideal.shape != x.shape:
            raise UserError(f"{path}: {_size(x)} pixels, but its reference {ideals[path]} has {_size(ideal)}.")
        rows = []

        def measure(method: str, order: str, image: Any, against: Any, level: float | str, size: int | None) -> None:
            for metric in measures:
                if metric.needs_reference and against is None:
                    continue
                value = metric(quantize8(image)[None], None if against is None else quantize8(against)[None])
                rows.append({
                    "method": method, "family": "llicm" if size else "raw", "order": order, "task": task or "own",
                    "image": path.name, "level": level, "bytes": size or float("nan"),
                    "bpp": 8 * size / pixels if size else float("nan"), "metric": metric.name,
                    "value": float(value[0]),
                })  # fmt: skip

        measure("captured", "alone", x, ideal, "none", None)
        for level in levels or range(int(top) + 1):
            data = _encode(system, x, level)
            decoded, enhanced = system.decompress(data, task)
            measure("llicm-as-captured", "alone", decoded, x if ideal is None else ideal, level, len(data))
            measure("llicm", "after", enhanced, ideal, level, len(data))
        return rows

    failed: list[Path] = []
    rows = []
    for path, found in _each(paths, work, lambda path: [str(path)], failed):
        click.echo(f"{path}: measured", err=True)
        rows += found
    if rows:
        _write_records(rows, target)
    if failed:
        raise click.exceptions.Exit(1)


def _write_records(rows: list[dict[str, Any]], target: Path | None) -> None:
    """Records as CSV to a file, with their means on standard output, or to standard output."""
    from tempfile import TemporaryDirectory

    from llicm.benchmark.records import read_records, write_records

    try:
        if target is None:
            with TemporaryDirectory() as folder:
                write_records(rows, Path(folder) / "records.csv")
                text = (Path(folder) / "records.csv").read_bytes()
            _out(text)
            return
        write_records(rows, target)
    except OSError as error:
        name = "standard output" if target is None else target
        raise UserError(f"{name}: the records cannot be written ({error.strerror or error}).") from None
    records = read_records(target)
    means = records.groupby(["method", "level", "metric"], sort=False)[["bpp", "value"]].mean().unstack("metric")
    columns = list(means["value"].columns)
    _out(f"{'method':<18}{'level':>6}{'bpp':>8}" + "".join(f"{name:>12}" for name in columns))
    for (method, level), row in means.iterrows():
        bpp = row["bpp"].dropna()
        _out(
            f"{method:<18}{level:>6}{f'{bpp.iloc[0]:.3f}' if len(bpp) else '':>8}"
            + "".join(f"{'' if value != value else f'{value:.4f}':>12}" for value in row["value"])
        )


def _load(model: Path | None, *parts: str) -> "LLICM":
    """The model of this file (None: the repository's), which must hold these parts.

    Raises:
        UserError: it lacks one, or see `llicm.model.load_model`.
    """
    from llicm.model import load_model

    system = load_model(model)
    for part in parts:
        if getattr(system, part) is None:
            raise UserError(f"{model or 'the default model'}: has no {part}, which this needs; name another --model.")
    return system


def _check_levels(system: "LLICM", levels: Iterable[float]) -> float:
    """The highest level of the model.

    Raises:
        UserError: a level is beyond it, or below 0.
    """
    top = float(system.codec.levels - 1)
    for level in levels:
        if not 0 <= level <= top:
            raise UserError(f"level {level:g}: this model has levels 0 to {top:g}.")
    return top


def _encode(system: "LLICM", x: Any, level: float) -> bytes:
    """See `LLICM.compress`; what it cannot code is a UserError."""
    try:
        return system.compress(x, level)
    except ValueError as error:
        raise UserError(f"cannot be compressed: {error}.") from None


@_llicm.group(cls=_InOrder)
def vlm() -> None:
    """The vision-language model: convert released weights.

    \b
    Example:
      llicm vlm convert daclip_ViT-B-32.pt daclip.safetensors
    """


@vlm.command("convert")
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT.safetensors")
@click.option(
    "--model", default="ViT-B-32", show_default=True,
    help="What IN holds: a model of open_clip, or a JSON file with its configuration.",
)  # fmt: skip
def vlm_convert(source: str, target: str, model: str) -> None:
    """Convert a released DA-CLIP checkpoint to safetensors.

    Only the weights are taken, checked name by name, with the model's configuration. IN is a .pt, .pth, .bin or
    .safetensors file.

    \b
    Example:
      llicm vlm convert daclip_ViT-B-32.pt daclip.safetensors
    """
    from llicm.vlm.checkpoint import convert

    convert(source, target, model)


@_llicm.group(cls=_InOrder)
def restorer() -> None:
    """The restorers: convert released weights.

    \b
    Example:
      llicm restorer convert universal-ir.pth restorer.safetensors
    """


@restorer.command("convert")
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT.safetensors")
@click.option(
    "--steps", type=int, default=100, show_default=True, help="Calls of the network for an image, 1 to 100."
)  # fmt: skip
def restorer_convert(source: str, target: str, steps: int) -> None:
    """Convert the released weights of the universal diffusion restorer to safetensors.

    Only the weights are taken, checked name by name, with their configuration. IN is a .pth, .pt or .safetensors file.

    \b
    Example:
      llicm restorer convert universal-ir.pth restorer.safetensors --steps 50
    """
    from llicm.restore.released import convert_universal_ir

    convert_universal_ir(source, target, steps=steps)


@_llicm.group(cls=_InOrder)
def data() -> None:
    """Public datasets: see what is known, register a copy, lay a training and a test set side by side.

    \b
    Example:
      llicm data add kodak ~/photos/kodak
      llicm data split bsds500_test kodak photos
    """


_datasets = click.option(
    "--datasets", type=_PATH, default=Path("datasets"), show_default=True, help="Folder of the registry of copies."
)


@data.command("list")
@_datasets
def data_list(datasets: Path) -> None:
    """List the catalogue: what each set is, where it comes from, and whether a copy is registered.

    \b
    Example:
      llicm data list
    """
    from llicm.data.catalogue import catalogue, registry

    known = registry(datasets)
    for entry in catalogue().values():
        many = f"{entry.count} photos" if entry.kind == "photos" else f"{entry.train} + {entry.val} pairs"
        word = f", {entry.degradation}" if entry.degradation else ""
        _out(f"{entry.name:14} {entry.title}: {many}{word}, {entry.size}")
        _out(f"{'':14} {entry.source}; {entry.licence}")
        if entry.name in known:
            _out(f"{'':14} registered: {known[entry.name]['path']}")


@data.command("add")
@click.argument("name")
@click.argument("path", metavar="FOLDER")
@_datasets
def data_add(name: str, path: str, datasets: Path) -> None:
    """Verify a copy of a dataset and register it under its NAME; nothing is copied or downloaded.

    The number of pictures must be right, and where their checksums are known these too.

    \b
    Example:
      llicm data add kodak ~/photos/kodak
    """
    from llicm.data.catalogue import add

    _out(f"{name}: {add(name, path, datasets)} verified, registered in {datasets / 'registry.json'}")


@data.command("split")
@click.argument("train")
@click.argument("test")
@click.argument("out", metavar="FOLDER")
@_datasets
def data_split(train: str, test: str, out: str, datasets: Path) -> None:
    """Lay two registered sets of photos side by side as FOLDER/train and FOLDER/test, for `photos` in params.yaml.

    Sets that share pictures are refused.

    \b
    Example:
      llicm data split bsds500_test kodak photos
    """
    from llicm.data.catalogue import split

    counts = split(train, test, out, datasets)
    _out(f"{out}: {counts['train']} photos of {train} in train, {counts['test']} of {test} in test")


@_llicm.command()
@click.argument("photos", metavar="NAME|FOLDER")
@click.option("-o", "--output", type=_PATH, required=True, metavar="OUT", help="Folder of the results.")
@click.option("--families", type=_List("families", str), default=None, help="Those of params.yaml; default: all.")
@click.option("--metrics", type=_List("metrics", str), default=None, help="In place of those of params.yaml.")
@click.option("--max-side", type=click.IntRange(64), help="Cut photos at the centre to so many pixels a side.")
@click.option("--count", type=click.IntRange(1), help="Only the first so many photos.")
@click.option("--study", type=_PATH, default=Path(), help="Folder of the study, with params.yaml; default: this one.")
@_datasets
def benchmark(
    photos: str, output: Path, families: tuple[str, ...] | None, metrics: tuple[str, ...] | None, max_side: int | None,
    count: int | None, study: Path, datasets: Path,
) -> None:  # fmt: skip
    """Measure all methods of a trained study on other photos: a registered dataset, or a folder of clean photos.

    The photos are degraded as the study's are, sent through every method as real bytes, and compared: OUT gets the
    records, tables and figures. Run `dvc repro` first. An interrupted run goes on where it was.

    \b
    Examples:
      llicm benchmark kodak -o results/kodak
      llicm benchmark photos/ -o out --families webp,rdo,adapted,llicm --metrics psnr,ms_ssim
    """
    from llicm.pipeline.benchmark import run_benchmark

    out = run_benchmark(
        photos, output, root=study, datasets=datasets, families=families or (), metrics=metrics or (),
        max_side=max_side, count=count,
    )  # fmt: skip
    _out(f"{photos}: results are in {out}")


class _Setting(click.ParamType):
    """NAME=VALUE; the value is YAML, as in params.yaml."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, object]:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError

        name, equals, text = value.partition("=")
        try:
            if equals:
                return name.strip(), YAML(typ="safe", pure=True).load(text)
        except YAMLError:
            pass
        self.fail(f"{value!r} is not NAME=VALUE.", param, ctx)


@_llicm.command()
@click.argument("arms", metavar="ARM...", nargs=-1, required=True)
@click.option("--profile", type=_PATH, default=Path(), help="Folder with params.yaml; default: this one.")
@click.option("--set", "changes", type=_Setting(), multiple=True, help="A parameter to change; repeatable.")
@click.option("-o", "--output", type=_PATH, metavar="OUT", help="Folder in place of artifacts/models.")
def train(arms: tuple[str, ...], profile: Path, changes: tuple[tuple[str, object], ...], output: Path | None) -> None:
    """Train arms of a study without its pipeline, for example on another machine or to search for better settings.

    What an arm starts from must be there. An interrupted run goes on where it was.

    \b
    Examples:
      llicm train llicm --profile profiles/study
      llicm train llicm --set arms.llicm.objective.alpha=0.25 --set training.branch=600 -o search/alpha-0.25
    """
    from llicm.pipeline.train import train as run

    for folder in run(arms, profile, changes=dict(changes), out=output):
        _out(f"{folder}: trained")


@_llicm.command()
@click.argument("artefact", metavar="ARTEFACT")
@click.option("--json", "form", flag_value="json", help="Print everything as JSON.")
@click.option("--dot", "form", flag_value="dot", help="Print the graph in the language of Graphviz.")
@click.option("--root", type=_PATH, default=Path(), help="The repository; default: this folder.")
def lineage(artefact: str, form: str | None, root: Path) -> None:
    """Show where an artefact comes from, and check every link on the way.

    ARTEFACT is any output of the pipeline: a figure, a table, a weight file, an executed notebook; or a .llicm file,
    through the model that wrote it. Exit code 1 if anything on disk is not what dvc.lock says.

    \b
    Examples:
      llicm lineage results/figures/figure_4_psnr.png
      llicm lineage photo.llicm --json
    """
    from llicm.provenance.lineage import to_dot, trace

    found = trace(artefact, root)
    if form == "json":
        _out(found.as_json())
    elif form == "dot":
        _out(to_dot(found).rstrip())
    else:
        _out(found.as_text())
    if not found.verified:
        raise click.exceptions.Exit(1)


@_llicm.command()
@click.option("--profile", help="A profile below profiles/; default: the default study.")
@click.option(
    "--checks", type=_List("checks", str), help="Only these of lock, hashes, notebooks, readme, weights, figures."
)  # fmt: skip
@click.option(
    "--tolerance", is_flag=True,
    help="Instead compare the numbers in results/ with the published ones, within tolerances: after a run on another "
    "kind of machine, where bytes differ.",
)  # fmt: skip
@click.option("--against", type=_PATH, help="The published results; default: those of the last commit.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option("--root", type=_PATH, default=Path(), help="The repository; default: this folder.")
def audit(
    profile: str | None, checks: tuple[str, ...] | None, tolerance: bool, against: Path | None, as_json: bool,
    root: Path,
) -> None:  # fmt: skip
    """Check the whole study: that nothing was touched, and that everything printed follows from what was measured.

    Exit code 0 if all is well, else 1, with what was expected, what was found, and how to mend it.

    \b
    Examples:
      llicm audit
      llicm audit --checks lock,hashes
      llicm audit --tolerance
    """
    from llicm.provenance import audit as module

    if against is not None and not tolerance or tolerance and checks:
        raise click.UsageError("--against goes with --tolerance, and --checks without.")
    if tolerance:
        from llicm.provenance import tolerance as numbers

        rows = numbers.check(root, profile, against)
        beyond = numbers.findings(rows)
        _out(module.as_json(beyond) if as_json else numbers.as_text(rows))
        if beyond:
            raise click.exceptions.Exit(1)
        return
    findings = module.audit(root, profile, list(checks) if checks else None)
    _out(module.as_json(findings) if as_json else module.as_text(findings, list(checks or module.CHECKS)))
    if findings:
        raise click.exceptions.Exit(1)


@_llicm.command("export-crate")
@click.option(
    "-o", "--output", type=_PATH, default=Path("ro-crate"), show_default=True, metavar="OUT",
    help="Folder to make, or file if it ends in .zip; an older crate there is replaced.",
)  # fmt: skip
@click.option("--profile", help="A profile below profiles/; default: the default study.")
@click.option("--root", type=_PATH, default=Path(), help="The repository; default: this folder.")
def export_crate(output: Path, profile: str | None, root: Path) -> None:
    """Write the study as a Workflow Run RO-Crate, to deposit it.

    Inside are the pipeline, its code, parameters, results and photos, the executed notebooks and the released weights
    as far as they are on disk, and a description of every run: what it took, what it made, when and where. Refused if
    anything is not what dvc.lock says.

    \b
    Examples:
      llicm export-crate
      llicm export-crate -o study.zip
    """
    from llicm.provenance.crate import export_crate as export

    _out(f"{export(root, output, profile)}: written")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (of the process if None).

    Returns:
        The exit code: 0, 1 after an error that was told, 2 for wrong arguments, 130 after an interruption.
    """
    try:
        # Commands return nothing; what comes back is the code of `--help`, `--version` and click's Exit.
        return _llicm.main(args=arguments, prog_name="llicm", standalone_mode=False) or 0
    except click.Abort:
        _error("interrupted; files that were being written are not there.")
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (UserError, _Stop) as error:
        _error(str(error))
        return 1
    except OSError as error:
        _error(f"{error.filename or 'a file'}: {error.strerror or error}.")
        return 1
    except SystemExit as stop:  # how click ends when the reader of `--help` goes away
        return stop.code if isinstance(stop.code, int) else 1


if __name__ == "__main__":
    sys.exit(main())
