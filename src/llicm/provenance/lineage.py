# SPDX-License-Identifier: Apache-2.0
"""Where an artefact comes from: the chain of stages, code, parameters and inputs behind it, every link checked.

DVC's lock files say which stage made what, from which inputs, with which parameters, each by its MD5. A lineage walks
them from an artefact back to the photos (`data.dvc`) and hashes everything on its way again: what is on disk must be
what the lock says. Nothing is run and nothing is written.
"""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from llicm.errors import UserError

__all__ = [
    "Lineage", "Pipeline", "Stage", "committed", "digest", "git", "members", "read_yaml", "stage_texts", "survey",
    "to_dot", "trace",
]  # fmt: skip

SKIP = {"__pycache__", ".ipynb_checkpoints", ".run"}
CHANGED, ABSENT, SAME = "changed", "absent", "ok"


def digest(path: str | os.PathLike) -> str | None:
    """MD5 of a file, or DVC's MD5 of a folder (it ends in ``.dir``); None if there is nothing."""
    path = Path(path)
    if path.is_file():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    if not path.is_dir():
        return None
    rows = [{"md5": digest(file), "relpath": file.relative_to(path).as_posix()} for file in members(path)]
    # DVC hashes exactly this text.
    text = json.dumps(sorted(rows, key=lambda row: row["relpath"]), sort_keys=True)
    return hashlib.md5(text.encode()).hexdigest() + ".dir"


def members(folder: Path) -> Iterator[Path]:
    """The files below a folder that DVC counts, in no order."""
    for file in folder.rglob("*"):
        if file.is_file() and not SKIP & set(file.parts) and file.suffix != ".pyc" and file.name != ".gitignore":
            yield file


@dataclass(frozen=True)
class Stage:
    """One entry of a lock file, or of a ``.dvc`` file (then without a command and inputs).

    Attributes:
        name: as in dvc.yaml, e.g. ``train@llicm``; that of the file for a ``.dvc`` file.
        lock: the lock file. folder: which its paths are relative to.
        command: what was run; "" for a ``.dvc`` file.
        deps, outs: path (absolute) -> MD5. params: dotted name -> value that the stage saw.
        sizes: path of an input or output -> bytes, where the lock file has it.
    """

    name: str
    lock: Path
    folder: Path
    command: str
    deps: dict[Path, str] = field(repr=False)
    outs: dict[Path, str] = field(repr=False)
    params: dict = field(repr=False)
    sizes: dict[Path, int] = field(repr=False, default_factory=dict)

    @property
    def notebook(self) -> Path | None:
        """The executed notebook among the outputs."""
        return next((path for path in self.outs if path.suffix == ".ipynb"), None)

    @property
    def source(self) -> Path | None:
        """The notebook among the inputs, without prose and outputs."""
        return next((path for path in self.deps if path.suffix == ".ipynb"), None)


class Pipeline:
    """All lock files and ``.dvc`` files of a repository.

    Args:
        root: the repository.
        profile: name of a folder below profiles/, of which `folder` then is; None for the default study.

    Raises:
        UserError: there is no dvc.lock, or one is damaged.
    """

    def __init__(self, root: str | os.PathLike = ".", profile: str | None = None):
        self.root = Path(root).resolve()
        self.folder = self.root / "profiles" / profile if profile else self.root
        if not (self.folder / "dvc.lock").is_file():
            raise UserError(f"{self.folder / 'dvc.lock'}: no such file; run `dvc repro` there first.")
        locks = [self.root / "dvc.lock", *sorted(self.root.glob("profiles/*/dvc.lock"))]
        locks = [lock for lock in locks if lock.is_file()]
        self.stages = [*self._data(), *(stage for lock in locks for stage in _stages(lock))]

    def _data(self) -> Iterator[Stage]:
        for path in sorted([*self.root.glob("*.dvc"), *self.root.glob("init/*.dvc")]):
            if path.is_file():
                entries = {(path.parent / out["path"]).resolve(): out for out in read_yaml(path).get("outs", [])}
                outs = {place: entry["md5"] for place, entry in entries.items()}
                sizes = {place: entry["size"] for place, entry in entries.items() if "size" in entry}
                yield Stage(path.name, path, path.parent, "", {}, outs, {}, sizes)

    @cached_property
    def _made(self) -> dict[Path, Stage]:
        return {path: stage for stage in self.stages for path in stage.outs}

    def producer(self, path: str | os.PathLike) -> Stage | None:
        """The stage that made a path, or the folder around it; None for what no stage made."""
        path = Path(path).resolve()
        return next((self._made[place] for place in (path, *path.parents) if place in self._made), None)

    @property
    def own(self) -> list[Stage]:
        """The stages of `folder`, those of ``.dvc`` files first."""
        return [stage for stage in self.stages if stage.folder == self.folder or not stage.command]

    def fills(self, folder: Path) -> bool:
        """Whether outputs of stages lie in a folder that is none itself, such as that of all models."""
        return any(out.is_relative_to(folder) for out in self._made)

    def relative(self, path: Path) -> str:
        """A path as seen from the repository."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)


def read_yaml(path: Path) -> dict:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        found = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        problem = getattr(error, "problem", None) or "not a text file"
        raise UserError(f"{path}: damaged ({problem}); restore it with `git checkout {path.name}`.") from None
    return found if isinstance(found, dict) else {}


def stage_texts(folder: Path) -> dict[str, str]:
    """Name of a stage, or of the family made by `foreach`, -> its description in the folder's dvc.yaml."""
    entries = (read_yaml(folder / "dvc.yaml").get("stages") or {}).items()
    return {name: text for name, entry in entries if (text := (entry.get("do") or entry).get("desc"))}


