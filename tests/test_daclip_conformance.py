# SPDX-License-Identifier: Apache-2.0
"""DA-CLIP against tensors that the published implementation made from seeded weights.

The data lie outside the repository: in ../shared/conformance, or where LLICM_CONFORMANCE says.
"""

import hashlib
import json
import math

import numpy as np
import pytest
import torch
from conformance import FOLDER, conformance
from safetensors.torch import load_file

from llicm.benchmark.metrics import make_metrics
from llicm.errors import UserError
from llicm.vlm.checkpoint import check_layout, daclip_from_state, official_names, read_checkpoint
from llicm.vlm.clip import model_config, preprocess
from llicm.vlm.daclip import make_daclip
from llicm.vlm.losses import daclip_losses

pytestmark = conformance


@pytest.fixture(scope="module")
def manifest():
    return json.loads((FOLDER / "manifest.json").read_text())


@pytest.fixture(scope="module")
def data():
    return load_file(FOLDER / "daclip_tiny.safetensors")


@pytest.fixture(scope="module")
def weights(data):
    return {name[2:]: value.float() for name, value in data.items() if name.startswith("w/")}


@pytest.fixture(scope="module", params=["eval", "train"])
def model(request, weights, manifest):
    """In both modes: attention takes another path in each."""
    return daclip_from_state(weights, manifest["daclip_tiny"]["config"]).train(request.param == "train")


def error(actual, expected):
    assert actual.shape == expected.shape
    return float((actual.detach() - expected).abs().max())


def test_the_tiny_checkpoint_is_strictly_that_of_the_manifest(model, weights, manifest):
    shapes = {name: torch.Size(shape) for name, shape in manifest["daclip_tiny"]["keys"].items()}
    names = official_names(model)
    assert set(names) == {name for name in shapes if not name.startswith("visual.")}
    state = model.state_dict()
    for name, own in names.items():
        assert state[own].shape == shapes[name] and torch.equal(state[own], weights[name])


@torch.no_grad()
def test_embeddings(model, data):
    image = data["in/image"]
    content, degradation = model.encode_image(image, control=True)
    assert error(model.encode_image(image), data["out/image_plain"]) <= 1e-5
    assert error(content, data["out/image_control"]) <= 1e-5
    assert error(degradation, data["out/degra"]) <= 1e-5
    content, degradation = model.encode_image(image, control=True, normalize=True)
    assert error(content, data["out/image_control_normalized"]) <= 1e-5
    assert error(degradation, data["out/degra_normalized"]) <= 1e-5


@torch.no_grad()
def test_negative_control_reversed_order_matters(model, data):
    content, _ = model.encode_image(data["in/image"], control=True)
    assert error(content, data["neg/image_control_if_not_reversed"]) > 0.5


@torch.no_grad()
def test_every_block_and_hidden(model, data):
    outputs = {}
    towers = {"clip": model.clip.visual, "ctl": model.controller.tower}
    # These hooks are called before the model's own: they see a block's output before a hidden is added.
    handles = [
        block.register_forward_hook(lambda m, args, out, key=f"{name}.block_out.{i}": outputs.update({key: out}))
        for name, tower in towers.items()
        for i, block in enumerate(tower.transformer.resblocks)
    ]
    model.encode_image(data["in/image"], control=True)
    for handle in handles:
        handle.remove()
    outputs |= {f"ctl.hidden.{i}": hidden for i, hidden in enumerate(model.controller(data["in/image"])[1])}
    traces = {name.removeprefix("trace/"): value for name, value in data.items() if name.startswith("trace/")}
    assert set(outputs) == set(traces)
    assert max(error(outputs[name], trace) for name, trace in traces.items()) <= 1e-5


@torch.no_grad()
def test_texts(model, data):
    features = model(None, data["in/text"])
    assert error(features["text_features"], data["out/text_caption_normalized"]) <= 1e-5
    assert error(features["text_degra_features"], data["out/text_degra_normalized"]) <= 1e-5
    assert error(features["logit_scale"], data["out/logit_scale_exp"].squeeze()) <= 1e-5


def test_losses_and_all_gradients(model, data, manifest):
    model.zero_grad()
    losses = daclip_losses(model(data["in/image"], data["in/text"]))
    assert error(losses["content"], data["out/contrastive_loss"].squeeze()) <= 1e-5
    assert error(losses["degradation"], data["out/degra_loss"].squeeze()) <= 1e-5
    sum(losses.values()).backward()
    parameters = dict(model.named_parameters())
    norms = {
        name: float(parameters[own].grad.norm())
        for name, own in official_names(model).items()
        if parameters[own].grad is not None
    }
    expected = manifest["daclip_tiny"]["grad_norms_of_total_loss"]
    assert set(norms) == set(expected)
    assert max(abs(norms[name] - norm) / norm for name, norm in expected.items()) <= 1e-4


