# SPDX-License-Identifier: Apache-2.0
"""Where the reference tensors lie: outside the repository, in ../shared/conformance, or as LLICM_CONFORMANCE says."""

import os
from pathlib import Path

import pytest

FOLDER = Path(
    os.environ.get("LLICM_CONFORMANCE") or Path(__file__).resolve().parents[2].joinpath("shared", "conformance")
)
conformance = pytest.mark.skipif(
    not (FOLDER / "manifest.json").is_file(),
    reason=f"no conformance data in {FOLDER}; LLICM_CONFORMANCE names a folder",
)
