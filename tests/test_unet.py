# SPDX-License-Identifier: Apache-2.0
"""The conditional U-Net: published layout and numbers, sizes, conditioning.

The conformance data lie outside the repository: in ../shared/conformance, or where LLICM_CONFORMANCE says.
"""

import json
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conformance import FOLDER, conformance
from safetensors.torch import load_file

from llicm.errors import UserError
from llicm.restore.sde import MeanRevertingSDE
from llicm.restore.unet import ConditionalUNet, Gain, LinearAttention, SpatialTransformer
from llicm.vlm.context import Context


def error(actual, expected):
    assert actual.shape == expected.shape
    return float((actual.detach() - expected).abs().max())


def by_recipe(name, shape):
    """A weight of the conformance data: its values follow from its name."""
    z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    last = name.rpartition(".")[2]
    if last == "g" or (len(shape) == 1 and last == "weight"):
        z = 1 + 0.1 * z
    elif len(shape) == 1:
        z = 0.02 * z
    else:
        z = z / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(z.astype(np.float16).astype(np.float32))


def build(seed=0, **changes):
    """A small network in which nothing is zero."""
    torch.manual_seed(seed)
    net = ConditionalUNet(**{"nf": 8, "ch_mult": [1, 2], "degradation": 5, "content": 6, "heads": 1} | changes)
    for module in net.modules():
        if isinstance(module, SpatialTransformer):
            torch.nn.init.normal_(module.proj_out.weight, std=0.1)
    return net.eval()


def context(n=2, degradation=5, content=6):
    generator = torch.Generator().manual_seed(1)
    return Context(torch.randn(n, degradation, generator=generator), torch.randn(n, content, generator=generator))


# Conformance


@pytest.fixture(scope="module")
def manifest():
    return json.loads((FOLDER / "manifest.json").read_text())


@pytest.fixture(scope="module")
def data():
    return load_file(FOLDER / "unet_tiny.safetensors")


@pytest.fixture(scope="module")
def tiny(manifest):
    net = ConditionalUNet(32, [1, 1, 2, 2], 16, 16)
    state = {name: by_recipe(name, shape) for name, shape in manifest["unet_tiny"]["keys"].items()}
    for name, values in manifest["unet_tiny"]["sample_weights"].items():
        assert state[name].flatten()[:4].tolist() == values
    net.load_state_dict(state, strict=True)
    return net


@conformance
@pytest.mark.parametrize("last", [False, True])
@torch.no_grad()
def test_outputs(tiny, data, last):
    x, mu, t = data["in/xt"], data["in/cond"], data["in/t"]
    if last:
        x, mu = (image.contiguous(memory_format=torch.channels_last) for image in (x, mu))
    both = Context(data["in/degra_context"], data["in/image_context"])
    cases = {
        "y": (t, both),
        "y_int_t37": (37, both),
        "y_no_degra_context": (t, both._replace(degradation=None)),
        "y_image_context_flipped": (t, both._replace(content=both.content.flip(1))),
    }
    outputs = {name: tiny(x, mu, time, tiny.prepare(given)) for name, (time, given) in cases.items()}
    for name, output in outputs.items():
        assert error(output, data[f"out/{name}"]) <= 1e-4, name
        assert name == "y" or error(output, data["out/y"]) > 0.01  # the cases differ


@conformance
@torch.no_grad()
def test_traces(tiny, data):
    places = {
        "time_mlp": tiny.time_mlp,
        "prompt_mlp": tiny.prompt_mlp,
        "down0_attn_out": tiny.downs[0][2],
        "down3_attn_out": tiny.downs[3][2],
        "mid_attn_out": tiny.mid_attn,
        "mid_out": tiny.mid_block2,
    }
    seen = {}
    handles = [
        place.register_forward_hook(lambda m, args, out, name=name: seen.update({name: out}))
        for name, place in places.items()
    ]
    given = tiny.prepare(Context(data["in/degra_context"], data["in/image_context"]))
    tiny(data["in/xt"], data["in/cond"], data["in/t"], given)
    for handle in handles:
        handle.remove()
    for name, value in seen.items():
        assert error(value, data[f"trace/{name}"]) <= 1e-4, name
    assert len(seen) == 6


