# SPDX-License-Identifier: Apache-2.0
"""Execute the notebook of the pipeline stage named in $DVC_STAGE, which `dvc repro` sets.

- The notebook gets the name of its stage and exactly the parameters that the stage declares, read through DVC (PyYAML,
  which papermill uses, would take `1e-3` for a text): `models.rdo` arrives as `parameters = {"models": {"rdo": ...}}`.
- The executed notebook is reduced to bytes that are the same from run to run, and its metadata records the
  hashes of the inputs *as they were at the start* and of the outputs. dvc.lock holds them as they were at the
  end, so the runner refuses a run whose inputs changed meanwhile.
- It appears under its name only when all this succeeded; after a failure no output of the stage is left, and
  the partial notebook is in `.run/`. What differs between runs (progress, timings, the machine) goes there,
  too, and a copy of dvc.lock (see `llicm.provenance.repair_lock`).
"""

import os
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[0] = str(SOURCE)  # import this checkout, whatever is installed

# jsonschema, which nbformat uses, then does without checking IRIs, of which a notebook has none: to build the grammar
# takes longer than all else that the runner imports
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

import ast  # noqa: E402
import contextlib  # noqa: E402
import fcntl  # noqa: E402
import hashlib  # noqa: E402
import json  # noqa: E402
import platform  # noqa: E402
import re  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import time  # noqa: E402
from importlib import metadata  # noqa: E402
from typing import Any, TextIO  # noqa: E402

import nbformat  # noqa: E402

from llicm.errors import UserError  # noqa: E402
from llicm.files import write_atomically, write_json  # noqa: E402
from llicm.provenance.git import GitError, committed, git  # noqa: E402
from llicm.provenance.lineage import digest, nest  # noqa: E402
from llicm.provenance.repair_lock import keep_lock  # noqa: E402

_RUB = [
    (re.compile(r"ipykernel_\d+/\d+\.py"), "ipykernel/cell.py"),
    (re.compile(r"\bat 0x[0-9a-f]+"), "at 0x0"),
]
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_TRACEBACK_LINES = 25
# As Python, Arrow, Rust (safetensors) and SQLite put it.
_FULL = re.compile(r"No space left on device|Disk quota exceeded|File too large|database or disk is full")
_SHORT = re.compile(r"\d+ requested and \d+ written")  # all that NumPy says of a full disk
# Those whose version may change a result.
LIBRARIES = (
    "torch", "torchvision", "numpy", "scipy", "scikit-image", "pillow", "pillow-heif", "compressai", "constriction",
    "open_clip_torch", "pyiqa", "pytorch-msssim", "bjontegaard", "pandas", "matplotlib", "dvc", "papermill",
)  # fmt: skip


def _rub(text: str) -> str:
    for pattern, new in _RUB:
        text = pattern.sub(new, text)
    return text


def normalise(notebook: nbformat.NotebookNode, record: dict) -> nbformat.NotebookNode:
    """Remove from an executed notebook what differs between equal runs and store `record` in it (in place).

    Dropped are timings, execution metadata, random cell ids and stderr; addresses and process numbers in
    texts are replaced by constants.
    """
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
        if tags and "injected-parameters" in tags:
            cell.id = "injected-parameters"
        if cell.cell_type != "code":
            continue
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        for output in cell.outputs:
            if output.output_type == "stream":
                output.text = _rub(output.text)
            for kind, value in output.get("data", {}).items():
                if kind.startswith("text/"):
                    output.data[kind] = _rub(value)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}, "llicm": record}
    return notebook


