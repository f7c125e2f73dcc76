# SPDX-License-Identifier: Apache-2.0
"""IR-SDE: a stochastic differential equation that ends not in plain noise but in the degraded image plus noise.

    dx = theta_t (mu - x) dt + sigma_t dw,      sigma_t^2 = 2 lambda^2 theta_t

mu is the degraded image, x at time 0 the clean one; at the end x is N(mu, lambda^2). A network that predicts the noise
(or the clean image) from x_t and mu turns the time round, and the chain of steps leads from the degraded image to a
clean one. Time is a grid t = 0 ... T. All follows from two numbers of a point of the grid: the weight
w_t = exp(-Theta_t dt) that x_0 still has in x_t, and the standard deviation lambda sqrt(1 - w_t^2) of its noise.

Fewer steps than T take a part of the grid's points. A transition from t to any s < t is exact with A = w_t / w_s,
B = w_t, C = w_s in the formula of the one-step transition, for x_s and x_t are jointly Gaussian given x_0; so no
schedule is made anew and the network is asked at times that it was trained for. (The published code makes the schedule
anew for S < T steps, whose noise levels differ from those of the trained times by up to a factor of two.)

Source: Luo et al., "Image restoration with mean-reverting stochastic differential equations", ICML 2023 (the equation,
its marginals, the optimal reverse step); the posterior step as in the code of Luo et al., "Controlling vision-language
models for multi-task image restoration", ICLR 2024; transitions between any two times: Song et al., "Denoising
diffusion implicit models", ICLR 2021.

Coefficients are computed in float64 (1 - w^2 cancels nearly to nothing at small t) and cast to the images' type.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from llicm.errors import UserError

MODES = ("posterior", "deterministic", "sde", "ode")
PREDICTIONS = ("noise", "x0")
SCHEDULES = ("cosine", "linear", "constant")
_FLOOR = 1e-20  # of the posterior's variance, times dt: its value at the last step, which adds no noise

Time = int | Tensor


def _factor(value: Tensor, x: Tensor) -> Tensor | float:
    """A float64 coefficient, 0-d or (N,), to multiply images like x.

    Cast when it is computed, not before: a difference of nearly equal numbers keeps its digits.
    """
    return value.to(x).view(-1, *[1] * (x.ndim - 1)) if value.ndim else float(value)


def _speeds(schedule: str, T: int) -> Tensor:
    """theta_0 ... theta_T, how fast x returns to mu; on the CPU, even while a network is laid out without memory."""
    with torch.device("cpu"):
        if schedule == "cosine":
            j = torch.arange(T + 2, dtype=torch.float64)
            f = torch.cos((j / (T + 2) + 0.008) / 1.008 * math.pi / 2) ** 2
            return 1 - f[1:] / f[0]
        if schedule == "linear":
            scale = 1000 / (T + 1)
            return torch.linspace(1e-4 * scale, 0.02 * scale, T + 1, dtype=torch.float64)
        return torch.ones(T + 1, dtype=torch.float64)


class MeanRevertingSDE:
    """The equation on a grid of T steps: coefficients, marginals, steps in both directions, and samplers.

    Images are (N, C, H, W) in [0, 1] (no other scaling), and mu has the shape of x. A time t is an int, or an integer
    tensor (N,) with one for each image, in 0 ... T (1 ... T where a step back is taken).

    Args:
        T: number of steps of the grid that the network is trained on.
        max_sigma: lambda, the standard deviation of the noise at the end, in units of the images' range.
        schedule: how theta grows: "cosine", "linear" or "constant".
        eps: the weight w_T that x_0 has left at the end.

    Attributes: theta, Theta, w, sigma_bar, sigma, each (T + 1,) float64, and the floats dt and max_sigma.

    Raises:
        UserError: no such schedule, or a number out of its range.
    """

    def __init__(self, T: int = 100, max_sigma: float = 50 / 255, schedule: str = "cosine", eps: float = 0.005):
        if schedule not in SCHEDULES:
            raise UserError(f"params.yaml: restorer.schedule '{schedule}' is unknown; choose {', '.join(SCHEDULES)}")
        if T < 1 or max_sigma <= 0 or not 0 < eps < 1:
            raise UserError(f"params.yaml: restorer: T {T}, max_sigma {max_sigma} or eps {eps} is out of its range")
        self.T, self.max_sigma, self.schedule, self.eps = T, max_sigma, schedule, eps
        self.theta = _speeds(schedule, T)
        self.Theta = self.theta.cumsum(0) - self.theta[0]
        self.dt = -math.log(eps) / float(self.Theta[-1])
        self.w = torch.exp(-self.Theta * self.dt)
        self.sigma_bar = max_sigma * torch.sqrt(-torch.expm1(-2 * self.Theta * self.dt))
        self.sigma = max_sigma * torch.sqrt(2 * self.theta)

    @property
    def config(self) -> dict:
        """Arguments that build this equation again."""
        return {"T": self.T, "max_sigma": self.max_sigma, "schedule": self.schedule, "eps": self.eps}

    def at(self, values: Tensor, t: Time, x: Tensor) -> Tensor | float:
        """`values` (T + 1,) at time t, shaped and typed to multiply images x: a float, or (N, 1, 1, 1).

        Raises:
            ValueError: a tensor of times is not (N,).
        """
        if isinstance(t, Tensor):
            values = values.to(t.device)
            if t.ndim and t.shape != x.shape[:1]:
                raise ValueError(f"times must be an int or one for each of {len(x)} images, not {tuple(t.shape)}")
        return _factor(values[t], x)

    # Forward

    def forward_mean(self, x0: Tensor, mu: Tensor, t: Time) -> Tensor:
        """Mean of x_t given x_0: mu + w_t (x_0 - mu). (ICML 2023, proposition 3.1)"""
        return mu + self.at(self.w, t, x0) * (x0 - mu)

    def forward_std(self, t: Time, x: Tensor) -> Tensor | float:
        """Standard deviation of x_t given x_0: sigma_bar_t = lambda sqrt(1 - w_t^2), to multiply images like x."""
        return self.at(self.sigma_bar, t, x)

    def forward_sample(self, x0: Tensor, mu: Tensor, t: Time, noise: Tensor) -> Tensor:
        """x_t given x_0: mu + w_t (x_0 - mu) + sigma_bar_t noise, with noise ~ N(0, 1)."""
        return self.forward_mean(x0, mu, t) + self.forward_std(t, x0) * noise

    def forward_step(self, x: Tensor, mu: Tensor, t: Time, z: Tensor | None = None) -> Tensor:
        """One step of Euler forward: x + theta_t (mu - x) dt + sigma_t sqrt(dt) z; without z, its mean."""
        x_next = x + self.at(self.theta * self.dt, t, x) * (mu - x)
        return x_next if z is None else x_next + self.at(self.sigma * self.dt**0.5, t, x) * z

    def start(self, mu: Tensor, z: Tensor) -> Tensor:
        """Where sampling starts: mu + lambda z. (What is left of x_0, w_T = eps, is neglected.)"""
        return mu + self.max_sigma * z

    # Between noise, score and x_0

    def score_from_noise(self, noise: Tensor, t: Time) -> Tensor:
        """Gradient of log p(x_t | x_0): -noise / sigma_bar_t; t >= 1."""
        return -noise / self.forward_std(t, noise)

    def noise_from_x0(self, x: Tensor, x0: Tensor, mu: Tensor, t: Time) -> Tensor:
        """The noise in x_t if x_0 is the clean image: (x_t - mu - w_t (x_0 - mu)) / sigma_bar_t; t >= 1."""
        return (x - self.forward_mean(x0, mu, t)) / self.forward_std(t, x)

    def x0_from_noise(self, x: Tensor, noise: Tensor, mu: Tensor, t: Time) -> Tensor:
        """The clean image if this is the noise in x_t: mu + (x_t - mu - sigma_bar_t noise) / w_t. Never clipped.

        At large t it is divided by hardly anything: an error of the noise counts sigma_bar_t / w_t times (39 at T).
        """
        return mu + (x - mu - self.forward_std(t, x) * noise) / self.at(self.w, t, x)

    # Back

    def duration(self, t: Time, s: Time | None = None) -> Tensor:
        """How far s lies before t on the grid, in the time of the equation: (Theta_t - Theta_s) dt, float64.

        Args:
            s: an earlier time, int or tensor as t; the one just before by default.
        """
        return (self.Theta[t] - self.Theta[t - 1 if s is None else s]) * self.dt

    def _times(self, t: Time, s: Time | None) -> tuple[Time, Time]:
        """t and s as indices into the tables, s one before t by default."""
        t = t.cpu() if isinstance(t, Tensor) else t
        s = t - 1 if s is None else s.cpu() if isinstance(s, Tensor) else s
        if bool(torch.as_tensor(s < 0).any()) or not bool(torch.as_tensor(s < t).all()):
            raise ValueError("a step back leads from t to an earlier time s >= 0")
        return t, s

    def _lost(self, t: Time, s: Time) -> list[Tensor]:
        """1 - A², 1 - B² and 1 - C² of the transition from t to s (see the module), float64, 0-d or (N,)."""
        return [-torch.expm1(-2 * h) for h in (self.duration(t, s), self.duration(t, 0), self.duration(s, 0))]

    def reverse_sde_mean(self, x: Tensor, score: Tensor, mu: Tensor, t: Time, s: Time | None = None) -> Tensor:
        """Mean of a step of Euler back: x - [(mu - x) - 2 lambda^2 score] h, h = (Theta_t - Theta_s) dt.

        With s = t - 1, h is theta_t dt, and this is x - [theta_t (mu - x) - sigma_t^2 score] dt. (ICML 2023, eq. 6)
        """
        h = _factor(self.duration(*self._times(t, s)), x)
        return x - h * ((mu - x) - 2 * self.max_sigma**2 * score)

    def reverse_sde_step(
        self, x: Tensor, score: Tensor, mu: Tensor, t: Time, z: Tensor, s: Time | None = None
    ) -> Tensor:
        """`reverse_sde_mean` - lambda sqrt(2 h) z; with s = t - 1 the noise is sigma_t sqrt(dt) z.

        The sign of z means nothing to the distribution, but is that of the published code for equal seeds.
        """
        h = self.duration(*self._times(t, s))
        return self.reverse_sde_mean(x, score, mu, t, s) - _factor(self.max_sigma * torch.sqrt(2 * h), x) * z

    def reverse_ode_step(self, x: Tensor, score: Tensor, mu: Tensor, t: Time, s: Time | None = None) -> Tensor:
        """A step of Euler back along the probability flow: x - [(mu - x) - lambda^2 score] h, h as above."""
        h = _factor(self.duration(*self._times(t, s)), x)
        return x - h * ((mu - x) - self.max_sigma**2 * score)

    def posterior_mean(self, x: Tensor, x0: Tensor, mu: Tensor, t: Time, s: Time | None = None) -> Tensor:
        """Mean of x_s given x_t and x_0: mu + A(1-C²)/(1-B²) (x_t - mu) + C(1-A²)/(1-B²) (x_0 - mu).

        A = w_t / w_s, B = w_t, C = w_s. With s = t - 1 it is the optimal reverse step (ICML 2023, proposition 3.2);
        with s = 0 it is x_0.
        """
        t, s = self._times(t, s)
        a, b, c = self._lost(t, s)
        of_x, of_x0 = torch.exp(-self.duration(t, s)) * c / b, self.w[s] * a / b
        return mu + _factor(of_x, x) * (x - mu) + _factor(of_x0, x) * (x0 - mu)

    def posterior_std(self, t: Time, s: Time | None = None) -> Tensor:
        """Standard deviation of x_s given x_t and x_0: lambda sqrt((1-A²)(1-C²)/(1-B²)), float64, 0-d or (N,).

        The root's argument is at least 1e-20 dt, as in the published code.
        """
        a, b, c = self._lost(*self._times(t, s))
        return self.max_sigma * torch.sqrt((a * c / b).clamp(min=_FLOOR * self.dt))

    def posterior_step(self, x: Tensor, x0: Tensor, mu: Tensor, t: Time, z: Tensor, s: Time | None = None) -> Tensor:
        """x_s drawn given x_t and (a prediction of) x_0: `posterior_mean` + `posterior_std` z."""
        return self.posterior_mean(x, x0, mu, t, s) + _factor(self.posterior_std(t, s), x) * z

    def deterministic_step(self, x: Tensor, x0: Tensor, mu: Tensor, t: Time, s: Time | None = None) -> Tensor:
        """x_s with the noise of x_t given x_0, no new one: mu + w_s (x_0 - mu) + sigma_bar_s noise. (As DDIM)"""
        _, before = self._times(t, s)
        return self.forward_sample(x0, mu, before, self.noise_from_x0(x, x0, mu, t))

    # Sampling

    def timesteps(self, steps: int) -> list[int]:
        """The times of a chain of `steps` steps: steps + 1 ints from T down to 0, as evenly spaced as ints can be.

        Even in t, because the network was trained with t drawn evenly and the schedule already puts its times where
        the noise changes: with the cosine, 4 steps start at noise of 100, 99.8, 93 and 52 % of lambda.

        Raises:
            UserError: steps is not in 1 ... T.
        """
        if not 1 <= steps <= self.T:
            raise UserError(f"params.yaml: restorer.steps {steps} must be from 1 to {self.T}, the length of the grid")
        return [(2 * self.T * i + steps) // (2 * steps) for i in range(steps, -1, -1)]

    def check(self, steps: int, mode: str) -> None:
        """Whether `sample` can take so many steps in this mode.

        "sde" and "ode" are steps of Euler, on the part of the grid that is used. A step longer than 1 in the time of
        the equation overshoots mu (x - mu is multiplied by 1 - h), so they need a certain number of steps: 11 with the
        usual schedule. (With few more than that they are still coarse; the other modes are exact transitions.)

        Raises:
            UserError: no such mode, or too few or too many steps for it.
        """
        if mode not in MODES:
            raise UserError(f"params.yaml: restorer.mode '{mode}' is unknown; choose one of {', '.join(MODES)}")
        if mode in ("sde", "ode") and self._longest(steps) > 1:
            least = next((n for n in range(steps, self.T + 1) if self._longest(n) <= 1), None)
            need = "more than the grid has" if least is None else f"at least {least}"
            raise UserError(
                f"params.yaml: restorer.steps {steps} are too few for mode '{mode}', which needs {need}; "
                "'posterior' and 'deterministic' take any number"
            )
        self.timesteps(steps)

    def _longest(self, steps: int) -> float:
        return max(float(self.duration(t, s)) for t, s in itertools.pairwise(self.timesteps(steps)))

    def sample(
        self, predict: Callable[[Tensor, int], Tensor], mu: Tensor, steps: int | None = None, mode: str = "posterior",
        generator: torch.Generator | None = None, noises: Iterable[Tensor] | None = None, predicts: str = "noise",
    ) -> Tensor:  # fmt: skip
        """Restore: the chain from x_T = mu + lambda z down to x_0.

        Args:
            predict: (x_t, t) to the prediction of the noise in x_t, or of x_0, each like x_t.
            mu: (N, C, H, W), the degraded images.
            steps: 1 ... T calls of `predict`; T by default.
            mode: "posterior" draws x_s given x_t and the predicted x_0; "deterministic" keeps the predicted noise;
                "sde" and "ode" take steps of Euler (see `check`).
            generator: of the noise: one draw of torch.randn for the start, and with "posterior" and "sde" one for each
                step, in the shape of mu. It may be on the CPU while mu is not.
            noises: these draws themselves, in that order, in place of the generator.
            predicts: what `predict` returns, "noise" or "x0".

        Returns:
            (N, C, H, W), not clamped.

        Raises:
            UserError: mode or steps (see `check`).
            ValueError: `predicts` is unknown, there are too few noises, or neither generator nor noises is given.
        """
        steps = self.T if steps is None else steps
        self.check(steps, mode)
        if predicts not in PREDICTIONS:
            raise ValueError(f"predicts must be one of {', '.join(PREDICTIONS)}, not {predicts}")
        draws = self._draws(mu, generator, noises)
        x = self.start(mu, next(draws))
        for t, s in itertools.pairwise(self.timesteps(steps)):
            prediction = predict(x, t).to(x.dtype)
            if mode in ("posterior", "deterministic"):
                x0 = prediction if predicts == "x0" else self.x0_from_noise(x, prediction, mu, t)
            else:
                noise = prediction if predicts == "noise" else self.noise_from_x0(x, prediction, mu, t)
                score = self.score_from_noise(noise, t)
            if mode == "posterior":
                x = self.posterior_step(x, x0, mu, t, next(draws), s)
            elif mode == "deterministic":
                x = self.deterministic_step(x, x0, mu, t, s)
            elif mode == "sde":
                x = self.reverse_sde_step(x, score, mu, t, next(draws), s)
            else:
                x = self.reverse_ode_step(x, score, mu, t, s)
        return x

    @staticmethod
    def _draws(mu: Tensor, generator: torch.Generator | None, noises: Iterable[Tensor] | None) -> Iterator[Tensor]:
        if noises is not None:
            for noise in noises:
                yield noise.to(mu)
            raise ValueError("there are fewer noises than the chain needs")
        if generator is None:
            raise ValueError("sampling needs a generator, or the noises themselves")
        while True:
            yield torch.randn(mu.shape, generator=generator, device=generator.device, dtype=mu.dtype).to(mu.device)
