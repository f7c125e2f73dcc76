# SPDX-License-Identifier: Apache-2.0
"""Where an artefact comes from: the chain of stages, code, parameters and inputs behind it, every link checked.

DVC's lock files say which stage made what, from which inputs, with which parameters, each by its MD5. A lineage walks
them from an artefact back to the data (``.dvc`` files) and hashes everything on its way again: what is on disk must be
what the lock says. Nothing is run and nothing is written.

A stage may name its code by a *manifest*: an input in JSON such as ``{"modules": {"src/a.py": "<md5>"}, "packages":
{"numpy": "1.26.4"}}``, with paths from the repository. Its modules are then checked as if the lock listed them.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from llicm.errors import UserError
from llicm.files import json_text
from llicm.provenance.git import CUT, GitError, ask, boundary, bringer, head

SKIP = {"__pycache__", ".ipynb_checkpoints", ".run"}
CHANGED, ABSENT, SAME = "changed", "absent", "ok"
RESTORE = "restore it with `git checkout` or `dvc checkout --force`; if it is meant, run `dvc repro`"
FETCH = "get it with `dvc pull`, or make it with `dvc repro`"


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
    text = json.dumps(sorted(rows, key=lambda row: str(row["relpath"])), sort_keys=True)
    return hashlib.md5(text.encode()).hexdigest() + ".dir"


def members(folder: Path) -> Iterator[Path]:
    """The files below a folder that DVC counts, in no order."""
    for file in folder.rglob("*"):
        inside = file.relative_to(folder).parts[:-1]
        if file.is_file() and not SKIP & set(inside) and file.suffix != ".pyc" and file.name != ".gitignore":
            yield file


def altered(folder: Path, listing: bytes) -> dict[str, str | None]:
    """The files of a folder that are not what DVC's list of it says, with their MD5 there; None for new ones."""
    held = {row["relpath"]: row["md5"] for row in json.loads(listing)}
    there = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    return {name: held.get(name) for name in sorted({*held, *there}) if digest(folder / name) != held.get(name)}


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """Parameters by dotted name to nested ones: {"models.rdo": x} becomes {"models": {"rdo": x}}."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return nested


@dataclass(frozen=True, eq=False)
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
    params: dict[str, Any] = field(repr=False)
    sizes: dict[Path, int] = field(repr=False)

    @property
    def notebook(self) -> Path | None:
        """The executed notebook among the outputs."""
        return next((path for path in self.outs if path.suffix == ".ipynb"), None)

    @property
    def source(self) -> Path | None:
        """The notebook among the inputs, without prose and outputs."""
        return next((path for path in self.deps if path.suffix == ".ipynb"), None)

    @property
    def run(self) -> dict[str, Any] | None:
        """Seconds, host and library versions of the run that made the outputs: of this folder's own, or published."""
        own = self.folder / ".run" / "hosts" / f"{self.name.replace('/', '-')}.json"
        published = self.folder / "results" / "timing" / "stages.json"
        return _read_json(own) or _read_json(published).get(self.name)


@dataclass(frozen=True)
class Item:
    """Something that a stage used or made.

    Attributes:
        kind: "input", "output", "code" (what no stage made, and the modules of a manifest), "manifest" or "package".
        what: its path from the repository, or the name of a package.
        expected: its MD5 in the lock or the manifest, or its version. found: that now, None if nothing is there.
    """

    stage: Stage
    kind: str
    what: str
    expected: str
    found: str | None

    @property
    def state(self) -> str:
        return ABSENT if self.found is None else SAME if self.found == self.expected else CHANGED

    @property
    def remedy(self) -> str:
        """What to do where it differs."""
        if self.kind == "package":
            return "install the pinned versions; if it is meant, run `dvc repro`"
        return FETCH if self.found is None and self.kind != "code" else RESTORE