def parameter_names(path: str | os.PathLike) -> set[str]:
    """Names assigned in the one cell tagged `parameters`.

    Raises:
        UserError: there is no such cell or more than one, or it holds anything but assignments to plain names.
    """
    cells = [c for c in nbformat.read(path, 4).cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise UserError(f"{path}: {len(cells)} cells are tagged 'parameters'; tag exactly one")
    names = set()
    for statement in ast.parse(cells[0].source).body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else None
        if not isinstance(target, ast.Name):
            raise UserError(
                f"{path}: the parameters cell holds more than `name = value` lines; move the rest out of it"
            )
        names.add(target.id)
    return names


def inputs(name: str):
    """The stage `name` of ./dvc.yaml, and the hashes and parameter values it would depend on at this moment.

    Returns:
        The DVC stage, and {"deps": path -> md5, "params": dotted name -> value}.
    """
    from dvc.dvcfile import load_file
    from dvc.repo import Repo

    with Repo() as repo:
        file = load_file(repo, "dvc.yaml")
        file.lockfile_contents = {}  # what an earlier run recorded plays no part, and takes DVC a second to read
        stage = file.stages[name]
        files, values = {}, {}
        for dependency in stage.deps:
            if hasattr(dependency, "params"):
                found = dependency.read_params()
                missing = sorted(set(dependency.params) - set(found))
                if missing:
                    raise UserError(f"params.yaml: parameter '{missing[0]}' is missing, stage {name} needs it; add it")
                values.update(found)
            elif not dependency.exists:
                raise UserError(f"{dependency.def_path}: missing input of stage {name}; make it with `dvc repro`")
            else:
                files[dependency.def_path] = dependency.get_hash().value
                _check_adopted(Path(f"{Path(dependency.def_path).resolve()}.dvc"))
                if re.fullmatch(r"build/.+\.json", dependency.def_path):
                    _check_code(Path(dependency.def_path))
    return stage, {"deps": dict(sorted(files.items())), "params": values}


def _check_adopted(file: Path) -> None:
    """Refuse photos or weights that are new to git: `dvc repro` takes a folder that lost some for the new data set."""
    if not file.is_file() or "DVC_EXP_NAME" in os.environ:  # an experiment keeps what it ran on
        return
    with contextlib.suppress(GitError):
        if committed(file.parent, file.name) != file.read_bytes():
            name = file.name
            raise UserError(
                f"{name}: not as in the last commit, for what it names has changed; get that back with `git checkout "
                f"HEAD {name}` and `dvc pull --force {name}`, or commit {name}, then run it again"
            )


def _check_code(manifest: Path) -> None:
    """The modules must still be those of the manifest, which the stage `code` wrote."""
    for module, md5 in json.loads(manifest.read_text(encoding="utf-8"))["modules"].items():
        if digest(SOURCE.parent / module) not in (md5, None):  # None: a part outside the package
            raise UserError(f"{module}: changed since the stage code wrote {manifest}; run `dvc repro` again")


class _Tee:
    """What the notebook writes to stderr (progress, warnings) goes to the log and to the console."""

    def __init__(self, *streams: TextIO):
        self.streams, self.last = streams, "\n"

    def write(self, text: str) -> None:
        self.last = text or self.last
        for stream in self.streams:
            stream.write(text)

    def flush(self) -> None:
        for stream in self.streams:
            stream.flush()


def _environment(values: dict) -> dict[str, str]:
    """Environment of the kernel: what makes runs repeatable must be set before its process starts."""
    fixed = {
        "PYTHONPATH": str(SOURCE),
        "PYTHONHASHSEED": "0",
        "SOURCE_DATE_EPOCH": "0",
        "NO_COLOR": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "JUPYTER_PREFER_ENV_PATH": "1",  # a kernel in the user's home must not shadow this environment's
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        # glibc gives large blocks back to the system at once and asks for them again: a fifth of a training step
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
        "MALLOC_TOP_PAD_": str(256 << 20),
        "TQDM_MININTERVAL": "1" if sys.stderr.isatty() else "30",
        "TQDM_NCOLS": "100",
        # progress is text here, not a widget; pyiqa's NIQE meets flat blocks and says so once a process
        "PYTHONWARNINGS": "ignore:IProgress not found,ignore:cov()",
    }
    if "threads" in values:
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        fixed |= dict.fromkeys(names, str(values["threads"]))
    return fixed


def _execute(source: str, work: Path, parameters: dict, log: TextIO) -> nbformat.NotebookNode:
    import papermill

    tee = _Tee(log, sys.stderr)
    try:
        return papermill.execute_notebook(
            source, str(work), parameters=parameters, kernel_name="python3", progress_bar=False, stderr_file=tee,
            coalesce_streams=True, record_timing=False, store_widget_state=False,
            shutdown_kernel="immediate",  # all is written; one that is asked to end may complain of its own open tasks
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # its log is about itself, not the notebook
        )  # fmt: skip
    finally:
        if not tee.last.endswith("\n"):  # a progress bar that stopped: what is said next begins a line
            print(file=sys.stderr)


def _user_errors() -> set[str]:
    found, queue = set(), [UserError]
    while queue:
        cls = queue.pop()
        found.add(cls.__name__)
        queue += cls.__subclasses__()
    return found


def _explain(error: Any, work: Path) -> str:
    """What to say of a notebook that failed: the sentence of a UserError, else the end of the traceback."""
    name = getattr(error, "ename", None)
    if name in _user_errors():
        return f"error: {error.evalue}"
    said = str(error) if name is None else error.evalue
    if full := _FULL.search(said):
        return _full(work.name, full[0])
    if _SHORT.search(said):
        return _full(work.name, "the file was cut short")
    if name is None:  # not an exception of the notebook, for example a kernel that was killed
        return f"error: {type(error).__name__}: {error}\nThe partial notebook is {work}."
    lines = _ANSI.sub("", "\n".join(error.traceback)).rstrip().splitlines()
    shown = ["[...]", *lines[-_TRACEBACK_LINES:]] if len(lines) > _TRACEBACK_LINES else lines
    return "\n".join([*shown, f"error: the notebook failed with {name}; as far as it got, it is {work}"])


def _full(name: str, reason: str) -> str:
    """What to say where the library that wrote did not name its file: all that a stage writes is in this folder."""
    free = shutil.disk_usage(".").free / 1e6
    return (
        f"error: {name}: a file could not be written ({reason}; {free:.1f} MB are free in {Path.cwd()}); make room "
        "there, then run the same command again."
    )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _end_orphans(lock: str) -> None:
    """End what an earlier run, which was killed, has left: its kernel for a second, its pool of workers for ever.

    Each has the path of the run's lock, which nobody holds but this process, in its environment.
    """
    mark = f"LLICM_RUN={os.path.abspath(lock)}".encode()
    for process in Path("/proc").glob("[0-9]*"):  # elsewhere than on Linux it finds nothing
        with contextlib.suppress(OSError):
            if mark in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)


