# SPDX-License-Identifier: Apache-2.0
"""The diffusion restorer: sampling, training, what steers it, and released weights."""

import json

import numpy as np
import pytest
import torch
from conformance import FOLDER
from safetensors.torch import save_file

from llicm.errors import UserError
from llicm.framework import LLICM
from llicm.registry import RESTORERS
from llicm.restore.irsde import LOSSES, IRSDERestorer
from llicm.restore.released import convert_universal_ir, irsde_from_state, load_universal_ir
from llicm.vlm.conditioner import Oracle
from llicm.vlm.context import Context
from llicm.weights import load_part, save_part

SMALL = {"nf": 8, "ch_mult": [1, 2], "heads": 1}
NEW = {"predicts": "x0", "scaling": "balanced", "steps": 4}  # as it is trained here
BOTH = {"degradation": 5, "content": 6}


def build(awake=True, **changes):
    """A small restorer; `awake`: with random weights where it starts at zero."""
    torch.manual_seed(0)
    model = RESTORERS.make("irsde", **(SMALL | NEW | changes)).eval()
    if awake:
        for layer in (model.unet.final_conv, model.level, *(t.proj_out for t in model.unet._transformers())):
            torch.nn.init.normal_(layer.weight, std=0.05)
    return model


def embeddings(n=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return Context(torch.randn(n, 5, generator=generator), torch.randn(n, 6, generator=generator))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# Sampling


@pytest.mark.parametrize("mode", ["posterior", "deterministic"])
@pytest.mark.parametrize("steps", [1, 4, 13, 100])
@torch.no_grad()
def test_untrained_is_the_identity(steps, mode):
    x = torch.rand(2, 3, 18, 21)
    assert torch.allclose(build(awake=False, steps=steps, mode=mode)(x), x, atol=1e-5)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (3, 50), (37, 16)])
@torch.no_grad()
def test_any_size(size, half):
    out = build(half=half)(torch.rand(2, 3, *size))
    assert out.shape == (2, 3, *size) and bool(out.isfinite().all())


@pytest.mark.parametrize("predicts", ["noise", "x0"])
@torch.no_grad()
def test_an_image_has_one_result_in_whatever_batch(predicts):
    model = build(predicts=predicts, context=BOTH, level_conditioned=True, steps=12)
    x, level, embedded = torch.rand(3, 3, 24, 20), torch.tensor([0.1, 0.5, 0.9]), embeddings(3)
    batch = model(x, level, embedded)
    assert torch.equal(batch, model(x, level, embedded))
    for i in range(3):
        alone = model(x[i : i + 1], level[i : i + 1], Context(*(e[i : i + 1] for e in embedded)))
        assert torch.allclose(alone, batch[i : i + 1], atol=1e-4 * float(batch.abs().max()))
    torch.manual_seed(99)  # no global random number is used
    assert torch.equal(batch, model(x, level, embedded))


@torch.no_grad()
def test_seed_and_generator():
    model, x = build(steps=12), torch.rand(2, 3, 16, 16)
    first = model(x)
    model.seed = 1
    assert not torch.allclose(model(x), first, atol=1e-4)
    assert torch.equal(model(x, generator=seeded(3)), model(x, generator=seeded(3)))
    assert not torch.allclose(model(x, generator=seeded(3)), model(x, generator=seeded(4)), atol=1e-4)


@torch.no_grad()
def test_steps_and_mode_may_be_changed_but_not_to_anything():
    model, x = build(), torch.rand(1, 3, 16, 16)
    four = model(x)
    model.steps = 20
    assert not torch.allclose(model(x), four, atol=1e-5)
    for mode in ("deterministic", "sde", "ode"):
        model.mode = mode
        assert bool(model(x).isfinite().all())
    model.steps = 4
    with pytest.raises(UserError, match="at least 11"):
        model(x)
    for wrong in ({"steps": 101}, {"mode": "nonesuch"}, {"steps": 4, "mode": "ode"}, {"predicts": "score"}):
        with pytest.raises(UserError, match="params.yaml: restorer"):
            build(**wrong)


