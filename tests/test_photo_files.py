# SPDX-License-Identifier: Apache-2.0
import io
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from llicm.cli import files
from llicm.cli.files import EXACT, LOSSY, Job, check_target, encode_photo, expand, format_of, plan
from llicm.errors import UserError
from llicm.images import quantize8, read_image


def photo(height=20, width=30):
    coarse = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photos/b.png", "photos/a.jpg", "photos/notes.txt", "other/a.jpg", "small/a.llicm", "small/.b.llicm"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(b"")
    return tmp_path


def targets(jobs):
    return [job.target and job.target.as_posix() for job in jobs]


def test_folders_stand_for_their_files(folder):
    assert [str(p) for p in expand(["other/a.jpg", "photos"])] == ["other/a.jpg", "photos/a.jpg", "photos/b.png"]
    assert expand(["small"], streams=True) == [Path("small/a.llicm")] and expand(["-"]) == [None]
    with pytest.raises(UserError, match="photos: no .llicm files"):
        expand(["photos"], streams=True)
    with pytest.raises(UserError, match="small: no images"):
        expand(["small"])
    with pytest.raises(UserError, match="standard input"):
        expand(["-", "photos/b.png"])
    with pytest.raises(UserError, match="photos/b.png: named twice"):
        expand(["photos/b.png", "photos"])


@pytest.mark.parametrize(
    ("inputs", "output", "label", "expected"),
    [
        (["photos/b.png"], None, "", ["photos/b.llicm"]),
        (["photos/b.v2.png"], None, ".restored", ["photos/b.v2.restored.llicm"]),
        (["photos/b.png"], "c.llicm", ".restored", ["c.llicm"]),
        (["photos/b.png"], "small", ".restored", ["small/b.llicm"]),
        (["photos/b.png"], "new/", "", ["new/b.llicm"]),
        (["photos/b.png"], "-", "", [None]),
        (["photos/b.png", "other/a.jpg"], None, ".x", ["photos/b.x.llicm", "other/a.x.llicm"]),
        (["photos"], None, "", ["photos/a.llicm", "photos/b.llicm"]),
        (["photos"], "new", "", ["new/a.llicm", "new/b.llicm"]),
        (["photos/b.png", "other/a.jpg"], "new.1", "", ["new.1/b.llicm", "new.1/a.llicm"]),
        (["-"], None, "", [None]),
        (["-"], "-", "", [None]),
        (["-"], "c.llicm", "", ["c.llicm"]),
    ],
)
def test_results_have_their_place(folder, inputs, output, label, expected):
    assert targets(plan(inputs, output, ".llicm", label)) == expected


@pytest.mark.parametrize(
    ("inputs", "output", "suffix", "sentence"),
    [
        (["photos", "other"], "new", ".llicm", "new/a.llicm: both photos/a.jpg and other/a.jpg"),
        (["photos"], "new.llicm", ".llicm", "new.llicm: 2 files cannot become one"),
        (["photos/b.png", "other/a.jpg"], "photos/notes.txt", ".llicm", "2 files cannot become one"),
        (["photos"], "-", ".llicm", "2 files cannot all go to standard output"),
        (["-"], "new/", ".llicm", "new: a folder"),
        (["photos/b.png"], "photos/b.png", ".png", "would replace this input"),
        (["photos/b.png", "other"], None, ".png", "restored copies beside their photos"),
        (["photos/b.png"], "photos", ".png", "would replace this input"),
        (["photos/b.png"], "photos/../photos/b.png", ".png", "would replace this input"),
        (["photos/b.png", "other/a.jpg"], "other", ".jpg", "other/a.jpg: the result would replace this input"),
    ],
)
def test_clashes_are_refused_before_anything_is_done(folder, inputs, output, suffix, sentence):
    with pytest.raises(UserError, match=sentence):
        plan(inputs, output, suffix, ".restored")


def read(data):
    """As `read_image`, and JPEG XL."""
    if b"JXL" not in data[:12]:
        return read_image(data)
    pixels = np.atleast_3d(np.array(Image.open(io.BytesIO(data))))
    return torch.from_numpy(pixels).permute(2, 0, 1).expand(3, -1, -1) / 255


@pytest.mark.parametrize("suffix", EXACT)
def test_images_come_back(suffix):
    image = photo()
    data = encode_photo(image, suffix)
    assert Image.open(io.BytesIO(data)).format == EXACT[suffix][0]
    assert torch.equal(read_image(data), quantize8(image))


@pytest.mark.parametrize("suffix", LOSSY)
def test_images_of_a_quality_or_a_size(suffix):
    image = F.interpolate(photo()[None], (60, 75), mode="bicubic")[0].clamp(0, 1)
    low, usual, high = (len(encode_photo(image, suffix, quality)) for quality in (0, LOSSY[suffix][1], 100))
    assert low < usual < high and len(encode_photo(image, suffix, 100)) == high
    if suffix not in EXACT:
        assert (read(encode_photo(image, suffix)) - image).abs().mean() < 0.02
        assert len(encode_photo(image, suffix)) == usual
    for size in (low, usual, high):
        data = encode_photo(image, suffix, size=size)
        assert 0.9 * size < len(data) <= size and read(data).shape == image.shape
    with pytest.raises(UserError, match=f"takes {low} bytes at the lowest .*; 10 are too few"):
        encode_photo(image, suffix, size=10)


