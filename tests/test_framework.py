# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch
import torch.nn.functional as F
from small import always

from llicm.framework import LLICM, SURE
from llicm.images import quantize8
from llicm.registry import CODECS, RESTORERS
from llicm.vlm.conditioner import Conditioner, Oracle
from llicm.vlm.context import Context


def picture(height, width):
    coarse = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (height, width), mode="bicubic")[0].clamp(0, 1)


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    codec = CODECS.make("mean-scale", N=8, M=12, lambdas=[0.002, 0.007, 0.02, 0.07])
    codec.update()
    return codec.eval()


def listening(context):
    """A restorer that does something, and whose blocks listen to what they are told."""
    torch.manual_seed(0)
    model = RESTORERS.make("direct", width=8, blocks=[1, 1, 1], context=context, level_conditioned=True)
    torch.nn.init.normal_(model.residual.weight, std=0.02)
    for film in (m.film for m in model.modules() if hasattr(m, "film")):
        torch.nn.init.normal_(film.weight)
    return model.eval()


def sure(tiny_daclip, *probabilities):
    """A conditioner to whom something is wrong with every picture with that probability."""
    return Conditioner(tiny_daclip, "windows", judge=always(*probabilities))


def test_naming_the_degradation_changes_what_is_restored(codec, tiny_daclip):
    system = LLICM(codec, listening({"degradation": 16, "content": 16}), sure(tiny_daclip, 0.99))
    data = system.compress(picture(50, 70), 2)
    decoded, detected = system.decompress(data)
    outputs = [detected]
    for task in ("rainy", "hazy", "low-light, noisy"):
        again, output = system.decompress(data, task=task)
        assert torch.equal(again, decoded) and output.min() >= 0 and output.max() <= 1
        assert all((output - other).abs().max() > 1e-3 for other in outputs)
        outputs.append(output)
    for film in (m.film for m in system.restorer.modules() if hasattr(m, "film")):
        torch.nn.init.zeros_(film.weight)
    assert torch.equal(system.decompress(data)[1], system.decompress(data, task="rainy")[1])


@pytest.mark.parametrize(
    ("share", "part"), [(0.0, 0.0), (0.9 * SURE[0], 0.0), (sum(SURE) / 2, 0.5), (1.1 * SURE[1], 1.0)]
)
def test_a_picture_changes_as_far_as_it_is_sure_that_something_is_wrong(codec, tiny_daclip, share, part):
    restorer, conditioner = listening({"degradation": 16, "content": 0}), sure(tiny_daclip, share)
    system, x = LLICM(codec, restorer, conditioner, copy.deepcopy(restorer)), quantize8(picture(48, 64))
    decoded, level = codec.decompress(codec.compress(x, 1.0))[0][None], torch.tensor([0.5])
    whole = restorer(decoded, level, conditioner(decoded))
    assert torch.allclose(system.enhance(decoded, level), decoded + part * (whole - decoded), atol=1e-4)
    before = restorer(x[None], None, conditioner(x[None]))[0]
    assert (system.prefiltered(x) - (x + part * (before - x)).clamp(0, 1)).abs().max() < 1.1 / 255
    if part == 0:
        assert torch.equal(system.enhance(decoded, level), decoded) and torch.equal(system.prefiltered(x), x)
        data = system.compress(x, 1.0)
        assert data == codec.compress(x, 1.0) and torch.equal(*system.decompress(data))
    if part == 1:
        assert torch.equal(system.enhance(decoded, level), whole)
    batch = system.prefiltered(x[None])
    assert torch.equal(batch[0], before.clamp(0, 1)), "in training the prefilter is not held back"


def test_tones_change_as_far_as_it_is_sure_that_they_are_wrong(codec, tiny_daclip):
    class Brighter(torch.nn.Module):
        level_conditioned = False

        def __init__(self, light):
            super().__init__()
            self.light = light

        def forward(self, x, level=None, context=None):
            return x + self.light + 0.02 * torch.sign(x - x.mean())

    x = 0.2 + 0.5 * picture(48, 64)[None]
    for tonal, light, part in [(0.0, 0.2, 0.0), (0.0, 0.0, 1.0), (sum(SURE) / 2, 0.2, 0.5), (0.9, 0.2, 1.0)]:
        system = LLICM(None, restorer := Brighter(light), sure(tiny_daclip, 0.9, tonal))
        assert torch.allclose(system.enhance(x), x + part * (restorer(x) - x), atol=2e-3)
        assert system.share == pytest.approx(part, abs=0.02)
        assert torch.equal(system.enhance(x, hints=["hazy"]), restorer(x)), "a hint is believed"


