# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from llicm.codec.rate import compress_to
from llicm.errors import UserError
from llicm.registry import CODECS


def steps(level: float) -> bytes:
    """A file whose size grows with the level, and not quite steadily, as real ones do."""
    return bytes(int(1000 * 2**level) + (7 if int(level * 4096) % 3 == 0 else 0))


@pytest.mark.parametrize("size", [1008, 1500, 3333, 15_000])
def test_target_is_met_from_below(size):
    data, level = compress_to(steps, size, 0, 4)
    assert 0.98 * size <= len(data) <= size
    assert steps(level) == data


def test_a_target_beyond_the_highest_level_gives_the_highest():
    data, level = compress_to(steps, 10**6, 0, 4)
    assert level == 4 and data == steps(4)


def test_a_target_below_the_lowest_level_is_refused():
    with pytest.raises(UserError, match="1007 bytes at the lowest level 0; 900 are too few"):
        compress_to(steps, 900, 0, 4)


def test_few_encodings_are_enough():
    tried = []
    compress_to(lambda level: (tried.append(level), steps(level))[1], 2500, 0, 4)
    assert len(tried) <= 16 and len(set(tried)) == len(tried)


def test_the_codecs_own_files_meet_targets():
    torch.manual_seed(0)
    codec = CODECS.make("mean-scale", N=8, M=48, lambdas=[0.0005, 0.004, 0.03])
    codec.update()
    codec.eval()
    x = torch.nn.functional.interpolate(torch.rand(1, 3, 40, 50), size=(256, 320), mode="bicubic")[0].clamp(0, 1)
    smallest, largest = (len(codec.compress(x, level)) for level in (0, 2))
    for share in (0.1, 0.5, 0.9):
        size = smallest + share * (largest - smallest)
        data, _ = compress_to(lambda level: codec.compress(x, level), size, 0, codec.levels - 1)
        assert 0.98 * size <= len(data) <= size
