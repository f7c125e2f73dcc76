# SPDX-License-Identifier: Apache-2.0
"""Commands for own photos: compress, decompress, restore, degrade, inspect, evaluate."""

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llicm.cli import files
from llicm.cli.common import METRICS, PATH, TASKS, CommaList, Number, Stop, Task, each, offer, print_note, print_result
from llicm.cli.files import Job
from llicm.codec.rate import DEFAULT_LEVEL, compress_to
from llicm.errors import UserError
from llicm.files import json_text, printable

if TYPE_CHECKING:
    from torch import Tensor

    from llicm.framework import LLICM

_CLOSE = 0.98  # of the wanted size: what is below is worth a note

_inputs = click.argument("inputs", metavar="IN...", nargs=-1, required=True, type=click.Path())
_output = click.option(
    "-o", "--output", metavar="OUT", type=click.Path(),
    help="File to write, or folder if there are several; - for standard output.",
)  # fmt: skip
_force = click.option("--force", is_flag=True, help="Replace files that exist.")
_model = click.option(
    "--model", type=PATH, envvar="LLICM_MODEL", show_envvar=True,
    help="Weights to use, one .safetensors file; default: those of the repository.",
)  # fmt: skip
_device = click.option(
    "--device", metavar="NAME", default="cpu", show_default=True,
    help="Where its networks compute, as PyTorch calls it: cpu, cuda, cuda:1, mps, ...",
)  # fmt: skip
_format = click.option(
    "--format", "wanted", type=click.Choice(["png", "jpg", "webp", "tif", "avif", "heic", "jxl"]),
    help="Kind of image to write where OUT leaves it open; default: png. PNG, WebP and TIFF keep the result exactly, "
    "JPEG, AVIF, HEIC and JPEG XL have a high quality.",
)  # fmt: skip
_bpp = click.option(
    "--bpp", type=Number(0, 1000, min_open=True), metavar="BPP",
    help="Make the file as good as fits into so many bits per pixel, e.g. 0.25.",
)  # fmt: skip
_size_option = click.option(
    "--bytes", "size", type=click.IntRange(1, 1 << 40), metavar="BYTES",
    help="Make each file as good as fits into so many bytes, e.g. 20000.",
)  # fmt: skip
_task = click.option(
    "--task", type=Task(clean=True), shell_complete=offer((*TASKS, "clean")),
    help="Name what is wrong with the photo instead of having it detected: one, or two joined by a comma, of "
    + ", ".join(TASKS) + "; or clean, to leave it as it is.",
)  # fmt: skip
_strength = click.option(
    "--strength", type=Number(0, 1), default=1.0, show_default=True,
    help="How far to go from the photo as it is, 0, to the restored one, 1.",
)  # fmt: skip


# --- what the commands share ---


def _load(
    path: Path | None, device: str, *parts: str, levels: Sequence[float] = (), coding: bool = False
) -> "LLICM":  # fmt: skip
    """The model of this file (None: the repository's) on a device, which must hold these parts, and have these levels.

    Raises:
        Stop: it lacks one, or there is no such device, or see `llicm.model.load_model`.
    """
    from llicm.limits import usable
    from llicm.model import load_model

    try:
        system = load_model(path, coding).to(usable(device))
    except UserError as error:
        raise Stop(str(error)) from None
    for part in parts:
        if getattr(system, part) is None:
            raise Stop(f"{path or 'the default model'}: has no {part}, which this needs; name another --model.")
    for level in levels:
        if not 0 <= level <= _top(system):
            raise Stop(f"level {level:g}: this model has levels 0 to {_top(system):g}.")
    return system


def _top(system: "LLICM") -> float:
    """The highest level of a model with a codec."""
    return float(system.codec.levels - 1)


def _encode(encode: "Callable[[Tensor, float, int], bytes]", photo: "Tensor", effort: int, level: float) -> bytes:
    """The file of a photo (3, H, W), by `LLICM.encode` or a codec; what cannot be coded is a UserError."""
    try:
        return encode(photo, level, effort)
    except ValueError as error:
        raise UserError(f"cannot be compressed: {error}.") from None


