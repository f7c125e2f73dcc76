# SPDX-License-Identifier: Apache-2.0
"""A pristine model for NIQE, fitted on photographs of our own.

NIQE (Mittal, Soundararajan and Bovik, "Making a 'completely blind' image quality analyzer", IEEE SPL 2013)
compares 36 statistics of 96x96 blocks with their mean and covariance over pristine photographs. The
published parameters cannot be assumed at hand; these are fitted with pyiqa's own feature functions, so that
pyiqa's NIQE can use them. Values are not comparable with those of the published parameters.

A dozen photographs give too few blocks for the textbook fit: its covariance is nearly singular and the
scores explode. Hence four departures, each a parameter or constant below: overlapping blocks, a half-size
copy of each photograph (which also hides traces of JPEG and demosaicing), a lower sharpness threshold, and
shrinkage of the covariance towards its diagonal.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llicm.errors import UserError
from llicm.files import write_atomically
from llicm.limits import as_pictures

BLOCK = 96
FEATURES = 36
OFFSETS = ((0, 0), (0, BLOCK // 2), (BLOCK // 2, 0), (BLOCK // 2, BLOCK // 2))
# The text of a .mat header is free, but SciPy puts the time of writing there.
HEADER = b"MATLAB 5.0 MAT-file, NIQE pristine model"
HEADER_BYTES = 116


@torch.no_grad()
def fit_niqe(photos: Sequence[Tensor], sharpness: float = 0.5, shrinkage: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Fit the pristine model: mean and covariance of NIQE's features over sharp blocks of `photos`.

    Args:
        photos: undistorted colour photographs, each (3, H, W) RGB in [0, 1]; eight or more are advised.
        sharpness: a block counts if its mean local standard deviation exceeds this share of its picture's
            maximum (0.75 in the paper).
        shrinkage: weight of the diagonal in the returned covariance, 0 to 1.

    Returns:
        mu (36,) and cov (36, 36), float64.

    Raises:
        UserError: the photographs are too few, too small or too flat for the 36 features.
    """
    kept = []
    for photo in photos:
        pixels = np.asarray((as_pictures(photo, 3) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu())
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        half = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS)
        versions = [version for version in (picture, half) if min(version.size) >= BLOCK]
        kept += [_sharp_blocks(version, sharpness) for version in versions]
    blocks = torch.cat(kept) if kept else torch.empty(0, FEATURES)
    if len(blocks) <= FEATURES:
        raise UserError(
            f"The NIQE fit found {len(blocks)} sharp blocks of {BLOCK}x{BLOCK} pixels in {len(photos)} photos "
            f"and needs more than {FEATURES}: give more, larger or sharper training photos."
        )
    features = blocks.numpy()
    cov = np.cov(features, rowvar=False)
    return features.mean(0), (1 - shrinkage) * cov + shrinkage * np.diag(np.diag(cov))


def _sharp_blocks(picture: Image.Image, sharpness: float) -> Tensor:
    """(blocks, 36) features of the sharp blocks of one picture, at all offsets."""
    from pyiqa.archs.func_util import normalize_img_with_gauss
    from pyiqa.archs.niqe_arch import compute_feature
    from pyiqa.matlab_utils import blockproc, fspecial, imfilter, imresize
    from pyiqa.utils.color_util import to_y_channel

    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
    luma = to_y_channel(image, 255, "yiq").round().double()
    window = fspecial(7, 7 / 6, 1).to(luma)
    mean = imfilter(luma, window, padding="replicate")
    deviation = (imfilter(luma**2, window, padding="replicate") - mean**2).clamp(min=0).sqrt()
    features, sharp = [], []
    for top, left in OFFSETS:
        height, width = (luma.shape[2] - top) // BLOCK * BLOCK, (luma.shape[3] - left) // BLOCK * BLOCK
        if not height or not width:
            continue
        part = luma[..., top : top + height, left : left + width]
        scales = []
        for scale in (1, 2):
            normalised = normalize_img_with_gauss(part, padding="replicate")
            size = BLOCK // scale
            scales.append(blockproc(normalised, [size, size], fun=compute_feature)[0])
            if scale == 1:
                part = imresize(part / 255, scale=0.5, antialiasing=True) * 255
        features.append(torch.cat(scales, -1))
        window_deviation = deviation[..., top : top + height, left : left + width]
        # blockproc goes down the columns: the same function keeps both lists in the same order.
        sharp.append(blockproc(window_deviation, [BLOCK, BLOCK], fun=_block_means)[0, :, 0])
    all_features, all_sharp = torch.cat(features), torch.cat(sharp)
    # Flat blocks have no finite features.
    return all_features[(all_sharp > sharpness * all_sharp.max()) & all_features.isfinite().all(1)]


def _block_means(blocks: Tensor, _options: dict) -> Tensor:
    """(blocks, 1) means of blocks (blocks, 1, height, width)."""
    return blocks.mean((1, 2, 3))[:, None]


def save_niqe(mu: np.ndarray, cov: np.ndarray, path: str | Path) -> None:
    """Write `niqe_bytes` of a pristine model, whole or not at all; the folder of `path` is made."""
    write_atomically(path, niqe_bytes(mu, cov))


def niqe_bytes(mu: np.ndarray, cov: np.ndarray) -> bytes:
    """A pristine model, mean (36,) and covariance (36, 36), as the MATLAB file that pyiqa's ``niqe`` reads.

    The same numbers give the same bytes.
    """
    import scipy.io

    mu, cov = np.asarray(mu, dtype=np.float64), np.asarray(cov, dtype=np.float64)
    if mu.shape != (FEATURES,) or cov.shape != (FEATURES, FEATURES):
        raise ValueError(f"expected shapes (36,) and (36, 36), got {mu.shape} and {cov.shape}")
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"mu_prisparam": mu[None], "cov_prisparam": cov}, do_compression=False)
    return HEADER.ljust(HEADER_BYTES) + buffer.getvalue()[HEADER_BYTES:]
