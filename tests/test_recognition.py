# SPDX-License-Identifier: Apache-2.0
import math

import pandas as pd
import pytest
import torch

from llicm.degradations import DEGRADATIONS
from llicm.vlm.clip import WORDS
from llicm.vlm.conditioner import (
    Conditioner,
    conditioner_from,
    conditioner_state,
    load_conditioner,
    save_conditioner,
)
from llicm.vlm.judge import STATISTICS, statistics
from llicm.vlm.recognition import accuracy, recognise_all, tiles


def test_tiles_are_central_and_do_not_overlap():
    photo = torch.arange(3 * 70 * 100).view(3, 70, 100)
    found = tiles({"p": photo, "small": photo[:, :20, :90]}, 32)
    assert list(found) == [f"p {r},{c}" for r in range(2) for c in range(3)] + [f"small 0,{c}" for c in range(2)]
    assert torch.equal(found["p 0,0"], photo[:, 3:35, 2:34]) and torch.equal(found["p 1,2"], photo[:, 35:67, 66:98])
    parts = torch.cat([found[name].flatten() for name in found if name.startswith("p")])
    assert len(parts.unique()) == len(parts) == 6 * 3 * 32 * 32
    # Too low for a square: as high as it is, cut along the other side alone.
    assert torch.equal(found["small 0,1"], photo[:, :20, 13 + 32 : 13 + 64])
    whole = photo[:, :20, :30]
    assert torch.equal(tiles({"w": whole}, 32)["w 0,0"], whole)


def test_accuracy_by_level():
    rows = [
        (math.nan, "noisy", "noisy"), (math.nan, "noisy", "hazy"), (math.nan, "hazy", "hazy"), (math.nan, "clean", "x"),
        (0.0, "noisy", "clean"), (0.0, "hazy", "hazy"), (2.5, "noisy", "noisy"), (2.5, "hazy", "hazy"),
        (0.0, "clean", "clean"),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["level", "word", "guess"])
    found = accuracy(table, ["noisy", "hazy"])
    assert found == {"none": pytest.approx(2 / 3), "0": 0.5, "2.5": 1.0} and list(found) == ["none", "0", "2.5"]
    assert accuracy(table, ["clean"]) == {"none": 0.0, "0": 1.0}


def test_a_judge_tells_clean_pictures_from_others_and_says_how_surely(tiny_daclip, tmp_path):
    conditioner = Conditioner(tiny_daclip, "windows")
    ideal = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0)).repeat_interleave(5, 2)
    ideal = ideal.repeat_interleave(5, 3)
    dark = 0.2 * ideal
    words = conditioner.recognise(torch.cat([ideal, dark]))
    conditioner.fit_judge(
        [(ideal[:16], torch.zeros(16).long()), (dark[:4], torch.ones(4).long()), (dark[4:16], torch.ones(12).long())],
        ["low-light"],
        0,
    )
    clean, not_clean = (conditioner.recognise(part[16:])[:, WORDS.index("clean")] for part in (ideal, dark))
    assert clean.min() > 0.8 and not_clean.max() < 0.2
    judged = conditioner.recognise(torch.cat([ideal, dark]))
    assert torch.allclose(judged.sum(1), torch.ones(48))
    # the other words are told apart as before
    assert torch.equal(judged[:, :-1].argmax(1), words[:, :-1].argmax(1))
    save_conditioner(conditioner, tmp_path)
    again = load_conditioner(tmp_path)
    assert torch.equal(again.recognise(ideal), conditioner.recognise(ideal))
    closed = conditioner_from(*conditioner_state(conditioner))
    assert torch.allclose(closed.recognise(ideal), conditioner.recognise(ideal), atol=0.05)  # in half precision


class Darkening(torch.nn.Module):
    """A codec whose level is the share of the light that it keeps."""

    def compress(self, x, level):
        self.kept = (x * level - 0.5).clamp(0, 1)
        return b""

    def decompress(self, data):
        return self.kept, 0.0