@torch.no_grad()
def test_the_chain_is_the_equations_with_the_networks_prediction():
    model, x = build(predicts="noise", scaling="published", context=BOTH, steps=100), torch.rand(2, 3, 12, 12)
    embedded, sde = embeddings(), model.sde
    conditioning = model.unet.prepare(embedded)
    generator = seeded(7)
    state = x + sde.max_sigma * torch.randn(x.shape, generator=generator)
    for t in range(100, 0, -1):
        z = torch.randn(x.shape, generator=generator)
        noise = model.unet(state, x, t, conditioning)
        state = sde.posterior_step(state, sde.x0_from_noise(state, noise, x, t), x, t, z)
    out = model(x, None, embedded, seeded(7))
    assert torch.allclose(out, state, atol=1e-4)


# What steers it


@torch.no_grad()
def test_embeddings_and_level_reach_the_output():
    model, x, embedded = build(context=BOTH, level_conditioned=True), torch.rand(1, 3, 16, 16), embeddings(1)
    other = embeddings(1, seed=2)
    outputs = [
        model(x, None, embedded),
        model(x, None, Context(other.degradation, embedded.content)),
        model(x, None, Context(embedded.degradation, other.content)),
        model(x, None, Context(None, embedded.content)),
        model(x, torch.tensor([0.0]), embedded),
        model(x, torch.tensor([0.8]), embedded),
    ]
    for i, first in enumerate(outputs):
        assert not any(torch.allclose(first, output, atol=1e-5) for output in outputs[:i])
    with pytest.raises(ValueError, match="content"):
        model(x)
    model.level_conditioned = False
    assert torch.equal(model(x, torch.tensor([0.8]), embedded), outputs[0])


@torch.no_grad()
def test_the_level_has_no_influence_before_training():
    model, x = build(awake=False, level_conditioned=True), torch.rand(2, 3, 16, 16)
    torch.nn.init.normal_(model.unet.final_conv.weight)
    assert torch.equal(model(x, torch.tensor([0.2, 0.9])), model(x))


@torch.no_grad()
def test_balanced_forgets_the_length_of_an_embedding_and_published_does_not():
    x, embedded = torch.rand(2, 3, 16, 16), embeddings()
    scaled = Context(0.01 * embedded.degradation, 30 * embedded.content)
    model = build(context=BOTH)
    assert torch.allclose(model(x, None, embedded), model(x, None, scaled), atol=1e-5)
    model = build(context=BOTH, scaling="published")
    assert not torch.allclose(model(x, None, embedded), model(x, None, scaled), atol=1e-5)


@torch.no_grad()
def test_without_context_embeddings_are_ignored():
    model, x = build(), torch.rand(2, 3, 16, 16)
    assert torch.equal(model(x), model(x, None, embeddings()))
    only = build(context={"degradation": 5, "content": 0})
    assert torch.equal(only(x, None, embeddings()), only(x, None, embeddings()._replace(content=None)))
    assert not any("attn2" in name for name in only.state_dict())


@torch.no_grad()
def test_in_the_framework_with_an_oracle():
    words = ["noisy", "hazy"]
    model = build(context={"words": words})
    system, x = LLICM(None, model, Oracle(words)), torch.rand(2, 3, 16, 16)
    out = system(x, hints=["noisy", "hazy"]).enhanced
    assert torch.equal(out, model(x, None, Context(torch.eye(2))))
    assert not torch.allclose(out[1:], system(x, hints=["noisy", "noisy"]).enhanced[1:], atol=1e-6)


def shrinking(**changes):
    """A restorer whose network is silent and whose shrinkage is not."""
    model = build(awake=False, shrinkage=True, ch_mult=[1, 2, 2], context=BOTH, **changes)
    torch.nn.init.normal_(model.shrinkage.leave.weight, std=0.05)
    return model


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (37, 16)])
@torch.no_grad()
def test_shrinkage_starts_as_nothing_and_takes_any_size(size):
    x = torch.rand(2, 3, *size)
    untrained = build(awake=False, shrinkage=True, ch_mult=[1, 2, 2])
    assert torch.allclose(untrained(x), x, atol=1e-5)
    out = shrinking()(x, None, embeddings())
    assert out.shape == x.shape and bool(out.isfinite().all()) and (out - x).abs().max() > 1e-3


