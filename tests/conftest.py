# SPDX-License-Identifier: Apache-2.0
"""What tests share. They run in two processes, each on one thread; a file of tests stays in one process.

The smoke profile runs once, whichever process needs it first; each file of tests that needs it works on a copy.
"""

import fcntl
import os
import shutil

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")  # before torch is imported

import pytest  # noqa: E402
import torch  # noqa: E402
from clone import Clone  # noqa: E402

from llicm.vlm.conditioner import Conditioner, save_conditioner  # noqa: E402
from llicm.vlm.daclip import make_daclip  # noqa: E402
from llicm.vlm.mini import mini_config  # noqa: E402


def pytest_collection_modifyitems(items):
    """The run of the pipeline first; other slow files meanwhile, then those that wait for it, then quick ones."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    waiting = {item.path for item in items if "clone" in item.fixturenames}

    def place(item):
        if item.path in waiting:
            return 0 if item.path.stem == "test_pipeline" else 2
        return 1 if item.path in slow else 3

    items.sort(key=place)


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
def smoke_run(tmp_path_factory):
    """A repository in which the smoke profile has run, the same for all processes, and what that printed: read only."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, said = base / "smoke", base / "smoke.said"
    with open(base / "smoke.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            shutil.rmtree(folder, ignore_errors=True)
            said.write_text(Clone.of_the_work_tree(folder).make())
    return Clone(folder), said.read_text()


@pytest.fixture(scope="module")
def clone(smoke_run, tmp_path_factory):
    """A copy of the repository in which the smoke profile has run; a test must leave what it found."""
    copy = smoke_run[0].copy(tmp_path_factory.mktemp("clone") / "repository")
    yield copy
    shutil.rmtree(copy.folder)
