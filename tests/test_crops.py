# SPDX-License-Identifier: Apache-2.0
"""The stream on a device: the crops of the processor's, and other degradations of the same distribution."""

import pytest
import torch
from test_degradations import NoGenerator, described, distance
from torch import Generator

from llicm.data.crops import Crop, crops_at_once, cut
from llicm.data.pairs import Pair
from llicm.data.photo import SCALES, Photo
from llicm.data.stream import PairStream
from llicm.degradations import CLEAN

TASKS = ["noisy", "rainy", "hazy", "low-light", "motion-blurry", "snowy", CLEAN]
CPU = torch.device("cpu")


def photo(seed, height, width):
    coarse = torch.rand(1, 3, 9, 9, generator=Generator().manual_seed(seed))
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0]
    image = (image + 0.05 * torch.randn(image.shape, generator=Generator().manual_seed(seed))).clamp(0, 1)
    return image.mul(255).round().div(255)


def streams(device="cpu", **changes):
    arguments = dict(
        photos=[photo(0, 190, 230), photo(1, 301, 203), photo(2, 40, 30)], tasks=TASKS, crop=64, batch=28, seed=3,
        dead_leaves_share=0.3, severity=(0.2, 0.8), pool=3, refresh=2, mixed=0.2,
        paired={"rainy": [Pair("p", photo(3, 60, 90), photo(4, 60, 90))]},
    )  # fmt: skip
    return PairStream(**(arguments | changes)), PairStream(**(arguments | changes), device=device)


@pytest.mark.parametrize("place", [(0.0, 0.0), (0.999, 0.999), (0.37, 0.62)])
def test_a_crop_at_once_is_the_crop(place):
    found = [Photo.of(photo(seed, *size)) for seed, size in enumerate(((190, 230), (301, 203), (183, 183)))]
    crops = [
        Crop(p, scale, place, pose / 8, (0.9, 0.2, 0.6, 0.3, 0.8)) for pose, p in enumerate(found) for scale in SCALES
    ]
    crops += [Crop(found[0], 1.0, place, pose / 8) for pose in range(8)] + [
        Crop(Photo.of(photo(9, 40, 30)), 1.0, place, 0)
    ]
    expected = torch.stack([cut(crop, 64) for crop in crops])
    torch.testing.assert_close(crops_at_once(crops, 64, CPU), expected, atol=1e-5, rtol=0)


def test_tasks_severities_and_crops_are_those_of_the_processor():
    in_turn, at_once = streams()
    for step in (0, 1, 70):
        a, b = in_turn.batch(step), at_once.batch(step)
        for name in ("task", "severity", "second", "photo"):
            assert torch.equal(getattr(a, name).nan_to_num(-1), getattr(b, name).nan_to_num(-1)), name
        torch.testing.assert_close(b.ideal, a.ideal, atol=1e-5, rtol=0)
        ready = a.severity.isnan()
        torch.testing.assert_close(b.degraded[ready], a.degraded[ready], atol=1e-5, rtol=0)
        assert torch.equal(b.degraded, at_once.batch(step).degraded)
        clean = a.task == TASKS.index(CLEAN)
        assert torch.equal(b.degraded[clean], b.ideal[clean])


@pytest.mark.slow
def test_degraded_crops_are_distributed_as_the_processors():
    # of each task by itself; a stream of other severities is told apart
    plain = dict(mixed=0.0, paired=None, tasks=TASKS[:-1], batch=30, severity=(0.3, 0.5))
    in_turn, at_once = streams(**plain)
    other = streams(**plain | {"severity": (0.6, 0.8)})[1]
    batches = [[stream.batch(step) for step in range(48)] for stream in (in_turn, at_once, other)]
    numbers = [described(torch.cat([b.degraded for b in found])) for found in batches]
    task = torch.cat([b.task for b in batches[0]])
    for index, word in enumerate(TASKS[:-1]):
        first, second, third = (x[task == index] for x in numbers)
        # 240 crops of each, and the same ones: closer than independent samples are
        assert distance(first, second).max() < 0.1 < 0.13 < distance(first, third).max(), word


def test_no_batch_waits_for_the_device(monkeypatch):
    monkeypatch.setattr("llicm.degradations.Generator", NoGenerator)
    batch = streams(device="meta")[1].batch(1)
    assert batch.degraded.device.type == batch.ideal.device.type == "meta" and batch.task.device == CPU
    assert batch.degraded.shape == batch.ideal.shape == (28, 3, 64, 64)