def _convert(jobs: Iterable[Job], force: bool, work: Callable[[Job], tuple[bytes, str]]) -> None:
    """Make each job's file, and a line about it on standard output, or on standard error if the file goes there.

    Args:
        work: gives the bytes and the line of a job; not called for a file that may not be written.

    Raises:
        click.exceptions.Exit: with 1, if any failed.
    """

    def whole(job: Job) -> str:
        files.check_target(job, force)
        data, line = work(job)
        if job.target is not None:
            files.write_file(job.target, data)
            return f"{job.name} -> {files.name_of(job.target)}  {line}"
        print_result(data)
        return line

    failed: list[Job] = []
    for job, line in each(list(jobs), whole, lambda job: [job.name, str(job.target or "standard output")], failed):
        if job.target is not None:
            print_result(line)
        else:
            click.echo(line, err=True)
    if failed:
        raise click.exceptions.Exit(1)


def _convert_to_images(
    make: Callable[[Job], tuple["Tensor", str]], inputs: Sequence[str], output: str | None, wanted: str | None,
    force: bool, label: str = "", streams: bool = False, quality: int | None = None, bpp: float | None = None,
    size: int | None = None,
) -> None:  # fmt: skip
    """Write the image (3, H, W) that `make` gives for each job, with words for the line about it; see `plan`,
    `format_of` and `_convert`.

    Args:
        quality, bpp, size: at most one, see `encode_photo`.
    """
    jobs = files.plan(inputs, output, f".{wanted or 'png'}", label, streams)
    formats = {job: files.format_of(job.target, wanted) for job in jobs}

    def work(job: Job) -> tuple[bytes, str]:
        image, words = make(job)
        pixels = image.shape[1] * image.shape[2]
        data = files.encode_photo(image, formats[job], quality, bpp * pixels / 8 if bpp is not None else size)
        asked = quality is not None or bpp is not None or size is not None
        return data, _size(image) + words + (f"  {_rate(len(data), pixels)}" if asked else "")

    _convert(jobs, force, work)


def _size(image: "Tensor") -> str:
    return f"{image.shape[2]}x{image.shape[1]}"


def _rate(size: int, pixels: int) -> str:
    return f"{size} bytes  {8 * size / pixels:.3f} bpp"


def _verdict(system: "LLICM", photo: "Tensor", task: str | None) -> str:
    """What is wrong with a photo (3, H, W), how surely, and what came of it: "  hazy 93%, restored"."""
    from llicm.degradations import CLEAN
    from llicm.framework import SURE
    from llicm.vlm.clip import WORDS
    from llicm.vlm.conditioner import Conditioner

    said, share = f"{task}, " if task else "", 1.0 if system.share is None else float(system.share)
    if isinstance(system.conditioner, Conditioner) and not task:
        photo = photo.to(next(system.conditioner.parameters()).device)
        likely = dict(zip(WORDS, system.conditioner.recognise(photo[None])[0].tolist(), strict=True))
        clean = likely[CLEAN] >= 1 - SURE[0]
        word = max((word for word in WORDS if (word == CLEAN) is clean), key=lambda word: likely[word])
        said = f"{word} {likely[word]:.0%}, "
    part = f"restored by {share:.0%}" if share >= 0.005 else "left as it is"
    return f"  {said}{'restored' if share == 1 else part}"


def _one_of(**options: object) -> None:
    """Refuse more than one of these options."""
    if sum(value is not None for value in options.values()) > 1:
        *names, last = (f"--{name}" for name in options)
        raise click.UsageError(f"{', '.join(names)} and {last} exclude each other: give one of them.")


# --- commands ---


