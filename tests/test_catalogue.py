# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from llicm.data import catalogue as module
from llicm.data.catalogue import add, catalogue, check_apart, folder_of, known_sets, overlap, registry, split
from llicm.data.corpus import load_photos
from llicm.degradations import DEGRADATIONS
from llicm.errors import UserError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "datasets"
WANTED = (
    "kodak", "cbsd68", "bsds500_test", "rain100h", "gopro", "lol", "reside-6k", "raindrop", "srd", "snow100k",
    "celeba-hq-256",
)  # fmt: skip


def pictures(folder, names, shade=0):
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        Image.new("RGB", (80, 70), (shade, number, 0)).save(folder / name)
    return folder


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A catalogue of two small sets whose pictures exist, and a paired one."""
    sets = {}
    for shade, name in enumerate(("red", "green")):
        folder = pictures(tmp_path / name, ["a.png", "b.png"], 100 * shade)
        sums = {path.name: module._digest(path) for path in folder.iterdir()}
        sets[name] = module.DataSet(name, name.title(), "nowhere", "free", "80x70", "photos", count=2, sha256=sums)
    sets["storm"] = module.DataSet(
        "storm", "Storm", "nowhere", "free", "80x70", "pairs", train=2, val=1, degradation="rainy"
    )
    monkeypatch.setattr(module, "catalogue", lambda: sets)
    return tmp_path


def test_the_catalogue_is_complete():
    assert set(WANTED) <= set(catalogue())
    for entry in catalogue().values():
        assert entry.title and entry.source and entry.licence and entry.kind in ("photos", "pairs", "real")
        assert entry.count if entry.kind == "photos" else entry.val and entry.degradation in DEGRADATIONS
        assert bool(entry.train) == (entry.kind == "pairs")
        assert not entry.sha256 or len(entry.sha256) == entry.count + (2 * entry.val if entry.kind == "real" else 0)


@pytest.mark.parametrize(
    "first, second, shared",
    [("cbsd68", "bsds500_val", "wholly"), ("bsds500_train", "rain100h", "75"), ("live1", "kodak", "19")],
)
def test_known_overlaps(first, second, shared):
    assert shared in overlap(first, second) and overlap(first, second) == overlap(second, first)
    assert overlap("bsds500_test", "kodak") is None and overlap("kodak", "kodak")


def test_a_copy_is_verified_and_registered(small):
    assert add("red", small / "red", small / "datasets") == 2
    assert folder_of("red", small / "datasets") == (small / "red").resolve()
    (small / "red" / "b.png").write_bytes((small / "red" / "a.png").read_bytes())
    with pytest.raises(UserError, match="b.png: this file differs from the set's"):
        add("red", small / "red", small / "datasets")
    (small / "red" / "b.png").rename(small / "red" / "c.png")
    with pytest.raises(UserError, match="c.png: this file is none of the set's"):
        add("red", small / "red", small / "datasets")
    (small / "red" / "c.png").unlink()
    with pytest.raises(UserError, match="red: 1 pictures, but Red has 2"):
        add("red", small / "red", small / "datasets")
    assert list(registry(small / "datasets")) == ["red"]  # what was right stays


def test_what_is_not_there_is_told(small):
    with pytest.raises(UserError, match="blue: not in the catalogue.*red, green"):
        add("blue", small, small / "datasets")
    with pytest.raises(UserError, match="red: no copy is registered.*nowhere.*llicm data add red"):
        folder_of("red", small / "datasets")
    (small / "datasets").mkdir()
    (small / "datasets" / "registry.json").write_text('{"red": 3}')
    with pytest.raises(UserError, match="registry.json: damaged"):
        registry(small / "datasets")


def test_pairs_are_verified(small):
    for part, names in (("train", ["1.png", "2.png"]), ("val", ["1.png"])):
        for kind in ("GT", "LQ"):
            pictures(small / "storm" / part / "rainy" / kind, names)
    assert add("storm", small / "storm", small / "datasets") == 3
    (small / "storm" / "train" / "rainy" / "GT" / "2.png").unlink()
    with pytest.raises(UserError, match="2.png: no ideal picture"):
        add("storm", small / "storm", small / "datasets")
    (small / "storm" / "val" / "rainy" / "LQ" / "1.png").unlink()
    (small / "storm" / "train" / "rainy" / "LQ" / "2.png").unlink()
    with pytest.raises(UserError, match="1 pictures, but Storm has 2 there"):
        add("storm", small / "storm", small / "datasets")


def test_a_split_is_what_a_study_reads(small):
    for name in ("red", "green"):
        add(name, small / name, small / "datasets")
    assert split("red", "green", small / "photos", small / "datasets") == {"train": 2, "test": 2}
    corpus = load_photos(small / "photos")
    assert list(corpus.train) == list(corpus.test) == ["a", "b"]
    assert "Red (nowhere)" in (small / "photos" / "SOURCES.txt").read_text()
    with pytest.raises(UserError, match="photos: exists already"):
        split("red", "green", small / "photos", small / "datasets")
    with pytest.raises(UserError, match="red cannot train what red is to test"):
        split("red", "red", small / "other", small / "datasets")
    with pytest.raises(UserError, match="storm: a set of pairs"):
        split("storm", "red", small / "other", small / "datasets")


def test_overlapping_sets_are_refused_by_their_contents(small, monkeypatch):
    for name in ("red", "green"):
        add(name, small / name, small / "datasets")
    split("red", "green", small / "photos", small / "datasets")
    assert known_sets((small / "photos" / "train").iterdir()) == {"red"}
    check_apart(small / "photos")
    monkeypatch.setattr(module, "overlap", lambda a, b: "they share all" if {a, b} == {"red", "green"} else None)
    with pytest.raises(UserError, match="train holds photos of red, and test of green: they share all"):
        check_apart(small / "photos")
    with pytest.raises(UserError, match="red cannot train what green is to test"):
        split("red", "green", small / "again", small / "datasets")


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/datasets beside this repository")
def test_real_copies(tmp_path):
    assert add("kodak", SHARED / "kodak", tmp_path) == 24
    assert add("bsds500_test", SHARED / "bsds500_test", tmp_path) == 200
    assert split("bsds500_test", "kodak", tmp_path / "photos", tmp_path) == {"train": 200, "test": 24}
    check_apart(tmp_path / "photos")
    assert json.loads((tmp_path / "registry.json").read_text())["kodak"]["path"] == str((SHARED / "kodak").resolve())


@pytest.mark.skipif(not (SHARED / "photos.json").is_file(), reason="no ../shared/datasets beside this repository")
def test_every_original_is_listed():
    listed = json.loads((SHARED / "photos.json").read_text())
    sets = {"ubuntu": "ubuntu-wallpapers", "cid22": "cid22", "cid22_validation": "cid22_validation"}
    for photo in listed:
        folder, file = photo["prepared"].split("/")
        entry = catalogue()[sets[folder]]
        assert entry.originals[file] == module.Original(photo["path"], photo["sha256"], photo.get("author", ""))
        assert photo["repository"] in entry.source and photo["commit"] in entry.source
        assert entry.licence == photo["license"]
    assert sum(len(entry.originals) for entry in catalogue().values()) == len(listed)


@pytest.mark.skipif(not (SHARED / "real").is_dir(), reason="no ../shared/datasets beside this repository")
@pytest.mark.parametrize(
    "name, place",
    [("cid22", "cid22"), ("cid22_validation", "cid22_validation"), ("noisy-cc15", "real/noisy-cc15"),
     ("motion-blurry-gopro", "real/motion-blurry-gopro"), ("rainy-rain100l", "real/rainy-rain100l"),
     ("noisy-polyu", "real/noisy-polyu"), ("ubuntu-wallpapers", "ubuntu")],
)  # fmt: skip
def test_prepared_copies_and_real_pairs(tmp_path, name, place):
    assert add(name, SHARED / place, tmp_path) in (catalogue()[name].count, catalogue()[name].val)


@pytest.fixture
def scaled(monkeypatch, tmp_path):
    """A set of a catalogue that is made from originals deep in a clone: one larger than a megapixel, one not."""
    originals, sizes = {}, {"large.avif": (1600, 1000), "small.png": (80, 70)}
    for (file, size), path in zip(sizes.items(), ("a/b/Große Bäume.png", "a/c/Small.png"), strict=True):
        (tmp_path / "clone" / path).parent.mkdir(parents=True, exist_ok=True)
        picture = Image.radial_gradient("L").resize(size)
        Image.merge("RGB", (picture, picture, picture.rotate(180))).save(tmp_path / "clone" / path)
        data = (tmp_path / "clone" / path).read_bytes()
        originals[file] = module.Original(path, hashlib.sha256(data).hexdigest(), "Ann" if "large" in file else "")
    entry = module.DataSet(
        "trees", "Trees", "nowhere at 12", "CC BY-SA 3.0", "", "photos", count=2, originals=originals,
        sha256=dict.fromkeys(originals, "0" * 16),
    )  # fmt: skip
    test = pictures(tmp_path / "test", ["t.png", "u.png"], 50)
    sets = {"trees": entry, "test": module.DataSet("test", "Test", "nowhere", "free", "", "photos", count=2)}
    monkeypatch.setattr(module, "catalogue", lambda: sets)
    add("test", test, tmp_path / "datasets")
    return tmp_path


def test_photos_are_made_from_originals_and_their_authors_told(scaled):
    registered = scaled / "datasets"
    assert module.prepare("trees", scaled / "clone", scaled / "made", registered) == (2, 0)
    assert Image.open(scaled / "made" / "large.avif").size == (800, 500)  # by 2, although 1.1 megapixels would be more
    assert Image.open(scaled / "made" / "small.png").tobytes() == Image.open(scaled / "clone/a/c/Small.png").tobytes()
    assert folder_of("trees", registered) == (scaled / "made").resolve()
    split("trees", "test", scaled / "photos", registered)
    assert sorted(load_photos(scaled / "photos").train) == ["large", "small"]
    told = (scaled / "photos" / "ATTRIBUTION.md").read_text()
    assert "CC BY-SA 3.0" in told and "- `a/b/Große Bäume.png`, by Ann\n- `a/c/Small.png`\n" in told
    with pytest.raises(UserError, match="made: exists already"):
        module.prepare("trees", scaled / "clone", scaled / "made", registered)
    with pytest.raises(UserError, match="test: its photos are used as they are"):
        module.prepare("test", scaled / "clone", scaled / "other", registered)


@pytest.mark.parametrize("trained_on", ["trees", "test"])
def test_authors_are_told_beside_the_published_weights(scaled, trained_on, monkeypatch):
    """Only lineage and numbers are left out here; `test_publish` has them."""
    from llicm.pipeline import publish as publishing

    study = scaled / "profiles" / "study"
    study.mkdir(parents=True)
    shutil.copy(Path(__file__).resolve().parents[1] / "profiles/study/params.yaml", study)
    module.prepare("trees", scaled / "clone", scaled / "made", scaled / "datasets")
    split(trained_on, {"trees": "test", "test": "trees"}[trained_on], study / "photos", scaled / "datasets")
    pipeline = SimpleNamespace(root=scaled, folder=study, producer=lambda path: "release")
    fakes = {
        "Pipeline": lambda root, profile: pipeline, "catalogue": module.catalogue, "_records": lambda path: None,
        "_verified": lambda path, root: b"weights", "_card": lambda *given: "; ".join(publishing._photos(pipeline)),
        "trace": lambda path, root: SimpleNamespace(as_json=lambda: "{}"),
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(publishing, name, fake)
    out = publishing.publish(scaled)
    card = (out / "llicm.md").read_text()
    if trained_on == "trees":
        assert (out / "photos.md").read_bytes() == (study / "photos" / "ATTRIBUTION.md").read_bytes()
        assert "Große Bäume.png`, by Ann" in (out / "photos.md").read_text()
        assert card == "Trees (nowhere at 12); CC BY-SA 3.0, each with its author in [photos.md](photos.md)"
    else:
        assert not (out / "photos.md").exists() and card == "Test (nowhere); free"


def test_originals_are_verified_and_used_as_they_are(scaled):
    registered = scaled / "datasets"
    assert add("trees", scaled / "clone", registered) == 2
    assert split("trees", "test", scaled / "photos", registered) == {"train": 2, "test": 2}
    assert sorted(path.name for path in (scaled / "photos" / "train").iterdir()) == ["large.png", "small.png"]
    assert known_sets((scaled / "photos" / "train").iterdir()) == {"trees"}
    (scaled / "clone/a/c/Small.png").write_bytes(b"another")
    with pytest.raises(UserError, match="Small.png: this file differs from the set's original"):
        add("trees", scaled / "clone", registered)
    with pytest.raises(UserError, match="Small.png: this file differs from the set's original"):
        module.prepare("trees", scaled / "clone", scaled / "made", registered)
    assert not (scaled / "made").exists() and not list(scaled.glob(".made*"))
    (scaled / "clone/a/c/Small.png").unlink()
    with pytest.raises(UserError, match="Small.png: no such original; get Trees from nowhere at 12"):
        add("trees", scaled / "clone", registered)


def test_real_pairs_are_verified(monkeypatch, tmp_path):
    for kind in ("GT", "LQ"):
        pictures(tmp_path / "rain" / kind, ["0.png", "1.png"])
    sums = {f"{p.parent.name}/{p.name}": module._digest(p) for p in (tmp_path / "rain").glob("*/*")}
    entry = module.DataSet("rain", "Rain", "nowhere", "free", "", "real", val=2, degradation="rainy", sha256=sums)
    monkeypatch.setattr(module, "catalogue", lambda: {"rain": entry})
    assert add("rain", tmp_path / "rain", tmp_path / "datasets") == 2
    pictures(tmp_path / "rain" / "more", ["2.png"])
    (tmp_path / "rain" / "more" / "2.png").rename(tmp_path / "rain" / "LQ" / "2.png")
    with pytest.raises(UserError, match="LQ/2.png: none of the set's, or differs"):
        add("rain", tmp_path / "rain", tmp_path / "datasets")
    (tmp_path / "rain" / "LQ" / "2.png").unlink()
    (tmp_path / "rain" / "GT" / "1.png").unlink()
    with pytest.raises(UserError, match="GT/1.png: missing"):
        add("rain", tmp_path / "rain", tmp_path / "datasets")
    shutil.rmtree(tmp_path / "rain" / "GT")
    with pytest.raises(UserError, match="GT: no such folder; lay Rain out as {GT,LQ}"):
        add("rain", tmp_path / "rain", tmp_path / "datasets")