@torch.no_grad()
def test_shrinkage_by_constant_factors_is_a_scaling():
    """With the same factor for every coefficient, mu is scaled: the transform is a tight frame."""
    model = build(awake=False, shrinkage=True, ch_mult=[1, 2, 2], steps=1)
    channels = model.shrinkage.lapped.CHANNELS
    model.shrinkage.leave.bias[channels:] = -0.25
    x = torch.rand(1, 3, 40, 24)
    assert torch.allclose(model(x), 0.75 * x, atol=1e-5)
    model.shrinkage.leave.bias.zero_()
    model.shrinkage.leave.bias[:channels] = 1.0  # x0_hat = mu + (x_t - mu)
    state = torch.rand(1, 3, 40, 24)
    assert torch.allclose(model.predict_x0(state, x, 30), state, atol=1e-5)


@torch.no_grad()
def test_shrinkage_knows_time_and_degradation_and_is_kept(tmp_path):
    model, x, embedded = shrinking(), torch.rand(1, 3, 32, 32), embeddings(1)
    state = torch.rand(1, 3, 32, 32)
    out = model.predict_x0(state, x, 30, None, embedded)
    assert not torch.allclose(out, model.predict_x0(state, x, 70, None, embedded), atol=1e-4)
    assert not torch.allclose(out, model.predict_x0(state, x, 30, None, embeddings(1, seed=2)), atol=1e-5)
    save_part(model, tmp_path / "restorer.safetensors")
    again = load_part("restorer", tmp_path / "restorer.safetensors")
    assert again.config["shrinkage"] is True
    assert torch.allclose(again.predict_x0(state, x, 30, None, embedded), out, atol=2e-2)  # weights in 8 bits


@torch.no_grad()
def test_shrinkage_in_tiles_is_that_of_the_whole_image():
    model, embedded = shrinking(steps=2), embeddings(1)
    x = torch.rand(1, 3, 150, 130)
    whole = model(x, None, embedded)
    model.memory = model.bytes_per_pixel * 64**2
    assert model.bytes_per_pixel > model.unet.bytes_per_pixel
    assert torch.allclose(model(x, None, embedded), whole, atol=1e-4)


@pytest.mark.parametrize("context", [None, BOTH, {"degradation": 5, "content": 0}, {"words": ["noisy", "hazy"]}])
@torch.no_grad()
def test_configuration_builds_the_same_restorer(tmp_path, context):
    changes = {"mode": "deterministic", "seed": 5, "schedule": "linear", "T": 50, "half": True, "memory": 10**8}
    model = build(context=context, level_conditioned=True, **changes)
    assert json.loads(json.dumps(model.config)) == model.config
    save_part(model, tmp_path / "restorer.safetensors")
    again = load_part("restorer", tmp_path / "restorer.safetensors")
    assert again.config == model.config and not again.training
    x, embedded = torch.rand(1, 3, 16, 16), embeddings(1)
    if context and "words" in context:
        embedded = Context(torch.eye(2)[:1])
    assert torch.allclose(model(x, torch.tensor([0.5]), embedded), again(x, torch.tensor([0.5]), embedded), atol=2e-3)


