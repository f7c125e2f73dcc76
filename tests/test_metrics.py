# SPDX-License-Identifier: Apache-2.0
"""Metrics: definitions, directions, floors, errors; and the fitted NIQE."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from llicm.benchmark.metrics import REQUIRED_FILES, make_metrics, metric_info
from llicm.benchmark.niqe import fit_niqe, save_niqe
from llicm.errors import UserError

CORE = ["psnr", "ssim", "ms_ssim", "gmsd", "nlpd", "vif", "piqe"]


def bundled(name):
    """A photograph that ships with scikit-image, (3, H, W)."""
    import skimage

    path = Path(skimage.__file__).parent / "data" / name
    if not path.is_file():
        pytest.skip(f"this scikit-image does not bundle {name}")
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).float() / 255


def noisy(image, sigma, seed=0):
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed)) * sigma / 255
    return ((image + noise).clamp(0, 1) * 255).round() / 255


def jpeg(image, quality):
    buffer = io.BytesIO()
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1).float() / 255


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Several threads are slower than one on pictures of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def photo():
    return bundled("chelsea.png")[:, 20:212, 100:324]


@pytest.fixture(scope="module")
def niqe_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("niqe") / "fit.mat"
    save_niqe(*fit_niqe([bundled(n) for n in ("astronaut.png", "coffee.png", "rocket.jpg")]), path)
    return path


def test_every_core_metric_ranks_noise_and_keeps_batches_apart(photo):
    clean, weak, strong = photo, noisy(photo, 10), noisy(photo, 40)
    batch, ideal = torch.stack([clean, weak, strong]), torch.stack([clean] * 3)
    for metric in make_metrics(CORE):
        values = metric(batch, ideal if metric.needs_reference else None)
        assert values.shape == (3,) and values.dtype == torch.float64, metric
        order = values if metric.lower_better else -values
        assert order[0] < order[1] < order[2], (metric, values)
        alone = metric(strong[None], clean[None] if metric.needs_reference else None)
        assert alone.item() == values[2].item(), f"{metric} depends on the batch"


def test_definitions(photo):
    output = noisy(photo, 25)
    psnr, ssim, ms_ssim = make_metrics(["psnr", "ssim", "ms_ssim"])
    # pyiqa adds 1e-8 to the squared error.
    expected = -10 * math.log10((output - photo).double().square().mean().item() + 1e-8)
    assert psnr(output[None], photo[None]).item() == pytest.approx(expected, abs=1e-4)
    assert psnr(photo[None], photo[None]).item() == pytest.approx(80)

    from skimage.metrics import structural_similarity

    # Gaussian window on RGB, borders left out, population covariance: the definition of Wang et al. (2004).
    _, full = structural_similarity(
        output.numpy(), photo.numpy(), channel_axis=0, data_range=1, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, full=True,
    )  # fmt: skip
    assert ssim(output[None], photo[None]).item() == pytest.approx(full[:, 5:-5, 5:-5].mean(), abs=1e-4)

    from pytorch_msssim import MS_SSIM

    assert ms_ssim(output[None], photo[None]).item() == pytest.approx(
        MS_SSIM(data_range=1.0, channel=3)(output[None], photo[None]).item(), abs=1e-6
    )


def test_distorted_comes_first(photo):
    """VIF is not symmetric: it must get the output as distorted, the ideal as reference."""
    import pyiqa

    (vif,) = make_metrics(["vif"])
    output = noisy(photo, 25)
    expected = pyiqa.create_metric("vif", device="cpu")(output[None], photo[None]).item()
    assert vif(output[None], photo[None]).item() == pytest.approx(expected, rel=1e-6)
    assert vif(photo[None], output[None]).item() != pytest.approx(expected, rel=1e-3)


def test_published_regression_values():
    """The five TID2013 pairs in pyiqa's wheel; values that its authors publish."""
    import pyiqa

    root = Path(pyiqa.__file__).parents[1] / "ResultsCalibra"
    if not root.is_dir():
        pytest.skip("this pyiqa wheel does not hold the calibration pictures")

    def read(path):
        pixels = np.array(Image.open(path).convert("RGB"))
        return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255

    published = {"psnr": 20.9872, "vif": 0.9891, "gmsd": 0.0005, "piqe": 21.624}
    output = read(next((root / "dist_dir").glob("I04*")))
    ideal = read(next((root / "ref_dir").glob("I04*")))
    for metric in make_metrics(list(published)):
        assert metric(output, ideal).item() == pytest.approx(published[metric.name], rel=1e-3, abs=1e-4)


