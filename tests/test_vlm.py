# SPDX-License-Identifier: Apache-2.0
"""CLIP and DA-CLIP: the mathematics against a second computation in numpy, and the behaviour."""

import copy
import math
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import erf

from llicm.errors import UserError
from llicm.vlm.checkpoint import official_names
from llicm.vlm.clip import make_clip, model_config
from llicm.vlm.daclip import DACLIP, make_daclip
from llicm.vlm.losses import contrastive_loss, daclip_losses, text_labels

LAYERS, HEADS, LENGTH = 3, 2, 7
TINY = {
    "embed_dim": 6,
    "vision_cfg": {"layers": LAYERS, "width": 8, "head_width": 4, "patch_size": 4, "image_size": 12},
    "text_cfg": {"context_length": LENGTH, "vocab_size": 20, "width": 8, "heads": HEADS, "layers": 2},
}


def formula(name, shape):
    """A weight by formula: sines, seeded by the name."""
    seed = zlib.crc32(name.encode()) % 1000
    value = np.sin(seed + 1.7 * np.arange(math.prod(shape)) ** 1.1).reshape(shape)
    if "zero_modules" in name:
        return value  # large, so that their order matters
    if name.endswith("weight") and len(shape) == 1:
        return 1 + 0.3 * value
    return value / math.sqrt(math.prod(shape[1:])) * 1.5 if len(shape) > 1 else 0.3 * value


@pytest.fixture(scope="module")
def weights():
    """Names as published, without `visual.*`."""
    names, own = official_names(make_daclip(TINY)), make_daclip(TINY).state_dict()
    return {name: formula(name, tuple(own[target].shape)) for name, target in names.items()}


@pytest.fixture
def model(weights):
    model = make_daclip(TINY)
    model.load_state_dict({own: torch.tensor(weights[name]) for name, own in official_names(model).items()})
    return model.eval()


@pytest.fixture
def image():
    return torch.from_numpy(15 * formula("image", (2, 3, 12, 12))).float()


@pytest.fixture
def text():
    """(2, 2 · LENGTH): captions, then degradations. The largest token ends a text, the rest is padding."""
    return torch.tensor(
        [[18, 3, 5, 19, 0, 0, 0, 18, 7, 19, 0, 0, 0, 0], [18, 4, 2, 9, 6, 19, 0, 18, 8, 8, 19, 0, 0, 0]]
    )


# The same model in plain numpy, float64, from the paper's equations and the published names.