class Pipeline:
    """All lock files and ``.dvc`` files of a repository; what is on disk is hashed once.

    Args:
        root: the repository.
        profile: name of a folder below profiles/, of which `folder` then is; None for the default study.

    Raises:
        UserError: there is no dvc.lock, or one is damaged.
    """

    def __init__(self, root: str | os.PathLike = ".", profile: str | None = None):
        self.root, self.profile = Path(root).resolve(), profile
        self.folder = self.root / "profiles" / profile if profile else self.root
        if not (self.folder / "dvc.lock").is_file():
            raise UserError(f"{self.folder / 'dvc.lock'}: no such file; run `dvc repro` there first.")
        sources = sorted([*self.root.glob("*.dvc"), *self.root.glob("init/*.dvc")])
        locks = [self.root / "dvc.lock", *sorted(self.root.glob("profiles/*/dvc.lock"))]
        files = filter(Path.is_file, [*sources, *locks])
        self.stages = [stage for file in files for stage in stages_in(file)]
        self._hashes: dict[Path, str | None] = {}

    @cached_property
    def boundary(self) -> set[str]:
        """See :func:`llicm.provenance.git.boundary`."""
        return boundary(self.root)

    @property
    def own(self) -> list[Stage]:
        """The stages of `folder`, those of ``.dvc`` files first."""
        return [stage for stage in self.stages if stage.folder == self.folder or not stage.command]

    @cached_property
    def _made(self) -> dict[Path, Stage]:
        return {path: stage for stage in self.stages for path in stage.outs}

    @cached_property
    def _filled(self) -> dict[Path, list[Path]]:
        filled = defaultdict(list)
        for path in self._made:
            for folder in path.parents:
                filled[folder].append(path)
        return dict(filled)

    def producer(self, path: str | os.PathLike) -> Stage | None:
        """The stage that made a path, or the folder around it; None for what no stage made."""
        path = Path(path).resolve()
        return next((self._made[place] for place in (path, *path.parents) if place in self._made), None)

    def parts(self, folder: Path) -> list[Path]:
        """The outputs in a folder that is none itself, such as that of all models."""
        return [] if self.producer(folder) else self._filled.get(folder, [])

    def makers(self, path: Path) -> list[Stage]:
        """The stage that made a path, or those that fill it; see `producer` and `parts`."""
        maker = self.producer(path)
        return [maker] if maker else list(dict.fromkeys(self._made[part] for part in self.parts(path)))

    def relative(self, path: Path) -> str:
        """A path as seen from the repository."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)

    def digest(self, path: Path) -> str | None:
        """See :func:`digest`; as it was when first asked for."""
        if path not in self._hashes:
            self._hashes[path] = digest(path)
        return self._hashes[path]

    def locked(self, path: Path, md5: str) -> bytes | None:
        """A file's content, or DVC's listing of a folder, that had this MD5, if it is on disk or in DVC's cache."""
        cached = self.root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
        place = path if path.is_file() and self.digest(path) == md5 else cached
        return place.read_bytes() if digest(place) == md5.removesuffix(".dir") else None  # a cache may be damaged

    def items(self, stage: Stage) -> Iterator[Item]:
        """All that a stage used and made."""
        for path, md5 in stage.outs.items():
            yield Item(stage, "output", self.relative(path), md5, self.digest(path))
        for path, md5 in stage.deps.items():
            manifest = _manifest(self.locked(path, md5)) if path.suffix == ".json" else None
            kind = "manifest" if manifest else "input" if self.makers(path) else "code"
            yield Item(stage, kind, self.relative(path), md5, self.digest(path))
            if manifest:
                now = _manifest(path.read_bytes() if path.is_file() else None) or manifest
                for name, held in manifest["modules"].items():
                    inside = "/" in name or name.endswith(".py")  # else a module that is installed, by its name
                    there = self.digest(self.root / name) if inside else now["modules"].get(name)
                    yield Item(stage, "code", name, held, there)
                for name, held in manifest["packages"].items():
                    yield Item(stage, "package", name, held, now["packages"].get(name))

    def differences(self, stages: Iterable[Stage]) -> list[tuple[Item, str]]:
        """What is not as recorded, one entry a cause, each with words for which stages it touches.

        A folder is no cause of its own if something in it differs, nor a manifest if its modules or packages do; what
        lies in an output folder that is absent is none, either.
        """
        found: dict[str, list[Item]] = {}
        for item in (item for stage in stages for item in self.items(stage) if item.state != SAME):
            held = found.setdefault(item.what, [])
            held.insert(0 if item.kind == "output" else len(held), item)
        for what in sorted(found, key=lambda what: what.count("/")):  # folders before what is in them
            if what not in found:
                continue
            first, users = found[what][0], {item.stage for item in found[what]}
            causes = [other for other in found if other.startswith(f"{what}/")]
            if first.kind == "output" and first.found is None:
                for part in causes:
                    found[what] += found.pop(part)
                continue
            if first.kind == "manifest":
                own = {item.what for stage in users for item in self.items(stage) if item.kind in ("code", "package")}
                causes = [other for other in found if other in own]
            gone = found.pop(what) if causes else []
            for cause in causes:
                found[cause] += gone
        return [(items[0], _role(items)) for items in found.values()]


