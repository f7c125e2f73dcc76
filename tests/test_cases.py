# SPDX-License-Identifier: Apache-2.0
"""Pictures that tools read wrongly: those of tests/cases, and twins of other formats made here."""

import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from llicm.colour import matrix_profile
from llicm.errors import UserError
from llicm.images import list_images, read_image

CASES, TABLE = Path(__file__).parent / "cases", Path(__file__).parents[1] / "docs" / "faults.md"
P3 = (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, 0.3127, 0.329)
FLAT = np.zeros((16, 16, 3), np.uint8) + np.array([200, 100, 40], np.uint8)


def saved(array, kind, **options):
    buffer = io.BytesIO()
    picture = array if isinstance(array, Image.Image) else Image.fromarray(array)
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def png(depth, colour, rows, *chunks):
    """Rows of packed bytes, unfiltered."""
    width, height = 8, len(rows)
    made = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), *chunks]
    made += [(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b"")]
    parts = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in made]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def flat_png(*chunks):
    return png(8, 2, [bytes([200, 100, 40]) * 8] * 2, *chunks)


def adobe_exif():
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 0xFFFF
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    return exif.tobytes()


def heic(primaries=1, transfer=13):
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(np.tile(FLAT, (4, 4, 1)))).save(
        buffer, quality=90, color_primaries=primaries, transfer_characteristics=transfer, matrix_coefficients=1,
        full_range_flag=1, save_nclx_profile=True,
    )  # fmt: skip
    return buffer.getvalue()


def avif(primaries, transfer):
    """What the box says is changed behind the encoder's back."""
    data = bytearray(saved(np.tile(FLAT, (4, 4, 1)), "AVIF", quality=95))
    place = data.index(b"nclx") + 4
    data[place : place + 4] = struct.pack(">HH", primaries, transfer)
    return bytes(data)


def bmp_p3():
    plain = saved(FLAT, "BMP")
    ends = [0.4866, 0.2290, 0, 0.2657, 0.6917, 0.0451, 0.1982, 0.0793, 1.0439]
    head = plain[14:54] + struct.pack("<4I", 0, 0, 0, 0) + bytes(4)
    head += struct.pack("<9I", *(round(v * 2**30) for v in ends)) + struct.pack("<3I", *[round(2.2 * 65536)] * 3)
    head = struct.pack("<I", 108) + head[4:]
    return plain[:2] + struct.pack("<I4xI", 14 + 108 + len(plain) - 54, 122) + head + plain[54:]


def jp2_of(number):
    data = bytearray(saved(FLAT, "JPEG2000", irreversible=False))
    place = data.index(b"colr") + 4
    data[place + 3 : place + 7] = struct.pack(">I", number)
    return bytes(data)


