# SPDX-License-Identifier: Apache-2.0
"""A whole study, checked: nothing was touched since it was made.

Each check returns findings; a clean study has none. A study may add checks of its own. What those here look at:

| check | question |
|---|---|
| ``lock`` | does dvc.lock say what dvc.yaml and params.yaml say: stages, commands, inputs, outputs, parameters? |
| ``history`` | does dvc.lock have the results of the last commit? |
| ``hashes`` | is every input, module and output on disk what the lock says? |
| ``notebooks`` | did executed notebooks run the code that is there, with the recorded parameters and inputs? |
"""

import ast
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llicm.errors import UserError
from llicm.files import json_text
from llicm.provenance.git import GitError, committed
from llicm.provenance.lineage import Pipeline, Stage, altered, members, nest, stages_in

NOTHING = "nothing there"  # of what is absent


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        check: name of the check. what: path or name of what is wrong.
        expected, found: what should be there, and what is. remedy: what to do.
    """

    check: str
    what: str
    expected: str
    found: str
    remedy: str


Check = Callable[[Pipeline], Iterator[Finding]]


def audit(
    root: str | os.PathLike = ".", profile: str | None = None, checks: Sequence[str] | None = None,
    more: Mapping[str, Check] | None = None, progress: Callable[[str], None] = lambda line: None,
) -> list[Finding]:  # fmt: skip
    """Run the checks on a study.

    Args:
        root: the repository. profile: name of a folder below profiles/; None for the default study.
        checks: names among ``CHECKS`` and `more`; all by default. more: the study's own checks.
        progress: gets a line as each check begins.

    Raises:
        UserError: an unknown check, or a lock file that is missing or damaged beyond reading.
    """
    pipeline, known = Pipeline(root, profile), CHECKS | dict(more or {})
    for name in checks or ():
        if name not in known:
            raise UserError(f"no check is called {name!r}; choose among {', '.join(known)}.")
    found: list[Finding] = []
    names = checks or list(known)
    for number, name in enumerate(names, 1):
        progress(f"check {number} of {len(names)}: {name}")
        found += known[name](pipeline)
    return found


def as_json(findings: Sequence[Finding]) -> str:
    """The findings, as JSON text."""
    return json_text([asdict(finding) for finding in findings])


def as_text(findings: Sequence[Finding], checks: Sequence[str]) -> str:
    """A line a check, then what was found."""
    lines = []
    for name in checks:
        count = sum(finding.check == name for finding in findings)
        lines.append(f"{name:10} {'ok' if not count else f'{count} finding' + ('s' if count > 1 else '')}")
    for finding in findings:
        lines += ["", f"{finding.check}: {finding.what}"]
        lines += [f"  {name:9} {getattr(finding, name)}" for name in ("expected", "found", "remedy")]
    return "\n".join(lines)


def _lock(pipeline: Pipeline) -> Iterator[Finding]:
    declared, locked = _declared(pipeline), {stage.name: stage for stage in pipeline.own if stage.command}
    for name in sorted(set(declared) | set(locked)):
        if name not in locked:
            yield Finding("lock", f"dvc.lock: {name}", "an entry", "none", "run `dvc repro`, then commit dvc.lock")
            continue
        if name not in declared:
            expected = "no entry: dvc.yaml has no such stage"
            yield Finding("lock", f"dvc.lock: {name}", expected, "an entry", "run `dvc commit -f`")
            continue
        now, stage = declared[name], locked[name]
        for what, wanted, held in (
            ("command", now.command, stage.command),
            ("inputs", *(sorted(map(pipeline.relative, side.deps)) for side in (now, stage))),
            ("outputs", *(sorted(map(pipeline.relative, side.outs)) for side in (now, stage))),
        ):
            if wanted != held:
                yield Finding("lock", f"dvc.lock: {what} of {name}", str(wanted), str(held), "run `dvc repro`")
        for key, before, after in _differing(stage.params, now.params):
            yield Finding(
                "lock", f"params.yaml: {key} ({name})", f"{before}, as in dvc.lock", after,
                "restore params.yaml with git, or run `dvc repro`",
            )  # fmt: skip


def _declared(pipeline: Pipeline) -> dict[str, Stage]:
    """Stages as dvc.yaml and params.yaml have them now, without hashes."""
    from dvc.repo import Repo

    def places(items: list) -> dict[Path, str]:
        return {Path(os.path.normpath(pipeline.folder / item.def_path)): "" for item in items}

    stages, file = {}, pipeline.folder / "dvc.yaml"
    with Repo(str(pipeline.root)) as repo:
        for stage in repo.stage.load_all(str(file)):
            params: dict[str, Any] = {}
            for dependency in stage.deps:
                params |= dependency.read_params() if hasattr(dependency, "params") else {}
            deps = places([dependency for dependency in stage.deps if not hasattr(dependency, "params")])
            stages[stage.name] = Stage(stage.name, file, file.parent, stage.cmd, deps, places(stage.outs), params, {})
    return stages


def _differing(before: dict[str, Any], after: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for key in sorted(set(before) | set(after)):
        if before.get(key) != after.get(key):
            yield key, json.dumps(before.get(key)), json.dumps(after.get(key))


def _history(pipeline: Pipeline) -> Iterator[Finding]:
    """One finding a lock file or ``.dvc`` file whose hashes are not those of the last commit."""
    for lock in dict.fromkeys(stage.lock for stage in pipeline.own):
        name = pipeline.relative(lock)
        try:
            text = committed(lock.parent, lock.name)
        except GitError as error:
            yield Finding("history", name, "what the last commit has", str(error), "let git read the repository")
            return  # the same for all
        if text is None or text == lock.read_bytes():
            continue
        now = {stage.name: stage for stage in pipeline.own if stage.lock == lock}
        differing, first = [], None
        for before in stages_in(lock, text):
            after = now.get(before.name)
            for path, md5 in before.outs.items():
                held = after.outs.get(path) if after else None
                if held != md5:
                    differing.append(pipeline.relative(path))
                    first = first or (md5, held)
        if first:
            more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            yield Finding(
                "history", f"{name}: {', '.join(differing[:3])}{more}", f"md5 {first[0]}, as in the last commit",
                f"md5 {first[1]}" if first[1] else "no such output",
                f"restore {name} and these with `git checkout` and `dvc checkout`; after a run of your own, commit it",
            )  # fmt: skip


def _hashes(pipeline: Pipeline) -> Iterator[Finding]:
    for item, role in pipeline.differences(pipeline.own):
        unit = "" if item.kind == "package" else "md5 "
        found = NOTHING if item.found is None else f"{unit}{item.found}"
        what = _inside(pipeline.root / item.what, item.expected, pipeline) or item.what
        yield Finding("hashes", what, f"{unit}{item.expected} ({role})", found, item.remedy)
    for stage in pipeline.own:
        for path, size in stage.sizes.items():
            there = sum(file.stat().st_size for file in ([path] if path.is_file() else members(path)))
            if there != size and pipeline.digest(path) == (stage.outs | stage.deps)[path]:
                what = f"{pipeline.relative(stage.lock)}: size of {pipeline.relative(path)} ({stage.name})"
                yield Finding("hashes", what, f"{there} bytes", f"{size}", f"restore {stage.lock.name} with git")


def _inside(path: Path, md5: str, pipeline: Pipeline) -> str | None:
    """The files of an altered folder that differ, if DVC's cache still knows what it held."""
    listing = pipeline.locked(path, md5) if path.is_dir() and md5.endswith(".dir") else None
    if listing is None:
        return None
    return ", ".join(f"{pipeline.relative(path)}/{name}" for name in list(altered(path, listing))[:3]) or None


