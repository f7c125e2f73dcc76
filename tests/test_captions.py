# SPDX-License-Identifier: Apache-2.0
import re

import pytest
import torch

from llicm.vlm.captions import caption, subject


def flat(*rgb, side=40):
    return torch.tensor(rgb, dtype=torch.float32)[:, None, None].expand(3, side, side).clone()


def noise(*shape, seed=0):
    """Grey noise about 0.5."""
    return (0.5 + 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).expand(3, -1, -1)


def said(image, pattern):
    return re.search(pattern, caption(image, None))[1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("coffee", "coffee"),
        ("red_car", "red car"),
        ("Old-Town  hall", "old town hall"),
        ("IMG_0042", None),
        ("img", None),
        ("photo of me", None),
        ("dsc", None),
        ("a7", None),
        ("42", None),
        ("", None),
    ],
)
def test_subject(name, expected):
    assert subject(name) == expected


def test_the_whole_sentence_and_its_subject():
    image = flat(0.9, 0.1, 0.1)
    start, end = "a medium bright low contrast photo", ", mostly red, with smooth texture and few edges"
    assert caption(image, None) == start + end
    assert caption(image, "red car") == f"{start} of red car{end}"
    assert caption(image, "") == f"{start} of overlapping shapes{end}"


@pytest.mark.parametrize(
    ("colour", "name"),
    [
        ((1, 0, 0), "red"), ((1, 0, 0.15), "red"), ((1, 0.5, 0), "orange"), ((0.4, 0.2, 0.05), "brown"),
        ((1, 0.95, 0), "yellow"), ((0.1, 0.7, 0.1), "green"), ((0, 0.9, 0.9), "cyan"), ((0.1, 0.1, 0.9), "blue"),
        ((0.6, 0, 0.9), "purple"), ((0.05, 0.05, 0.05), "black"), ((0.1, 0, 0), "black"), ((0.5, 0.5, 0.48), "grey"),
        ((0.95, 0.93, 0.9), "white"),
    ],
)  # fmt: skip
def test_colours(colour, name):
    assert said(flat(*colour), "mostly (.*?),") == name


def test_two_colours_are_named_by_their_share():
    image = flat(1, 0, 0)
    image[:, :16] = flat(0, 0, 1)[:, :16]  # 40%
    assert said(image, "mostly (.*?),") == "red and blue"
    image[:, 4:] = flat(1, 0, 0)[:, 4:]  # 10%
    assert said(image, "mostly (.*?),") == "red"


@pytest.mark.parametrize(("value", "word"), [(0.1, "dark"), (0.45, "medium bright"), (0.8, "bright")])
def test_brightness(value, word):
    assert said(flat(value, value, value), "^a (.*) low contrast") == word


@pytest.mark.parametrize(("spread", "word"), [(0.05, "low"), (0.18, "medium"), (0.4, "high")])
def test_contrast(spread, word):
    image = flat(0.5, 0.5, 0.5)
    image[:, :, ::2] += spread
    image[:, :, 1::2] -= spread
    assert said(image, "bright (.*) contrast") == word


def test_texture():
    pairs = noise(1, 32, 32).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert said(noise(1, 64, 64), "with (.*) texture") == "fine"
    assert said(pairs, "with (.*) texture") == "coarse"
    assert said((pairs + noise(1, 64, 64, seed=1)) / 2, "with (.*) texture") == "medium"
    ramp = torch.linspace(0.3, 0.6, 64).expand(3, 64, 64)
    assert said(ramp, "with (.*) texture") == "smooth"


@pytest.mark.parametrize(("every", "word"), [(2, "many"), (20, "some"), (80, "few")])
def test_edges(every, word):
    stripes = ((torch.arange(160) // every) % 2).float().expand(3, 40, 160)
    assert said(stripes, r"and (\w+) edges") == word


@pytest.mark.parametrize("size", [(8, 8), (9, 131), (70, 65)])
def test_any_size(size):
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    assert caption(image, None) == caption(image.clone(), None)
    assert said(image, "with (.*) texture") == "fine" and said(image, r"and (\w+) edges") == "many"
