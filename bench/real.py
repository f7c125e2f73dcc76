# SPDX-License-Identifier: Apache-2.0
"""The published models on pairs with a real degradation. `make real` writes docs/real.json, which docs/real.md shows.

    python bench/real.py [--pictures 16] [--side 384]

The sets must be registered (`llicm data add noisy-polyu FOLDER`, ...). Pictures at equal distances are measured, in the
middle.
"""

import argparse
import sys
from pathlib import Path

import torch
from common import ROOT
from torch import Tensor

from llicm.benchmark.metrics import make_metrics
from llicm.data.catalogue import catalogue, folder_of
from llicm.data.pairs import Pair, centre_crop, read_pairs
from llicm.errors import UserError
from llicm.files import write_json
from llicm.framework import LLICM
from llicm.images import quantize8
from llicm.model import PUBLISHED_MODEL, load_model
from llicm.vlm.clip import WORDS
from llicm.weights import load_part

SETS = [name for name, entry in catalogue().items() if entry.kind == "real"]


@torch.no_grad()
def measure(pair: Pair, system: LLICM, restorer: LLICM) -> dict[str, str | float]:
    """PSNR in dB of X, of X restored, and of X through the whole system at its middle level, and bits per pixel."""
    (psnr,) = make_metrics(["psnr"])

    def against(image: Tensor) -> float:
        return round(float(psnr(quantize8(image)[None], pair.ideal[None])[0]), 3)

    (recognised,) = system.conditioner.recognise(pair.degraded[None]).argmax(1)
    data = system.compress(pair.degraded, (system.codec.levels - 1) // 2)
    return {
        "image": pair.name, "taken for": WORDS[recognised], "x": against(pair.degraded),
        "restored": against(restorer.enhance(pair.degraded[None])[0]), "coded": against(system.decompress(data)[1]),
        "bpp": round(8 * len(data) / pair.ideal[0].numel(), 4),
    }  # fmt: skip


def run(count: int, side: int, sets: list[str], datasets: Path = ROOT / "datasets") -> dict:
    """The content of docs/real.json: by set its `degradation`, `of` how many pictures there are, and a row a picture.

    Raises:
        UserError: a set is not registered.
    """
    folders = {name: folder_of(name, datasets) for name in sets}
    system = load_model(ROOT / PUBLISHED_MODEL)
    restorer = LLICM(None, load_part("restorer", (ROOT / PUBLISHED_MODEL).with_name("restorer.safetensors")))
    restorer.conditioner = system.conditioner
    found = {}
    for name, folder in folders.items():
        pairs, rows = read_pairs(folder, "", ""), []
        for pair in pairs[:: -(-len(pairs) // count)]:
            cut = Pair(pair.name, *(centre_crop(image, side) for image in pair[1:]))
            rows.append(measure(cut, system, restorer))
        found[name] = {"degradation": catalogue()[name].degradation, "of": len(pairs), "pictures": rows}
    return {"side": side, "sets": found}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=16, help="of each set, at most")
    parser.add_argument("--side", type=int, default=384, help="pixels a side that are kept, at most")
    arguments = parser.parse_args()
    try:
        write_json(run(arguments.pictures, arguments.side, SETS), ROOT / "docs" / "real.json")
    except UserError as error:
        sys.exit(f"error: {error}")
