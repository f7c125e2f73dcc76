# SPDX-License-Identifier: Apache-2.0
"""Parameters of a study, typed: what params.yaml may hold, what each entry means, and how it is read.

Values are in params.yaml alone; here are types, ranges and units. `python -m llicm.parameters` prints the JSON
schema for editors (docs/params.schema.json). YAML 1.2, as DVC reads it: `1e-3` is a number, `no` is a text.
"""

import difflib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from llicm.errors import UserError
from llicm.files import json_text
from llicm.methods import NONE, Method, methods_of

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
Severities = Annotated[list[Share], Field(min_length=2, max_length=2)]
Level = Annotated[int, Field(ge=0)] | Weight  # whole numbers stay whole: records have them
Levels = Annotated[list[Level], Field(min_length=1)]
Names = Annotated[list[Text], Field(min_length=1)]


class _Group(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True, validate_assignment=True
    )


class Data(_Group):
    """The endless stream of training pairs."""

    dead_leaves_share: Share
    """Share of training crops that come from dead-leaves images instead of photos."""
    pool: Positive
    """Number of dead-leaves images kept at a time."""
    refresh: Positive
    """Updates after which one dead-leaves image of the pool is replaced by a new one."""
    severity: Severities
    """Lowest and highest severity (0 mild to 1 severe) of training degradations, drawn uniformly."""
    mixed: Share
    """Share of training crops that suffer a second of the tasks too."""
    graphics_share: Share = 0.0
    """Share of the clean training crops, of models whose tasks have `clean`, that are generated graphics: text, charts,
    night skies and others that are easily taken for degraded ones."""


class Degrade(_Group):
    """The fixed test pairs."""

    severities: Annotated[list[Share], Field(min_length=1)]
    """Severities (0 mild to 1 severe) shown on the contact sheet."""
    test_severity: Share
    """Severity (0 mild to 1 severe) of the test pairs."""
    parts: Positive
    """Equal parts, along the longer side, into which a test photo is cut; each is a test image of its own."""
    max_side: Annotated[int, Field(ge=64)] | None
    """Longest side of a test image in pixels, larger ones are cropped at the centre; null for all of a part."""


class Part(_Group):
    """A codec or restorer to build: its name, and the arguments of its class (see `docs/parts.md`)."""

    model_config = ConfigDict(extra="allow")
    name: Text
    """A part of llicm.codec or llicm.restore, or an import path, package.module:Class."""


class Mini(_Group):
    """Size of the mini CLIP."""

    image_size: Annotated[int, Field(ge=16)]
    """Side of the images that its vision tower takes, in pixels."""
    patch_size: Annotated[int, Field(ge=4)]
    """Side of a patch, in pixels."""
    width: Annotated[int, Field(ge=32, multiple_of=32)]
    """Width of the vision tower."""
    layers: Positive
    """Blocks of the vision tower."""
    embed_dim: Positive
    """Length of an embedding."""
    text_width: Annotated[int, Field(ge=32, multiple_of=32)]
    """Width of the text tower."""
    text_layers: Positive
    """Blocks of the text tower."""


class Recognise(_Group):
    """How recognition is measured on the test photos."""

    side: Annotated[int, Field(ge=32)]
    """Photos are cut into squares of at most this many pixels a side."""
    severities: Annotated[list[Share], Field(min_length=1)]
    """Severities (0 mild to 1 severe) of the degradations."""
    levels: Levels
    """Levels of the codec, in ascending rate."""


class VLM(_Group):
    """The vision-language model that steers the restorer."""

    name: Text
    """'mini' for the one trained here, or a model of open_clip with released weights, e.g. ViT-B-32."""
    pretrained: Text | None
    """Released weights by tag (daclip, laion2b_s34b_b79k) or file name; null for mini."""
    folder: Text | None
    """Folder with the released weight file, relative to this file's folder or absolute; null for mini."""
    view: Literal["whole", "windows"]
    """How large images are looked at: whole, reduced to the model's size as in DA-CLIP, or as the mean of windows."""
    codec: Text
    """Codec through which the controller sees crops, and on which recognition is measured: file in artifacts/models."""
    mini: Mini
    steps: Annotated[list[Positive], Field(min_length=2, max_length=2)]
    """Updates of CLIP on clean crops, then of the controller on degraded ones."""
    batch: Annotated[int, Field(ge=3)]
    """Crops in an update."""
    lr: Annotated[float, Field(gt=0, le=1)]
    """Peak learning rate of AdamW; Muon's is ten times as high."""
    severity: Severities
    """Lowest and highest severity (0 mild to 1 severe) of the controller's crops, drawn uniformly."""
    mixed: Share
    """Share of the controller's crops with two degradations."""
    recognise: Recognise


