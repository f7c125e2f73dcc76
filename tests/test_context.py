# SPDX-License-Identifier: Apache-2.0
"""The context codec: real bytes, exactness, what a pass may know, and training."""

import dataclasses
import hashlib
import os
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small import train_codec

from llicm.codec import context
from llicm.codec.bitstream import pack, unpack
from llicm.codec.context import PASSES, ContextCodec, group_sizes, places
from llicm.errors import BitstreamError, UserError
from llicm.framework import LLICM
from llicm.integer import IntegerConv
from llicm.objectives import Objective, bits_per_pixel
from llicm.registry import CODECS, RESTORERS
from llicm.training.loop import Trainer
from llicm.weights import load_part, save_part

LAMBDAS = [0.002, 0.007, 0.02, 0.07]
SIZES = {"N": 8, "M": 24, "lambdas": LAMBDAS, "features": 32, "loop": 8}


def fresh(**changes):
    torch.manual_seed(0)
    return CODECS.make("context", **SIZES | changes)


def awaken(codec):
    """Make the parts that start at zero matter, as they do after training."""
    torch.manual_seed(1)
    with torch.no_grad():
        codec.decide[-1].weight.normal_(0, 0.1)
        codec.loop.leave.weight.normal_(0, 0.05)
        codec.film.weight.normal_(0, 0.5)
        codec.h_a[-1].weight.mul_(5)
        for head in codec.heads.modules():
            if isinstance(head, IntegerConv):
                head.weight.mul_(2)
        for name, value in codec.linear.named_parameters():
            value.normal_(0, 0.3 / value[0].numel() ** 0.5)
            assert name.endswith("weight")
    codec.update()
    return codec.to(memory_format=torch.channels_last).eval()


@pytest.fixture(scope="module")
def codec():
    return awaken(fresh())


def smooth(height, width, seed=1):
    coarse = torch.rand(1, 3, 3 + height // 16, 3 + width // 16, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(height, width), mode="bicubic")[0].clamp(0, 1)


@pytest.fixture(scope="module")
def image():
    return smooth(101, 147)


def values_of(codec, data):
    return codec._read(unpack(data))[3]


def test_the_decoder_gets_the_encoders_reconstruction_from_the_bytes_alone(codec, image, tmp_path):
    """What the encoder went through is what a decoder, built from a file, goes through."""
    kept = []
    walk = codec._walk
    codec._walk = lambda *a: (kept.append(walk(*a)), kept[-1])[1]
    try:
        files = [codec.compress(image, level) for level in (0, 1.3, 3)]
    finally:
        del codec._walk
    save_part(codec, tmp_path / "codec.safetensors")
    decoder = load_part("codec", tmp_path / "codec.safetensors")
    for data, encoded, level in zip(files, kept, (0, 1.3, 3), strict=True):
        _, *decoded = decoder._read(unpack(data))
        assert all(torch.equal(a, b) for a, b in zip(encoded, decoded, strict=True))
        picture, at = decoder.decompress(data)
        assert picture.shape == image.shape and at == pytest.approx(level, abs=1 / 4096)
        assert torch.allclose(picture, codec.decompress(data)[0], atol=1e-5)
        assert decoder.compress(image, level) == data
        assert decoder.code(*decoder.latent(unpack(data)), unpack(data).frame) == unpack(data).payload


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (64, 64), (65, 129)])
def test_any_size(image, size):
    codec = fresh(M=96)
    codec.update()
    x = F.interpolate(image[None], size=size, mode="area")[0]
    decoded, _ = codec.eval().decompress(codec.compress(x, 3))
    assert decoded.shape == x.shape
    assert (decoded - x).abs().mean() < (0.1 if min(size) == 3 else 0.03)  # in three rows it is all contrast


def test_untrained_it_is_a_transform_codec(image):
    codec = fresh(M=96)
    codec.update()
    codec.eval()
    files = [codec.compress(image, level) for level in (0, 0.5, 1, 2, 3)]
    sizes = [len(data) for data in files]
    assert sizes == sorted(sizes) and sizes[-1] > 1.3 * sizes[0]
    psnr = [-10 * float((codec.decompress(data)[0] - image).square().mean().log10()) for data in files]
    assert psnr == sorted(psnr) and psnr[-1] > 33


