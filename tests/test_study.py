# SPDX-License-Identifier: Apache-2.0
"""The machinery of the pipeline, on a small DVC project of its own; and rules that the repository's files keep."""

import contextlib
import copy
import fcntl
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import torch

from llicm import pipeline as study
from llicm.errors import DiskFullError, UserError
from llicm.pipeline import code as clean
from llicm.pipeline import parameters as params
from llicm.pipeline import run

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
PIPELINES = sorted((ROOT / "profiles").glob("*/dvc.yaml"))
PARAMETERS = [ROOT / "params.yaml", *sorted((ROOT / "profiles").glob("*/params.yaml"))]


def code(source, *tags):
    cell = nbformat.v4.new_code_cell(source)
    if tags:
        cell.metadata["tags"] = list(tags)
    return cell


def notebook(*cells):
    return nbformat.v4.new_notebook(cells=list(cells))


# --- a throwaway project ----------------------------------------------------------------------------------

DVC_YAML = """
stages:
  work:
    foreach: ${families}
    do:
      cmd: python ${root}/src/llicm/pipeline/run.py
      deps: [1_work.ipynb, "${root}/src/tool.py"]
      params: [seed, threads, "families.${key}"]
      outs: ["out/${key}", "executed/1_work-${key}.ipynb"]
"""
PARAMS = "root: .\nseed: 0\nthreads: 1\nfamilies: {a: {lr: 1e-3}, b: {lr: 2.0}}\n"
PARAMETERS_CELL = "seed = 1\nthreads = 1\nfamilies = {'a': {'lr': 0.5}}\n"
WORK = """
import os, pathlib, sys, warnings, tool
((name, spec),) = families.items()
print("lr", type(spec["lr"]).__name__, spec["lr"], "threads", os.environ["OMP_NUM_THREADS"])
print(object(), {"x", "y", "z"})
print("to the console", file=sys.stderr)
warnings.warn("a warning with a path and a process number")
folder = pathlib.Path("out") / name
folder.mkdir(parents=True)
(folder / "result.txt").write_text(f"{seed} {spec} {tool.VALUE}")
print(tool.__file__ == str(pathlib.Path("src/tool.py").resolve()))
"""
FIGURE = """
import matplotlib.pyplot as plt
plt.plot([1, 3, 2])
plt.show()
"""