class Training(_Group):
    """What the training of all models has in common."""

    batch: Positive
    """Crops in an update."""
    crop: Annotated[int, Field(ge=32)]
    """Side of a training crop in pixels."""
    pretraining: Positive
    """Updates that models leave out which start from weights of all that they train; they go on from here."""
    fine_tuning: Positive
    """Updates of every model after those."""
    lr: Annotated[float, Field(gt=0, le=1)]
    """Peak learning rate of Adam."""
    warmup: Annotated[int, Field(ge=0)]
    """First updates of pretraining, over which the learning rate rises linearly."""
    max_grad_norm: Annotated[float, Field(gt=0)]
    """Largest gradient norm of each trained part; longer ones are scaled down."""
    precision: Literal["auto", "bf16", "fp32"]
    """Arithmetic of an update: bf16 autocast, fp32, or auto (bf16 where the processor gains by it)."""
    hint_share: Share
    """Share of crops whose degradation is named in words instead of detected, so that users can name it."""
    log_every: Positive
    """Updates between two rows of the training log, each the mean over them."""
    checkpoint_every: Annotated[int, Field(ge=0)]
    """Updates between two checkpoints, a multiple of log_every; 0 for none."""
    accumulate: Positive = 1
    """Equal shares of an update's crops: processes divide them among them, one process takes one after the other. A
    multiple of the number of processes."""
    launch: Text = "here"
    """What starts the processes of training: 'here' for this one alone, or a command, such as `torchrun
    --nproc-per-node 4` or `sbatch --wait --nodes 2 slurm/train.sh`."""


class Objective(_Group):
    """A loss: lambda (alpha D(X̂, X) + gamma P(X̂_H, X_ideal) + delta S) + beta R, R in bits per pixel."""

    alpha: Weight = 0.0
    """Weight of the distortion D."""
    beta: Weight = 0.0
    """Weight of the rate R."""
    gamma: Weight = 0.0
    """Weight of P."""
    distortion: dict[str, Weight] = {}
    """Distances that make up D: name in llicm.objectives.DISTANCES -> weight."""
    perception: dict[str, Weight] = {}
    """Distances that make up P."""
    against: Literal["input", "prefiltered", "ideal"] = "prefiltered"
    """What D compares X̂ with: X, what is coded (X itself without a prefilter), or X_ideal."""
    delta: Weight = 0.0
    """Weight of the diffusion restorer's own loss S."""
    diffusion: Literal["noise", "paper", "x0"] | None = None
    """S: L1 on the noise, the published one on the next state, or L1 on the clean image."""


class Start(_Group):
    """Weight files that a model starts from, below artifacts/models; `none` for no file."""

    codec: Text
    """Weights of the codec."""
    restorer: Text
    """Weights of the restorer behind the codec."""
    prefilter: Text
    """Weights of the restorer before the codec."""
    vlm: Text
    """The vision-language model: `vlm` where a restorer is steered by it."""


class Model(_Group):
    """Something that is trained; its weights go to artifacts/models/<name>."""

    trains: Annotated[list[Literal["prefilter", "codec", "restorer"]], Field(min_length=1)]
    """Parts that are updated; others are frozen."""
    objective: Name
    """Its loss, an entry of `objectives`."""
    start: Start
    codec: Part | None = None
    """The codec to build, where it does not start from one."""
    restorer: Part | None = None
    """The restorer to build, where it does not start from one."""
    context: Literal["none", "degradation", "both", "oracle"] = "none"
    """What steers a restorer that it builds: nothing, the degradation embedding, the content embedding too, or the true
    task (a bound, not a method)."""
    codecs: dict[str, Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]] | None = None
    """Conventional codecs that the training images go through: name -> lowest and highest quality."""
    tasks: Names | None = None
    """Tasks that it is trained on; all of the study's if absent."""
    updates: Positive | None = None
    """Updates of its schedule; pretraining and fine_tuning of `training` if absent."""
    pretraining: Positive | None = None
    """How many of these are pretraining, for a model with updates of its own."""
    lr: Annotated[float, Field(gt=0, le=1)] | None = None
    """Peak learning rate; that of `training` if absent."""