@pytest.mark.parametrize("suffix", LOSSY)
def test_grey_images_stay_grey(suffix):
    image = F.interpolate(photo()[None, :1], (60, 75), mode="bicubic")[0].clamp(0, 1).expand(3, -1, -1)
    for words in ({"quality": 30}, {"size": 2500}):
        made = read(encode_photo(image, suffix, **words))
        # the arithmetic of lossy WebP has no exact grey
        assert (made.amax(0) - made.amin(0)).max() <= (2.5 / 255 if suffix == ".webp" else 0)


def test_a_quality_or_a_size_that_cannot_be():
    for suffix in (".png", ".tif"):
        assert encode_photo(photo(), suffix, size=10_000) == encode_photo(photo(), suffix)
        with pytest.raises(UserError, match="keeps every pixel and has no quality; name a file such as .jpg"):
            encode_photo(photo(), suffix, 50)
        with pytest.raises(UserError, match=r"keeps every pixel, in \d+ bytes; 100 are too few: name a file such as"):
            encode_photo(photo(), suffix, size=100)


def test_a_format_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UserError, match="heic420 needs the package pillow-heif: pip install pillow-heif"):
        encode_photo(photo(), ".heic")


def test_a_format_that_cannot_hold_the_image():
    with pytest.raises(UserError, match="WEBP cannot hold this image .*choose PNG"):
        encode_photo(torch.zeros(3, 1, 16384), ".webp")


def test_format_is_set_by_suffix_or_option():
    assert format_of(Path("a.JPG"), None) == ".jpg" and format_of(Path("a.jpeg"), "jpg") == ".jpeg"
    assert format_of(None, None) == ".png" and format_of(Path("a"), "webp") == ".webp"
    assert format_of(Path("a.heic"), None) == ".heic" and format_of(Path("a.jxl"), "jxl") == ".jxl"
    with pytest.raises(UserError, match="a.bmp: images are written as .png"):
        format_of(Path("a.bmp"), None)
    with pytest.raises(UserError, match="a.png: its suffix says png, --format says jpg"):
        format_of(Path("a.png"), "jpg")


def test_one_file_is_not_made_of_two(folder):
    """Files are compared, not spellings."""
    for name in ("photos/z.png", "photos/z.jpg"):
        Path(name).write_bytes(b"")
    Path("linked").symlink_to("photos")
    for other in (f"{folder}/photos/z.jpg", "linked/z.jpg", "other/../photos/z.jpg"):
        for output in (None, "new"):
            with pytest.raises(UserError, match="z.llicm: both photos/z.png and .*z.jpg would be written there"):
                plan(["photos/z.png", other], output, ".llicm")
    for other in (f"{folder}/photos/z.png", "linked/z.png"):
        with pytest.raises(UserError, match="z.png: named twice"):
            plan(["photos/z.png", other], None, ".llicm")
    with pytest.raises(UserError, match="linked/b.png: the result would replace this input"):
        plan(["photos/b.png"], "linked/b.png", ".png")


def test_a_pipe_needs_a_name_for_its_result_and_is_read_once(folder):
    os.mkfifo("pipe")
    for output in (None, "other", "new/"):
        with pytest.raises(UserError, match="pipe: a pipe has no name to call the result by; give a file to -o"):
            plan(["pipe"], output, ".png")
    (job,) = plan(["pipe"], "new.png", ".png")
    data = encode_photo(photo(), ".png")
    writer = threading.Thread(target=lambda: Path("pipe").write_bytes(data))
    writer.start()
    assert torch.equal(files.read_photo(job.source), quantize8(photo()))
    writer.join()


def test_targets_are_replaced_only_on_demand(folder):
    with pytest.raises(UserError, match="photos/b.png: exists already; add --force"):
        check_target(Job(None, Path("photos/b.png")), force=False)
    check_target(Job(None, Path("photos/b.png")), force=True)
    check_target(Job(None, Path("photos/new.png")), force=False)
    for name in ("/dev/null", "photos"):
        with pytest.raises(UserError, match=f"{name}: not a file that can be replaced"):
            check_target(Job(None, Path(name)), force=True)


def test_reading_and_writing_fail_with_a_sentence(folder, monkeypatch):
    with pytest.raises(UserError, match="none.llicm: cannot be read .No such file"):
        files.read_bytes(Path("none.llicm"))
    with pytest.raises(UserError, match="notes.txt/a.png: cannot be written"):
        files.write_file(Path("photos/notes.txt/a.png"), b"new")
    Path("a.png").write_bytes(b"old")

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="a.png: cannot be written .No space left"):
        files.write_file(Path("a.png"), b"new")
    assert Path("a.png").read_bytes() == b"old" and [p.name for p in folder.glob("*.tmp")] == []
    assert [p.name for p in folder.glob(".*")] == []


def test_references_by_name_or_stem(folder):
    for name in ("a.jpg", "a.png", "b.tif"):
        (folder / "other" / name).write_bytes(b"")
    sources = [Path("photos/a.jpg"), Path("photos/b.png")]
    assert files.references(sources, Path("other")) == {
        sources[0]: Path("other/a.jpg"),
        sources[1]: Path("other/b.tif"),
    }
    with pytest.raises(UserError, match="c.png: no reference named c"):
        files.references([Path("c.png")], Path("other"))
    with pytest.raises(UserError, match="a.webp: several references"):
        files.references([Path("a.webp")], Path("other"))
    with pytest.raises(UserError, match="absent: no such folder"):
        files.references(sources, Path("absent"))
