# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from llicm.benchmark.evaluate import Plan, evaluate_family
from llicm.data.pairs import write_pairs
from llicm.errors import UserError

METRICS = ("psnr", "ms_ssim", "gmsd", "piqe")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    coarse = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    photos = torch.nn.functional.interpolate(coarse, size=(176, 200), mode="bicubic").clamp(0, 1)
    write_pairs({"a": photos[0], "b": photos[1]}, root, ["noisy"], 0.5, 0, "val", None)
    return root


def plan(root, name, metrics=METRICS):
    spec = {"codec": "jpeg", "models": "none", "methods": {"jpeg": "alone"}, "levels": [10, 60]}
    return Plan("jpeg", spec, root, root / "no_vlm", metrics, root / "no_fit.mat", root / name)


@pytest.mark.slow
def test_values_do_not_depend_on_the_number_of_processes(pairs):
    one, two = (evaluate_family(plan(pairs, f"streams{n}"), pairs, ["noisy"], n) for n in (1, 2))
    assert one == two
    assert len(one) == 2 * 2 * len(METRICS)
    for row in one:
        stream = pairs / "streams1" / "noisy" / row["image"] / f"jpeg@{row['level']}"
        assert row["bytes"] == stream.stat().st_size and row["bpp"] == 8 * row["bytes"] / (176 * 200)
        assert stream.read_bytes()[:2] == b"\xff\xd8"  # the real file


def test_missing_pairs_are_named(pairs):
    with pytest.raises(UserError, match="hazy"):
        evaluate_family(plan(pairs, "streams"), pairs, ["hazy"], 1)