def test_levels_are_continuous(codec, image):
    low, high, middle = (codec.gains(torch.tensor([level]))[0] for level in (1.0, 2.0, 1.5))
    assert torch.allclose(middle, (low * high).sqrt())
    assert codec.lambdas(torch.tensor([1.0, 1.5, 2.0])).tolist() == pytest.approx([0.007, (0.007 * 0.02) ** 0.5, 0.02])
    sizes = [len(codec.compress(image, level)) for level in np.linspace(0, 3, 13)]
    steps = np.diff(sizes) / sizes[0]
    assert sizes[-1] > sizes[0] and steps.max() < 0.2 and steps.min() > -0.03
    offsets = torch.stack([codec._offsets(level)[0] for level in np.linspace(0, 3, 301)])
    assert (offsets.diff(dim=0).abs() <= 2).all()  # no step at a whole level
    assert [codec._offsets(level)[1] for level in (0, 1.5, 3)] == [0, 128, 256]


def test_groups_and_passes_cover_all_once():
    assert group_sizes(320) == [16, 32, 64, 96, 112]
    for channels in (3, 7, 24, 48, 100, 384, 768):
        sizes = group_sizes(channels)
        assert sum(sizes) == channels and min(sizes) > 0 and len(sizes) <= len(PASSES)
    for passes in (2, 3, 5):
        found = places(passes, 8, 12)
        assert len(found) == passes and torch.cat(found).sort().values.tolist() == list(range(96))
        assert all(len(at) for at in places(passes, 4, 4))  # the smallest picture


def steps_of(codec):
    return [(k, p) for k in range(len(codec.groups)) for p in range(PASSES[k])]


def test_what_is_decoded_later_changes_no_table_of_what_came_before(codec):
    """For every pass: other residuals, from it on, change neither its table and means nor any before, but all later."""
    grid, z = (8, 12), torch.randint(-3, 4, (1, 8, 2, 3), generator=torch.Generator().manual_seed(0)).float()

    def walk(changed):
        told, generator = [], torch.Generator().manual_seed(5)

        def choose(part, at, indexes, means):
            told.append((indexes.clone(), means.clone()))
            residual = torch.randint(-2, 3, means.shape, generator=generator)
            return residual + (3 if len(told) > changed else 0)

        codec._walk(z, 1.7, choose)
        return told

    steps = steps_of(codec)
    plain = walk(len(steps))
    assert len(plain) == len(steps) and sum(t.numel() for t, _ in plain) == sum(codec.groups) * grid[0] * grid[1]
    for changed in range(len(steps)):
        told = walk(changed)
        for number, (before, after) in enumerate(zip(plain, told, strict=True)):
            same = torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
            assert same == (number <= changed), f"{steps[changed]} changed, {steps[number]} looked at"


def test_a_block_sees_neighbours_of_its_own_group_only_once_they_are_decoded(codec):
    """One symbol changed in the first pass is seen by the passes behind it near this block, and by no far one."""
    z = torch.zeros(1, 8, 4, 4)

    def walk(symbol):
        told = []

        def choose(part, at, indexes, means):
            told.append((at, indexes, means))
            residual = torch.zeros_like(means)
            if len(told) == 1:
                residual[:, at == 0] = symbol
            return residual

        codec._walk(z, 2, choose)
        return told

    for number, ((at, *a), (_, *b)) in enumerate(zip(walk(0), walk(4), strict=True)):
        row, column = at // 16, at % 16
        changed = torch.stack([(x != y).any(0) for x, y in zip(a, b, strict=True)]).any(0)
        if number == 0:
            assert not changed.any()
        elif number < PASSES[0]:  # each of these passes hands on what it saw by at most two blocks
            assert not changed[torch.maximum(row, column) > 2 * number].any()
    assert changed.any()


def test_training_goes_through_the_same_passes(codec):
    """Floats, rounded straight-through, end in nearly the values that coding has, and in its rate.

    They are not the same: a difference in the last bits may round a value the other way, by one step of the quantiser.
    """
    x = smooth(128, 192)
    data = codec.compress(x, 2)
    with torch.no_grad():
        out = codec(x[None], torch.tensor([2.0]))
    decoded, _ = codec.decompress(data)
    seen = out["x_hat"][0].clamp(0, 1)
    psnr = [-10 * float((picture - x).square().mean().log10()) for picture in (decoded, seen)]
    assert psnr[0] == pytest.approx(psnr[1], abs=0.3) and (decoded - seen).abs().mean() < 0.01
    assert out["likelihoods"]["y"].shape == (1, 24, 8, 12) and out["likelihoods"]["z"].shape == (1, 8, 2, 3)


