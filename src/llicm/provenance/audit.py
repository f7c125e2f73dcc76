# SPDX-License-Identifier: Apache-2.0
"""The whole study, checked: nothing was touched since it was made, and what is printed follows from what was measured.

Each check returns findings; a clean study has none. What each looks at:

| check | question |
|---|---|
| ``lock`` | does dvc.lock say what dvc.yaml and params.yaml say: stages, commands, inputs, outputs, parameters? |
| ``hashes`` | is every input and output on disk what the lock says? |
| ``notebooks`` | did executed notebooks run the code that is there, with the recorded parameters and inputs? |
| ``readme`` | do the README's tables equal the published ones? |
| ``figures`` | do figures and tables come out again, byte for byte, from the records, weights and pairs? |
| ``weights`` | are the weights that the command line uses those of the lineage? |
"""

import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from llicm.errors import UserError
from llicm.provenance.lineage import Pipeline, Stage, digest

__all__ = ["CHECKS", "Finding", "audit", "injected"]


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        check: name of the check. what: path or name of what is wrong.
        expected, found: what should be there, and what is. mend: what to do.
    """

    check: str
    what: str
    expected: str
    found: str
    mend: str


def audit(root: str | os.PathLike = ".", profile: str | None = None, checks: list[str] | None = None) -> list[Finding]:
    """Run the checks on a study.

    Args:
        root: the repository. profile: name of a folder below profiles/; None for the default study.
        checks: names among ``CHECKS``; all by default.

    Raises:
        UserError: an unknown check, or a lock file that is missing or damaged beyond reading.
    """
    pipeline = Pipeline(root, profile)
    unknown = sorted(set(checks or []) - set(CHECKS))
    if unknown:
        raise UserError(f"no check is called {unknown[0]!r}; choose among {', '.join(CHECKS)}.")
    return [finding for name in (checks or CHECKS) for finding in CHECKS[name](pipeline)]


def as_json(findings: list[Finding]) -> str:
    return json.dumps([asdict(finding) for finding in findings], indent=1)


def as_text(findings: list[Finding], checks: list[str]) -> str:
    """A line a check, then what was found."""
    lines = []
    for name in checks:
        count = sum(finding.check == name for finding in findings)
        lines.append(f"{name:10} {'ok' if not count else f'{count} finding' + ('s' if count > 1 else '')}")
    for finding in findings:
        lines += [
            "", f"{finding.check}: {finding.what}", f"  expected  {finding.expected}", f"  found     {finding.found}",
            f"  mend      {finding.mend}",
        ]  # fmt: skip
    return "\n".join(lines)


def _lock(pipeline: Pipeline) -> Iterator[Finding]:
    declared = _declared(pipeline)
    locked = {stage.name: stage for stage in pipeline.own if stage.command}
    for name in sorted(set(declared) | set(locked)):
        if name not in locked:
            yield Finding("lock", f"dvc.lock: {name}", "an entry", "none", "run `dvc repro`, then commit dvc.lock")
            continue
        if name not in declared:
            yield Finding(
                "lock", f"dvc.lock: {name}", "no entry: dvc.yaml has no such stage", "an entry", "run `dvc commit -f`"
            )
            continue
        command, deps, outs, params = declared[name]
        stage = locked[name]
        for what, expected, found in (
            ("command", command, stage.command),
            ("inputs", sorted(deps), sorted(pipeline.relative(path) for path in stage.deps)),
            ("outputs", sorted(outs), sorted(pipeline.relative(path) for path in stage.outs)),
        ):
            if expected != found:
                yield Finding("lock", f"dvc.lock: {what} of {name}", str(expected), str(found), "run `dvc repro`")
        for key in sorted(set(params) | set(stage.params)):
            if params.get(key) != stage.params.get(key):
                yield Finding(
                    "lock", f"params.yaml: {key} ({name})", f"{json.dumps(stage.params.get(key))}, as in dvc.lock",
                    json.dumps(params.get(key)), "restore params.yaml with git, or run `dvc repro`",
                )  # fmt: skip


def _declared(pipeline: Pipeline) -> dict[str, tuple[str, list[str], list[str], dict]]:
    """Stages as dvc.yaml and params.yaml have them now: command, inputs, outputs, parameters."""
    from dvc.repo import Repo

    def place(path: str) -> str:
        return pipeline.relative(Path(os.path.normpath(pipeline.folder / path)))

    stages = {}
    with Repo(str(pipeline.root)) as repo:
        for stage in repo.stage.load_all(str(pipeline.folder / "dvc.yaml")):
            deps, params = [], {}
            for dependency in stage.deps:
                if hasattr(dependency, "params"):
                    params.update(dependency.read_params())
                else:
                    deps.append(place(dependency.def_path))
            outs = [place(out.def_path) for out in stage.outs]
            stages[stage.name] = (stage.cmd, deps, outs, params)
    return stages


def _hashes(pipeline: Pipeline) -> Iterator[Finding]:
    known: dict[Path, str | None] = {}
    for stage in pipeline.own:
        for kind, items in (("output", stage.outs), ("input", stage.deps)):
            for path, md5 in items.items():
                if path not in known:
                    known[path] = digest(path)
                    new = True
                else:
                    new = False
                if known[path] == md5 or (not new and kind == "input" and pipeline.producer(path) is not None):
                    continue
                found = "nothing there" if known[path] is None else f"md5 {known[path]}"
                mend = (
                    "get it with `dvc checkout` or `dvc pull`" if known[path] is None
                    else "restore it with `git checkout` or `dvc checkout --force`; if it is meant, run `dvc repro`"
                )  # fmt: skip
                what = _inside(path, md5, pipeline) or pipeline.relative(path)
                yield Finding("hashes", what, f"md5 {md5} ({kind} of {stage.name})", found, mend)


def _inside(path: Path, md5: str, pipeline: Pipeline) -> str | None:
    """The files of an altered folder that differ, if DVC's cache still knows what it held."""
    listing = pipeline.root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    if not md5.endswith(".dir") or not listing.is_file() or not path.is_dir():
        return None
    held = {row["relpath"]: row["md5"] for row in json.loads(listing.read_text())}
    there = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    differing = [name for name in sorted(set(held) | there) if digest(path / name) != held.get(name)]
    return ", ".join(f"{pipeline.relative(path)}/{name}" for name in differing[:3]) or None


