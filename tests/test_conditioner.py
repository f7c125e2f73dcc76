# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch
import torch.nn.functional as F

from llicm.errors import UserError
from llicm.registry import RESTORERS
from llicm.vlm.checkpoint import save_daclip
from llicm.vlm.clip import WORDS, preprocess, windows
from llicm.vlm.conditioner import (
    Conditioner,
    Oracle,
    conditioner_for,
    conditioner_from,
    conditioner_state,
    load_conditioner,
    save_conditioner,
)  # fmt: skip
from llicm.weights import write


def picture(*shape, seed=0):
    coarse = torch.rand(*shape[:-2], 7, 7, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, shape[-2:], mode="bicubic").clamp(0, 1)


# --- windows ---


@pytest.mark.parametrize(
    ("size", "count"), [((32, 32), 1), ((33, 32), 2), ((64, 40), 4), ((65, 96), 9), ((32, 90), 3), ((96, 96), 9)]
)
def test_windows_cover_the_image(size, count):
    numbered = torch.arange(3 * size[0] * size[1]).view(3, *size)
    found = windows(numbered, (32, 32))
    assert found.shape == (count, 3, 32, 32)
    assert torch.equal(found.unique(), numbered.flatten())


def test_windows_of_a_large_image_are_nine_and_evenly_spaced():
    numbered = torch.arange(200 * 301).view(1, 200, 301).expand(3, -1, -1)
    found = windows(numbered, (32, 24))
    assert found.shape == (9, 3, 32, 24)
    corners = [(int(n) // 301, int(n) % 301) for n in found[:, 0, 0, 0]]
    assert corners == [(top, left) for top in (0, 84, 168) for left in (0, 138, 277)]


@pytest.mark.parametrize("size", [(31, 90), (90, 31), (20, 20)])
def test_smaller_images_stay_whole(size):
    image = picture(1, 3, *size)
    assert torch.equal(windows(image[0], (32, 32)), image)


# --- conditioner ---


@pytest.mark.parametrize("view", ["whole", "windows"])
@pytest.mark.parametrize("size", [(32, 32), (50, 70), (20, 40)])
def test_a_batch_equals_its_images(tiny_daclip, view, size):
    conditioner, images = Conditioner(tiny_daclip, view), picture(3, 3, *size)
    together = conditioner(images)
    for name in ("degradation", "content"):
        embedding = getattr(together, name)
        assert embedding.shape == (3, conditioner.width) == (3, 16)
        singly = torch.cat([getattr(conditioner(image[None]), name) for image in images])
        assert torch.allclose(embedding, singly, atol=1e-4)
        assert not torch.allclose(embedding[0], embedding[1], atol=1e-3)
    assert not torch.allclose(together.degradation, together.content, atol=1e-2)


def test_the_views(tiny_daclip):
    whole, cut = (Conditioner(tiny_daclip, view) for view in ("whole", "windows"))
    image = picture(1, 3, 50, 70)
    content, degradation = tiny_daclip.encode_image(preprocess(image, 32), control=True)
    assert torch.equal(whole(image).degradation, degradation) and torch.equal(whole(image).content, content)
    pieces = preprocess(windows(image[0], (32, 32)), 32)
    content, degradation = (e.mean(0) for e in tiny_daclip.encode_image(pieces, control=True))
    assert torch.allclose(cut(image).degradation[0], degradation, atol=1e-5)
    assert torch.allclose(cut(image).content[0], content, atol=1e-5)
    assert not torch.allclose(cut(image).degradation, whole(image).degradation, atol=1e-3)
    fits = picture(2, 3, 32, 32)
    assert torch.equal(cut(fits).degradation, whole(fits).degradation)
    with pytest.raises(UserError, match="'sideways'.*whole, windows"):
        Conditioner(tiny_daclip, "sideways")


def test_a_hint_replaces_its_row_alone(tiny_daclip):
    conditioner, images = Conditioner(tiny_daclip, "windows"), picture(3, 3, 40, 40)
    seen, hinted = conditioner(images), conditioner(images, [None, "low-light, noisy", None])
    assert torch.equal(hinted.degradation[[0, 2]], seen.degradation[[0, 2]])
    assert torch.equal(hinted.content, seen.content)
    assert torch.equal(hinted.degradation[1], conditioner.text(["low-light, noisy"])[0])
    assert not torch.allclose(hinted.degradation[1], seen.degradation[1], atol=1e-2)
    assert torch.equal(conditioner(images, [None] * 3).degradation, seen.degradation)


def test_texts_are_known_in_any_order(tiny_daclip):
    fresh, used = Conditioner(tiny_daclip, "whole"), Conditioner(tiny_daclip, "whole")
    used.text(["hazy", "rainy"])
    words = ["noisy", "hazy", "noisy"]
    assert torch.allclose(used.text(words), fresh.text(words), atol=1e-5)
    assert torch.equal(fresh.text(words)[0], fresh.text(words)[2]) and not torch.equal(*fresh.text(words)[:2])


def test_recognition_finds_the_nearest_word(tiny_daclip):
    conditioner, images = Conditioner(tiny_daclip, "windows"), picture(2, 3, 40, 50)
    found = conditioner.recognise(images)
    assert found.shape == (2, len(WORDS)) and torch.allclose(found.sum(1), torch.ones(2))
    seen = conditioner(images).degradation
    words = {"hazy": -seen[0], "noisy": 5 * seen[0], "clean": torch.ones(16)}
    conditioner._known = words  # as if the texts had these embeddings
    assert conditioner.recognise(images[:1], list(words)).argmax() == 1
    cosines = F.cosine_similarity(seen[1], torch.stack([*words.values()]))
    assert torch.allclose(conditioner.recognise(images, list(words))[1], (100 * cosines).softmax(0), atol=1e-4)


def test_no_gradient_passes(tiny_daclip):
    conditioner, images = Conditioner(tiny_daclip, "windows"), picture(1, 3, 40, 40).requires_grad_()
    context = conditioner(images, ["noisy"])
    assert not any(embedding.requires_grad for embedding in context)
    assert not any(p.requires_grad for p in conditioner.parameters())


# --- oracle ---


def test_an_oracle_repeats_its_hints():
    oracle, images = Oracle(["noisy", "hazy", "rainy"]), torch.rand(3, 3, 8, 8)
    context = oracle(images, ["rainy", "noisy", "noisy, hazy"])
    assert context.degradation.tolist() == [[0, 0, 1], [1, 0, 0], [1, 1, 0]] and context.content is None
    for hints in (None, ["noisy", None, "hazy"], ["noisy", "noisy", "foggy"]):
        with pytest.raises(ValueError):
            oracle(images, hints)


# --- which conditioner, and from where ---


def restorer(context):
    return RESTORERS.make("direct", width=8, blocks=[1, 1, 1], context=context)


def test_the_conditioner_of_a_restorer(vlm_folder, tmp_path):
    assert conditioner_for(None, tmp_path) is None and conditioner_for(restorer(None), tmp_path) is None
    oracle = conditioner_for(restorer({"words": ["noisy", "hazy"]}), tmp_path)
    assert isinstance(oracle, Oracle) and oracle.words == ["noisy", "hazy"]
    for context in ({"degradation": 16, "content": 0}, {"degradation": 16, "content": 16}):
        assert isinstance(conditioner_for(restorer(context), vlm_folder), Conditioner)
    with pytest.raises(UserError, match="embeddings have 16 numbers.*'content': 20"):
        conditioner_for(restorer({"degradation": 16, "content": 20}), vlm_folder)
    with pytest.raises(UserError, match="conditioner.safetensors.*dvc repro"):
        conditioner_for(restorer({"degradation": 16, "content": 0}), tmp_path)


def same(found, made, image):
    return found.view == made.view and all(map(torch.equal, found(image), made(image)))


def test_a_conditioner_comes_back_from_its_files(tiny_daclip, vlm_folder):
    found, made = load_conditioner(vlm_folder), Conditioner(tiny_daclip, "windows")
    assert same(found, made, picture(1, 3, 50, 70)) and not found.model.training
    assert torch.equal(found.text(["hazy"]), made.text(["hazy"]))
    assert found.model.config == tiny_daclip.config


def test_a_conditioner_without_its_text_tower_comes_back_too(tiny_daclip, tmp_path):
    image, whole = picture(1, 3, 50, 70), Conditioner(tiny_daclip, "windows")
    state, config = conditioner_state(whole)
    assert not any("token_embedding" in name for name in state)
    torch.manual_seed(5)
    closed, drawn = conditioner_from(state, config), torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), drawn)  # no random number was drawn
    save_conditioner(closed, tmp_path / "vlm")
    found = load_conditioner(tmp_path / "vlm")
    assert same(found, closed, image)
    assert all(torch.allclose(a, b, atol=0.01) for a, b in zip(found(image), whole(image), strict=True))  # 16 bits
    texts = ["hazy", "low-light, noisy"]
    assert torch.equal(found.text(texts), closed.text(texts)) and torch.equal(found.text(texts), whole.text(texts))
    with pytest.raises(UserError, match="'foggy': this model knows"):
        found.text(["foggy"])
    save_conditioner(found, tmp_path / "again")
    first, second = (tmp_path / folder / "conditioner.safetensors" for folder in ("vlm", "again"))
    assert first.read_bytes() == second.read_bytes()


