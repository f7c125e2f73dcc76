# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from small import CODEC, DIRECT, IRSDE

from llicm.errors import UserError
from llicm.framework import LLICM
from llicm.objectives import DISTANCES, Objective, bits_per_pixel, distance
from llicm.registry import CODECS, RESTORERS

RESTORE = {"gamma": 0.01, "perception": {"log_mse": 1.0}}
RPO = {"alpha": 0.1, "beta": 1.0, "gamma": 1.0, "distortion": {"mse": 1.0}, "perception": {"log_mse": 1.0}}


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.rand(2, 2, 3, 64, 64)  # X and X_ideal


def system_of(restorer):
    torch.manual_seed(0)
    return LLICM(CODECS.make(**CODEC), RESTORERS.make(**restorer))


@pytest.mark.parametrize("name", sorted(DISTANCES))
def test_distances_order_and_differentiate(name):
    torch.manual_seed(0)
    ideal = torch.rand(2, 3, 128, 128)
    noise = torch.randn_like(ideal)
    near, far = (DISTANCES[name]((ideal + s * noise).clamp(0, 1), ideal) for s in (0.02, 0.1))
    assert near.shape == (2,) and (near < far).all()
    guess = (ideal + 0.05 * noise).requires_grad_()
    distance({name: 2.0}, guess, ideal).sum().backward()
    assert torch.isfinite(guess.grad).all() and guess.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["mse", "log_mse", "bounded_log_mse"])
def test_distances_meet_at_28_db(name):
    ideal = torch.full((1, 3, 64, 64), 0.5)
    error = torch.tensor(10 / 255).requires_grad_()  # 255^2 MSE = 100
    (slope,) = torch.autograd.grad(DISTANCES[name](ideal + error, ideal).sum(), error)
    assert float(slope) == pytest.approx(2 * 10 * 255, rel=0.01)


def test_what_has_hardly_an_error_does_not_outweigh_the_others():
    errors, ideal = torch.logspace(-3, 2, 200).requires_grad_(), torch.full((200, 3, 2, 2), 0.5)
    slopes = [
        torch.autograd.grad(DISTANCES[name](ideal + errors.view(-1, 1, 1, 1) / 255, ideal).sum(), errors)[0].max()
        for name in ("log_mse", "bounded_log_mse")
    ]
    at_28_db = 2 * 10  # of `mse` too
    assert slopes[0] > 15 * at_28_db and slopes[1] < 1.8 * at_28_db


def test_a_mixture_is_the_weighted_sum(batch):
    a, b = batch
    by_hand = 2 * DISTANCES["mse"](a, b) + 0.5 * DISTANCES["charbonnier"](a, b)
    assert torch.allclose(distance({"mse": 2.0, "charbonnier": 0.5}, a, b), by_hand)


def test_unknown_distance_is_named():
    with pytest.raises(UserError, match="'nonesuch'; choose from bounded_log_mse, charbonnier, log_mse, ms_ssim, mse"):
        distance({"nonesuch": 1.0}, torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8))


def test_rate_counts_the_bits_of_all_latents():
    likelihoods = {"y": torch.full((2, 3, 4, 4), 0.5), "z": torch.full((2, 1, 2, 2), 0.25)}
    assert bits_per_pixel(likelihoods, 16, 8).tolist() == [pytest.approx((48 * 1 + 4 * 2) / 128)] * 2


def test_objective_is_the_stated_sum(batch):
    x, ideal = batch
    out = system_of(DIRECT)(x, torch.tensor([0.0, 3.0]))
    lmbda = torch.tensor([0.002, 0.07])
    loss, bpp = Objective(**RPO)(out, x, x, ideal, lmbda)
    mean = (0.002 * 0.07) ** 0.5
    of_codec = (mean / lmbda).sqrt() * (0.1 * lmbda * DISTANCES["mse"](out.decoded, x) + bpp)
    by_hand = of_codec + mean * DISTANCES["log_mse"](out.enhanced, ideal)
    assert loss.item() == pytest.approx(by_hand.mean().item(), rel=1e-5)
    without_rate, _ = Objective(**RESTORE)(out, x, x, ideal, lmbda)
    assert without_rate.item() == pytest.approx(
        0.01 * DISTANCES["log_mse"](out.enhanced, ideal).mean().item(), rel=1e-5
    )


def test_perception_term_reaches_the_encoder(batch):
    x, ideal = batch
    system = system_of(DIRECT)
    pure = Objective(gamma=1.0, perception={"log_mse": 1.0})
    pure(system(x, torch.tensor([1.0, 2.0]), fork=pure.fork), x, x, ideal, None)[0].backward()
    assert system.codec.decide[-1].weight.grad.abs().sum() > 0


# --- the fork ---


def test_the_fork_changes_no_value_and_weighs_the_gradient_by_the_level():
    decoded = torch.rand(2, 3, 4, 4, requires_grad=True)
    seen = Objective(gamma=1.0).fork(decoded, torch.tensor([1.0, 16.0]))
    assert all(torch.equal(image, decoded) for image in seen)
    seen[1].sum().backward()
    assert torch.allclose(decoded.grad[:, 0, 0, 0], torch.tensor([0.5, 2.0]))  # sqrt(lambda / 4): 4 is the mean


