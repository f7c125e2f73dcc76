# SPDX-License-Identifier: Apache-2.0
"""The diffusion restorer: a mean-reverting SDE whose noise, or clean image, a conditional U-Net predicts.

Two ways to have it:

- Released weights: `predicts: noise`, `scaling: published`, trained at 100 times and best sampled at all of them.
- Trained here, small, with few steps: `predicts: x0`, `scaling: balanced`. The network's output is added to the
  degraded image, x0_hat = mu + output, and starts at zero, so an untrained restorer is the identity. Had such a network
  to predict noise, its error would count sigma_bar_t / w_t times in x0_hat, 39 times at the end of the grid (values
  reach 170 with a random network): the first of few steps would be worthless, and a loss on x0_hat would hear little
  but the latest times.

Which loss (`training_loss`): "x0" (L1 on x0_hat, all times alike) is the one for `predicts: x0`; "noise" (L1 on the
noise) for `predicts: noise`; "paper" is that of the released weights, which is the noise's times c_t = 0.004 ... 0.04,
against a target that absorbs the error of an Euler step. The error in the noise is w_t / sigma_bar_t times that in
x0_hat, 271 at t = 1 and 0.025 at t = 100: with `predicts: x0` the loss "noise" teaches little but the earliest times.
Measured on a change of colours, nf 8, 400 updates, 4 posterior steps (gain over the degraded image): x0 by its own
loss 16.5 dB, by "paper" 4.7, by "noise" 2.6; noise by "noise" -21, and still -6 in 20 steps.

Source: Luo et al., "Image restoration with mean-reverting stochastic differential equations", ICML 2023, and
"Controlling vision-language models for multi-task image restoration", ICLR 2024; the clean image as what is predicted:
Salimans, Ho, "Progressive distillation for fast sampling of diffusion models", ICLR 2022.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from llicm.errors import UserError
from llicm.limits import as_pictures
from llicm.registry import RESTORERS
from llicm.restore.sde import PREDICTIONS, MeanRevertingSDE
from llicm.restore.tiling import tile_side, tiled
from llicm.restore.unet import ConditionalUNet, Conditioning
from llicm.transforms import LappedDCT, squash
from llicm.vlm.context import Context, embedding_lengths

LOSSES = ("noise", "paper", "x0")


class Shrinkage(nn.Module):
    """What scaling the coefficients of a lapped cosine transform adds to mu: denoising and sharpening by shrinkage.

    A small network must first discover that pictures are smooth, which takes more updates than a study on a CPU has:
    without it 700 updates make noisy photos worse (by 0.5 dB on photos kept apart). The factors of the coefficients of
    mu and of x_t - mu are predicted from both, and from what the network's blocks are conditioned by. At first they are
    zero. Compare `llicm.restore.direct`, where the same transform does the same.

    Args:
        condition: length of the vector that conditions.
    """

    HIDDEN = 96
    # In float32: coefficients and factors of two images, 24 numbers a pixel each, twice, and the hidden layer.
    BYTES_PER_PIXEL = 4 * (4 * 24 + 3 * 6)

    def __init__(self, condition: int):
        super().__init__()
        self.lapped = LappedDCT()
        self.enter = nn.Conv2d(2 * LappedDCT.CHANNELS, self.HIDDEN, 1)
        self.film = nn.Linear(condition, 2 * self.HIDDEN)
        self.leave = nn.Conv2d(self.HIDDEN, 2 * LappedDCT.CHANNELS, 1)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)

    def forward(self, difference: Tensor, mu: Tensor, condition: Tensor) -> Tensor:
        """(N, 3, H, W) from x_t - mu and mu, like it, sides multiples of 4 and at least 8."""
        coefficients = torch.cat([self.lapped(difference), self.lapped(mu)], 1)
        scale, shift = self.film(condition)[..., None, None].chunk(2, 1)
        hidden = F.gelu(self.enter(squash(20 * coefficients)) * (1 + scale) + shift, approximate="tanh")
        of_difference, of_mu = (coefficients * self.leave(hidden).float()).chunk(2, 1)
        return self.lapped.inverse(of_difference + of_mu)


@RESTORERS.register("irsde")
class IRSDERestorer(nn.Module):
    """Universal restorer by sampling; its defaults are those of the released weights.

    Args:
        nf, ch_mult, half, heads: of the network (see `ConditionalUNet`).
        shrinkage: whether `Shrinkage` works beside the network; False for released weights.
        context: what steers it (see `llicm.vlm.context.embedding_lengths`).
        level_conditioned: whether it was trained on decoded images; if not, it takes every input as never compressed.
        steps: calls of the network for an image, 1 ... T.
        mode: "posterior", "deterministic", "sde" or "ode" (see `MeanRevertingSDE.sample`).
        predicts: what the network predicts: "noise", or "x0" as mu plus its output.
        scaling: "published": embeddings enter as they come, as released weights need it. "balanced": they enter at a
            length of sqrt(C), whatever a vision-language model makes it, and the network is balanced too (see
            `ConditionalUNet`).
        seed: of the noise, where `forward` is given no generator.
        memory: bytes that one call of the network may take, or None for no bound; images that need more are tiled (see
            `llicm.restore.tiling`). What is estimated is float32 without gradients.
        T, max_sigma, schedule, eps: of the equation (see `MeanRevertingSDE`).
        weights: file of released weights to begin with (see `llicm.restore.released`); None for random ones.

    `steps`, `mode`, `seed` and `memory` are attributes that may be changed.

    Raises:
        UserError: an argument is unknown or out of its range, or the weights cannot be read or do not fit.
    """

    def __init__(
        self, nf: int = 64, ch_mult: Sequence[int] = (1, 2, 4, 8), context: dict | None = None,
        level_conditioned: bool = False, steps: int = 100, mode: str = "posterior", predicts: str = "noise",
        scaling: str = "published", half: bool = False, heads: int = 4, shrinkage: bool = False, seed: int = 0,
        memory: int | None = None, T: int = 100, max_sigma: float = 50 / 255, schedule: str = "cosine",
        eps: float = 0.005, weights: str | None = None,
    ):  # fmt: skip
        super().__init__()
        if predicts not in PREDICTIONS:
            raise UserError(f"params.yaml: restorer.predicts '{predicts}' is unknown; choose {', '.join(PREDICTIONS)}")
        self.sde = MeanRevertingSDE(T, max_sigma, schedule, eps)
        self.sde.check(steps, mode)
        self.context, self.level_conditioned, self.predicts = context, level_conditioned, predicts
        self.steps, self.mode, self.seed, self.memory = steps, mode, seed, memory
        lengths = embedding_lengths(context)
        self.unet = ConditionalUNet(nf, ch_mult, **lengths, half=half, heads=heads, scaling=scaling)
        self.shrinkage = Shrinkage(self.unet.time_width) if shrinkage else None
        if memory is not None:
            tile_side(memory, self.bytes_per_pixel, self.unet.stride)
        # Beside the network, whose names are those of released weights; at first without influence.
        self.level = nn.Linear(2, self.unet.time_width, bias=False)
        nn.init.zeros_(self.level.weight)
        if predicts == "x0":
            for parameter in self.unet.final_conv.parameters():
                nn.init.zeros_(parameter)
        self.pretrained = weights is not None
        if weights is not None:
            from llicm.vlm.checkpoint import check_layout, read_checkpoint  # loads open_clip

            state = read_checkpoint(weights)
            check_layout(state, {name: value.shape for name, value in self.unet.state_dict().items()}, weights)
            self.unet.load_state_dict(state)
        # A call takes a quarter less on a CPU. (torch's types lack this argument.)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def config(self) -> dict:
        """Arguments that build this restorer again."""
        network = {name: self.unet.config[name] for name in ("nf", "ch_mult", "half", "heads", "scaling")}
        own = ("context", "level_conditioned", "steps", "mode", "predicts", "seed", "memory")
        return {
            "name": "irsde", **network, "shrinkage": self.shrinkage is not None,
            **{name: getattr(self, name) for name in own}, **self.sde.config,
        }  # fmt: skip

    @property
    def bytes_per_pixel(self) -> int:
        """Memory of one call for a pixel (see `ConditionalUNet.bytes_per_pixel`)."""
        return self.unet.bytes_per_pixel + (0 if self.shrinkage is None else Shrinkage.BYTES_PER_PIXEL)

    def prepare(self, n: int, level: Tensor | None = None, context: Context | None = None) -> Conditioning:
        """All that steers the network and does not change from step to step, for n images.

        Args:
            level, context: as for `forward`.

        Raises:
            ValueError: it was built with a content embedding and there is none.
        """
        if context is not None and self.unet.balanced:
            context = Context(*(
                None if e is None else F.normalize(e.float(), dim=-1) * e.shape[-1] ** 0.5 for e in context
            ))  # fmt: skip
        conditioning = self.unet.prepare(context)
        if level is None or not self.level_conditioned:
            return conditioning
        weight = self.level.weight
        with torch.autocast(weight.device.type, enabled=False):
            shift = self.level(torch.stack([level, torch.ones_like(level)], 1).to(weight).expand(n, 2))
        return conditioning._replace(shift=shift if conditioning.shift is None else conditioning.shift + shift)

    def _predict(self, x: Tensor, mu: Tensor, t: Tensor | int, conditioning: Conditioning) -> Tensor:
        """The noise in x_t, or x_0, as `predicts` says, (N, 3, H, W); within the bound of memory."""
        out = self._within_memory(x, mu, t, conditioning)
        return mu + out if self.predicts == "x0" else out

    def _network(self, x: Tensor, mu: Tensor, t: Tensor | int, conditioning: Conditioning) -> Tensor:
        """The U-Net's output, and the shrinkage's, on images of any size."""
        if self.shrinkage is None:
            return self.unet(x, mu, t, conditioning)
        height, width = x.shape[-2:]
        if height < 8 or width < 8:  # the cosine transform's windows reflect, for which 4 pixels a side are too few
            small = (0, max(0, 8 - width), 0, max(0, 8 - height))
            x, mu = (F.pad(image, small, mode="replicate") for image in (x, mu))
            return self._network(x, mu, t, conditioning)[..., :height, :width]
        out = self.unet(x, mu, t, conditioning)
        padded = (self.unet.pad(image) for image in (x - mu, mu))
        return out + self.shrinkage(*padded, self.unet.condition(t, conditioning, len(x)))[..., :height, :width]

    def _within_memory(self, x: Tensor, mu: Tensor, t: Tensor | int, conditioning: Conditioning) -> Tensor:
        """`_network`, for one image or one tile at a time if it would otherwise take more than `memory`."""
        if self.memory is None:
            return self._network(x, mu, t, conditioning)
        stride = self.unet.stride
        side = tile_side(self.memory, self.bytes_per_pixel, stride)
        height, width = (-(-length // stride) * stride for length in x.shape[-2:])
        if len(x) * height * width <= side * side:
            return self._network(x, mu, t, conditioning)
        # The images of a batch do not see each other, so they can go one at a time, whole if they fit.
        overlap = side // 4 // stride * stride
        if height * width <= side * side:
            side = max(height, width)

        def image(i: int) -> Tensor:
            time, part = t[i : i + 1] if isinstance(t, Tensor) and t.ndim else t, conditioning.rows(slice(i, i + 1))
            pair = x[i : i + 1], mu[i : i + 1]
            return tiled(lambda x, mu: self._network(x, mu, time, part), pair, side, overlap, stride)

        return torch.cat([image(i) for i in range(len(x))])

    def predict_x0(
        self, x_t: Tensor, mu: Tensor, t: Tensor | int, level: Tensor | None = None, context: Context | None = None
    ) -> Tensor:
        """The clean image that the network sees in x_t: (N, 3, H, W), not clamped.

        Args:
            x_t, mu: (N, 3, H, W).
            t: 1 ... T, an int or (N,).
            level, context: as for `forward`.
        """
        prediction = self._predict(x_t, mu, t, self.prepare(len(x_t), level, context)).to(x_t.dtype)
        return prediction if self.predicts == "x0" else self.sde.x0_from_noise(x_t, prediction, mu, t)

    def training_loss(
        self, x0: Tensor, mu: Tensor, level: Tensor | None = None, context: Context | None = None,
        generator: torch.Generator | None = None, loss: str = "noise", t: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """One draw of time and noise for each image, and how well the network undoes it.

        The gradient reaches mu, so that a codec which decoded it can be trained along.

        Args:
            x0: (N, 3, H, W), the clean images.
            mu: (N, 3, H, W), the degraded or decoded ones.
            level, context: as for `forward`.
            generator: of times (first) and noise; it may be on the CPU while the images are not.
            loss: "noise", "paper" or "x0" (see the module).
            t: (N,), times in 1 ... T in place of drawn ones.

        Returns:
            Loss of each image (N,), and x0_hat (N, 3, H, W), which a distance to x_0 in a joint loss may use. With
            `predicts: noise` x0_hat at late times is far outside [0, 1] (see the module): a joint loss then needs
            `t` drawn early, or weights of about w_t.

        Raises:
            ValueError: no such loss, or no generator.
        """
        if loss not in LOSSES:
            raise ValueError(f"the loss must be one of {', '.join(LOSSES)}, not {loss}")
        if generator is None:
            raise ValueError("training needs a generator")
        sde = self.sde
        if t is None:
            t = torch.randint(1, sde.T + 1, x0.shape[:1], generator=generator, device=generator.device)
        noise = torch.randn(x0.shape, generator=generator, device=generator.device, dtype=x0.dtype).to(x0.device)
        t = t.to(x0.device)
        x = sde.forward_sample(x0, mu, t, noise)
        prediction = self._predict(x, mu, t, self.prepare(len(x), level, context)).to(x.dtype)
        x0_hat = prediction if self.predicts == "x0" else sde.x0_from_noise(x, prediction, mu, t)
        if loss == "x0":
            difference = x0_hat - x0
        else:
            noise_hat = prediction if self.predicts == "noise" else sde.noise_from_x0(x, x0_hat, mu, t)
            if loss == "noise":
                difference = noise_hat - noise
            else:
                mean = sde.reverse_sde_mean(x, sde.score_from_noise(noise_hat, t), mu, t)
                difference = mean - sde.posterior_mean(x, x0, mu, t)
        return difference.abs().flatten(1).mean(1), x0_hat

    def _noises(self, x: Tensor) -> Iterator[Tensor]:
        """The same noise for every image of the batch, so that none depends on which others are beside it."""
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield torch.randn(1, *x.shape[1:], generator=generator).to(x.device).expand(x.shape)

    def forward(
        self, x: Tensor, level: Tensor | None = None, context: Context | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:  # fmt: skip
        """Restore a batch.

        Gradients pass through all steps if they are enabled, at the memory of `steps` calls; to train by single steps
        use `training_loss`.

        Args:
            x: (N, 3, H, W) in [0, 1], any size.
            level: (N,) in [0, 1], the relative level at which x was coded (1 = highest rate); None for images that
                were never compressed.
            context: embeddings of x, as a whole, by a vision-language model; an embedding that the restorer was built
                without is ignored, and the degradation may be missing.
            generator: of the noise; by default each image's own, seeded with `seed`: an image of a size then has one
                result, up to rounding, in whatever batch.

        Returns:
            (N, 3, H, W), not clamped.

        Raises:
            UserError: `steps` or `mode` was set to something that cannot be.
            ValueError: it was built with a content embedding and there is none.
        """
        x = as_pictures(x, bounded=False)
        conditioning = self.prepare(len(x), level, context)
        noises = self._noises(x) if generator is None else None
        return self.sde.sample(
            lambda x_t, t: self._predict(x_t, x, t, conditioning),
            x, self.steps, self.mode, generator, noises, self.predicts,
        )  # fmt: skip