@click.command()
@_inputs
@_output
@click.option(
    "--level", type=Number(0), metavar="LEVEL",
    help=f"Rate, from 0 (smallest files) to 6 (best pictures), also in between; default: {DEFAULT_LEVEL}.",
)  # fmt: skip
@_bpp
@_size_option
@click.option(
    "--effort", type=click.IntRange(0, 10_000), metavar="STEPS", default=0, show_default=True,
    help="Steps of refinement for each photo, e.g. 50: smaller files or better pictures, in a hundred times the time.",
)  # fmt: skip
@click.option("--as-captured", is_flag=True, help="The photo as it is, to be restored when it is decompressed.")
@_task
@_strength
@_model
@_device
@_force
def compress(
    inputs: tuple[str, ...], output: str | None, level: float | None, bpp: float | None, size: int | None,
    effort: int, as_captured: bool, task: str | None, strength: float, model: Path | None,
    device: str, force: bool,
) -> None:  # fmt: skip
    """Compress photos to .llicm files.

    IN is an image, a folder of images, or - for standard input. By default photo.jpg becomes photo.llicm beside it.
    What is wrong with the photo is detected, unless --task names it, and is restored before it is compressed: that
    needs fewer bits. With --as-captured it is compressed as it is, to be restored when it is decompressed.

    \b
    Examples:
      llicm compress photo.jpg
      llicm compress photos/ -o small/ --bpp 0.25
      llicm compress photo.png -o photo.llicm --bytes 20000
      cat photo.jpg | llicm compress - --level 3.5 > photo.llicm
    """
    _one_of(level=level, bpp=bpp, bytes=size)
    if as_captured and (task or strength < 1):
        raise click.UsageError("--task and --strength say how to restore, --as-captured not to: give one of them.")
    jobs = files.plan(inputs, output, ".llicm")
    for job in jobs:
        if job.target and job.target.suffix.lower() in files.FORMATS:
            raise UserError(f"{job.target}: a compressed file is no {job.target.suffix[1:]}; name it .llicm.")
    parts = ("codec", *(["prefilter"] if task or strength < 1 else []))
    loaded = functools.cache(
        lambda: _load(model, device, *parts, levels=() if level is None else (level,), coding=True)
    )

    def work(job: Job) -> tuple[bytes, str]:
        from llicm.codec.bitstream import unpack

        system = loaded()
        top, x = _top(system), files.read_photo(job.source)
        pixels = x.shape[1] * x.shape[2]
        # the prefilter and its conditioner run once a photo, however many levels the rate control tries
        restores = system.prefilter is not None and not as_captured
        coded = system.prefiltered(x, [task], strength) if restores else x
        told, said = _size(x), _verdict(system, x, task) if restores else ""
        del x  # 12 bytes a pixel
        encode = functools.partial(_encode, system.encode if restores else system.codec.compress, coded, effort)
        allowed = bpp * pixels / 8 if bpp is not None else size
        if allowed is None:
            data = encode(min(DEFAULT_LEVEL, top) if level is None else level)
        else:
            data, reached = compress_to(encode, allowed, 0, top)
            if len(data) < _CLOSE * allowed:
                why = "the highest level needs no more" if reached >= top else "no level comes closer"
                print_note(f"{job.name}: {len(data)} bytes, less than the {int(allowed)} allowed: {why}.")
        return data, f"{told}  {_rate(len(data), pixels)}  level {unpack(data).level:.4g}{said}"

    _convert(jobs, force, work)


@click.command()
@_inputs
@_output
@click.option("--as-captured", is_flag=True, help="The photo as it was compressed, without enhancing it.")
@_task
@_strength
@_format
@_model
@_device
@_force
def decompress(
    inputs: tuple[str, ...], output: str | None, as_captured: bool, task: str | None, strength: float,
    wanted: str | None, model: Path | None, device: str, force: bool,
) -> None:  # fmt: skip
    """Decompress .llicm files to enhanced photos.

    IN is a .llicm file, a folder of them, or - for standard input. By default photo.llicm becomes photo.png beside it.
    What is wrong with the photo is detected, unless --task names it. It is restored as far as that is sure: wholly, in
    part, or not at all.

    \b
    Examples:
      llicm decompress photo.llicm
      llicm decompress photo.llicm -o photo.jpg --task "low-light, noisy"
      llicm decompress small/ -o photos/ --as-captured
      cat photo.llicm | llicm decompress - > photo.png
    """
    if as_captured and (task or strength < 1):
        raise click.UsageError("--task and --strength say how to enhance, --as-captured not to: give one of them.")
    parts = ("codec", *([] if as_captured else ["restorer"]), *(["conditioner"] if task else []))
    loaded = functools.cache(lambda: _load(model, device, *parts, coding=as_captured))

    def make(job: Job) -> tuple["Tensor", str]:
        from llicm.codec.bitstream import unpack

        data = files.read_bytes(job.source)
        before = unpack(data).restored  # a damaged file need not wait for the model
        system = loaded()
        if as_captured:
            return system.codec.decompress(data)[0], ""
        decoded, enhanced = system.decompress(data, task, strength)
        return enhanced, "  restored before" if before else _verdict(system, decoded, task)

    _convert_to_images(make, inputs, output, wanted, force, streams=True)