def _role(items: list[Item]) -> str:
    first, more = items[0], len({item.stage for item in items}) - 1
    return f"{first.kind} of {first.stage.name}" + (f" and {more} more stage{'s' * (more > 1)}" if more else "")


def _manifest(text: bytes | None) -> dict[str, dict[str, str]] | None:
    """The modules and packages of a manifest; None if the text is something else."""
    try:
        held = json.loads(text or b"null")
    except ValueError:
        return None
    if not isinstance(held, dict) or not isinstance(held.get("modules"), dict):
        return None
    return {"modules": held["modules"], "packages": held.get("packages") or {}}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        return {}


def read_yaml(path: Path, text: bytes | None = None) -> dict[str, Any]:
    """The mapping in a YAML file, or in the text that it had.

    Raises:
        UserError: the file is damaged.
    """
    try:
        found = YAML(typ="safe", pure=True).load((path.read_bytes() if text is None else text).decode())
    except (YAMLError, UnicodeDecodeError) as error:
        problem = getattr(error, "problem", None) or "not a text file"
        raise UserError(f"{path}: damaged ({problem}); restore it with `git checkout {path.name}`.") from None
    return found if isinstance(found, dict) else {}


def stage_texts(folder: Path) -> dict[str, str]:
    """Name of a stage, or of the group made by `foreach`, -> its description in the folder's dvc.yaml."""
    entries = (read_yaml(folder / "dvc.yaml").get("stages") or {}).items()
    return {name: text for name, entry in entries if (text := (entry.get("do") or entry).get("desc"))}


def stages_in(file: Path, text: bytes | None = None) -> list[Stage]:
    """The stages of a lock file, or the one of a ``.dvc`` file, as they are or as a text has them that the file had.

    Raises:
        UserError: the file is damaged.
    """
    held = read_yaml(file, text)
    entries = {file.name: held} if file.suffix == ".dvc" else held.get("stages") or {}
    return [_stage(name, file, entry) for name, entry in entries.items()]


def _stage(name: str, lock: Path, entry: dict[str, Any]) -> Stage:
    try:
        deps, outs = (
            {Path(os.path.normpath(lock.parent / item["path"])): item for item in entry.get(kind, [])}
            for kind in ("deps", "outs")
        )
        known, made = ({path: str(item["md5"]) for path, item in items.items()} for items in (deps, outs))
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{lock}: the entry of {name} is damaged; restore the file with git.") from None
    params = {key: value for group in entry.get("params", {}).values() for key, value in group.items()}
    sizes = {path: item["size"] for path, item in (deps | outs).items() if "size" in item}
    return Stage(name, lock, lock.parent, entry.get("cmd", ""), known, made, params, sizes)