def _notebooks(pipeline: Pipeline) -> Iterator[Finding]:
    for stage in pipeline.own:
        source, executed = stage.source, stage.notebook
        if source is None or executed is None:
            continue
        name = pipeline.relative(executed)
        if not executed.is_file() or not source.is_file():
            continue  # `hashes` tells
        try:
            before, after = (json.loads(path.read_text(encoding="utf-8")) for path in (source, executed))
            yield from _compare(stage, name, before, after, pipeline)
        except (ValueError, KeyError, TypeError, SyntaxError) as error:
            yield Finding(
                "notebooks", name, "a notebook", f"{type(error).__name__}: {error}", f"run `dvc repro -f {stage.name}`"
            )


def _compare(stage: Stage, name: str, before: dict, after: dict, pipeline: Pipeline) -> Iterator[Finding]:
    mend = f"run `dvc repro -f {stage.name}`"
    wanted, ran = (
        ["".join(cell["source"]) for cell in nb["cells"] if cell["cell_type"] == "code" and not injected(cell)]
        for nb in (before, after)
    )
    for number, (expected, found) in enumerate(zip(wanted, ran, strict=False), 1):
        if expected != found:
            line = next(
                (pair for pair in zip(expected.splitlines(), found.splitlines(), strict=False) if pair[0] != pair[1]),
                ("a longer or shorter cell", ""),
            )
            yield Finding("notebooks", f"{name}, code cell {number}", line[0], line[1], mend)
    if len(wanted) != len(ran):
        yield Finding("notebooks", name, f"{len(wanted)} code cells", f"{len(ran)}", mend)
    given = {
        statement.targets[0].id: ast.literal_eval(statement.value)
        for cell in after["cells"]
        if injected(cell)
        for statement in ast.parse("".join(cell["source"])).body
        if isinstance(statement, ast.Assign)
    }
    from llicm.pipeline.run import nest

    locked = nest(stage.params)
    for key in sorted(set(given) | set(locked)):
        if given.get(key) != locked.get(key):
            yield Finding(
                "notebooks", f"{name}, parameter {key}", json.dumps(locked.get(key)), json.dumps(given.get(key)), mend
            )
    record = after["metadata"].get("llicm", {})
    for kind, items in (("deps", stage.deps), ("outs", stage.outs)):
        held = {os.path.normpath(path): md5 for path, md5 in record.get(kind, {}).items()}
        for path, md5 in items.items():
            relative = os.path.relpath(path, stage.folder)
            if path != stage.notebook and held.get(relative) != md5:
                yield Finding(
                    "notebooks", f"{name}, recorded {kind} {relative}", f"md5 {md5}", f"md5 {held.get(relative)}", mend
                )


def injected(cell: dict) -> bool:
    """Whether papermill put this cell into an executed notebook, with the parameters."""
    return "injected-parameters" in cell["metadata"].get("tags", [])


def _readme(pipeline: Pipeline) -> Iterator[Finding]:
    from llicm.report.tables import README_TABLES

    if pipeline.folder != pipeline.root:
        return  # it shows the default study
    path, results = pipeline.root / "README.md", pipeline.root / "results"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    for name, file in README_TABLES.items():
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        if begin not in text or end not in text:
            yield Finding("readme", f"README.md: {name}", f"markers {begin.strip()}, {end}", "none", "put them back")
            continue
        shown = text.split(begin)[1].split(end)[0]
        published = (results / file).read_text(encoding="utf-8") if (results / file).is_file() else ""
        for expected, found in _lines(published, shown):
            yield Finding("readme", f"README.md: {name}", expected, found, "run `make readme`")
            break


