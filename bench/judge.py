# SPDX-License-Identifier: Apache-2.0
"""Give the recogniser of a model file a judge of what is clean, fitted to more photos than a study trains on.

    python bench/judge.py init/published/llicm.safetensors llicm.safetensors --photos FOLDER...

What it reaches is measured by bench/harm.py (docs/harm.md).
"""

import argparse
from pathlib import Path

import torch
from common import ROOT

from llicm.data.photo import Photo, as_bytes
from llicm.images import list_images, read_image
from llicm.model import load_model, save_model
from llicm.parameters import load
from llicm.vlm.mini import with_judge


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="folders of clean photos")
    parser.add_argument("--every", type=int, default=1, help="use each so manieth photo")
    parser.add_argument("--batches", type=int, default=400, help="of 16 crops, half of them clean")
    a = parser.parse_args()
    torch.set_num_threads(1)
    parameters, system = load(ROOT / "params.yaml"), load_model(a.model)
    photos = [Photo(as_bytes(read_image(path))) for folder in a.photos for path in list_images(folder)[:: a.every]]
    with_judge(
        system.conditioner, photos, parameters.tasks, data=parameters.data.model_dump(), severity=(0.1, 1.0),
        codec=system.codec, seed=1, batches=a.batches,
    )  # fmt: skip
    save_model(system, a.out)


if __name__ == "__main__":
    main()