@click.command()
@_inputs
@_output
@click.option(
    "--quality", type=click.IntRange(0, 100), metavar="Q",
    help="Of a JPEG, WebP, AVIF, HEIC or JPEG XL, from 0 (smallest files) to 100 (best pictures).",
)  # fmt: skip
@_bpp
@_size_option
@_task
@_strength
@_format
@_model
@_device
@_force
def restore(
    inputs: tuple[str, ...], output: str | None, quality: int | None, bpp: float | None, size: int | None,
    task: str | None, strength: float, wanted: str | None, model: Path | None, device: str, force: bool,
) -> None:  # fmt: skip
    """Enhance photos, and write them as images that any viewer opens.

    IN is an image, a folder of images, or - for standard input. By default photo.jpg becomes photo.restored.png beside
    it. What is wrong with the photo is detected, unless --task names it. It is restored as far as that is sure: wholly,
    in part, or not at all.

    \b
    Examples:
      llicm restore photo.jpg
      llicm restore photo.jpg -o better.png --task rainy
      llicm restore photo.jpg -o better.avif --bytes 50000
      llicm restore photos/ -o better/ --format jpg --quality 80
    """
    _one_of(quality=quality, bpp=bpp, bytes=size)
    loaded = functools.cache(lambda: _load(model, device, "restorer", *(["conditioner"] if task else [])))

    def make(job: Job) -> tuple["Tensor", str]:
        from torch import no_grad

        system, x = loaded(), files.read_photo(job.source)
        with no_grad():
            restored = system.enhance(x[None], None, [task], strength)[0].clamp(0, 1)
        return restored, _verdict(system, x, task)

    _convert_to_images(make, inputs, output, wanted, force, ".restored", quality=quality, bpp=bpp, size=size)


@click.command()
@_inputs
@_output
@click.option(
    "--task", type=Task(), required=True, shell_complete=offer(TASKS),
    help="What to do to the photo, one or several of: " + ", ".join(TASKS) + ".",
)  # fmt: skip
@click.option("--severity", type=Number(0, 1), default=0.5, show_default=True, help="0 mild, 1 severe.")
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True,
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
    words = task.split(", ")

    def make(job: Job) -> tuple["Tensor", str]:
        from torch import Generator

        # The study makes its test pairs with this: equal seeds, equal pictures.
        from llicm.data.pairs import stable_seed
        from llicm.degradations import IN_ORDER
        from llicm.degradations import degrade as apply
        from llicm.limits import is_grey

        x = files.read_photo(job.source)[None]
        grey = is_grey(x[0])
        generator = Generator().manual_seed(stable_seed(seed, task, job.source.stem if job.source else ""))
        for word in IN_ORDER:
            if word in words:
                x = apply(word, x, severity, generator)
        # of a grey photo one channel, as a camera without colours has: the mean of all would have less noise
        return x[0, 1:2].expand(3, -1, -1) if grey else x[0], f"  {task}  severity {severity:g}"

    label = f".{'+'.join(words)}"
    _convert_to_images(make, inputs, output, wanted, force, label)