def plain_passes(codec, y, unit, context):
    """The definition: every network at every block, and a mask for what a pass decodes."""
    decoded, likelihoods = [], []
    for k, part in enumerate(codec._slices):
        y_k, u, known, scale, mean = y[:, part], unit[:, part], 0 * y[:, part], 0.0, 0.0
        for p, at in enumerate(places(PASSES[k], *y.shape[-2:])):
            mask = torch.zeros(y[0, 0].numel()).index_fill(0, at, 1.0).view(y.shape[-2:])
            c = context + codec.near[k][p - 1](context_seen(known)) if p else context
            log_scale, here = codec.heads[k][p](c.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).chunk(2, 1)
            here = u * (here + (codec.linear[k][p - 1](known) if p and k < context_predicted else 0))
            rounded = (y_k - here).detach().round() + (y_k - here) - (y_k - here).detach() + here
            known, mean = known + mask * rounded / u, mean + mask * here
            scale = scale + mask * u * torch.exp2(log_scale.clamp(-14, 8))
        residual = y_k - mean
        rounded = residual.detach().round() + residual - residual.detach()
        likelihoods.append(codec._likelihood(rounded, scale, False))
        decoded.append(known * u)
        if k + 1 < len(codec.groups):
            context = context + codec.after[k](context_seen(known))
    return torch.cat(decoded, 1), torch.cat(likelihoods, 1)


context_seen, context_predicted = context._seen, context.PREDICTED


def test_losses_are_those_of_the_plain_implementation(codec):
    generator = torch.Generator().manual_seed(0)
    y, features = 3 * torch.randn(2, 24, 8, 12, generator=generator), torch.randn(2, 32, 8, 12, generator=generator)
    unit, found = torch.rand(2, 24, 1, 1, generator=generator) + 0.5, []
    for passes in (codec._train_passes, lambda *a: plain_passes(codec, *a)):
        y_, features_ = y.clone().requires_grad_(), features.clone().requires_grad_()
        y_hat, likelihoods = passes(y_, unit, features_)
        (y_hat.square().mean() - likelihoods.log2().mean()).backward()
        found.append((y_hat.detach(), likelihoods.detach(), y_.grad, features_.grad))
    for ours, plain in zip(*found, strict=True):  # a rounding may turn where sums differ in their last bits
        assert ((ours - plain).abs() > 1e-4 * plain.abs().max()).float().mean() < 0.01


def test_gradient_reaches_every_parameter():
    codec = fresh()
    with torch.no_grad():
        codec.loop.leave.weight.normal_(0, 0.01)
        codec.decide[-1].weight.normal_(0, 0.01)
        codec.h_a[-1].weight.mul_(20)  # or all of z is zero, and nothing behind it is used
    out = codec(torch.rand(4, 3, 64, 64), torch.tensor([0.0, 1.0, 2.0, 3.0]))
    (out["x_hat"].square().mean() + bits_per_pixel(out["likelihoods"], 64, 64).mean()).backward()
    trained = {n: p for n, p in codec.named_parameters() if not n.endswith("quantiles")}
    assert [n for n, p in trained.items() if p.grad is None or not torch.isfinite(p.grad).all()] == []
    assert [n for n, p in trained.items() if not p.grad.abs().sum() > 0] == []


@pytest.fixture(scope="module")
def trained():
    """Some steps of training at a moderate size, and a picture that was not in it."""
    codec = fresh(N=12, M=48)
    photo = smooth(256, 320, seed=3)
    photo = (photo + 0.03 * torch.randn(photo.shape, generator=torch.Generator().manual_seed(4))).clamp(0, 1)

    def batches():
        for step in range(80):
            torch.manual_seed(step)
            tops, lefts, level = torch.randint(192, (4,)), torch.randint(256, (4,)), torch.rand(4) * 3
            yield torch.stack([photo[:, t : t + 64, s : s + 64] for t, s in zip(tops, lefts, strict=True)]), level

    losses = train_codec(codec, batches())
    return codec, photo, losses


def test_training_learns(trained):
    _, _, losses = trained
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


