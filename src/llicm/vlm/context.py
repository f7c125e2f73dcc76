# SPDX-License-Identifier: Apache-2.0
"""What a vision-language model tells a restorer: the one interface between the two."""

from typing import NamedTuple

from torch import Tensor

__all__ = ["Context"]


class Context(NamedTuple):
    """Embeddings of a batch of decoded images, each (N, C) or None if the restorer is to do without.

    `degradation` says what is wrong with an image and modulates the restorer; `content` says what it shows and
    conditions it. Both are as the model gives them, not of length 1 (DA-CLIP feeds them so to its restorer); a
    restorer that wants another scale normalises for itself. Instead of the controller's embedding of the image,
    `degradation` may be the text tower's of a word.
    """

    degradation: Tensor | None = None
    content: Tensor | None = None