@dataclass
class Lineage:
    """What lies behind an artefact.

    Attributes:
        artefact: its path from the repository. md5: of what is on disk.
        stages: one dictionary a stage, the one that made the artefact first; see `trace`.
        links: (stage, input, stage that made the input), by name.
        findings: sentences about everything on disk that differs from the lock, one a cause.
        git: commit of the working tree, its date, whether the tree is clean, and the problem if git cannot be asked.
    """

    artefact: str
    md5: str | None
    stages: list[dict[str, Any]]
    links: list[tuple[str, str, str]]
    findings: list[str]
    git: dict[str, Any]

    @property
    def verified(self) -> bool:
        return not self.findings

    def as_json(self) -> str:
        """The whole, as JSON text."""
        values = {key: getattr(self, key) for key in ("artefact", "md5", "verified", "findings", "git", "stages")}
        values["links"] = [dict(zip(("stage", "input", "made_by"), link, strict=True)) for link in self.links]
        return json_text(values)

    def as_text(self) -> str:
        """For reading: the stages from the artefact back to the data, and what was found."""
        makers = {(stage, path): maker for stage, path, maker in reversed(self.links)}
        lines = [f"{self.artefact}  {self.md5}"]
        for stage in self.stages:
            ran, about = stage["run"], [stage["pipeline"], _commit(stage)]
            if ran:
                about.append(f"{ran['seconds']:.0f} s on {ran['platform']}, Python {ran['python']}")
            lines += ["", f"{stage['stage']}  ({'; '.join(about)})"]
            lines += [f"  {stage['command']}"] if stage["command"] else []
            for key, value in stage["params"].items():
                text = json.dumps(value)
                lines.append(f"  {key} = {text if len(text) < 100 else text[:97] + '...'}")
            for kind in ("inputs", "code", "outputs"):
                for row in stage[kind]:
                    maker = makers.get((stage["stage"], row["path"])) if kind == "inputs" else None
                    by = f"  <- {maker}" if maker else ""
                    lines.append(f"  {kind.removesuffix('s'):7} {row['on_disk']:8} {row['path']}{by}")
            if stage["packages"]:
                lines.append(f"  packages {', '.join(f'{name} {held}' for name, held in stage['packages'].items())}")
        return "\n".join([*lines, "", *self._end()])

    def summary(self) -> str:
        """For reading, in at most 40 lines: whether all is as recorded, the stages with their commits, data, models."""
        groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for stage in self.stages:
            if stage["command"]:
                groups[stage["stage"].partition("@")[0]].append(stage)
        lines = [f"{self.artefact}  {self.md5}"]
        if self.links and self.links[0][0] == self.artefact:
            lines.append(f"  model   {self.links[0][1]}")
        for kind, stages in list(groups.items())[:20]:
            names = [stage["stage"].removeprefix(f"{kind}@") for stage in stages]
            name = stages[0]["stage"] if len(stages) == 1 else f"{kind} of {_some(names, 6)}"
            lines.append(f"  stage   {name}  ({_some(list(dict.fromkeys(map(_commit, stages))), 2, '; ')})")
        outs = [row["path"] for stage in self.stages for row in stage["outputs"] if stage["command"]]
        models = [path for path in outs if Path(path).parent.name == "models"]
        sources = [stage for stage in self.stages if not stage["command"]]
        data = [f"{row['path']} {row['md5']}" for stage in sources for row in stage["outputs"]]
        lines += [f"  models  {_some(models, 4)}"] if models else []
        lines += [f"  data    {text}" for text in data[:4]]  # photos, and weights that others made
        return "\n".join([*lines, *self._end(37 - len(lines)), "all of it: --full"])

    def _end(self, most: int | None = None) -> list[str]:
        """What git says, whether the lineage is verified, and so many of the findings."""
        commit = self.git["problem"] or f"git {self.git['commit']}, {'clean' if self.git['clean'] else 'changed files'}"
        if self.verified:
            return [commit, "verified"]
        shown = self.findings if most is None or len(self.findings) <= most else self.findings[: most - 1]
        more = len(self.findings) - len(shown)
        return [commit, "NOT VERIFIED", *shown, *([f"and {more} more findings"] if more else [])]


def _commit(stage: dict[str, Any]) -> str:
    commit = stage["commit"]
    return f"commit {commit['hash'][:10]} of {commit['date']}" if commit else stage["no_commit"]


def _some(words: list[str], most: int, comma: str = ", ") -> str:
    return comma.join(words[:most]) + (f"{comma}and {len(words) - most} more" if len(words) > most else "")


Resolver = Callable[[Path, Pipeline], Path | None]
"""Gives the output that a file was made by, such as a model for a file that it compressed; None for other files."""


def trace(artefact: str | os.PathLike, root: str | os.PathLike = ".", resolve: Resolver | None = None) -> Lineage:
    """Walk from an artefact back to the data.

    Args:
        artefact: any output of the pipeline or a file inside one: a figure, a table, a weight file, an executed
            notebook; or a file for which `resolve` knows the output that made it.
        root: the repository.

    Returns:
        :class:`Lineage`. Each of its stages has `stage`, `pipeline` (the lock file), `command`, `params`, `inputs`,
        `code` and `outputs` (lists of `path`, `md5`, `on_disk`: ok, changed or absent), `packages` (name -> version, of
        the manifest), `commit` (the one that brought this result: `hash` and `date`, or null), `no_commit` (why it
        is null, else ""), and `run` (seconds, host
        and library versions, or null where unknown).

    Raises:
        UserError: the artefact is missing, or no stage made it.
    """
    pipeline = Pipeline(root)
    path = Path(artefact).resolve()
    if not path.exists():
        raise UserError(f"{artefact}: no such file; {FETCH}.")
    start = (resolve(path, pipeline) if resolve else None) or path
    first = pipeline.producer(start)
    if first is None:
        raise UserError(f"{artefact}: no stage of the pipeline made it; `dvc.yaml` lists what the stages make.")
    found = _follow([first], pipeline, path)
    if path != start:
        found.links.insert(0, (found.artefact, pipeline.relative(start), first.name))
    if start.is_dir() and start not in first.outs and not any(place in first.outs for place in start.parents):
        found.findings.append(f"{found.artefact}: a folder with outputs of several stages; name one of them.")
    return found