@conformance
def test_loss_and_all_gradients(tiny, data, manifest):
    sde, t = MeanRevertingSDE(), data["in/t"]
    x0, mu, eps = (data[f"in/{name}"] for name in ("x0", "cond", "eps"))
    state = sde.forward_sample(x0, mu, t, eps)
    assert error(state, data["loss/state"]) <= 1e-5
    given = Context(data["in/degra_context"], data["in/image_context"])
    tiny.zero_grad()
    noise = tiny(state, mu, t, tiny.prepare(given))
    mean = sde.reverse_sde_mean(state, sde.score_from_noise(noise, t), mu, t)
    target = sde.posterior_mean(state, x0, mu, t)
    assert error(noise, data["loss/noise_pred"]) <= 1e-4
    assert error(mean, data["loss/pred_mean"]) <= 1e-5 and error(target, data["loss/target_mean"]) <= 1e-5
    loss = (mean - target).abs().mean()
    assert float(loss.detach()) == pytest.approx(float(data["loss/value"]), abs=1e-5)
    loss.backward()
    norms = {n: 0.0 if p.grad is None else float(p.grad.norm()) for n, p in tiny.named_parameters()}
    expected = manifest["unet_tiny"]["grad_norms"]
    assert set(norms) == set(expected)
    assert sum(norm == 0 for norm in expected.values()) == 12
    for name, norm in expected.items():
        assert norms[name] == pytest.approx(norm, rel=1e-3, abs=1e-9), name
        assert (norms[name] == 0) == (norm == 0)


@conformance
def test_the_layouts_are_the_published_ones(manifest):
    with torch.device("meta"):
        nets = {"unet_full": ConditionalUNet(), "unet_tiny": ConditionalUNet(32, [1, 1, 2, 2], 16, 16)}
    for name, net in nets.items():
        assert {n: list(v.shape) for n, v in net.state_dict().items()} == manifest[name]["keys"]


@conformance
@pytest.mark.slow
@torch.no_grad()
def test_full_size_loads_and_gives_an_image(manifest):
    with torch.device("meta"):
        net = ConditionalUNet()
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(shape, generator=generator) / np.sqrt(np.prod(shape[1:]))
        for name, shape in manifest["unet_full"]["keys"].items()
    }
    net.load_state_dict(state, strict=True, assign=True)
    x, mu = torch.rand(2, 1, 3, 33, 40, generator=generator)
    given = Context(*torch.randn(2, 1, 512, generator=generator))
    out = net(x, mu, 50, net.prepare(given))
    assert out.shape == x.shape and bool(out.isfinite().all()) and float(out.std()) > 0.01


# Layout and cost, without the data


def test_sizes_of_the_released_networks():
    with torch.device("meta"):
        universal = ConditionalUNet()
        wild = ConditionalUNet(degradation=0, content=768, half=True)
    assert sum(p.numel() for p in universal.parameters()) == 48_975_747 and len(universal.state_dict()) == 224
    assert sum(p.numel() for p in wild.parameters()) == 49_470_467 and len(wild.state_dict()) == 221


@pytest.mark.parametrize(
    ("size", "measured"),
    [
        ({"nf": 64}, 4052),
        ({"nf": 16, "ch_mult": [1, 2, 4], "heads": 4}, 2988),
        ({"nf": 16, "ch_mult": [1, 2, 4, 4], "heads": 4}, 3131),
        ({"nf": 16, "ch_mult": [1, 2, 4], "heads": 0}, 943),
        ({"nf": 16, "ch_mult": [1, 2, 4, 4], "heads": 4, "half": True}, 986),
        ({"nf": 32, "ch_mult": [1, 2, 4, 4], "heads": 1, "half": True}, 1353),
        ({"nf": 16, "ch_mult": [1, 2, 4, 4], "heads": 0, "half": True}, 683),
    ],
)
def test_the_estimate_of_memory_bounds_what_was_measured(size, measured):
    """Growth of the resident memory in one call on a large image, a pixel, on a CPU."""
    with torch.device("meta"):
        assert measured <= ConditionalUNet(**size).bytes_per_pixel <= 1.2 * measured


