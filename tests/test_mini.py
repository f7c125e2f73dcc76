# SPDX-License-Identifier: Apache-2.0
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Generator

from llicm.data.stream import PairStream
from llicm.errors import UserError
from llicm.vlm.clip import WORDS, make_clip
from llicm.vlm.mini import _joined, _mean, _Training, compressed, mini_config, start_from_cosines, train_mini

MINI = {
    "image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "embed_dim": 16, "text_width": 32, "text_layers": 1,
}  # fmt: skip
STEPS = (4, 6)


def photos():
    coarse = torch.rand(2, 3, 9, 9, generator=Generator().manual_seed(0))
    images = F.interpolate(coarse, (70, 80), mode="bicubic").clamp(0, 1)
    return {"coffee": images[0], "img_1": images[1]}


class Codec(torch.nn.Module):
    """Pushes every pixel up by the level, also beyond 1, and notes the levels."""

    levels, stride = 4, 64

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, level):
        self.seen += level.tolist()
        return {"x_hat": x + 0.1 + level.view(-1, 1, 1, 1)}


# --- how it starts ---


def test_patch_embedding_starts_with_unit_variance():
    torch.manual_seed(0)
    visual = make_clip(mini_config(**MINI)).visual
    images = torch.randn(6, 3, 32, 32) + 3 * torch.randn(6, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert not torch.allclose(visual.conv1(images).std((0, 2, 3)), torch.ones(32), atol=0.3)
    start_from_cosines(visual, images)
    with torch.no_grad():
        found = visual.conv1(images)
        assert torch.allclose(found.std((0, 2, 3)), torch.ones(32), atol=1e-3)
        # The first is the mean of the patch, and a constant picture is nothing to all others of the luminance.
        means = F.avg_pool2d(images, 8).sum(1).flatten()
        assert torch.stack([found[:, 0].flatten(), means]).corrcoef()[0, 1] == pytest.approx(1, abs=1e-4)
        grey = visual.conv1(torch.ones(1, 3, 32, 32))[0, :, 0, 0]
        assert grey[0].abs() > 0.1 and grey[1:].abs().max() < 1e-4
        # Where a colour is missing its frequencies have no variance: the weights stay finite all the same.
        start_from_cosines(visual, images[:, :1].expand(-1, 3, -1, -1))
        assert visual.conv1.weight.isfinite().all()


# --- its data ---


def test_compressed_is_seeded_in_range_and_leaves_some_rows():
    codec, images = Codec(), torch.rand(300, 3, 16, 16, generator=Generator().manual_seed(0))
    out = compressed(images, codec, Generator().manual_seed(1))
    assert out.shape == images.shape and out.min() >= 0 and out.max() <= 1
    untouched = (out == images).all(3).all(2).all(1)
    levels = torch.tensor(codec.seen)
    assert untouched.float().mean() == pytest.approx(0.3, abs=0.08)
    assert len(levels) / 300 == pytest.approx(0.6, abs=0.08)
    webp = 300 - int(untouched.sum()) - len(levels)
    assert webp / 300 == pytest.approx(0.1, abs=0.05)
    assert levels.min() >= 0 and levels.max() <= 3 and levels.min() < 0.2 and levels.max() > 2.8
    assert torch.equal(out, compressed(images, Codec(), Generator().manual_seed(1)))
    assert not torch.equal(out, compressed(images, Codec(), Generator().manual_seed(2)))


def test_without_a_codec_webp_does_its_part():
    image = photos()["coffee"][None, :, :48, :48]
    images = image.expand(60, -1, -1, -1)
    out = compressed(images, None, Generator().manual_seed(1))
    error = (out - images).square().mean((1, 2, 3))
    assert (error == 0).float().mean() == pytest.approx(0.3, abs=0.12)
    changed = error[error > 0]
    assert changed.max() < 0.01  # it is the same picture
    assert changed.max() > 3 * changed.min()  # at various qualities


def test_batches_of_the_tasks_join_in_the_words_of_all():
    sources, tasks = list(photos().values()), ["hazy", "noisy"]
    rest = (32, 4, 0, 0.5, (0.2, 0.8), 2, 10)
    every, chosen = (PairStream(sources, words, *rest, mixed=0.5) for words in (WORDS, tasks))
    alone = _joined(every, None, 3)
    assert all(torch.equal(a, b) for a, b in zip(alone, every.batch(3), strict=True))
    joined, extra = _joined(every, chosen, 3), chosen.batch(3)
    assert len(joined.task) == 8 and torch.equal(joined.degraded[4:], extra.degraded)
    for task, second, of, beside in zip(joined.task[4:], joined.second[4:], extra.task, extra.second, strict=True):
        assert WORDS[task] == tasks[of]
        assert (second == -1) if beside == -1 else (WORDS[second] == tasks[beside])
    assert (extra.second == -1).any() and (extra.second >= 0).any(), "the test must see both"


# --- training ---


class Memory:
    """A checkpoint that keeps what it is given, and can be interrupted after a number of saves."""

    def __init__(self, interrupt_after=None):
        self.states, self.left = [], interrupt_after

    def load(self):
        return copy.deepcopy(self.states[-1]) if self.states else None

    def save(self, state):
        self.states.append(copy.deepcopy(state))
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


def train(checkpoint=None, **changes):
    options = {
        "mini": MINI, "data": {"dead_leaves_share": 0.5, "pool": 2, "refresh": 10}, "steps": STEPS, "batch": 6,
        "lr": 1e-3, "severity": (0.2, 0.8), "mixed": 0.3, "codec": None, "seed": 0, "checkpoint": checkpoint,
        "checkpoint_every": 2, "log_every": 2,
    }  # fmt: skip
    return train_mini(photos(), ["noisy", "hazy"], **(options | changes))


@pytest.fixture(scope="module")
def trained():
    memory = Memory()
    return *train(memory), memory


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_log_of_both_phases(trained):
    model, rows, _ = trained
    assert [(row["phase"], row["step"]) for row in rows] == [
        ("clip", 2), ("clip", 4), ("controller", 2), ("controller", 4), ("controller", 6),
    ]  # fmt: skip
    for row in rows:
        losses = {"content"} if row["phase"] == "clip" else {"content", "degradation", "accuracy"}
        assert set(row) == {"phase", "step"} | losses
        assert all(math.isfinite(row[name]) and row[name] >= 0 for name in losses)
        assert row.get("accuracy", 0) <= 1
    assert not model.training and model.image_size == (32, 32)


def test_clip_is_frozen_in_the_second_phase(trained):
    model, _, memory = trained
    (clip,) = (state["model"] for state in memory.states if (state["phase"], state["step"]) == (0, 4))
    earlier = memory.states[0]["model"]
    assert not equal(clip, earlier), "CLIP did learn before"
    clip = {name: value.half().float() for name, value in clip.items()}  # as the finished model is kept
    assert equal(clip, dict(model.clip.state_dict()))
    tower = model.controller.tower.state_dict()
    still = [n for n, value in tower.items() if torch.equal(value, clip[f"visual.{n}"])]
    assert not still and all(p.any() for p in model.controller.zero.parameters())
    assert not any(p.requires_grad for p in model.clip.parameters())


def test_a_repeated_training_ends_in_the_same_bytes(trained):
    model, rows, _ = trained
    torch.manual_seed(99)  # what the caller drew before is no matter
    again, rows_again = train()
    assert rows_again == rows and equal(dict(again.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize("saves", [1, 2, 4])
def test_an_interrupted_training_ends_in_the_same_bytes(trained, saves):
    model, rows, _ = trained
    memory = Memory(saves)
    with pytest.raises(KeyboardInterrupt):
        train(memory)
    memory.left = None
    resumed, rows_again = train(memory)
    assert rows_again == rows and equal(dict(resumed.state_dict()), dict(model.state_dict()))


def test_seed_and_codec_matter():
    codec = Codec()
    first, seeded, decoded = (train(**more, steps=(1, 2))[0] for more in ({}, {"seed": 1}, {"codec": codec}))
    assert not equal(dict(first.clip.state_dict()), dict(seeded.clip.state_dict()))
    # CLIP learns clean crops; only the controller sees what the codec leaves of them.
    assert equal(dict(first.clip.state_dict()), dict(decoded.clip.state_dict())) and codec.seen
    assert not torch.equal(first.controller.tower.conv1.weight, decoded.controller.tower.conv1.weight)


def test_logit_scale_is_kept_between_1_and_100():
    clip = make_clip(mini_config(**MINI))
    for value, kept in ((9.0, 100.0), (-1.0, 1.0)):
        torch.nn.init.constant_(clip.logit_scale, value)
        _Training(1e-3, 0, None, 0, 1).run(
            "clip", clip, 1, lambda step: None, lambda *batch: {"loss": 0 * clip.logit_scale}
        )
        assert clip.logit_scale.exp().item() == pytest.approx(kept)


def test_divergence_is_an_error():
    assert _mean([{"content": 1.0}, {"content": 2.0, "accuracy": 0.5}]) == {"content": 1.5, "accuracy": 0.5}
    with pytest.raises(UserError, match="diverged: lower vlm.lr"):
        _mean([{"content": math.nan}])
