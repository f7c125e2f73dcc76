# SPDX-License-Identifier: Apache-2.0
"""IR-SDE: coefficients and steps against the published implementation's, against float64, and whole chains.

The conformance data lie outside the repository: in ../shared/conformance, or where LLICM_CONFORMANCE says.
"""

import json
import math

import numpy as np
import pytest
import torch
from conformance import FOLDER, conformance
from safetensors.torch import load_file

from llicm.errors import UserError
from llicm.restore.sde import MODES, MeanRevertingSDE

SCHEDULES = [
    "cosine_T100",
    "cosine_T100_S20",
    "cosine_T100_S50",
    "linear_T100",
    "constant_T100",
    "cosine_T100_sigma10_eps0.01",
]


def error(actual, expected):
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max())


@pytest.fixture(scope="module")
def data():
    return load_file(FOLDER / "sde.safetensors")


@pytest.fixture
def images():
    """x0, mu, z: float64, so that only the formulas are on trial."""
    generator = torch.Generator().manual_seed(3)
    x0, mu = torch.rand(2, 3, 3, 6, 5, generator=generator, dtype=torch.float64)
    return x0, mu, torch.randn(3, 3, 6, 5, generator=generator, dtype=torch.float64)


# Conformance


@conformance
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(data, name):
    config = json.loads((FOLDER / "manifest.json").read_text())["sde"]["configs"][name]
    sde = MeanRevertingSDE(
        config.get("sample_T", config["T"]), config["max_sigma"] / 255, config["schedule"], config["eps"]
    )
    assert sde.dt == pytest.approx(config["dt"], rel=1e-6)
    assert sde.max_sigma == config["max_sigma_unit"]
    expected = {key.split("/")[1]: value.double() for key, value in data.items() if key.startswith(f"{name}/")}
    assert len(expected) == 6
    assert error(sde.Theta, expected["thetas_cumsum"]) <= 1e-5
    assert error(sde.theta, expected["thetas"]) <= 1e-6
    assert error(sde.w, expected["weights"]) <= 1e-6
    assert error(sde.sigma_bar, expected["sigma_bars"]) <= 1e-6
    assert error(sde.sigma, expected["sigmas"]) <= 1e-6
    std = sde.posterior_std(torch.arange(1, sde.T + 1))
    assert error(std, expected["reverse_optimum_std"][1:]) <= 1e-6


@conformance
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("t", [1, 2, 37, 50, 99, 100])
def test_steps(data, t, per_sample):
    sde, time = MeanRevertingSDE(), torch.tensor([t, t]) if per_sample else t
    x0, mu, z, eps, noise = (data[f"step/in.{name}"] for name in ("x0", "mu", "z", "eps", "noise_pred"))
    out = {key.split(".", 1)[1]: value for key, value in data.items() if key.startswith(f"step/t{t}.")}
    x, score = out["xt"], out["score"]
    own = {
        "mu_bar": sde.forward_mean(x0, mu, time),
        "xt": sde.forward_sample(x0, mu, time, eps),
        "score": sde.score_from_noise(noise, time),
        "real_noise": sde.noise_from_x0(x, x0, mu, time),
        "real_score": sde.score_from_noise(sde.noise_from_x0(x, x0, mu, time), time),
        "x0_from_noise": sde.x0_from_noise(x, noise, mu, time),
        "forward_drift": sde.forward_step(x, mu, time) - x,
        "forward": sde.forward_step(x, mu, time, z),
        "sde_mean": sde.reverse_sde_mean(x, score, mu, time),
        "sde": sde.reverse_sde_step(x, score, mu, time, z),
        "ode": sde.reverse_ode_step(x, score, mu, time),
        "optimum": sde.posterior_mean(x, x0, mu, time),
        "posterior": sde.posterior_step(x, sde.x0_from_noise(x, noise, mu, time), mu, time, z),
    }
    assert set(own) == set(out)
    for name, value in own.items():
        tolerance = 1e-4 if t == 2 and name in ("optimum", "posterior") else 1e-5
        if name in ("real_score", "score", "x0_from_noise"):  # they reach hundreds: relative
            tolerance *= max(1.0, float(out[name].abs().max()))
        if name.startswith("real_"):  # one last digit of x_t on either side
            tolerance = max(tolerance, 2.4e-7 / float(sde.sigma_bar[t]) ** (2 if name == "real_score" else 1))
        assert error(value, out[name]) <= tolerance, name
    if t >= 99:
        assert error(own["x0_from_noise"], out["x0_from_noise"]) <= 1e-6 * float(out["x0_from_noise"].abs().max())