@click.command()
@click.argument("inputs", metavar="FILE...", nargs=-1, required=True, type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with one object a file.")
def inspect(inputs: tuple[str, ...], as_json: bool) -> None:
    """Show what .llicm files say of themselves.

    FILE is a .llicm file, a folder of them, or - for standard input. Files are checked for damage, but not decoded.

    \b
    Examples:
      llicm inspect photo.llicm
      llicm inspect small/ --json
    """
    from llicm.codec.bitstream import VERSION, unpack

    def work(source: Path | None) -> dict[str, Any]:
        data = files.read_bytes(source)
        stream = unpack(data)
        return {
            "file": files.name_of(source), "version": VERSION,  # the only one that `unpack` lets pass
            "model": stream.model.hex(), "width": stream.width, "height": stream.height, "grey": stream.grey,
            "restored": stream.restored,
            "level": stream.level,
            "bytes": len(data), "bpp": 8 * len(data) / (stream.width * stream.height), "payload": len(stream.payload),
        }  # fmt: skip

    failed: list[Path | None] = []
    found = []
    for _, facts in each(files.expand(inputs, streams=True), work, lambda source: [files.name_of(source)], failed):
        found.append(facts)
        if not as_json:
            print_result(
                f"{facts['file']}\n"
                f"  size     {facts['width']}x{facts['height']} pixels{', grey' * facts['grey']}"
                f"{', restored before' * facts['restored']}\n"
                f"  file     {_rate(facts['bytes'], facts['width'] * facts['height'])}  level {facts['level']:.4g}\n"
                f"  payload  {facts['payload']} bytes\n"
                f"  model    {facts['model']}\n"
                f"  version  {facts['version']}"
            )
    if as_json:
        print_result(json_text(found, 2))
    if failed:
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("inputs", metavar="PATHS...", nargs=-1, required=True, type=click.Path())
@click.option(
    "--reference", type=PATH, metavar="FOLDER",
    help="Folder of ideal photos, with the names of those that are measured.",
)  # fmt: skip
@click.option("--levels", type=CommaList("numbers", Number(0)), metavar="L,L,...", help="Levels; default: 0,1,2,3,4.")
@click.option(
    "--metrics", type=CommaList("names"), metavar="NAME,...", default="psnr,ms_ssim", show_default=True,
    shell_complete=offer(METRICS), help="Metrics: ssim, ms_ssim, and those of pyiqa.",
)  # fmt: skip
@_task
@click.option(
    "-o", "--output", metavar="CSV", type=click.Path(), help="File for the records; default, and -: standard output."
)  # fmt: skip
@_model
@_device
@_force
def evaluate(
    inputs: tuple[str, ...], reference: Path | None, levels: tuple[float, ...] | None, metrics: tuple[str, ...],
    task: str | None, output: str | None, model: Path | None, device: str, force: bool,
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
    paths = [path for path in files.expand(inputs) if path is not None]
    if not paths:
        raise UserError("-: evaluate reads files and folders only; give a path.")
    names: set[str] = set()
    for path in paths:
        if printable(path.name) in names:
            name = files.name_of(path)
            raise UserError(f"{name}: another image of this name is measured too; rename one, or evaluate them apart.")
        names.add(printable(path.name))
    target = None if output in (None, "-") else Path(output)
    if target is not None:
        if target.is_dir():
            raise UserError(f"{target}: a folder; name a file, e.g. {target / 'records.csv'}.")
        files.check_target(Job(None, target), force)
    ideals = files.references(paths, reference) if reference is not None else {}
    from llicm.benchmark.metrics import make_metrics
    from llicm.images import quantize8

    system = _load(model, device, "codec", "restorer", *(["conditioner"] if task else []), levels=levels or ())
    measures = make_metrics(list(metrics), device=device)

    def work(path: Path) -> list[dict[str, Any]]:
        x = files.read_photo(path)
        ideal = files.read_photo(ideals[path]) if ideals else None
        if ideal is not None and ideal.shape != x.shape:
            raise UserError(f"{path}: {_size(x)} pixels, but its reference {ideals[path]} has {_size(ideal)}.")
        rows = []

        def measure(method: str, image: "Tensor", against: "Tensor | None", level: float | str, size: int) -> None:
            for metric in measures:
                if metric.needs_reference and against is None:
                    continue
                value = metric(quantize8(image)[None], None if against is None else quantize8(against)[None])
                rows.append({
                    "method": method, "family": "llicm" if size else "raw",
                    "order": "after" if method == "llicm" else "alone", "task": task or "own",
                    "image": printable(path.name),
                    "level": level, "bytes": size or float("nan"),
                    "bpp": 8 * size / (x.shape[1] * x.shape[2]) if size else float("nan"), "metric": metric.name,
                    "value": float(value[0]),
                })  # fmt: skip

        measure("captured", x, ideal, "none", 0)
        coded = system.prefiltered(x)
        for level in levels or range(int(_top(system)) + 1):
            data = _encode(system.encode, coded, 0, level)
            decoded, enhanced = system.decompress(data, task)
            measure("llicm-as-captured", decoded, x if ideal is None else ideal, level, len(data))
            measure("llicm", enhanced, ideal, level, len(data))
        return rows

    failed: list[Path] = []
    rows: list[dict[str, Any]] = []
    for path, found in each(paths, work, lambda path: [files.name_of(path)], failed):
        click.echo(f"{files.name_of(path)}: measured", err=True)
        rows += found
    if rows:
        _write_records(rows, target)
    if failed:
        raise click.exceptions.Exit(1)


def _write_records(rows: list[dict[str, Any]], target: Path | None) -> None:
    """Records as CSV to a file, with their means on standard output, or to standard output."""
    from tempfile import TemporaryDirectory

    from llicm.benchmark.records import read_records, write_records

    with TemporaryDirectory() as folder:
        path = target or Path(folder) / "records.csv"
        try:
            write_records(rows, path)
        except OSError as error:
            name = target or "standard output"
            raise UserError(f"{name}: the records cannot be written ({error.strerror or error}).") from None
        if target is None:
            print_result(path.read_bytes())
            return
    records = read_records(target)
    keys = ["method", "level"]
    means = records.groupby(keys, sort=False)[["bpp"]].mean()
    means = means.join(records.pivot_table("value", keys, "metric", sort=False))
    print_result(means.reset_index().to_string(index=False, float_format="{:.4f}".format, na_rep=""))


COMMANDS = (compress, decompress, restore, degrade, inspect, evaluate)
