# SPDX-License-Identifier: Apache-2.0
"""kill -9 at any moment, and disks that fill, in the real pipeline: `dvc repro` then ends in the same bytes.

A project of one light stage is killed at more moments in tests/test_run.py.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time

import pytest
from clone import SMOKE

from llicm.provenance.audit import audit

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _whole(clone):
    """A test must leave what it found."""
    lock = clone.lock
    yield
    left = clone.lock
    if left != lock:  # the other tests can do with it
        (clone.profile / "dvc.lock").write_bytes(lock)
    assert left == lock
    assert clone.stale() == {}
    assert audit(clone.folder, "smoke", ["lock", "hashes", "notebooks"]) == []
    assert list((clone.profile / "results").rglob("*.tmp")) == []


def kill(clone, stages, when, orphans=False) -> str:
    """Make stages anew, and kill the process group of DVC as soon as `when(what it printed)` holds; what it printed.

    Args:
        orphans: kill also what is not in the group: kernels, which see only after a second that their runner is dead.
    """
    log = clone.folder / ".run.log"
    targets = [f"{SMOKE}:{stage}" for stage in stages]
    with open(log, "w") as out:
        process = subprocess.Popen(
            **clone.command("dvc", "repro", "-f", "-s", *targets), start_new_session=True, stdout=out, stderr=out
        )
    try:
        while not when(log.read_text()):
            assert process.poll() is None, log.read_text()
            time.sleep(0.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        for number in running(f"LLICM_RUN={clone.profile}/.run/") if orphans else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        process.wait()
        text = log.read_text()
        log.unlink()
    return text


def again(clone, *stages) -> str:
    """Make stages for real, not from DVC's cache; what was printed."""
    result = clone.dvc("repro", "-f", "-s", *(f"{SMOKE}:{stage}" for stage in stages))
    return result.stdout + result.stderr


def test_in_training_after_a_checkpoint_it_resumes(clone):
    scratch = clone.profile / ".run/scratch"
    kill(clone, ["train@rdo"], lambda _: any(scratch.glob("train-rdo-*.pt")), orphans=True)
    (checkpoint,) = scratch.glob("train-rdo-*.pt")
    assert not (clone.profile / "executed/3_train-rdo.ipynb").exists()
    assert set(clone.stale()) >= {"train@rdo"}  # nothing half-made passes for whole
    assert f"resuming from .run/scratch/{checkpoint.name}" in again(clone, "train@rdo")
    assert not checkpoint.exists()


def test_midway_in_an_evaluation_it_goes_on(clone):
    kept = clone.profile / ".run/scratch"
    kill(clone, ["evaluate@rdo"], lambda _: any(kept.glob("evaluate-rdo-*/*/*/values.json")))
    finished = {path: path.stat().st_mtime_ns for path in kept.glob("evaluate-rdo-*/*/*/values.json")}
    assert 0 < len(finished) < 12
    assert "evaluate@rdo" in clone.stale()
    assert "12/12" in again(clone, "evaluate@rdo")
    mark = f"LLICM_RUN={clone.profile}/.run/4_evaluate-rdo.lock"
    assert not list(running(mark)), "workers of the killed run are alive"


def running(mark):
    """Numbers of processes in whose environment is this text."""
    for process in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else []):
        with contextlib.suppress(OSError), open(f"/proc/{process}/environ", "rb") as file:
            if mark.encode() in file.read():
                yield int(process)


def test_while_figures_are_drawn(clone):
    figure = clone.profile / "results/figures/figure_4_psnr.png"
    began = time.time()
    kill(clone, ["figures"], lambda _: figure.exists() and figure.stat().st_mtime > began)
    assert "figures" in clone.stale()
    assert not (clone.profile / "executed/5_figures.ipynb").exists()
    again(clone, "figures")


