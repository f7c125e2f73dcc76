# SPDX-License-Identifier: Apache-2.0
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from small import always
from torch import nn

from llicm import cli
from llicm.benchmark.metrics import metric_info
from llicm.benchmark.records import read_records
from llicm.cli import study
from llicm.cli.common import METRICS, TASKS
from llicm.codec.bitstream import Bitstream, pack, unpack
from llicm.degradations import DEGRADATIONS
from llicm.errors import UserError
from llicm.framework import LLICM, SURE
from llicm.images import quantize8, read_image, write_png
from llicm.registry import CODECS, RESTORERS
from llicm.vlm.checkpoint import load_daclip, official_names
from llicm.vlm.conditioner import Conditioner
from llicm.vlm.daclip import make_daclip
from llicm.weights import load_part

TINY = {
    "embed_dim": 6,
    "vision_cfg": {"layers": 1, "width": 8, "head_width": 4, "patch_size": 4, "image_size": 8},
    "text_cfg": {"context_length": 7, "vocab_size": 20, "width": 8, "heads": 2, "layers": 1},
}


def test_command_converts(tmp_path, capsys):
    model, config, out = make_daclip(TINY), tmp_path / "tiny.json", tmp_path / "out.safetensors"
    config.write_text(json.dumps(TINY))
    own = model.state_dict()
    torch.save({name: own[target] for name, target in official_names(model).items()}, tmp_path / "in.pt")
    assert cli.main(["vlm", "convert", str(tmp_path / "in.pt"), str(out), "--model", str(config)]) == 0
    assert all(torch.equal(value, own[name]) for name, value in load_daclip(out).state_dict().items())
    assert capsys.readouterr().err == ""


