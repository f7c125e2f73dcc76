# SPDX-License-Identifier: Apache-2.0
"""Grey pictures stay grey: read at their depth, through codec and restorers, and in the files that commands write."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from small import CODEC, DIRECT
from test_cases import png

from llicm import cli
from llicm.cli.files import EXACT
from llicm.codec.bitstream import unpack
from llicm.errors import BitstreamError
from llicm.framework import LLICM
from llicm.images import quantize8, read_image
from llicm.limits import is_grey, keep_grey
from llicm.model import save_model
from llicm.registry import CODECS, RESTORERS
from llicm.vlm.conditioner import Conditioner


def tinting(seed):
    torch.manual_seed(seed)
    part = RESTORERS.make(**DIRECT)
    torch.nn.init.normal_(part.residual.weight, std=0.02)
    torch.nn.init.normal_(part.residual.bias, std=0.05)
    return part.eval()


@pytest.fixture(scope="module")
def system(tiny_daclip):
    torch.manual_seed(0)
    codec = CODECS.make(**CODEC)
    torch.nn.init.normal_(codec.g_s[-2].bias, std=0.05)
    codec.update()
    return LLICM(codec.eval(), tinting(0), Conditioner(tiny_daclip, "windows"), tinting(1)).eval()


@pytest.fixture(scope="module")
def grey():
    return quantize8(torch.rand(1, 40, 50, generator=torch.Generator().manual_seed(0))).repeat(3, 1, 1)


def test_through_the_whole_system(system, grey):
    other = system.restorer(grey[None], None, system.conditioner(grey[None], None))[0]
    assert not is_grey(other)  # what would become of it
    assert is_grey(system.prefiltered(grey))
    data = system.compress(grey, 1)
    assert unpack(data).grey and all(is_grey(image) for image in system.decompress(data))
    assert not is_grey(system.decompress(system.compress(grey * torch.tensor([1, 1, 0.5])[:, None, None], 1))[0])
    both = system.enhance(torch.stack([grey, grey * torch.tensor([1, 0.9, 0.8])[:, None, None]]))
    assert [is_grey(image) for image in both] == [True, False]


def test_the_mean_of_the_channels():
    made, of = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 2, 2)
    of[0] = of[0, :1]
    kept = keep_grey(made, of)
    assert torch.equal(kept[0], made[0].mean(0).expand(3, 4, 5)) and torch.equal(kept[1], made[1])


@pytest.mark.parametrize("grey_first", [True, False])
def test_an_altered_flag_is_found_without_the_checksum(system, grey, grey_first):
    x = grey if grey_first else grey * torch.tensor([1, 0.9, 0.8])[:, None, None]
    data = bytearray(system.codec.compress(x, 2))
    data[5] ^= 1
    data[-4:] = struct.pack(">I", zlib.crc32(data[:-4]))
    assert unpack(bytes(data)).grey != grey_first
    with pytest.raises(BitstreamError, match="damaged payload"):
        system.codec.decompress(bytes(data))


@pytest.mark.parametrize("suffix", [*EXACT, ".jpg"])
def test_files_of_every_command(system, grey, tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    save_model(system, tmp_path / "m.safetensors")
    Image.fromarray((grey[0] * 255).byte().numpy()).save("a.png")
    for words in (
        ["compress", "a.png", "--model", "m.safetensors"],
        ["decompress", "a.llicm", "-o", f"enhanced{suffix}", "--model", "m.safetensors"],
        ["decompress", "a.llicm", "--as-captured", "-o", f"captured{suffix}", "--model", "m.safetensors"],
        ["restore", "a.png", "-o", f"restored{suffix}", "--model", "m.safetensors"],
        ["degrade", "a.png", "--task", "noisy,low-light", "-o", f"noisy{suffix}"],
    ):
        assert cli.main(words) == 0
    for name in ("enhanced", "captured", "restored", "noisy"):
        with Image.open(f"{name}{suffix}") as image:
            assert image.mode == ("RGB" if suffix == ".webp" else "L")  # WebP has no grey
        assert is_grey(read_image(f"{name}{suffix}"))


def test_noise_of_a_grey_photo_is_as_strong(grey, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, array in (("grey", np.full((64, 64), 128)), ("colour", np.full((64, 64, 3), (128, 128, 127)))):
        Image.fromarray(array.astype(np.uint8)).save(f"{name}.png")
        assert cli.main(["degrade", f"{name}.png", "--task", "noisy", "-o", f"{name}-noisy.png"]) == 0
    one, three = (np.asarray(Image.open(f"{name}-noisy.png"), float) for name in ("grey", "colour"))
    assert one.std() == pytest.approx(three[..., 1].std(), rel=0.1)


def test_16_bits_with_alpha():
    values, alphas = [0, 1, 255, 256, 257, 40000, 65534, 65535], [65535, 65535, 65535, 65535, 65535, 32768, 1, 0]
    row = b"".join(struct.pack(">2H", value, alpha) for value, alpha in zip(values, alphas, strict=True))
    image = read_image(png(16, 4, [row] * 3))
    value, alpha = torch.tensor(values) / 65535, torch.tensor(alphas) / 65535
    torch.testing.assert_close(image[0, 1], value * alpha + 1 - alpha)
    assert is_grey(image) and len(set(image[0, 0].tolist())) == 8 - 1  # all but the clear ones differ
    straight, turned = (read_image(png(16, 4, [row] * 3, *chunks)) for chunks in ((), [(b"eXIf", exif(6))]))
    assert torch.equal(turned, straight.rot90(-1, (1, 2)))


def exif(orientation):
    made = Image.Exif()
    made[274] = orientation
    return made.tobytes().removeprefix(b"Exif\0\0")


def test_grey_with_a_profile_of_a_screen_has_no_tint():
    from llicm.colour import matrix_profile

    warm = matrix_profile((0.64, 0.33, 0.3, 0.6, 0.15, 0.06, 0.38, 0.38), 1.8)
    for mode in ("L", "LA"):
        buffer = io.BytesIO()
        Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert(mode).save(
            buffer, "PNG", icc_profile=warm
        )
        assert is_grey(read_image(buffer.getvalue()))
