"""The probability models give compressai's numbers, bit by bit."""

import pytest
import torch
from compressai.entropy_models import EntropyBottleneck, GaussianConditional

from llicm.codec.priors import FactorisedPrior, GaussianPrior


def pair(ours, theirs):
    torch.manual_seed(3)
    return ours(), (torch.manual_seed(3), theirs())[1]


def same(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    return list(ours) == list(theirs) and all(
        torch.equal(ours[n], v) and ours[n].dtype == v.dtype for n, v in theirs.items()
    )


def test_state_at_the_start():
    assert same(*pair(lambda: FactorisedPrior(7), lambda: EntropyBottleneck(7)))
    assert same(*pair(GaussianPrior, lambda: GaussianConditional(None)))


@pytest.mark.parametrize("training", [True, False])
def test_likelihoods_and_gradients(training):
    z, scale, mean = 20 * torch.randn(2, 7, 5, 6), 3 * torch.rand(2, 7, 5, 6), torch.randn(2, 7, 5, 6)
    found = []
    for model in pair(lambda: FactorisedPrior(7), lambda: EntropyBottleneck(7)):
        torch.manual_seed(1)
        out = model.train(training)(z)
        likelihood = out[1] if isinstance(out, tuple) else out
        likelihood.log().sum().backward()
        found.append([likelihood, *(p.grad for n, p in model.named_parameters() if training and n != "quantiles")])
    for model in pair(GaussianPrior, lambda: GaussianConditional(None)):
        torch.manual_seed(1)
        leaf = scale.clone().requires_grad_()
        out = model.train(training)(z, leaf, mean)
        likelihood = out[1] if isinstance(out, tuple) else out
        likelihood.log().sum().backward()
        found.append([likelihood, leaf.grad])
    for ours, theirs in (found[:2], found[2:]):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_tables():
    ours, theirs = pair(lambda: FactorisedPrior(7), lambda: EntropyBottleneck(7))
    before = torch.get_rng_state()
    ours.update()
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        theirs.update(force=True, update_quantiles=True)
        theirs.quantiles[:, 0, 1].round_()
        theirs.quantiles.copy_(theirs.quantiles.half().float())
        theirs.update(force=True)
    assert same(ours, theirs)
    again = FactorisedPrior(7)
    again.load_state_dict(ours.state_dict())
    assert same(again, theirs)
