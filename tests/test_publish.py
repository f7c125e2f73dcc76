# SPDX-License-Identifier: Apache-2.0
"""Publishing weights: files, cards, lineage; and what must not be published."""

import hashlib
import json
import shutil

import pytest

from llicm.errors import UserError
from llicm.model import load_model
from llicm.pipeline.publish import PARTS, publish
from llicm.weights import load_part

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _unpublished(clone, tmp_path):
    """Nothing was published from this repository yet; the weights it had are put back afterwards."""
    out = clone.folder / "init" / "published"
    out.rename(tmp_path / "published")
    yield
    shutil.rmtree(out, ignore_errors=True)
    (tmp_path / "published").rename(out)


def test_weights_cards_and_lineage(clone):
    out = publish(clone.folder, "smoke")
    assert out == clone.folder / "init" / "published"
    assert {path.name for path in out.iterdir()} == {
        f"{name}.{kind}" for name in PARTS for kind in ("md", "safetensors")
    } | {"lineage.json"}
    for name, file in PARTS.items():
        data = (clone.profile / file).read_bytes()
        assert (out / f"{name}.safetensors").read_bytes() == data
        card = (out / f"{name}.md").read_text()
        assert hashlib.sha256(data).hexdigest() in card and f"{len(data):,} bytes" in card
        assert "license: apache-2.0" in card.split("---")[1]
        assert "None" not in card and "nan" not in card and "{{" not in card
    assert load_model(out / "llicm.safetensors").conditioner is not None
    assert load_part("codec", out / "rdo.safetensors").levels > 1
    lineage = json.loads((out / "lineage.json").read_text())
    assert lineage["verified"] and {"train@rdo", "data.dvc"} <= {stage["stage"] for stage in lineage["stages"]}
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    publish(clone.folder, "smoke")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first


def test_weights_that_are_not_those_of_the_lock_file_stay_where_they_are(clone):
    out = publish(clone.folder, "smoke")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    weights = clone.profile / PARTS["restorer"]
    data = weights.read_bytes()
    try:
        weights.unlink()  # a link into DVC's cache, maybe
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(UserError, match="cannot be published.*models/restorer"):
            publish(clone.folder, "smoke")
        weights.unlink()
        with pytest.raises(UserError, match="no such weights|cannot be published.*models/restorer"):
            publish(clone.folder, "smoke")
    finally:
        weights.write_bytes(data)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert not [path for path in out.parent.iterdir() if path.name.startswith(".published")]


def test_a_study_that_was_not_evaluated(clone):
    records = clone.profile / "results" / "records.parquet"
    records.rename(records.with_suffix(".away"))
    try:
        with pytest.raises(UserError, match="records.parquet: missing"):
            publish(clone.folder, "smoke")
    finally:
        records.with_suffix(".away").rename(records)
    assert not (clone.folder / "init" / "published").exists()
