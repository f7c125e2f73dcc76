# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from llicm.benchmark.metrics import make_metrics, metric_info
from llicm.benchmark.probes import estimated_bpp, kept_energy
from llicm.errors import UserError
from llicm.registry import CODECS


def test_what_is_kept_of_a_degradation():
    torch.manual_seed(0)
    ideal, noise, error = torch.rand(3, 64, 64), 0.1 * torch.randn(3, 64, 64), 0.1 * torch.randn(3, 64, 64)
    assert kept_energy(ideal + noise, ideal + noise, ideal) == pytest.approx(1)
    assert kept_energy(ideal, ideal + noise, ideal) == 0
    assert kept_energy(ideal + 0.5 * noise, ideal + noise, ideal) == pytest.approx(0.25)
    # an error of coding that has nothing to do with the noise does not count
    assert kept_energy(ideal + noise + error, ideal + noise, ideal) == pytest.approx(1, abs=0.05)
    assert kept_energy(ideal, ideal, ideal) is None


@pytest.mark.parametrize("size", [(128, 192), (100, 70)])
def test_the_estimate_is_near_the_real_file(size):
    torch.manual_seed(0)
    codec = CODECS.make("mean-scale", N=8, M=192, lambdas=[0.002, 0.007, 0.02, 0.07])
    codec.update()
    codec.eval()
    x = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 12), size=size, mode="bicubic")[0].clamp(0, 1)
    real = 8 * len(codec.compress(x, 2)) / (size[0] * size[1])
    estimate = estimated_bpp(codec, x, 2)
    # the header of 24 bytes apart
    assert estimate == pytest.approx(real - 8 * 24 / (size[0] * size[1]), rel=0.15)
    assert estimated_bpp(codec, x, 0) < estimate < estimated_bpp(codec, x, 3)


def test_probes_have_names_and_are_no_metrics():
    assert metric_info("bpp_estimated").unit == "bpp" and metric_info("kept").lower_better
    with pytest.raises(UserError, match="'kept' is measured of every method anyway"):
        make_metrics(["kept"])
