# SPDX-License-Identifier: Apache-2.0
"""Configurations, preprocessing and tokens of CLIP."""

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from llicm.degradations import DEGRADATIONS
from llicm.errors import UserError
from llicm.vlm.clip import DEGRADATION_WORDS, WORDS, degradation_text, model_config, preprocess, tokenize
from llicm.vlm.losses import text_labels

TINY = {
    "embed_dim": 6,
    "vision_cfg": {"layers": 2, "width": 8, "head_width": 4, "patch_size": 4, "image_size": 12},
    "text_cfg": {"context_length": 7, "vocab_size": 20, "width": 8, "heads": 2, "layers": 1},
}


def test_configuration_by_name_prefix_or_file(tmp_path):
    path = tmp_path / "daclip_tiny.json"
    path.write_text(json.dumps(TINY | {"custom_text": True}))
    assert model_config(str(path)) == TINY
    assert model_config("daclip_ViT-B-32") == model_config("ViT-B-32") == open_clip.get_model_config("ViT-B-32")
    for content in ("[]", "{"):
        path.write_text(content)
        with pytest.raises(UserError, match="tiny.json"):
            model_config(str(path))
    with pytest.raises(UserError, match="absent.json"):
        model_config(str(tmp_path / "absent.json"))


@pytest.mark.parametrize("size", [(224, 224), (300, 231), (61, 90), (230, 500)])
def test_preprocessing_equals_clips_transform_of_the_8_bit_image(size):
    array = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    transform = open_clip.image_transform(224, is_train=False)
    expected = torch.stack([transform(Image.fromarray(a)) for a in array])
    images = torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(preprocess(images), expected)
    assert torch.equal(preprocess(images + 0.4 / 255), expected)  # rounded, not cut
    assert torch.equal(preprocess(images.requires_grad_())[:1], preprocess(images[:1]))


def test_preprocessing_of_other_sizes_and_values():
    images = torch.full((1, 3, 20, 30), 1.7, dtype=torch.float64)
    out = preprocess(images, (8, 12))
    assert out.shape == (1, 3, 8, 12) and out.dtype == torch.float32
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    assert torch.allclose(out[0], ((1 - mean) / std).expand(3, 8, 12), atol=1e-6)
    assert preprocess(images[:0], 8).shape == (0, 3, 8, 8)
    with pytest.raises(ValueError, match="N, 3, H, W"):
        preprocess(images[0])


@pytest.mark.parametrize("turned", [False, True])
def test_of_a_thin_image_the_middle_is_looked_at(turned):
    """All of it at 224 pixels across would be 3.7 million pixels long."""
    image = torch.rand(1, 3, 1, 16384)
    middle = image[..., 8184:8200]
    expected = preprocess(middle.mT if turned else middle)
    assert torch.equal(preprocess(image.mT if turned else image), expected)


def test_tokens():
    config = model_config("ViT-B-32")
    tokens = tokenize(DEGRADATION_WORDS, config)
    assert tokens.shape == (10, 77) and tokens.dtype == torch.int64 and len(set(text_labels(tokens).tolist())) == 10
    assert torch.equal(tokens, open_clip.get_tokenizer("ViT-B-32")(list(DEGRADATION_WORDS)))
    short = tokenize(["a long text about rain"], {"text_cfg": {"context_length": 4}})
    assert short.shape == (1, 4) and int(short[0, -1]) == int(short.max())
    for text_cfg in ({"vocab_size": 64}, {"hf_tokenizer_name": "bert-base-uncased"}):
        with pytest.raises(UserError, match="vocabulary"):
            tokenize(["rainy"], {"text_cfg": text_cfg})


def test_words_are_those_of_the_degradations():
    assert set(DEGRADATION_WORDS) == set(DEGRADATIONS) and len(DEGRADATION_WORDS) == 10
    # The order of DA-CLIP's published classifier, which the weights do not tell.
    published = "motion-blurry hazy jpeg-compressed low-light noisy raindrop rainy shadowed snowy uncompleted"
    assert " ".join(DEGRADATION_WORDS) == published


def test_mixed_degradations_are_named_in_the_order_of_the_words():
    assert degradation_text(["noisy"]) == degradation_text(["noisy", "noisy"]) == "noisy"
    assert degradation_text(["noisy", "low-light"]) == degradation_text(["low-light", "noisy"]) == "low-light, noisy"
    assert WORDS == (*DEGRADATION_WORDS, "clean") and degradation_text(["clean"]) == "clean"