def test_files_of_the_first_edition_are_read(tiny_daclip, tmp_path):
    image, whole = picture(1, 3, 50, 70), Conditioner(tiny_daclip, "whole")
    (tmp_path / "open").mkdir()
    save_daclip(tiny_daclip, tmp_path / "open" / "daclip.safetensors")
    (tmp_path / "open" / "guide.json").write_text(json.dumps({"view": "whole"}))
    assert same(load_conditioner(tmp_path / "open"), whole, image)
    state, config = conditioner_state(whole)
    old = {"format": 2, "codec": None, "restorer": None, "prefilter": None, "guide": config}
    write(tmp_path / "closed" / "guide.safetensors", {f"guide.{name}": value for name, value in state.items()}, old)
    assert same(load_conditioner(tmp_path / "closed"), conditioner_from(state, config), image)


def test_weights_that_do_not_fit_are_named(tiny_daclip, tmp_path):
    state, config = conditioner_state(Conditioner(tiny_daclip, "whole"))
    del state["clip.visual.proj"]
    write(tmp_path / "conditioner.safetensors", state | {"words": state["words"][1:]}, config)
    with pytest.raises(UserError, match=r"conditioner.safetensors: .*missing: clip.visual.proj; .*words \[65, 16\]"):
        load_conditioner(tmp_path)
