# SPDX-License-Identifier: Apache-2.0
"""Weights in 8 bits."""

import copy

import pytest
import torch

from llicm.errors import UserError
from llicm.integer import IntegerConv
from llicm.registry import CODECS, RESTORERS
from llicm.weights import load_part, pack, read, round_parameters, save_part, unpack, write


@pytest.fixture
def codec():
    torch.manual_seed(0)
    codec = CODECS.make("mean-scale", N=8, M=24, lambdas=[0.002, 0.02])
    with torch.no_grad():
        for value in codec.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return codec


def test_error_is_at_most_half_a_unit_of_each_channel(codec):
    state, rounded = codec.state_dict(), unpack(pack(codec))
    assert state.keys() == rounded.keys()
    weight, again = state["g_a.1.weight"].flatten(1), rounded["g_a.1.weight"].flatten(1)
    unit = weight.abs().amax(1, keepdim=True) / 127
    assert 0.2 < float(((weight - again) / unit).abs().max()) < 0.76
    # the largest are clipped where a unit is rounded down
    inner = weight.abs() < 0.9 * weight.abs().amax(1, keepdim=True)
    assert float(((weight - again) / unit)[inner].abs().max()) < 0.51


def test_what_was_rounded_once_stays(codec):
    first = pack(codec)
    round_parameters(codec)
    second = pack(codec)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_an_integer_convolution_keeps_its_integers():
    torch.manual_seed(0)
    conv = IntegerConv(128, 64, 3, unit=32, largest=255)
    assert conv.limit < 127, "or units that fit after rounding only do not occur"
    with torch.no_grad():
        conv.weight.normal_(0, 0.2)
    before, _, worth = conv.integers()
    effect = before * worth
    packed = pack(conv)
    assert packed["weight"].dtype == torch.int8
    conv.load_state_dict(unpack(packed))
    after, _, worth = conv.integers()
    assert torch.equal(after * worth, effect)
    assert all(torch.equal(value, pack(conv)[name]) for name, value in packed.items())


def test_all_but_gains_biases_and_entropy_model_is_8_bits(codec):
    packed = pack(codec)
    whole = {name for name, value in packed.items() if value.dtype == torch.int8}
    assert {"g_a.1.weight", "h_s.0.weight", "h_a.0.weight", "decide.0.weight", "g_s.0.weight"} <= whole
    assert packed["log_gain"].dtype == packed["g_a.1.bias"].dtype == torch.float16
    assert packed["offsets"].dtype == torch.int32
    stored = sum(value.numel() * value.element_size() for value in packed.values())
    full = sum(value.numel() * value.element_size() for value in codec.state_dict().values())
    assert stored < 0.5 * full


def test_channels_of_zeros_and_of_tiny_weights():
    layer = torch.nn.Conv2d(4, 3, 1)
    with torch.no_grad():
        layer.weight.normal_()
        layer.weight[0] = 0
        layer.weight[1] *= 1e-9
    before = layer.weight.detach().clone()
    round_parameters(layer)
    assert torch.equal(layer.weight[0], before[0])
    assert torch.allclose(layer.weight, before, rtol=0.02, atol=float(before[2].abs().max()) / 127)
    assert torch.allclose(layer.weight[1], before[1], rtol=0, atol=float(before[1].abs().max()) / 120)


def test_a_saved_restorer_is_the_rounded_one(tmp_path):
    torch.manual_seed(0)
    restorer = RESTORERS.make("direct", width=8, blocks=[1, 1, 1])
    with torch.no_grad():
        restorer.residual.weight.normal_(0, 0.1)
    rounded = copy.deepcopy(restorer)
    round_parameters(rounded)
    save_part(restorer, tmp_path / "restorer.safetensors")
    again = load_part("restorer", tmp_path / "restorer.safetensors")
    for name, value in rounded.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    save_part(again, tmp_path / "copy.safetensors")
    assert (tmp_path / "copy.safetensors").read_bytes() == (tmp_path / "restorer.safetensors").read_bytes()


def test_files_of_floats_are_read_as_they_are(codec):
    state = codec.state_dict()
    assert all(value is state[name] for name, value in unpack(state).items())


def test_a_file_holds_tensors_and_their_configuration(tmp_path, codec):
    path = tmp_path / "folder" / "some.safetensors"
    write(path, {"b": torch.arange(3.0), "a": torch.ones(2, dtype=torch.int32)}, {"name": "x", "width": 3})
    state, config = read(path)
    assert config == {"name": "x", "width": 3} and set(state) == {"a", "b"}
    assert torch.equal(state["b"], torch.arange(3.0)) and state["a"].dtype == torch.int32
    first = path.read_bytes()
    write(path, {"a": torch.ones(2, dtype=torch.int32), "b": torch.arange(3.0)}, {"width": 3, "name": "x"})
    assert path.read_bytes() == first


def test_a_part_goes_by_what_its_file_says(tmp_path):
    path = tmp_path / "restorer.safetensors"
    restorer = RESTORERS.make("direct", width=8, blocks=[1, 1, 1])
    restorer.level_conditioned = True  # training finds that out
    save_part(restorer, path)
    assert read(path)[1] == restorer.config and load_part("restorer", path).level_conditioned
    assert load_part("prefilter", path).config == restorer.config
    with pytest.raises(UserError, match="codec 'direct' is unknown"):
        load_part("codec", path)


def test_a_restorer_of_the_first_edition_is_read(tmp_path):
    torch.manual_seed(0)
    restorer = RESTORERS.make("direct", width=8, blocks=[1, 1, 1], level_conditioned=True)
    torch.nn.init.normal_(restorer.level.weight)
    config = restorer.config
    config["coded"] = config.pop("level_conditioned")
    state = {name.replace("level.", "code."): value for name, value in restorer.state_dict().items()}
    assert {"code.weight", "code.bias"} <= set(state)
    write(tmp_path / "old.safetensors", state, config)
    again = load_part("restorer", tmp_path / "old.safetensors")
    assert again.level_conditioned and torch.equal(again.level.weight, restorer.level.weight)


@pytest.mark.parametrize(
    ("change", "missing", "said"),
    [
        ({"name": "context"}, None, "ContextCodec.*spread"),
        ({"M": 23}, None, r"log_gain.*\[2, 24\].*\[2, 23\]"),
        ({"features": 12}, None, "codec 'mean-scale'.*'features'"),
        ({"name": "hyper"}, None, "codec 'hyper' is unknown"),
        ({}, "log_gain", "MeanScaleHyperprior.*log_gain"),
        ({}, "frequencies", "frequencies"),
    ],
)
def test_weights_of_another_codec_or_version_are_refused_by_name(tmp_path, codec, change, missing, said):
    save_part(codec, tmp_path / "codec.safetensors")
    state, config = read(tmp_path / "codec.safetensors")
    write(tmp_path / "codec.safetensors", {n: v for n, v in state.items() if n != missing}, config | change)
    with pytest.raises(UserError, match=f"codec.safetensors: not weights that this version reads .*{said}.*make model"):
        load_part("codec", tmp_path / "codec.safetensors")