def test_command_converts_a_released_restorer(tmp_path, capsys, monkeypatch):
    small = {"nf": 4, "ch_mult": [1, 2], "context": {"degradation": 8, "content": 8}}
    monkeypatch.setattr("llicm.restore.released.UNIVERSAL_IR", small)
    state, out = RESTORERS.make("irsde", **small).unet.state_dict(), tmp_path / "out.safetensors"
    torch.save(state, tmp_path / "universal-ir.pth")
    assert cli.main(["restorer", "convert", str(tmp_path / "universal-ir.pth"), str(out), "--steps", "7"]) == 0
    restorer = load_part("restorer", out)
    assert restorer.steps == 7
    assert all(torch.equal(value, state[name]) for name, value in restorer.unet.state_dict().items())
    assert cli.main(["restorer", "convert", str(tmp_path / "absent.pth"), str(out)]) == 1
    assert "absent.pth" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "target", "sentence"),
    [
        ("absent.pt", "out.safetensors", "absent.pt: no such file of weights; check the path"),
        ("other.pt", "out.safetensors", "other.pt: these weights do not fit the model"),
        ("other.pt", "out.pt", "out.pt: the file to write must have the suffix .safetensors"),
    ],
)
def test_command_fails_with_one_sentence(tmp_path, capsys, source, target, sentence):
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pt")
    assert cli.main(["vlm", "convert", str(tmp_path / source), str(tmp_path / target)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert sentence in captured.err and not (tmp_path / target).exists()


# --- the small model and the photos that the commands below work on ---

LEVELS = 5


class Spy(nn.Module):
    """A conditioner that remembers the hints it was given, and a restorer that shows that it was there."""

    hints: list = []

    def forward(self, *arguments):
        if len(arguments) == 2:  # as a conditioner: X̂ and the hints
            self.hints.append(arguments[1])
            return None
        return arguments[0] * 0.5  # as a restorer: X̂, the level, and the context


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    codec = CODECS.make("mean-scale", N=16, M=24, lambdas=[0.002, 0.005, 0.01, 0.03, 0.1])
    codec.update()
    return LLICM(codec.eval(), Spy(), Spy()).eval()


@pytest.fixture
def model(small, monkeypatch):
    """`load_model` gives the small one; the list of paths that it was asked for."""
    asked = []

    def load_model(path=None, coding=False):
        asked.append(path)
        return small

    monkeypatch.setitem(sys.modules, "llicm.model", types.SimpleNamespace(load_model=load_model))
    monkeypatch.delenv("LLICM_MODEL", raising=False)
    Spy.hints.clear()
    return asked


def picture(height=96, width=128, seed=0):
    """(3, H, W) on the 8-bit grid: a smooth image with some grain."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 7, generator=generator)
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    return quantize8(smooth + 0.03 * torch.randn(3, height, width, generator=generator))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in: a.png, and photos/ with b.png, c.png and notes.txt."""
    monkeypatch.chdir(tmp_path)
    write_png(picture(), "a.png")
    write_png(picture(seed=1), "photos/b.png")
    write_png(picture(64, 80, seed=2), "photos/c.png")
    Path("photos/notes.txt").write_text("no photo")
    return tmp_path


def files(folder="."):
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())


def run(capsys, *arguments, code=0):
    """Standard output and error of a command that ends with this exit code."""
    assert cli.main([str(a) for a in arguments]) == code
    return capsys.readouterr()


class Pipe(io.TextIOWrapper):
    def __init__(self, data=b""):
        super().__init__(io.BytesIO(data), write_through=True)

    @property
    def content(self):
        return self.buffer.getvalue()


@pytest.fixture
def pipe(monkeypatch):
    """pipe(data, arguments) -> exit code and what came out of standard output, in bytes."""

    def through(data, *arguments):
        out = Pipe()
        monkeypatch.setattr(sys, "stdin", Pipe(data))
        monkeypatch.setattr(sys, "stdout", out)
        code = cli.main(list(arguments))
        return code, out.content

    return through


# --- compress, decompress ---


def test_there_and_back(here, model, small, capsys):
    said = run(capsys, "compress", "a.png")
    data = Path("a.llicm").read_bytes()
    assert data == small.compress(picture(), 2)
    assert said.err == "" and said.out.startswith("a.png -> a.llicm  128x96  ")
    assert f"{len(data)} bytes  {8 * len(data) / 96 / 128:.3f} bpp  level 2\n" in said.out
    decoded, enhanced = small.decompress(data)
    said = run(capsys, "decompress", "a.llicm", "-o", "new/enhanced.png")
    assert torch.equal(read_image("new/enhanced.png"), quantize8(enhanced))
    assert said.out == "a.llicm -> new/enhanced.png  128x96  restored\n" and said.err == ""
    run(capsys, "decompress", "a.llicm", "--as-captured", "-o", "captured.png")
    assert torch.equal(read_image("captured.png"), quantize8(decoded)) and not torch.allclose(decoded, enhanced)
    assert files() == ["a.llicm", "a.png", "captured.png", "new/enhanced.png", "photos/b.png", "photos/c.png",
                       "photos/notes.txt"]  # fmt: skip


def test_folder_to_folder(here, model, capsys):
    said = run(capsys, "compress", "photos", "-o", "small", "--level", "3.5")
    assert files("small") == ["b.llicm", "c.llicm"] and len(said.out.splitlines()) == 2 and len(model) == 1
    assert all(unpack((here / "small" / name).read_bytes()).level == 3.5 for name in files("small"))
    run(capsys, "decompress", "small", "-o", "back", "--format", "webp")
    assert files("back") == ["b.webp", "c.webp"] and read_image("back/c.webp").shape == (3, 64, 80)


@pytest.mark.parametrize("size", [800, 1200])
def test_bytes_are_hit_from_below(here, model, capsys, size):
    said = run(capsys, "compress", "a.png", "--bytes", size)
    assert 0.98 * size <= Path("a.llicm").stat().st_size <= size and said.err == ""


def test_bits_per_pixel_are_hit_from_below(here, model, capsys):
    said = run(capsys, "compress", "a.png", "photos/b.png", "-o", "small", "--bpp", "0.8")
    for name in ("a", "b"):
        assert 0.98 * 0.8 <= 8 * Path(f"small/{name}.llicm").stat().st_size / 96 / 128 <= 0.8
    assert said.err == ""


def test_targets_out_of_reach(here, model, capsys):
    said = run(capsys, "compress", "a.png", "--bytes", 10**6)
    assert said.err.startswith("note: a.png: ") and "the highest level needs no more" in said.err
    assert unpack(Path("a.llicm").read_bytes()).level == LEVELS - 1
    said = run(capsys, "compress", "photos/b.png", "--bytes", 40, code=1)
    assert said.err.startswith("error: photos/b.png: ") and said.err.count("\n") == 1
    assert "photos/b.llicm" not in files()


def test_level_beyond_the_model(here, model, capsys):
    said = run(capsys, "compress", "a.png", "--level", 5, code=1)
    assert said.err == "error: level 5: this model has levels 0 to 4.\n" and "a.llicm" not in files()


def test_pipes(here, model, small, pipe, capsys):
    photo = Path("a.png").read_bytes()
    code, data = pipe(photo, "compress", "-")
    assert code == 0 and data == small.compress(picture(), 2)
    assert "standard input" not in str(data) and "128x96" in capsys.readouterr().err
    code, image = pipe(data, "decompress", "-", "--format", "tif")
    assert code == 0 and Image.open(io.BytesIO(image)).format == "TIFF"
    assert torch.equal(read_image(image), quantize8(small.decompress(data)[1]))
    code, image = pipe(photo, "restore", "-", "-o", "-")
    assert code == 0 and torch.equal(read_image(image), quantize8(picture() * 0.5))
    code, image = pipe(photo, "degrade", "-", "--task", "noisy")
    assert code == 0 and read_image(image).shape == (3, 96, 128)
    code, text = pipe(data, "inspect", "-", "--json")
    assert code == 0 and json.loads(text)[0]["file"] == "standard input"
    assert files() == ["a.png", "photos/b.png", "photos/c.png", "photos/notes.txt"]
    capsys.readouterr()
    code, nothing = pipe(photo[:100], "compress", "-")
    assert (code, nothing) == (1, b"") and "error: standard input: cannot be read" in capsys.readouterr().err


def test_terminal_gets_no_bytes(here, model, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    said = run(capsys, "compress", "a.png", "-o", "-", code=1)
    assert "standard output is a terminal" in said.err and said.out == "" and model == []


def test_task_reaches_the_conditioner(here, model, capsys):
    run(capsys, "compress", "a.png")
    run(capsys, "decompress", "a.llicm", "-o", "b.png", "--task", " noisy,Low-light")
    run(capsys, "decompress", "a.llicm", "-o", "c.png")
    run(capsys, "restore", "a.png", "--task", "rainy")
    assert Spy.hints == [["low-light, noisy"], [None], ["rainy"]]
    said = run(capsys, "restore", "a.png", "--task", "foggy", code=2)
    assert "unknown degradation 'foggy'" in said.err and all(word in said.err for word in DEGRADATIONS)
    assert tuple(DEGRADATIONS) == TASKS


def test_model_by_option_and_environment(here, model, monkeypatch, capsys):
    run(capsys, "restore", "a.png", "-o", "1.png")
    run(capsys, "restore", "a.png", "-o", "2.png", "--model", "own.safetensors")
    monkeypatch.setenv("LLICM_MODEL", "other.safetensors")
    run(capsys, "restore", "a.png", "-o", "3.png")
    assert model == [None, Path("own.safetensors"), Path("other.safetensors")]


def test_missing_model_is_reported_once(here, monkeypatch, capsys):
    def absent(path=None, coding=False):
        raise UserError("llicm.safetensors: no such weights; run `dvc pull`")

    monkeypatch.setitem(sys.modules, "llicm.model", types.SimpleNamespace(load_model=absent))
    said = run(capsys, "compress", "photos", code=1)
    assert said.err == "error: llicm.safetensors: no such weights; run `dvc pull`\n" and said.out == ""


# --- what goes wrong ---


def test_others_go_on(here, model, capsys):
    whole = Path("a.png").read_bytes()
    Path("photos/bb.png").write_bytes(whole[: len(whole) // 2])
    said = run(capsys, "compress", "photos", "absent.png", "-o", "small", code=1)
    assert files("small") == ["b.llicm", "c.llicm"] and len(said.out.splitlines()) == 2
    first, second = said.err.splitlines()
    assert first.startswith("error: photos/bb.png: cannot be read as an image")
    assert second == "error: absent.png: no such image file; check the path."
    data = Path("small/b.llicm").read_bytes()
    Path("small/b.llicm").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    said = run(capsys, "decompress", "small", code=1)
    assert said.err.startswith("error: small/b.llicm: altered .llicm file") and files("small")[-1] == "c.png"


def test_nothing_is_replaced_without_force(here, model, capsys):
    run(capsys, "compress", "a.png")
    before = Path("a.llicm").read_bytes()
    said = run(capsys, "compress", "a.png", "photos/b.png", "--level", "0", code=1)
    assert said.err == "error: a.llicm: exists already; add --force to replace it.\n"
    assert Path("a.llicm").read_bytes() == before and Path("photos/b.llicm").exists()
    run(capsys, "compress", "a.png", "--level", "0", "--force")
    assert len(Path("a.llicm").read_bytes()) < len(before)
    said = run(capsys, "decompress", "a.llicm", code=1)
    assert "a.png: exists already" in said.err and torch.equal(read_image("a.png"), picture())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["compress", "a.png", "sub/a.jpg", "-o", "new"], "new/a.llicm: both a.png and sub/a.jpg"),
        (["compress", "a.png", "-o", "b.jpg"], "b.jpg: a compressed file is no jpg"),
        (["compress", "-", "a.png"], "standard input holds one image"),
        (["compress", "photos", "-o", "-"], "cannot all go to standard output"),
        (["restore", "a.png", "-o", "a.png", "--force"], "a.png: the result would replace this input"),
        (["restore", "photos"], "give a folder to -o"),
        (["decompress", "x.llicm", "-o", "x.bmp"], "x.bmp: images are written as .png"),
        (["decompress", "photos"], "photos: no .llicm files in this folder"),
        (["decompress", "a.png", "-o", "x.png"], "a.png: not a .llicm file"),
        (["decompress", "x.llicm"], "x.llicm: cannot be read (No such file or directory)"),
        (["inspect", "a.png"], "a.png: not a .llicm file"),
        (["compress", "a.png", "-o", "photos/notes.txt/a.llicm"], "a.llicm: cannot be written"),
        (["compress", "a.png", "-o", "/dev/null", "--force"], "/dev/null: not a file that can be replaced"),
        (["evaluate", "-"], "reads files and folders only"),
        (["evaluate", "a.png", "sub/a.png"], "another image of this name"),
        (["evaluate", "a.png", "-o", "photos"], "photos: a folder"),
        (["evaluate", "a.png", "-o", "photos/notes.txt"], "notes.txt: exists already"),
        (["evaluate", "a.png", "--reference", "photos"], "a.png: no reference named a.* in photos"),
        (["evaluate", "a.png", "--metrics", "psmr"], "Unknown metric 'psmr'"),
        (["evaluate", "a.png", "--metrics", "ssim", "--levels", "0,7"], "level 7: this model has levels 0 to 4"),
    ],
)
def test_one_sentence_and_nothing_written(here, model, capsys, arguments, sentence):
    before = files()
    said = run(capsys, *arguments, code=1)
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and sentence in said.err
    assert files() == before and said.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["vlm"],
        ["vlm", "convert"],
        ["nonesuch"],
        ["compress"],
        ["compress", "a.png", "--level", "1", "--bpp", "1"],
        ["compress", "a.png", "--bytes", "0"],
        ["compress", "a.png", "--level", "-1"],
        ["decompress", "a.llicm", "--as-captured", "--task", "noisy"],
        ["compress", "a.png", "--as-captured", "--strength", "0.5"],
        ["decompress", "a.llicm", "--format", "bmp"],
        ["degrade", "a.png"],
        ["degrade", "a.png", "--task", "noisy", "--severity", "2"],
        ["degrade", "a.png", "--task", ""],
        ["evaluate", "a.png", "--levels", "0,x"],
        ["evaluate", "a.png", "--levels", "0,0"],
        ["evaluate", "a.png", "--metrics", "psnr,,ssim"],
    ],
)
def test_wrong_arguments(arguments, capsys):
    said = run(capsys, *arguments, code=2)
    assert "Usage: llicm" in said.err and said.out == ""


