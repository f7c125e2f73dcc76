# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from llicm.errors import UserError
from llicm.registry import RESTORERS
from llicm.vlm.context import Context


def build(**changes):
    torch.manual_seed(0)
    return RESTORERS.make("direct", **({"width": 8, "blocks": [1, 1, 1]} | changes))


@pytest.mark.parametrize("size", [(64, 64), (37, 101), (9, 8)])
def test_untrained_is_the_identity_at_any_size(size):
    x = torch.rand(2, 3, *size)
    assert torch.allclose(build()(x), x, atol=1e-6)


def test_images_of_a_batch_do_not_influence_each_other():
    model = build().eval()
    torch.nn.init.normal_(model.residual.weight)
    x = torch.rand(2, 3, 40, 48)
    with torch.no_grad():
        assert torch.allclose(model(x)[1:], model(x[1:]), atol=1e-5)


def test_a_constant_factor_of_the_filter_scales_the_image():
    model = build().eval()
    torch.nn.init.constant_(model.filter[-1].bias, 0.25)
    x = torch.rand(1, 3, 24, 32)
    with torch.no_grad():
        assert torch.allclose(model(x), 1.25 * x, atol=1e-5)


def test_level_matters_only_to_a_restorer_of_decoded_images():
    x, level = torch.rand(1, 3, 32, 32), torch.tensor([0.7])
    for conditioned in (False, True):
        model = build(level_conditioned=conditioned).eval()
        torch.nn.init.normal_(model.residual.weight)
        for film in (m.film for m in model.modules() if hasattr(m, "film")):
            torch.nn.init.normal_(film.weight)
        torch.nn.init.normal_(model.level.weight)
        with torch.no_grad():
            assert torch.equal(model(x, level), model(x)) is not conditioned


def listening(**changes):
    """A restorer that does something, and whose blocks listen to the condition."""
    model = build(**changes).eval()
    torch.nn.init.normal_(model.residual.weight)
    for film in (m.film for m in model.modules() if hasattr(m, "film")):
        torch.nn.init.normal_(film.weight)
    return model


@pytest.mark.parametrize("context", [None, {"degradation": 5, "content": 0}, {"words": ["noisy", "hazy"]}])
def test_configuration_builds_the_same_network(context):
    model = listening(context=context, level_conditioned=True)
    config = dict(model.config)
    again = RESTORERS.make(config.pop("name"), **config).eval()
    again.load_state_dict(model.state_dict())
    x, given = torch.rand(1, 3, 16, 16), Context(torch.rand(1, 2 if context and "words" in context else 5))
    with torch.no_grad():
        assert torch.equal(model(x, None, given), again(x, None, given))
        assert torch.equal(model(x, None, given), model(x)) is (context is None)


@torch.no_grad()
def test_each_embedding_reaches_the_output_and_either_may_be_missing():
    model = listening(context={"degradation": 5, "content": 4})
    x, (a, b), (c, d) = torch.rand(1, 3, 16, 16), torch.randn(2, 1, 5), torch.randn(2, 1, 4)
    outputs = [
        model(x, None, context)
        for context in (None, Context(a), Context(b), Context(a, c), Context(a, d), Context(None, c))
    ]
    for i, first in enumerate(outputs):
        assert not any(torch.allclose(first, other, atol=1e-4) for other in outputs[:i])
    assert torch.equal(model(x, None, Context()), outputs[0])
    only = listening(context={"degradation": 5, "content": 0})  # given the content, it does without
    assert torch.equal(only(x, None, Context(a, c)), only(x, None, Context(a)))


@torch.no_grad()
def test_the_length_of_an_embedding_does_not_matter():
    model = listening(context={"degradation": 5, "content": 4})
    x, a, c = torch.rand(1, 3, 16, 16), torch.randn(1, 5), torch.randn(1, 4)
    same = model(x, None, Context(a, c)), model(x, None, Context(0.01 * a, 30 * c))
    assert torch.allclose(*same, atol=1e-4)


@torch.no_grad()
def test_without_context_it_is_the_restorer_without_steering():
    steered, plain = listening(context={"degradation": 5, "content": 4}), listening()
    assert set(steered.state_dict()) - set(plain.state_dict()) == {
        "steering.degradation.weight",
        "steering.content.weight",
    }
    plain.load_state_dict({n: v for n, v in steered.state_dict().items() if not n.startswith("steering.")})
    x = torch.rand(2, 3, 24, 16)
    assert torch.equal(steered(x), plain(x))
    assert torch.equal(plain(x, None, Context(torch.rand(2, 5), torch.rand(2, 4))), plain(x))


def test_unknown_name():
    with pytest.raises(UserError, match="direct"):
        RESTORERS.make("nonesuch")
