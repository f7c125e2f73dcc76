# SPDX-License-Identifier: Apache-2.0
"""Training in several processes, and where `training.launch` starts them."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from shares import joint
from small import CODEC, ROOT

from llicm.data.dead_leaves import dead_leaves
from llicm.errors import UserError
from llicm.images import write_png
from llicm.pipeline.stage import Stage
from llicm.pipeline.training import train_stage

TORCHRUN = "torchrun --standalone --nproc-per-node 2"
PATHS = f"{ROOT / 'src'}:{ROOT / 'tests'}"
FIELD = {
    "name": "compressai", "architecture": "mbt2018-mean", "quality": [1, 3, 5, 7], "N": 8, "M": 12,
}  # fmt: skip


@pytest.fixture
def profile(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for part in ("train", "test"):
        (tmp_path / "photos" / part).mkdir(parents=True)
        write_png(
            dead_leaves(96, [torch.rand(3, 64, 64)], torch.Generator().manual_seed(0)),
            tmp_path / "photos" / part / f"{part}.png",
        )
    return tmp_path


def run(profile: Path, out: str, updates: int = 4, **training):
    """Train codec and restorer; the log, and the bytes of the weights by part."""
    parameters = joint(CODEC, updates, **training)
    found = train_stage(Stage("train@both", parameters, profile), profile / out)
    return found, {kind: (profile / out / f"{kind}.safetensors").read_bytes() for kind in ("codec", "restorer")}


@pytest.mark.slow
@pytest.mark.parametrize("codec", [CODEC, FIELD], ids=["own", "field"])
def test_two_processes_with_half_the_batch_each_end_where_one_does(profile, codec):
    """The field's has a network for each level: one that a process has not used still learns from the other."""
    states = []
    for number, program in enumerate(([sys.executable], [*TORCHRUN.split()])):
        command = [str(ROOT / "tests/shares.py"), str(profile / f"{number}"), str(profile / "photos/train/train.png")]
        subprocess.run([*program, *command, json.dumps(codec)], check=True, env=os.environ | {"PYTHONPATH": PATHS})
        states.append(torch.load(profile / f"{number}.pt", weights_only=True))
    one, two = states
    assert one["step"] == two["step"] == 4
    for part, state in one["parts"].items():
        for name, value in state.items():
            assert torch.allclose(value, two["parts"][part][name], atol=1e-5, rtol=0), (part, name)
    for mine, theirs in zip(json.loads(one["rows"]), json.loads(two["rows"]), strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)


@pytest.mark.slow
def test_killed_and_resumed_it_ends_like_an_undisturbed_run(profile):
    _, whole = run(profile, "whole", updates=10, launch=TORCHRUN)
    program = (
        "import sys\nfrom pathlib import Path\nfrom test_launch import TORCHRUN, run\n"
        "run(Path(sys.argv[1]), 'cut', updates=10, launch=TORCHRUN)"
    )
    environment = os.environ | {"PYTHONPATH": PATHS}
    command = [sys.executable, "-c", program, str(profile)]
    running = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    scratch, until = profile / ".run/scratch", time.monotonic() + 600
    while not list(scratch.glob("train-both-*.pt")) and time.monotonic() < until:
        time.sleep(0.05)
    worker = next(pid for pid in descendants(running.pid) if b"llicm.pipeline.training" in command_of(pid)[-2:])
    os.kill(worker, signal.SIGKILL)
    said = running.communicate(timeout=600)[1]
    assert running.returncode and "goes on from the last checkpoint" in said
    assert list(scratch.glob("train-both-*.pt")) and not (profile / "cut").exists()
    _, resumed = run(profile, "cut", updates=10, launch=TORCHRUN)
    assert resumed == whole


def descendants(pid: int) -> list[int]:
    """Those that are nobody's parents, the first one last."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += map(int, task.read_text().split())
    return found[::-1]


def command_of(pid: int) -> list[bytes]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    return []


@pytest.mark.slow
def test_slurm_is_asked_to_wait_for_the_script_of_the_repository(profile, monkeypatch):
    """With programs in place of Slurm's, which run on this machine."""
    programs = {
        "sbatch": 'echo "$@" > asked; shift 3; export SLURM_JOB_NODELIST=n SLURM_JOB_NUM_NODES=1 SLURM_JOB_ID=7; "$@"',
        "scontrol": "echo localhost",
        "srun": 'echo "$@" > ran\nexec "$@"',
    }
    for name, script in programs.items():
        (profile / name).write_text(f"#!/bin/sh\n{script}\n")
        (profile / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{profile}:{os.environ['PATH']}")
    monkeypatch.chdir(profile)
    shutil.copytree(ROOT / "slurm", profile / "slurm")
    monkeypatch.setenv("PROCESSES", "2")
    monkeypatch.setenv("PORT", "29417")
    log, weights = run(profile, "job", launch="sbatch --wait --nodes 1 slurm/train.sh")
    assert [row["step"] for row in log.rows] == [2, 4] and all(weights.values())
    assert (profile / "asked").read_text().startswith("--wait --nodes 1 slurm/train.sh -m llicm.pipeline.training")
    assert "--nnodes 1 --nproc-per-node 2" in (profile / "ran").read_text()


@pytest.mark.parametrize(
    "training, said",
    [
        ({"accumulate": 3}, "training.batch must be a multiple of training.accumulate"),
        ({"launch": "no-such-program --x"}, "training.launch, no-such-program --x: .*correct it"),
        ({"launch": "false"}, "false: ended with exit code 1 and without weights"),
        ({"launch": "'unclosed"}, "training.launch, 'unclosed: No closing quotation"),
    ],
)
def test_mistakes_are_one_sentence(profile, training, said):
    with pytest.raises(UserError, match=said):
        run(profile, "out", **training)


@pytest.mark.slow
def test_an_error_of_a_process_is_that_of_the_stage(profile):
    with pytest.raises(UserError, match="accumulate is 1, but there are 2 processes; make it a multiple"):
        run(profile, "out", launch=TORCHRUN, accumulate=1)


def test_what_a_process_is_told_is_complete(profile, monkeypatch):
    """The parameters of a stage are a part of the study's, and may be changed by hand."""
    told = {}

    def start(command, env):
        told.update(json.loads(Path(command[-1]).read_text()), command=command, env=env)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", start)
    with pytest.raises(UserError, match="without weights"):
        run(profile, "out", launch="accelerate launch --num_processes 2")
    assert told["command"][:6] == ["accelerate", "launch", "--num_processes", "2", "-m", "llicm.pipeline.training"]
    assert told["parameters"]["training"]["launch"] == "here" and told["parameters"]["models"]["both"]["codec"] == CODEC
    assert told["env"]["PATH"].startswith(str(Path(sys.executable).parent))