@pytest.mark.parametrize("level", [0.0, 2.0, 3.0])
def test_real_rate_is_the_estimated_one(trained, level):
    codec, photo, _ = trained
    with torch.no_grad():
        out = codec(photo[None], torch.tensor([level]))
    estimate = float(bits_per_pixel(out["likelihoods"], *photo.shape[1:])) * photo[0].numel() / 8
    real = len(unpack(codec.compress(photo, level)).payload) - 6  # of two checks
    assert abs(real - estimate) < 0.02 * estimate + 4


def test_rises_with_the_level_once_trained(trained):
    codec, photo, _ = trained
    sizes = [len(codec.compress(photo, level)) for level in np.linspace(0, 3, 7)]
    assert sizes == sorted(sizes)


# Exactness


@pytest.fixture
def settings_of_torch():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.backends.mkldnn.set_flags(True)


def test_threads_libraries_and_layout_change_no_symbol(codec, image, settings_of_torch):
    data = codec.compress(image, 2.3)
    stream, expected = unpack(data), None
    for threads, onednn, layout in (
        (1, True, torch.channels_last), (2, True, torch.channels_last), (3, True, torch.contiguous_format),
        (4, True, torch.channels_last), (1, False, torch.contiguous_format), (4, False, torch.channels_last),
    ):  # fmt: skip
        torch.set_num_threads(threads)
        torch.backends.mkldnn.set_flags(onednn)
        codec.to(memory_format=layout).train().eval()  # forgets what it had laid out
        z, indexes, residual, values = codec._read(stream)
        found = [hashlib.sha256(v.contiguous().numpy().tobytes()).hexdigest() for v in (z, indexes, residual, values)]
        assert codec.code(z, indexes, residual, stream.frame) == stream.payload
        expected = expected or found
        assert found == expected
    codec.to(memory_format=torch.channels_last)


def test_order_and_company_of_pictures_change_no_byte(codec, image, tmp_path):
    """One after the other in either order, or at the same time in one process."""
    save_part(codec, tmp_path / "codec.safetensors")
    pictures = [image, smooth(64, 200), smooth(130, 70)]
    files = [codec.compress(x, 2.3) for x in pictures]
    values = [values_of(codec, data) for data in files]
    other = load_part("codec", tmp_path / "codec.safetensors")
    for n in (2, 1, 0):
        assert torch.equal(values_of(other, files[n]), values[n]) and other.compress(pictures[n], 2.3) == files[n]
    third = load_part("codec", tmp_path / "codec.safetensors")
    with ThreadPoolExecutor(3) as workers:
        assert list(workers.map(lambda x: third.compress(x, 2.3), 2 * pictures)) == 2 * files
        assert all(map(torch.equal, workers.map(lambda data: values_of(third, data), 2 * files), 2 * values))


def test_tables_and_values_are_those_of_the_first_edition():
    """What a format's decoder must compute, from weights and symbols that are the same everywhere."""
    codec, random = fresh(M=48, features=40), np.random.RandomState(0)
    with torch.no_grad():
        for name, parameter in sorted(codec.named_parameters()):
            strength = 2048 if name.startswith("linear") else 512
            parameter.copy_(torch.from_numpy(random.randint(-255, 256, parameter.shape) / strength))
    codec.offsets.copy_(torch.from_numpy(random.randint(-200, 300, codec.offsets.shape)))
    z, digest = torch.from_numpy(random.randint(-9, 10, (1, 8, 3, 5))).float(), hashlib.sha256()
    codec.eval()
    for level in (0, 1.3, 3):
        found = codec._walk(z, level, lambda part, at, t, means: torch.from_numpy(random.randint(-3, 4, means.shape)))
        for part in found:
            digest.update(part.contiguous().numpy().astype("<i4").tobytes())
    assert len(found[0].unique()) > 40
    assert digest.hexdigest() == "6113bd9549665e6479cbcce1a88a4fc8edef9bffc165d29cb879a218e844f6da"


def test_mixed_precision_around_it_changes_nothing(codec, image):
    data = codec.compress(image, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codec._read(unpack(data))[3], values_of(codec, data))


# Decodes one file in another process, whose settings differ, and prints hashes of what the coder depends on.
SCRIPT = """
import hashlib, sys
import torch
from llicm.codec.bitstream import unpack
from llicm.weights import load_part
torch.set_num_threads(2)
codec = load_part("codec", sys.argv[1])
stream = unpack(open(sys.argv[2], "rb").read())
z, indexes, residual, values = codec._read(stream)
assert codec.code(z, indexes, residual, stream.frame) == stream.payload
for part in (z, indexes, residual, values):
    print(hashlib.sha256(part.contiguous().numpy().tobytes()).hexdigest())
"""
KERNELS = {
    "as here": {},
    "generic": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"},
}