def test_a_full_disk_leaves_nothing_behind(here, model, monkeypatch, capsys):
    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = files()
    monkeypatch.setattr(Path, "write_bytes", full)
    said = run(capsys, "compress", "a.png", code=1)
    assert said.err == "error: a.llicm: cannot be written (No space left on device); nothing was changed.\n"
    assert files() == before


def test_interruption(here, model, small, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    before = files()
    monkeypatch.setattr(type(small.codec), "compress", stop)
    said = run(capsys, "compress", "photos", "-o", "small", code=130)
    assert "error: interrupted" in said.err and "Traceback" not in said.err and files() == before


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory(here, model, small, monkeypatch, capsys, error):
    def large(*_):
        raise error

    monkeypatch.setattr(type(small), "enhance", large)
    said = run(capsys, "restore", "a.png", code=1)
    assert said.err == "error: a.png: not enough memory for an image of this size; make it smaller.\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_standard_output_that_takes_nothing(here):
    """In a process of its own, for what Python does at its end."""
    Path("stream.llicm").write_bytes(pack(Bitstream(b"abcd", 8, 8, 1.0, b"xyz")))
    program = "import sys; from llicm.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "inspect", "stream.llicm"]
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 1
    assert ended.stderr == "error: standard output: No space left on device; not everything was written.\n"
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert ended.returncode == 1 and ended.stderr.startswith("error: standard output: Broken pipe;")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("redirections", "code", "sentence"),
    [
        (">&-", 1, "error: standard output is closed; what should be there is lost."),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 1, ""),
        ("-o - >&-", 1, "error: standard output is closed; give -o FILE."),
    ],
)
def test_closed_streams(here, redirections, code, sentence):
    """What is opened next would take the place of a closed stream."""
    command = f"'{sys.executable}' -m llicm degrade a.png --task noisy {redirections}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == code and done.stderr.strip() == sentence
    assert ("a.noisy.png" in files()) == ("-o" not in redirections)