def _hash_outs(stage, source: str, target: Path) -> dict[str, str]:
    """Path -> md5 of the outputs other than the executed notebook."""
    hashes = {}
    for out in stage.outs:
        if Path(out.def_path) == target:
            continue
        if not out.exists:
            raise UserError(f"{source}: did not write {out.def_path}, an output of its stage; make it do so")
        hashes[out.def_path] = out.get_hash().value
    return dict(sorted(hashes.items()))


def _host(seconds: float, started: float) -> dict:
    try:
        commit = git(Path(), "rev-parse", "--verify", "-q", "HEAD")
    except GitError:
        commit = ""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(seconds, 1),
        "commit": commit or None,
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
    }


def run(address: str) -> None:
    """Run the stage at `address` (as in $DVC_STAGE: `[path/dvc.yaml:]name`) in the current folder.

    Raises:
        UserError: the stage and its notebook disagree about the parameters, another run is alive, an input is
            missing or changed during the run, an output was not written, or the disk is full.
        SystemExit: the notebook failed; the message is for the console.
    """
    name = address.rsplit(":", 1)[-1]
    stage, record = inputs(name)
    outs = [out.def_path for out in stage.outs]
    source = next(p for p in record["deps"] if p.endswith(".ipynb"))
    target = Path(next(p for p in outs if p.endswith(".ipynb")))
    work = Path(".run", target.name)
    work.parent.mkdir(exist_ok=True)

    # Killing only DVC leaves a runner and its kernel alive and writing: never work beside one.
    with open(work.with_suffix(".lock"), "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{address}: an earlier run of this stage is still alive; stop it first") from None
        _end_orphans(lock.name)

        if (named := parameter_names(source)) != {"stage", "parameters"}:
            raise UserError(f"{source}: its parameters cell names {sorted(named)}, but must name stage and parameters")
        parameters = nest(record["params"])
        os.environ.update(_environment(parameters) | {"LLICM_RUN": os.path.abspath(lock.name)})
        # For checkpoints: a state may be resumed only on the very same inputs.
        seen = json.dumps(record, sort_keys=True).encode()
        os.environ["LLICM_INPUTS"] = hashlib.sha256(seen).hexdigest()
        started, clock = time.time(), time.perf_counter()
        try:
            keep_lock(Path())
            with open(work.with_suffix(".log"), "w", encoding="utf-8") as log:
                notebook = _execute(source, work, {"stage": name, "parameters": parameters}, log)
            try:
                after, now = inputs(name)
            except UserError:
                now = None
            if now != record:
                raise UserError(
                    f"{address}: its inputs changed while the notebook ran, nothing is recorded; run it again"
                )
            record = {"stage": address, **record, "outs": _hash_outs(after, source, target)}
            hosts = Path(".run/hosts", f"{name.replace('/', '-')}.json")
            write_json(_host(time.perf_counter() - clock, started), hosts)
            write_atomically(target, (nbformat.writes(normalise(notebook, record)) + "\n").encode())
        except BaseException as error:
            for path in outs:
                _remove(Path(path))
            if isinstance(error, UserError) or not isinstance(error, Exception):
                raise
            raise SystemExit(_explain(error, work)) from None
        work.unlink(missing_ok=True)


if __name__ == "__main__":
    if "DVC_STAGE" not in os.environ:
        sys.exit("error: this program runs a stage of the pipeline; start it with `dvc repro`")
    try:
        run(os.environ["DVC_STAGE"])
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # before the notebook: a folder that cannot be made, a full disk
        sys.exit(_full(os.environ["DVC_STAGE"], str(error.strerror)) if _FULL.search(str(error)) else f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
