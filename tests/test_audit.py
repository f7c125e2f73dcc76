# SPDX-License-Identifier: Apache-2.0
"""`llicm audit` on a real run of the smoke profile: silent on what is whole, and it names whatever was tampered with.

On a lock file written by hand, and a number in the README: tests/test_lineage.py.
"""

import re

import pytest

from llicm.pipeline.checks import STUDY_CHECKS
from llicm.provenance.audit import audit

pytestmark = pytest.mark.slow


def findings(clone, checks=None):
    return audit(clone.folder, "smoke", checks, more=STUDY_CHECKS)


def test_nothing_is_found_where_nothing_was_touched(clone):
    assert findings(clone) == []


def alter_weights(profile):
    path = profile / "artifacts/release/llicm.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    return path, bytes(data)


def alter_text(name, old, new):
    def alter(profile):
        path = next(profile.glob(name))
        text = path.read_text()
        assert re.search(old, text), f"{path} does not hold {old}"
        return path, re.sub(old, new, text, count=1).encode()

    return alter


def alter_bytes(name, more=b"\0"):
    def alter(profile):
        path = sorted(profile.glob(name))[0]
        return path, path.read_bytes() + more

    return alter


LOCK_ENTRY = r"(path: artifacts/release\n    +hash: md5\n    +md5: )\w{4}"
TAMPERED = {
    "a weight byte": (alter_weights, "weights", "llicm.safetensors"),
    "a CSV cell": (alter_text("results/tables/headline.csv", r"(\d)\n", r"\g<1>7\n"), "figures", "headline.csv"),
    "a figure": (alter_bytes("results/figures/figure_4_psnr.png"), "figures", "figure_4_psnr.png"),
    "a notebook cell": (
        alter_text("executed/1_degrade.ipynb", r"check_apart\(p\.photos\)", "pass"),
        "notebooks", "1_degrade.ipynb, code cell",
    ),
    "a number in a notebook's table": (
        alter_text("executed/4_evaluate-webp.ipynb", r"\d(\d\.\d\d)\\n", r"9\1\\n"),
        "shown", "4_evaluate-webp.ipynb, cell",
    ),
    "a number that a notebook printed": (
        alter_text("executed/3_train-rdo.ipynb", r"(bpp\S+ 0)\.\d", r"\1.0"), "shown", "3_train-rdo.ipynb, cell",
    ),
    "a number of the degraded photos": (
        alter_text("executed/1_degrade.ipynb", r"<td>21\.", "<td>25."), "shown", "1_degrade.ipynb, cell",
    ),
    "a result that a notebook printed": (
        alter_text("results/training/rdo.json", r"(loss\D+)\d", r"\g<1>1"), "shown", "3_train-rdo.ipynb, cell",
    ),
    "what the notebook of the figures shows": (
        alter_text("executed/5_figures.ipynb", r"\d values: ", "7777 values: "), "figures", "5_figures.ipynb, cell",
    ),
    "a parameter": (alter_text("params.yaml", "crop: 64", "crop: 96"), "lock", "params.yaml: training"),
    "a lock entry": (alter_text("dvc.lock", LOCK_ENTRY, r"\g<1>0000"), "hashes", "artifacts/release"),
    "a data file": (alter_bytes("../../data/test/*"), "hashes", "data"),
    "a size in the lock": (
        alter_text("dvc.lock", r"(path: artifacts/release\n +hash: md5\n +md5: \S+\n +size: )\d", r"\g<1>77"),
        "hashes", "size of profiles/smoke/artifacts/release",
    ),
    "prose in an executed notebook": (
        alter_text(
            "executed/4_evaluate-webp.ipynb", r'"cells": \[',
            '"cells": [{"cell_type": "markdown", "id": "z", "metadata": {}, "source": ["60% fewer bits"]},',
        ),
        "notebooks", "4_evaluate-webp.ipynb",
    ),
    "a module": (alter_bytes("../../src/llicm/files.py", b"# edited\n"), "hashes", "src/llicm/files.py"),
    "a figure of the page": (alter_text("results/README.md", r"\.png", ".jpg"), "figures", "results/README.md"),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERED)
def test_it_catches(clone, what):
    alter, check, named = TAMPERED[what]
    path, data = alter(clone.profile)
    original = path.read_bytes()
    assert data != original
    path.unlink()  # DVC may have linked it to its cache
    path.write_bytes(data)
    try:
        checks = [check] if check == "figures" else ["lock", "history", "hashes", "notebooks", "shown", "weights"]
        every = findings(clone, checks)
        found = [finding for finding in every if finding.check == check]
        assert any(named in finding.what for finding in found), every
        assert all(finding.expected != finding.found and finding.remedy for finding in found)
        if what == "a module":  # one cause, though all stages import it and the stage `code` has its folder
            assert [finding.what for finding in every] == [named]
    finally:
        path.unlink()
        path.write_bytes(original)
