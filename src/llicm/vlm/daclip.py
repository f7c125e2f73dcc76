# SPDX-License-Identifier: Apache-2.0
"""DA-CLIP: a frozen CLIP, and a controller beside its vision tower that recognises the degradation.

    image ──► controller (a trainable copy of the vision tower) ──────────────────► degradation embedding
      │          │ after block i: h_i = Z_i c_i + b_i, at first zero
      │          ▼
      └─────► CLIP's vision tower, x <- block_j(x) + h_(L-1-j) ───────────────────► content embedding

The hiddens enter in reversed order, as the skips of a U-Net do; they do not feed back into the controller. An
untrained DA-CLIP is CLIP: both embeddings equal CLIP's. (The published code copies the weights with an offset, which
leaves the first zero module at CLIP's ln_post and the controller's ln_post uncopied; here both are as in the paper.)

Source: Luo et al., "Controlling vision-language models for multi-task image restoration", ICLR 2024, section 3.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from llicm.errors import UserError
from llicm.vlm.clip import make_clip

if TYPE_CHECKING:
    import open_clip
    from open_clip.transformer import VisionTransformer

__all__ = ["DACLIP", "Controller", "make_daclip"]

MAX_LOGIT_SCALE = 4.605170185988092  # ln 100


@contextmanager
def _after_blocks(tower: "VisionTransformer", function: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
    """Meanwhile, call `function(index, output)` after each block; what it returns, unless None, replaces the output.

    Hooks, because a block's output is all that DA-CLIP needs: stem, pooling and projection stay open_clip's own,
    whatever the configuration. They last for one pass only, so that the tower alone stays plain CLIP.
    """
    handles = [
        block.register_forward_hook(lambda module, args, output, index=index: function(index, output))
        for index, block in enumerate(tower.transformer.resblocks)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _embed(tower: "VisionTransformer", image: Tensor) -> Tensor:
    """The tower's embedding (N, embed_dim); towers made with `output_tokens` return tokens as well."""
    output = tower(image)
    return output[0] if isinstance(output, tuple) else output


class Controller(nn.Module):
    """A copy of the whole vision tower, projection included, and one zero-initialised Linear ("zero module") per block.

    Args:
        visual: CLIP's vision tower; it is copied as it is now.
    """

    def __init__(self, visual: "VisionTransformer"):
        super().__init__()
        self.tower = copy.deepcopy(visual)
        width = visual.transformer.width
        self.zero = nn.ModuleList(nn.Linear(width, width) for _ in visual.transformer.resblocks)
        for parameter in self.zero.parameters():
            nn.init.zeros_(parameter)

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Preprocessed images (N, 3, S, S) to the degradation embedding (N, embed_dim), not normalised, and the
        hiddens h_0 ... h_(L-1), each (N, tokens, width), in the order of the blocks that they come from."""
        outputs = []
        with _after_blocks(self.tower, lambda index, output: outputs.append(output)):
            embedding = _embed(self.tower, image)
        # After the pass, not in the hook: with gradient checkpointing a block runs again, without the hook.
        return embedding, [module(output) for module, output in zip(self.zero, outputs, strict=True)]


class DACLIP(nn.Module):
    """CLIP with the DA-CLIP controller. CLIP is frozen; the controller and `logit_scale` are trainable.

    Args:
        clip: an open_clip CLIP with its weights (see `make_clip`). It becomes part of this module and is frozen; the
            controller and `logit_scale` start as copies of its own.
        config: the configuration that built it.

    Raises:
        UserError: CLIP's vision tower is no VisionTransformer of open_clip.
    """

    def __init__(self, clip: "open_clip.CLIP", config: dict):
        from open_clip.transformer import VisionTransformer

        super().__init__()
        if not isinstance(clip.visual, VisionTransformer):
            raise UserError(f"DA-CLIP needs open_clip's VisionTransformer, not {type(clip.visual).__name__}")
        # Each tower would drop other patches, and the hiddens belong to the patches of the controller.
        clip.visual.patch_dropout = nn.Identity()
        self.clip_config = copy.deepcopy(config)
        self.clip = clip
        self.controller = Controller(clip.visual)
        self.logit_scale = nn.Parameter(clip.logit_scale.detach().clone())
        self.freeze()

    def freeze(self) -> None:
        """Freeze CLIP (both towers and its own logit_scale), make the controller and `logit_scale` trainable."""
        self.clip.requires_grad_(False)
        self.controller.requires_grad_(True)
        if self.clip_config["vision_cfg"].get("pos_embed_type") == "sin_cos_2d":
            self.controller.tower.positional_embedding.requires_grad_(False)  # a fixed table, not a weight
        self.logit_scale.requires_grad_(True)

    @property
    def config(self) -> dict:
        """Arguments that build this model again: `name` is "daclip", `clip` the open_clip configuration."""
        return {"name": "daclip", "clip": copy.deepcopy(self.clip_config)}

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the towers take: the `size` of `llicm.vlm.clip.preprocess`."""
        height, width = self.clip.visual.image_size
        return height, width

    def encode_image(
        self, image: Tensor, control: bool = False, normalize: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Embed images.

        Args:
            image: (N, 3, S, S), preprocessed (see `llicm.vlm.clip.preprocess`).
            control: False for CLIP's own embedding; True for DA-CLIP's two.
            normalize: whether the embeddings get length 1.

        Returns:
            (N, embed_dim), or with `control` the pair (content, degradation), each (N, embed_dim).
        """
        if control:
            degradation, hiddens = self.controller(image)
            with _after_blocks(self.clip.visual, lambda index, output: output + hiddens[-1 - index]):
                content = _embed(self.clip.visual, image)
            features = [content, degradation]
        else:
            features = [_embed(self.clip.visual, image)]
        if normalize:
            features = [F.normalize(feature, dim=-1) for feature in features]
        return (features[0], features[1]) if control else features[0]

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Embed tokens (N, context_length), int64, by CLIP's text tower: (N, embed_dim), of length 1 if asked."""
        features = self.clip.encode_text(text)
        return F.normalize(features, dim=-1) if normalize else features

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> dict[str, Tensor]:
        """What the losses need (see `llicm.vlm.losses.daclip_losses`).

        Args:
            image: (N, 3, S, S), preprocessed, or None.
            text: (N, 2 · context_length) tokens, the caption's and then the degradation's, or None.

        Returns:
            `image_features`, `image_degra_features` (if there is an image), `text_features`, `text_degra_features`
            (if there is a text), each (N, embed_dim) of length 1, and `logit_scale`, the factor of the logits.

        Raises:
            ValueError: the text has another length.
        """
        output = {}
        if image is not None:
            output["image_features"], output["image_degra_features"] = self.encode_image(image, True, True)
        if text is not None:
            length = self.clip.context_length
            if text.ndim != 2 or text.shape[1] != 2 * length:
                raise ValueError(f"text must be (N, {2 * length}): caption, then degradation; not {tuple(text.shape)}")
            both = self.encode_text(text.reshape(-1, length), normalize=True).unflatten(0, (-1, 2))
            output["text_features"], output["text_degra_features"] = both.unbind(1)
        output["logit_scale"] = self.logit_scale.exp()
        return output


def make_daclip(config: dict) -> DACLIP:
    """DA-CLIP on a CLIP of random weights, from an open_clip configuration (see `llicm.vlm.clip.model_config`).

    Raises:
        UserError: see `llicm.vlm.clip.make_clip`.
    """
    return DACLIP(make_clip(config), config)