class Group(_Group):
    """A codec group: one codec with the methods built on it, measured in one stage."""

    methods: Annotated[list[Text], Field(min_length=1)] | Annotated[dict[Text, Text], Field(min_length=1)]
    """Methods as llicm.methods writes them, e.g. restorer>heic>adapted; or the name in tables -> method."""
    models: Annotated[list[Name], Field(min_length=3, max_length=3)]
    """Models that the methods use, `none` for fewer than three."""
    levels: Levels | dict[Name, Levels]
    """Settings of the codec, in ascending rate: quality of a conventional codec, level of a learned one (0 to the
    number of lambdas minus 1, fractions allowed); by codec where there are several."""
    role: Literal["baseline", "test", "specialist", "ablation", "steps", "reference"] = "baseline"
    """Part that the methods play in the tables: forms of LL-ICM are tests."""
    title: str | None = None
    """For readers, in place of the method's name."""
    metrics: Names | None = None
    """Metrics of this group alone; those of `evaluate` if absent."""
    extra_metrics: Names | None = None
    """Metrics to measure on the further sets of pairs (`extra`); none of them if absent."""
    tasks: Names | None = None
    """Only these tasks; all of the study's if absent."""
    images: Positive | None = None
    """Only so many test images of each task, at equal distances in their list; all if absent. For what is slow."""


class Release(_Group):
    """The model that the command llicm uses."""

    model: Name
    """Whose codec, restorer and prefilter it has."""
    level: Level
    """Level at which the stage tries it."""


class Evaluate(_Group):
    """The measurements."""

    metrics: Names
    """Quality metrics by the names of llicm.benchmark.metrics."""
    workers: Positive
    """Processes that evaluate at the same time."""
    scheduler: Text | None = None
    """Address of a Dask scheduler whose workers evaluate, such as `tcp://node1:8786`; null for processes here."""
    device: Text = "cpu"
    """Where networks and metrics of the evaluation compute, as PyTorch calls it, such as `cuda`; shared by workers."""
    weights: Text | None
    """Folder with the weight files of metrics that need some (lpips, dists, ...), laid out as the caches of torch hub
    and Hugging Face below 'hub'; relative to this file's folder or absolute; null for the usual caches."""


class Figures(_Group):
    """Plots and tables."""

    dpi: Annotated[int, Field(ge=20, le=1200)]
    """Resolution of figures in dots per inch."""
    image: Text
    """Test photo shown in the picture strips, by its name without extension; a task without it shows its first."""
    level: Level
    """Level at which LL-ICM codes the pictures of the strips; the baseline is brought to the same rate."""
    side: Annotated[int, Field(ge=16)]
    """Side of the pictures in the strips, in pixels, cut from the middle of the photo."""
    test: Text
    """The method that the tables are about."""
    comparisons: dict[Name, Annotated[list[Text], Field(min_length=2, max_length=2)]]
    """Headline numbers: name -> method and the one it is compared with; `strongest` is the strongest baseline of each
    task."""
    decoded: Text
    """Method without restoration whose decoded pictures are shown beside the curves that fall."""
    anchors: list[Text]
    """Methods that LL-ICM is compared with on the further sets of pairs."""
    curves: list[Text]
    """Methods drawn in the rate-perception figures; [] for all. The tables and the interactive curves have all."""


