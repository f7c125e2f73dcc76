# SPDX-License-Identifier: Apache-2.0
"""Time to encode, decode and enhance a 768x512 photo: ours beside compressai's models at their published sizes.

A benchmark for pytest-benchmark, not a test: `make bench` runs it, and `bench/speed.py` makes docs/speed.md of the
numbers. The other models have random weights, which take the same time (as many symbols and operations).
"""

import pytest
import torch
import torch.nn.functional as F
from common import photos
from compressai.models import Cheng2020Anchor, Elic2022Official, MeanScaleHyperprior, ScaleHyperprior
from torch.utils.flop_counter import FlopCounterMode

from llicm.model import load_model

torch.set_num_threads(2)
OURS = "LL-ICM"
LEVEL = 2.0
OTHERS = {
    "bmshj2018-hyperprior q3": lambda: ScaleHyperprior(128, 192),
    "mbt2018-mean q3": lambda: MeanScaleHyperprior(128, 192),
    "cheng2020-anchor q3": lambda: Cheng2020Anchor(128),
    "elic2022-official": lambda: Elic2022Official(192, 320),
}
ROUNDS = {"cheng2020-anchor q3": 3, "elic2022-official": 5}


@pytest.fixture(scope="module")
def image():
    """A test photo, resized to the size of Kodak's."""
    return F.interpolate(photos()["coffee"][None], size=(512, 768), mode="bicubic").clamp(0, 1)


@pytest.fixture(scope="module")
def ours():
    return load_model()


@pytest.fixture(scope="module", params=OTHERS)
def other(request):
    torch.manual_seed(0)
    model = OTHERS[request.param]().eval()
    model.update(force=True)
    return request.param, model


def kmac_per_pixel(function, image) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops() / 2 / image[0, 0].numel() / 1000


def measure(benchmark, model: str, step: str, function, image, modules) -> None:
    parameters = {id(p): p.numel() for module in modules for p in module.parameters()}
    benchmark.extra_info |= {
        "model": model, "step": step, "kmac": kmac_per_pixel(function, image), "parameters": sum(parameters.values()),
    }  # fmt: skip
    with torch.no_grad():
        benchmark.pedantic(function, rounds=ROUNDS.get(model, 15), warmup_rounds=1)


def test_encode(benchmark, ours, image):
    measure(benchmark, OURS, "encode", lambda: ours.compress(image[0], LEVEL), image, [ours.codec])


def test_decode(benchmark, ours, image):
    data = ours.compress(image[0], LEVEL)
    measure(benchmark, OURS, "decode", lambda: ours.codec.decompress(data), image, [ours.codec])


def test_enhance(benchmark, ours, image):
    decoded, level = ours.codec.decompress(ours.compress(image[0], LEVEL))
    code = ours.relative_level(torch.tensor([level]))
    vision = [ours.conditioner.model.clip.visual, ours.conditioner.model.controller] if ours.conditioner else []
    measure(benchmark, OURS, "enhance", lambda: ours.enhance(decoded[None], code), image, [ours.restorer, *vision])


def test_other_encode(benchmark, other, image):
    name, model = other
    measure(benchmark, name, "encode", lambda: model.compress(image), image, [model])


def test_other_decode(benchmark, other, image):
    name, model = other
    with torch.no_grad():
        coded = model.compress(image)
    measure(benchmark, name, "decode", lambda: model.decompress(coded["strings"], coded["shape"]), image, [model])