@conformance
def test_start_and_training_states(data):
    sde = MeanRevertingSDE()
    x0, mu, z = (data[f"step/in.{name}"] for name in ("x0", "mu", "z"))
    assert error(sde.start(mu, z), data["step/noise_state"]) <= 1e-6
    state = sde.forward_sample(x0, mu, data["step/train.t"].flatten(), z)
    assert error(state, data["step/train.state"]) <= 1e-6


# Against float64, without the data


def test_cosine_schedule_from_its_definition():
    T, n = 100, 102
    f = np.cos((np.arange(n) / n + 0.008) / 1.008 * np.pi / 2) ** 2
    theta = 1 - f[1:] / f[0]
    Theta = np.array([theta[1 : t + 1].sum() for t in range(T + 1)])
    dt = -math.log(0.005) / Theta[-1]
    sde = MeanRevertingSDE()
    assert sde.dt == pytest.approx(dt, rel=1e-12)
    assert np.allclose(sde.theta, theta, rtol=1e-12) and np.allclose(sde.w, np.exp(-Theta * dt), rtol=1e-12)
    assert np.allclose(sde.sigma_bar, 50 / 255 * np.sqrt(1 - np.exp(-2 * Theta * dt)), rtol=1e-9)
    assert float(sde.w[0]) == 1 and float(sde.sigma_bar[0]) == 0 and float(sde.w[100]) == pytest.approx(0.005)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_forward_transitions_compose_to_the_marginal(schedule):
    """Variance and weight of exact steps, multiplied out one by one, are those of the closed form."""
    sde = MeanRevertingSDE(40, 0.3, schedule, 0.02)
    weight, variance = 1.0, 0.0
    for t in range(1, 41):
        a = math.exp(-float(sde.theta[t]) * sde.dt)
        weight, variance = a * weight, a * a * variance + 0.09 * (1 - a * a)
        assert float(sde.w[t]) == pytest.approx(weight, rel=1e-9)
        assert float(sde.sigma_bar[t]) == pytest.approx(math.sqrt(variance), rel=1e-9)
    assert weight == pytest.approx(0.02)


@pytest.mark.parametrize(("t", "s"), [(1, 0), (2, 1), (50, 49), (100, 99), (100, 50), (60, 7), (3, 0), (100, 0)])
def test_posterior_is_bayes_rule(images, t, s):
    """p(x_s | x_t, x_0) from the two Gaussians p(x_s | x_0) and p(x_t | x_s), by precision."""
    sde = MeanRevertingSDE()
    x0, mu, z = images
    x = sde.forward_sample(x0, mu, t, z)
    a = float(sde.w[t] / sde.w[s])
    noise = sde.max_sigma**2 * (1 - a * a)
    prior = float(sde.sigma_bar[s]) ** 2
    variance = noise * prior / (noise + a * a * prior)
    center = mu + float(sde.w[s]) * (x0 - mu)
    mean = center + prior * a / (noise + a * a * prior) * (x - (mu + a * (center - mu)))
    assert error(sde.posterior_mean(x, x0, mu, t, s), mean) <= 1e-10
    assert float(sde.posterior_std(t, s)) == pytest.approx(math.sqrt(variance), rel=1e-6, abs=1e-10)


def test_each_image_has_its_own_times(images):
    sde = MeanRevertingSDE()
    x0, mu, z = images
    t, s = torch.tensor([4, 100, 57]), torch.tensor([0, 30, 56])
    for method in (sde.posterior_mean, sde.deterministic_step):
        one_by_one = [method(z[i : i + 1], x0[i : i + 1], mu[i : i + 1], int(t[i]), int(s[i])) for i in range(3)]
        assert error(method(z, x0, mu, t, s), torch.cat(one_by_one)) <= 1e-12
    for method in (sde.reverse_sde_mean, sde.reverse_ode_step):
        one_by_one = [method(z[i : i + 1], x0[i : i + 1], mu[i : i + 1], int(t[i]), int(s[i])) for i in range(3)]
        assert error(method(z, x0, mu, t, s), torch.cat(one_by_one)) <= 1e-12