@pytest.mark.slow
def test_instruction_sets_change_no_symbol(codec, tmp_path):
    save_part(codec, tmp_path / "codec.safetensors")
    (tmp_path / "a.llicm").write_bytes(codec.compress(smooth(200, 300), 2.3))
    found = {}
    for name, setting in KERNELS.items():
        command = [sys.executable, "-c", SCRIPT, tmp_path / "codec.safetensors", tmp_path / "a.llicm"]
        ran = subprocess.run(command, env=os.environ | setting, capture_output=True, text=True)
        assert ran.returncode == 0, f"{name}: {ran.stderr[-800:]}"
        found[name] = ran.stdout
    assert len(set(found.values())) == 1, found


def test_swish_is_what_exact_fractions_say():
    whole = torch.arange(-300, 700)
    found = context._Swish.apply(whole / 32).long().tolist()
    for k, value in zip(whole.tolist(), found, strict=True):
        k = min(max(k, -96), 255)
        assert value == (k * min(max(k + 96, 0), 192) + 96) // 192
    assert min(found) == -12 and max(found) == 255
    x = torch.linspace(-4, 9, 500, requires_grad=True)
    context._Swish.apply(x).sum().backward()
    y = x.detach().clone().requires_grad_()
    (32 * F.hardswish(y)).sum().backward()
    assert torch.allclose(x.grad, y.grad, atol=1e-4)


def test_products_with_powers_of_two_are_rounded_right():
    """As unlimited integers round them, for all sizes of values and spreads that occur, and for halves."""
    offset = torch.tensor([-640, -65, -1, 0, 1, 63, 64, 700, 960])
    x = torch.randint(-(2**18), 2**18, (50, 9), generator=torch.Generator().manual_seed(0))
    x[0], x[1] = 2**18, -(2**18)
    for values, exponent, before, behind in ((x, offset, 12, 6), (x << 10, -offset, 6, 8)):
        found = context._times(values.double(), context._power(exponent, before, behind)).long().tolist()
        for row, wanted in zip(values.tolist(), found, strict=True):
            for v, e, result in zip(row, exponent.tolist(), wanted, strict=True):
                shift = before + 14 - behind - e // 64
                assert result == (v * round(2 ** (e % 64 / 64 + 14)) + (1 << (shift - 1))) >> shift
    # a mantissa near a tie could be rounded differently by another library's power
    exact = [2 ** (i / 64 + 14) for i in range(64)]
    assert min(abs(v - int(v) - 0.5) for v in exact) > 1e-6


