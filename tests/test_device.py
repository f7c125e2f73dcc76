# SPDX-License-Identifier: Apache-2.0
"""A model on a device: networks compute there, and what must be the same everywhere on the processor."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small import CODEC, DIRECT, IRSDE
from stand_in import elsewhere
from test_compressai import fresh

from llicm import cli
from llicm.benchmark.evaluate import Plan, _measure
from llicm.benchmark.metrics import make_metrics
from llicm.codec.bitstream import unpack
from llicm.data.pairs import Pair
from llicm.framework import LLICM
from llicm.images import quantize8, read_image, write_png
from llicm.methods import methods_of
from llicm.model import save_model
from llicm.parameters import Group
from llicm.registry import CODECS, RESTORERS
from llicm.vlm.conditioner import Conditioner, save_conditioner
from llicm.vlm.daclip import make_daclip
from llicm.vlm.judge import Judge
from llicm.vlm.mini import mini_config
from llicm.weights import save_part

SMALL_CLIP = {
    "image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "embed_dim": 16, "text_width": 32, "text_layers": 1
}  # fmt: skip
OURS = {"context": CODEC | {"name": "context", "features": 16, "loop": 8}, "mean-scale": CODEC}


@pytest.fixture(params=["elsewhere", "cuda"])
def device(request) -> Iterator[str]:
    if request.param == "elsewhere":
        with elsewhere() as name:
            yield name
    elif torch.cuda.is_available():
        yield "cuda"
    else:
        pytest.skip("this machine has no GPU that PyTorch sees")


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return F.interpolate(torch.rand(1, 3, 12, 12, generator=generator), (70, 100), mode="bicubic")[0].clamp(0, 1)


def made(name: str) -> Any:
    """A codec on the processor, whose networks all have an effect."""
    if name not in OURS:
        return fresh(name)
    torch.manual_seed(0)
    codec = CODECS.make(**OURS[name])
    with torch.no_grad():
        for parameter in codec.parameters():
            if parameter.ndim == 4:
                parameter.add_(0.02 * torch.randn_like(parameter))
    codec.update()
    return codec.eval()


def system() -> LLICM:
    """A whole LL-ICM with an untrained vision-language model and restorers of both kinds."""
    torch.manual_seed(0)
    context = {"degradation": 16, "content": 16}
    conditioner = Conditioner(make_daclip(mini_config(**SMALL_CLIP)), "whole", judge=Judge(16, [True, False]))
    first, last = RESTORERS.make(**DIRECT, context=context), RESTORERS.make(**IRSDE, context=context)
    with torch.no_grad():
        for parameter in (*first.parameters(), *last.parameters()):
            parameter.add_(0.01 * torch.randn_like(parameter))
    return LLICM(made("context"), last, conditioner, first).eval()


@pytest.mark.parametrize(
    "name",
    [*OURS, "mbt2018-mean", "mbt2018-mean-vbr"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("cheng2020-anchor", "elic2022-official")],
)
def test_tables_and_symbols_are_the_processors(name, device, image, monkeypatch):
    codec = made(name)
    there, seen, places = copy.deepcopy(codec).to(device), [], set()
    networks = there.networks if name not in OURS else [there]
    for part in (part for network in networks for part in (network.g_a, network.g_s)):
        part.register_forward_hook(lambda part, given, made: places.add((id(part), made.device.type)))
    if name in OURS:
        encode = type(codec)._encode

        def look(self, *given):
            found = encode(self, *given)
            seen.append((self, given, found))
            return found

        monkeypatch.setattr(type(codec), "_encode", look)
    for level, effort in ((1.5, 0), (3, 2)) if name in OURS else ((0.4, 0),):
        ours, theirs = codec.compress(image, level, effort), there.compress(image, level, effort)
        for data in (ours, theirs):  # each reads what the other has written
            (here, told), (far, _) = codec.decompress(data), there.decompress(data)
            assert far.device.type == device
            assert told == unpack(theirs).level
            assert torch.allclose(here, far.cpu(), atol=1e-4)
            if name in OURS:
                for mine, its in zip(codec.latent(unpack(data)), there.latent(unpack(data)), strict=True):
                    assert torch.equal(mine, its)
        assert len(theirs) == pytest.approx(len(ours), rel=0.02)
    for coder, given, found in seen:  # the same latent gives the same tables and symbols
        assert {value.device.type for value in (*given[:2], *found)} == {"cpu"}
        for mine, its in zip(encode(codec, *given), found, strict=True):
            assert torch.equal(mine, its)
        assert coder.device.type == "cpu"
    assert sum(place == device for _, place in places) == 2  # both transforms have computed there
    assert there.device.type == device
    assert there.model_id() == codec.model_id()


@pytest.mark.parametrize("name", OURS)
def test_a_codec_that_was_trained_on_a_device_codes(name, device, image):
    codec = made(name).to(device)
    before = codec.compress(image, 2)
    out = codec.train()(image[None, :, :64, :64].to(device), torch.tensor([1.0]).to(device))
    (out["x_hat"].square().mean() - out["likelihoods"]["y"].log().mean()).backward()
    with torch.no_grad():
        for parameter in codec.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.01 * parameter.grad.sign())
    codec.update()
    data = codec.eval().compress(image, 2)
    assert data != before
    theirs = codec.decompress(data)[0].cpu()
    assert torch.allclose(theirs, codec.cpu().decompress(data)[0], atol=1e-4)


def test_pictures_are_restored_and_measured_there(device, image):
    here = system()
    here.conditioner.recognise(image[None])  # which keeps the embeddings of words
    there, dark = copy.deepcopy(here).to(device), image * 0.3
    for task in (None, "noisy", "clean"):
        with torch.no_grad():
            ours, theirs = (model.enhance(dark[None], torch.tensor([0.5]), [task]) for model in (here, there))
        assert theirs.device.type == device or task == "clean"
        assert torch.allclose(ours, theirs.cpu(), atol=1e-4)
    data = there.encode(there.prefiltered(dark, ["low-light"]), 2)
    for mine, its in zip(here.decompress(data, "noisy"), there.decompress(data, "noisy"), strict=True):
        assert torch.allclose(mine, its.cpu(), atol=1e-4)
        ours, theirs = ([float(m(mine[None].clamp(0, 1), image[None])) for m in found] for found in metrics(device))
        assert ours == pytest.approx(theirs, rel=1e-4)


def metrics(device: str) -> Iterator[list]:
    return (make_metrics(["psnr", "ssim"], device=place) for place in ("cpu", device))


def test_methods_are_measured_there(device, image, tmp_path, monkeypatch):
    save_part(made("context"), tmp_path / "rdo/codec.safetensors")
    whole = system()
    save_part(whole.prefilter, tmp_path / "restorer/restorer.safetensors")
    save_conditioner(whole.conditioner, tmp_path / "vlm")
    methods = ["rdo", "rdo>restorer", "restorer>rdo", "webp>restorer", "raw>restorer"]
    levels = {"rdo": [2], "webp": [50], "raw": [0]}
    group = Group.model_validate({"methods": methods, "models": ["none"] * 3, "levels": levels})
    found = methods_of({"group": group}, {"rdo": {"codec"}, "restorer": {"restorer"}})
    tables = []
    for place in ("cpu", device):
        plan = Plan(found, tmp_path, ("psnr", "ssim"), Path("none"), tmp_path / "streams", device=place)
        tables.append(_measure(plan, "noisy", Pair("a", quantize8(image), quantize8(image.flip(2))), False)["rows"])
    assert [row["metric"] for row in tables[0]] == [row["metric"] for row in tables[1]]
    for ours, theirs in zip(*tables, strict=True):
        assert ours["value"] == pytest.approx(theirs["value"], rel=1e-3)
        assert ours["bytes"] == pytest.approx(theirs["bytes"], rel=0.02)


def test_commands_take_a_device(device, image, tmp_path, capsys):
    save_model(system(), tmp_path / "model.safetensors")
    write_png(image, tmp_path / "photo.png")
    given = ["--model", str(tmp_path / "model.safetensors"), "--device", device]
    photo, coded, back = (str(tmp_path / name) for name in ("photo.png", "photo.llicm", "back.png"))
    assert cli.main(["compress", photo, *given]) == 0, capsys.readouterr().err
    assert cli.main(["decompress", coded, "-o", back, "--task", "noisy", *given]) == 0
    assert read_image(back).shape == image.shape
    assert cli.main(["restore", photo, *given]) == 0
    assert cli.main(["evaluate", photo, "--levels", "1", "--metrics", "psnr", *given]) == 0


def test_a_device_that_is_not_there_is_named(image, tmp_path, capsys):
    save_model(system(), tmp_path / "model.safetensors")
    write_png(image, tmp_path / "photo.png")
    for name in ("cuda:99", "nothing", "meta"):
        given = ["--model", str(tmp_path / "model.safetensors"), "--device", name]
        assert cli.main(["compress", str(tmp_path / "photo.png"), *given]) == 1
        assert f"error: the device '{name}' cannot be used" in capsys.readouterr().err
    assert not (tmp_path / "photo.llicm").exists()
