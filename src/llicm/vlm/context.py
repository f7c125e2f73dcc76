# SPDX-License-Identifier: Apache-2.0
"""What a vision-language model tells a restorer: the one interface between the two."""

from typing import NamedTuple

from torch import Tensor

__all__ = ["Context", "embedding_lengths"]


class Context(NamedTuple):
    """Embeddings of a batch of decoded images, each (N, C) or None if the restorer is to do without.

    `degradation` says what is wrong with an image and modulates the restorer; `content` says what it shows and
    conditions it. Both are as the model gives them, not of length 1 (DA-CLIP feeds them so to its restorer); a
    restorer that wants another scale normalises for itself. Instead of the controller's embedding of the image,
    `degradation` may be the text tower's of a word.
    """

    degradation: Tensor | None = None
    content: Tensor | None = None


def embedding_lengths(context: dict | None) -> dict[str, int]:
    """Length of each embedding of `Context`, 0 for one that a restorer does without.

    Args:
        context: what steers the restorer, as its configuration has it: {"degradation": D, "content": C} for a
            vision-language model, {"words": [...]} for an oracle that names the degradation among these words, None
            for nothing.
    """
    lengths = context or {}
    if "words" in lengths:
        lengths = {"degradation": len(lengths["words"])}
    return {name: lengths.get(name) or 0 for name in Context._fields}
