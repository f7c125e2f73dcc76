# SPDX-License-Identifier: Apache-2.0
"""`.llicm` files in Pillow: the same bytes and pixels as on the command line."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, UnidentifiedImageError
from small import DIRECT, small_codec

from llicm.cli import main
from llicm.codec.bitstream import unpack
from llicm.framework import LLICM
from llicm.images import read_image, to_pixels
from llicm.model import load_model, save_model
from llicm.pillow import register_llicm_opener
from llicm.registry import RESTORERS

MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a model and a photo; Pillow knows that model."""
    folder = tmp_path_factory.mktemp("pillow")
    save_model(LLICM(small_codec().eval(), None), folder / "model.safetensors")
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.integers(0, 255, (3, 5, 3)), np.ones((16, 16, 1))).astype("uint8")
    Image.fromarray(blocks).save(folder / "photo.png")
    register_llicm_opener(folder / "model.safetensors")
    yield folder
    for table in (Image.OPEN, Image.SAVE):
        table.pop("LLICM")
    Image.EXTENSION.pop(".llicm")
    Image.ID.remove("LLICM")


def test_a_photo_that_was_restored_before_is_not_restored_again(folder, tmp_path):
    """Of one restorer for both places: bytes and pixels are still those of the model itself."""
    restorer = RESTORERS.make(**DIRECT, context=None)
    torch.nn.init.normal_(restorer.affine.bias, std=10)
    save_model(LLICM(small_codec().eval(), restorer, None, restorer), tmp_path / "model.safetensors")
    system = load_model(tmp_path / "model.safetensors")
    try:
        register_llicm_opener(tmp_path / "model.safetensors")
        Image.open(folder / "photo.png").save(tmp_path / "photo.llicm", level=1)
        data, shown = (tmp_path / "photo.llicm").read_bytes(), np.asarray(Image.open(tmp_path / "photo.llicm"))
    finally:
        register_llicm_opener(folder / "model.safetensors")
    x = read_image(folder / "photo.png")
    assert not torch.equal(system.prefiltered(x), x), "the restorer must matter, or the test says nothing"
    assert data == system.compress(x, 1) and unpack(data).restored
    assert np.array_equal(shown, to_pixels(system.decompress(data)[0]))


def command(folder, *arguments):
    assert main([*map(str, arguments), "--model", str(folder / "model.safetensors"), "--force"]) == 0


def test_bytes_and_pixels_are_those_of_the_commands(folder):
    command(folder, "compress", folder / "photo.png", "--level", "1.5")
    photo = Image.open(folder / "photo.png")
    photo.save(folder / "own.llicm", level=1.5)
    assert (folder / "own.llicm").read_bytes() == (folder / "photo.llicm").read_bytes()
    photo.save(folder / "small.llicm", bpp=0.8)
    assert (folder / "small.llicm").stat().st_size <= 0.8 * 80 * 48 / 8
    opened = Image.open(folder / "own.llicm")
    assert (opened.format, opened.size, opened.mode) == ("LLICM", (80, 48), "RGB")
    assert opened.info["level"] == 1.5
    command(folder, "decompress", folder / "photo.llicm", "--as-captured", "-o", folder / "decoded.png")
    assert opened.tobytes() == Image.open(folder / "decoded.png").tobytes()


def test_the_model_is_read_when_pixels_are_asked_for(folder, tmp_path):
    Image.open(folder / "photo.png").save(tmp_path / "a.llicm")
    register_llicm_opener(tmp_path / "none.safetensors")
    try:
        opened = Image.open(tmp_path / "a.llicm")
        with pytest.raises(OSError, match="none.safetensors: no such model"):
            opened.load()
    finally:
        register_llicm_opener(folder / "model.safetensors")


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_pillow_is_the_picture_that_it_shows(folder, tmp_path, mode):
    photo = Image.open(folder / "photo.png")
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        photo = ImageCms.profileToProfile(photo, *profiles, outputMode="LAB")
        photo.info.clear()
    elif mode in ("La", "LA"):
        photo = photo.convert("LA").convert(mode)
    else:
        photo = photo.convert("RGBA").convert(mode)
    photo.save(tmp_path / "a.llicm", level=3)
    opened = Image.open(tmp_path / "a.llicm")
    assert opened.mode == ("L" if mode in ("1", "L", "LA", "La") else "RGB")
    shown = np.asarray(Image.open(folder / "photo.png").convert(opened.mode), float)
    assert abs(np.asarray(opened, float).mean((0, 1)) - shown.mean((0, 1))).max() < 12


def test_orientation_and_profile_are_applied_as_on_the_command_line(folder, tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    photo = Image.open(folder / "photo.png")
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for name, options in {"a": {"exif": exif}, "b": {"exif": exif, "icc_profile": lab}}.items():
        photo.save(tmp_path / f"{name}.png", **options)
    command(folder, "compress", tmp_path / "a.png", "-o", tmp_path / "command.llicm")
    Image.open(tmp_path / "a.png").save(tmp_path / "own.llicm")
    assert (tmp_path / "own.llicm").read_bytes() == (tmp_path / "command.llicm").read_bytes()
    assert Image.open(tmp_path / "own.llicm").size == (48, 80)
    with pytest.raises(OSError, match="its colour profile is for Lab, its pixels are RGB"):
        Image.open(tmp_path / "b.png").save(tmp_path / "none.llicm")
    assert not (tmp_path / "none.llicm").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"level": 7}, "level 7: this model has levels 0 to 3"),
        ({"level": float("nan")}, "level nan: this model has"),
        ({"level": 1, "bpp": 1}, "level and bpp exclude each other"),
        ({"bpp": 0.001}, "too few"),
        ({"bpp": float("nan")}, "give a finite number"),
    ],
)
def test_wrong_options_are_said_and_write_nothing(folder, tmp_path, options, said):
    with pytest.raises((OSError, ValueError), match=said):
        Image.open(folder / "photo.png").save(tmp_path / "a.llicm", **options)
    assert not list(tmp_path.iterdir())


def test_files_that_are_none_or_damaged(folder, tmp_path):
    Image.open(folder / "photo.png").save(tmp_path / "a.llicm")
    data = (tmp_path / "a.llicm").read_bytes()
    for content, said in (
        (data[:-1], "truncated"),
        (data[:30] + b"\0\0" + data[32:], "altered"),
        (b"text", "identify"),
    ):
        (tmp_path / "b.llicm").write_bytes(content)
        with pytest.raises(UnidentifiedImageError, match=said):
            Image.open(tmp_path / "b.llicm")


def test_nothing_is_registered_by_importing():
    code = "import llicm, llicm.pillow\nfrom PIL import Image\nassert 'LLICM' not in Image.OPEN"
    subprocess.run([sys.executable, "-c", code], check=True)