def _stages(lock: Path) -> Iterator[Stage]:
    folder = lock.parent
    for name, entry in (read_yaml(lock).get("stages") or {}).items():
        try:
            deps, outs = (
                {Path(os.path.normpath(folder / item["path"])): item["md5"] for item in entry.get(kind, [])}
                for kind in ("deps", "outs")
            )
        except (KeyError, TypeError):
            raise UserError(f"{lock}: the entry of {name} is damaged; restore the file with git.") from None
        params = {key: value for group in entry.get("params", {}).values() for key, value in group.items()}
        items = [item for kind in ("deps", "outs") for item in entry.get(kind, []) if "size" in item]
        sizes = {Path(os.path.normpath(folder / item["path"])): item["size"] for item in items}
        yield Stage(name, lock, folder, entry.get("cmd", ""), deps, outs, params, sizes)


@dataclass
class Lineage:
    """What lies behind an artefact.

    Attributes:
        artefact: its path from the repository. md5: of what is on disk.
        stages: one dictionary a stage, the one that made the artefact first; see `trace`.
        links: (stage, input, stage that made the input), by name; inputs that no stage made are code.
        findings: sentences about everything on disk that differs from the lock.
        git: commit of the working tree, its date, and whether the tree is clean.
    """

    artefact: str
    md5: str | None
    stages: list[dict]
    links: list[tuple[str, str, str]]
    findings: list[str]
    git: dict

    @property
    def verified(self) -> bool:
        return not self.findings

    def as_json(self) -> str:
        """The whole, as JSON text."""
        values = {key: getattr(self, key) for key in ("artefact", "md5", "verified", "findings", "git", "stages")}
        values["links"] = [dict(zip(("stage", "input", "made_by"), link, strict=True)) for link in self.links]
        return json.dumps(values, indent=1)

    def as_text(self) -> str:
        """For reading: the stages from the artefact back to the data, and what was found."""
        lines = [f"{self.artefact}  {self.md5}"]
        for stage in self.stages:
            commit, ran = stage["commit"], stage["run"]
            about = [f"{stage['pipeline']}"]
            about += [f"commit {commit['hash'][:10]} of {commit['date']}"] if commit else ["not committed"]
            if ran:
                about.append(f"{ran['seconds']:.0f} s on {ran['platform']}, Python {ran['python']}")
            lines += ["", f"{stage['stage']}  ({'; '.join(about)})"]
            if stage["command"]:
                lines.append(f"  {stage['command']}")
            for key, value in stage["params"].items():
                text = json.dumps(value)
                lines.append(f"  {key} = {text if len(text) < 100 else text[:97] + '...'}")
            for kind in ("inputs", "code", "outputs"):
                for row in stage[kind]:
                    maker = next((m for s, p, m in self.links if (s, p) == (stage["stage"], row["path"])), None)
                    by = f"  <- {maker}" if maker and kind == "inputs" else ""
                    name = kind if kind == "code" else kind[:-1]
                    lines.append(f"  {name:7} {row['on_disk']:8} {row['path']}{by}")
        state = "clean" if self.git["clean"] else "changed files"
        lines += ["", f"git {self.git['commit']}, {state}"]
        return "\n".join([*lines, *(["verified"] if self.verified else ["NOT VERIFIED", *self.findings])])