@pytest.mark.parametrize(("alpha", "gamma"), [(1.0, 1.0), (0.25, 0.75), (0.75, 0.25)])
def test_the_fork_limits_the_pull_of_perception(alpha, gamma):
    """P pulls a sample gamma / alpha times as strongly as D at the most; what is weaker passes whole."""
    decoded = torch.rand(3, 3, 4, 4, requires_grad=True)
    for_d, for_p = Objective(alpha=alpha, gamma=gamma).fork(decoded, torch.ones(3))
    of_d = torch.randn(3, 3, 4, 4)
    of_d[2] = 0
    of_p = torch.randn(3, 3, 4, 4) * torch.tensor([1e6, 1e-3, 1.0]).view(3, 1, 1, 1)
    torch.autograd.backward([for_d, for_p], [of_d, of_p])
    more = decoded.grad - of_d
    norm = more.flatten(1).norm(dim=1) / of_d.flatten(1).norm(dim=1)
    assert float(norm[0]) == pytest.approx(gamma / alpha, rel=1e-3)
    direction = torch.nn.functional.cosine_similarity(more.flatten(1), of_p.flatten(1))
    assert torch.allclose(direction, torch.ones(3), atol=1e-4)
    # a sample that D says nothing of is not limited
    assert torch.allclose(more[1:], of_p[1:], atol=1e-6)


def test_d_is_measured_against_what_is_named(batch):
    x, ideal = batch
    prefiltered = (x + ideal) / 3
    output = system_of(DIRECT)(prefiltered, torch.tensor([1.0, 2.0]))
    for against, reference in (("input", x), ("prefiltered", prefiltered), ("ideal", ideal)):
        loss, _ = Objective(alpha=1.0, distortion={"mse": 1.0}, against=against)(output, x, prefiltered, ideal, None)
        assert torch.allclose(loss, DISTANCES["mse"](output.decoded, reference).mean())


def test_perception_counts_for_the_codec_by_the_level(batch):
    """Where it is not limited, P pulls the codec as in lambda · gamma · P, divided by the square root like the rest."""
    x, ideal = batch
    system, lmbda = system_of(DIRECT), torch.tensor([0.002, 0.07])
    gradients = []
    system.codec.register_forward_hook(lambda *call: call[-1]["x_hat"].register_hook(gradients.append) and None)
    objective = Objective(0.0, 1.0, 1.0, {}, {"mse": 1.0})
    output = system(x, torch.tensor([0.0, 3.0]), fork=objective.fork)
    objective(output, x, x, ideal, lmbda)[0].backward()
    decoded = output.decoded.detach().requires_grad_()
    distances = DISTANCES["mse"](system.restorer(decoded), ideal)
    (by_hand,) = torch.autograd.grad((((0.002 * 0.07) ** 0.5 * lmbda).sqrt() * distances).mean(), decoded)
    assert torch.allclose(gradients[0], by_hand, rtol=1e-3, atol=1e-8)


def pull_on_decoded(batch, alpha, gamma):
    """Norm of the gradient on each decoded image, for the same images and weights; distances in P count a million."""
    x, ideal = batch
    system, seen = system_of(DIRECT), []
    system.codec.register_forward_hook(
        lambda module, inputs, output: output["x_hat"].register_hook(seen.append) and None
    )
    objective = Objective(alpha, 0.0, gamma, {"mse": 1.0}, {"mse": 1e6})
    output = system(x, torch.tensor([1.0, 2.0]), fork=objective.fork)
    objective(output, x, x, ideal, None)[0].backward()
    return seen[0].flatten(1).norm(dim=1)


def test_perception_pulls_no_sample_harder_than_its_weight_allows(batch):
    weights = ((1.0, 0.0), (1.0, 1.0), (1.0, 3.0), (0.0, 1.0))
    distortion, both, more, perception = (pull_on_decoded(batch, *pair) for pair in weights)
    assert (both < 2.001 * distortion).all() and not torch.allclose(both, distortion, rtol=0.01)
    assert (2 * distortion < more).all() and (more < 4.001 * distortion).all()
    assert (perception > 100 * distortion).all()  # with nothing to measure it by, P is left alone


# --- the diffusion restorer's own loss ---


@pytest.mark.parametrize("weights", [{"gamma": 1.0, "perception": {"log_mse": 1.0}}, {"gamma": 0.0, "delta": 1.0}])
def test_what_the_diffusion_restorer_learns_from_reaches_the_encoder(batch, weights):
    x, ideal = batch
    system, objective = system_of(IRSDE), Objective(**weights)
    output = system(x, torch.tensor([1.0, 2.0]), None, ideal, objective.fork, "x0")
    objective(output, x, x, ideal, None)[0].backward()
    assert system.codec.decide[-1].weight.grad.abs().sum() > 0
    by_hand = (output.enhanced - ideal).abs().mean((1, 2, 3))
    assert torch.allclose(output.diffusion, by_hand, rtol=1e-5)


def test_the_diffusion_restorers_own_loss_is_part_of_the_objective(batch):
    x, ideal = batch
    torch.manual_seed(0)
    output = LLICM(None, RESTORERS.make(**IRSDE))(x, ideal=ideal)
    loss, _ = Objective(0.0, 0.0, 0.01, {}, {"log_mse": 1.0}, 3.0)(output, x, x, ideal, None)
    by_hand = 0.01 * DISTANCES["log_mse"](output.enhanced, ideal) + 3 * output.diffusion
    assert loss.item() == pytest.approx(by_hand.mean().item(), rel=1e-5)
    direct = LLICM(None, RESTORERS.make(**DIRECT))
    with pytest.raises(UserError, match="delta needs a restorer named irsde"):
        Objective(delta=1.0)(direct(x, ideal=ideal), x, x, ideal, None)
