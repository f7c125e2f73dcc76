# SPDX-License-Identifier: Apache-2.0
"""LL-ICM in one class: the paper's Figure 3.

    X ──codec──► bitstream ──► X̂ ──► CLIP / DA-CLIP ──► context ─┐
                               └───────► restorer ◄──────────────┘ ──► X̂_H

The codec compresses the degraded image X; the restorer turns the decoded X̂ into the enhanced X̂_H. The codec's
level is known to the decoder (it is in the bitstream), so the restorer is told of it. Either part may be absent:
a codec alone gives X̂ = X̂_H, a restorer alone works on X itself. The guide is the vision-language model; it sees what
the decoder has, so that nothing is sent for it, and no gradient passes through it.

Beyond the paper the encoder may have a restorer of its own, the *prefilter*: the codec is then given X as that restores
it, spends nothing on what would be thrown away, and the restorer behind it mends what both have done.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor

from llicm.codec.mean_scale import make_codec
from llicm.errors import UserError
from llicm.files import write_atomically
from llicm.images import quantize8
from llicm.weights import pack, unpack
from llicm.registry import make_restorer
from llicm.vlm.context import Context
from llicm.vlm.conditioner import Conditioner, Oracle

__all__ = ["LLICM", "Output", "load_part", "make_part", "save_part"]


@dataclass
class Output:
    """What one pass gives: `decoded` X̂ and `enhanced` X̂_H (N, 3, H, W), `likelihoods` of the latents (may be {}), and
    `diffusion` (N,), a diffusion restorer's own loss; None without one."""

    decoded: Tensor
    enhanced: Tensor
    likelihoods: dict[str, Tensor]
    diffusion: Tensor | None = None


