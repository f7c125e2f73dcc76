# SPDX-License-Identifier: Apache-2.0
"""What provenance cannot know of this study: checks of its own, and which model wrote a ``.llicm`` file.

| check | question |
|---|---|
| ``readme`` | do README.md, docs/ and the results pages say what the results say? |
| ``figures`` | do figures and tables come out again, byte for byte, from the records, weights and pairs? |
| ``weights`` | are the weights that the command line uses those of the lineage? |
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from llicm.codec.bitstream import unpack
from llicm.errors import BitstreamError, UserError
from llicm.model import load_model
from llicm.parameters import load
from llicm.provenance.audit import Check, Finding
from llicm.provenance.lineage import FETCH, Pipeline, digest
from llicm.report.render import render
from llicm.weights import load_part

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


def _readme(pipeline: Pipeline) -> Iterator[Finding]:
    if pipeline.profile:
        return  # documents are of the repository
    for name, text in render(pipeline.root).items():
        path = pipeline.root / name
        wanted, there = text.splitlines(), path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for number in range(max(len(wanted), len(there))):
            expected, found = (lines[number] if number < len(lines) else "(no line)" for lines in (wanted, there))
            if expected != found:
                yield Finding("readme", f"{pipeline.relative(path)}:{number + 1}", expected, found, "run `make readme`")
                break


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


_AGAIN = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from llicm.pipeline import run
from llicm.provenance.lineage import nest
values = nest(json.load(sys.stdin))
os.environ.update(run._environment(values), DVC_STAGE="figures")
import papermill
papermill.execute_notebook(
    sys.argv[2], "again.ipynb", parameters={"stage": "figures", "parameters": values}, kernel_name="python3",
    progress_bar=False, log_output=False, record_timing=False, extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
)
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


STUDY_CHECKS: dict[str, Check] = {"readme": _readme, "weights": _weights, "figures": _figures}
