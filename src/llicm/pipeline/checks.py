# SPDX-License-Identifier: Apache-2.0
"""What provenance cannot know of this study: checks of its own, and which model wrote a ``.llicm`` file.

| check | question |
|---|---|
| ``published`` | are the committed results that no lock covers those of the list published.md5, and no others? |
| ``readme`` | do README.md, docs/ and the results pages say what the results say? |
| ``shown`` | do executed notebooks show the numbers of the result files? |
| ``figures`` | do figures and tables come out again, byte for byte, from the records, weights and pairs? |
| ``weights`` | are the weights that the command line uses those of the lineage? |
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import torch

from llicm.codec.bitstream import unpack
from llicm.data.pairs import read_pairs
from llicm.errors import BitstreamError, UserError
from llicm.model import load_model
from llicm.parameters import load
from llicm.provenance.audit import NOTHING, Check, Finding
from llicm.provenance.git import GitError, committed
from llicm.provenance.lineage import FETCH, Pipeline, Stage, digest, members
from llicm.report.render import render
from llicm.report.show import psnr
from llicm.weights import load_part

PUBLISHED = "published.md5"  # as md5sum writes it; `make checksums`
RELEASED = "llicm.safetensors"  # file of a whole system, in artifacts/release


def model_of(path: Path, pipeline: Pipeline) -> Path | None:
    """The model file of a study here whose codec wrote a ``.llicm`` file; None for another kind of file.

    Raises:
        UserError: the file is damaged, or no model here wrote it.
    """
    if path.suffix != ".llicm":
        return None
    try:
        wanted = unpack(path.read_bytes()).model
    except BitstreamError as error:
        raise UserError(f"{path}: {error}") from None
    outs = [out for stage in pipeline.stages for out in stage.outs]
    files = [file for out in outs for file in ([out] if out.is_file() else sorted(out.rglob("*.safetensors")))]
    # The file of the whole system first: it is what the command line uses.
    for name in (RELEASED, "codec.safetensors"):
        for file in (file for file in files if file.name == name):
            try:
                codec: Any = load_model(file).codec if name == RELEASED else load_part("codec", file)
            except UserError:
                continue
            if codec is not None and codec.model_id()[: len(wanted)] == wanted:
                return file
    raise UserError(
        f"{path}: written by model {wanted.hex()}, which is none of this repository's; get its weights with `dvc "
        "pull`, or check out the commit they belong to."
    )


def _published(pipeline: Pipeline) -> Iterator[Finding]:
    """The list is that of the last commit, so that one that was changed together with a file is found, too."""
    if pipeline.profile:
        return  # as the documents, of the repository
    try:
        text = committed(pipeline.root, PUBLISHED) or b""
    except GitError:  # `history` says so
        text = (pipeline.root / PUBLISHED).read_bytes() if (pipeline.root / PUBLISHED).is_file() else b""
    remedy = f"restore it with `git checkout`; after measuring anew, run `make checksums` and commit {PUBLISHED}"
    if not text:
        yield Finding("published", PUBLISHED, "the list of the published results", NOTHING, remedy)
    listed = {name: md5 for md5, _, name in (line.partition("  ") for line in text.decode().splitlines())}
    for name, md5 in listed.items():
        if (found := digest(pipeline.root / name)) != md5:
            yield Finding("published", name, f"md5 {md5}", f"md5 {found}" if found else NOTHING, remedy)
    made = {path for stage in pipeline.own for path in stage.outs}
    for top in sorted({name.partition("results/")[0] for name in listed if "results/" in name}):
        for file in sorted(members(pipeline.root / top / "results")):
            name = pipeline.relative(file)
            if name not in listed and file.name != "README.md" and made.isdisjoint((file, *file.parents)):
                yield Finding("published", name, "a result of a stage, or one of the list", "neither", f"remove {name}")


def _readme(pipeline: Pipeline) -> Iterator[Finding]:
    if pipeline.profile:
        return  # documents are of the repository
    results = pipeline.folder / "results"
    own = {path: md5 for stage in pipeline.own for path, md5 in stage.outs.items() if path.is_relative_to(results)}
    altered = any(finding.what != PUBLISHED for finding in _published(pipeline))
    if altered or any(digest(path) != md5 for path, md5 in own.items()):
        return  # other checks name the result; `make readme` would copy what it says into the documents
    for name, text in render(pipeline.root).items():
        path = pipeline.root / name
        wanted, there = text.splitlines(), path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for number in range(max(len(wanted), len(there))):
            expected, found = (lines[number] if number < len(lines) else "(no line)" for lines in (wanted, there))
            if expected != found:
                yield Finding("readme", f"{pipeline.relative(path)}:{number + 1}", expected, found, "run `make readme`")
                break


def _shown(pipeline: Pipeline) -> Iterator[Finding]:
    """JSON that a notebook printed is that of a result file; the numbers of its table follow from result files."""
    for stage in pipeline.own:
        if stage.notebook is None or not stage.notebook.is_file():
            continue  # `hashes` finds that
        remedy = f"restore both with `git checkout` or `dvc checkout --force`, or run `dvc repro -f {stage.name}`"
        try:
            cells = json.loads(stage.notebook.read_text(encoding="utf-8"))["cells"]
            for number, expected, found in _unlike(stage, [cell.get("outputs", []) for cell in cells]):
                where = f"{pipeline.relative(stage.notebook)}, cell {number}"
                yield Finding("shown", where, f"{expected}, as in the results of {stage.name}", found, remedy)
        except (OSError, UserError):
            continue  # results that are absent or damaged: `hashes` finds that, too
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            yield Finding("shown", pipeline.relative(stage.notebook), "a notebook with its results", str(error), remedy)


def _unlike(stage: Stage, cells: list[list[dict[str, Any]]]) -> Iterator[tuple[int, str, str]]:
    """Cells (from 1) whose outputs are not what the results say; what these say; what is shown."""
    files = [file for out in stage.outs for file in ([out] if out.is_file() else sorted(out.rglob("*.json")))]
    results = [_flat(json.loads(file.read_text(encoding="utf-8"))) for file in files if file.suffix == ".json"]
    table = _table(stage)
    wanted = {} if table is None else {kind: _numbers(text) for kind, text in _as_shown(table).items()}
    for number, outputs in enumerate(cells, 1):
        for output in outputs:
            text = "".join(output.get("text", ""))
            shown = _flat(json.loads(text)) if text.lstrip().startswith("{") else None
            if shown and results and shown not in results:
                nearest = min(results, key=lambda held: len(held.items() ^ shown.items()))
                key = sorted(key for key in shown.keys() | nearest if shown.get(key) != nearest.get(key))[0]
                yield number, f"{key} {nearest.get(key)}", str(shown.get(key))
            if wanted and output["output_type"] == "execute_result":
                for kind in ("text/plain", "text/html"):
                    found = _numbers("".join(output["data"].get(kind, "")))
                    if found and found != wanted[kind]:
                        pairs = zip(wanted[kind], found, strict=False)
                        expected, held = next(
                            (pair for pair in pairs if pair[0] != pair[1]), ("as many numbers", "others")
                        )
                        yield number, expected, held
                        break


def _flat(held: Any, name: str = "") -> dict[str, str]:
    """The values of nested JSON, by dotted name, as text: not a number equals itself."""
    if not isinstance(held, dict):
        return {name: json.dumps(held)}
    return {key: value for part in held for key, value in _flat(held[part], f"{name}.{part}".lstrip(".")).items()}


def _table(stage: Stage) -> pd.DataFrame | pd.Series | None:
    """The table that the notebook of a stage ends in, from the files that the stage made."""
    kind, _, item = stage.name.partition("@")
    if kind == "evaluate":
        records = pd.read_csv(stage.folder / "artifacts" / "records" / item / "records.csv").query("metric == 'psnr'")
        return records.pivot_table(index=["method", "level"], columns="task", values=["bpp", "value"]).round(2)
    if kind == "degrade":
        words, pairs = [*stage.params["tasks"], *stage.params["extra"]], stage.folder / "artifacts" / "pairs"
        rows = {word: {p.name: psnr(p.degraded, p.ideal) for p in read_pairs(pairs, "val", word)} for word in words}
        table = pd.DataFrame(rows).T
        table["mean"] = table.mean(axis=1)
        return table.round(2)
    if kind == "train":
        gain = json.loads((stage.folder / "results" / "training" / f"{item}.json").read_text())["psnr_gain"]
        return pd.Series(gain, dtype=float)
    return None


def _as_shown(table: pd.DataFrame | pd.Series) -> dict[str, str]:
    """A table as a notebook shows it."""
    options = {"width": 80, "max_columns": 20, "max_rows": 60, "min_rows": 10, "notebook_repr_html": True}
    with pd.option_context(*(part for name, value in options.items() for part in (f"display.{name}", value))):
        html = table._repr_html_() if isinstance(table, pd.DataFrame) else ""  # a series is text
        return {"text/plain": repr(table), "text/html": html}


def _numbers(text: str) -> list[str]:
    return re.findall(r"-?\d+\.\d+|\binf\b|\bNaN\b", re.sub(r"<[^>]+>", " ", text))


def _figures(pipeline: Pipeline) -> Iterator[Finding]:
    """Execute the notebook of the figures again, on the same inputs, in a folder of its own; compare what it makes."""
    stage = next((stage for stage in pipeline.own if stage.name == "figures" and stage.source), None)
    if stage is None or any(digest(path) is None for path in stage.deps):
        yield Finding("figures", "figures", "its inputs on disk", "some are absent", FETCH)
        return
    with tempfile.TemporaryDirectory(prefix="llicm-audit-") as folder:
        again = f"run `dvc repro -f {stage.name}`"
        work = Path(folder) / stage.folder.relative_to(pipeline.root)  # in a repository whose documents pages link to
        work.mkdir(parents=True, exist_ok=True)
        Path(folder, "docs").symlink_to(pipeline.root / "docs")
        for path in stage.deps:
            if path.is_relative_to(stage.folder) and not path.is_relative_to(stage.folder / "src"):
                place = work / path.relative_to(stage.folder)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(path) if path.is_dir() else shutil.copy2(path, place)
        source = os.path.relpath(stage.source or "", stage.folder)
        command = [sys.executable, "-c", _AGAIN, str(pipeline.root / "src"), source]
        ran = subprocess.run(command, input=json.dumps(stage.params), capture_output=True, text=True, cwd=work)
        if ran.returncode:
            reason = (ran.stderr.strip().splitlines() or ["no reason given"])[-1]
            yield Finding("figures", source, "runs", reason, again)
            return
        for path in (path for path in stage.outs if path != stage.notebook):
            made = work / path.relative_to(stage.folder)
            for name in _files(made) | _files(path):
                new, there = digest(made / name), digest(path / name)
                if new != there:
                    what = f"{pipeline.relative(path)}{name and '/' + name}"
                    remedy = f"restore it with `git checkout`, or {again}"
                    yield Finding("figures", what, f"md5 {new}, drawn again from the records", f"md5 {there}", remedy)
        if stage.notebook is not None and stage.notebook.is_file():
            shown, new_shown = (
                [cell.get("outputs") for cell in nbformat.read(path, 4).cells]
                for path in (stage.notebook, work / "again.ipynb")
            )
            for number, (there, new) in enumerate(zip(shown, new_shown, strict=False), 1):
                if there != new:
                    what = f"{pipeline.relative(stage.notebook)}, cell {number}"
                    expected = "what the notebook shows when it is run again"
                    yield Finding("figures", what, expected, "other outputs", again)


_AGAIN = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from llicm.pipeline import run
from llicm.provenance.lineage import nest
values = nest(json.load(sys.stdin))
os.environ.update(run._environment(values), DVC_STAGE="figures")
import nbformat
made = run._execute(sys.argv[2], "again.ipynb", {"stage": "figures", "parameters": values}, open(os.devnull, "w"))
nbformat.write(run.normalise(made, {}), "again.ipynb")
"""


