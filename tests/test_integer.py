# SPDX-License-Identifier: Apache-2.0
"""Exactness: what the entropy coder depends on is the same on whatever machine, down to the last bit."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from llicm.codec.learned import HYPER_LIMIT
from llicm.integer import ACTIVATION_UNIT, IntegerConv, activate
from llicm.registry import CODECS

# Decodes one file in another process, whose settings differ, and prints hashes of what the coder depends on. The
# latent's residuals must be the same to the bit; the picture may differ by what float sums differ.
SCRIPT = """
import hashlib, sys
import torch
from llicm.codec.bitstream import unpack
from llicm.weights import load_part
torch.set_num_threads({threads})
torch.backends.mkldnn.set_flags({onednn})
codec = load_part("codec", sys.argv[1])
if not {channels_last}:
    codec.to(memory_format=torch.contiguous_format)
data = open(sys.argv[2], "rb").read()
stream = unpack(data)
residual = codec.latent(stream)[2]
z = torch.randint(-127, 128, (1, 8, 5, 7), generator=torch.Generator().manual_seed(0)).float()
indexes = torch.cat([part for _, part, _ in codec._indexes_and_means(z, stream.level)], 1)
payload = codec.code(*codec.latent(stream), stream.frame)
for part in (residual.numpy().tobytes(), indexes.numpy().tobytes(), payload):
    print(hashlib.sha256(part).hexdigest())
assert payload == stream.payload
"""
SETTINGS = {
    "as here": {},
    "one thread": {"threads": 1},
    "without oneDNN": {"onednn": False},
    "contiguous": {"channels_last": False},
    "generic kernels": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"},
    "AVX2 kernels": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"},
}


@pytest.mark.slow
def test_symbols_and_bytes_do_not_depend_on_the_machine(tmp_path):
    from llicm.weights import save_part

    torch.manual_seed(0)
    codec = CODECS.make("mean-scale", N=8, M=24, lambdas=[0.002, 0.007, 0.02, 0.07])
    with torch.no_grad():
        codec.h_a[-1].weight.mul_(20)
        codec.h_s[-1].weight.mul_(5)
    codec.update()
    save_part(codec.eval(), tmp_path / "codec.safetensors")
    coarse = torch.rand(1, 3, 9, 13)
    x = torch.nn.functional.interpolate(coarse, size=(200, 300), mode="bicubic")[0].clamp(0, 1)
    (tmp_path / "a.llicm").write_bytes(codec.compress(x, 2.3))
    found = {}
    for name, setting in SETTINGS.items():
        options = {"threads": 2, "onednn": True, "channels_last": True}
        options |= {key: value for key, value in setting.items() if key in options}
        command = [sys.executable, "-c", SCRIPT.format(**options), tmp_path / "codec.safetensors", tmp_path / "a.llicm"]
        environment = os.environ | {key: value for key, value in setting.items() if key.isupper()}
        ran = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, f"{name}: {ran.stderr[-800:]}"
        found[name] = ran.stdout
    assert len(set(found.values())) == 1, found


def reference(conv: IntegerConv, x: torch.Tensor) -> np.ndarray:
    """The same convolution in Python's own integers, which have no limit, as multiples of each channel's unit."""
    weight, bias, worth = (value.detach().numpy() for value in conv.integers())
    k, pad = conv.kernel, conv.kernel // 2
    weight = weight.reshape(len(weight), -1, k, k).astype(int).astype(object)
    padded = np.pad(x[0].numpy().astype(int), ((0, 0), (pad, pad), (pad, pad))).astype(object)
    out = np.empty((len(weight), x.shape[2], x.shape[3]), dtype=object)
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            patch = padded[:, i : i + k, j : j + k]
            out[:, i, j] = [int((w * patch).sum()) + int(b) for w, b in zip(weight, bias[:, 0], strict=True)]
    return out.astype(float) * worth[:, :, None]


@pytest.mark.parametrize("kernel, unit, largest", [(3, 1, HYPER_LIMIT), (3, ACTIVATION_UNIT, 255), (1, 32, 255)])
def test_convolution_equals_unlimited_integers(kernel, unit, largest):
    torch.manual_seed(1)
    conv = IntegerConv(20, 6, kernel, unit, largest)
    with torch.no_grad():
        conv.weight[0] *= 100
        conv.weight[1] *= 1e-5
        conv.bias[2] = 3000.0
    x = torch.randint(-largest if unit == 1 else 0, largest + 1, (1, 20, 5, 4)).float()
    expected = reference(conv, x)
    for grad in (True, False):  # as in training, and as in coding
        with torch.set_grad_enabled(grad):
            assert np.array_equal(conv(x)[0].detach().numpy().astype(float), expected)


@pytest.mark.parametrize("inputs", [4, 48, 64, 192])
def test_no_sum_can_leave_what_float32_holds_exactly(inputs):
    """The worst case of all weights and inputs at their limits and of one sign."""
    conv = IntegerConv(inputs, 2, 3, ACTIVATION_UNIT, 255)
    with torch.no_grad():
        conv.weight.fill_(1.7)
        conv.bias.fill_(1e9)
    weight, bias, _ = conv.integers()
    assert weight.abs().max() <= 127
    assert int(weight.double().abs().sum(1).max()) * 255 + int(bias.abs().max()) < 2**24


def test_weights_keep_seven_bits_whatever_their_size():
    conv = IntegerConv(8, 3, 3, 1, 127)
    with torch.no_grad():
        conv.weight[1] *= 1000
        conv.weight[2] *= 1e-3
    weight, _, worth = conv.integers()
    assert bool((weight.abs().amax(1) >= 63).all())
    real = weight * worth
    assert (
        torch.allclose(real, conv.weight.flatten(1), atol=0, rtol=0.02)
        or ((real - conv.weight.flatten(1)).abs().amax(1) <= conv.weight.flatten(1).abs().amax(1) / 120).all()
    )
    assert torch.equal(torch.frexp(worth).mantissa, torch.full_like(worth, 0.5))  # powers of two


def test_too_many_inputs_are_refused():
    with pytest.raises(ValueError, match="2\\^24"):
        IntegerConv(10_000, 2, 3, 32, 255)


def test_activations_are_integers_with_a_gradient():
    x = torch.linspace(-3, 12, 400, requires_grad=True)
    y = activate(x)
    assert torch.equal(y, y.round()) and y.min() == 0 and y.max() == 255
    y.sum().backward()
    inside = (x > 0.1) & (x < 7.8)
    assert torch.allclose(x.grad[inside], torch.tensor(float(ACTIVATION_UNIT)))
    assert bool((x.grad >= 0).all())


def test_training_sees_the_integers_that_coding_uses():
    """One forward pass for both: rounding is nothing that is added afterwards."""
    torch.manual_seed(2)
    codec = CODECS.make("mean-scale", N=8, M=12, lambdas=[0.01, 0.02])
    z = torch.randint(-20, 21, (1, 8, 3, 3)).float()
    trained = codec.train().h_s(z)
    assert hashlib.sha256(trained.detach().numpy().tobytes()).digest() == (
        hashlib.sha256(codec.eval().h_s(z).detach().numpy().tobytes()).digest()
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codec.h_s(z), trained)
    trained.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in codec.h_s.parameters())


def test_the_gradient_of_an_activation_is_that_of_compressais():
    from compressai.layers import QReLU

    x = torch.linspace(-20, 300, 3000, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    weight = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    (activate(x / ACTIVATION_UNIT) * weight).sum().backward()
    (QReLU.apply(y, 8, 100) * weight).sum().backward()
    assert torch.allclose(x.grad, y.grad, atol=1e-5)