def test_names_that_are_not_utf8(here, capsys):
    name = os.fsdecode(b"caf\xe9.png")
    os.rename("a.png", name)
    command = [sys.executable, "-m", "llicm"]
    done = subprocess.run([*command, "degrade", name, "--task", "noisy"], capture_output=True)
    assert done.returncode == 0 and rb"caf\xe9.png -> caf\xe9" in done.stdout
    again = subprocess.run([*command, "degrade", name, "--task", "noisy"], capture_output=True)
    assert again.returncode == 1 and b"exists already" in again.stderr and b"Traceback" not in again.stderr


def test_records_of_names_that_are_not_utf8(here, model, capsys):
    os.rename("a.png", os.fsdecode(b"caf\xe9.png"))
    run(capsys, "evaluate", ".", "--metrics", "psnr", "--levels", "1", "-o", "records.csv")
    assert "caf\\xe9.png" in Path("records.csv").read_text()


def test_progress_only_on_a_terminal(here, model, monkeypatch, capsys):
    assert "%" not in run(capsys, "restore", "photos", "-o", "better").err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    said = run(capsys, "restore", "photos", "a.png", "-o", "better", "--force")
    assert "3/3" in said.err and "\r" in said.err and len(said.out.splitlines()) == 3


# --- restore, degrade, inspect, evaluate ---


