# SPDX-License-Identifier: Apache-2.0
"""Our codec in compressai's zoo, as the model `llicm`, for compressai's own tools; and its evaluation with it there:

    python -m llicm.zoo pretrained FOLDER -a llicm -q 1,2,3,4,5

takes the arguments of `python -m compressai.utils.eval_model`, which has no other way to learn of a model. Quality q is
level q - 1. Weights are those of `LLICM_MODEL`, or the published ones. The tool pads pictures with black to multiples
of 64 before any codec sees them: on other sizes files are larger than those of `llicm compress`.
"""

import os
import sys
from typing import Any

import torch
from torch import Tensor, nn

from llicm.errors import UserError, missing_package
from llicm.model import load_model

NAME = "llicm"


class ZooCodec(nn.Module):
    """A codec of ours at one level, called as compressai calls its models.

    Args:
        quality: 1 to the codec's number of levels.

    Raises:
        UserError: another quality, or see `llicm.model.load_model`.
    """

    def __init__(self, quality: int, **unused: Any):
        super().__init__()
        self.codec: Any = load_model(os.environ.get("LLICM_MODEL"), coding=True).codec
        if not 1 <= quality <= self.codec.levels:
            raise UserError(f"quality {quality}: this model has 1 to {self.codec.levels}")
        self.level = quality - 1

    def forward(self, x: Tensor) -> dict:
        """Pictures (N, 3, H, W) in [0, 1], sides multiples of 64, to `x_hat` like them and `likelihoods` by latent."""
        return self.codec(x, torch.full((len(x),), float(self.level)))

    def compress(self, x: Tensor) -> dict:
        """Pictures (N, 3, H, W) to `strings`, one list with the whole `.llicm` file of each, and their `shape`."""
        return {"strings": [[self.codec.compress(picture, self.level) for picture in x]], "shape": x.shape[2:]}

    def decompress(self, strings: list[list[bytes]], shape: tuple[int, int]) -> dict:
        """What `compress` gave to `x_hat` (N, 3, H, W) in [0, 1]."""
        return {"x_hat": torch.stack([self.codec.decompress(data)[0] for data in strings[0]])}


def register() -> None:
    """Add the model to compressai's zoo and to its registry of models."""
    from compressai.registry import register_model
    from compressai.zoo import image_models, models

    register_model(NAME)(ZooCodec)
    for zoo in (image_models, models):
        zoo[NAME] = ZooCodec


def main() -> None:
    try:
        register()
        from compressai.utils.eval_model.__main__ import main

        main(sys.argv[1:])
    except ModuleNotFoundError as error:
        raise SystemExit(f"error: {missing_package(error)}") from None
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