class Parameters(_Group):
    """Parameters of a study (params.yaml)."""

    root: Text
    """Path from this file's folder to the repository: '.' for the default study, '../..' for a profile."""
    init: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    """Folder of init/ whose weights take the place of pretraining: 'context', 'published', or 'scratch', of none."""
    photos: Text
    """Folder of clean colour photos, relative to this file's folder or absolute; with subfolders train and test, or
    flat, then every third photo is for testing."""
    paired: Text | None
    """Folder of ready-made pairs, `{train,val}/<degradation>/{GT,LQ}/*`, to train on too, or null."""
    sets: list[Text] = []
    """Public sets of pairs, by their names in the catalogue, that must be in `paired` before anything runs."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)]
    """Seed of everything random: degradations, dead leaves, initial weights, order of training data."""
    threads: Positive
    """Processor threads of each numerical library; a parameter because sums in another order give other bytes."""
    tasks: Names
    """Low-level tasks, named by their degradation: words of llicm.degradations.DEGRADATIONS."""
    extra: list[Text]
    """Further sets of test pairs: 'clean' (a control), degradations at once ('low-light+noisy'), other severities
    (`hazy@0.8`)."""
    data: Data
    degrade: Degrade
    vlm: VLM
    training: Training
    shared: dict[str, Any] = {}
    """For YAML anchors: values that several entries below share. Nothing reads it."""
    objectives: Annotated[dict[Name, Objective], Field(min_length=1)]
    """Losses, by name."""
    models: Annotated[dict[Name, Model], Field(min_length=1)]
    """What is trained, by name."""
    benchmark: Annotated[dict[Name, Group], Field(min_length=1)]
    """What is measured, by codec group."""
    release: Release
    evaluate: Evaluate
    figures: Figures

    @property
    def methods(self) -> list[Method]:
        """All methods of the benchmark."""
        parts = {
            name: {*model.trains, *(part for part, file in model.start if part != "vlm" and file != NONE)}
            for name, model in self.models.items()
        }
        return methods_of(self.benchmark, parts)

    @model_validator(mode="after")
    def _refer(self) -> "Parameters":
        """What is named must be described."""
        known = {*self.models, "vlm", NONE}
        for name, model in self.models.items():
            if model.objective not in self.objectives:
                raise UserError(f"'models.{name}' has objective '{model.objective}', which is none of `objectives`")
            for part, file in model.start:
                if file.partition("/")[0] not in known:
                    raise UserError(f"'models.{name}.start.{part}' names no model: '{file}'")
                if part in model.trains and file == NONE and getattr(model, part, None) is None:
                    raise UserError(f"'models.{name}' trains a {part} that it neither starts from nor describes")
            if model.codecs and (model.start.codec != NONE or "codec" in model.trains):
                raise UserError(f"'models.{name}' has codecs, so it can neither train nor start from a learned one")
        if self.release.model not in self.models:
            raise UserError(f"'release.model' is '{self.release.model}', which is none of `models`")
        methods = self.methods
        for name, group in self.benchmark.items():
            used = set().union(*(method.models for method in methods if method.group == name))
            if used != set(group.models) - {NONE}:
                raise UserError(f"'benchmark.{name}.models' is {group.models}, but its methods use {sorted(used)}")
        names = {method.name for method in methods}
        compared = (name for pair in self.figures.comparisons.values() for name in pair)
        shown = (self.figures.test, self.figures.decoded, *self.figures.curves, *self.figures.anchors)
        for name in (*shown, *compared):
            if name not in names | {"strongest"}:
                raise UserError(f"'figures' names the method '{name}', which is none of `benchmark`")
        return self


def read(path: str | os.PathLike = "params.yaml") -> dict:
    """The content of a YAML file, anchors and merge keys resolved, not checked.

    Raises:
        UserError: the file is missing or not YAML.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; restore it with `git checkout {path}`") from None
    except (YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        problem = (getattr(error, "problem", None) or "not a text file").strip()
        raise UserError(f"{path}{place}: not valid YAML ({problem}); correct it") from None


def load(path: str | os.PathLike = "params.yaml") -> Parameters:
    """The parameters of a study, checked.

    Raises:
        UserError: the file is missing or not YAML, or a parameter is unknown, missing, or out of its range.
    """
    return validate(read(path), path)


def validate(values: Any, path: str | os.PathLike = "params.yaml") -> Parameters:
    """Check parameters; `path` is the file named in the message.

    Raises:
        UserError: one sentence about the first thing that is wrong.
    """
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a list of `name: value` lines; restore it with `git checkout`")
    _finite(values, path)
    try:
        return Parameters.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {_sentence(error, values)}") from None
    except UserError as error:
        raise UserError(f"{path}: {str(error).removeprefix('params.yaml: ')}") from None


def part_of(values: Mapping[str, Any]) -> Parameters:
    """Some groups of parameters, such as a stage declares, checked as by `validate`; others are not there."""
    groups: dict[str, Any] = {}
    _finite(values, "params.yaml")
    for name, value in values.items():
        try:
            groups[name] = TypeAdapter(Parameters.__annotations__[name]).validate_python(value)
        except ValidationError as error:
            raise UserError(f"params.yaml: {_sentence(error, dict(values), name)}") from None
    return Parameters.model_construct(set(groups), **groups)


def change(values: dict, changes: Mapping[str, object]) -> Parameters:
    """Parameters with some replaced: {"objectives.rpo.alpha": 0.0}.

    Raises:
        UserError: a name leads through something that holds no names, or the result is no valid params.yaml.
    """
    changed = json.loads(json.dumps(values))
    for name, value in changes.items():
        *parents, last = name.split(".")
        place = changed
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise UserError(f"{name}: params.yaml has no such parameter.")
        place[last] = value
    return validate(changed)


def describe() -> dict[str, str]:
    """Dotted name of each parameter -> its meaning; `*` stands for a name that the user gives."""
    return dict(_describe(Parameters))


def _describe(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        inner = [t for t in _types(field.annotation) if isinstance(t, type) and issubclass(t, BaseModel)]
        yield prefix + name, field.description or (inner[0].__doc__ if inner else "") or ""
        for found in inner:
            starred = f"{prefix}{name}." if found is field.annotation else f"{prefix}{name}.*."
            yield from _describe(found, starred if "dict" in str(field.annotation) else f"{prefix}{name}.")


def _types(annotation: Any) -> Iterator[Any]:
    yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _types(inner)


def _finite(values: Any, path: str | os.PathLike) -> None:
    """Here, because pydantic lets values pass that it knows no type of, such as the arguments of a part."""
    for name, value in _leaves(values):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{path}: parameter '{name}' is {value}; give a finite number")


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    items = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield from _leaves(value, f"{prefix}{key}.")
    if not isinstance(values, Mapping | list):
        yield prefix.removesuffix("."), values


def _sentence(error: ValidationError, values: dict, group: str | None = None) -> str:
    """What is wrong, in one sentence; `group` is the entry of params.yaml that was checked alone."""
    # a misspelt name also shows up as a missing one: report the misspelling
    order = {"extra_forbidden": 0, "missing": 2}
    first = min(error.errors(), key=lambda e: (order.get(e["type"], 1), [str(part) for part in e["loc"]]))
    # pydantic puts the alternatives of a union into the place
    unions = ("list[", "dict[", "function-", "constrained-", "[")
    loc = [str(part) for part in (*([group] if group else []), *first["loc"])]
    parts = [part for part in loc if not part.startswith(unions)]
    name, known = ".".join(parts), describe()
    meaning = known.get(name) or known.get(_starred(parts)) or ""
    about = f" ({' '.join(meaning.split()).rstrip('.')})" if meaning else ""
    if first["type"] == "extra_forbidden":
        there = [n for n, _ in _names(values)] + [n for n in known if "*" not in n]
        close = difflib.get_close_matches(name, [n for n in there if n != name], n=1, cutoff=0.7)
        guess = f" (did you mean '{close[0]}'?)" if close else ""
        return f"unknown parameter '{name}'{guess}; remove or correct it"
    if first["type"] == "missing":
        return f"parameter '{name}' is missing; add it{about}"
    if "error" in first.get("ctx", {}):
        return str(first["ctx"]["error"])
    found = json.dumps(first["input"], default=str)
    return f"parameter '{name}' is {found}: {first['msg'][0].lower()}{first['msg'][1:]}; correct it{about}"


def _starred(parts: list[str]) -> str:
    named = parts[:1] in (["objectives"], ["models"], ["benchmark"])
    return ".".join([*parts[:1], *(["*"] if named else parts[1:2]), *parts[2:]])


def _names(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items() if isinstance(values, dict) else ():
        yield prefix + str(key), value
        yield from _names(value, f"{prefix}{key}.")


if __name__ == "__main__":
    print(json_text(Parameters.model_json_schema()))