def test_inverses_and_type(images):
    sde = MeanRevertingSDE()
    x0, mu, z = images
    t = torch.tensor([1, 50, 100])
    x = sde.forward_sample(x0, mu, t, z)
    assert error(sde.x0_from_noise(x, z, mu, t), x0) <= 1e-10
    assert error(sde.noise_from_x0(x, x0, mu, t), z) <= 1e-10
    x = sde.forward_sample(x0.float(), mu.float(), t, z.float())
    assert x.dtype == torch.float32 and sde.posterior_step(x, x, x, t, x, t - 1).dtype == torch.float32


def test_deterministic_step_keeps_the_noise(images):
    sde = MeanRevertingSDE()
    x0, mu, z = images
    x = sde.forward_sample(x0, mu, 80, z)
    assert error(sde.deterministic_step(x, x0, mu, 80, 33), sde.forward_sample(x0, mu, 33, z)) <= 1e-12


def test_small_t_keeps_its_digits_in_float32(images):
    sde = MeanRevertingSDE()
    x0, mu, z = images
    for t in (1, 2, 3):
        wide = sde.posterior_mean(z, x0, mu, t)
        assert error(sde.posterior_mean(z.float(), x0.float(), mu.float(), t).double(), wide) <= 1e-6


# Times


def test_timesteps():
    sde = MeanRevertingSDE()
    assert sde.timesteps(4) == [100, 75, 50, 25, 0] and sde.timesteps(1) == [100, 0]
    assert sde.timesteps(100) == list(range(100, -1, -1))
    for steps in range(1, 101):
        grid = sde.timesteps(steps)
        gaps = {a - b for a, b in zip(grid[:-1], grid[1:], strict=True)}
        assert len(grid) == steps + 1 and min(gaps) >= 1 and max(gaps) - min(gaps) <= 1
    for steps in (0, 101):
        with pytest.raises(UserError, match="restorer.steps"):
            sde.timesteps(steps)


def test_what_cannot_be_sampled():
    sde, mu = MeanRevertingSDE(), torch.zeros(1, 3, 4, 4)
    for mode in ("sde", "ode"):
        sde.check(11, mode)
        with pytest.raises(UserError, match="at least 11"):
            sde.check(10, mode)
    with pytest.raises(UserError, match="restorer.mode 'nonesuch'"):
        sde.check(10, "nonesuch")
    with pytest.raises(ValueError, match="generator"):
        sde.sample(lambda x, t: x, mu, 2)
    with pytest.raises(ValueError, match="fewer noises"):
        sde.sample(lambda x, t: x, mu, 2, noises=[mu, mu])
    with pytest.raises(ValueError, match="predicts"):
        sde.sample(lambda x, t: x, mu, 2, noises=[mu] * 3, predicts="score")
    for t, s in ((3, 3), (3, -1), (0, None), (torch.tensor([3, 1]), torch.tensor([1, 1]))):
        with pytest.raises(ValueError, match="earlier"):
            sde.posterior_std(t, s)
    with pytest.raises(ValueError, match="one for each"):
        sde.forward_mean(mu, mu, torch.tensor([1, 2]))
    for wrong in ({"schedule": "steep"}, {"eps": 1.0}, {"max_sigma": 0}, {"T": 0}):
        with pytest.raises(UserError, match="params.yaml: restorer"):
            MeanRevertingSDE(**wrong)


# Chains


def chain(sde, images, steps, mode, predicts="noise", seed=0):
    x0, mu, _ = images

    def oracle(x, t):
        return x0 if predicts == "x0" else sde.noise_from_x0(x, x0, mu, t)

    return sde.sample(oracle, mu, steps, mode, torch.Generator().manual_seed(seed), predicts=predicts)


@pytest.mark.parametrize("predicts", ["noise", "x0"])
@pytest.mark.parametrize("mode", ["posterior", "deterministic"])
@pytest.mark.parametrize("steps", [1, 4, 10, 20, 37, 100])
def test_a_perfect_network_recovers_the_clean_image(images, steps, mode, predicts):
    assert error(chain(MeanRevertingSDE(), images, steps, mode, predicts), images[0]) <= 1e-9


@pytest.mark.parametrize(("mode", "steps", "bound"), [("sde", 100, 0.02), ("ode", 100, 0.02), ("ode", 20, 0.1)])
def test_steps_of_euler_come_near_it(images, mode, steps, bound):
    found = error(chain(MeanRevertingSDE(), images, steps, mode), images[0])
    assert 1e-6 < found <= bound