def test_restore(here, model, capsys):
    said = run(capsys, "restore", "a.png")
    assert said.out == "a.png -> a.restored.png  128x96  restored\n"
    assert torch.equal(read_image("a.restored.png"), quantize8(picture() * 0.5))
    run(capsys, "restore", "photos", "-o", "better", "--format", "jpg")
    assert files("better") == ["b.jpg", "c.jpg"] and Image.open("better/b.jpg").format == "JPEG"


def test_the_line_says_what_was_seen_and_how_surely(here, capsys, small, tiny_daclip, monkeypatch):
    def said(share, command, *options):
        conditioner = Conditioner(tiny_daclip, "windows", judge=always(share))
        system = LLICM(small.codec, Spy(), conditioner, Spy())
        made = types.SimpleNamespace(load_model=lambda path=None, coding=False: system)
        monkeypatch.setitem(sys.modules, "llicm.model", made)
        return run(capsys, command, *options, "--force").out

    for share, seen in [(0.99, r"[a-z-]+ \d+%, restored"), (sum(SURE) / 2, r"[a-z-]+ \d+%, restored by 50%")]:
        for command, file in (("compress", "a.png"), ("decompress", "a.llicm"), ("restore", "a.png")):
            line = said(share, command, file)
            assert re.search(f"  {seen}\n$", line) and "  clean" not in line
    assert said(0.05, "restore", "a.png").endswith("  clean 95%, left as it is\n")
    assert torch.equal(read_image("a.restored.png"), read_image("a.png"))
    assert said(0.99, "decompress", "a.llicm", "--task", "clean").endswith("  clean, left as it is\n")
    for command, file in (("compress", "a.png"), ("decompress", "a.llicm"), ("restore", "a.png")):
        assert said(0.05, command, file, "--task", "rainy", "--strength", "0.5").endswith("  rainy, restored by 50%\n")
    assert (read_image("a.restored.png") - 0.75 * read_image("a.png")).abs().max() < 1.1 / 255


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["degrade", "a.png", "--task", "clean"], "unknown degradation 'clean'"),
        (["restore", "a.png", "--task", "clean, rainy"], "unknown degradation 'clean'"),
        (["restore", "a.png", "--strength", "1.5"], "--strength"),
        (["decompress", "a.llicm", "--as-captured", "--strength", "0.5"], "--as-captured not to"),
    ],
)
def test_clean_is_alone_and_strength_a_share(here, model, capsys, arguments, sentence):
    assert cli.main(arguments) == 2
    assert sentence in capsys.readouterr().err


def test_restored_files_of_a_quality_or_a_size(here, model, small, monkeypatch, capsys):
    runs, enhance = [], type(small).enhance
    monkeypatch.setattr(type(small), "enhance", lambda *args: runs.append(1) or enhance(*args))
    said = run(capsys, "restore", "a.png", "-o", "b.avif", "--bpp", "0.5")
    size = Path("b.avif").stat().st_size
    assert 700 < size <= 0.5 * 128 * 96 / 8 and said.out.endswith(
        f"128x96  restored  {size} bytes  {size / 1536:.3f} bpp\n"
    )
    assert runs == [1], "restored once, whatever is tried"
    assert (read_image("b.avif") - picture() * 0.5).square().mean() < 0.005
    run(capsys, "restore", "photos", "-o", "better", "--format", "jpg", "--quality", "20")
    run(capsys, "restore", "photos/b.png", "-o", "b.jpg", "--bytes", "900")
    assert files("better") == ["b.jpg", "c.jpg"] and Path("b.jpg").stat().st_size <= 900
    before = Path("b.avif").read_bytes()
    said = run(capsys, "restore", "a.png", "-o", "b.avif", "--bytes", "20", "--force", code=1)
    assert said.err.startswith("error: a.png: ") and "20 are too few" in said.err
    assert Path("b.avif").read_bytes() == before
    said = run(capsys, "restore", "a.png", "--bytes", "20", "--quality", "7", code=2)
    assert "--quality, --bpp and --bytes exclude each other" in said.err


