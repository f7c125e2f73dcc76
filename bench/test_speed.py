# SPDX-License-Identifier: Apache-2.0
"""Time to encode, decode and enhance a 768x512 photo: ours beside compressai's models at their published sizes.

CPU time of one thread, which other work on the machine and threads that wait for each other disturb least; of ours also
wall time on two.

A benchmark for pytest-benchmark, not a test: `make bench` runs it, and `bench/speed.py` makes docs/speed.md of the
numbers. The other models have random weights, which take the same time (as many symbols and operations).
"""

import timeit

import pytest
import torch
import torch.nn.functional as F
from common import codecs, photos
from compressai.models import Cheng2020Anchor, Elic2022Official, MeanScaleHyperprior, ScaleHyperprior
from torch.utils.flop_counter import FlopCounterMode

from llicm.model import load_model

torch.set_num_threads(1)
LEVEL = 2.0
CODECS = dict(reversed(codecs().items()))  # first what others are compared with
OTHERS = {
    "bmshj2018-hyperprior q3": lambda: ScaleHyperprior(128, 192),
    "mbt2018-mean q3": lambda: MeanScaleHyperprior(128, 192),
    "mbt2018-mean q6": lambda: MeanScaleHyperprior(192, 320),
    "cheng2020-anchor q3": lambda: Cheng2020Anchor(128),
    "elic2022-official": lambda: Elic2022Official(192, 320),
}
ROUNDS = {"cheng2020-anchor q3": 2, "elic2022-official": 2}


@pytest.fixture(scope="module")
def image():
    """A test photo, resized to the size of Kodak's."""
    return F.interpolate(photos()["coffee"][None], size=(512, 768), mode="bicubic").clamp(0, 1)


@pytest.fixture(scope="module", params=CODECS)
def ours(request):
    return f"LL-ICM, {request.param}", CODECS[request.param]


@pytest.fixture(scope="module", params=OTHERS)
def other(request):
    torch.manual_seed(0)
    model = OTHERS[request.param]().eval()
    model.update(force=True)
    return request.param, model


def kmac_per_pixel(function, image) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
        function()  # oneDNN's own operations would not be counted
    return counter.get_total_flops() / 2 / image[0, 0].numel() / 1000


def measure(benchmark, model: str, step: str, function, image, modules) -> None:
    parameters = {id(p): p.numel() for module in modules for p in module.parameters()}
    benchmark.extra_info |= {
        "model": model, "step": step, "kmac": kmac_per_pixel(function, image), "parameters": sum(parameters.values()),
    }  # fmt: skip
    rounds = ROUNDS.get(model, 7)
    with torch.no_grad():
        benchmark.pedantic(function, rounds=rounds, warmup_rounds=1)
        if model.startswith("LL-ICM"):
            torch.set_num_threads(2)
            benchmark.extra_info["wall"] = min(timeit.repeat(function, number=1, repeat=rounds))
            torch.set_num_threads(1)


def test_encode(benchmark, ours, image):
    name, codec = ours
    measure(benchmark, name, "encode", lambda: codec.compress(image[0], LEVEL), image, [codec])


def test_decode(benchmark, ours, image):
    name, codec = ours
    data = codec.compress(image[0], LEVEL)
    measure(benchmark, name, "decode", lambda: codec.decompress(data), image, [codec])


def test_enhance(benchmark, image):
    system = load_model()
    decoded, level = system.codec.decompress(system.compress(image[0], LEVEL))
    code = system.codec.relative_level(torch.tensor([level]))
    vision = [system.conditioner.model.clip.visual, system.conditioner.model.controller] if system.conditioner else []
    parts = [system.restorer, *vision]
    measure(benchmark, "LL-ICM", "enhance", lambda: system.enhance(decoded[None], code), image, parts)


def test_other_encode(benchmark, other, image):
    name, model = other
    measure(benchmark, name, "encode", lambda: model.compress(image), image, [model])


def test_other_decode(benchmark, other, image):
    name, model = other
    with torch.no_grad():
        coded = model.compress(image)
    measure(benchmark, name, "decode", lambda: model.decompress(coded["strings"], coded["shape"]), image, [model])