def trace(artefact: str | os.PathLike, root: str | os.PathLike = ".") -> Lineage:
    """Walk from an artefact back to the data.

    Args:
        artefact: any output of the pipeline or a file inside one: a figure, a table, a weight file, an executed
            notebook; or a ``.llicm`` file, which is traced through the model that wrote it.
        root: the repository.

    Returns:
        :class:`Lineage`. Each of its stages has `stage`, `pipeline` (the lock file), `command`, `params`, `inputs`,
        `code` and `outputs` (lists of `path`, `md5`, `on_disk`: ok, changed or absent), `commit` (the one that brought
        this result: `hash` and `date`, or null) and `run` (seconds, host and library versions, or null where unknown).

    Raises:
        UserError: the artefact is missing, or no stage made it, or no model here wrote the ``.llicm`` file.
    """
    pipeline = Pipeline(root)
    path = Path(artefact).resolve()
    if not path.exists():
        raise UserError(f"{artefact}: no such file; get it with `dvc pull`, or make it with `dvc repro`.")
    start = path
    if path.suffix == ".llicm":
        start = _model_of(path, pipeline)
    first = pipeline.producer(start)
    if first is None:
        raise UserError(f"{artefact}: no stage of the pipeline made it; `dvc.yaml` lists what the stages make.")
    found = Lineage(pipeline.relative(path), digest(path), [], [], [], _git_state(pipeline.root))
    if path != start:
        found.links.append((found.artefact, pipeline.relative(start), first.name))
    _check_inside(start, first, pipeline, found)
    _follow([first], pipeline, found)
    return found


def survey(root: str | os.PathLike = ".", profile: str | None = None) -> Lineage:
    """All stages of a study as `trace` tells of them, whether or not what they made is on disk.

    Args:
        root: the repository. profile: name of a folder below profiles/; None for the default study.

    Raises:
        UserError: the study has no dvc.lock, or one is damaged.
    """
    pipeline = Pipeline(root, profile)
    lock = pipeline.folder / "dvc.lock"
    found = Lineage(pipeline.relative(lock), digest(lock), [], [], [], _git_state(pipeline.root))
    _follow(pipeline.own, pipeline, found)
    return found


def _follow(first: list[Stage], pipeline: Pipeline, found: Lineage) -> None:
    """Describe these stages and all behind them."""
    queue, seen, hashes = list(first), {stage.name: stage for stage in first}, {}
    while queue:
        stage = queue.pop(0)
        found.stages.append(_describe(stage, pipeline, hashes, found))
        for path in stage.deps:
            maker = pipeline.producer(path)
            if maker is not None:
                found.links.append((stage.name, pipeline.relative(path), maker.name))
            elif pipeline.fills(path):
                # A folder that several stages fill, such as all models; it need not be on disk.
                for other in pipeline.stages:
                    if any(out.is_relative_to(path) for out in other.outs) and other.folder == stage.folder:
                        found.links.append((stage.name, pipeline.relative(path), other.name))
                        if other.name not in seen:
                            seen[other.name] = other
                            queue.append(other)
            if maker is not None and maker.name not in seen:
                seen[maker.name] = maker
                queue.append(maker)


def _check_inside(path: Path, stage: Stage, pipeline: Pipeline, found: Lineage) -> None:
    """Nothing may lie in an output folder that was not there when it was locked; the folder's own hash tells."""
    if path.is_dir() and path not in stage.outs:
        found.findings.append(f"{pipeline.relative(path)}: a folder with outputs of several stages; name one of them.")


def _describe(stage: Stage, pipeline: Pipeline, hashes: dict, found: Lineage) -> dict:
    lists: dict[str, list[dict]] = {"inputs": [], "code": [], "outputs": []}
    for kind, items in (("inputs", stage.deps), ("outputs", stage.outs)):
        for path, md5 in items.items():
            if path not in hashes:
                hashes[path] = digest(path)
            state = ABSENT if hashes[path] is None else SAME if hashes[path] == md5 else CHANGED
            row = {"path": pipeline.relative(path), "md5": md5, "on_disk": state}
            made = kind == "outputs" or pipeline.producer(path) is not None or pipeline.fills(path)
            lists[kind if made else "code"].append(row)
            told = any(finding.startswith(f"{row['path']}: ") for finding in found.findings)
            if state != SAME and not told:
                what = "is not there" if state == ABSENT else f"is {hashes[path]} on disk"
                found.findings.append(
                    f"{row['path']}: {what}, but {pipeline.relative(stage.lock)} has {md5} as one of the {kind} of "
                    f"{stage.name}; restore it with `git checkout` or `dvc checkout`, or run `dvc repro`."
                )
    return {
        "stage": stage.name, "pipeline": pipeline.relative(stage.lock), "command": stage.command,
        "params": stage.params, **lists,
        "commit": _commit_of(stage, pipeline.root), "run": run_of(stage, pipeline.root),
    }  # fmt: skip