def test_restore_with_the_real_restorer(here, model, small, monkeypatch, capsys):
    restorer = RESTORERS.make("direct", width=8, blocks=[1, 1, 1]).eval()
    monkeypatch.setitem(sys.modules, "llicm.model", types.SimpleNamespace(load_model=lambda *_: LLICM(None, restorer)))
    run(capsys, "restore", "a.png")
    assert torch.equal(read_image("a.restored.png"), picture()), "untrained it leaves images as they are"


def test_a_part_that_the_model_lacks(here, model, small, monkeypatch, capsys):
    run(capsys, "compress", "a.png")
    codec = types.SimpleNamespace(load_model=lambda *_: LLICM(small.codec, None))
    monkeypatch.setitem(sys.modules, "llicm.model", codec)
    for arguments in (["restore", "a.png"], ["decompress", "a.llicm", "-o", "b.png"], ["evaluate", "a.png"]):
        said = run(capsys, *arguments, "--model", "codec.safetensors", code=1)
        assert said.err == "error: codec.safetensors: has no restorer, which this needs; name another --model.\n"
    run(capsys, "decompress", "a.llicm", "-o", "b.png", "--as-captured")


def test_degrade(here, capsys):
    run(capsys, "degrade", "a.png", "photos/b.png", "--task", "noisy, low-light")
    first = read_image("a.low-light+noisy.png")
    assert first.mean() < 0.7 * picture().mean() and Path("photos/b.low-light+noisy.png").exists()
    run(capsys, "degrade", "a.png", "--task", "low-light,noisy", "-o", "again.png")
    assert torch.equal(read_image("again.png"), first)
    run(capsys, "degrade", "a.png", "--task", "low-light,noisy", "-o", "other.png", "--seed", 1)
    assert not torch.equal(read_image("other.png"), first)
    errors = []
    for severity in (0, 1):
        run(capsys, "degrade", "a.png", "--task", "noisy", "-o", f"{severity}.png", "--severity", severity)
        errors.append((read_image(f"{severity}.png") - picture()).square().mean())
    assert 4 * errors[0] < errors[1]


def test_degrade_makes_what_the_study_makes(here, capsys):
    from llicm.data.pairs import write_pairs

    write_pairs({"a": picture()}, here / "pairs", ["rainy"], 0.5, 3, "val", None)
    run(capsys, "degrade", "a.png", "--task", "rainy", "--seed", 3, "-o", "rain.png")
    assert torch.equal(read_image("rain.png"), read_image("pairs/val/rainy/LQ/a.png"))


def test_inspect(here, model, small, capsys):
    run(capsys, "compress", "a.png", "photos/b.png", "-o", "small", "--level", "1.25")
    data = Path("small/a.llicm").read_bytes()
    said = run(capsys, "inspect", "small/a.llicm")
    for part in ("small/a.llicm", "128x96", f"{len(data)} bytes", "level 1.25", small.codec.model_id()[:4].hex()):
        assert part in said.out
    Path("small/broken.llicm").write_bytes(data[:30])
    said = run(capsys, "inspect", "small", "--json", code=1)
    facts = json.loads(said.out)
    assert [fact["file"] for fact in facts] == ["small/a.llicm", "small/b.llicm"]
    assert facts[0] == {
        "file": "small/a.llicm", "version": data[4], "model": small.codec.model_id()[:4].hex(), "width": 128,
        "height": 96, "grey": False, "restored": False, "level": 1.25, "bytes": len(data),
        "bpp": 8 * len(data) / 96 / 128, "payload": len(unpack(data).payload),
    }  # fmt: skip
    assert said.err.startswith("error: small/broken.llicm: ")