def _notebooks(pipeline: Pipeline) -> Iterator[Finding]:
    for stage in pipeline.own:
        source, executed = stage.source, stage.notebook
        if source is None or executed is None or not executed.is_file() or not source.is_file():
            continue  # `hashes` finds what is absent
        name, remedy = pipeline.relative(executed), f"run `dvc repro -f {stage.name}`"
        try:
            before, after = (json.loads(path.read_text(encoding="utf-8")) for path in (source, executed))
            for where, expected, found in _compare(stage, before, after):
                yield Finding("notebooks", f"{name}{where}", expected, found, remedy)
        except (ValueError, KeyError, TypeError, SyntaxError) as error:
            yield Finding("notebooks", name, "a notebook", f"{type(error).__name__}: {error}", remedy)


def _compare(stage: Stage, before: dict[str, Any], after: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Where an executed notebook is not its source, run with what the lock says; what is expected; what is found."""
    wanted, ran = (
        [(cell["cell_type"], "".join(cell["source"])) for cell in nb["cells"] if not injected(cell)]
        for nb in (before, after)
    )
    for number, ((kind, expected), (held, found)) in enumerate(zip(wanted, ran, strict=False), 1):
        if (kind, expected) != (held, found):
            pairs = zip(expected.splitlines(), found.splitlines(), strict=False)
            line = next((pair for pair in pairs if pair[0] != pair[1]), ("a longer or shorter cell", ""))
            yield f", {held} cell {number}", *line
    if len(wanted) != len(ran):
        yield "", f"{len(wanted)} cells", f"{len(ran)}"
    given = {
        statement.targets[0].id: ast.literal_eval(statement.value)
        for cell in after["cells"] if injected(cell)
        for statement in ast.parse("".join(cell["source"])).body
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }  # fmt: skip
    # All parameters in one dictionary, or each by its name.
    for key, expected, found in _differing(nest(stage.params), given.get("parameters", given)):
        yield f", parameter {key}", expected, found
    record = after["metadata"].get("llicm", {})
    for kind, items in (("deps", stage.deps), ("outs", stage.outs)):
        held = {os.path.normpath(path): md5 for path, md5 in record.get(kind, {}).items()}
        for path, md5 in items.items():
            relative = os.path.relpath(path, stage.folder)
            if path != stage.notebook and held.get(relative) != md5:
                yield f", recorded {kind} {relative}", f"md5 {md5}", f"md5 {held.get(relative)}"


def injected(cell: Mapping[str, Any]) -> bool:
    """Whether papermill put this cell into an executed notebook, with the parameters."""
    return "injected-parameters" in cell["metadata"].get("tags", [])


CHECKS: dict[str, Check] = {"lock": _lock, "history": _history, "hashes": _hashes, "notebooks": _notebooks}