@pytest.mark.parametrize("passes", [2, 3, 5])
@pytest.mark.parametrize("kernel", [3, 5])
def test_a_neighbour_that_is_left_out_is_never_decoded_yet(passes, kernel):
    order = places(passes, 12, 16)
    for p in range(1, passes):
        decoded = F.pad(torch.zeros(192).index_fill(0, torch.cat(order[:p]), 1.0).view(1, 1, 12, 16), [kernel // 2] * 4)
        around = F.unfold(decoded, kernel)[0][:, order[p]]
        assert context._taps(passes, p, kernel).tolist() == around.any(1).nonzero()[:, 0].tolist()
    assert context._taps(passes, passes, kernel).tolist() == list(range(kernel**2))


def test_the_table_of_what_is_seen_is_the_function_of_training():
    t = torch.arange(8192)
    table = context._seen_table()
    assert torch.equal(table, -table.flip(0)) and table.max() <= 127
    difference = (table[8191:] - context._seen(t / 256.0)).abs()
    assert difference.max() <= 1 and difference.mean() < 0.01


def test_no_sum_leaves_what_is_exact(codec):
    big = CODECS.make("context", N=16, M=768, lambdas=[0.01, 0.02], features=384, loop=8)
    for part in big.modules():
        if isinstance(part, IntegerConv):
            largest = {16: 127, 32: 255, 1: 127, 256: 256}[part.unit]
            assert part.weight[0].numel() * part.limit * largest + 2**22 < 2**24
        if isinstance(part, context._Prediction):
            assert part.weight[0].numel() * context._WEIGHT_LIMIT * context._SIGHT_LIMIT < 2**53


def test_prediction_equals_unlimited_integers(codec):
    known = context._Known(torch.tensor([5, -100, 300]), (4, 8), True)
    values = torch.randint(-(2**12), 2**12, (32, 3), generator=torch.Generator().manual_seed(0))
    known.add(torch.arange(32), values.double())
    layer = context._Prediction(3, 5)
    torch.nn.init.normal_(layer.weight)
    found = codec._predict(layer, known, torch.tensor([0, 13, 31]), torch.arange(25))
    codec._whole.pop(layer)
    weight = layer.integers().detach().numpy().astype(int).astype(object)
    grid = known.sight.view(8, 12, 3).permute(2, 0, 1).numpy().astype(int).astype(object)
    for row, at in enumerate((0, 13, 31)):
        i, j = divmod(at, 8)
        for channel in range(3):
            total = int((weight[channel] * grid[:, i : i + 5, j : j + 5]).sum())
            assert int(found[row, channel]) == (total + 128) >> 8


# Files


def forged(data, **changes):
    return pack(dataclasses.replace(unpack(data), **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"height": 6},
        {"width": 16384},
        {"height": 4096, "width": 16384},
        {"height": 64, "width": 300},
        {"level": 1.25},
        {"height": 102},
        {"level": 2 + 1 / 4096},
    ],  # fmt: skip
)
def test_a_header_that_does_not_fit_its_payload_is_refused(codec, image, changes):
    data = codec.compress(image, 2)
    started = time.process_time()
    tracemalloc.start()
    with pytest.raises(BitstreamError, match="damaged payload"):
        codec.decompress(forged(data, **changes))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - started < 1 and peak < 100e6


@settings(deadline=None, max_examples=40)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_payload_altered_under_a_valid_checksum_is_refused(codec, image, place, flip):
    data = codec.compress(image, 1)
    payload = bytearray(unpack(data).payload)
    payload[int(place * len(payload))] ^= flip
    with pytest.raises(BitstreamError, match="damaged payload"):
        codec.decompress(forged(data, payload=bytes(payload)))


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 8, 40])
def test_a_payload_cut_or_extended_is_refused(codec, image, cut):
    data = codec.compress(image, 1)
    payload = unpack(data).payload
    for changed in (payload[:-cut], payload[cut:], payload + bytes(range(1, cut + 1)), b""):
        with pytest.raises(BitstreamError, match="damaged payload"):
            codec.decompress(forged(data, payload=changed))


def test_levels_beyond_the_models_are_refused(codec, image):
    with pytest.raises(BitstreamError, match="level 3.5 is beyond this model's 3"):
        codec.decompress(forged(codec.compress(image, 3), level=3.5))


def test_unlikely_symbols_and_strong_contrast_survive(codec):
    """Black and white blocks of one pixel: residuals far beyond the tables."""
    x = torch.zeros(3, 64, 64)
    x[:, ::2, ::2] = 1
    x[0, :32] = 1
    data = codec.compress(x, 3)
    assert codec.latent(unpack(data))[2].abs().max() > 20
    codec.decompress(data)