def norm(x, w, name):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def block(x, w, name, causal=False):
    n, tokens, width = x.shape
    qkv = norm(x, w, f"{name}.ln_1") @ w[f"{name}.attn.in_proj_weight"].T + w[f"{name}.attn.in_proj_bias"]
    q, k, v = qkv.reshape(n, tokens, 3, HEADS, width // HEADS).transpose(2, 0, 3, 1, 4)
    logits = q @ k.swapaxes(-1, -2) / math.sqrt(width // HEADS)
    if causal:
        logits = np.where(np.tril(np.ones((tokens, tokens), bool)), logits, -np.inf)
    attention = np.exp(logits - logits.max(-1, keepdims=True))
    attention /= attention.sum(-1, keepdims=True)
    x = x + linear((attention @ v).transpose(0, 2, 1, 3).reshape(n, tokens, width), w, f"{name}.attn.out_proj")
    h = linear(norm(x, w, f"{name}.ln_2"), w, f"{name}.mlp.c_fc")
    return x + linear(h * (1 + erf(h / math.sqrt(2))) / 2, w, f"{name}.mlp.c_proj")


def tower(image, w, prefix, blocks, inject=None):
    """Embedding, and the output of each block; `inject[j]` is added after block j."""
    patches = image.reshape(len(image), 3, 3, 4, 3, 4).transpose(0, 2, 4, 1, 3, 5).reshape(len(image), 9, 48)
    x = patches @ w[f"{prefix}conv1.weight"].reshape(8, 48).T
    x = np.concatenate([np.tile(w[f"{prefix}class_embedding"], (len(image), 1, 1)), x], 1)
    x = norm(x + w[f"{prefix}positional_embedding"], w, f"{prefix}ln_pre")
    outputs = []
    for j in range(LAYERS):
        x = block(x, w, f"{blocks}{j}")
        outputs.append(x)
        x = x + inject[j] if inject else x
    return norm(x[:, 0], w, f"{prefix}ln_post") @ w[f"{prefix}proj"], outputs


def both_embeddings(image, w):
    degradation, outputs = tower(image, w, "visual_control.", "visual_control.transformer.transformer.resblocks.")
    hiddens = [linear(c, w, f"visual_control.transformer.zero_modules.{i}") for i, c in enumerate(outputs)]
    content, _ = tower(image, w, "clip.visual.", "clip.visual.transformer.resblocks.", hiddens[::-1])
    return content, degradation, hiddens


def text_embedding(tokens, w):
    x = w["clip.token_embedding.weight"][tokens] + w["clip.positional_embedding"]
    for j in range(2):
        x = block(x, w, f"clip.transformer.resblocks.{j}", causal=True)
    x = norm(x[np.arange(len(x)), tokens.argmax(1)], w, "clip.ln_final")
    return x @ w["clip.text_projection"]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def close(actual, expected, atol=1e-5):
    return actual.shape == expected.shape and np.allclose(actual.detach().numpy(), expected, atol=atol)


def test_embeddings_equal_the_second_computation(model, weights, image):
    content, degradation, hiddens = both_embeddings(image.numpy(), weights)
    plain, _ = tower(image.numpy(), weights, "clip.visual.", "clip.visual.transformer.resblocks.")
    assert close(model.encode_image(image), plain)
    assert close(model.encode_image(image, normalize=True), unit(plain))
    for normalize, change in ((False, lambda x: x), (True, unit)):
        pair = model.encode_image(image, control=True, normalize=normalize)
        assert close(pair[0], change(content)) and close(pair[1], change(degradation))
    assert all(close(h, expected) for h, expected in zip(model.controller(image)[1], hiddens, strict=True))
    # The vector tells mistakes apart, by thousands of tolerances: the order of the hiddens, and hiddens at all.
    unreversed, _ = tower(image.numpy(), weights, "clip.visual.", "clip.visual.transformer.resblocks.", hiddens)
    assert abs(unreversed - content).max() > 0.05 and abs(plain - content).max() > 0.05


def test_texts_equal_the_second_computation(model, weights, text):
    expected = text_embedding(text[:, :LENGTH].numpy(), weights)
    assert close(model.encode_text(text[:, :LENGTH]), expected)
    assert close(model.encode_text(text[:, :LENGTH], normalize=True), unit(expected))


def test_forward_and_losses_equal_the_second_computation(model, weights, image, text):
    content, degradation, _ = both_embeddings(image.numpy(), weights)
    caption, word = (text_embedding(text[:, half].numpy(), weights) for half in (slice(LENGTH), slice(LENGTH, None)))
    output, scale = model(image, text), math.exp(weights["logit_scale"])
    expected = {
        "image_features": unit(content),
        "image_degra_features": unit(degradation),
        "text_features": unit(caption),
        "text_degra_features": unit(word),
        "logit_scale": np.array(scale),
    }
    assert set(output) == set(expected) and all(close(output[name], value) for name, value in expected.items())

    def info_nce(a, b):
        logits = scale * unit(a) @ unit(b).T
        rows = np.log(np.exp(logits).sum(1)) - np.diag(logits)
        columns = np.log(np.exp(logits).sum(0)) - np.diag(logits)
        return (rows.mean() + columns.mean()) / 2

    losses = daclip_losses(output)
    assert losses["content"].item() == pytest.approx(info_nce(content, caption), abs=1e-5)
    assert losses["degradation"].item() == pytest.approx(info_nce(degradation, word), abs=1e-5)


def test_forward_takes_images_or_texts_alone(model, image, text):
    assert set(model(image)) == {"image_features", "image_degra_features", "logit_scale"}
    assert set(model(None, text)) == {"text_features", "text_degra_features", "logit_scale"}
    with pytest.raises(ValueError, match="14"):
        model(image, text[:, :LENGTH])


def test_plain_embedding_is_clips_own_before_and_after_control(model, image):
    before = model.encode_image(image)
    model.encode_image(image, control=True)
    assert torch.equal(model.encode_image(image), before) and torch.equal(model.clip.visual(image), before)


def test_hiddens_do_not_feed_back_into_the_controller(model, image):
    before = model.encode_image(image, control=True)
    with torch.no_grad():
        for module in model.controller.zero:
            module.weight.mul_(-3)
    content, degradation = model.encode_image(image, control=True)
    assert torch.equal(degradation, before[1]) and not torch.allclose(content, before[0], atol=1e-2)


def test_initialised_as_clip_itself(model, image):
    """The published code shifts the copy by one module; ln_post and zero module 0 would show it."""
    fresh = DACLIP(model.clip, TINY)
    tower_state, copied = fresh.clip.visual.state_dict(), fresh.controller.tower.state_dict()
    assert tower_state.keys() == copied.keys()
    assert all(torch.equal(copied[name], value) for name, value in tower_state.items())
    assert not torch.equal(copied["ln_post.weight"], torch.ones(8))
    assert all(not p.any() for p in fresh.controller.zero.parameters()) and len(fresh.controller.zero) == LAYERS
    assert torch.equal(fresh.logit_scale, fresh.clip.logit_scale)
    plain = fresh.encode_image(image)
    assert all(torch.allclose(feature, plain, atol=1e-6) for feature in fresh.encode_image(image, control=True))
    copied["conv1.weight"].zero_()
    assert tower_state["conv1.weight"].any()  # a copy, not the same storage


def test_clip_is_frozen_and_the_controller_learns(model, image, text):
    model.clip.requires_grad_(True)
    fresh = DACLIP(model.clip, TINY)
    trainable = {name for name, p in fresh.named_parameters() if p.requires_grad}
    assert trainable == {name for name, _ in fresh.named_parameters() if not name.startswith("clip.")}
    clip = copy.deepcopy(fresh.clip.state_dict())
    before = copy.deepcopy(fresh.state_dict())
    optimizer = torch.optim.SGD((p for p in fresh.parameters() if p.requires_grad), lr=0.1)
    for _ in range(2):  # in the first step the zero modules hide the controller from the content loss
        sum(daclip_losses(fresh(image, text)).values()).backward()
        optimizer.step()
    assert all(torch.equal(value, clip[name]) for name, value in fresh.clip.state_dict().items())
    still = [name for name, p in fresh.named_parameters() if name in trainable and torch.equal(p, before[name])]
    assert not still


@pytest.mark.parametrize(
    "vision",
    [
        {"output_tokens": True},
        {"patch_dropout": 0.5},
        {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        {"attentional_pool": True, "attn_pooler_heads": 2},
        {"pos_embed_type": "sin_cos_2d", "ls_init_value": 0.1},
        {"qk_norm": True, "scale_heads": True, "image_size": [8, 12]},
    ],
    ids=lambda vision: next(iter(vision)),
)
def test_other_vision_towers(vision, image):
    config = TINY | {"vision_cfg": TINY["vision_cfg"] | vision, "quick_gelu": True}
    torch.manual_seed(0)
    model = make_daclip(config)  # in training mode: dropped patches would differ between the towers
    image = image[..., : model.image_size[0], :]
    plain = model.encode_image(image)
    assert plain.shape == (2, 6)
    assert all(torch.allclose(feature, plain, atol=1e-5) for feature in model.encode_image(image, control=True))
    torch.nn.init.normal_(model.controller.zero[0].weight)
    assert not torch.allclose(model.encode_image(image, control=True)[0], plain, atol=1e-3)
    fixed = model.controller.tower.positional_embedding
    assert fixed.requires_grad is ("pos_embed_type" not in vision)


def test_gradient_checkpointing_keeps_hiddens_and_gradients(model, image):
    def gradients(on):
        model.zero_grad()
        model.clip.visual.set_grad_checkpointing(on)
        model.controller.tower.set_grad_checkpointing(on)
        sum(feature.square().sum() for feature in model.encode_image(image, control=True)).backward()
        return [p.grad.clone() for p in model.controller.parameters()]

    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(gradients(False), gradients(True), strict=True))


def test_refused_models():
    with pytest.raises(UserError, match="nonesuch"):
        model_config("nonesuch")
    for name in ("RN50", "ViT-B-16-SigLIP", "roberta-ViT-B-32", "coca_ViT-B-32"):
        with pytest.raises(UserError, match="DA-CLIP needs"):
            make_clip(model_config(name))
    with pytest.raises(UserError, match="colour"):
        make_clip(TINY | {"colour": 1})
    residual = torch.nn.Module()
    residual.visual = torch.nn.Conv2d(3, 3, 1)
    with pytest.raises(UserError, match="Conv2d"):
        DACLIP(residual, TINY)


def test_labels_of_equal_texts():
    labels = text_labels(torch.tensor([[1, 2], [1, 3], [1, 2]]))
    assert labels[0] == labels[2] != labels[1]


def test_multi_positive_target():
    generator = torch.Generator().manual_seed(0)
    first, second = F.normalize(torch.randn(2, 5, 4, generator=generator), dim=-1)
    labels = torch.tensor([0, 1, 0, 2, 0])
    logits = 7 * (first @ second.T).double()
    total = 0.0
    for matrix in (logits, logits.T):
        log_p = matrix - matrix.logsumexp(1, keepdim=True)
        for i, label in enumerate(labels):
            positives = (labels == label).nonzero().flatten().tolist()
            total += sum((-math.log(len(positives)) - float(log_p[i, j])) / len(positives) for j in positives) / 10
    assert float(contrastive_loss(first, second, 7, labels)) == pytest.approx(total, abs=1e-5)
    distinct = contrastive_loss(first, second, 7, torch.arange(5))
    assert torch.allclose(distinct, contrastive_loss(first, second, 7), atol=1e-6)


def test_multi_positive_target_removes_the_floor_and_nothing_else():
    words = torch.eye(3)[torch.tensor([0, 1, 0, 2, 0, 1])]
    labels = text_labels(words)
    assert float(contrastive_loss(words, words, 100.0, labels)) == pytest.approx(0, abs=1e-5)
    floor = (3 * math.log(3) + 2 * math.log(2)) / 6
    assert float(contrastive_loss(words, words, 100.0)) == pytest.approx(floor, abs=1e-5)
    images = F.normalize(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), dim=-1).requires_grad_()
    gradients = [
        torch.autograd.grad(contrastive_loss(images, words, 5.0, target), images)[0] for target in (None, labels)
    ]
    assert torch.allclose(*gradients, atol=1e-6)


def test_labels_are_of_the_degradation_alone(model, image, text):
    output = model(image, text)
    plain, labelled = daclip_losses(output), daclip_losses(output, torch.zeros(2, dtype=torch.int64))
    assert torch.equal(plain["content"], labelled["content"])
    assert not torch.allclose(plain["degradation"], labelled["degradation"])