def published_file(path, keys, prefix=""):
    """A checkpoint of that layout that takes no room: all tensors are views of single zeros."""
    state = {prefix + name: torch.zeros(()).expand(shape) for name, shape in keys.items()}
    torch.save({"epoch": 1, "name": "run", "state_dict": state, "optimizer": {"lr": np.float64(3e-5)}}, path)
    return path


def test_full_size_layout_is_accepted_name_by_name(tmp_path, manifest):
    keys = manifest["daclip_vitb32"]["keys"]
    state = read_checkpoint(published_file(tmp_path / "daclip_ViT-B-32.pt", keys, "module."))
    with torch.device("meta"):
        model = make_daclip(model_config("daclip_ViT-B-32"))
    own = model.state_dict()
    shapes = {name: own[target].shape for name, target in official_names(model).items()}
    shapes |= {f"visual.{name.removeprefix('clip.visual.')}": s for name, s in shapes.items() if "clip.visual." in name}
    check_layout(state, shapes, "full size")
    assert len(state) == len(keys) == 631
    assert sum(p.numel() for p in model.parameters()) == 246_213_634
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 94_936_321


def test_the_map_of_all_names():
    places = {"clip": "clip.", "control": "controller.tower.", "zero": "controller.zero."}
    expected = {}
    for name, (target, _) in json.loads((FOLDER / "key_map.json").read_text()).items():
        place, _, rest = target.rpartition(": ")
        if place != "drop":
            expected[name] = places.get(place, "") + rest
    with torch.device("meta"):
        assert official_names(make_daclip(model_config("ViT-B-32"))) == expected


def test_full_size_u_net_checkpoint_is_read(tmp_path, manifest):
    keys = manifest["unet_full"]["keys"]
    torch.save({name: torch.zeros(()).expand(shape) for name, shape in keys.items()}, tmp_path / "universal-ir.pth")
    state = read_checkpoint(tmp_path / "universal-ir.pth")
    shapes = {name: torch.Size(shape) for name, shape in keys.items()}
    check_layout(state, shapes, "u-net")
    assert len(state) == 224
    with pytest.raises(UserError, match="missing: prompt"):
        check_layout({name: value for name, value in state.items() if name != "prompt"}, shapes, "u-net")


@pytest.mark.slow
def test_full_size_weights_load_and_give_embeddings(manifest):
    generator = torch.Generator().manual_seed(0)
    keys = {name: shape for name, shape in manifest["daclip_vitb32"]["keys"].items() if not name.startswith("visual.")}
    state = {name: torch.randn(shape, generator=generator).mul_(0.02) for name, shape in keys.items()}
    state |= {f"visual.{n.removeprefix('clip.visual.')}": state[n] for n in keys if n.startswith("clip.visual.")}
    model = daclip_from_state(state, model_config("ViT-B-32"))
    del state
    with torch.no_grad():
        image = preprocess(torch.rand(2, 3, 240, 320, generator=generator), model.image_size)
        content, degradation = model.encode_image(image, control=True, normalize=True)
        plain = model.encode_image(image, normalize=True)
    for features in (content, degradation, plain):
        assert features.shape == (2, 512) and torch.allclose(features.norm(dim=1), torch.ones(2))
    assert not torch.allclose(content, plain, atol=1e-3)


@pytest.fixture(scope="module")
def pictures(manifest):
    """The formula image and its altered copy, (1, 3, 123, 181) each."""
    y, x, c = np.meshgrid(np.arange(123), np.arange(181), np.arange(3), indexing="ij")
    image = (7 * x + 13 * y + 101 * c + x * y % 97) % 256
    second = np.clip(image + (3 * x + 5 * y + c) % 41 - 20, 0, 255)
    assert hashlib.sha256(image.astype(np.uint8).tobytes()).hexdigest() == manifest["pixels"]["sha256_of_image"]
    return [torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255 for array in (image, second)]


def test_preprocessing(pictures, manifest):
    out = preprocess(pictures[0])
    expected = load_file(FOLDER / "pixels.safetensors")["out/clip_transform_stride16"]
    assert error(out[0, :, ::16, ::16], expected) <= 1e-5
    assert float(out.mean()) == pytest.approx(manifest["pixels"]["clip_transform_mean"], abs=1e-5)
    assert float(out.std()) == pytest.approx(manifest["pixels"]["clip_transform_std"], abs=1e-5)


@pytest.mark.parametrize("border", [0, 4])
@pytest.mark.parametrize("name", ["psnr", "ssim"])
def test_quality_on_rgb(pictures, manifest, name, border):
    (metric,) = make_metrics([name])
    second, image = (picture[..., border : 123 - border, border : 181 - border] for picture in reversed(pictures))
    expected = manifest["pixels"]["metrics"][f"{name}_rgb" + ("_crop4" if border else "")]
    tolerance = 1e-6
    if name == "psnr":
        expected = -10 * math.log10(10 ** (-expected / 10) + 1e-8)  # pyiqa adds 1e-8 to the error: 2e-5 dB here
        tolerance = 2e-6  # one step of the float32 in which pyiqa computes
    assert float(metric(second, image)) == pytest.approx(expected, abs=tolerance)