def test_evaluate(here, model, small, capsys):
    said = run(capsys, "evaluate", "a.png", "photos", "--levels", "0,2.5", "--metrics", "psnr,ssim", "-o", "r.csv")
    records = read_records("r.csv")
    assert set(records["method"]) == {"llicm-as-captured"}, "nothing ideal to compare the enhanced photo with"
    assert len(records) == 3 * 2 * 2 and set(records["image"]) == {"a.png", "b.png", "c.png"}
    data = small.compress(picture(), 2.5)
    row = records[(records["image"] == "a.png") & (records["level"] == "2.5") & (records["metric"] == "psnr")].iloc[0]
    mse = (quantize8(small.codec.decompress(data)[0]) - picture()).square().mean()
    assert row["bytes"] == len(data) and row["bpp"] == 8 * len(data) / 96 / 128
    assert row["value"] == pytest.approx(float(-10 * mse.log10()), abs=0.01)
    table = said.out.splitlines()
    assert table[0].split() == ["method", "level", "bpp", "psnr", "ssim"] and len(table) == 3
    mean = records[(records["level"] == "2.5") & (records["metric"] == "psnr")]["value"].mean()
    assert table[2].split()[:2] == ["llicm-as-captured", "2.5"] and table[2].split()[3] == f"{mean:.4f}"


def test_evaluate_against_ideal_photos(here, model, small, capsys):
    write_png(picture() * 0.5, "ideal/a.png")
    options = ["--levels", "2", "--metrics", "ssim,psnr", "--task", "hazy", "-o", "r.csv"]
    run(capsys, "evaluate", "a.png", "--reference", "ideal", *options)
    records = read_records("r.csv")
    psnr = records[records["metric"] == "psnr"].set_index("method")
    assert set(psnr.index) == {"captured", "llicm-as-captured", "llicm"} and set(psnr["task"]) == {"hazy"}
    assert psnr.loc["captured", "level"] == "none" and psnr["value"]["llicm"] > psnr["value"]["captured"] + 10
    enhanced = quantize8(small.decompress(small.compress(picture(), 2))[1])
    mse = (enhanced - quantize8(picture() * 0.5)).square().mean()
    assert psnr["value"]["llicm"] == pytest.approx(float(-10 * mse.log10()), abs=0.01)
    assert Spy.hints[0] == ["hazy"]


def test_evaluate_without_reference_uses_other_metrics_on_everything(here, model, pipe, capsys):
    code, text = pipe(b"", "evaluate", "a.png", "--levels", "1", "--metrics", "entropy,ssim")
    assert code == 0
    Path("r.csv").write_bytes(text)
    records = read_records("r.csv")
    assert sorted(zip(records["method"], records["metric"], strict=True)) == [
        ("captured", "entropy"), ("llicm", "entropy"), ("llicm-as-captured", "entropy"), ("llicm-as-captured", "ssim"),
    ]  # fmt: skip


def test_evaluate_reports_what_it_cannot_measure(here, model, capsys):
    write_png(picture(8, 8), "photos/tiny.png")
    write_png(picture(10, 10), "ideal/b.png")
    write_png(picture(64, 80), "ideal/c.png")
    write_png(picture(8, 8), "ideal/tiny.png")
    options = ["--metrics", "ssim", "--levels", "0", "-o", "r.csv"]
    said = run(capsys, "evaluate", "photos", "--reference", "ideal", *options, code=1)
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert errors[0].startswith("error: photos/b.png: 128x96 pixels, but its reference ideal/b.png has 10x10")
    assert errors[1].startswith("error: photos/tiny.png: Metric 'ssim' needs images of at least 11x11")
    assert set(read_records("r.csv")["image"]) == {"c.png"}


def test_the_prefilter_runs_once_a_photo(here, small, monkeypatch, capsys):
    """However many levels are tried: rate control and evaluation encode the same prefiltered photo."""

    class Prefilter(nn.Module):
        calls = 0

        def forward(self, x, level, context):
            Prefilter.calls += 1
            return 1 - x

    system = LLICM(small.codec, Spy(), Spy(), Prefilter()).eval()
    monkeypatch.setitem(sys.modules, "llicm.model", types.SimpleNamespace(load_model=lambda *_: system))
    Spy.hints.clear()
    run(capsys, "compress", "a.png", "photos/b.png", "-o", "small", "--bpp", "0.8")
    assert Prefilter.calls == len(Spy.hints) == 2
    level = unpack(Path("small/a.llicm").read_bytes()).level
    assert Path("small/a.llicm").read_bytes() == small.codec.compress(quantize8(1 - picture()), level)
    assert Path("small/a.llicm").read_bytes() == system.compress(picture(), level)
    Prefilter.calls = 0
    run(capsys, "compress", "a.png", "-o", "captured.llicm", "--as-captured")
    assert Prefilter.calls == 0 and Path("captured.llicm").read_bytes() == small.codec.compress(picture(), 2)
    run(capsys, "evaluate", "a.png", "--levels", "0,1,2", "--metrics", "psnr", "-o", "r.csv")
    assert Prefilter.calls == 1


# --- help and completion ---

