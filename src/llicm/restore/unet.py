# SPDX-License-Identifier: Apache-2.0
"""The conditional U-Net of the diffusion restorer, in the layout of the released weights.

    x_t - mu, mu ──7x7──► level 0 ──► level 1 ──► ... ──► middle ──► ... ──► level 0 ──► 3x3 ──► prediction
    t, degradation ──────────scale and shift of every block──────────►
    content ─────────────────one token for the attention of the last level and the middle

Each level has two residual blocks without normalisation and an attention: linear attention in the upper levels, in the
lowest and the middle a transformer block. Two things are here computed differently from the published code, with the
same result. The content enters as a single token, so the softmax of the cross-attention is over one key and always 1:
it adds the vector W_o W_v content + b_o to every position, which `prepare` computes once for an image, not in every
step. Self-attention is fused, so that no matrix of positions by positions is ever in memory.

Names of parameters are the published ones (224 at four levels), so that `load_state_dict` takes released weights. Those
that never have an influence (queries, keys and norm of the cross-attention) are kept for that alone.

Source: Luo et al., "Controlling vision-language models for multi-task image restoration", ICLR 2024, section 4; linear
attention: Shen et al., "Efficient attention", WACV 2021; transformer block: Rombach et al., "High-resolution image
synthesis with latent diffusion models", CVPR 2022.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from llicm.errors import UserError
from llicm.vlm.context import Context

SCALINGS = ("published", "balanced")
HEAD = 32  # channels of an attention head


class Conditioning(NamedTuple):
    """What does not change from step to step, made by `ConditionalUNet.prepare`.

    `shift` (N, time_width) is added to the embedding of the time, or None; `tokens` holds the constant of each
    cross-attention, (N, channels), or is empty without content.
    """

    shift: Tensor | None
    tokens: tuple[Tensor, ...]

    def rows(self, index: slice) -> "Conditioning":
        """That of some images of the batch."""
        return Conditioning(None if self.shift is None else self.shift[index], tuple(v[index] for v in self.tokens))


def _named(**modules: nn.Module) -> nn.Sequential:
    """Modules in a row, under names that released weights have."""
    return nn.Sequential(OrderedDict(modules))


class Gain(nn.Module):
    """Normalisation over the channels of each pixel, with a gain and no offset.

    Always in float32 (or wider), with an eps of 1e-5. The published code raises eps to 1e-3 for any other type than
    float32, against rounding in half precision; its weights were trained with 1e-5, and float32 needs no other.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        # Channels last, where the normalisation is one pass over memory.
        y = F.layer_norm(wide.permute(0, 2, 3, 1), (x.shape[1],), self.g.flatten().to(wide.dtype), None, 1e-5)
        return y.to(x.dtype).permute(0, 3, 1, 2)


class Sinusoid(nn.Module):
    """Times (N,) to (N, width): sines, then cosines, at frequencies from 1 down to 1/10000."""

    def __init__(self, width: int):
        super().__init__()
        self.count = width // 2

    def forward(self, t: Tensor) -> Tensor:
        k = torch.arange(self.count, device=t.device, dtype=t.dtype)
        angle = t[:, None] * torch.exp(-k * (math.log(10000) / (self.count - 1)))
        return torch.cat([angle.sin(), angle.cos()], 1)


class ResBlock(nn.Module):
    """3x3, scale and shift by the condition, SiLU, 3x3, SiLU, around a skip."""

    def __init__(self, inputs: int, outputs: int, condition: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(condition, 2 * outputs))
        self.block1, self.block2 = (
            _named(proj=nn.Conv2d(channels, outputs, 3, padding=1, bias=False)) for channels in (inputs, outputs)
        )
        self.res_conv = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.mlp(condition)[..., None, None].chunk(2, 1)
        h = F.silu(self.block1(x) * (scale + 1) + shift)
        return F.silu(self.block2(h)) + self.res_conv(x)


class LinearAttention(nn.Module):
    """Attention whose cost grows with the number of positions, not with its square.

    Queries are normalised over channels, keys over positions; so keys and values reduce to one 32 x 32 matrix a head.
    The published code divides it by the number of positions once more, though the keys' softmax has already made it a
    mean: with 10^4 positions hardly anything but the bias of the output is left. `divided` says whether to follow.
    """

    def __init__(self, channels: int, heads: int, divided: bool):
        super().__init__()
        self.heads, self.divided = heads, divided
        self.to_qkv = nn.Conv2d(channels, 3 * heads * HEAD, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(heads * HEAD, channels, 1), Gain(channels))

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        q, k, v = self.to_qkv(x).reshape(n, 3, self.heads, HEAD, h * w).unbind(1)
        with torch.autocast(x.device.type, enabled=False):  # each of many keys is small
            wide = torch.float64 if k.dtype == torch.float64 else torch.float32
            context = k.softmax(3, dtype=wide) @ v.to(wide).transpose(2, 3)
            context = context * HEAD**-0.5 / (h * w if self.divided else 1)
        q = q.softmax(2, dtype=wide).to(v.dtype)
        del k, v
        out = context.to(q.dtype).transpose(2, 3) @ q
        return self.to_out(out.reshape(n, -1, h, w).contiguous(memory_format=_format(x)))


