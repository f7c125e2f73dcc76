# SPDX-License-Identifier: Apache-2.0
"""Photos in memory: as bytes, kept in files, and smaller copies only when asked for."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator

from llicm.data import corpus
from llicm.data.corpus import load_photos
from llicm.data.pairs import read_pairs, read_training_pairs, write_pairs
from llicm.data.photo import SCALES, Photo, as_bytes, as_floats, mapped
from llicm.data.stream import PairStream
from llicm.images import read_image, write_png


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(("train/a", "train/b", "test/c")):
        write_png(torch.rand(3, 90, 120, generator=Generator().manual_seed(number)), tmp_path / f"photos/{name}.png")
    deep = np.arange(90 * 120, dtype=np.uint16).reshape(90, 120) * 6
    Image.fromarray(deep).save(tmp_path / "photos/train/deep.png")
    return tmp_path / "photos"


def batches(found):
    photos = list(found.train.kept.values()) if hasattr(found, "train") else found
    stream = PairStream(photos, ["noisy", "snowy"], 32, 8, 0, 0.2, (0.2, 0.8), 2, 3)
    return torch.stack([stream.batch(step).degraded for step in range(4)])


def test_every_value_of_8_bits_comes_back_and_others_stay():
    values = torch.from_numpy(np.arange(256, dtype=np.float32) / 255.0)
    assert as_bytes(values).dtype == torch.uint8 and torch.equal(as_floats(as_bytes(values)), values)
    between = values[:-1] + 1e-4
    assert as_bytes(between) is between and as_floats(between) is between


def test_photos_are_what_is_read_and_are_decoded_once(folder, monkeypatch):
    plain, keep = load_photos(folder), folder.parent / "keep"
    kept = load_photos(folder, keep)
    for photos in (plain, kept):
        assert list(photos.train) == ["a", "b", "deep"]
        for name, image in photos.train.items():
            assert torch.equal(image, read_image(folder / f"train/{name}.png"))
        dtypes = [photo.pixels.dtype for photo in photos.train.kept.values()]
        assert dtypes == [torch.uint8, torch.uint8, torch.float32]
    floats = [image.clone() for image in plain.train.values()]
    expected = batches(floats)
    assert torch.equal(batches(plain), expected) and torch.equal(batches(kept), expected)

    monkeypatch.setattr(corpus, "read_image", lambda path: pytest.fail(f"{path} is decoded again"))
    assert torch.equal(batches(load_photos(folder, keep)), expected)


def test_what_is_kept_follows_the_photos(folder):
    keep = folder.parent / "keep"
    first = {name: photo.file for name, photo in load_photos(folder, keep).train.kept.items()}
    write_png(torch.rand(3, 80, 80), folder / "train/b.png")
    (folder / "train/deep.png").unlink()
    first["a"].write_bytes(first["a"].read_bytes()[:1000])  # cut by a loss of power
    second = load_photos(folder, keep)
    for name, image in second.train.items():
        assert torch.equal(image, read_image(folder / f"train/{name}.png"))
    assert second.train.kept["a"].file == first["a"] and second.train.kept["b"].file != first["b"]
    parts = (*second.train.kept.values(), *second.test.kept.values())
    assert sorted(keep.iterdir()) == sorted(photo.file for photo in parts)


def test_smaller_copies_are_made_when_asked_for_and_shared(folder):
    keep = folder.parent / "keep"
    photo = load_photos(folder, keep).train.kept["a"]
    assert photo.scales(32) == [1.0, 0.75, 0.5] and photo.scales(200) == [1.0]
    PairStream([photo], ["noisy"], 32, 2, 0, 0.0, (0.0, 1.0), 1, 1)
    assert len(list(keep.iterdir())) == 4
    alone = Photo.of(read_image(folder / "train/a.png"))
    for scale in SCALES:
        small = alone.at(scale)
        assert small.shape[1:] == photo.size(scale) and alone.at(scale) is small
        assert torch.equal(photo.at(scale), small)
    assert len(list(keep.iterdir())) == 7
    again = load_photos(folder, keep).train.kept["a"]
    assert len(list(keep.iterdir())) == 7 and torch.equal(again.at(0.5), photo.at(0.5))
    again.at(0.5).zero_()  # a private mapping
    assert torch.equal(Photo(photo.pixels, photo.file).at(0.5), photo.at(0.5))


@pytest.mark.parametrize("made", [torch.arange(60, dtype=torch.uint8).view(3, 4, 5), torch.rand(3, 4, 5)])
def test_a_mapped_file_is_not_kept_open_and_one_that_was_cut_is_made_again(tmp_path, made):
    """A process may have 1,024 open files; sets of pairs have tens of thousands."""
    before = os.listdir("/proc/self/fd")
    found = [mapped(tmp_path / f"{number}.npy", lambda: made) for number in range(8)]
    assert os.listdir("/proc/self/fd") == before and all(torch.equal(each, made) for each in found)
    found[0][0] = 7  # changes no file
    path = tmp_path / "0.npy"
    whole = path.read_bytes()
    for length in (len(whole), len(whole) - 3, 50, 0):
        path.write_bytes(whole[:length])
        assert torch.equal(mapped(path, lambda: made), made)


def test_training_pairs_are_mapped_and_stay_off_the_device(tmp_path):
    """A hundred gigabytes of public sets fit neither into memory nor onto a GPU."""
    photos = {name: torch.rand(3, 70, 80, generator=Generator().manual_seed(int(name))) for name in "12"}
    write_pairs(photos, tmp_path / "pairs", ["hazy"], 0.5, 0, "train", None)
    read = read_pairs(tmp_path / "pairs", "train", "hazy")
    found = read_training_pairs(tmp_path / "pairs", ["hazy"], tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 4
    for pair, wanted in zip(found["hazy"], read, strict=True):
        assert pair.name == wanted.name and pair.ideal.file is not None and pair.ideal.pixels.dtype == torch.uint8
        for kind in ("ideal", "degraded"):
            assert torch.equal(as_floats(getattr(pair, kind).pixels), getattr(wanted, kind))
    arguments = ([photos["1"]], ["hazy"], 32, 8, 0, 0.0, (0.2, 0.8), 1, 1)
    for device in (None, "cpu"):
        batch, wanted = (PairStream(*arguments, paired, device=device).batch(3) for paired in (found, {"hazy": read}))
        assert batch.severity.isnan().any() and torch.equal(batch.degraded, wanted.degraded)
    assert not any(pair.ideal._copies or pair.degraded._copies for pair in found["hazy"])
