# SPDX-License-Identifier: Apache-2.0
import io

import numpy as np
import pytest
import torch
from PIL import Image

from llicm.errors import UserError
from llicm.images import list_images, quantize8, read_image, write_png


def ramp(height=6, width=10):
    values = torch.arange(3 * height * width).reshape(3, height, width) * 7 % 256
    return values.float() / 255


def test_png_round_trip_is_exact_and_leaves_nothing_else(tmp_path):
    image = ramp()
    write_png(image, tmp_path / "deep" / "a.png")
    assert torch.equal(read_image(tmp_path / "deep" / "a.png"), image)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.png"]


def test_values_are_rounded_and_clamped(tmp_path):
    image = torch.tensor([-1.0, 0.4 / 255, 0.6 / 255, 2.0]).reshape(1, 2, 2).expand(3, 2, 2)
    write_png(image, tmp_path / "a.png")
    expected = torch.tensor([0.0, 0.0, 1 / 255, 1.0]).reshape(1, 2, 2).expand(3, 2, 2)
    assert torch.equal(read_image(tmp_path / "a.png"), expected)
    assert torch.equal(quantize8(image), expected)


def test_a_failing_write_keeps_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    image = ramp()
    write_png(image, tmp_path / "a.png")

    def broken(self, file, **_):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        write_png(1 - image, tmp_path / "a.png")
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert torch.equal(read_image(tmp_path / "a.png"), image)


def test_grey_palette_alpha_and_16_bit(tmp_path):
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(grey).save(tmp_path / "grey.png")
    for channel in read_image(tmp_path / "grey.png"):
        assert torch.equal(channel, torch.from_numpy(grey).float() / 255)

    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    assert torch.equal(read_image(tmp_path / "palette.png"), read_image(tmp_path / "grey.png"))

    deep = np.array([[0, 32768], [65535, 257]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    torch.testing.assert_close(read_image(tmp_path / "deep.png")[0], torch.from_numpy(deep.astype(np.float32)) / 65535)

    clear = np.zeros((4, 4, 4), np.uint8)
    clear[:2, :, 3] = 255
    Image.fromarray(clear).save(tmp_path / "alpha.png")
    image = read_image(tmp_path / "alpha.png")
    assert (image[:, :2] == 0).all() and (image[:, 2:] == 1).all()


def test_exif_orientation_is_applied(tmp_path):
    picture = Image.new("RGB", (20, 10))
    exif = picture.getexif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (3, 20, 10)


def damaged(kind):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format=kind)
    whole = buffer.getvalue()
    return whole[: len(whole) // 2]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.png", damaged("PNG")),
        ("cut.jpg", damaged("JPEG")),
        ("cut.webp", damaged("WEBP")),
        ("text.png", b"hello"),
        ("empty.png", b""),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name) as caught:
        read_image(tmp_path / name)
    assert "remove" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="none.png"):
        read_image(tmp_path / "none.png")


def test_list_images(tmp_path):
    for name in ("b.PNG", "a.jpg", "c.tiff", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in list_images(tmp_path)] == ["a.jpg", "b.PNG", "c.tiff"]
    (tmp_path / "bare").mkdir()
    for folder, words in ((tmp_path / "bare", "no images"), (tmp_path / "absent", "no such folder")):
        with pytest.raises(UserError, match=words):
            list_images(folder)