# Training


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("predicts", ["noise", "x0"])
def test_losses_are_their_formulas(predicts, loss):
    model = build(predicts=predicts, context=BOTH, level_conditioned=True)
    x0, mu = torch.rand(2, 2, 3, 16, 16, generator=seeded(1))
    level, embedded, t = torch.tensor([0.3, 0.8]), embeddings(), torch.tensor([12, 70])
    value, x0_hat = model.training_loss(x0, mu, level, embedded, seeded(5), loss, t)
    noise, sde = torch.randn(x0.shape, generator=seeded(5)), model.sde
    w, bar = (values[t].float().view(2, 1, 1, 1) for values in (sde.w, sde.sigma_bar))
    x = mu + w * (x0 - mu) + bar * noise
    assert torch.allclose(x0_hat, model.predict_x0(x, mu, t, level, embedded), atol=1e-5)
    wrong = x0_hat - x0 if loss == "x0" else (x - mu - w * (x0_hat - mu)) / bar - noise
    if loss == "paper":
        theta, sigma = (values[t].float().view(2, 1, 1, 1) for values in (sde.theta, sde.sigma))
        score = -(x - mu - w * (x0_hat - mu)) / bar**2
        wrong = x - (theta * (mu - x) - sigma**2 * score) * sde.dt - sde.posterior_mean(x, x0, mu, t)
    expected = wrong.abs().mean((1, 2, 3))
    assert value.shape == (2,) and torch.allclose(value, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("predicts", ["noise", "x0"])
def test_a_perfect_prediction_has_no_loss(predicts, monkeypatch):
    """With the "paper" target, up to what an Euler step neglects."""
    model = build(predicts=predicts)
    x0, mu = torch.rand(2, 8, 3, 8, 8, generator=seeded(1))

    def perfect(x, mu, t, conditioning):
        return x0 if predicts == "x0" else model.sde.noise_from_x0(x, x0, mu, t)

    monkeypatch.setattr(model, "_predict", perfect)
    for loss, bound in (("noise", 1e-3), ("x0", 1e-4), ("paper", 5e-3)):
        value, x0_hat = model.training_loss(x0, mu, generator=seeded(2), loss=loss)
        assert float(value.max()) <= bound and torch.allclose(x0_hat, x0, atol=1e-4)


def test_times_and_noise_are_the_generators():
    model, (x0, mu), seen = build(), torch.rand(2, 400, 3, 4, 4), []
    forward = model.sde.forward_sample
    model.sde.forward_sample = lambda a, b, t, noise: seen.append((t, noise)) or forward(a, b, t, noise)
    first = model.training_loss(x0, mu, generator=seeded(1))[0]
    assert torch.equal(first, model.training_loss(x0, mu, generator=seeded(1))[0])
    assert not torch.equal(first, model.training_loss(x0, mu, generator=seeded(2))[0])
    t, noise = seen[0]
    assert t.shape == (400,) and 1 <= int(t.min()) <= 3 and 98 <= int(t.max()) <= 100
    assert abs(float(t.float().mean()) - 50.5) < 5 and abs(float(noise.std()) - 1) < 0.05


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("predicts", ["noise", "x0"])
def test_gradients_reach_mu_and_every_living_weight(predicts, loss):
    model = build(predicts=predicts, context=BOTH, level_conditioned=True)
    x0, mu = torch.rand(2, 2, 3, 16, 16, generator=seeded(1))
    mu.requires_grad_(True)
    value, x0_hat = model.training_loss(x0, mu, torch.tensor([0.3, 0.8]), embeddings(), seeded(3), loss)
    value.sum().backward(retain_graph=True)
    assert float(mu.grad.abs().min()) > 0
    mu.grad = None
    (x0_hat - x0).square().mean().backward()
    assert float(mu.grad.abs().max()) > 0
    for name, parameter in model.named_parameters():
        dead = any(part in name for part in ("attn2.to_q", "attn2.to_k", "norm2"))
        assert (parameter.grad is None) == dead, name
        assert dead or float(parameter.grad.abs().max()) > 0, name


def test_gradient_of_mu_is_right():
    """Against differences, in float64, where mu enters everywhere: state, network, prediction and target."""
    model = build(predicts="x0").double()
    x0, mu = torch.rand(2, 1, 3, 4, 4, generator=seeded(1), dtype=torch.float64)
    mu.requires_grad_(True)
    t = torch.tensor([40])

    def joint(mu):
        value, x0_hat = model.training_loss(x0, mu, generator=seeded(3), loss="noise", t=t)
        return value.sum() + (x0_hat - x0).square().mean()

    (gradient,) = torch.autograd.grad(joint(mu), mu)
    for place in ((0, 0, 0, 0), (0, 1, 2, 3), (0, 2, 3, 1)):
        step = torch.zeros_like(mu)
        step[place] = 1e-6
        with torch.no_grad():
            slope = (joint(mu + step) - joint(mu - step)) / 2e-6
        assert float(gradient[place]) == pytest.approx(float(slope), rel=1e-3, abs=1e-7)


def test_gradients_pass_through_a_short_chain():
    model, x = build(steps=2), torch.rand(1, 3, 8, 8, requires_grad=True)
    model(x).square().mean().backward()
    assert float(x.grad.abs().max()) > 0 and model.unet.init_conv.weight.grad is not None


def test_x0_hat_at_late_times():
    """Why small new models predict x0: with the noise, an error at the end of the grid is magnified."""
    x0, mu = torch.rand(2, 2, 3, 16, 16)
    t = torch.tensor([100, 100])
    for predicts, low, high in (("noise", 5, 1e3), ("x0", 0, 2)):
        model = build(predicts=predicts)
        with torch.no_grad():
            x0_hat = model.training_loss(x0, mu, generator=seeded(0), t=t)[1]
        assert low < float(x0_hat.abs().max()) < high


def test_wrong_calls_of_training():
    model, x = build(), torch.rand(1, 3, 8, 8)
    with pytest.raises(ValueError, match="loss"):
        model.training_loss(x, x, generator=seeded(), loss="l2")
    with pytest.raises(ValueError, match="generator"):
        model.training_loss(x, x)


def test_bf16_and_channels_last():
    model = build(context=BOTH, level_conditioned=True, half=True).to(memory_format=torch.channels_last)
    x0, mu = torch.rand(2, 2, 3, 16, 16, generator=seeded(1))
    arguments = (x0, mu, torch.tensor([0.3, 0.8]), embeddings())
    exact = model.training_loss(*arguments, seeded(3), "x0")[0]
    with torch.autocast("cpu", torch.bfloat16):
        value, x0_hat = model.training_loss(*arguments, seeded(3), "x0")
        with torch.no_grad():
            out = model(mu, *arguments[2:])
    assert value.dtype == x0_hat.dtype == out.dtype == torch.float32
    assert torch.allclose(value, exact, rtol=0.03)
    with torch.no_grad():
        assert torch.allclose(out, model(mu, *arguments[2:]), atol=0.05)


@pytest.mark.slow
def test_it_learns_and_sampling_uses_what_it_learnt():
    """A fixed change of colours: after 150 updates 4 steps undo more than half of it (4 dB and more; 16 after 400)."""
    model = build(awake=False, ch_mult=[1, 2], heads=0).train()
    optimizer, generator = torch.optim.Adam(model.parameters(), 2e-3), seeded(0)

    def pair(n):
        x0 = torch.rand(n, 3, 2, 2, generator=generator)
        x0 = torch.nn.functional.interpolate(x0, size=16, mode="bilinear")
        return x0, 0.5 * x0 + 0.3

    for _ in range(150):
        optimizer.zero_grad()
        model.training_loss(*pair(8), generator=generator, loss="x0")[0].mean().backward()
        optimizer.step()
    x0, mu = pair(16)
    with torch.no_grad():
        out = model.eval()(mu)
    assert float((out - x0).square().mean()) < 0.45 * float((mu - x0).square().mean())


# Released weights

SMALL_FULL = {"nf": 8, "ch_mult": [1, 2], "context": BOTH, "heads": 4}


@pytest.fixture
def state():
    return IRSDERestorer(**SMALL_FULL).unet.state_dict()


def published(state, wrap=False, prefix=""):
    state = {prefix + name: value for name, value in state.items()}
    return {"epoch": 3, "state_dict": state, "optimizer": {"lr": np.float64(1e-4)}} if wrap else state


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
@torch.no_grad()
def test_every_variant_of_the_file_is_read(tmp_path, state, wrap, prefix):
    torch.save(published(state, wrap, prefix), tmp_path / "universal-ir.pth")
    torch.manual_seed(5)
    after = torch.rand(3)
    torch.manual_seed(5)
    model = load_universal_ir(tmp_path / "universal-ir.pth", **SMALL_FULL, steps=5)
    assert torch.equal(torch.rand(3), after)  # no random number was drawn
    assert not model.training and model.predicts == "noise" and not model.unet.balanced and model.steps == 5
    assert all(p.requires_grad and p.device.type == "cpu" for p in model.parameters())
    own = model.unet.state_dict()
    assert set(own) == set(state) and all(torch.equal(own[name], value) for name, value in state.items())
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(model(x, torch.tensor([0.3]), embeddings(1)), model(x, None, embeddings(1)))
    model.level_conditioned = True  # the level, which released weights know nothing of, starts without influence
    assert torch.equal(model(x, torch.tensor([0.3]), embeddings(1)), model(x, None, embeddings(1)))


def test_a_restorer_begins_with_released_weights(tmp_path, state):
    torch.save(published(state, True, "module."), tmp_path / "universal-ir.pth")
    model = IRSDERestorer(**SMALL_FULL, weights=str(tmp_path / "universal-ir.pth"))
    assert model.pretrained and not IRSDERestorer(**SMALL_FULL).pretrained
    assert all(torch.equal(value, state[name]) for name, value in model.unet.state_dict().items())
    assert "weights" not in model.config  # a file of ours has them
    with pytest.raises(UserError, match="universal-ir.pth: these weights do not fit"):
        IRSDERestorer(**SMALL_FULL | {"nf": 4}, weights=str(tmp_path / "universal-ir.pth"))


def test_half_precision_and_safetensors(tmp_path, state):
    save_file({name: value.half().contiguous() for name, value in state.items()}, tmp_path / "universal-ir.safetensors")
    model = load_universal_ir(tmp_path / "universal-ir.safetensors", **SMALL_FULL)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@torch.no_grad()
def test_convert(tmp_path, state):
    torch.save(published(state, True, "module."), tmp_path / "universal-ir.pth")
    target = tmp_path / "new" / "universal-ir.safetensors"
    convert_universal_ir(tmp_path / "universal-ir.pth", target, **SMALL_FULL, steps=3)
    model, expected = load_part("restorer", target), irsde_from_state(state, **SMALL_FULL, steps=3)
    assert model.config == expected.config and [path.name for path in target.parent.iterdir()] == [target.name]
    own = expected.state_dict()  # in full precision, unlike what is trained here
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    x = torch.rand(1, 3, 9, 9)
    assert torch.allclose(model(x, None, embeddings(1)), expected(x, None, embeddings(1)), atol=1e-4)
    with pytest.raises(UserError, match="suffix .safetensors"):
        convert_universal_ir(tmp_path / "universal-ir.pth", tmp_path / "universal-ir.pt", **SMALL_FULL)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        convert_universal_ir(tmp_path / "universal-ir.pth", tmp_path / "file" / "x.safetensors", **SMALL_FULL)


def test_faults_name_the_file_and_the_weights(tmp_path, state):
    path = tmp_path / "universal-ir.pth"
    cases = {
        "missing: init_conv.weight": {n: v for n, v in state.items() if n != "init_conv.weight"},
        "unexpected: extra": state | {"extra": torch.zeros(2)},
        r"of the wrong shape: prompt \[1, 31\] instead of \[1, 32\]": state | {"prompt": torch.zeros(1, 31)},
        "not floating-point: prompt": state | {"prompt": torch.zeros(1, 32, dtype=torch.int64)},
    }
    for message, wrong in cases.items():
        torch.save(wrong, path)
        with pytest.raises(UserError, match=f"universal-ir.pth: .*{message}"):
            load_universal_ir(path, **SMALL_FULL)
    torch.save(state, path)
    with pytest.raises(UserError, match="universal-ir.pth: these weights do not fit"):
        load_universal_ir(path)  # the full size
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="universal-ir.pth"):
        load_universal_ir(path, **SMALL_FULL)
    with pytest.raises(UserError, match="no such file"):
        load_universal_ir(tmp_path / "absent.pth")


@pytest.mark.slow
@pytest.mark.skipif(not (FOLDER / "manifest.json").is_file(), reason=f"no conformance data in {FOLDER}")
@torch.no_grad()
def test_full_size_file_restores_an_image(tmp_path):
    keys = json.loads((FOLDER / "manifest.json").read_text())["unet_full"]["keys"]
    generator = seeded(0)
    state = {n: torch.randn(s, generator=generator) * 0.3 / np.sqrt(np.prod(s[1:])) for n, s in keys.items()}
    torch.save(state, tmp_path / "universal-ir.pth")
    assert (tmp_path / "universal-ir.pth").stat().st_size == pytest.approx(196e6, rel=0.01)
    model = load_universal_ir(tmp_path / "universal-ir.pth", steps=2)
    x = torch.rand(1, 3, 20, 24, generator=generator)
    out = model(x, None, Context(*torch.randn(2, 1, 512, generator=generator)))
    assert out.shape == x.shape and bool(out.isfinite().all()) and not torch.allclose(out, x, atol=1e-3)