def run_of(stage: Stage, root: Path) -> dict | None:
    """Seconds, host and library versions of the run that made these outputs: of this folder's own, or the published."""
    own = stage.folder / ".run" / "hosts" / f"{stage.name.replace('/', '-')}.json"
    published = stage.folder / "results" / "timing" / "stages.json"
    for path, pick in ((own, lambda d: d), (published, lambda d: d.get(stage.name))):
        if path.is_file():
            try:
                found = pick(json.loads(path.read_text(encoding="utf-8")))
            except ValueError:
                continue
            if found:
                return found
    return None


def git(root: Path, *arguments: str) -> str:
    """What git says, "" if it fails. It takes no locks, which would stand in the way of a commit at the same time."""
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def committed(folder: Path, name: str) -> bytes | None:
    """A file, by its name in a folder of the work tree, as it is in the last commit; None if it is not there."""
    done = subprocess.run(["git", "show", f"HEAD:./{name}"], cwd=folder, capture_output=True)
    return None if done.returncode else done.stdout


def _git_state(root: Path) -> dict:
    commit, _, date = git(root, "log", "-1", "--format=%H %cs").partition(" ")
    clean = bool(commit) and not git(root, "status", "--porcelain", "-uno")
    return {"commit": commit or None, "date": date or None, "clean": clean}


def _commit_of(stage: Stage, root: Path) -> dict | None:
    """The commit that brought this stage's result into the lock file."""
    md5 = next(iter(stage.outs.values()), None)
    line = git(root, "log", "--reverse", "--format=%H %cs", f"-S{md5}", "--", str(stage.lock)) if md5 else ""
    if not line:
        return None
    commit, date = line.splitlines()[-1].split()  # the last time that it came, should it have gone in between
    return {"hash": commit, "date": date}


def _model_of(path: Path, pipeline: Pipeline) -> Path:
    """The model file here whose codec wrote a ``.llicm`` file."""
    from llicm.codec.bitstream import unpack
    from llicm.errors import BitstreamError
    from llicm.framework import load_part
    from llicm.model import load_model

    try:
        wanted = unpack(path.read_bytes()).model
    except BitstreamError as error:
        raise UserError(f"{path}: {error}") from None
    candidates = [
        out if out.is_file() else file
        for stage in pipeline.stages
        for out in stage.outs
        for file in ([out] if out.is_file() else sorted(out.rglob("*.safetensors")))
        if file.name in ("llicm.safetensors", "codec.safetensors")
    ]
    # The file of the whole system first: it is what the command line uses.
    for file in sorted(candidates, key=lambda file: file.name != "llicm.safetensors"):
        try:
            codec = load_model(file).codec if file.name == "llicm.safetensors" else load_part("codec", file)
        except UserError:
            continue
        if codec is not None and codec.model_id()[: len(wanted)] == wanted:
            return file
    raise UserError(
        f"{path}: written by model {wanted.hex()}, which is none of this repository's; get its weights with `dvc "
        "pull`, or check out the commit they belong to."
    )


def to_dot(found: Lineage) -> str:
    """The stages of a lineage as a graph in the language of Graphviz; an edge is an input."""
    bad = {finding.split(":")[0] for finding in found.findings}
    lines = ["digraph lineage {", '  rankdir="RL"; node [shape=box, fontname="sans-serif", fontsize=10];']
    lines.append(f'  {json.dumps(found.artefact)} [shape=note, style=filled, fillcolor="#FBE3D2"];')
    for stage in found.stages:
        paths = [row["path"] for kind in ("inputs", "code", "outputs") for row in stage[kind]]
        colour = "#F4B6B6" if bad & set(paths) else "#DCE9F5"
        label = stage["stage"] + (f"\\n{stage['run']['seconds']:.0f} s" if stage["run"] else "")
        lines.append(f'  {json.dumps(stage["stage"])} [label={json.dumps(label)}, style=filled, fillcolor="{colour}"];')
    if found.stages and not any(link[0] == found.artefact for link in found.links):
        lines.append(f"  {json.dumps(found.artefact)} -> {json.dumps(found.stages[0]['stage'])};")
    for stage, path, maker in dict.fromkeys(found.links):
        lines.append(f"  {json.dumps(stage)} -> {json.dumps(maker)} [label={json.dumps(path)}, fontsize=8];")
    return "\n".join([*lines, "}"]) + "\n"
