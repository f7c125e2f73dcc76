# SPDX-License-Identifier: Apache-2.0
"""The codecs of the field: compressai's networks behind our protocol, in our files."""

import struct
import urllib.error
import zlib

import pytest
import torch
import torch.nn.functional as F
from compressai.models import MeanScaleHyperprior
from compressai.models.vbr import MeanScaleHyperpriorVbr
from small import DIRECT, start, study

from llicm.codec.compressai import ARCHITECTURES
from llicm.data.corpus import load_photos
from llicm.errors import BitstreamError, UserError
from llicm.framework import LLICM
from llicm.registry import CODECS
from llicm.training.models import train_model
from llicm.weights import load_part, save_part

KINDS = ["mbt2018-mean", "cheng2020-anchor", "elic2022-official", "mbt2018-mean-vbr"]


def described(architecture: str) -> dict:
    size = {"N": 8} | ({} if "cheng" in architecture else {"M": 12})
    size |= {"groups": [2, 2, 8]} if "elic" in architecture else {}
    quality = None if "vbr" in architecture else [1, 4]
    return {"name": "compressai", "architecture": architecture, "quality": quality, **size}


def fresh(architecture: str):
    """One whose symbols are not all zero."""
    torch.manual_seed(0)
    codec = CODECS.make(**described(architecture))
    with torch.no_grad():
        for network in codec.networks:
            for transform in (network.g_a, getattr(network, "h_a", None) or network.latent_codec["hyper"].h_a):
                last = [module for module in transform.modules() if isinstance(module, torch.nn.Conv2d)][-1]
                last.weight.mul_(30)
    codec.update()
    return codec.eval()


@pytest.fixture(scope="module")
def image():
    generator = torch.Generator().manual_seed(0)
    return F.interpolate(torch.rand(1, 3, 9, 9, generator=generator), (70, 100), mode="bicubic")[0].clamp(0, 1)


@pytest.fixture(scope="module", params=KINDS)
def codec(request):
    return fresh(request.param)


@pytest.mark.parametrize(
    "architecture", [pytest.param(name, marks=[] if name in KINDS else pytest.mark.slow) for name in ARCHITECTURES]
)
def test_a_file_decodes_with_the_saved_weights_alone(architecture, image, tmp_path):
    codec = fresh(architecture)
    save_part(codec, tmp_path / "codec.safetensors")
    decoder = load_part("codec", tmp_path / "codec.safetensors")
    sizes = []
    for level in (0, codec.levels - 1, 0.4):
        data = codec.compress(image, level)
        decoded, told = decoder.decompress(data)
        assert told == pytest.approx(level if codec.variable else round(level), abs=1e-3)
        assert decoded.shape == image.shape
        padded = F.pad(image[None], (0, 28, 0, 58), mode="replicate")
        with torch.no_grad():
            network, options = codec._at(told)
            out = network(padded, **options)
            theirs = network.compress(padded, **options)
            picture = network.decompress(theirs["strings"], theirs["shape"], **options)["x_hat"]
        assert torch.allclose(decoded, picture[0, :, :70, :100], atol=1e-5)  # what compressai itself decodes
        estimated = float(sum(-values.log2().sum() for values in out["likelihoods"].values())) / 8
        assert len(data) < 1.1 * estimated + 100
        sizes.append(len(data))
    assert decoder.model_id() == codec.model_id()  # coding has left the tables as they were
    assert min(sizes) > 30


def test_levels_of_a_batch_go_through_their_own_networks(codec, image):
    x, level = image[None, :, :64, :64].repeat(3, 1, 1, 1), torch.tensor([1.0, 0.0, 1.0])
    with torch.no_grad():
        whole = codec(x, level)
        for row in range(3):
            alone = codec(x[row : row + 1], level[row : row + 1])
            assert torch.allclose(whole["x_hat"][row], alone["x_hat"][0], atol=1e-6)
            for name, values in alone["likelihoods"].items():
                assert torch.allclose(whole["likelihoods"][name][row], values[0], atol=1e-5)


