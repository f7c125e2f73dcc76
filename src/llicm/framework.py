# SPDX-License-Identifier: Apache-2.0
"""LL-ICM in one class: the paper's Figure 3.

    X ──codec──► bitstream ──► X̂ ──► CLIP / DA-CLIP ──► context ─┐
                               └───────► restorer ◄──────────────┘ ──► X̂_H

The codec compresses the degraded image X; the restorer turns the decoded X̂ into the enhanced X̂_H. The codec's level
is in the bitstream, so the decoder knows it and conditions the restorer on it. Either part may be absent: a codec alone
gives X̂ = X̂_H, a restorer alone works on X itself. The conditioner is the vision-language model; it sees what the
decoder has, so nothing is sent for it, and no gradient passes through it.

Beyond the paper the encoder may have a restorer of its own, the *prefilter*: the codec then gets X as that restores it,
spends nothing on what would be thrown away, and the restorer behind it repairs what both have done.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from llicm.codec.bitstream import mark_restored, unpack
from llicm.codec.learned import coding
from llicm.degradations import CLEAN
from llicm.images import quantize8
from llicm.limits import as_pictures, check_finite, keep_grey
from llicm.vlm.conditioner import Conditioner, Oracle
from llicm.vlm.context import Context

SURE = (0.4, 0.8)
"""Up to which probability that something is wrong with it a picture is left as it is, and from which on it is restored
wholly; between them smoothly more. How they were chosen: docs/harm.md."""

TONE = (0.02, 0.05)
"""From which shift of a channel's mean on restoring needs to be sure that it is the tones that are wrong, and from
which on wholly."""

Hints = Sequence[str | None]
"""For each image of a batch its degradation in words, or None to have it detected."""


@dataclass
class Output:
    """What one pass gives: `decoded` X̂ and `enhanced` X̂_H (N, 3, H, W), `likelihoods` of the latents (may be {}), and
    `diffusion` (N,), a diffusion restorer's own loss; None without one."""

    decoded: Tensor
    enhanced: Tensor
    likelihoods: dict[str, Tensor]
    diffusion: Tensor | None = None


