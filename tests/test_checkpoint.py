# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a training run: found again under the same conditions alone, and never half-written."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from llicm.errors import DiskFullError
from llicm.pipeline.checkpoint import Checkpoint

ROOT = Path(__file__).resolve().parents[1]


def test_a_checkpoint_comes_back_and_is_forgotten(tmp_path, capsys):
    checkpoint = Checkpoint("x", {"lr": 0.1}, code=[], root=tmp_path)
    assert checkpoint.load() is None
    state = {"step": 3, "weights": torch.arange(4.0), "rows": "[1]", "optimizer": {"lr": 0.1, "betas": (0.9, 0.99)}}
    checkpoint.save(state)
    loaded = Checkpoint("x", {"lr": 0.1}, code=[], root=tmp_path).load()
    assert torch.equal(loaded.pop("weights"), state.pop("weights"))
    assert loaded == state
    assert capsys.readouterr().out == ""  # a resumed run must print what an uninterrupted one prints
    assert [p.suffix for p in tmp_path.iterdir()] == [".pt"]
    checkpoint.done()
    assert list(tmp_path.iterdir()) == []
    checkpoint.done()


def test_a_checkpoint_is_found_under_the_same_conditions_alone(tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.txt").write_text("1")
    program = tmp_path / "program.py"
    program.write_text("x = 1")

    def key(params=None, **more):
        return Checkpoint(
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
    assert key() != Checkpoint("x", {"lr": 0.1}, inputs=[data], root=tmp_path).path


def test_a_damaged_or_malicious_checkpoint_is_not_loaded(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "evil"),))

    checkpoint = Checkpoint("x", {}, code=[], root=tmp_path)
    checkpoint.path.write_bytes(b"not a checkpoint")
    assert checkpoint.load() is None
    torch.save(Evil(), checkpoint.path)
    assert checkpoint.load() is None
    assert not (tmp_path / "evil").exists()


def test_old_checkpoints_are_pruned(tmp_path):
    for name, days in (("x-old.pt", 15), (".x-old.pt.7.a.tmp", 15), ("x-young.pt", 13)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - days * 86400,) * 2)
    Checkpoint("x", {}, code=[], root=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x-young.pt"]


def test_a_checkpoint_that_finds_no_room_ends_the_training_and_leaves_the_last_one(tmp_path, monkeypatch):
    checkpoint = Checkpoint("x", {}, code=[], root=tmp_path)
    checkpoint.save({"step": 1})

    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[:100])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(DiskFullError, match=rf"{checkpoint.path}: the disk is full .*make room there"):
            checkpoint.save({"step": 2})
    assert checkpoint.load() == {"step": 1} and list(tmp_path.iterdir()) == [checkpoint.path]


def test_a_process_killed_while_it_writes_a_checkpoint_leaves_the_last_one(tmp_path):
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom llicm.pipeline.checkpoint import Checkpoint\n"
        "checkpoint = Checkpoint('x', {}, code=[], root=sys.argv[1])\ncheckpoint.save({'step': 1})\n"
        "def cut(self, data):\n    open(self, 'wb').write(data[:100])\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Path.write_bytes = cut\ncheckpoint.save({'step': 2})"
    )
    # the name of a checkpoint depends on the number of threads, which other tests may have set here
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment = {**os.environ, **threads, "PYTHONPATH": str(ROOT / "src")}
    assert subprocess.run([sys.executable, "-c", program, tmp_path], env=environment).returncode == -9
    checkpoint = Checkpoint("x", {}, code=[], root=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 and checkpoint.load() == {"step": 1}
    checkpoint.save({"step": 2})
    assert list(tmp_path.iterdir()) == [checkpoint.path] and checkpoint.load() == {"step": 2}


def test_a_folder_in_place_of_a_checkpoint(tmp_path):
    old = tmp_path / "x-old"
    old.mkdir()
    os.utime(old, (time.time() - 15 * 86400,) * 2)
    checkpoint = Checkpoint("x", {"lr": 1}, code=[], root=tmp_path)
    assert not old.exists() and checkpoint.folder != Checkpoint("x", {"lr": 2}, code=[], root=tmp_path).folder
    (checkpoint.folder / "noisy").mkdir(parents=True)
    (checkpoint.folder / "noisy" / "values.json").write_text("{}")
    assert (Checkpoint("x", {"lr": 1}, code=[], root=tmp_path).folder / "noisy" / "values.json").exists()
    checkpoint.done()
    assert not checkpoint.folder.exists()