def _format(x: Tensor) -> torch.memory_format:
    """The layout in memory that x has, for what is computed from it."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


class Attention(nn.Module):
    """Projections of a multi-head attention from `width` channels to those of `source`."""

    def __init__(self, width: int, source: int):
        super().__init__()
        # As many heads of 32 channels as fit; with an odd width as many as divide it.
        self.heads = next(heads for heads in range(max(width // HEAD, 1), 0, -1) if width % heads == 0)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(source, width, bias=False)
        self.to_v = nn.Linear(source, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Self-attention among positions (N, L, width)."""
        n, length, width = x.shape
        q, k, v = (f(x).view(n, length, self.heads, -1).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(out.transpose(1, 2).reshape(n, length, width))

    def constant(self, token: Tensor) -> Tensor:
        """Attention to a single token (N, source), which is the same for every query: (N, width)."""
        return self.to_out(self.to_v(token))


class _GEGLU(nn.Module):
    """A linear layer whose outputs are gated by as many others: Shazeer, "GLU variants improve transformer", 2020."""

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.proj = nn.Linear(width, 2 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, -1)
        return x * F.gelu(gate)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to one token (if there is content), feed-forward; each on a normalised input."""

    def __init__(self, width: int, content: int):
        super().__init__()
        self.attn1 = Attention(width, width)
        # The identity stands where the published layout has dropout, of rate 0.
        self.ff = _named(net=nn.Sequential(_GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)))
        self.attn2 = Attention(width, content) if content else None
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width) if content else None
        self.norm3 = nn.LayerNorm(width)

    def forward(self, x: Tensor, token: Tensor | None) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        if token is not None:
            x = x + token[:, None].to(x.dtype)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer block over the positions of (N, channels, h, w), around a skip; at first the identity."""

    def __init__(self, channels: int, content: int):
        super().__init__()
        self.norm = nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, content)])
        self.proj_out = nn.Conv2d(channels, channels, 1)
        for parameter in self.proj_out.parameters():
            nn.init.zeros_(parameter)

    def token(self, content: Tensor) -> Tensor:
        """What the content embedding (N, content) adds to every position, (N, channels)."""
        block = cast(TransformerBlock, self.transformer_blocks[0])
        return cast(Attention, block.attn2).constant(content)

    def forward(self, x: Tensor, token: Tensor | None) -> Tensor:
        n, c, h, w = x.shape
        y = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        y = self.transformer_blocks[0](y, token)
        return x + self.proj_out(y.transpose(1, 2).reshape(n, c, h, w).contiguous(memory_format=_format(x)))


class Attended(nn.Module):
    """x + F(normalised x), the wrapper around every attention; without F the identity."""

    def __init__(self, function: nn.Module, channels: int):
        super().__init__()
        self.fn = nn.ModuleDict({"fn": function, "norm": Gain(channels)})

    def forward(self, x: Tensor, *token: Tensor | None) -> Tensor:
        return x + self.fn["fn"](self.fn["norm"](x), *token)


def _levels(levels: nn.ModuleList) -> list[nn.ModuleList]:
    """Each level's two residual blocks, attention, and way to the next level."""
    return [cast(nn.ModuleList, level) for level in levels]