def grey_rows(depth, values):
    bits = "".join(f"{v:0{depth}b}" for v in values)
    return [int(bits, 2).to_bytes(len(bits) // 8, "big")] * 2


CHRM_P3 = (b"cHRM", struct.pack(">8I", *(round(v * 1e5) for v in (*P3[6:], *P3[:6]))))
JPEG = dict(quality=95, subsampling=0)
TWINS = {
    "AVIF, nclx: HLG": lambda: avif(9, 18),
    "AVIF, nclx: P3": lambda: avif(12, 13),
    "BMP, header 4 with primaries of P3": bmp_p3,
    "HEIC": heic,
    "HEIC, nclx: P3": lambda: heic(12, 13),
    "HEIC, nclx: PQ": lambda: heic(9, 16),
    "JPEG 2000, CIELAB": lambda: jp2_of(14),
    "JPEG, Adobe RGB by EXIF and an ICC profile of P3": lambda: saved(
        FLAT, "JPEG", exif=adobe_exif(), icc_profile=matrix_profile(P3, None), **JPEG
    ),
    "JPEG, progressive without end marker": lambda: saved(FLAT, "JPEG", progressive=True, **JPEG)[:-2],
    "PNG, cICP: PQ": lambda: flat_png((b"cICP", bytes([9, 16, 0, 1]))),
    "PNG, cICP: video levels": lambda: flat_png((b"cICP", bytes([1, 13, 0, 0]))),
    "PNG, cHRM of P3": lambda: flat_png((b"gAMA", struct.pack(">I", 45455)), CHRM_P3),
    "PNG, cHRM of P3, but sRGB": lambda: flat_png((b"sRGB", b"\0"), CHRM_P3),
    "PNG, gAMA of 1": lambda: flat_png((b"gAMA", struct.pack(">I", 100000))),
    "PNG, grey, gAMA of 1": lambda: png(8, 0, [bytes([100]) * 8] * 2, (b"gAMA", struct.pack(">I", 100000))),
    "TIFF, 16-bit grey with alpha": lambda: tiff_la16(),
    "TIFF, primaries of P3": lambda: saved(FLAT, "TIFF", tiffinfo={319: P3[:6], 318: P3[6:]}),
    "WebP, Adobe RGB by EXIF": lambda: saved(FLAT, "WEBP", lossless=True, exif=adobe_exif()),
}


def tiff_la16():
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    array = np.full((16, 16, 2), 30000, np.uint16)
    tifffile.imwrite(buffer, array, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"])
    return buffer.getvalue()


def result(data):
    try:
        red, green, blue = (read_image(data).mean((1, 2)) * 255).round().int().tolist()
    except UserError as error:
        return "refused: " + re.search(r"\((.*)\); replace", str(error)).group(1)
    return f"read; mean colour {red}, {green}, {blue}"


def table():
    every = {f"`{p.name}`": p.read_bytes for p in sorted(CASES.iterdir())} | TWINS
    return "".join(f"| {name} | {result(make())} |\n" for name, make in every.items())


def test_the_table_of_pictures_is_what_comes_out():
    assert table() in TABLE.read_text(encoding="utf-8")


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_at_every_depth(depth):
    top = 2**depth - 1
    values = [0, top, top // 2, 1, top, 0, 1, top]
    key = values[2]
    image = read_image(png(depth, 0, grey_rows(depth, values), (b"tRNS", struct.pack(">H", key))))
    expected = [1.0 if v == key else v / top for v in values]
    assert np.allclose(image[0, 0], expected, atol=1e-6) and (image[0] == image[2]).all()


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour(depth):
    one, other = (200, 100, 40), (200, 100, 41)
    row = b"".join(struct.pack(">3H" if depth == 16 else "3B", *c) for c in [one, other] * 4)
    image = read_image(png(depth, 2, [row] * 2, (b"tRNS", struct.pack(">3H", *one))))
    assert (image[:, :, 0] == 1).all() and (image[:, :, 1] < 1).all()


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_more_than_its_end_is_refused(progressive):
    array = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = saved(array, "JPEG", progressive=progressive, **JPEG)
    assert (read_image(data[:-2]) == read_image(data)).all()
    for cut in (*range(5, 40), len(data) // 3, len(data) // 2):
        with pytest.raises(UserError):
            read_image(data[:-cut])


def test_a_chunk_of_colours_with_a_wrong_checksum_is_refused():
    data = flat_png((b"gAMA", struct.pack(">I", 100000)))
    with pytest.raises(UserError, match="gAMA.*damaged"):
        read_image(data.replace(struct.pack(">I", 100000), struct.pack(">I", 100001)))


def test_what_counts_as_a_picture_of_a_folder(tmp_path):
    for name in ("a.HEIC", "b.png", "._b.png", ".c.jpg"):
        (tmp_path / name).write_bytes(b"")
    assert [p.name for p in list_images(tmp_path)] == ["a.HEIC", "b.png"]
    (tmp_path / "z.jpg").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"z\.jpg: a link to a file that is not there"):
        list_images(tmp_path)
