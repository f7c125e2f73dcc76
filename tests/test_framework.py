# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F

from llicm.codec.mean_scale import make_codec
from llicm.framework import LLICM
from llicm.restore.direct import make_restorer
from llicm.vlm.context import Context
from llicm.vlm.conditioner import Conditioner, Oracle


def picture(height, width):
    coarse = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (height, width), mode="bicubic")[0].clamp(0, 1)


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    codec = make_codec("mean-scale", N=8, M=12, lambdas=[0.002, 0.007, 0.02, 0.07])
    codec.update()
    return codec.eval()


def listening(context):
    """A restorer that does something, and whose blocks listen to what they are told."""
    torch.manual_seed(0)
    model = make_restorer("direct", width=8, blocks=[1, 1, 1], context=context, level_conditioned=True)
    torch.nn.init.normal_(model.residual.weight, std=0.02)
    for film in (m.film for m in model.modules() if hasattr(m, "film")):
        torch.nn.init.normal_(film.weight)
    return model.eval()


def test_naming_the_degradation_changes_what_is_restored(codec, tiny_daclip):
    system = LLICM(codec, listening({"degradation": 16, "content": 16}), Conditioner(tiny_daclip, "windows"))
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


def test_the_guide_sees_the_decoded_image_and_nothing_flows_back(codec):
    class Spy(torch.nn.Module):
        def forward(self, decoded, hints=None):
            self.seen, self.hints = decoded, hints
            return Context(decoded.mean((2, 3)))

    conditioner, restorer = Spy(), listening({"degradation": 3, "content": 0})
    system = LLICM(codec, restorer, conditioner)
    output = system(picture(64, 64)[None], torch.tensor([1.0]), ["noisy"])
    assert torch.equal(conditioner.seen, output.decoded) and conditioner.hints == ["noisy"]
    assert output.decoded.requires_grad and not conditioner.seen.requires_grad
    assert system.conditioner is conditioner and not any("conditioner" in name for name in system.state_dict())
    assert len(list(system.parameters())) == len(list(codec.parameters())) + len(list(restorer.parameters()))


def test_without_a_restorer_nobody_is_asked():
    x = picture(16, 16)[None]
    assert LLICM(None, None, Oracle(["noisy"])).enhance(x, None, [None]) is x