class _Fork(torch.autograd.Function):
    """X̂ for the distortion D and X̂ for the restorer: on the way back P pulls no sample over `most` times as strongly.

    `weight` (N,) is what a sample's P counts for the codec; the restorer, behind the fork, counts all levels the same.
    The restorer of a hazy or dark image amplifies, and its error is mostly none that better coding could mend; left
    alone such samples pull the codec ten times as strongly as a noisy one (measured), and all share its weights.
    The restorer's own gradient is left whole. With D absent (alpha = 0) nothing is limited. Compare the adaptive
    weight of Esser et al., "Taming transformers for high-resolution image synthesis", CVPR 2021.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, most: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(weight)
        ctx.most = most
        return x.view_as(x), x.view_as(x)

    @staticmethod
    def backward(ctx, distortion: Tensor, perception: Tensor) -> tuple[Tensor, None, None]:
        perception = ctx.saved_tensors[0].view(-1, 1, 1, 1) * perception
        limit, size = (g.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for g in (distortion, perception))
        share = torch.where(limit > 0, (ctx.most * limit / size.clamp_min(1e-30)).clamp(max=1), 1.0)
        return distortion + share * perception, None, None


class LLICM(nn.Module):
    """Codec and restorer as one system.

    Args:
        codec: a learned codec, or None: X̂ = X.
        restorer: a restorer, or None: X̂_H = X̂.
        guide: what steers the restorers (see `llicm.vlm.conditioner`), or None. It is not a part that is trained or saved.
        prefilter: a restorer that X goes through before it is coded, frozen; or None.
    """

    def __init__(
        self, codec: nn.Module | None, restorer: nn.Module | None, conditioner: Conditioner | Oracle | None = None,
        prefilter: nn.Module | None = None,
    ):  # fmt: skip
        super().__init__()
        self.codec, self.restorer = codec, restorer
        # How much more strongly P may pull at X̂ than D does: the ratio of their weights, if both were of one size.
        self.most = 1.0
        self._frozen = (conditioner, prefilter)  # in a tuple, so that they are none of this module's parts

    @property
    def conditioner(self) -> Conditioner | Oracle | None:
        return self._frozen[0]

    @property
    def prefilter(self) -> nn.Module | None:
        return self._frozen[1]

    @torch.no_grad()
    def prepare(self, x: Tensor) -> Tensor:
        """What is coded: X (N, 3, H, W) itself, or X as the prefilter restores it, in [0, 1]."""
        if self.prefilter is None:
            return x
        return LLICM(None, self.prefilter, self.conditioner).enhance(x).float().clamp(0, 1)

    def forward(
        self, x: Tensor, level: Tensor | None = None, hints: Sequence[str | None] | None = None,
        ideal: Tensor | None = None, diffusion: str | None = None,
    ) -> Output:  # fmt: skip
        """Differentiable pass for training.

        A diffusion restorer is not sampled from: its X̂_H is what it sees in one noisy state between X_ideal and X̂, at
        a time and with noise drawn from torch's global generator.

        Args:
            x: X (N, 3, H, W) in [0, 1], prepared (see `prepare`).
            level: (N,), of the codec; without one the relative level at which x was coded before, or None.
            told: for each image the degradation in words, or None to have it detected.
            ideal: X_ideal (N, 3, H, W), that a diffusion restorer learns from; without it, it is sampled from.
            diffusion: name of the diffusion restorer's own loss (see `llicm.restore.irsde`); None for its usual one.

        Returns:
            X̂, X̂_H, the likelihoods of the latents, and the diffusion restorer's own loss.
        """
        decoded, seen, likelihoods, code = x, x, {}, level
        if self.codec is not None:
            coded = self.codec(x, level)
            decoded, likelihoods = coded["x_hat"], coded["likelihoods"]
            code = self.relative_level(level)
            lmbda = self.codec.lambdas(level)
            decoded, seen = _Fork.apply(decoded, (lmbda / lmbda.log().mean().exp()).sqrt(), self.most)
        if ideal is None or not hasattr(self.restorer, "training_loss"):
            return Output(decoded, self.enhance(seen, code, hints), likelihoods)
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, (1,))))
        loss, enhanced = self.restorer.training_loss(
            ideal, seen, code, self._context(seen, hints), generator, diffusion or self.restorer.predicts
        )
        return Output(decoded, enhanced, likelihoods, loss)

    def enhance(self, decoded: Tensor, code: Tensor | None = None, hints: Sequence[str | None] | None = None) -> Tensor:
        """X̂ (N, 3, H, W) to X̂_H.

        Args:
            code: (N,) the relative level in [0, 1]; None if never compressed.
            told: for each image the degradation in words, or None to have it detected; None for all detected.
        """
        if self.restorer is None:
            return decoded
        return self.restorer(decoded, code, self._context(decoded, hints))

    def _context(self, decoded: Tensor, hints: Sequence[str | None] | None) -> Context | None:
        return None if self.conditioner is None else self.conditioner(decoded.detach(), hints)

    def relative_level(self, level: Tensor) -> Tensor:
        """Level on a scale from 0 (lowest rate) to 1 (highest)."""
        return self.codec.relative_level(level)

    def compress(self, x: Tensor, level: float) -> bytes:
        """X (3, H, W) in [0, 1] to the bytes of a `.llicm` file."""
        if self.prefilter is not None:
            x = quantize8(self.prepare(x[None])[0])  # a picture of 8 bits, as X was
        return self.codec.encode(x, level)

    @torch.no_grad()
    def decompress(self, data: bytes, task: str | None = None) -> tuple[Tensor, Tensor]:
        """Bytes of a `.llicm` file to X̂ and X̂_H, each (3, H, W) in [0, 1].

        Args:
            task: the degradation in words, e.g. "rainy" or "low-light, noisy", in place of the detected one.

        Raises:
            BitstreamError: see `llicm.codec.bitstream.unpack`.
        """
        decoded, level = self.codec.decode(data)
        enhanced = self.enhance(decoded[None], self.relative_level(torch.tensor([level])), [task])
        return decoded, enhanced[0].clamp(0, 1)


_MAKERS = {"codec": make_codec, "restorer": make_restorer, "prefilter": make_restorer}


def save_part(module: nn.Module, path: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write a codec or restorer as safetensors with its configuration, atomically and with stable bytes.

    Trained parameters are rounded (see `llicm.weights`): the weights that the study measures are then just those that
    it hands out.

    Args:
        weights: a state dict to write in place of the module's own.
    """
    from safetensors.torch import save

    state = {name: value.detach().cpu().contiguous() for name, value in pack(module, weights).items()}
    write_atomically(path, save(state, metadata={"config": json.dumps(module.config, sort_keys=True)}))


def load_part(kind: str, path: Path) -> nn.Module:
    """Read a `codec`, `restorer` or `prefilter` written by `save_part`, in eval mode.

    Raises:
        UserError: the file is missing, is not safetensors, or lacks the configuration.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such weights; run `dvc repro` (or `dvc pull`) to make them")
    try:
        with safe_open(path, "pt") as file:
            config = json.loads((file.metadata() or {})["config"])
            state = unpack({name: file.get_tensor(name) for name in file.keys()})
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(
            f"{path}: not a weight file of this project ({error}); make it again with `dvc repro`"
        ) from None
    return make_part(kind, config, state)


def make_part(kind: str, config: dict, state: dict[str, Tensor]) -> nn.Module:
    """Build a `codec`, `restorer` or `prefilter` from its configuration and its state dict, in eval mode."""
    module = _MAKERS[kind](**config)
    module.load_state_dict(state)
    # the layout in which convolutions of whole pictures are fastest, by a third for the one-pass restorer
    return module.to(memory_format=torch.channels_last).eval()