def _files(place: Path) -> dict[str, None]:
    """Names of the files below a folder, in order; of a file, or of nothing, an empty name."""
    files = sorted(file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file())
    return dict.fromkeys(files if place.is_dir() else [""])


def _weights(pipeline: Pipeline) -> Iterator[Finding]:
    """The released model must be what the release stage made of the model that params.yaml names."""
    path = pipeline.folder / "artifacts" / "release" / RELEASED
    name = path.relative_to(pipeline.folder).as_posix()
    if pipeline.producer(path) is None or not path.is_file():
        yield Finding("weights", name, "the released model", "nothing there", "run `dvc repro`")
        return
    try:
        system = load_model(path)
    except UserError as error:
        yield Finding("weights", name, "a model", str(error), "run `dvc checkout --force`")
        return
    trained = pipeline.folder / "artifacts" / "models" / load(pipeline.folder / "params.yaml").release.model
    for kind in ("codec", "restorer"):
        file = trained / f"{kind}.safetensors"
        try:
            wanted = load_part(kind, file).state_dict()
        except UserError:
            continue  # absent or damaged: `hashes` finds that
        state = getattr(system, kind).state_dict()
        for key in sorted(set(wanted) | set(state)):
            if key not in wanted or key not in state or not torch.equal(state[key], wanted[key].to(state[key].dtype)):
                expected = f"as in {pipeline.relative(file)}"
                yield Finding("weights", f"{name}: {kind}.{key}", expected, "other values", "run `dvc repro release`")
                break


STUDY_CHECKS: dict[str, Check] = {
    "published": _published, "readme": _readme, "shown": _shown, "weights": _weights, "figures": _figures
}  # fmt: skip