class ConditionalUNet(nn.Module):
    """Predicts what a diffusion restorer needs from a noisy image, the degraded image, the time and the context.

    Args:
        nf: channels at level 0, even, at least 4.
        ch_mult: channels behind each level, in units of nf; one level each. The first level's input has nf channels.
        degradation: length of the degradation embedding, 0 to build without (as the released "wild" variant is).
        content: length of the content embedding, 0 to build without: the transformer blocks then have self-attention
            alone, and no parameters of a cross-attention.
        half: whether the levels begin at half resolution, with a strided 4x4 after the first convolution and a
            doubling before the last block, as in the "wild" variant (its multiplications at 256 x 256, 43.1 G for one
            step, show that the skip from the first convolution to the last block stays at full resolution).
        heads: heads, of 32 channels, of the linear attention; 0 to leave it out, which at small nf saves most of the
            time of the upper levels.
        scaling: "published" as released weights need it. "balanced" for training anew, in few updates: the matrix of
            the linear attention is not divided by the number of positions, and the gate that the degradation prompt
            passes (a softmax over `time_width` numbers) is multiplied by their number. Otherwise both start with an
            influence of 10^-3 and less, and get gradients accordingly. Parameters are the same.

    Raises:
        UserError: a number is out of its range, or there is no such scaling.
    """

    def __init__(
        self, nf: int = 64, ch_mult: Sequence[int] = (1, 2, 4, 8), degradation: int = 512, content: int = 512,
        half: bool = False, heads: int = 4, scaling: str = "published",
    ):  # fmt: skip
        super().__init__()
        if nf < 4 or nf % 2 or not ch_mult or min(ch_mult) < 1 or heads < 0:
            raise UserError(
                f"params.yaml: restorer: nf {nf} must be even and at least 4, ch_mult {list(ch_mult)} positive, "
                f"heads {heads} not negative"
            )
        if scaling not in SCALINGS:
            raise UserError(f"params.yaml: restorer.scaling '{scaling}' is unknown; choose {', '.join(SCALINGS)}")
        self.config: dict[str, Any] = {
            "nf": nf, "ch_mult": list(ch_mult), "degradation": degradation, "content": content, "half": half,
            "heads": heads, "scaling": scaling,
        }  # fmt: skip
        self.depth, self.balanced = len(ch_mult), scaling == "balanced"
        self.time_width = wide = 4 * nf
        if degradation:
            self.prompt = nn.Parameter(torch.rand(1, wide))
        self.init_conv = nn.Conv2d(6, nf, 7, padding=3, bias=False)
        self.init_down = nn.Conv2d(nf, nf, 4, stride=2, padding=1) if half else None
        self.time_mlp = nn.Sequential(Sinusoid(nf), nn.Linear(nf, wide), nn.GELU(), nn.Linear(wide, wide))
        if degradation:
            self.text_mlp = nn.Sequential(nn.Linear(degradation, wide), nn.SiLU(), nn.Linear(wide, wide))
            self.prompt_mlp = nn.Linear(wide, wide)

        def attention(channels: int, lowest: bool) -> nn.Module:
            if lowest:
                return Attended(SpatialTransformer(channels, content), channels)
            return Attended(LinearAttention(channels, heads, not self.balanced), channels) if heads else nn.Identity()

        widths = [nf, *(nf * factor for factor in ch_mult)]
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for level, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            lowest = level == self.depth - 1
            down = nn.Conv2d(a, b, 3, padding=1, bias=False) if lowest else nn.Conv2d(a, b, 4, stride=2, padding=1)
            conv = nn.Conv2d(b, a, 3, padding=1, bias=level > 0)
            # The identity keeps the place of the doubling in the published layout.
            up = nn.Sequential(nn.Identity(), conv) if level else conv
            blocks = [ResBlock(a, a, wide), ResBlock(a, a, wide)]
            self.downs.append(nn.ModuleList([*blocks, attention(a, lowest), down]))
            blocks = [ResBlock(a + b, b, wide), ResBlock(a + b, b, wide)]
            self.ups.insert(0, nn.ModuleList([*blocks, attention(b, lowest), up]))
        self.mid_block1 = ResBlock(b, b, wide)
        self.mid_attn = attention(b, True)
        self.mid_block2 = ResBlock(b, b, wide)
        self.final_up = nn.Conv2d(nf, nf, 3, padding=1) if half else None
        self.final_res_block = ResBlock(2 * nf, nf, wide)
        self.final_conv = nn.Conv2d(nf, 3, 3, padding=1)

    @property
    def stride(self) -> int:
        """Images are padded inside to a multiple of it."""
        return 2**self.depth

    @property
    def bytes_per_pixel(self) -> int:
        """Memory that one call takes for a pixel of one image, without gradients, in float32: an estimate from above.

        The widest place counts: the residual blocks (13 tensors of their width with the skips and what the convolution
        library keeps), linear attention (queries, keys, values and their normalised copies), the transformer's
        feed-forward, or at half resolution the last block. Measured on a CPU: 694 of 736 bytes for nf 16 with one head
        at half resolution, 943 of 992 (no heads) and 2988 of 3488 (four) at full, 4052 of 4448 for nf 64 with four.
        """
        nf, heads, factors = self.config["nf"], self.config["heads"], [1, *self.config["ch_mult"]]
        widths = [nf * max(pair) for pair in zip(factors[:-1], factors[1:], strict=True)]
        levels = [max(13 * w, 4 * w + 192 * heads) / 4**level for level, w in enumerate(widths)]
        levels.append(26 * widths[-1] / 4 ** (self.depth - 1))
        inside = nf + max(levels) / (4 if self.config["half"] else 1)
        return math.ceil(4 * (24 + max(inside, 10 * nf)))

    def _transformers(self) -> list[SpatialTransformer]:
        """Those that the content enters, in the order in which they are passed."""
        attended = (_levels(self.downs)[-1][2], self.mid_attn, _levels(self.ups)[0][2])
        return [cast(SpatialTransformer, cast(Attended, module).fn["fn"]) for module in attended]

    def prepare(self, context: Context | None) -> Conditioning:
        """What the embeddings contribute to every step, to be computed once for an image.

        Args:
            context: embeddings as they come, (N, length) each. Without `degradation` the prompt contributes nothing;
                an embedding that the network was built without is ignored.

        Raises:
            ValueError: the network was built with content and there is none. (Zeros are no substitute: it has never
                seen an image without content.)
        """
        context = Context() if context is None else context
        shift: Tensor | None = None
        tokens: tuple[Tensor, ...] = ()
        # In float32: it is next to no work, and every block listens to it.
        with torch.autocast(self.init_conv.weight.device.type, enabled=False):
            if self.config["degradation"] and context.degradation is not None:
                gate = self.text_mlp(context.degradation.to(self.prompt)).softmax(1)
                shift = self.prompt_mlp(gate * self.prompt * (self.time_width if self.balanced else 1))
            if self.config["content"]:
                if context.content is None:
                    raise ValueError("this restorer was built with a content embedding and must be given one")
                content = context.content.to(self.init_conv.weight)
                tokens = tuple(transformer.token(content) for transformer in self._transformers())
        return Conditioning(shift, tokens)

    def pad(self, x: Tensor) -> Tensor:
        """To the right and below, to a multiple of `stride`: by reflection as far as the image reaches (it gives
        height - 1 rows), the rest, of images smaller than the padding, by repetition."""
        height, width = x.shape[-2:]
        down, right = -height % self.stride, -width % self.stride
        if down or right:
            below, beside = min(down, height - 1), min(right, width - 1)
            x = F.pad(x, (0, beside, 0, below), mode="reflect")
            if (below, beside) != (down, right):
                x = F.pad(x, (0, right - beside, 0, down - below), mode="replicate")
        return x

    def condition(self, t: Tensor | int | float, conditioning: Conditioning, n: int) -> Tensor:
        """What scales and shifts every block, (n, time_width): the time, the degradation, the level."""
        weight = self.init_conv.weight
        with torch.autocast(weight.device.type, enabled=False):  # sin(100) needs more digits than bfloat16's
            time = torch.as_tensor(t, device=weight.device).to(weight.dtype).flatten().expand(n)
            condition = self.time_mlp(time)
            return condition if conditioning.shift is None else condition + conditioning.shift

    def forward(self, x: Tensor, mu: Tensor, t: Tensor | int | float, conditioning: Conditioning) -> Tensor:
        """One call of the network.

        Args:
            x: (N, 3, H, W), the noisy image x_t, any size.
            mu: (N, 3, H, W), the degraded image.
            t: the time, one number or (N,).
            conditioning: from `prepare`.

        Returns:
            (N, 3, H, W).
        """
        height, width = x.shape[-2:]
        token_down, token_mid, token_up = conditioning.tokens or (None,) * 3
        condition = self.condition(t, conditioning, len(x))
        first = self.init_conv(self.pad(torch.cat([x - mu, mu], 1)))
        h = first if self.init_down is None else self.init_down(first)
        skips = []
        for level, (block1, block2, attend, down) in enumerate(_levels(self.downs)):
            h = block1(h, condition)
            skips.append(h)
            h = block2(h, condition)
            h = attend(h, token_down) if level == self.depth - 1 else attend(h)
            skips.append(h)
            h = down(h)
        h = self.mid_block1(h, condition)
        h = self.mid_attn(h, token_mid)
        h = self.mid_block2(h, condition)
        for index, (block1, block2, attend, up) in enumerate(_levels(self.ups)):
            h = block1(torch.cat([h, skips.pop()], 1), condition)
            h = block2(torch.cat([h, skips.pop()], 1), condition)
            h = attend(h, token_up) if index == 0 else attend(h)
            if index < self.depth - 1:
                h = F.interpolate(h, scale_factor=2, mode="nearest")
            h = up(h)
        if self.final_up is not None:
            h = self.final_up(F.interpolate(h, scale_factor=2, mode="nearest"))
        h = self.final_res_block(torch.cat([h, first], 1), condition)
        return self.final_conv(h)[..., :height, :width]