def survey(pipeline: Pipeline) -> Lineage:
    """All stages of a study as `trace` describes them, whether or not what they made is on disk."""
    return _follow(pipeline.own, pipeline, pipeline.folder / "dvc.lock")


def _follow(first: list[Stage], pipeline: Pipeline, artefact: Path) -> Lineage:
    """Describe these stages and all behind them."""
    state = _git(pipeline.root)
    found = Lineage(pipeline.relative(artefact), digest(artefact), [], [], [], state)
    stages = list(first)
    for stage in stages:  # grows
        found.stages.append(_describe(stage, pipeline))
        for path in stage.deps:
            for maker in pipeline.makers(path):
                found.links.append((stage.name, pipeline.relative(path), maker.name))
                if maker not in stages:
                    stages.append(maker)
    for item, role in pipeline.differences(stages):
        there = "is not there" if item.found is None else f"is {item.found} here"
        lock = pipeline.relative(item.stage.lock)
        found.findings.append(f"{item.what}: {there}, but {lock} has {item.expected} as {role}; {item.remedy}.")
    return found


def _git(root: Path) -> dict[str, Any]:
    """The last commit, its date, whether the tree is clean, and why that is not known."""
    try:
        (commit, date), problem = head(root) or (None, None), None
        clean = bool(commit) and not ask(root, "status", "--porcelain=v1", "-z", "-uno")
    except GitError as error:
        commit, date, clean, problem = None, None, None, str(error)
    return {"commit": commit, "date": date, "clean": clean, "problem": problem}


def _describe(stage: Stage, pipeline: Pipeline) -> dict[str, Any]:
    rows: dict[str, list[dict[str, str]]] = defaultdict(list)
    for item in pipeline.items(stage):
        rows[item.kind].append({"path": item.what, "md5": item.expected, "on_disk": item.state})
    commit, reason = _committed(stage, pipeline)
    return {
        "stage": stage.name, "pipeline": pipeline.relative(stage.lock), "command": stage.command,
        "params": stage.params, "inputs": rows["input"] + rows["manifest"], "code": rows["code"],
        "outputs": rows["output"], "packages": {row["path"]: row["md5"] for row in rows["package"]},
        "commit": commit, "no_commit": reason, "run": stage.run,
    }  # fmt: skip


def _committed(stage: Stage, pipeline: Pipeline) -> tuple[dict[str, str] | None, str]:
    """The commit that brought this stage's result into the lock file; if it is not known, why."""
    md5 = next(iter(stage.outs.values()), None)
    try:
        found = bringer(pipeline.root, md5, stage.lock) if md5 else None
        if found is None:
            return None, "not committed"
        return (None, CUT) if found[0] in pipeline.boundary else ({"hash": found[0], "date": found[1]}, "")
    except GitError as error:
        return None, f"commit unknown: {error}"


def to_dot(found: Lineage) -> str:
    """The stages of a lineage as a graph in the language of Graphviz; an edge is an input."""
    lines = ["digraph lineage {", '  rankdir="RL"; node [shape=box, fontname="sans-serif", fontsize=10];']
    lines.append(f'  {json.dumps(found.artefact)} [shape=note, style=filled, fillcolor="#FBE3D2"];')
    for stage in found.stages:
        rows = [row for kind in ("inputs", "code", "outputs") for row in stage[kind]]
        colour = "#DCE9F5" if all(row["on_disk"] == SAME for row in rows) else "#F4B6B6"
        label = stage["stage"] + (f"\\n{stage['run']['seconds']:.0f} s" if stage["run"] else "")
        lines.append(f'  {json.dumps(stage["stage"])} [label={json.dumps(label)}, style=filled, fillcolor="{colour}"];')
    if found.stages and not any(link[0] == found.artefact for link in found.links):
        lines.append(f"  {json.dumps(found.artefact)} -> {json.dumps(found.stages[0]['stage'])};")
    for user, path, maker in dict.fromkeys(found.links):
        lines.append(f"  {json.dumps(user)} -> {json.dumps(maker)} [label={json.dumps(path)}, fontsize=8];")
    return "\n".join([*lines, "}"]) + "\n"