COMMANDS = [
    [], ["compress"], ["decompress"], ["restore"], ["degrade"], ["inspect"], ["evaluate"], ["data"], ["data", "list"],
    ["data", "add"], ["data", "metrics"], ["data", "prepare"],
    ["data", "split"], ["benchmark"], ["train"], ["lineage"], ["audit"], ["export-crate"], ["vlm"],
    ["vlm", "convert"], ["restorer"], ["restorer", "convert"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_an_example(command, capsys):
    said = run(capsys, *command, "--help")
    assert "Example" in said.out and said.out.count("  llicm ") >= 1 and said.err == ""
    assert said.out.startswith("Usage: llicm")


def test_every_command_is_covered_above():
    def paths(group, prefix):
        for name, command in group.commands.items():
            yield [*prefix, name]
            yield from paths(command, [*prefix, name]) if hasattr(command, "commands") else ()

    assert sorted([[], *paths(cli.llicm, [])]) == sorted(COMMANDS)


def test_version(capsys):
    from llicm import __version__

    assert run(capsys, "--version").out == f"llicm {__version__}\n"


def test_quick_commands_do_not_load_torch(here):
    """Help, and what tells about a file without decoding it."""
    code = (
        "import sys; from llicm.cli import main; from llicm.codec.bitstream import Bitstream, pack;"
        "open('x.llicm', 'wb').write(pack(Bitstream(b'abcd', 8, 8, 1.0, b'xyz')));"
        "assert [main(['--help']), main(['compress', '-h']), main(['inspect', 'x.llicm'])] == [0, 0, 0];"
        "sys.exit(str(sorted({'torch', 'numpy', 'pandas', 'PIL', 'open_clip'} & set(sys.modules))))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stderr == "[]\n" and "8x8 pixels" in ended.stdout


def test_every_command_is_documented():
    """Its synopsis is a heading, and an example calls it."""
    text = (Path(__file__).resolve().parents[1] / "docs/command-line.md").read_text(encoding="utf-8")
    groups = [
        command for command in COMMANDS if any(len(c) > len(command) and c[: len(command)] == command for c in COMMANDS)
    ]
    for command in COMMANDS:
        if command not in groups:
            words = " ".join(["llicm", *command])
            assert (
                f"### {words}\n" in text and f"\n{words} " in text.partition(f"### {words}\n")[2].partition("\n### ")[0]
            )
    assert all(f"_LLICM_COMPLETE={shell}_source llicm" in text for shell in ("bash", "zsh", "fish"))


def completions(monkeypatch, capsys, *words):
    """What is offered in place of the last word."""
    monkeypatch.setenv("_LLICM_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", " ".join(["llicm", *words]))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    assert cli.main([]) == 0
    found = [line.split(",", 1) for line in capsys.readouterr().out.splitlines() if line]
    return {word if kind == "plain" else kind for kind, word in found}


def test_completion(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("models: {rdo: {}, restorer: {}}\nbenchmark: {heic: {}, webp: {}}\n")
    Path("other").mkdir()
    Path("other/params.yaml").write_text("models: {llicm: {}}\n")

    def offered(*words):
        return completions(monkeypatch, capsys, *words)

    assert offered("de") == {"decompress", "degrade"} and offered("vlm", "") == {"convert"}
    assert offered("compress", "--b") == {"--bpp", "--bytes"} and offered("compress", "ph") == {"file"}
    assert offered("restore", "--task", "") == {*TASKS, "clean"}
    assert offered("restore", "--task", "noisy,ra") == {"noisy,rainy", "noisy,raindrop"}
    assert offered("evaluate", "--metrics", "ssim,ss") == set() and "ssim,psnr" in offered(
        "evaluate", "--metrics", "ssim,"
    )
    assert offered("data", "add", "kod") == {"kodak"} and offered("benchmark", "kod") == {"kodak", "dir"}
    assert offered("benchmark", "kodak", "--groups", "heic,") == {"heic,webp"}
    assert offered("train", "r") == {"rdo", "restorer"} and offered("train", "--profile", "other", "") == {"llicm"}
    assert offered("train", "--profile", "nowhere", "") == set()
    assert offered("audit", "--checks", "lock,ha") == {"lock,hashes"}


def test_offered_words_exist():
    from llicm.pipeline.checks import STUDY_CHECKS
    from llicm.provenance.audit import CHECKS

    assert all(metric_info(name) for name in METRICS)
    assert set(study.CHECKS) == {*CHECKS, *STUDY_CHECKS}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_set_up(monkeypatch, capsys, shell):
    if shell == "bash" and not shutil.which("bash"):
        pytest.skip("click asks bash for its version")
    monkeypatch.setenv("_LLICM_COMPLETE", f"{shell}_source")
    assert cli.main([]) == 0
    assert f"_LLICM_COMPLETE={shell}_complete" in capsys.readouterr().out
