# SPDX-License-Identifier: Apache-2.0
"""compressai's own evaluation tool measures what we measure of our codec."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from small import CODEC

from llicm.errors import UserError
from llicm.framework import LLICM
from llicm.images import quantize8, read_image
from llicm.model import load_model, save_model
from llicm.registry import CODECS
from llicm.zoo import ZooCodec


@pytest.mark.slow
def test_it_measures_the_same_rate_and_psnr(tmp_path, monkeypatch):
    torch.manual_seed(0)
    codec = CODECS.make(**CODEC)
    codec.update()
    model, photos = tmp_path / "model.safetensors", tmp_path / "photos"
    save_model(LLICM(codec.eval(), None), model)
    photos.mkdir()
    rng = np.random.default_rng(0)
    for name, (width, height) in {"a": (192, 256), "b": (256, 192)}.items():
        blocks = np.kron(rng.integers(0, 255, (height // 16, width // 16, 3)), np.ones((16, 16, 1)))
        Image.fromarray(blocks.astype("uint8")).save(photos / f"{name}.png")
    command = [sys.executable, "-m", "llicm.zoo", "pretrained", str(photos), "-a", "llicm", "-q", "1,3"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LLICM_MODEL": str(model)})
    assert done.returncode == 0, done.stderr
    theirs, codec = json.loads(done.stdout)["results"], load_model(model, coding=True).codec
    for place, level in enumerate((0, 2)):
        bpp, psnr = [], []
        for path in sorted(photos.iterdir()):
            x = read_image(path)
            data = codec.compress(x, level)
            error = (quantize8(codec.decompress(data)[0]) - x).double().square().mean()
            bpp.append(8 * len(data) / x[0].numel())
            psnr.append(-10 * math.log10(error))
        assert theirs["bpp"][place] == sum(bpp) / 2
        assert theirs["psnr-rgb"][place] == pytest.approx(sum(psnr) / 2, abs=1e-4)
    monkeypatch.setenv("LLICM_MODEL", str(model))
    with pytest.raises(UserError, match="quality 5: this model has 1 to 4"):
        ZooCodec(5)