class Project:
    """A git and DVC repository with the runner of this checkout and one notebook stage for each of two families."""

    def __init__(self, folder: Path):
        self.folder = folder
        package = folder / "src/llicm"
        shutil.copytree(ROOT / "src/llicm/pipeline", package / "study", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("__init__.py", "errors.py", "files.py"):
            shutil.copy(ROOT / "src/llicm" / name, package)
        for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
        shutil.copy(ROOT / ".dvcignore", folder)
        self.reset()

    def reset(self):
        for name in ("out", "executed", ".run"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / "dvc.lock").unlink(missing_ok=True)
        self.write("dvc.yaml", DVC_YAML)
        self.write("params.yaml", PARAMS)
        self.write("src/tool.py", "VALUE = 7\n")
        self.notebook(WORK)

    def write(self, name, text):
        (self.folder / name).write_text(text)

    def notebook(self, *sources, parameters=PARAMETERS_CELL):
        nb = notebook(code(parameters, "parameters"), *map(code, sources))
        nbformat.write(clean.clean(nb), self.folder / "1_work.ipynb")

    def command(self, *args, **more):
        environment = {
            **os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "5",
        }  # fmt: skip
        environment.pop("PYTHONPATH", None)
        return dict(args=list(args), cwd=self.folder, env={**environment, **more}, text=True)

    def dvc(self, *args):
        return subprocess.run(**self.command(sys.executable, "-m", "dvc", *args), capture_output=True, timeout=120)

    def run(self, stage="work@a"):
        return subprocess.run(**self.runner(stage), capture_output=True, timeout=120)

    def runner(self, stage="work@a"):
        script = str(self.folder / "src/llicm/pipeline/run.py")
        return self.command(sys.executable, script, DVC_STAGE=stage)

    def executed(self, name="a"):
        return self.folder / f"executed/1_work-{name}.ipynb"

    def text_of(self, name="a"):
        outputs = [o for c in nbformat.read(self.executed(name), 4).cells for o in c.get("outputs", [])]
        return "".join(o.get("text", "") for o in outputs)


@pytest.fixture(scope="module")
def _project(tmp_path_factory):
    return Project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def project(_project):
    _project.reset()
    return _project


def md5(path):
    return hashlib.md5(Path(path).read_bytes()).hexdigest()


@pytest.mark.slow
def test_a_run_in_the_pipeline_is_recorded_and_repeatable(project):
    project.notebook(WORK, FIGURE)
    first = project.dvc("repro")
    assert first.returncode == 0, first.stdout + first.stderr
    text = project.text_of("a")
    # trap 4: 1e-3 is a number, as in dvc.lock, not the text that PyYAML makes of it
    assert "lr float 0.001 threads 1\n" in text
    # trap 2: the code of this checkout, not of the installed package
    assert text.endswith("True\n")
    record = nbformat.read(project.executed("b"), 4).metadata["llicm"]
    assert record["stage"] == "work@b"
    assert record["params"] == {"seed": 0, "threads": 1, "families.b": {"lr": 2.0}}
    assert record["deps"]["1_work.ipynb"] == md5(project.folder / "1_work.ipynb")
    assert record["outs"]["out/b"].endswith(".dir")

    host = json.loads((project.folder / ".run/hosts/work@a.json").read_text())
    assert host["seconds"] > 0
    assert "to the console" in (project.folder / ".run/1_work-a.log").read_text()
    assert "to the console" in first.stderr

    before = {p: p.read_bytes() for p in (project.executed("a"), project.executed("b"), project.folder / "dvc.lock")}
    again = project.dvc("repro", "-f")
    assert again.returncode == 0, again.stderr
    for path, data in before.items():
        assert path.read_bytes() == data, f"{path.name} differs between two equal runs"

    # trap 16: importing a module does not make a stage stale
    assert project.dvc("status", "-q").returncode == 0
    # a value of one family reruns that family alone
    project.write("params.yaml", PARAMS.replace("2.0", "3.0"))
    dry = project.dvc("repro", "--dry").stdout
    assert "Running stage 'work@b'" in dry
    assert "Stage 'work@a' didn't change" in dry


@pytest.mark.parametrize(
    ("file", "text"), [("src/tool.py", "VALUE = 8\n"), ("params.yaml", PARAMS.replace("seed: 0", "seed: 4"))]
)
def test_inputs_that_change_during_a_run_refuse_it(project, file, text):  # trap 1
    project.notebook(WORK, f"pathlib.Path({file!r}).write_text({text!r})")
    result = project.run()
    assert result.returncode == 1
    assert "inputs changed" in result.stderr
    assert not project.executed().exists()
    assert not (project.folder / "out/a").exists()


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (PARAMETERS_CELL.replace("seed", "sed"), "'sed'"),
        (PARAMETERS_CELL + "extra = 3\n", "'extra'"),
        (PARAMETERS_CELL + "import os\n", "more than"),
        (PARAMETERS_CELL + "print(seed)\n", "more than"),
    ],
)
def test_the_parameters_cell_must_agree_with_the_stage(project, cell, said):  # trap 5
    project.notebook(WORK, parameters=cell)
    result = project.run()
    assert result.returncode == 1
    assert result.stderr.startswith("error: 1_work.ipynb: ")
    assert said in result.stderr
    assert not (project.folder / "out").exists()


def test_a_notebook_without_a_parameters_cell_is_refused(project):
    nbformat.write(clean.clean(notebook(code("x = 1"))), project.folder / "1_work.ipynb")
    result = project.run()
    assert result.returncode == 1
    assert "0 cells are tagged 'parameters'" in result.stderr