def test_information_comes_without_loading():
    assert not metric_info("psnr").lower_better and metric_info("psnr").unit == "dB"
    lpips = metric_info("lpips")
    assert lpips.lower_better and lpips.needs_reference
    assert metric_info("piqe").axis_label == "PIQE (lower is better)"
    assert metric_info("niqe_fit").lower_better and not metric_info("niqe_fit").needs_reference
    for name in REQUIRED_FILES:
        metric_info(name)  # the table names metrics that exist


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["psnrr"], "Unknown metric 'psnrr': did you mean 'psnr'"),
        (["msssim"], "ms_ssim"),
        (["psnr", "psnr"], "listed 2 times"),
        (["fid"], "sets of pictures"),
        (["niqe_fit"], "no file is given"),
    ],
)
def test_wrong_names(names, words):
    with pytest.raises(UserError, match=words):
        make_metrics(names)


@pytest.mark.parametrize("name", ["lpips", "niqe", "musiq", "topiq_nr", "clipiqa+"])
def test_absent_files_are_named_and_nothing_is_downloaded(name, tmp_path, monkeypatch):
    import huggingface_hub.constants
    import pyiqa.utils.download_util

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(pyiqa.utils.download_util, "DEFAULT_CACHE_DIR", str(tmp_path / "pyiqa"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    with pytest.raises(UserError) as caught:
        make_metrics([name])
    first = REQUIRED_FILES[name][0].rpartition("/")[2]
    assert str(tmp_path) in str(caught.value)
    assert ("model.safetensors" if REQUIRED_FILES[name][0].startswith("HF/") else first) in str(caught.value)
    assert not list(tmp_path.rglob("*"))


def test_metric_outside_the_table_cannot_reach_the_network(tmp_path, monkeypatch):
    import socket

    import pyiqa.utils.download_util

    monkeypatch.setattr(pyiqa.utils.download_util, "DEFAULT_CACHE_DIR", str(tmp_path))
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *a, **k: asked.append(host))
    resolver = socket.getaddrinfo
    with pytest.raises(UserError, match="'wadiqam_nr' cannot be loaded"):
        make_metrics(["wadiqam_nr"])
    assert not asked
    assert socket.getaddrinfo is resolver, "the guard must be lifted afterwards"


def test_damaged_fit_is_one_sentence(tmp_path):
    file = tmp_path / "fit.mat"
    file.write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match="fit.mat"):
        make_metrics(["niqe_fit"], file)


def test_wrong_pictures(niqe_file, photo):
    psnr, ms_ssim, gmsd, niqe = make_metrics(["psnr", "ms_ssim", "gmsd", "niqe_fit"], niqe_file)
    small = torch.rand(1, 3, 160, 300, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="'ms_ssim' needs images of at least 161x161 pixels, got 300x160"):
        ms_ssim(small, small)
    with pytest.raises(UserError, match="192x192"):
        niqe(small)
    with pytest.raises(UserError, match="64x64"):
        gmsd(small[..., :20], small[..., :20])
    assert psnr(small[..., :1, :1], small[..., :1, :1]).item() == pytest.approx(80)
    ms_ssim(torch.nn.functional.pad(small, (0, 0, 0, 1)), torch.nn.functional.pad(small, (0, 0, 0, 1)))
    with pytest.raises(UserError, match="reference"):
        psnr(small)
    with pytest.raises(UserError, match="reference"):
        psnr(small, small[..., :-1])
    for wrong in (small * 255, small * float("nan"), small - 0.5):
        with pytest.raises(UserError, match="expected pictures"):
            psnr(wrong, wrong)
    assert math.isnan(niqe(torch.full((1, 3, 200, 200), 0.5)).item()), "a flat picture has no NIQE"