def test_between_two_stages(clone):
    stages = ["code", "degrade"]
    printed = kill(clone, stages, lambda said: f"Running stage '{SMOKE}:degrade'" in said)
    assert f"Running stage '{SMOKE}:code'" in printed
    clone.dvc("repro", SMOKE)
    again(clone, *stages)


def test_at_a_random_moment(clone):
    """DVC finds the results of the same inputs in its cache: what an interruption cost is what was not finished."""
    end = time.monotonic() + random.Random().uniform(0, 12)
    kill(clone, ["degrade", "release"], lambda said: time.monotonic() > end)
    clone.dvc("repro", SMOKE)


def test_while_dvc_writes_its_lock_file(clone):
    """DVC truncates dvc.lock and then writes it; a part that it cannot read stops it until `make repro` mends it.

    (tests/test_repair_lock.py cuts it at every byte.)
    """
    lock = clone.lock
    again(clone, "release")  # the runner keeps a copy
    (clone.profile / "dvc.lock").write_bytes(lock[: int(0.9 * len(lock))])
    command = clone.command("llicm.provenance.repair_lock", "profiles/smoke")
    command["env"]["PYTHONPATH"] = str(clone.folder / "src")
    mended = subprocess.run(**command, capture_output=True, text=True)
    assert "profiles/smoke/dvc.lock was cut short by an interruption; put back from" in mended.stderr
    clone.dvc("repro", SMOKE)


FULL = """
set -eu
cp -a "$FOLDER" "$OUT/before"
mount -t tmpfs -o size=64m tmpfs "$FOLDER"
for kept in $KEPT; do cp -a "$OUT/before/$kept" "$FOLDER/"; done
mount -o remount,size=$(( $(du -sk "$FOLDER" | cut -f1) + ROOM ))k "$FOLDER"
if python -m dvc repro -f -s "profiles/smoke/dvc.yaml:$STAGE" > "$OUT/said" 2>&1; then echo "not refused"; exit 1; fi
python -m dvc status --json profiles/smoke/dvc.yaml > "$OUT/stale"
find "$FOLDER" > "$OUT/left"
mount -o remount,size=64m "$FOLDER"
python -m dvc repro -f -s "profiles/smoke/dvc.yaml:$STAGE" > "$OUT/again" 2>&1
"""


@pytest.mark.parametrize(
    ("stage", "folder", "kept", "room", "named"),
    [
        ("train@rdo", ".run", "", 512, ""),  # its photos
        ("train@rdo", ".run", "scratch", 512, "scratch/train-rdo"),  # its checkpoint
        ("evaluate@webp", ".run", "", 64, ""),
        ("figures", "results", "training vlm", 200, ""),
    ],
)
def test_on_a_full_disk(clone, stage, folder, kept, room, named, tmp_path):
    """A folder of the profile on a small disk of its own (room in KB), in a namespace that ends with the test."""
    unshare = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-Urm"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "mount", "-t", "tmpfs", "t", tmp_path]).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    lock = clone.lock
    command = clone.command("")
    command["args"] = [*unshare, "sh", "-c", FULL]
    command["env"] |= {
        "FOLDER": str(clone.profile / folder), "KEPT": kept, "ROOM": str(room), "OUT": str(tmp_path), "STAGE": stage,
    }  # fmt: skip
    ended = subprocess.run(**command, capture_output=True, text=True, timeout=900)
    said = (tmp_path / "said").read_text()
    assert ended.returncode == 0, ended.stdout + ended.stderr + said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said
    assert named in errors[0] and "make room there, then run the same command again" in errors[0]
    assert any(said in errors[0] for said in ("is full (", "No space left on device", "the file was cut short"))
    assert "Traceback" not in said
    assert stage in (tmp_path / "stale").read_text()
    assert ".tmp" not in (tmp_path / "left").read_text()
    assert clone.lock == lock
    shutil.rmtree(clone.profile / folder)  # what lay under the small disk, on which the stage has run again
    shutil.copytree(tmp_path / "before", clone.profile / folder)
