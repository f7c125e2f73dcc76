# SPDX-License-Identifier: Apache-2.0
"""Results that are committed and that no lock covers: `llicm audit` names what was changed, and nothing else."""

import hashlib
import re
import subprocess

import pytest
from clone import ROOT, Clone

from llicm.pipeline.checks import PUBLISHED, STUDY_CHECKS
from llicm.provenance.audit import audit


def test_the_list_has_them_all():
    """If it fails after measuring anew: `make checksums`."""
    listed = dict(line.split("  ")[::-1] for line in (ROOT / PUBLISHED).read_text().splitlines())
    folders = ["profiles/study/results", "results/kodak", "results/timing"]
    names = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert {name for name in names.split() if not name.endswith("README.md")} <= set(listed)
    for name, md5 in listed.items():
        assert hashlib.md5((ROOT / name).read_bytes()).hexdigest() == md5, name


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    return Clone.of_the_work_tree(tmp_path_factory.mktemp("published") / "study")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["results/headline.csv", "results/kodak/more.csv", "profiles/study/results/tables/new.csv"]
)
def test_a_result_that_nobody_made_is_named(clone, name):
    (clone.folder / name).write_text("method,bd_rate\nllicm,-60\n")
    try:
        (finding,) = audit(clone.folder, None, ["published"], more=STUDY_CHECKS)
        assert finding.what == name and finding.found == "neither"
    finally:
        (clone.folder / name).unlink()


@pytest.mark.slow
@pytest.mark.parametrize("name, check, and_list", [
    ("README.md", "readme", False),
    ("docs/results-explained.md", "readme", False),
    ("profiles/study/results/README.md", "readme", False),
    ("docs/safety.md", "published", False),
    ("docs/speed.md", "published", True),
    ("results/kodak/headline.md", "published", False),
    ("results/timing/steps.csv", "published", True),
    ("results/timing/stages.json", "published", False),
    ("profiles/study/results/tables/headline.csv", "published", False),
    ("profiles/study/results/records.parquet", "published", True),
])  # fmt: skip
def test_an_edit_is_one_finding(clone, name, check, and_list):
    path, listing = clone.folder / name, clone.folder / PUBLISHED
    before, listed = path.read_bytes(), listing.read_bytes()
    found = re.search(rb"\d\.\d", before)
    last = found.end() - 1
    path.write_bytes(before[:last] + (b"7" if before[last:][:1] != b"7" else b"3") + before[last + 1 :])
    if and_list:
        old, new = (hashlib.md5(data).hexdigest().encode() for data in (before, path.read_bytes()))
        listing.write_bytes(listed.replace(old, new))
        assert listing.read_bytes() != listed
    try:
        (finding,) = audit(clone.folder, None, ["published", "readme"], more=STUDY_CHECKS)
        assert finding.check == check and finding.what.startswith(name)
    finally:
        path.write_bytes(before)
        listing.write_bytes(listed)


@pytest.mark.slow
def test_nothing_is_found_where_nothing_was_touched(clone):
    assert audit(clone.folder, None, ["published"], more=STUDY_CHECKS) == []