def _lines(a: str, b: str) -> Iterator[tuple[str, str]]:
    first, second = a.strip().splitlines(), b.strip().splitlines()
    for number in range(max(len(first), len(second))):
        pair = tuple(lines[number] if number < len(lines) else "(no line)" for lines in (first, second))
        if pair[0] != pair[1]:
            yield pair


def _figures(pipeline: Pipeline) -> Iterator[Finding]:
    """Execute the notebook of the figures again, on the same inputs, in a folder of its own; compare what it makes."""
    stage = next((stage for stage in pipeline.own if stage.name == "figures"), None)
    if stage is None or any(digest(path) is None for path in stage.deps):
        yield Finding(
            "figures", "figures", "its inputs on disk", "some are absent", "run `dvc checkout` or `dvc repro`"
        )
        return
    with tempfile.TemporaryDirectory(prefix="llicm-audit-") as folder:
        work = Path(folder)
        for path in stage.deps:
            relative = os.path.relpath(path, stage.folder)
            if relative.startswith("..") or path.suffix == ".py" or path.is_relative_to(stage.folder / "src"):
                continue
            (work / relative).parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                (work / relative).symlink_to(path)
            else:
                shutil.copy2(path, work / relative)
        ran = subprocess.run(
            [sys.executable, "-c", _AGAIN, str(pipeline.root / "src"), str(stage.source.relative_to(stage.folder))],
            input=json.dumps(stage.params), capture_output=True, text=True, cwd=work,
        )  # fmt: skip
        if ran.returncode:
            reason = (ran.stderr.strip().splitlines() or ["no reason given"])[-1]
            yield Finding("figures", "build/5_figures.ipynb", "runs", reason, "run `dvc repro -f figures`")
            return
        for path in stage.outs:
            if path == stage.notebook:
                continue
            made = work / os.path.relpath(path, stage.folder)
            for name, again, there in _files(made, path):
                if again != there:
                    yield Finding(
                        "figures", f"{pipeline.relative(path)}{name}", f"md5 {again}, drawn again from the records",
                        f"md5 {there}", "restore it with `git checkout`, or run `dvc repro -f figures`",
                    )  # fmt: skip


_AGAIN = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from llicm.pipeline import run
values = run.nest(json.load(sys.stdin))
os.environ["DVC_STAGE"] = "figures"
os.environ.update(run._environment(values))
import papermill
papermill.execute_notebook(
    sys.argv[2], "again.ipynb", parameters=values, kernel_name="python3", progress_bar=False, log_output=False,
    record_timing=False, extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
)
"""


def _files(made: Path, there: Path) -> Iterator[tuple[str, str | None, str | None]]:
    """Name below the output, hash of the new and of the old, of each file that either has."""
    if not made.is_dir() and not there.is_dir():
        yield "", digest(made), digest(there)
        return
    names = {f.relative_to(side).as_posix() for side in (made, there) for f in side.rglob("*") if f.is_file()}
    for name in sorted(names):
        yield f"/{name}", digest(made / name), digest(there / name)


def _weights(pipeline: Pipeline) -> Iterator[Finding]:
    """The released model must be what the release stage made of the arm that params.yaml names."""
    import torch

    from llicm.framework import load_part
    from llicm.model import DEFAULT_MODEL, load_model
    from llicm.pipeline.parameters import load

    path = pipeline.folder / DEFAULT_MODEL
    maker = pipeline.producer(path)
    if maker is None or not path.is_file():
        yield Finding("weights", DEFAULT_MODEL.as_posix(), "the released model", "nothing there", "run `dvc repro`")
        return
    arm = pipeline.folder / "artifacts" / "models" / load(pipeline.folder / "params.yaml")["release"]["models"]
    try:
        system = load_model(path)
    except UserError as error:
        yield Finding("weights", DEFAULT_MODEL.as_posix(), "a model", str(error), "run `dvc checkout --force`")
        return
    for kind in ("codec", "restorer"):
        file = arm / f"{kind}.safetensors"
        if not file.is_file():
            continue  # `hashes` tells
        try:
            trained = load_part(kind, file).state_dict()
        except UserError:
            continue  # likewise
        state = getattr(system, kind).state_dict()
        differing = [n for n, v in trained.items() if n not in state or not torch.equal(state[n], v.to(state[n].dtype))]
        if differing or set(trained) != set(state):
            name = differing[0] if differing else sorted(set(state) ^ set(trained))[0]
            yield Finding(
                "weights", f"{DEFAULT_MODEL.as_posix()}: {kind}.{name}", f"as in {pipeline.relative(file)}",
                "other values", "run `dvc repro release`",
            )  # fmt: skip


CHECKS: dict[str, Callable[[Pipeline], Iterator[Finding]]] = {
    "lock": _lock, "hashes": _hashes, "notebooks": _notebooks, "readme": _readme, "weights": _weights,
    "figures": _figures,
}  # fmt: skip
