# SPDX-License-Identifier: Apache-2.0
"""Training images through conventional codecs, for a restorer that is adapted to what those make of X."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from llicm.codec.conventional import find_codec
from llicm.errors import UserError

__all__ = ["Transcoder"]


class Transcoder:
    """Sends each image through a codec and a quality that it draws.

    Args:
        codecs: name -> (lowest, highest) quality.

    Raises:
        UserError: a codec is unknown, or missing here.
    """

    def __init__(self, codecs: Mapping[str, Sequence[int]]):
        self.codecs = [(find_codec(name), low, high) for name, (low, high) in codecs.items()]
        for codec, _, _ in self.codecs:
            if reason := codec.missing():
                raise UserError(f"params.yaml: a model is to learn from the codec {codec.name}. {reason}")

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """X (N, 3, H, W) in [0, 1] to X̂, and the relative qualities (N,) in [0, 1]; draws from torch's generator."""
        decoded, quality = torch.empty_like(x), torch.empty(len(x))
        choice, place = torch.randint(len(self.codecs), (len(x),)).tolist(), torch.rand(len(x)).tolist()

        def transcode(row: int) -> None:
            codec, low, high = self.codecs[choice[row]]
            level = min(low + int(place[row] * (high - low + 1)), high)
            decoded[row] = codec.decompress(codec.compress(x[row].cpu(), level))
            quality[row] = codec.relative_level(level)

        # The libraries behind the codecs compute in one thread each, without Python's lock.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(transcode, range(len(x))))
        return decoded, quality.to(x)
