# SPDX-License-Identifier: Apache-2.0
"""The grammar of methods."""

import pytest
from small import ROOT

from llicm.errors import UserError
from llicm.methods import ROLES, methods_of
from llicm.parameters import Group, load

PARTS = {
    "rdo": {"codec"}, "restorer": {"restorer"}, "irsde": {"restorer"}, "llicm": {"codec", "restorer"},
    "around": {"codec", "restorer", "prefilter"}, "adapted": {"codec", "restorer"}, "webp-restorer": {"restorer"},
}  # fmt: skip


def group(methods, levels=None, **more):
    return Group.model_validate({"methods": methods, "models": ["none"] * 3, "levels": levels or [1, 2], **more})


def parse(text):
    (method,) = methods_of({"g": group([text])}, PARTS)
    return method


@pytest.mark.parametrize(
    ("text", "prefilter", "codec", "restorer", "order"),
    [
        ("raw", None, "raw", None, "alone"),
        ("heic", None, "heic", None, "alone"),
        ("heic>restorer", None, "heic", "restorer", "after"),
        ("restorer>heic", "restorer", "heic", None, "before"),
        ("restorer>heic>webp-restorer", "restorer", "heic", "webp-restorer", "around"),
        ("rdo", None, "rdo", None, "alone"),
        ("rdo>restorer", None, "rdo", "restorer", "after"),
        # an adapted restorer has its codec in its folder too; the one that is written counts
        ("rdo>adapted", None, "rdo", "adapted", "after"),
        ("restorer>rdo>adapted", "restorer", "rdo", "adapted", "around"),
        ("llicm", None, "llicm", "llicm", "after"),
        ("around", "around", "around", "around", "around"),
    ],
)
def test_what_a_method_consists_of(text, prefilter, codec, restorer, order):
    method = parse(text)
    assert (method.name, method.group, method.title) == (text, "g", text.replace(">", " → "))
    assert (method.prefilter, method.codec, method.restorer, method.order) == (prefilter, codec, restorer, order)
    assert method.learned == (codec in PARTS) and method.levels == (1, 2) and method.steps is None
    assert method.models == {name for name in (prefilter, codec, restorer) if name in PARTS}


def test_steps_of_a_diffusion_restorer():
    assert (parse("rdo>irsde@10").steps, parse("rdo>irsde@10").restorer) == (10, "irsde")
    assert parse("llicm@3").steps == 3
    for text in ("rdo>irsde@0", "rdo>irsde@", "rdo>irsde@-1", "rdo>irsde@many"):
        with pytest.raises(UserError, match=rf"method '{text}': '.*' is no number of steps; write restorer@10"):
            parse(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("heic>nobody", "'nobody' is no model that restores"),
        ("nobody>heic", "'heic' is no model that restores"),  # so `nobody` can only be a codec
        ("heic>rdo", "'rdo' is no model that restores"),
        ("restorer>restorer>heic", "two restorers in a row"),
        ("heic>restorer>irsde", "two restorers in a row"),
        ("restorer", "has no codec"),
        ("restorer>irsde", "has no codec"),
    ],
)
def test_what_is_no_method(text, said):
    with pytest.raises(UserError, match=f"method '{text}'.*{said}"):
        parse(text)


def test_a_method_may_have_a_name_and_a_group_a_title():
    methods = methods_of({"g": group({"degraded": "raw", "restored": "raw>restorer"}, role="reference")}, PARTS)
    assert [(m.name, m.codec, m.order, m.role) for m in methods] == [
        ("degraded", "raw", "alone", "reference"), ("restored", "raw", "after", "reference"),
    ]  # fmt: skip
    (ablated,) = methods_of({"g": group(["llicm"], role="ablation", title="no VLM")}, PARTS)
    assert (ablated.name, ablated.title) == ("llicm", "no VLM")


def test_levels_may_differ_by_codec():
    written = {"heic": [3, 4], "webp": [5]}
    heic, webp = methods_of({"g": group(["heic", "webp"], written)}, PARTS)
    assert (heic.levels, webp.levels) == ((3, 4), (5,))
    with pytest.raises(UserError, match="benchmark.g has no levels for codec 'avif'"):
        methods_of({"g": group(["avif"], written)}, PARTS)


def test_a_method_is_in_one_group():
    with pytest.raises(UserError, match="method 'heic' is in two groups"):
        methods_of({"a": group(["heic"]), "b": group(["heic>restorer", "heic"])}, PARTS)


@pytest.mark.parametrize("path", [".", "profiles/study", "profiles/smoke"])
def test_methods_of_the_studies(path):
    parameters = load(ROOT / path / "params.yaml")
    methods = {method.name: method for method in parameters.methods}
    assert list(dict.fromkeys(m.group for m in methods.values())) == list(parameters.benchmark)
    assert {m.role for m in methods.values()} <= set(ROLES)
    assert methods[parameters.figures.test].role == "test" and methods["degraded"].role == "reference"
    for method in methods.values():
        assert method.models <= set(parameters.models)
        assert method.levels == tuple(sorted(method.levels))