def test_nothing_is_printed(niqe_file, photo, capfd):
    for metric in make_metrics([*CORE, "niqe_fit"], niqe_file):
        metric(photo[None], photo[None])
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


def test_fitted_niqe_orders_distortions(niqe_file):
    """Means over pictures that the fit has not seen."""
    (niqe,) = make_metrics(["niqe_fit"], niqe_file)
    photos = [bundled("motorcycle_left.png"), bundled("chelsea.png")]

    def mean(distort):
        return np.mean([niqe(distort(p)[None]).item() for p in photos])

    clean, q10, noise50 = mean(lambda p: p), mean(lambda p: jpeg(p, 10)), mean(lambda p: noisy(p, 50))
    assert 1 < clean < q10 < noise50 < 30


def test_fit_is_a_proper_model_and_its_file_is_stable(tmp_path, niqe_file, monkeypatch):
    photos = [bundled("coffee.png"), bundled("rocket.jpg")]
    mu, cov = fit_niqe(photos)
    assert mu.shape == (36,) and cov.shape == (36, 36) and np.allclose(cov, cov.T)
    assert np.linalg.eigvalsh(cov).min() > 1e-6, "shrinkage must keep the covariance well away from singular"
    again = fit_niqe(photos)
    assert np.array_equal(mu, again[0]) and np.array_equal(cov, again[1])
    sharpest, _ = fit_niqe(photos, sharpness=0.4)
    assert not np.allclose(mu, sharpest)

    import time

    save_niqe(mu, cov, tmp_path / "a" / "one.mat")
    monkeypatch.setattr(time, "asctime", lambda *a: "Thu Jan  1 00:00:00 1970")
    save_niqe(mu, cov, tmp_path / "two.mat")
    assert (tmp_path / "a" / "one.mat").read_bytes() == (tmp_path / "two.mat").read_bytes()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["one.mat"]
    loaded = scipy.io.loadmat(tmp_path / "two.mat")
    assert np.array_equal(loaded["mu_prisparam"], mu[None]) and np.array_equal(loaded["cov_prisparam"], cov)


def test_features_are_those_that_niqe_computes():
    """On one grid of blocks and without a threshold, features equal those of pyiqa's own NIQE."""
    from pyiqa.archs import niqe_arch

    photo = bundled("astronaut.png")[:, :192, :192]
    seen = {}
    original = niqe_arch.nancov

    def spy(features):
        seen["features"] = features[0].numpy()
        return original(features)

    import llicm.benchmark.niqe as ours

    niqe_arch.nancov, offsets = spy, ours.OFFSETS
    ours.OFFSETS = ((0, 0),)
    try:
        from pyiqa.utils.color_util import to_y_channel

        luma = to_y_channel(photo[None], 255, "yiq").round().double()
        niqe_arch.niqe(luma, torch.zeros(1, 36).double(), torch.eye(36)[None].double())
        picture = Image.fromarray((photo * 255).round().byte().permute(1, 2, 0).numpy())
        blocks = ours._sharp_blocks(picture, sharpness=-1).numpy()
    finally:
        niqe_arch.nancov, ours.OFFSETS = original, offsets
    assert blocks.shape == (4, 36)
    np.testing.assert_allclose(blocks, seen["features"], rtol=1e-10)


@pytest.mark.parametrize("photos", [[], [torch.zeros(3, 400, 400)], [torch.rand(3, 90, 400)]])
def test_too_little_to_fit(photos):
    with pytest.raises(UserError, match="sharp blocks"):
        fit_niqe(photos)