def reference_chain(sde, predict, mu, noises, mode):
    """The loop t = T ... 1 written out with the one-step formulas of the published code."""
    x = mu + sde.max_sigma * noises[0]
    for t, z in zip(range(sde.T, 0, -1), noises[1:], strict=True):
        noise, B, C, theta = predict(x, t), float(sde.w[t]), float(sde.w[t - 1]), float(sde.theta[t])
        if mode == "posterior":
            A = math.exp(-theta * sde.dt)
            x0 = (x - mu - float(sde.sigma_bar[t]) * noise) / B + mu
            mean = A * (1 - C**2) / (1 - B**2) * (x - mu) + C * (1 - A**2) / (1 - B**2) * (x0 - mu) + mu
            x = mean + sde.max_sigma * math.sqrt((1 - A**2) * (1 - C**2) / (1 - B**2)) * z
        else:
            score, sigma = -noise / float(sde.sigma_bar[t]), float(sde.sigma[t])
            x = x - (theta * (mu - x) - sigma**2 * score) * sde.dt - sigma * math.sqrt(sde.dt) * z
    return x


@pytest.mark.parametrize("mode", ["posterior", "sde"])
def test_all_steps_are_the_published_chain(mode):
    sde, generator = MeanRevertingSDE(), torch.Generator().manual_seed(5)
    mu = torch.rand(2, 3, 4, 6, generator=generator)
    weights = torch.randn(3, 3, generator=generator)
    x0 = torch.rand(mu.shape, generator=generator)

    def predict(x, t):  # the noise, somewhat wrong, by a function of all that a network sees
        wrong = torch.tanh(torch.einsum("ij,njhw->nihw", weights, x - mu) + 0.3 * mu + t / 100)
        return sde.noise_from_x0(x, x0, mu, t) + 0.05 * float(sde.w[t]) * wrong

    noises = list(torch.randn(101, 2, 3, 4, 6, generator=torch.Generator().manual_seed(1)))
    expected = reference_chain(sde, predict, mu, noises, mode)
    assert error(sde.sample(predict, mu, mode=mode, noises=noises), expected) <= 1e-4
    # The generator draws start noise, then one for each step, in the shape of x.
    draw = torch.Generator().manual_seed(9)
    noises = [torch.randn(mu.shape, generator=draw) for _ in range(101)]
    seeded = sde.sample(predict, mu, 100, mode, torch.Generator().manual_seed(9))
    assert torch.equal(seeded, sde.sample(predict, mu, 100, mode, noises=noises))
    assert error(seeded, reference_chain(sde, predict, mu, noises, mode)) <= 1e-4


@pytest.mark.parametrize("mode", MODES)
def test_a_seed_gives_one_result(images, mode):
    sde, (_, mu, _) = MeanRevertingSDE(), images

    def run(seed):
        return sde.sample(lambda x, t: 0.5 * (x - mu), mu, 20, mode, torch.Generator().manual_seed(seed))

    assert torch.equal(run(4), run(4)) and not torch.allclose(run(4), run(5), atol=1e-3)


def test_the_network_is_asked_once_a_step_at_the_trained_times(images):
    sde, (_, mu, _), times = MeanRevertingSDE(), images, []
    sde.sample(lambda x, t: times.append(t) or x, mu, 5, generator=torch.Generator().manual_seed(0))
    assert times == [100, 80, 60, 40, 20]


@pytest.mark.parametrize("steps", [2, 5, 20, 100])
def test_samples_of_a_gaussian_have_its_moments(steps):
    """If x_0 is drawn given x_t, the transitions are exact, however few: x_0 ~ N(m, v) comes back."""
    sde, mean, variance = MeanRevertingSDE(), 0.7, 0.02
    mu = torch.full((1, 1, 200, 200), 0.4, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    seen = {}

    def draw(x, t):
        w, noise = float(sde.w[t]), float(sde.sigma_bar[t]) ** 2
        gain = w * variance / (w * w * variance + noise)
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        seen[t] = float(x.mean()), float(x.var()), w, noise
        return mean + gain * (x - mu - w * (mean - mu)) + math.sqrt(variance * (1 - gain * w)) * z

    x = sde.sample(draw, mu, steps, generator=torch.Generator().manual_seed(1), predicts="x0")
    assert float(x.mean()) == pytest.approx(mean, abs=0.004)
    assert float(x.var()) == pytest.approx(variance, rel=0.03)
    for center, spread, w, noise in seen.values():  # and every state on the way has the marginal of its time
        assert center == pytest.approx(0.4 + w * 0.3, abs=0.004)
        assert spread == pytest.approx(w * w * variance + noise, rel=0.03)