@pytest.mark.parametrize("nf", [4, 6, 10, 24])
@pytest.mark.parametrize("ch_mult", [[1], [1, 2], [1, 2, 3]])
@torch.no_grad()
def test_any_width_and_depth(nf, ch_mult):
    net = ConditionalUNet(nf, ch_mult, 3, 4)
    x = torch.rand(1, 3, 16, 12)
    assert net(x, x, 3, net.prepare(context(1, 3, 4))).shape == x.shape
    again = ConditionalUNet(**net.config)
    again.load_state_dict(net.state_dict(), strict=True)
    assert again.config == net.config == json.loads(json.dumps(net.config))


def test_wrong_arguments():
    for wrong in ({"nf": 7}, {"nf": 2}, {"ch_mult": []}, {"ch_mult": [1, 0]}, {"heads": -1}, {"scaling": "best"}):
        with pytest.raises(UserError, match="params.yaml: restorer"):
            build(**wrong)


# Numbers, against plain formulas


@pytest.mark.parametrize("divided", [False, True])
@torch.no_grad()
def test_linear_attention_is_its_formula(divided):
    torch.manual_seed(0)
    layer, x = LinearAttention(6, 2, divided).double(), torch.randn(2, 6, 4, 5, dtype=torch.float64)
    q, k, v = layer.to_qkv(x).flatten(2).chunk(3, 1)
    out = torch.zeros(2, 64, 20, dtype=torch.float64)
    for image in range(2):
        for head in range(2):
            rows = slice(32 * head, 32 * head + 32)
            keys = torch.exp(k[image, rows])
            keys = keys / keys.sum(1, keepdim=True)
            queries = torch.exp(q[image, rows])
            queries = queries / queries.sum(0, keepdim=True)
            for position in range(20):
                weights = (keys * queries[:, position : position + 1]).sum(0) / 32**0.5
                out[image, rows, position] = (v[image, rows] * weights).sum(1) / (20 if divided else 1)
    assert error(layer(x), layer.to_out(out.view(2, 64, 4, 5))) <= 1e-12


@torch.no_grad()
def test_the_constant_is_cross_attention_to_one_token():
    net, given = build(content=7), context(2, 5, 7)
    for transformer, token in zip(net._transformers(), net.prepare(given).tokens, strict=True):
        attention = transformer.transformer_blocks[0].attn2
        x, key = torch.randn(2, 9, attention.to_q.in_features), given.content[:, None]
        weights = (attention.to_q(x) @ attention.to_k(key).transpose(1, 2)).softmax(2)
        expected = attention.to_out(weights @ attention.to_v(key))
        assert error(token[:, None].expand_as(expected), expected) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_normalisation_has_one_eps_in_every_type(dtype):
    """A spread of 0.01 shows eps: with 1e-3 the output would be a third of this."""
    x = (0.01 * torch.randn(2, 64, 3, 3, generator=torch.Generator().manual_seed(0))).to(dtype)
    wide = x.double()
    expected = (wide - wide.mean(1, keepdim=True)) / (wide.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    out = Gain(64)(x)
    assert out.dtype == dtype
    assert error(out.double(), expected) <= {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(dtype, 1e-5)


# Sizes


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (1, 37), (3, 5), (8, 8), (9, 31), (40, 17)])
@torch.no_grad()
def test_any_image_size(size, half):
    net = build(half=half, ch_mult=[1, 2, 2])
    x, mu = torch.rand(2, 2, 3, *size)
    out = net(x, mu, 5, net.prepare(context()))
    assert out.shape == x.shape and bool(out.isfinite().all())