class LLICM(nn.Module):
    """Codec and restorer as one system; every part may be None.

    Args:
        codec: a learned codec (see `llicm.registry.Codec`); without one X̂ = X.
        restorer: behind the codec (see `llicm.registry.Restorer`); without one X̂_H = X̂.
        conditioner: what steers the restorers (see `llicm.vlm.conditioner`).
        prefilter: a restorer that X goes through before it is coded.
    """

    def __init__(
        self, codec: Any, restorer: Any, conditioner: Conditioner | Oracle | None = None, prefilter: Any = None
    ):  # fmt: skip
        super().__init__()
        self.codec: Any = codec
        self.restorer: Any = restorer
        self.prefilter: Any = prefilter
        self.conditioner: Any = conditioner
        self.share: Tensor | None = None  # how far pictures were restored the last time, (N,)

    def forward(
        self, x: Tensor, level: Tensor | None = None, hints: Hints | None = None, ideal: Tensor | None = None,
        fork: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None, diffusion: str | None = None,
    ) -> Output:  # fmt: skip
        """Differentiable pass for training.

        A diffusion restorer is not sampled from: its X̂_H is what it sees in one noisy state between X_ideal and X̂, at
        a time and with noise drawn from torch's global generator.

        Args:
            x: X (N, 3, H, W) in [0, 1], prefiltered (see `prefiltered`).
            level: (N,), of the codec; without one the relative level at which x was coded before, or None.
            hints: for each image the degradation in words, or None to have it detected.
            ideal: X_ideal (N, 3, H, W), that a diffusion restorer learns from; without it, it is sampled from.
            fork: X̂ and lambda (N,) to X̂ as D sees it and X̂ as the restorer sees it (see `llicm.objectives`).
            diffusion: name of the diffusion restorer's own loss (see `llicm.restore.irsde`); None for its usual one.

        Returns:
            X̂, X̂_H, the likelihoods of the latents, and the diffusion restorer's own loss.
        """
        if self.codec is None:  # which looks at them itself
            x = as_pictures(x)
        decoded, seen, likelihoods, relative = x, x, {}, level
        if self.codec is not None:
            coded = self.codec(x, level)
            decoded = seen = coded["x_hat"]
            likelihoods, relative = coded["likelihoods"], self.codec.relative_level(level)
            if fork is not None:
                decoded, seen = fork(decoded, self.codec.lambdas(level))
        if ideal is None or not hasattr(self.restorer, "training_loss"):
            return Output(decoded, self._restore(self.restorer, seen, relative, hints), likelihoods)
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, (1,))))
        context = self._context(seen, hints)
        loss, enhanced = self.restorer.training_loss(
            ideal, seen, relative, context, generator, diffusion or self.restorer.predicts
        )
        return Output(decoded, enhanced, likelihoods, loss)

    def enhance(
        self, decoded: Tensor, level: Tensor | None = None, hints: Hints | None = None, strength: float = 1.0
    ) -> Tensor:  # fmt: skip
        """X̂ (N, 3, H, W) to X̂_H, which is grey where X̂ is.

        X̂_H departs from X̂ no farther than the conditioner is sure that something is wrong (see `sureness`); where
        that changes the tones, than it is sure that they are.

        Args:
            level: (N,) the relative level in [0, 1]; None if never compressed.
            hints: for each image the degradation in words, or None to have it detected; None for all detected.
            strength: how far to go from X̂, 0, to X̂_H, 1.

        Raises:
            PictureError: X̂ is no batch of pictures in [0, 1], or X̂_H is not finite.
        """
        return self._carefully(self.restorer, as_pictures(decoded), level, hints, strength)

    def sureness(self, image: Tensor, context: Context, hints: Hints | None = None) -> tuple[Tensor, Tensor]:
        """How surely something is wrong with pictures (N, 3, H, W), and with their tones, each (N,) from 0 to 1.

        0 where the conditioner finds it unlikely, 1 where it is likely enough (see `SURE`). A hint is sure: 0 for
        "clean", 1 for others.
        """
        wrong, tones = (_between(found, *SURE) for found in self.conditioner.judged(image, context))
        for row, hint in enumerate(hints or []):
            if hint:
                wrong[row], tones[row] = float(hint != CLEAN), 1.0
        return wrong, tones

    def prefiltered(self, x: Tensor, hints: Hints | None = None, strength: float = 1.0) -> Tensor:
        """What is coded: X (N, 3, H, W) or (3, H, W) itself, or X_r, X as the prefilter restores it, in [0, 1].

        A batch, as in training, stays as it is computed, with its gradient. A single image is one to be coded: it is
        rounded to 8 bits, as X was, whether or not under autocast, grey if X was, and departs from X as in `enhance`.

        Args:
            hints, strength: as in `enhance`.

        Raises:
            PictureError: X is no such picture, or what is made of it is not finite.
        """
        x = as_pictures(x, 3 if x.ndim == 3 else 4)
        if self.prefilter is None:
            return x
        if x.ndim == 3:
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
                return quantize8(self._carefully(self.prefilter, x[None], None, hints, strength)[0])
        restored = self._restore(self.prefilter, x, None, hints).float()
        return check_finite(restored, "the prefiltered picture").clamp(0, 1)

    @torch.no_grad()
    def compress(self, x: Tensor, level: float, effort: int = 0) -> bytes:
        """X (3, H, W) in [0, 1], one picture, to the bytes of a `.llicm` file: the same under autocast.

        Args:
            effort: gradient steps on the latent of this picture (see `llicm.codec.effort`), up to 10,000; 0 for none.

        Raises:
            PictureError: X is no such picture. ValueError: it is too large, or level or effort is no such number.
        """
        return self.encode(self.prefiltered(as_pictures(x, 3)), level, effort)

    def encode(self, prefiltered: Tensor, level: float, effort: int = 0) -> bytes:
        """As `compress`, of what `prefiltered` gave.

        A system with one restorer for both places restores once: its file tells the decoder so.
        """
        data = self.codec.compress(prefiltered, level, effort)
        return mark_restored(data) if self.prefilter is not None and self.prefilter is self.restorer else data

    @coding
    def decompress(self, data: bytes, task: str | None = None, strength: float = 1.0) -> tuple[Tensor, Tensor]:
        """Bytes of a `.llicm` file to X̂ and X̂_H, each (3, H, W) in [0, 1]; the same if it was restored before.

        Args:
            task: the degradation in words, e.g. "rainy" or "low-light, noisy", in place of the detected one; "clean"
                leaves X̂ as it is.
            strength: as in `enhance`.

        Raises:
            BitstreamError: see `llicm.codec.bitstream.unpack`.
        """
        decoded, level = self.codec.decompress(data)
        if unpack(data).restored:
            return decoded, decoded
        enhanced = self.enhance(decoded[None], self.codec.relative_level(torch.tensor([level])), [task], strength)
        return decoded, enhanced[0].clamp(0, 1)

    def _carefully(
        self, restorer: Any, image: Tensor, level: Tensor | None, hints: Hints | None, strength: float
    ) -> Tensor:  # fmt: skip
        """Pictures (N, 3, H, W) restored as far as it is sure that they need it; `share` (N,) says how far that was.

        Where restoring changes the tones, it must be sure that these are wrong: the worst that it can do to a picture
        is to clear a mist that is meant, or to light a night.
        """
        if restorer is None:
            self.share = None
            return image
        image = image.to(next(restorer.parameters(), image).device)
        level = None if level is None else level.to(image.device)
        context = self._context(image, hints)
        share, tones = image.new_full((len(image),), strength), image.new_ones(len(image))
        if isinstance(self.conditioner, Conditioner) and context is not None:
            wrong, tones = self.sureness(image, context, hints)
            share = share * wrong
        self.share = share
        if not share.any():
            return image
        restored = check_finite(restorer(image, level, context), "the restored picture")
        shift = _between((restored.mean((2, 3)) - image.mean((2, 3))).abs().amax(1), *TONE)
        self.share = share = share * (1 - shift * (1 - tones))
        if (share < 1).any():
            restored = torch.lerp(image, restored, share.view(-1, 1, 1, 1))
        return keep_grey(restored, image)

    def _restore(self, restorer: Any, image: Tensor, level: Tensor | None, hints: Hints | None) -> Tensor:
        return image if restorer is None else restorer(image, level, self._context(image, hints))

    def _context(self, image: Tensor, hints: Hints | None) -> Context | None:
        return None if self.conditioner is None else self.conditioner(image.detach(), hints)


def _between(value: Tensor, low: float, high: float) -> Tensor:
    """0 up to `low`, 1 from `high` on, and smoothly more between them."""
    share = ((value - low) / (high - low)).clamp(0, 1)
    return share.square() * (3 - 2 * share)