def test_a_second_live_run_is_refused(project):  # trap 11
    (project.folder / ".run").mkdir()
    with open(project.folder / ".run/1_work-a.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = project.run()
    assert result.returncode == 1
    assert "an earlier run of this stage is still alive" in result.stderr
    assert not (project.folder / "out").exists()


@pytest.mark.slow
def test_the_lock_is_held_while_the_notebook_runs_and_dies_with_the_runner(project):
    project.notebook("import pathlib, time\npathlib.Path('started').touch()\ntime.sleep(60)")
    orphan = subprocess.Popen(**project.runner(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if (project.folder / "started").exists():
                break
            time.sleep(0.1)
        assert "still alive" in project.run().stderr
    finally:
        orphan.kill()
        orphan.wait()
        (project.folder / "started").unlink(missing_ok=True)
    project.notebook(WORK)
    assert project.run().returncode == 0


@pytest.mark.parametrize("error", ["UserError", "BitstreamError"])
def test_a_user_error_is_one_sentence(project, error):
    raising = f"from llicm.errors import {error}\nraise {error}('photo.png: not an image; remove it')"
    project.notebook(WORK, raising)
    result = project.run()
    assert result.returncode == 1
    assert [line for line in result.stderr.splitlines() if "photo" in line or "Traceback" in line] == [
        "error: photo.png: not an image; remove it"
    ]
    assert result.stderr.splitlines()[-1] == "error: photo.png: not an image; remove it"
    assert not project.executed().exists()
    assert not (project.folder / "out/a").exists()


def test_any_other_error_shows_its_traceback_and_keeps_the_partial_notebook(project):
    project.notebook(WORK, "def broken():\n    return 1 / 0\nbroken()")
    result = project.run()
    assert result.returncode == 1
    assert "return 1 / 0" in result.stderr
    assert "ZeroDivisionError" in result.stderr
    assert "\x1b[" not in result.stderr
    assert len(result.stderr.splitlines()) < 45
    assert ".run/1_work-a.ipynb" in result.stderr
    assert (project.folder / ".run/1_work-a.ipynb").exists()
    assert not project.executed().exists()
    assert not (project.folder / "out/a").exists()


def test_an_output_that_was_not_written_is_named(project):
    project.notebook("pass")
    result = project.run()
    assert result.returncode == 1
    assert "did not write out/a" in result.stderr
    assert not project.executed().exists()


# --- interruption and full disks; on the real pipeline: tests/test_interruption.py ---------------------------


BIG = "(folder / 'big').write_bytes(bytes(300_000))"


@pytest.mark.parametrize(
    ("raising", "said"),
    [
        ("raise OSError(28, 'No space left on device')", "1_work-a.ipynb: a file could not be written (No space left"),
        (
            "from llicm.errors import DiskFullError\nraise DiskFullError(122, 'quota', 'out/a/x')",
            "out/a/x: the disk quota is used up (",
        ),
    ],
)  # fmt: skip
def test_a_full_disk_is_one_sentence(project, raising, said):
    project.notebook(WORK, f"print(' 50%', end='', file=sys.stderr)\n{raising}")  # a progress bar that stops
    result = project.run()
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"error: {said}")
    assert "make room there, then run the same command again" in result.stderr and "Traceback" not in result.stderr
    assert not project.executed().exists() and not (project.folder / "out/a").exists()


@pytest.mark.slow
@pytest.mark.parametrize("cells", [(WORK, BIG), (WORK, "print('x\\n' * 150_000)")], ids=["an output", "the notebook"])
def test_a_file_that_the_system_refuses(project, cells):
    """The limit on the size of a file stands in for the disk: writing fails in the middle, for real."""
    project.notebook(*cells)
    assert project.dvc("repro").returncode == 0
    lock = (project.folder / "dvc.lock").read_bytes()
    shutil.rmtree(project.folder / "out/a")  # as DVC does
    project.executed().unlink()
    limits = (200_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    result = subprocess.run(
        **project.runner(), capture_output=True, timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits),
    )  # fmt: skip
    assert result.returncode == 1
    said = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "make room there" in said[0], result.stderr
    assert not project.executed().exists() and not (project.folder / "out/a").exists()
    assert project.dvc("repro").returncode == 0
    assert (project.folder / "dvc.lock").read_bytes() == lock
    assert not [path for path in project.folder.rglob("*.tmp") if ".dvc" not in path.parts]


def test_no_room_for_the_runner_itself(project):
    (project.folder / ".run").mkdir()
    (project.folder / ".run/1_work-a.log").symlink_to("/dev/full")
    project.notebook(WORK)
    result = project.run()
    assert result.returncode == 1
    assert "error: 1_work-a.ipynb: a file could not be written (No space left on device" in result.stderr
    assert "Traceback" not in result.stderr and not project.executed().exists()


def test_what_a_killed_run_left_alive_is_ended_by_the_next(project):
    project.notebook("import pathlib, subprocess, time\n"
                     "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
                     "pathlib.Path('out').mkdir(exist_ok=True)\n"
                     "pathlib.Path('out/pid').write_text(str(child.pid))\ntime.sleep(600)")  # fmt: skip
    runner = subprocess.Popen(**project.runner(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pid = project.folder / "out/pid"
    while not (pid.exists() and pid.read_text()):
        assert runner.poll() is None
        time.sleep(0.05)
    runner.kill()
    runner.wait()
    orphan = Path("/proc", pid.read_text(), "environ")
    if not orphan.exists():
        pytest.skip("this system has no /proc")
    project.notebook(WORK)
    assert project.run().returncode == 0
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # gone
        assert orphan.read_bytes() == b""  # or dead and not yet reaped


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_in_the_same_bytes(project):
    project.notebook(WORK, FIGURE)
    started = time.monotonic()
    assert project.dvc("repro").returncode == 0
    whole = time.monotonic() - started
    lock = (project.folder / "dvc.lock").read_bytes()
    cut = 0
    for moment in random.Random(0).sample(range(5, 100), 4):
        started = time.monotonic()
        process = subprocess.Popen(
            **project.command(sys.executable, "-m", "dvc", "repro", "-f"), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(whole * moment / 100)
        cut += process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        mended = subprocess.run(**project.command(sys.executable, "-m", "llicm.provenance.repair_lock", PYTHONPATH="src"))
        result = project.dvc("repro")
        assert mended.returncode == result.returncode == 0, result.stderr
        assert (project.folder / "dvc.lock").read_bytes() == lock, f"killed after {moment}% of {whole:.1f} s"
        assert project.dvc("status", "-q").returncode == 0
    assert cut


# --- parts of the runner ----------------------------------------------------------------------------------


def test_dotted_parameters_are_nested():
    assert run.nest({"seed": 1, "families.rdo": {"x": 2}, "a.b.c": None}) == {
        "seed": 1, "families": {"rdo": {"x": 2}}, "a": {"b": {"c": None}},
    }  # fmt: skip


def test_normalising_removes_what_differs_between_runs():
    def executed(n):
        cell, injected = code("f()"), code("x = 1", "injected-parameters")
        injected.id = f"random{n}"
        cell.id = "c1"
        cell.metadata["execution"] = {"iopub.execute_input": f"2026-01-01T00:00:0{n}"}
        cell.metadata["papermill"] = {"duration": n}
        stream = nbformat.v4.new_output("stream", name="stdout", text=f"<Foo at 0x7f{n}>\n")
        noise = nbformat.v4.new_output("stream", name="stderr", text=f"{n}it/s")
        data = {"text/plain": f"/tmp/ipykernel_{n}/12{n}.py:1 <Axes at 0xab{n}>", "image/png": "AAAA"}
        cell.outputs = [noise, stream, nbformat.v4.new_output("display_data", data=data)]
        nb = notebook(injected, cell)
        nb.metadata = {"papermill": {"start_time": n}, "language_info": {"name": "python", "version": f"3.{n}"}}
        return nbformat.writes(run.normalise(nb, {"stage": "s"}))

    first = executed(1)
    assert first == executed(2)
    assert "at 0x0" in first
    assert "AAAA" in first
    assert json.loads(first)["metadata"]["llicm"] == {"stage": "s"}


def test_clean_keeps_code_and_tags_alone():
    nb = notebook(nbformat.v4.new_markdown_cell("prose"), code("x = 1", "parameters"), code("  \n"), code("print(x)"))
    nb.cells[3].outputs = [nbformat.v4.new_output("stream", name="stdout", text="1\n")]
    nb.cells[3].execution_count = 5
    nb.cells[3].metadata["collapsed"] = True
    other = copy.deepcopy(nb)
    other.cells[0].source = "other prose"
    other.cells[3].outputs, other.cells[3].id = [], "another"
    other.metadata["language_info"] = {"name": "python", "version": "3.12"}
    cleaned = clean.clean(nb)
    assert [c.source for c in cleaned.cells] == ["x = 1", "print(x)"]
    assert cleaned.cells[0].metadata == {"tags": ["parameters"]}
    assert cleaned.cells[1].metadata == {}
    assert cleaned.cells[1].outputs == []
    assert nbformat.writes(cleaned) == nbformat.writes(clean.clean(other))
    nbformat.validate(cleaned)


def test_write_clean_takes_numbered_notebooks_alone(tmp_path):
    nbformat.write(notebook(code("x = 1")), tmp_path / "1_a.ipynb")
    nbformat.write(notebook(code("x = 1")), tmp_path / "scratch.ipynb")
    assert [p.name for p in clean.write_clean(tmp_path, tmp_path / "build")] == ["1_a.ipynb"]
    assert sorted(p.name for p in (tmp_path / "build").iterdir()) == ["1_a.ipynb"]
    (tmp_path / "2_b.ipynb").write_text("{")
    with pytest.raises(UserError, match=r"2_b\.ipynb"):
        clean.write_clean(tmp_path, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(UserError, match="no numbered notebooks"):
        clean.write_clean(tmp_path / "build/none", tmp_path / "other")


def test_missing_photos_name_the_remedy(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such folder of photos; correct 'photos' in params\.yaml"):
        clean.check_photos({"photos": str(tmp_path / "nowhere"), "paired": None})
    with pytest.raises(UserError, match="correct 'paired'"):
        clean.check_photos({"photos": str(tmp_path), "paired": str(tmp_path / "nowhere")})
    clean.check_photos({"photos": str(tmp_path), "paired": None})


def test_missing_embedded_photos_are_pulled_with_dvc(tmp_path, monkeypatch):
    monkeypatch.setattr(clean, "ROOT", tmp_path)
    with pytest.raises(UserError, match=r"`dvc pull data\.dvc`"):
        clean.check_photos({"photos": str(tmp_path / "data"), "paired": None})


def test_enter_goes_to_the_profile_unless_the_pipeline_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "work@a")
    assert study.enter() == Path.cwd() == tmp_path
    monkeypatch.delenv("DVC_STAGE")
    assert study.enter("profiles/smoke") == Path.cwd() == ROOT / "profiles/smoke"


# --- parameters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PARAMETERS, ids=lambda p: str(p.relative_to(ROOT)))
def test_parameters_of_every_profile_are_valid(path):
    assert params.load(path)["tasks"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"training.lrr": 1}, "unknown parameter 'training.lrr' (did you mean 'training.lr'?); remove or correct it"),
        ({"train.steps": 1}, "unknown parameter 'train'"),
        ({"arms.llicm.strat": None}, "unknown parameter 'arms.llicm.strat' (did you mean 'arms.llicm.start'?)"),
        ({"arms.llicm.objective.gama": 1}, "(did you mean 'arms.llicm.objective.gamma'?)"),
        ({"families.jpeg.level": [1]}, "(did you mean 'families.jpeg.levels'?)"),
        ({"training.lr": "fast"}, "parameter 'training.lr': 'fast' is not of type 'number'; correct it"),
        ({"training.lr": 0}, "parameter 'training.lr': 0 is less than or equal to"),
        ({"threads": 0}, "parameter 'threads': 0 is less than the minimum of 1; correct it"),
        ({"seed": None}, "parameter 'seed': None is not of type 'integer'"),
        ({"degrade.test_severity": 1.5}, "parameter 'degrade.test_severity': 1.5 is greater than the maximum of 1"),
        ({"families.jpeg.methods.jpeg": "behind"}, "parameter 'families.jpeg.methods.jpeg': 'behind' is not one of"),
        ({"tasks": []}, "parameter 'tasks':"),
        ({"training.precision": "fp8"}, "parameter 'training.precision': 'fp8' is not one of"),
        ({"arms.other": "copy of llicm"}, "parameter 'arms.other':"),
        ({"codec_arms": ["codec", "ghost"]}, "'ghost' is in a list of arms but not described"),
        ({"restorer_arms": ["restorer", "llicm"]}, "'llicm' is in more than one of codec_arms, restorer_arms"),
        ({"vlm.view": "half"}, "parameter 'vlm.view': 'half' is not one of"),
        ({"arms.restorer.context": "all"}, "parameter 'arms.restorer.context': 'all' is not one of"),
        ({"train_arms": {"adapted": "separate/restorer"}}, "'arms.conventional' is never trained"),
    ],
)
def test_a_wrong_parameter_is_named_in_one_sentence(tmp_path, change, said):
    values = params.load(ROOT / "profiles/smoke/params.yaml")
    for name, value in change.items():
        node = values
        *parents, last = name.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    file = tmp_path / "params.yaml"
    file.write_text(json.dumps(values))
    with pytest.raises(UserError) as error:
        params.load(file)
    message = str(error.value)
    assert message.startswith(f"{file}: ")
    assert said in message
    assert "\n" not in message


def test_a_missing_parameter_is_named_with_its_meaning():
    values = params.load(ROOT / "profiles/smoke/params.yaml")
    del values["training"]["lr"]
    with pytest.raises(UserError, match=r"parameter 'training.lr' is missing; add it \(Peak learning rate"):
        params.validate(values)


@pytest.mark.parametrize("text", ["a: [1, 2\n", "a: 1\na: 2\n", "a: 'x\n", "\x00"])
def test_a_file_that_is_not_yaml_is_refused_with_the_place(tmp_path, text):
    file = tmp_path / "params.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"params\.yaml.*not valid YAML"):
        params.load(file)


def test_an_empty_or_missing_parameter_file_is_refused(tmp_path):
    file = tmp_path / "params.yaml"
    with pytest.raises(UserError, match="no such file"):
        params.load(file)
    file.write_text("")
    with pytest.raises(UserError, match=r"params\.yaml: must be"):
        params.load(file)


def test_yaml_is_read_as_dvc_reads_it(tmp_path):
    from dvc.utils.serialize import load_yaml

    text = (ROOT / "params.yaml").read_text().replace("lr: ", "lr: 1e-3 #")
    file = tmp_path / "params.yaml"
    file.write_text(text)
    assert params.load(file)["training"]["lr"] == 0.001
    assert params.load(file) == load_yaml(str(file))


def test_every_parameter_is_described_and_the_schema_holds_no_values():
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(params.schema())

    def walk(node, path):
        assert "default" not in node, path
        for name, child in node.get("properties", {}).items():
            assert len(child.get("description", "")) > 10, f"{path}.{name} lacks a description"
            walk(child, f"{path}.{name}")

    walk(params.schema(), "")
    for name, definition in params.schema()["$defs"].items():
        walk(definition, name)


# --- checkpoints ------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_and_is_forgotten(tmp_path, capsys):
    scratch = study.Checkpoint("x", {"lr": 0.1}, code=[], root=tmp_path)
    assert scratch.load() is None
    state = {"step": 3, "weights": torch.arange(4.0), "rows": "[1]", "optimizer": {"lr": 0.1, "betas": (0.9, 0.99)}}
    scratch.save(state)
    loaded = study.Checkpoint("x", {"lr": 0.1}, code=[], root=tmp_path).load()
    assert torch.equal(loaded.pop("weights"), state.pop("weights"))
    assert loaded == state
    assert capsys.readouterr().out == ""  # a resumed run must print what an uninterrupted one prints
    assert [p.suffix for p in tmp_path.iterdir()] == [".pt"]
    scratch.done()
    assert list(tmp_path.iterdir()) == []
    scratch.done()


def test_a_checkpoint_is_found_under_the_same_conditions_alone(tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.txt").write_text("1")
    program = tmp_path / "program.py"
    program.write_text("x = 1")

    def key(params=None, **more):
        return study.Checkpoint(
            "x", params or {"lr": 0.1}, **{"inputs": [data], "code": [program], "root": tmp_path} | more
        ).path

    first = key()
    assert first == key()
    assert first != key({"lr": 0.2})
    assert first != key(inputs=[])
    monkeypatch.setenv("LLICM_INPUTS", "other inputs of the stage")
    assert first != key()
    monkeypatch.delenv("LLICM_INPUTS")
    (data / "a.txt").write_text("2")
    second = key()
    assert first != second
    program.write_text("x = 2")
    assert second != key()
    assert key() != study.Checkpoint("x", {"lr": 0.1}, inputs=[data], root=tmp_path).path


def test_a_damaged_or_malicious_checkpoint_is_not_loaded(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "evil"),))

    scratch = study.Checkpoint("x", {}, code=[], root=tmp_path)
    scratch.path.write_bytes(b"not a checkpoint")
    assert scratch.load() is None
    torch.save(Evil(), scratch.path)
    assert scratch.load() is None
    assert not (tmp_path / "evil").exists()


def test_old_checkpoints_are_pruned(tmp_path):
    for name, days in (("x-old.pt", 15), (".x-old.pt.7.a.tmp", 15), ("x-young.pt", 13)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - days * 86400,) * 2)
    study.Checkpoint("x", {}, code=[], root=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x-young.pt"]


def test_a_checkpoint_that_finds_no_room_ends_the_training_and_leaves_the_last_one(tmp_path, monkeypatch):
    scratch = study.Checkpoint("x", {}, code=[], root=tmp_path)
    scratch.save({"step": 1})

    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[:100])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(DiskFullError, match=rf"{scratch.path}: the disk is full .*make room there"):
            scratch.save({"step": 2})
    assert scratch.load() == {"step": 1} and list(tmp_path.iterdir()) == [scratch.path]


def test_a_process_killed_while_it_writes_a_checkpoint_leaves_the_last_one(tmp_path):
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom llicm import pipeline as study\n"
        "scratch = study.Scratch('x', {}, code=[], root=sys.argv[1])\nscratch.save({'step': 1})\n"
        "def cut(self, data):\n    open(self, 'wb').write(data[:100])\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Path.write_bytes = cut\nscratch.save({'step': 2})"
    )
    # the name of a checkpoint depends on the number of threads, which other tests may have set here
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment = {**os.environ, **threads, "PYTHONPATH": str(ROOT / "src")}
    assert subprocess.run([sys.executable, "-c", program, tmp_path], env=environment).returncode == -9
    scratch = study.Checkpoint("x", {}, code=[], root=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 and scratch.load() == {"step": 1}
    scratch.save({"step": 2})
    assert list(tmp_path.iterdir()) == [scratch.path] and scratch.load() == {"step": 2}


def test_a_folder_in_place_of_a_checkpoint(tmp_path):
    old = tmp_path / "x-old"
    old.mkdir()
    os.utime(old, (time.time() - 15 * 86400,) * 2)
    scratch = study.Checkpoint("x", {"lr": 1}, code=[], root=tmp_path)
    assert not old.exists() and scratch.folder != study.Checkpoint("x", {"lr": 2}, code=[], root=tmp_path).folder
    (scratch.folder / "noisy").mkdir(parents=True)
    (scratch.folder / "noisy" / "values.json").write_text("{}")
    assert (study.Checkpoint("x", {"lr": 1}, code=[], root=tmp_path).folder / "noisy" / "values.json").exists()
    scratch.done()
    assert not scratch.folder.exists()


# --- the repository's own files -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", PIPELINES, ids=lambda p: p.parent.name)
def test_pipelines_of_the_profiles_are_copies(path):
    assert path.read_bytes() == (ROOT / "dvc.yaml").read_bytes(), f"copy dvc.yaml to {path}"
    assert not path.is_symlink()  # trap 13: a link breaks every command that reads a git revision


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_hold_no_outputs_and_one_parameters_cell(path):
    nb = nbformat.read(path, 4)
    for cell in nb.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [], "strip the outputs: nbstripout --keep-id"
            assert cell.execution_count is None
    assert run.parameter_names(path)


def test_notebooks_and_stages_agree_about_the_parameters():
    from ruamel.yaml import YAML

    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    checked = set()
    for name, stage in stages.items():
        stage = stage.get("do", stage)
        for source in (d for d in stage["deps"] if d.startswith("build/")):
            path = ROOT / "notebooks" / Path(source).name
            if path not in NOTEBOOKS:
                pytest.skip(f"{path.name} is not there")
            assert run.parameter_names(path) == {p.split(".")[0] for p in stage["params"]}, name
            checked.add(path)
    assert checked == set(NOTEBOOKS)


def test_requirements_are_pinned_and_name_no_host():
    lines = [l for l in (ROOT / "requirements.txt").read_text().splitlines() if l and not l.startswith("#")]
    assert all("==" in line and "://" not in line and not line.startswith("-") for line in lines)
    names = {line.split("==")[0] for line in lines}
    assert "torch" in names
    assert "opencv-python" not in names  # both write cv2/, and this one needs libGL