TASKS = ["noisy", "rainy"]


def photos():
    return {"p": torch.rand(3, 40, 70, generator=torch.Generator().manual_seed(0))}


def test_every_photo_word_severity_and_level_is_asked_once(tiny_daclip):
    conditioner = Conditioner(tiny_daclip, "windows")
    settings = dict(side=32, severities=[0.2, 0.8], levels=[0, 1], seed=0)
    plain = recognise_all(conditioner, photos(), TASKS, None, **settings)
    assert len(plain) == len(WORDS) * 2 * 2 and plain["level"].isna().all()
    assert set(plain["word"]) == set(WORDS) and set(plain["guess"]) <= set(WORDS)
    assert set(plain["guess_of_tasks"]) <= set(TASKS)
    among = plain["guess"].isin(TASKS)
    assert (plain["guess"] == plain["guess_of_tasks"])[among].all()
    assert plain.equals(
        recognise_all(conditioner, photos(), TASKS, None, side=32, severities=[0.2, 0.8], levels=[0, 1], seed=0)
    )
    decoded = recognise_all(conditioner, photos(), TASKS, Darkening(), side=32, severities=[0.5], levels=[0, 1], seed=0)
    assert len(decoded) == len(WORDS) * 2 * 3
    counts = decoded.fillna({"level": -1}).groupby(["photo", "severity", "level", "word"]).size()
    assert len(counts) == len(decoded) and set(counts) == {1}


def test_what_the_conditioner_is_shown(tiny_daclip, monkeypatch):
    """The clean tile for "clean", a degraded one otherwise, and both again behind the codec, clamped."""
    conditioner, seen = Conditioner(tiny_daclip, "windows"), []

    def recognise(decoded, words=WORDS):
        seen.append(decoded.clone())
        return (torch.eye(len(words))[words.index("hazy")] + 0.5 * torch.eye(len(words))[words.index("rainy")])[None]

    monkeypatch.setattr(conditioner, "recognise", recognise)
    settings = dict(side=64, severities=[0.5], levels=[0.0, 1.0], seed=0)
    table = recognise_all(conditioner, photos(), TASKS, Darkening(), **settings)
    assert (table["guess_of_tasks"] == "rainy").all()
    assert (table["guess"] == "hazy").all() and accuracy(table, ["hazy", "noisy"]) == {"none": 0.5, "0": 0.5, "1": 0.5}
    tile = photos()["p"][:, :, 3:67]
    for word, shown in zip(WORDS, zip(*[iter(seen)] * 3, strict=True), strict=True):
        assert torch.equal(shown[0][0], tile) is (word == "clean")
        assert torch.equal(shown[1], torch.zeros_like(shown[1]))
        assert torch.equal(shown[2], (shown[0] - 0.5).clamp(0, 1))
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(seen[0], DEGRADATIONS[WORDS[0]](tile[None], 0.5, generator))


@pytest.mark.parametrize("size", [(1, 1), (1, 600), (3, 9), (40, 40), (300, 500)])
def test_a_judge_can_look_at_pictures_of_every_size(size):
    numbers = statistics(torch.rand(3, *size, generator=torch.Generator().manual_seed(0)))
    assert numbers.shape == (STATISTICS,) and numbers.isfinite().all()


def test_what_a_judge_sees_of_haze_darkness_and_noise():
    x = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(0)).repeat_interleave(16, 1)
    x = x.repeat_interleave(16, 2)
    plain, hazy, dark, noisy = (
        statistics(picture) for picture in (x, 0.4 + 0.6 * x, 0.3 * x, (x + 0.05 * torch.randn(x.shape)).clamp(0, 1))
    )
    darkest, brightest, fine = 0, 10, slice(-48, -44)  # of luma; second derivatives at full resolution
    assert hazy[darkest] > plain[darkest] + 0.2 and dark[brightest] < plain[brightest] - 0.4
    assert (noisy[fine] > plain[fine]).sum() >= 2 and noisy[fine][0] > plain[fine][0] + 1
