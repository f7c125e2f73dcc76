# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from clone import Clone

from llicm.vlm.conditioner import Conditioner, save_conditioner
from llicm.vlm.daclip import make_daclip
from llicm.vlm.mini import mini_config


@pytest.fixture(scope="session")
def tiny_daclip():
    """An untrained DA-CLIP of 32 x 32 images and 16 numbers an embedding, whose two embeddings differ."""
    torch.manual_seed(0)
    model = make_daclip(
        mini_config(
            image_size=32, patch_size=8, width=32, layers=1, embed_dim=16, text_width=32, text_layers=1
        )
    )  # fmt: skip
    torch.nn.init.normal_(model.controller.zero[0].weight)
    return model.eval()


@pytest.fixture(scope="session")
def vlm_folder(tiny_daclip, tmp_path_factory):
    """What the stage `vlm` leaves, with `tiny_daclip` looking at windows."""
    folder = tmp_path_factory.mktemp("vlm")
    save_conditioner(Conditioner(tiny_daclip, "windows"), folder)
    return folder


@pytest.fixture(scope="session")
def small_clone(tmp_path_factory):
    """A copy of the repository in which the reduced smoke profile has run; some 2 minutes."""
    clone = Clone(tmp_path_factory.mktemp("small"), reduced=True)
    clone.make()
    return clone
