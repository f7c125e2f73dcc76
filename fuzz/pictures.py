# SPDX-License-Identifier: Apache-2.0
"""Fuzz target of the reader of pictures for atheris, as fuzz/decode.py is of the decoder.

What a file says of its colours is Python of ours (`llicm.colour`); it is fed alone too, for Pillow's decoders refuse
most of what a fuzzer makes before that would matter.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["llicm.colour", "llicm.images"]):
    import torch

    from llicm.colour import facts_of
    from llicm.errors import UserError
    from llicm.images import _DAMAGE, read_image

CASES = Path(__file__).resolve().parents[1] / "tests" / "cases"


def target(data: bytes) -> None:
    try:
        facts_of(data)
    except _DAMAGE:
        pass
    try:
        image = read_image(data)
    except UserError:
        return
    assert image.shape[0] == 3 and bool(torch.isfinite(image).all()) and 0 <= image.min() and image.max() <= 1


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as corpus:
        for path in CASES.iterdir():
            Path(corpus, path.name).write_bytes(path.read_bytes())
        atheris.Setup([*sys.argv, corpus], target)
        atheris.Fuzz()
