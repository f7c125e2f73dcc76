# SPDX-License-Identifier: Apache-2.0
import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from llicm.codec.bitstream import unpack
from llicm.errors import UserError
from llicm.framework import LLICM
from llicm.images import quantize8
from llicm.model import PUBLISHED_MODEL, default_model, load_model, save_model
from llicm.registry import CODECS, RESTORERS
from llicm.vlm.conditioner import Conditioner, Oracle
from llicm.weights import load_part, save_part


@pytest.fixture(scope="module")
def system(tiny_daclip, tmp_path_factory):
    """A whole system as the pipeline has it: parts that went through their files."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("parts")
    codec = CODECS.make("mean-scale", N=8, M=24, lambdas=[0.002, 0.02])
    codec.update()
    model = copy.deepcopy(tiny_daclip)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(value.half().float())
    conditioner = Conditioner(model, "windows")
    context = {"degradation": conditioner.width, "content": conditioner.width}
    restorer = RESTORERS.make("direct", width=8, blocks=[1, 1, 1], level_conditioned=True, context=context)
    with torch.no_grad():
        restorer.residual.weight.normal_(0, 0.1)
        restorer.steering["degradation"].weight.normal_(0, 3)
        restorer.pivot.weight.normal_()
        restorer.affine.bias.normal_(0, 10)
    save_part(codec, folder / "codec.safetensors")
    save_part(restorer, folder / "restorer.safetensors")
    return LLICM(*(load_part(kind, folder / f"{kind}.safetensors") for kind in ("codec", "restorer")), conditioner)


@pytest.fixture
def x():
    return torch.rand(3, 70, 50, generator=torch.Generator().manual_seed(1))


def test_the_prefilter_is_before_the_codec_and_in_the_file(system, x, tmp_path):
    filtered = LLICM(system.codec, system.restorer, system.conditioner, prefilter=copy.deepcopy(system.restorer))
    data = filtered.compress(x, 1)
    given = quantize8(system.enhance(x[None])[0].clamp(0, 1))
    assert not torch.equal(given, quantize8(x)) and data == system.compress(given, 1) != system.compress(x, 1)
    save_model(filtered, tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors")
    assert set(dict(again.named_children())) == {"codec", "restorer", "prefilter", "conditioner"}
    assert again.compress(x, 1) == data
    for ours, theirs in zip(filtered.decompress(data), system.decompress(data), strict=True):
        assert torch.equal(ours, theirs)


def test_one_restorer_for_both_places_is_written_once_and_restores_once(system, x, tmp_path):
    """The file tells its decoder whether the photo was restored before; one as it was captured is restored behind."""
    both = LLICM(system.codec, system.restorer, system.conditioner, system.restorer)
    save_model(system, tmp_path / "behind.safetensors")
    save_model(both, tmp_path / "both.safetensors")
    more = (tmp_path / "both.safetensors").stat().st_size - (tmp_path / "behind.safetensors").stat().st_size
    again = load_model(tmp_path / "both.safetensors")
    assert more < 100 and again.prefilter is again.restorer
    data, captured = again.compress(x, 1), again.codec.compress(x, 1)
    given = system.codec.compress(both.prefiltered(x), 1)
    assert unpack(data) == replace(unpack(given), restored=True) and len(data) == len(given)
    decoded, enhanced = again.decompress(data)
    assert torch.equal(decoded, enhanced) and torch.equal(decoded, system.codec.decompress(given)[0])
    decoded, enhanced = again.decompress(captured)
    assert not torch.equal(decoded, enhanced) and torch.equal(enhanced, system.decompress(captured)[1])
    coding = load_model(tmp_path / "both.safetensors", coding=True)
    assert coding.compress(x, 1) == data


def test_one_file_holds_the_whole_system(system, x, tmp_path):
    save_model(system, tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors")
    data = system.compress(x, 1)
    assert again.compress(x, 1) == data
    for task in (None, "rainy", "low-light, noisy"):
        for ours, theirs in zip(system.decompress(data, task), again.decompress(data, task), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)
    told, other = (again.decompress(data, task)[1] for task in ("rainy", "hazy"))
    assert not torch.allclose(told, other, atol=1e-4), "the words must matter, or the test says nothing"
    save_model(again, tmp_path / "copy.safetensors")
    assert (tmp_path / "copy.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_the_text_tower_stays_behind_and_unknown_words_are_refused(system, x, tmp_path):
    save_model(system, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = list(file.keys())
    assert not [n for n in names if "token_embedding" in n or n.startswith("conditioner.clip.transformer")]
    again = load_model(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="foggy.*this model knows motion-blurry"):
        again.decompress(again.compress(x, 1), "foggy")


def test_parts_may_be_absent(system, x, tmp_path):
    save_model(LLICM(system.codec, None), tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors")
    assert again.restorer is None and again.conditioner is None
    decoded, enhanced = again.decompress(again.compress(x, 1))
    assert torch.equal(decoded, enhanced)


def test_an_oracle_is_not_saved(system, tmp_path):
    with pytest.raises(ValueError, match="looks at images"):
        save_model(LLICM(system.codec, system.restorer, Oracle(["noisy"])), tmp_path / "model.safetensors")


def test_a_missing_model_tells_how_to_get_it(tmp_path):
    with pytest.raises(UserError, match="nowhere.safetensors: no such model.*dvc pull.*dvc repro"):
        load_model(tmp_path / "nowhere.safetensors")


def test_damaged_and_foreign_files_are_named(system, tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(system, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="model.safetensors: not a weight file of this project"):
        load_model(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="model.safetensors: not a weight file of this project"):
        load_model(path)
    save_part(system.codec, path)
    with pytest.raises(UserError, match="model.safetensors: not a model of this project"):
        load_model(path)
    save_file({"a": torch.zeros(2)}, path, metadata={"config": json.dumps({"format": 99})})
    with pytest.raises(UserError, match="format 99, but this program reads 3"):
        load_model(path)


def test_a_file_of_the_first_edition_is_the_same_model(system, x, tmp_path):
    """Format 2: the conditioner was a guide, and a restorer's level its code."""
    path = tmp_path / "model.safetensors"
    save_model(system, path)
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
        state = {name: file.get_tensor(name) for name in file.keys()}
    config |= {"format": 2, "guide": config.pop("conditioner")}
    config["restorer"]["coded"] = config["restorer"].pop("level_conditioned")
    names = {
        name: name.replace("conditioner.", "guide.").replace("restorer.level.", "restorer.code.") for name in state
    }
    assert len([name for name, old in names.items() if name != old]) > 10 and "restorer.code.weight" in names.values()
    old = tmp_path / "old.safetensors"
    save_file({names[name]: value for name, value in state.items()}, old, metadata={"config": json.dumps(config)})
    again = load_model(old)
    assert again.restorer.level_conditioned
    data = system.compress(x, 1)
    for ours, theirs in zip(load_model(path).decompress(data), again.decompress(data), strict=True):
        assert torch.equal(ours, theirs)


def test_the_default_model_is_that_of_the_working_folder_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert default_model() != tmp_path / PUBLISHED_MODEL
    (tmp_path / PUBLISHED_MODEL).parent.mkdir(parents=True)
    (tmp_path / PUBLISHED_MODEL).write_bytes(b"")
    assert default_model() == tmp_path / PUBLISHED_MODEL
