# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from llicm.errors import UserError
from llicm.restore.direct import make_restorer


def build(**changes):
    torch.manual_seed(0)
    return make_restorer("direct", **({"width": 8, "blocks": [1, 1, 1]} | changes))


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
    x, code = torch.rand(1, 3, 32, 32), torch.tensor([0.7])
    for coded in (False, True):
        model = build(coded=coded).eval()
        torch.nn.init.normal_(model.residual.weight)
        for film in (m.film for m in model.modules() if hasattr(m, "film")):
            torch.nn.init.normal_(film.weight)
        torch.nn.init.normal_(model.code.weight)
        with torch.no_grad():
            assert torch.equal(model(x, code), model(x)) is not coded


def test_configuration_builds_the_same_network():
    model = build(context=5, coded=True)
    config = dict(model.config)
    again = make_restorer(config.pop("name"), **config)
    again.load_state_dict(model.state_dict())
    x, context = torch.rand(1, 3, 16, 16), torch.rand(1, 5)
    assert torch.equal(model(x, None, context), again(x, None, context))


def test_context_reaches_the_output():
    model = build(context=5)
    torch.nn.init.normal_(model.residual.weight)
    for film in (m.film for m in model.modules() if hasattr(m, "film")):
        torch.nn.init.normal_(film.weight)
    x = torch.rand(1, 3, 16, 16)
    assert not torch.equal(model(x, None, torch.ones(1, 5)), model(x, None, -torch.ones(1, 5)))


def test_unknown_name():
    with pytest.raises(UserError, match="direct"):
        make_restorer("nonesuch")
