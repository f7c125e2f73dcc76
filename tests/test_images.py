# SPDX-License-Identifier: Apache-2.0
import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from llicm.errors import UserError
from llicm.images import by_stem, list_images, quantize8, read_image, write_png


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


def saved(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def noise(height=6, width=10, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def tensor(array):
    """(H, W, 3) of bytes to (3, H, W)."""
    return torch.from_numpy(np.array(array)).permute(2, 0, 1).float() / 255


def test_bytes_and_streams_are_read_too(tmp_path):
    data = saved(Image.fromarray(noise()), "PNG")

    class Pipe:
        """Cannot seek."""

        name = "pipe"

        def read(self):
            return data

    (tmp_path / "a.png").write_bytes(data)
    with open(tmp_path / "a.png", "rb") as file:
        for source in (data, io.BytesIO(data), Pipe(), file, tmp_path / "a.png", str(tmp_path / "a.png")):
            assert torch.equal(read_image(source), tensor(noise()))
    Pipe.read = lambda self: data[:50]
    with pytest.raises(UserError, match="^pipe: cannot be read as an image"):
        read_image(Pipe())
    with pytest.raises(UserError, match="^photo 7: cannot be read as an image"):
        read_image(data[:50], "photo 7")


ORIENTED = {  # what a viewer has to do to the stored pixels (EXIF 2.32, 4.6.4)
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_exif_orientation_is_applied(kind, orientation):
    picture = Image.fromarray(noise() if kind != "JPEG" else np.kron(noise(2, 3), np.ones((16, 16, 1), np.uint8)))
    exif = picture.getexif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    image = read_image(saved(picture, kind, exif=exif, **options))
    expected = tensor(ORIENTED[orientation](np.asarray(picture)))
    assert image.shape == expected.shape and (image - expected).abs().max() < (0.05 if kind == "JPEG" else 1e-6)


def deep_tiff(array, **options):
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_16_bit_tiff(order, compression):
    deep = np.random.default_rng(0).integers(0, 65536, (6, 10, 4), dtype=np.uint16)
    options = {"byteorder": order, "compression": compression}
    upper = tensor((deep >> 8).astype(np.uint8)[..., :3])
    assert torch.equal(read_image(deep_tiff(deep[..., :3], photometric="rgb", **options)), upper)
    opaque = deep.copy()
    opaque[..., 3] = 65535
    alpha = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
    assert torch.equal(read_image(deep_tiff(opaque, **alpha, **options)), upper)
    grey = torch.from_numpy(deep[..., 0].astype(np.float32)) / 65535
    torch.testing.assert_close(read_image(deep_tiff(deep[..., 0], **options))[1], grey)


def test_tiff_that_counts_from_white():
    deep = np.random.default_rng(0).integers(0, 65536, (6, 10), dtype=np.uint16)
    image = read_image(deep_tiff(deep, photometric="miniswhite"))
    torch.testing.assert_close(image[0], 1 - torch.from_numpy(deep.astype(np.float32)) / 65535)
    image = read_image(deep_tiff((deep >> 8).astype(np.uint8), photometric="miniswhite"))
    torch.testing.assert_close(image[0], 1 - torch.from_numpy((deep >> 8).astype(np.float32)) / 255)


def test_floating_point_grey():
    grey = np.linspace(0, 1, 60, dtype=np.float32).reshape(6, 10)
    assert torch.equal(read_image(deep_tiff(grey))[2], torch.from_numpy(grey))


@pytest.mark.parametrize(
    ("array", "options", "reason"),
    [
        (np.ones((3, 6, 10), np.uint16), {"photometric": "rgb", "planarconfig": "separate"}, "separate planes"),
        (np.ones((6, 10), np.int16), {}, "signed samples"),
        (np.ones((6, 10), np.uint32), {}, "32-bit samples"),
        (np.full((6, 10), 2.0, np.float32), {}, "samples outside 0 to 1"),
        (np.full((6, 10), np.nan, np.float32), {}, "samples outside 0 to 1"),
        (np.ones((6, 10, 3), np.float32), {"photometric": "rgb"}, "3 floating-point samples of 32 bits"),
        (np.ones((2, 6, 10, 3), np.uint8), {"photometric": "rgb"}, "several pages"),
    ],
)
def test_tiff_of_unclear_meaning_is_refused(array, options, reason):
    with pytest.raises(UserError, match=f"^image: cannot be read as an image .*{reason}"):
        read_image(deep_tiff(array, **options))


def test_thumbnails_are_ignored():
    whole, small = (Image.fromarray(noise(*size)) for size in ((8, 12), (4, 6)))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    data = saved(whole, "TIFF", save_all=True, append_images=[small])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert torch.equal(read_image(data), tensor(noise(8, 12)))
    phone = saved(whole, "MPO", save_all=True, append_images=[small], quality=95)
    assert Image.open(io.BytesIO(phone)).n_frames == 2 and read_image(phone).shape == (3, 8, 12)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_animations_are_refused(kind):
    pictures = [Image.fromarray(noise(seed=seed)) for seed in (1, 2)]
    with pytest.raises(UserError, match="animation of 2 frames"):
        read_image(saved(pictures[0], kind, save_all=True, append_images=pictures[1:]))


def test_transparency_shows_white():
    colours = noise(channels=4)
    expected = Image.alpha_composite(Image.new("RGBA", (10, 6), "white"), Image.fromarray(colours)).convert("RGB")
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        assert torch.equal(read_image(saved(Image.fromarray(colours), kind, **options)), tensor(np.asarray(expected)))
    palette = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(6, 10) % 3, mode="P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image = read_image(saved(palette, "PNG", transparency=bytes([255, 0, 255])))
    assert image[:, 0, 0].tolist() == [1, 0, 0] and image[:, 0, 1].tolist() == [1, 1, 1]
    assert image[:, 0, 2].tolist() == [0, 0, 1]
    grey = Image.fromarray(noise(channels=2), mode="LA")
    share = noise(channels=2).astype(float)[..., 1] / 255
    mixed = torch.from_numpy(noise(channels=2)[..., 0] / 255 * share + 1 - share).float()
    assert (read_image(saved(grey, "PNG"))[0] - mixed).abs().max() < 1.5 / 255


@pytest.mark.parametrize(("width", "height"), [(16385, 1), (1, 16385), (16384, 4097)])
def test_size_is_bounded_before_pixels_are_decoded(width, height):
    with pytest.raises(UserError, match=f"{width}x{height} pixels"):
        read_image(saved(Image.new("1", (width, height)), "PNG"))


def test_other_programs_are_not_started():
    with pytest.raises(UserError, match="not a readable image"):
        read_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")


# --- colour profiles ---


def profile(space, pcs, tags, kind=b"scnr"):
    """A minimal ICC profile, version 2.4."""
    body, table, place = b"", struct.pack(">I", len(tags)), 128 + 4 + 12 * len(tags)
    for signature, content in tags.items():
        content += bytes(-len(content) % 4)
        table += struct.pack(">4sII", signature, place + len(body), len(content))
        body += content
    head = struct.pack(">I4sI4s4s4s12x4s", place + len(body), b"", 0x02400000, kind, space, pcs, b"acsp")
    head += bytes(28) + struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)  # D50
    return head.ljust(128, b"\0") + table + body


def xyz(*values):
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def gamma(value):
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


WHITE = xyz(0.9642, 1.0, 0.8249)
GREY_GAMMA_1 = profile(b"GRAY", b"XYZ ", {b"wtpt": WHITE, b"kTRC": gamma(1.0)})
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# The standard's name is free: a profile that says of red what sRGB says of green.
SWAPPED = SRGB.replace(b"rXYZ", b"tmp1").replace(b"gXYZ", b"rXYZ").replace(b"tmp1", b"gXYZ")


def adobe_rgb():
    """Primaries of Adobe RGB (1998), adapted to D50 (its specification, annex A)."""
    primaries = {b"rXYZ": (0.60974, 0.31111, 0.01947), b"gXYZ": (0.20528, 0.62567, 0.06087),
                 b"bXYZ": (0.14919, 0.06322, 0.74457)}  # fmt: skip
    curves = {name: gamma(2.19921875) for name in (b"rTRC", b"gTRC", b"bTRC")}
    tags = {b"wtpt": WHITE} | {name: xyz(*v) for name, v in primaries.items()} | curves
    return profile(b"RGB ", b"XYZ ", tags, b"mntr")


def simple_cmyk():
    """No ink is white, each of cyan, magenta, yellow takes the red, green, blue of sRGB, black all. A `lut8Type` of two
    points along each ink, to CIELAB."""
    corners = np.array([[(i >> 3 & 1), (i >> 2 & 1), (i >> 1 & 1), (i & 1)] for i in range(16)])
    rgb = ((1 - corners[:, :3]) * (1 - corners[:, 3:]) * 255).astype(np.uint8)
    transform = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB", ImageCms.Intent.PERCEPTUAL
    )
    lab = ImageCms.applyTransform(Image.fromarray(rgb[None]), transform)
    lab = b"".join(bytes(lab.getpixel((i, 0))) for i in range(16))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut += bytes(range(256)) * 4 + lab + bytes(range(256)) * 3
    return profile(b"CMYK", b"Lab ", {b"wtpt": WHITE, b"A2B0": lut, b"A2B1": lut}, b"prtr")


def test_srgb_in_name_and_deed_changes_nothing():
    for kind in ("PNG", "TIFF"):
        assert torch.equal(read_image(saved(Image.fromarray(noise()), kind, icc_profile=SRGB)), tensor(noise()))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_colour_profiles_are_converted(kind):
    flat = np.zeros((8, 8, 3), np.uint8) + np.array([200, 100, 40], np.uint8)
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    image = read_image(saved(Image.fromarray(flat), kind, icc_profile=SWAPPED, **options))
    assert (image - tensor(flat[..., [1, 0, 2]])).abs().max() < 3 / 255


def test_wide_colours_come_back():
    """A photo as a camera set to Adobe RGB writes it shows its original colours."""
    there = ImageCms.ImageCmsProfile(io.BytesIO(adobe_rgb()))
    photo = Image.fromarray(noise(32, 32)).resize((64, 64), Image.Resampling.BICUBIC)
    wide = ImageCms.profileToProfile(
        photo, ImageCms.createProfile("sRGB"), there, ImageCms.Intent.RELATIVE_COLORIMETRIC
    )
    apart = (tensor(np.asarray(wide)) - tensor(np.asarray(photo))).abs()
    image = read_image(saved(wide, "PNG", icc_profile=there.tobytes()))
    error = (image - tensor(np.asarray(photo))).abs()
    assert apart.mean() > 0.03 and error.mean() < 0.003 and error.max() < 0.05


def test_profile_under_transparency_and_palette():
    colours = noise(channels=4)
    colours[:3, :, 3], colours[3:, :, 3] = 255, 0
    image = read_image(saved(Image.fromarray(colours), "PNG", icc_profile=SWAPPED))
    assert (image[:, :3] - tensor(colours[:3, :, [1, 0, 2]])).abs().max() < 3 / 255 and (image[:, 3:] == 1).all()
    palette = Image.fromarray(np.zeros((2, 2), np.uint8), mode="P")
    palette.putpalette([200, 100, 40])
    for options in ({}, {"transparency": bytes([255])}):
        image = read_image(saved(palette, "PNG", icc_profile=SWAPPED, **options))
        assert (image[:, 0, 0] * 255 - torch.tensor([100.0, 200.0, 40.0])).abs().max() < 3


def test_grey_profiles():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    deep = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    linear = torch.from_numpy(grey / 255).float()
    expected = torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    for array in (grey, deep):
        image = read_image(saved(Image.fromarray(array), "PNG", icc_profile=GREY_GAMMA_1))
        assert image.shape == (3, 16, 16) and (image[0] - expected).abs().max() < 1.5 / 255
        assert torch.equal(image[0], image[1])
    with_alpha = Image.fromarray(np.dstack([grey, np.full_like(grey, 255)]), mode="LA")
    image = read_image(saved(with_alpha, "PNG", icc_profile=GREY_GAMMA_1))
    assert (image[0] - expected).abs().max() < 1.5 / 255
    assert torch.equal(read_image(saved(Image.fromarray(grey), "PNG", icc_profile=SRGB))[0], linear)


def test_cmyk():
    inks = np.zeros((8, 40, 4), np.uint8)
    for place, ink in enumerate([(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255)]):
        inks[:, 8 * place : 8 * place + 8] = ink
    expected = torch.tensor([[1.0, 0, 1, 1, 0], [1, 1, 0, 1, 0], [1, 1, 1, 0, 0]])
    picture = Image.fromarray(inks, mode="CMYK")
    for options in ({}, {"icc_profile": simple_cmyk()}):
        image = read_image(saved(picture, "JPEG", quality=100, **options))
        assert (image[:, 4, 4::8] - expected).abs().max() < 8 / 255
    half = Image.new("CMYK", (8, 8), (0, 128, 0, 0))
    plain, printed = (read_image(saved(half, "TIFF", **o)) for o in ({}, {"icc_profile": simple_cmyk()}))
    assert (plain - printed).abs().max() > 0.05, "the profile's own mixture is used, linear in CIELAB"


def test_cielab_tiff():
    colours = noise() // 2 + 64
    lab = ImageCms.profileToProfile(
        Image.fromarray(colours), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    error = (read_image(saved(lab, "TIFF")) - tensor(colours)).abs()
    assert error.mean() < 1.5 / 255 and error.max() < 6 / 255, "what 8 bits of CIELAB leave"


@pytest.mark.parametrize(
    ("colours", "icc", "reason"),
    [
        ("RGB", b"no profile at all", "its colour profile is damaged"),
        ("RGB", SRGB[:200], "its colour profile"),
        ("RGB", GREY_GAMMA_1, "its colour profile is for GRAY, its pixels are RGB"),
        ("CMYK", SRGB, "its colour profile is for RGB, its pixels are CMYK"),
        ("RGB", profile(b"RGB ", b"XYZ ", {b"wtpt": WHITE}), "its colour profile cannot be used"),
    ],
)
def test_broken_and_foreign_profiles_are_refused(colours, icc, reason):
    with pytest.raises(UserError, match=reason):
        read_image(saved(Image.new(colours, (4, 4)), "TIFF", icc_profile=icc))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
def test_damage_anywhere_is_an_image_or_a_sentence(kind):
    whole, random = saved(Image.fromarray(noise(24, 24)), kind), np.random.default_rng(1)
    for _ in range(150):
        data = bytearray(whole)
        for place in random.integers(0, len(data) if random.random() < 0.3 else min(len(data), 200), 3):
            data[place] = random.integers(0, 256)
        try:
            image = read_image(bytes(data[: random.integers(1, len(data) + 1)] if random.random() < 0.3 else data))
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert image.ndim == 3 and image.shape[0] == 3 and ((image >= 0) & (image <= 1)).all()


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


def test_two_pictures_of_one_name():
    found = by_stem([Path("b.png"), Path(os.fsdecode(b"caf\xe9.png"))])
    assert list(found) == ["b", "caf\\xe9"]
    with pytest.raises(UserError, match="a.png: another photo in this folder is also called a; rename one"):
        by_stem([Path("a.jpg"), Path("a.png")])