@pytest.mark.parametrize("level", [0, 1])
def test_damaged_and_forged_files_are_refused(codec, image, level):
    data = codec.compress(image, level)
    payload, generator = data[20:-4], torch.Generator().manual_seed(level)
    forged = [payload[:cut] for cut in (0, 1, 4, len(payload) // 2, len(payload) - 1)]
    forged += [payload + b"\1", payload[::-1].rstrip(b"\0"), bytes(range(1, 200))]
    for place in torch.randint(0, len(payload), (8,), generator=generator).tolist():
        flipped = bytearray(payload)
        flipped[place] ^= 1 << (place % 8)
        forged.append(bytes(flipped))
    files = [data[:cut] for cut in (0, 10, 23, len(data) - 1)] + [data + b"\0"]
    for sizes in (data[10:16], struct.pack(">HHH", 100, 71, round(level * 4096)), struct.pack(">HHH", 4096, 4096, 0)):
        for inside in forged if sizes == data[10:16] else [payload]:
            body = data[:10] + sizes + struct.pack(">I", len(inside)) + inside
            files.append(body + struct.pack(">I", zlib.crc32(body)))
    for file in files:
        with pytest.raises(BitstreamError):
            codec.decompress(file)


def test_a_level_between_fixed_rates_and_other_weights_are_refused(image):
    codec = fresh("mbt2018-mean")
    data = codec.compress(image, 1)
    body = data[:14] + struct.pack(">H", 2048) + data[16:-4]
    with pytest.raises(BitstreamError, match="level 0.5 is none of this model's 2"):
        codec.decompress(body + struct.pack(">I", zlib.crc32(body)))
    with torch.no_grad():
        next(codec.networks[0].g_s.parameters()).mul_(1.5)
    codec.train().eval()
    with pytest.raises(BitstreamError, match="written by model"):
        codec.decompress(data)


def test_latents_that_cannot_be_coded_are_refused(codec, image):
    broken = fresh(codec.config["architecture"])
    for value in (float("nan"), float("inf"), 1e12):
        broken.networks[0].g_a.register_forward_hook(lambda *run, value=value: run[2].fill_(value))
        with pytest.raises(ValueError, match="damaged or not trained"):
            broken.compress(image, 0)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"architecture": "bmshj2018-factorized"}, "no hyperprior; choose one of bmshj2018-hyperprior, mbt2018-mean"),
        ({"quality": None}, "needs a quality from 1 to 8, or several"),
        ({"quality": 9}, "needs a quality from 1 to 8, or several"),
        ({"architecture": "cheng2020-anchor", "M": None, "quality": 7}, "has no quality 7; choose 1 to 6"),
        ({"architecture": "mbt2018-mean-vbr"}, "takes no quality"),
        ({"weights": ["a"]}, "needs 2 weights, not 1"),
        ({"lambdas": [0.1]}, "needs 2 lambdas, not 1"),
        ({"blocks": 3}, "blocks"),
        ({"architecture": "elic2022-official", "groups": [4, 8], "weights": "zoo"}, "no weights of elic2022-official"),
        ({"quality": 3, "weights": "nowhere.pth.tar"}, "nowhere.pth.tar: cannot be read as weights .*No such file"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(changes, said):
    given = {name: value for name, value in (described("mbt2018-mean") | changes).items() if value is not None}
    with pytest.raises(UserError, match=said):
        CODECS.make(**given)


def test_weights_of_the_zoo_without_a_network(monkeypatch):
    def unreachable(url, **_):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    with pytest.raises(UserError, match=r"mbt2018-mean-3-.*could not be fetched .*not known.*name its path"):
        CODECS.make("compressai", architecture="mbt2018-mean", quality=3, weights="zoo")


def test_files_that_are_no_weights_are_refused(tmp_path):
    small, foreign, odd = (tmp_path / f"{name}.pth.tar" for name in ("small", "foreign", "odd"))
    torch.save(MeanScaleHyperprior(8, 16).state_dict(), small)
    torch.save({"lambda": object}, foreign)  # code, which is not unpickled
    odd.write_bytes(b"PK\3\4" + bytes(100))
    for file, said in ((small, "of this size"), (foreign, "cannot be read"), (odd, "cannot be read")):
        with pytest.raises(UserError, match=f"{file.name}.*{said}"):
            CODECS.make(**described("mbt2018-mean") | {"quality": 3, "weights": str(file)})


@pytest.mark.parametrize("variable", [False, True])
def test_released_weights_are_a_start_of_llicm(variable, image, tmp_path):
    """They are coded with and trained on as they are; variable-rate ones come with a bottleneck of variable steps."""
    torch.manual_seed(1)
    model = MeanScaleHyperpriorVbr(8, 12, vr_entbttlnck=True) if variable else MeanScaleHyperprior(8, 12)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "released.pth.tar")
    codec = described("mbt2018-mean-vbr" if variable else "mbt2018-mean") | {"quality": None if variable else 3}
    codec |= {"weights": str(tmp_path / "released.pth.tar")}
    rd = {"alpha": 1.0, "beta": 1.0, "distortion": {"mse": 1.0}}
    models = {
        "rdo": {"trains": ["codec"], "objective": "rd", "codec": codec, "start": start()},
        "llicm": {
            "trains": ["codec", "restorer"], "objective": "rpo", "restorer": DIRECT,
            "start": start(codec="rdo/pretrained.safetensors"),
        },
    }  # fmt: skip
    parameters = study(
        models, {"rd": rd, "rpo": rd | {"gamma": 0.5, "perception": {"mse": 1.0}}}, tasks=["noisy"],
        training={"batch": 3, "crop": 64, "pretraining": 4, "fine_tuning": 2, "log_every": 1, "checkpoint_every": 0},
    )  # fmt: skip
    photos = list(load_photos("data").train.values())[:2]
    made = {
        name: train_model(name, parameters, photos=photos, paired=None, models=tmp_path, out=tmp_path / name)
        for name in models
    }
    assert [row["step"] for row in made["rdo"].rows] == [5, 6]  # behind pretraining, which the weights are
    kept = load_part("codec", tmp_path / "rdo/pretrained.safetensors").networks[0].state_dict()
    for name, value in model.named_parameters():
        assert torch.equal(kept[name], value), name
    system = LLICM(*(load_part(kind, tmp_path / f"llicm/{kind}.safetensors") for kind in ("codec", "restorer"))).eval()
    trained = dict(system.codec.networks[0].named_parameters())
    assert not torch.equal(trained["g_a.0.weight"], model.g_a[0].weight)
    decoded, enhanced = system.decompress(system.compress(image, 0))
    assert decoded.shape == enhanced.shape == image.shape