def test_the_user_knows_better_than_the_conditioner(codec, tiny_daclip):
    x = quantize8(picture(48, 64))
    for share in (0.01, 0.99):
        system = LLICM(codec, restorer := listening(None), sure(tiny_daclip, share), copy.deepcopy(restorer))
        assert torch.equal(system.prefiltered(x, ["clean"]), x)
        data = system.compress(x, 1.0)
        decoded, left = system.decompress(data, "clean")
        assert torch.equal(left, decoded)
        whole, half = (system.decompress(data, "rainy", strength)[1] for strength in (1.0, 0.5))
        inside = (whole > 0) & (whole < 1)
        assert torch.allclose(half[inside], (decoded + whole)[inside] / 2, atol=1e-4) and not torch.equal(half, whole)
        assert torch.equal(system.decompress(data, "rainy", 0.0)[1], decoded)
    # a batch in which each picture has a certainty of its own
    both = system.enhance(torch.stack([x, x]), None, ["clean", "rainy"])
    assert torch.equal(both[0], x) and not torch.equal(both[1], x)


def test_the_conditioner_sees_the_decoded_image_and_nothing_flows_back(codec):
    class Spy(torch.nn.Module):
        def forward(self, decoded, hints=None):
            self.seen, self.hints = decoded, hints
            return Context(decoded.mean((2, 3)))

    conditioner, restorer = Spy(), listening({"degradation": 3, "content": 0})
    system = LLICM(codec, restorer, conditioner)
    output = system(picture(64, 64)[None], torch.tensor([1.0]), ["noisy"])
    assert torch.equal(conditioner.seen, output.decoded) and conditioner.hints == ["noisy"]
    assert output.decoded.requires_grad and not conditioner.seen.requires_grad
    output.enhanced.sum().backward()
    assert codec.g_s[0].weight.grad is not None, "through the restorer the gradient does reach the codec"
    codec.zero_grad(set_to_none=True)


def test_every_part_is_a_module_of_the_system(codec, tiny_daclip):
    restorer, prefilter = listening(None), listening(None)
    conditioner = Conditioner(tiny_daclip, "windows")
    system = LLICM(codec, restorer, conditioner, prefilter)
    assert dict(system.named_children()) == {
        "codec": codec, "restorer": restorer, "prefilter": prefilter, "conditioner": conditioner,
    }  # fmt: skip
    tensors = {id(value) for part in (codec, restorer, prefilter, conditioner) for value in part.parameters()}
    assert {id(value) for value in system.parameters()} == tensors
    assert dict(LLICM(None, None).named_children()) == {}


def test_without_a_restorer_nobody_is_asked():
    x = picture(16, 16)[None]
    assert LLICM(None, None, Oracle(["noisy"])).enhance(x, None, [None]) is x


def test_a_batch_goes_through_the_prefilter_as_computed_and_a_picture_in_8_bits():
    prefilter = listening(None)
    system, x = LLICM(None, None, prefilter=prefilter), picture(32, 48)
    batch, image = system.prefiltered(x[None]), system.prefiltered(x)
    assert torch.equal(batch, prefilter(x[None]).clamp(0, 1)) and not image.requires_grad
    assert torch.equal(image, quantize8(batch[0])) and not torch.equal(image, batch[0])
    assert LLICM(None, None).prefiltered(x) is x


def test_the_fork_gets_the_decoded_image_and_the_lambdas_of_the_levels(codec):
    calls, level = [], torch.tensor([0.0, 3.0])

    def fork(decoded, lmbda):
        calls.append(lmbda)
        return decoded + 1, decoded + 2

    restorer = listening(None)
    x = torch.stack([picture(64, 64), picture(64, 64)])
    torch.manual_seed(0)
    output = LLICM(codec, restorer)(x, level, fork=fork)
    torch.manual_seed(0)
    plain = LLICM(codec, restorer)(x, level)
    assert torch.equal(calls[0], codec.lambdas(level)) and len(calls) == 1
    assert torch.equal(output.decoded, plain.decoded + 1)
    assert torch.allclose(output.enhanced, restorer(plain.decoded + 2, codec.relative_level(level)))
