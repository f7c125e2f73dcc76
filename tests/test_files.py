# SPDX-License-Identifier: Apache-2.0
"""Files appear whole or not at all, and a full disk is told in one sentence."""

import errno
import os
import pickle
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from llicm import files
from llicm.errors import DiskFullError, UserError
from llicm.files import atomic_path, write_atomically

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}


def test_a_file_is_replaced_and_its_folder_made(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_atomically(path, b"old")
    write_atomically(path, memoryview(b"new"), durable=True)
    assert path.read_bytes() == b"new" and os.listdir(path.parent) == ["b.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("number", DiskFullError.REASONS)
def test_no_room_is_told_and_the_old_file_stays(tmp_path, monkeypatch, number):
    path = tmp_path / "b.txt"
    path.write_bytes(b"old")

    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[:2])
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DiskFullError) as caught:
        write_atomically(path, b"new")
    assert isinstance(caught.value, UserError) and isinstance(caught.value, OSError)
    said = str(caught.value)
    assert said.startswith(f"{path}: {DiskFullError.REASONS[number]} (") and f" MB are free in {tmp_path});" in said
    assert said.endswith("make room there, then run the same command again.")
    assert str(pickle.loads(pickle.dumps(caught.value))).startswith(f"{path}: ")  # it crosses a pool of processes
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["b.txt"]


def test_other_errors_pass_as_they_are(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a") as temporary:
        temporary.write_bytes(b"half")
        1 / 0  # noqa: B018
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as caught:
        write_atomically(tmp_path / "file" / "a", b"")
    assert not isinstance(caught.value, UserError)
    assert os.listdir(tmp_path) == ["file"]


def test_the_limit_of_the_system_is_met_for_real(tmp_path):
    """Not a stand-in for the writing: the kernel refuses the last bytes, as on a full disk."""
    program = (
        "import resource, sys; from llicm.files import write_atomically\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (1000, {resource.getrlimit(resource.RLIMIT_FSIZE)[1]}))\n"
        "write_atomically('a', bytes(1000)); write_atomically('a', b'x' * 1001)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert "DiskFullError: a: it would be larger than a file may be here (" in done.stderr
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == bytes(1000)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_what_is_told_at_the_end_of_the_writing_counts(tmp_path):
    def full():
        with open("/dev/full", "wb") as file:
            file.write(b"x")  # into the buffer; the error comes when the file is closed

    with pytest.raises(DiskFullError, match="a: the disk is full"), atomic_path(tmp_path / "a"):
        full()
    assert os.listdir(tmp_path) == []


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    path = tmp_path / "a[1].txt"
    program = (
        "import os, signal, sys; from llicm.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as temporary:\n"
        "    temporary.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program, path], env=ENVIRONMENT).returncode == -9
    (left,) = tmp_path.iterdir()
    assert left != path and left.read_bytes() == b"half"
    with atomic_path(path) as mine:
        with atomic_path(path):  # another writer of the same file, alive
            pass
        assert mine.exists() and not left.exists()
    assert os.listdir(tmp_path) == [path.name]


def test_what_may_be_alive_is_left_where_there_are_no_locks(tmp_path, monkeypatch):
    left = tmp_path / f".{files._short(tmp_path / 'a')}.x.tmp"
    left.touch()
    monkeypatch.setattr(files, "fcntl", None)
    write_atomically(tmp_path / "a", b"")
    assert left.exists()
    monkeypatch.undo()
    write_atomically(tmp_path / "a", b"")
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_mode_of_the_umask_and_a_replaced_one_its_own(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "new", b"a")
        for kept in (0o640, 0o444, 0o755):
            (tmp_path / f"{kept:o}").write_bytes(b"old")
            (tmp_path / f"{kept:o}").chmod(kept)
            write_atomically(tmp_path / f"{kept:o}", b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == mode
    for kept in (0o640, 0o444, 0o755):
        path = tmp_path / f"{kept:o}"
        assert stat.S_IMODE(path.stat().st_mode) == kept and path.read_bytes() == b"new"


def test_a_link_is_replaced_and_not_what_it_points_to(tmp_path):
    (tmp_path / "cache").write_bytes(b"cached")
    (tmp_path / "cache").chmod(0o444)
    (tmp_path / "link").symlink_to("cache")
    (tmp_path / "nowhere").symlink_to("gone")
    for name in ("link", "nowhere"):
        write_atomically(tmp_path / name, b"new")
        assert not (tmp_path / name).is_symlink() and (tmp_path / name).read_bytes() == b"new"
    assert (tmp_path / "cache").read_bytes() == b"cached" and not (tmp_path / "gone").exists()


@pytest.mark.parametrize("name", ["n" * 255, "\u00e4" * 127, os.fsdecode(b"caf\xe9.png")])
def test_every_name_that_the_system_takes_can_be_written(tmp_path, name):
    write_atomically(tmp_path / name, b"a")
    with files.atomic_folder(tmp_path / f"{name[:-1]}f") as new:
        new.mkdir()
    assert (tmp_path / name).read_bytes() == b"a" and len(os.listdir(tmp_path)) == 2


def test_a_place_is_one_whatever_it_is_called(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    monkeypatch.chdir(tmp_path)
    spellings = ("a/x", "b/x", "a/../a/x", "./b/x", str(tmp_path / "a/x"))
    assert {files.place(path) for path in spellings} == {tmp_path.resolve() / "a/x"}
    assert files.place("a/y") != files.place("a/x") and files.place("/new.png") == Path("/new.png")
    (tmp_path / "A").symlink_to("a")  # as where the file system makes no difference
    monkeypatch.setattr(files.Path, "exists", lambda self: True)
    monkeypatch.setattr(files.Path, "samefile", lambda self, other: True)
    assert files.place("a/X.png") == files.place("a/x.PNG")


def test_names_are_printable():
    assert files.printable("a\u00e4.png") == "a\u00e4.png" and files.printable(os.fsdecode(b"caf\xe9")) == "caf\\xe9"


def test_numbers_are_those_of_errno():
    assert set(DiskFullError.REASONS) == {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
