# SPDX-License-Identifier: Apache-2.0
"""What DA-CLIP's controller is trained with: content and degradation, each matched to its text.

Source: symmetric InfoNCE, Radford et al., ICML 2021, figure 3; its two uses, Luo et al., ICLR 2024, section 3.2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["contrastive_loss", "daclip_losses", "text_labels"]


def text_labels(tokens: Tensor) -> Tensor:
    """Tokens (N, L) to labels (N,), int64: equal texts, equal labels. For the `labels` of `daclip_losses`."""
    return torch.unique(tokens, dim=0, return_inverse=True)[1]


def contrastive_loss(first: Tensor, second: Tensor, scale: Tensor | float, labels: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE of N pairs: the mean of both directions' cross-entropy over the logits scale · first second^T.

    Without labels the target of row i is column i, as in CLIP. With labels every column of the same label is a target,
    all with the same weight (as in Khosla et al., "Supervised contrastive learning", NeurIPS 2020, L_out), and the
    target's own entropy is subtracted: the loss is a Kullback-Leibler divergence, 0 for a perfect match. CLIP's target
    has a floor where texts repeat, the mean of ln(number of equal texts), which is 5 to 6.5 nats for ten words in
    DA-CLIP's batches. Where equal labels mean equal embeddings on one side, as with frozen texts, the two losses
    differ by exactly that constant: the labels make the value readable and leave the gradient as it is.

    Args:
        first, second: (N, C), rows of length 1; row i of one belongs to row i of the other.
        scale: factor of the logits, > 0.
        labels: (N,) integers, or None.

    Returns:
        The loss in nats, a scalar >= 0.
    """
    logits = scale * first @ second.T
    floor: Tensor | float
    if labels is None:
        target, floor = torch.arange(len(logits), device=logits.device), 0.0
    else:
        same = (labels[:, None] == labels[None, :]).to(logits.dtype)
        count = same.sum(1)
        target, floor = same / count[:, None], count.log().mean()
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2 - floor


def daclip_losses(features: dict[str, Tensor], labels: Tensor | None = None) -> dict[str, Tensor]:
    """DA-CLIP's two losses; training minimises their sum.

    Args:
        features: what `DACLIP.forward` returns for images and texts.
        labels: (N,) the degradation of each sample (see `text_labels`): the multi-positive target. None for the
            published loss, where a sample's only target is its own copy of the word.

    Returns:
        `content` and `degradation`, scalars in nats (see `contrastive_loss`).
    """
    scale = features["logit_scale"]
    return {
        "content": contrastive_loss(features["image_features"], features["text_features"], scale),
        "degradation": contrastive_loss(
            features["image_degra_features"], features["text_degra_features"], scale, labels
        ),
    }
