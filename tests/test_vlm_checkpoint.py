# SPDX-License-Identifier: Apache-2.0
"""Reading released weights, converting them and choosing them by name."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from llicm.errors import UserError
from llicm.vlm import pretrained
from llicm.vlm.checkpoint import (
    check_layout,
    clip_from_state,
    convert,
    daclip_from_state,
    load_daclip,
    official_names,
    read_checkpoint,
    read_config,
    save_daclip,
)
from llicm.vlm.clip import make_clip
from llicm.vlm.daclip import make_daclip
from llicm.vlm.pretrained import load_vlm

TINY = {
    "embed_dim": 6,
    "vision_cfg": {"layers": 2, "width": 8, "head_width": 4, "patch_size": 4, "image_size": 12},
    "text_cfg": {"context_length": 7, "vocab_size": 20, "width": 8, "heads": 2, "layers": 1},
}


@pytest.fixture
def state():
    """A DA-CLIP in the published layout, with the duplicates `visual.*`."""
    torch.manual_seed(0)
    model = make_daclip(TINY)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    own = model.state_dict()
    state = {name: own[target] for name, target in official_names(model).items()}
    return state | {name.removeprefix("clip."): state[name] for name in state if name.startswith("clip.visual.")}


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "daclip_tiny.json"
    path.write_text(json.dumps(TINY | {"custom_text": True}))
    return str(path)


def wrapped(state, rate):
    """A training checkpoint as the published code writes it; its schedule leaves a numpy number as learning rate."""
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": rate, "betas": (0.9, 0.98)}]}
    return {"epoch": 30, "name": "run", "state_dict": state, "optimizer": optimizer, "scaler": {"scale": 65536.0}}


def with_module(state):
    return {f"module.{name}": value for name, value in state.items()}


def same_weights(model, state):
    own = model.state_dict()
    return all(torch.equal(own[target], state[name]) for name, target in official_names(model).items())


VARIANTS = {
    "bare": lambda state: state,
    "module": with_module,
    "wrapped": lambda state: wrapped(state, 3e-5),
    "wrapped module": lambda state: wrapped(with_module(state), 3e-5),
    "numpy scalar": lambda state: wrapped(with_module(state), np.float64(3e-5)),
    "no duplicates": lambda state: {name: v for name, v in state.items() if not name.startswith("visual.")},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("zipped", [True, False])
def test_every_variant_is_read(tmp_path, state, variant, zipped):
    path = tmp_path / "daclip.pt"
    torch.save(VARIANTS[variant](state), path, _use_new_zipfile_serialization=zipped)
    model = daclip_from_state(read_checkpoint(path), TINY, path)
    assert same_weights(model, state) and not model.training
    assert not any(p.requires_grad for p in model.clip.parameters())
    assert all(p.requires_grad for p in model.controller.parameters())


def test_a_numpy_scalar_pickled_by_the_other_numpy_is_read(tmp_path, state):
    """numpy 1 writes numpy.core, numpy 2 numpy._core; both must be readable with either."""
    path = tmp_path / "daclip.pt"
    torch.save(wrapped(state, np.float64(3e-5)), path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    old, new = b"cnumpy.core.multiarray\nscalar", b"cnumpy._core.multiarray\nscalar"
    assert (old in data) != (new in data)
    path.write_bytes(data.replace(old, new) if old in data else data.replace(new, old))
    assert same_weights(daclip_from_state(read_checkpoint(path), TINY), state)


def test_half_precision_becomes_float32(state):
    model = daclip_from_state({name: value.half() for name, value in state.items()}, TINY)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert same_weights(model, {name: value.half().float() for name, value in state.items()})


def test_reading_takes_no_random_numbers(state):
    torch.manual_seed(5)
    daclip_from_state(state, TINY)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)


def test_one_error_names_every_fault(state):
    del state["clip.visual.proj"], state["visual.proj"]
    state["visual_control.extra"] = torch.zeros(2)
    state["clip.ln_final.weight"] = torch.zeros(9)
    state["logit_scale"] = torch.tensor(4)
    with pytest.raises(UserError) as error:
        daclip_from_state(state, TINY, "some.pt")
    message = str(error.value)
    assert message.startswith("some.pt: ") and "\n" not in message
    for fault in (
        "missing: clip.visual.proj",
        "unexpected: visual_control.extra",
        "of the wrong shape: clip.ln_final.weight [9] instead of [8]",
        "not floating-point: logit_scale",
    ):
        assert fault in message


def test_many_faults_are_counted(state):
    with pytest.raises(UserError, match="unexpected: a0, a1, a2 and 2 more") as error:
        daclip_from_state(state | {f"a{i}": torch.zeros(1) for i in range(5)}, TINY)
    assert "missing" not in str(error.value)
    check_layout({"a": torch.zeros(2)}, {"a": torch.Size([2])}, "state")


@pytest.mark.parametrize("change", [torch.zeros(8, 6), torch.zeros(3)])
def test_a_duplicate_that_differs(state, change):
    with pytest.raises(UserError, match="visual.proj differs from clip.visual.proj"):
        daclip_from_state(state | {"visual.proj": change}, TINY)


def test_a_duplicate_without_original(state):
    with pytest.raises(UserError, match="unexpected: visual.new"):
        daclip_from_state(state | {"visual.new": torch.zeros(3)}, TINY)


class Foreign:
    def __reduce__(self):
        return print, ("this must never be printed",)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello\n", b"\x80\x02garbage", pickle.dumps({"a": 1}, protocol=2), b"PK\x03\x04" + bytes(50)],
    ids=["empty", "text", "broken", "pickle", "zip"],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_not_a_checkpoint(tmp_path, content, suffix):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=path.name) as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)


def test_foreign_objects_are_named_and_not_run(tmp_path, state, capsys):
    path = tmp_path / "file.pt"
    torch.save(wrapped(state, Foreign()), path)
    with pytest.raises(UserError, match="print, which is not allowed"):
        read_checkpoint(path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"state_dict": {"a": 1}}, [torch.zeros(2)], {0: torch.zeros(2)}])
def test_no_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(UserError, match="holds no state dict"):
        read_checkpoint(tmp_path / "file.pt")


def test_truncated_and_missing_files(tmp_path, state):
    for suffix, write in (
        (".pt", torch.save),
        (".safetensors", lambda s, p: save_daclip(daclip_from_state(s, TINY), p)),
    ):
        path = tmp_path / f"file{suffix}"
        write(state, path)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(UserError, match=path.name):
            read_checkpoint(path)
    with pytest.raises(UserError, match="no such file"):
        read_checkpoint(tmp_path / "absent.pt")


def test_convert_round_trip(tmp_path, state, config_file):
    torch.save(wrapped(with_module(state), np.float64(3e-5)), tmp_path / "daclip.pt")
    target = tmp_path / "new" / "daclip.safetensors"
    convert(tmp_path / "daclip.pt", target, config_file)
    model = load_daclip(target)
    assert same_weights(model, state) and model.config == {"name": "daclip", "clip": TINY} and not model.training
    with safe_open(target, "pt") as file:
        assert json.loads(file.metadata()["config"]) == model.config
        assert len(list(file.keys())) == len(model.state_dict())
    image = torch.rand(2, 3, 12, 12)
    expected = daclip_from_state(state, TINY).encode_image(image, control=True)
    assert all(map(torch.equal, model.encode_image(image, control=True), expected))
    save_daclip(model, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == target.read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["daclip.safetensors"]


def test_convert_keeps_half_precision(tmp_path, state, config_file):
    torch.save({name: value.half() for name, value in state.items()}, tmp_path / "daclip.pt")
    convert(tmp_path / "daclip.pt", tmp_path / "daclip.safetensors", config_file)
    assert {value.dtype for value in load_file(tmp_path / "daclip.safetensors").values()} == {torch.float16}
    assert load_daclip(tmp_path / "daclip.safetensors").logit_scale.dtype == torch.float32


def test_a_failed_write_leaves_the_old_file(tmp_path, state, monkeypatch):
    path = tmp_path / "daclip.safetensors"
    path.write_bytes(b"old")

    def fail(temporary, data):
        temporary.open("wb").write(data[:100])
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    with pytest.raises(UserError, match="disk full"):
        save_daclip(daclip_from_state(state, TINY), path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_only_own_files_have_a_configuration(tmp_path, state):
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "codec.safetensors", metadata={"config": '{"name": "mean-scale"}'})
    save_file({"a": torch.zeros(1)}, tmp_path / "list.safetensors", metadata={"config": "[]"})
    torch.save(state, tmp_path / "daclip.pt")
    for name in ("plain.safetensors", "codec.safetensors", "list.safetensors", "daclip.pt"):
        assert read_config(tmp_path / name) is None
        with pytest.raises(UserError, match="llicm vlm convert"):
            load_daclip(tmp_path / name)
    assert read_config(tmp_path / "absent") is None


def test_own_file_with_other_weights(tmp_path):
    config = json.dumps({"name": "daclip", "clip": TINY})
    save_file({"a": torch.zeros(1)}, tmp_path / "file.safetensors", metadata={"config": config})
    with pytest.raises(UserError, match="do not fit the model"):
        load_daclip(tmp_path / "file.safetensors")


# By name


@pytest.fixture
def tiny_models(monkeypatch):
    """ViT-B-32 is tiny in these tests."""
    monkeypatch.setattr(pretrained, "model_config", lambda name: json.loads(json.dumps(TINY)))


@pytest.mark.parametrize("place", [".", "CLIP-ViT-B-32-laion2B-s34B-b79K"])
@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_clip_by_name_has_an_untrained_controller(tmp_path, tiny_models, place, name):
    clip = make_clip(TINY)
    (tmp_path / place).mkdir(exist_ok=True)
    (save_file if name.endswith("safetensors") else torch.save)(clip.state_dict(), tmp_path / place / name)
    model = load_vlm("ViT-B-32", "laion2b_s34b_b79k", tmp_path)
    assert all(torch.equal(value, model.clip.state_dict()[key]) for key, value in clip.state_dict().items())
    assert torch.equal(model.controller.tower.conv1.weight, clip.visual.conv1.weight)
    assert torch.equal(model.logit_scale, clip.logit_scale) and not model.training


def test_daclip_by_name_the_converted_file_first(tmp_path, tiny_models, state, config_file):
    torch.save(state, tmp_path / "daclip_ViT-B-32.pt")
    assert same_weights(load_vlm("ViT-B-32", "daclip", tmp_path), state)
    convert(tmp_path / "daclip_ViT-B-32.pt", tmp_path / "daclip_ViT-B-32.safetensors", config_file)
    (tmp_path / "daclip_ViT-B-32.pt").write_bytes(b"")
    assert same_weights(load_vlm("daclip_ViT-B-32", "daclip", tmp_path), state)
    assert same_weights(load_vlm("ViT-B-32", "daclip_ViT-B-32.safetensors", tmp_path), state)


def test_a_file_of_another_model(tmp_path, state):
    save_daclip(daclip_from_state(state, TINY), tmp_path / "mine.safetensors")
    with pytest.raises(UserError, match="another model"):
        load_vlm("ViT-B-32", "mine.safetensors", tmp_path)
    with pytest.raises(UserError, match="do not fit the model"):
        clip_from_state(state, TINY)


@pytest.mark.parametrize(
    ("name", "tag", "parts"),
    [
        ("ViT-B-32", "laion2b_s34b_b79k", ["open_clip_model.safetensors", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"]),
        ("ViT-B-32", "daclip", ["daclip_ViT-B-32.pt", "weblzw/daclip-uir-ViT-B-32-irsde"]),
        ("ViT-L-14", "wild-daclip", ["wild-daclip_ViT-L-14.pt"]),
        ("ViT-B-32", "my.safetensors", ["my.safetensors"]),
        ("ViT-B-32", "nonesuch", ["nonesuch", "daclip", "laion2b_s34b_b79k", ".safetensors"]),
        ("ViT-B-32", "openai", ["activation", "ViT-B-32-quickgelu"]),
        ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", ["no released weights", "openai"]),
        ("ViT-L-14-CLIPA", "datacomp1b", ["another preprocessing"]),
    ],
)
def test_absent_or_unfit_weights_are_explained_and_nothing_is_fetched(tmp_path, monkeypatch, name, tag, parts):
    def refuse(*args, **kwargs):
        raise AssertionError("no connection may be opened")

    monkeypatch.setattr("socket.socket.connect", refuse)
    with pytest.raises(UserError) as error:
        load_vlm(name, tag, tmp_path)
    assert all(part in str(error.value) for part in parts) and "\n" not in str(error.value)
