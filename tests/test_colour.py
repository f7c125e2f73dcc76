# SPDX-License-Identifier: Apache-2.0
"""Whatever lies in a picture file's boxes and chunks: facts or one of the errors of damage, in little time."""

import struct

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_cases import CASES, TWINS

from llicm.colour import facts_of
from llicm.errors import UserError
from llicm.images import _DAMAGE, read_image

KINDS = [b"jp2h", b"colr", b"meta", b"iprp", b"ipco", b"ipma", b"pitm", b"ihdr", b"free"]
CONTENTS = st.one_of(
    st.binary(max_size=24),
    st.tuples(st.sampled_from([b"nclx", b"prof", b"rICC"]), st.binary(max_size=12)).map(b"".join),
)
SIZES = st.one_of(st.none(), st.sampled_from([0, 1, 2, 7, 8, 9, 2**31, 2**32 - 1]), st.integers(0, 200))


def box(kind, content, size):
    """One whose length is right, or what `size` says."""
    return struct.pack(">I", len(content) + 8 if size is None else size) + kind + content


LEAF = st.builds(box, st.sampled_from(KINDS), CONTENTS, SIZES)
BOXES = st.recursive(
    LEAF,
    lambda inner: st.builds(
        lambda kind, version, parts, size: box(kind, version + b"".join(parts), size),
        st.sampled_from(KINDS), st.sampled_from([b"", bytes(4), b"\1\0\0\1"]), st.lists(inner, max_size=4), SIZES,
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.sampled_from([b"\0\0\0\x0cjP  \r\n\x87\n", b"\0\0\0\x10ftypavifmif1"]), st.lists(BOXES, max_size=4))
@example(
    b"\0\0\0\x10ftypheicmif1", [box(b"meta", bytes(4) + box(b"iprp", box(b"ipma", b"\xff" * 12, None), None), None)]
)
@settings(max_examples=300, deadline=1000)
def test_boxes_of_any_kind_and_length(head, boxes):
    try:
        facts = facts_of(head + b"".join(boxes))
    except _DAMAGE:
        return
    assert len(facts.primaries) == 8 and isinstance(facts.profile, bytes | None)


@pytest.fixture(scope="module")
def pictures():
    made = {path.suffix[1:]: path.read_bytes() for path in sorted(CASES.iterdir())}
    return [*made.values(), TWINS["HEIC, nclx: P3"](), TWINS["AVIF, nclx: P3"](), TWINS["JPEG 2000, CIELAB"]()]


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_altered_pictures_are_pictures_or_one_sentence(pictures, data):
    altered = bytearray(data.draw(st.sampled_from(pictures)))
    head = min(len(altered), 700)  # where boxes and chunks are
    for at, value in data.draw(
        st.lists(st.tuples(st.integers(0, head - 1), st.integers(0, 255)), min_size=1, max_size=5)
    ):
        altered[at] = value
    del altered[len(altered) - data.draw(st.integers(0, 20)) :]
    try:
        image = read_image(bytes(altered))
    except UserError as error:
        assert "cannot be read as an image" in str(error)
        return
    assert image.shape[0] == 3 and bool(torch.isfinite(image).all()) and 0 <= image.min() and image.max() <= 1
