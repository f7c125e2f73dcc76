# SPDX-License-Identifier: Apache-2.0
"""The runner of the pipeline's notebooks, on a small DVC project of its own."""

import contextlib
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
from cells import code, notebook

from llicm.errors import UserError
from llicm.pipeline import run
from llicm.pipeline.code import strip
from llicm.provenance.lineage import nest

ROOT = Path(__file__).resolve().parents[1]


# --- a throwaway project ----------------------------------------------------------------------------------

DVC_YAML = """
stages:
  work:
    foreach: ${models}
    do:
      cmd: python ${root}/src/llicm/pipeline/run.py
      deps: [1_work.ipynb, build/work.json]
      params: [seed, threads, "models.${key}"]
      outs: ["out/${key}", "executed/1_work-${key}.ipynb"]
"""
PARAMS = "root: .\nseed: 0\nthreads: 1\nmodels: {a: {lr: 1e-3}, b: {lr: 2.0}}\n"
PARAMETERS_CELL = "stage = 'work@a'\nparameters = None\n"
WORK = """
import os, pathlib, sys, warnings, tool
name, spec, seed = stage.split("@")[1], *parameters["models"].values(), parameters["seed"]
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
    """A git and DVC repository with the runner of this checkout and one notebook stage for each of two models."""

    def __init__(self, folder: Path):
        self.folder = folder
        package = folder / "src/llicm"
        for room in ("pipeline", "provenance"):
            shutil.copytree(ROOT / "src/llicm" / room, package / room, ignore=shutil.ignore_patterns("__pycache__"))
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
        self.tool("VALUE = 7\n")
        self.notebook(WORK)

    def write(self, name, text):
        (self.folder / name).parent.mkdir(exist_ok=True)
        (self.folder / name).write_text(text)

    def tool(self, text):
        """The one module that the notebook imports, and the manifest that names it."""
        self.write("src/tool.py", text)
        modules = {"src/tool.py": md5(self.folder / "src/tool.py")}
        self.write("build/work.json", json.dumps({"modules": modules, "packages": {}}))

    def notebook(self, *sources, parameters=PARAMETERS_CELL):
        nb = notebook(code(parameters, "parameters"), *map(code, sources))
        nbformat.write(strip(nb), self.folder / "1_work.ipynb")

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
    assert record["params"] == {"seed": 0, "threads": 1, "models.b": {"lr": 2.0}}
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
    # a value of one model reruns that model alone
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
        (PARAMETERS_CELL.replace("stage", "stag"), "'stag'"),
        (PARAMETERS_CELL + "extra = 3\n", "'extra'"),
        (PARAMETERS_CELL + "import os\n", "more than"),
        (PARAMETERS_CELL + "print(stage)\n", "more than"),
    ],
)
def test_the_parameters_cell_must_agree_with_the_stage(project, cell, said):  # trap 5
    project.notebook(WORK, parameters=cell)
    result = project.run()
    assert result.returncode == 1
    assert result.stderr.startswith("error: 1_work.ipynb: ")
    assert said in result.stderr
    assert not (project.folder / "out").exists()


def test_a_module_that_is_not_that_of_the_manifest_refuses_the_run(project):
    """As when it is edited while an earlier stage runs: DVC compares the manifest alone."""
    project.write("src/tool.py", "VALUE = 8\n")
    result = project.run()
    assert result.returncode == 1
    said = "error: src/tool.py: changed since the stage code wrote build/work.json; run `dvc repro` again"
    assert result.stderr.splitlines() == [said]
    assert not (project.folder / "out").exists()


def test_photos_that_are_new_to_git_are_refused(tmp_path, monkeypatch):
    file = tmp_path / "data.dvc"
    file.write_text("md5: 1\n")
    run._check_adopted(file)  # no repository: nothing to compare with
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    with pytest.raises(
        UserError, match=r"data.dvc: not as in the last commit.*`git checkout HEAD data.dvc`.*or commit"
    ):
        run._check_adopted(file)
    for command in (["add", "data.dvc"], [*author, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    run._check_adopted(file)
    file.write_text("md5: 2\n")
    with pytest.raises(UserError):
        run._check_adopted(file)
    monkeypatch.setenv("DVC_EXP_NAME", "an experiment, which keeps what it ran on")
    run._check_adopted(file)
    run._check_adopted(tmp_path / "absent.dvc")


def test_a_notebook_without_a_parameters_cell_is_refused(project):
    nbformat.write(strip(notebook(code("x = 1"))), project.folder / "1_work.ipynb")
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


def test_a_kernel_that_is_done_is_not_asked_to_end(project):
    """Asked, it stops between two steps of its own tasks, and says now and then that one of them was pending."""
    project.notebook(WORK, "import atexit, pathlib\natexit.register(pathlib.Path('asked').touch)")
    assert project.run().returncode == 0
    assert not (project.folder / "asked").exists()


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
        mended = subprocess.run(
            **project.command(sys.executable, "-m", "llicm.provenance.repair_lock", PYTHONPATH="src")
        )
        result = project.dvc("repro")
        assert mended.returncode == result.returncode == 0, result.stderr
        assert (project.folder / "dvc.lock").read_bytes() == lock, f"killed after {moment}% of {whole:.1f} s"
        assert project.dvc("status", "-q").returncode == 0
    assert cut


# --- parts of the runner ----------------------------------------------------------------------------------


def test_dotted_parameters_are_nested():
    assert nest({"seed": 1, "models.rdo": {"x": 2}, "a.b.c": None}) == {
        "seed": 1, "models": {"rdo": {"x": 2}}, "a": {"b": {"c": None}},
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


def test_to_import_the_runner_leaves_the_import_path_alone():
    """As scripts, runner and code stage put their own checkout first."""
    program = "import sys\nbefore = list(sys.path)\nimport llicm.pipeline.run, llicm.pipeline.code\n"
    subprocess.run([sys.executable, "-c", program + "assert sys.path == before"], cwd=ROOT / "tests", check=True)