@torch.no_grad()
def test_padding_is_by_reflection_then_by_repetition():
    net = build(ch_mult=[1, 2, 2])  # to multiples of 8
    x = torch.rand(1, 3, 6, 13)
    assert torch.equal(net.pad(x), F.pad(x, (0, 3, 0, 2), mode="reflect"))
    x = torch.arange(3.0).expand(1, 3, 2, 3)
    rows = net.pad(x)[0, 0]
    assert rows[0].tolist() == [0, 1, 2, 1, 0, 0, 0, 0] and rows.shape == (8, 8)
    assert torch.equal(rows, rows[:1].expand(8, 8))


# Conditioning


@torch.no_grad()
def test_everything_it_is_given_reaches_the_output():
    net, given = build(scaling="balanced"), context()
    x, mu = torch.rand(2, 2, 3, 16, 16)
    outputs = [
        net(x, mu, 5, net.prepare(given)),
        net(x, mu, 90, net.prepare(given)),
        net(x, mu, torch.tensor([5, 90]), net.prepare(given)),
        net(x, mu, 5, net.prepare(given._replace(degradation=None))),
        net(x, mu, 5, net.prepare(given._replace(degradation=given.degradation.flip(0)))),
        net(x, mu, 5, net.prepare(given._replace(content=given.content.flip(0)))),
        net(x, mu.flip(0), 5, net.prepare(given)),
    ]
    for i, first in enumerate(outputs):
        assert not any(torch.allclose(first, other, atol=1e-5) for other in outputs[:i])
    assert error(outputs[2][:1], outputs[0][:1]) <= 1e-5 and error(outputs[2][1:], outputs[1][1:]) <= 1e-5


@torch.no_grad()
def test_content_must_be_given_where_it_was_built_in():
    with pytest.raises(ValueError, match="content"):
        build().prepare(Context(torch.zeros(1, 5)))
    with pytest.raises(ValueError, match="content"):
        build().prepare(None)
    net, x = build(degradation=0, content=0), torch.rand(2, 3, 8, 8)
    assert not any("attn2" in name or "prompt" in name or "norm2" in name for name in net.state_dict())
    assert torch.equal(net(x, x, 3, net.prepare(None)), net(x, x, 3, net.prepare(context())))


@torch.no_grad()
def test_a_part_of_the_batch_has_its_part_of_the_conditioning():
    net, given = build(), context()
    x, mu = torch.rand(2, 2, 3, 16, 16)
    prepared = net.prepare(given)
    assert error(net(x[1:], mu[1:], 5, prepared.rows(slice(1, 2))), net(x, mu, 5, prepared)[1:]) <= 1e-5


@torch.no_grad()
def test_balanced_scales_give_the_degradation_an_influence():
    """Why they exist: at the start of training the published ones are next to deaf."""
    given, change = context(), {}
    for scaling in ("published", "balanced"):
        net = build(scaling=scaling, nf=16)
        other = given._replace(degradation=given.degradation.flip(0))
        prepared, changed = net.prepare(given), net.prepare(other)
        change[scaling] = float((changed.shift - prepared.shift).norm())
        assert len(net.state_dict()) == len(build(nf=16).state_dict())
    assert change["balanced"] == pytest.approx(64 * change["published"], rel=0.01)


# Precision


@pytest.mark.parametrize("variant", [{}, {"half": True, "degradation": 0}, {"heads": 0, "content": 0}])
def test_bf16_and_channels_last(variant):
    net = build(scaling="balanced", nf=16, **variant).to(memory_format=torch.channels_last)
    x, mu = torch.rand(2, 2, 3, 24, 24)
    given, t = context(), torch.tensor([3, 77])
    exact = net(x, mu, t, net.prepare(given))
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x, mu, t, net.prepare(given))
    assert error(out.float(), exact.detach()) <= 0.05 * float(exact.detach().std()) + 0.03
    out.float().square().mean().backward()
    dead = ("attn2.to_q", "attn2.to_k", "norm2")
    for name, parameter in net.named_parameters():
        if not any(part in name for part in dead):
            assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