def test_nan_is_refused_before_the_entropy_coder(codec):
    x = torch.rand(3, 64, 64)
    x[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        codec.compress(x, 1)
    broken = fresh()
    with torch.no_grad():
        broken.g_a[1].weight.fill_(float("inf"))
    broken.update()
    with pytest.raises(ValueError, match="not finite"):
        broken.eval().compress(torch.rand(3, 64, 64), 1)


def test_without_tables_it_says_so(image):
    with pytest.raises(UserError, match="no tables yet"):
        fresh().eval().compress(image, 1)


def test_weights_bind_the_bitstream(codec, image, tmp_path):
    save_part(codec, tmp_path / "codec.safetensors")
    again = load_part("codec", tmp_path / "codec.safetensors")
    assert isinstance(again, ContextCodec) and again.config == codec.config
    assert again.model_id() == codec.model_id()
    data = codec.compress(image, 1)
    assert again.compress(image, 1) == data
    save_part(again, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "codec.safetensors").read_bytes()
    with torch.no_grad():
        again.g_s[0].bias[0] += 1
    again.train().eval()
    with pytest.raises(BitstreamError, match="written by model"):
        again.decompress(data)


# Training and the system around it


def test_spreads_are_measured():
    codec = fresh(M=48)
    guessed = codec.spread.clone()
    photo = smooth(120, 100)
    codec.measure([photo])
    assert codec.spread.shape == guessed.shape and not torch.equal(codec.spread, guessed)
    assert (codec.spread > 0).all() and codec.spread[0, 0] > 10 * codec.spread[0, 40]
    only = fresh(M=48)
    only.measure([photo[:, :17, :18]])  # one block, at one scale
    block = only.dct(photo[None, :, :16, :16] - 0.5).abs()
    assert torch.allclose(only.spread, block.clamp_min(2.0**-12), atol=1e-6)


class Crops:
    """A stream of clean crops, as training wants it."""

    def __init__(self, photo):
        self.photo = photo

    def batch(self, step):
        from llicm.data.stream import Batch

        x = self.photo[None, :, :64, :64].expand(4, -1, -1, -1).clone()
        none = torch.full((4,), -1)
        return Batch(x, x, torch.zeros(4, dtype=torch.int64), torch.zeros(4), none, torch.zeros(4, dtype=torch.int64))


def system():
    torch.manual_seed(0)
    restorer = RESTORERS.make("direct", width=8, blocks=[1, 1, 1], context=None, level_conditioned=True)
    return LLICM(fresh(), restorer)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_llicm_trains_and_compresses_with_it(image, precision):
    whole = system()
    with torch.no_grad():
        whole.codec.h_a[-1].weight.mul_(20)
    before = {n: p.detach().clone() for n, p in whole.codec.named_parameters()}
    objective = Objective(0.75, 1.0, 0.25, {"mse": 1.0}, {"log_mse": 1.0})
    trainer = Trainer(
        whole, ["codec", "restorer"], objective, Crops(image), ["clean"], steps=3, warmup=1, lr=1e-3,
        max_grad_norm=1.0, precision=precision, seed=0, log_every=1,
    )  # fmt: skip
    rows = trainer.run()
    assert len(rows) == 3 and all(np.isfinite(row["loss"]) for row in rows)
    still = [n for n, p in whole.codec.named_parameters() if torch.equal(p, before[n]) and "quantiles" not in n]
    assert still == []
    whole.codec.update()
    data = whole.compress(image, 1.5)
    decoded, enhanced = whole.decompress(data)
    assert decoded.shape == enhanced.shape == image.shape


def test_the_restorer_is_told_the_level(image):
    """The level of the file reaches the restorer on its scale from 0 to 1, and changes what it does."""
    whole = system().eval()
    whole.codec.update()
    torch.nn.init.normal_(whole.restorer.residual.weight, std=0.02)
    torch.nn.init.normal_(whole.restorer.level.weight)
    for film in (m.film for m in whole.restorer.modules() if hasattr(m, "film")):
        torch.nn.init.normal_(film.weight)
    assert whole.codec.relative_level(torch.tensor([0.0, 1.5, 3.0])).tolist() == [0, 0.5, 1]
    data = whole.compress(image, 3)
    decoded, enhanced = whole.decompress(data)
    told, other = (whole.enhance(decoded[None], torch.tensor([at]))[0].clamp(0, 1) for at in (1.0, 0.2))
    assert torch.allclose(enhanced, told, atol=1e-6) and (enhanced - other).abs().max() > 1e-3


def test_a_single_level_works(image):
    codec = fresh(lambdas=[0.02])
    codec.update()
    decoded, level = codec.eval().decompress(codec.compress(image, 0))
    assert level == 0 and decoded.shape == image.shape


def test_files_of_mean_scale_are_refused_and_the_reverse(codec, image):
    other = CODECS.make("mean-scale", N=8, M=24, lambdas=LAMBDAS)
    other.update()
    for writer, reader in ((codec, other.eval()), (other, codec)):
        ids = (part.model_id()[:4].hex() for part in (writer, reader))
        with pytest.raises(BitstreamError, match="written by model {}, but the loaded model is {}".format(*ids)):
            reader.decompress(writer.compress(image, 1))


def test_a_published_checkpoint_has_the_averaged_weights():
    from codec import averaged  # of bench/

    part = fresh()
    state = {"parts": {"codec": part.state_dict()}, "average": []}
    state["average"] = [p.detach() + 1 for name, p in part.named_parameters() if not name.endswith("quantiles")]
    found = dict(averaged(fresh(), state).named_parameters())
    for name, value in part.named_parameters():
        assert torch.equal(found[name], value if name.endswith("quantiles") else value + 1), name
