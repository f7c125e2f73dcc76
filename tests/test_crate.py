# SPDX-License-Identifier: Apache-2.0
"""The RO-Crate of a small study whose lock file is written by hand, held to the validator of the profiles."""

import hashlib
import io
import json
import shutil
import subprocess
import zipfile

import pytest
from ruamel.yaml import YAML

from llicm import cli
from llicm.errors import UserError
from llicm.provenance.crate import METADATA, export_crate
from llicm.provenance.lineage import digest

PROFILE = "provenance-run-crate-0.5"  # with what it builds on: RO-Crate 1.1, Workflow RO-Crate, the other Run Crates
# The context of RO-Crate 1.1, as far as it is used; the validator refuses every other term.
URL = "https://w3id.org/ro/crate/1.1/context"
TERMS = """
    ComputerLanguage ControlAction CreateAction CreativeWork Dataset HowTo HowToStep Organization OrganizeAction
    PropertyValue SoftwareApplication SoftwareSourceCode WebPage about actionStatus additionalType agent alternateName
    author contentSize creator datePublished description encodingFormat endTime exampleOfWork hasPart instrument
    isPartOf license mainEntity mentions name object operatingSystem position processorRequirements programmingLanguage
    publisher result sdPublisher softwareRequirements softwareVersion startTime step url value version workExample
""".split()
CONTEXT = {term: f"http://schema.org/{term}" for term in TERMS}
CONTEXT |= {"File": "http://schema.org/MediaObject", "conformsTo": "http://purl.org/dc/terms/conformsTo"}
STAGES = {
    "code": (
        "python src/clean.py notebooks build", ["notebooks", "params.yaml", "src/clean.py"], ["build"], {},
    ),
    "train@a+b": (
        "python src/run.py", ["build/1_train.ipynb", "data", "src/llicm"],
        ["artifacts/models/a", "executed/1_train-a+b.ipynb", "results/training.csv"],
        {"seed": 0, "paired": None, "arms.a": {"steps": 3, "lr": 1e-3}},
    ),
    "train@c": (
        "python src/run.py", ["build/1_train.ipynb", "data", "src/llicm"], ["artifacts/models/c"],
        {"seed": 1, "paired": None, "arms.c": {}},
    ),
    "release": ("cp artifacts/models/a/w.bin artifacts/release", ["artifacts/models/a/w.bin"], ["artifacts/release"],
                {"release": {"models": "a"}}),
    "figures": (
        "python src/run.py", ["build/2_figures.ipynb", "artifacts/models"],
        ["executed/2_figures.ipynb", "results/figures"], {"seed": 0},
    ),
}  # fmt: skip


@pytest.fixture
def study(tmp_path):
    """code -> train@a+b, train@c -> figures, release; under git, all on disk."""
    root = tmp_path / "study"
    notebook = json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    files = {name: notebook for name in ("notebooks/1_train.ipynb", "notebooks/2_figures.ipynb", "build/1_train.ipynb",
                                         "build/2_figures.ipynb", "executed/1_train-a+b.ipynb",
                                         "executed/2_figures.ipynb")}  # fmt: skip
    files |= {
        "README.md": "# A study", "LICENSE": "Apache", "environment.yml": "name: a", "requirements.txt": "numpy==1",
        "params.yaml": "seed: 0", "src/clean.py": "", "src/run.py": "", "src/llicm/model.py": "x = 1",
        "src/llicm/py.typed": "", "data/SOURCES.md": "CC0", "data/train/a b.png": "pixels",
        "artifacts/models/a/w.bin": "weights", "artifacts/models/c/w.bin": "others",
        "artifacts/release/w.bin": "weights", "results/training.csv": "1,2", "results/figures/1 @0.2.png": "pixels",
        "results/notes.md": "in git, of no stage", ".gitignore": "/build/\n/executed/\n/artifacts/\n/data\n/.run/\n",
    }  # fmt: skip
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    about = {"platform": "Linux", "processor": "x86_64", "cpus": 2, "python": "3.11.7", "libraries": {"dvc": "3.67.1"}}
    runs = {
        name: {"started": f"2026-01-02T03:0{minute}:00Z", "seconds": 61.6, "commit": None, **about}
        for minute, name in enumerate(STAGES)
    }
    (root / "results/timing").mkdir()
    (root / "results/timing/stages.json").write_text(json.dumps(runs))
    write_locks(root)
    commit(root)
    return root


def write_locks(root):
    def items(paths):
        size = {"size": 7}
        return [{"path": path, "hash": "md5", "md5": digest(root / path), **size} for path in paths]

    lock, plan = {}, {}
    for name, (command, deps, outs, params) in STAGES.items():
        lock[name] = {"cmd": command, "deps": items(deps), "params": {"params.yaml": params}, "outs": items(outs)}
        plan[name.split("@")[0]] = {"desc": f"To {name}", "cmd": command}
    plan["train"] = {"foreach": ["a+b", "c"], "do": plan["train"]}
    for name, content in {
        "dvc.lock": {"schema": "2.0", "stages": lock}, "data.dvc": {"outs": items(["data"])},
        "dvc.yaml": {"stages": plan},
    }.items():  # fmt: skip
        with open(root / name, "w") as file:
            YAML().dump(content, file)


def commit(root):
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "all"], check=True)


def entities(crate):
    return {entity["@id"]: entity for entity in json.loads((crate / METADATA).read_text())["@graph"]}


def ids(value):
    return [ref["@id"] for ref in (value if isinstance(value, list) else [value])]


def files(crate):
    return {file.relative_to(crate).as_posix(): file.read_bytes() for file in crate.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def validate(tmp_path_factory):
    """Function of a crate: (severity, message) of what the validator finds. Its cache has the context: no network."""
    import requests
    from requests_cache import CachedSession
    from rocrate_validator.models import ValidationSettings
    from rocrate_validator.services import validate
    from urllib3 import HTTPResponse

    response = requests.Response()
    response.status_code, response.url = 200, URL
    response.request = requests.Request("GET", URL).prepare()
    response.headers["Content-Type"] = "application/ld+json"
    response.raw = HTTPResponse(io.BytesIO(json.dumps({"@context": CONTEXT}).encode()), preload_content=False)
    cache = tmp_path_factory.mktemp("cache") / "http"
    with CachedSession(str(cache), backend="sqlite", expire_after=-1) as session:
        session.cache.save_response(response)

    def found(crate):
        settings = ValidationSettings(
            rocrate_uri=str(crate), profile_identifier=PROFILE, requirement_severity="RECOMMENDED", offline=True,
            cache_path=cache, cache_max_age=-1,
        )  # fmt: skip
        return {(issue.severity.name, issue.message) for issue in validate(settings).get_issues()}

    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["crate", "crate.zip"])
def test_the_validator_accepts_it(study, tmp_path, validate, name):
    # Notebooks are known by their paths in the crate and not on the web.
    assert validate(export_crate(study, tmp_path / name)) == {
        ("RECOMMENDED", "The SoftwareApplication id SHOULD be an absolute URI")
    }


@pytest.mark.slow
def test_the_validator_would_tell(study, tmp_path, validate):
    crate = export_crate(study, tmp_path / "crate")
    held = json.loads((crate / METADATA).read_text())
    for entity in held["@graph"]:
        if entity["@id"] == "#run/figures":
            del entity["instrument"]
        elif entity["@id"] == "dvc.yaml":
            del entity["programmingLanguage"]
            entity["colour"] = "red"
        elif entity["@id"] == "#control/figures":
            del entity["object"]
    (crate / METADATA).write_text(json.dumps(held))
    (crate / "results/training.csv").unlink()
    messages = " ".join(message for severity, message in validate(crate) if severity == "REQUIRED")
    assert "The Action MUST have an instrument" in messages
    assert "The Main Workflow must refer to its language" in messages
    assert "A ControlAction must reference the action representing the corresponding tool run" in messages
    assert "does not include the Data Entity 'results/training.csv'" in messages
    assert 'key "colour"' in messages


def test_what_is_inside(study, tmp_path):
    crate = export_crate(study, tmp_path / "crate")
    inside = files(crate)
    assert {"artifacts/release/w.bin", "executed/1_train-a+b.ipynb", "data/SOURCES.md", "data.dvc"} <= set(inside)
    assert not any(name.startswith("artifacts/models") for name in inside)
    found = entities(crate)
    assert len(found) == len(json.loads((crate / METADATA).read_text())["@graph"])
    for name, data in inside.items():
        if name != METADATA:
            entity = found[name.replace(" ", "%20").replace("@", "%40").replace("+", "%2B")]
            assert entity["sha256"] == hashlib.sha256(data).hexdigest() and entity["contentSize"] == str(len(data))
            assert entity["md5"] == hashlib.md5(data).hexdigest()
            assert data == (study / name).read_bytes()
    assert found["data/train/a%20b.png"]["license"] == found["data/"]["license"] == {"@id": "data/SOURCES.md"}
    assert found["./"]["license"] == {"@id": "https://spdx.org/licenses/Apache-2.0"}
    assert found["#artifacts/models/a"]["md5"] == digest(study / "artifacts/models/a")
    assert found["#artifacts/models/a"]["contentSize"] == "7"
    assert not any(entity["@type"] == "Person" for entity in found.values())


def test_who_made_what_from_what(study, tmp_path):
    found = entities(export_crate(study, tmp_path / "crate"))
    train, figures, whole = found["#run/train@a+b"], found["#run/figures"], found["#run"]
    assert train["instrument"] == {"@id": "notebooks/1_train.ipynb"}
    assert (train["startTime"], train["endTime"]) == ("2026-01-02T03:01:00+00:00", "2026-01-02T03:02:02+00:00")
    assert "61.6 s on Linux, x86_64, 2 CPUs, Python 3.11.7" in train["description"]
    # seeds differ between the two stages
    values = ["#value/seed", "#value/paired", "#value/arms.a"]
    assert ids(train["object"]) == ["build/1_train.ipynb", "data/", *values]
    assert ids(found["#run/train@c"]["object"])[2] == "#value/seed-2" and found["#value/seed-2"]["value"] == 1
    assert found["#value/arms.a"]["value"] == '{"lr": 0.001, "steps": 3}' and found["#value/paired"]["value"] == "null"
    assert found["#value/seed-2"]["exampleOfWork"] == {"@id": "#parameter/seed"}
    assert found["#parameter/seed"]["additionalType"] == "Integer"
    assert ids(train["result"]) == ["#artifacts/models/a", "executed/1_train-a%2Bb.ipynb", "results/training.csv"]
    # in place of the folder of all models, what the stages put there
    assert ids(figures["object"])[1:3] == ["#artifacts/models/a", "#artifacts/models/c"]
    assert found["#run/release"]["instrument"] == {"@id": "#tool/release"}
    assert found["#artifacts/models/a/w.bin"]["isPartOf"] == {"@id": "#artifacts/models/a"}
    assert found["#run/code"]["instrument"] == {"@id": "src/clean.py"}
    assert whole["instrument"] == found["./"]["mainEntity"] == {"@id": "dvc.yaml"}
    assert (whole["startTime"], whole["endTime"]) == ("2026-01-02T03:00:00+00:00", "2026-01-02T03:05:02+00:00")
    assert ids(whole["object"])[:2] == ["data/", "params.yaml"]
    assert ids(whole["result"]) == [
        "executed/1_train-a%2Bb.ipynb", "results/training.csv", "artifacts/release/", "executed/2_figures.ipynb",
        "results/figures/",
    ]  # fmt: skip
    # every reference leads somewhere, but for the specification itself
    refs = {ref for entity in found.values() for value in entity.values() for ref in _refs(value)}
    assert refs - set(found) == {"https://w3id.org/ro/crate/1.1"}
    positions = {entity["name"]: int(entity["position"]) for entity in found.values() if "position" in entity}
    assert set(positions) == set(STAGES)
    assert positions["code"] < min(positions["train@a+b"], positions["train@c"])
    assert positions["figures"] > max(positions["train@a+b"], positions["train@c"])
    assert found["#step/train@c"]["description"] == "To train@c"
    assert found["results/timing/stages.json"]["about"][0] == {"@id": "#run/code"}


def test_code_and_packages_come_from_a_manifest(study, tmp_path, validate):
    path = study / "build/train.json"
    modules = {name: digest(study / name) for name in ("src/llicm/model.py", "src/run.py")}
    path.write_text(json.dumps({"modules": modules | {"plugin": "0"}, "packages": {"numpy": "1.26", "torch": "2.1"}}))
    text = (study / "dvc.lock").read_text()
    with open(study / "dvc.lock") as file:
        lock = YAML(typ="safe").load(file)
    for name in ("train@a+b", "train@c"):
        deps = [item for item in lock["stages"][name]["deps"] if item["path"] != "src/llicm"]
        lock["stages"][name]["deps"] = [*deps, {"path": "build/train.json", "md5": digest(path)}]
    lock["stages"]["code"]["outs"][0]["md5"] = digest(study / "build")
    with open(study / "dvc.lock", "w") as file:
        YAML().dump(lock, file)
    assert (study / "dvc.lock").read_text() != text
    commit(study)
    crate = export_crate(study, tmp_path / "crate", about={"seed": "of everything", "arms": "what is trained"})
    found = entities(crate)
    assert ids(found["notebooks/1_train.ipynb"]["softwareRequirements"]) == [
        "#environment/1", "src/llicm/model.py", "src/run.py", "https://pypi.org/project/numpy/1.26/",
        "https://pypi.org/project/torch/2.1/",
    ]  # fmt: skip
    assert found["https://pypi.org/project/torch/2.1/"]["softwareVersion"] == "2.1"
    assert "build/train.json" in ids(found["#run/train@c"]["object"]) and (crate / "build/train.json").is_file()
    assert found["#parameter/seed"]["description"] == "of everything"
    assert found["#parameter/arms.a"]["description"] == "what is trained"
    assert {severity for severity, _ in validate(crate)} == {"RECOMMENDED"}
    (study / "src/run.py").write_text("1")
    with pytest.raises(UserError, match="^src/run.py: differs, but dvc.lock has it for train@a"):
        export_crate(study, tmp_path / "crate")


def _refs(value):
    if isinstance(value, dict):
        yield value["@id"]
    elif isinstance(value, list):
        for item in value:
            yield from _refs(item)


def test_same_study_same_bytes(study, tmp_path, monkeypatch):
    first = files(export_crate(study, tmp_path / "one"))
    zipped = export_crate(study, tmp_path / "one.zip").read_bytes()
    shutil.copytree(study, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    assert files(export_crate("copy", "two")) == first
    assert export_crate("copy", "two.zip").read_bytes() == zipped
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")} == first
        assert archive.namelist() == sorted(archive.namelist())


@pytest.mark.parametrize(
    "name", ["src/llicm/model.py", "data/train/a b.png", "artifacts/models/c/w.bin", "results/figures/1 @0.2.png",
             "executed/2_figures.ipynb", "params.yaml"],
)  # fmt: skip
def test_what_was_touched_is_refused(study, tmp_path, name):
    (study / name).write_text("touched")
    with pytest.raises(UserError, match=r"differs, but \S+ has it for .*; run `llicm audit`") as error:
        export_crate(study, tmp_path / "crate")
    assert name.startswith(str(error.value).split(":")[0])
    assert [path.name for path in tmp_path.iterdir()] == ["study"]


def test_intermediates_may_be_absent(study, tmp_path):
    whole = files(export_crate(study, tmp_path / "whole"))
    shutil.rmtree(study / "artifacts/models/c")
    export_crate(study, tmp_path / "some")
    for name in ("artifacts", "build", "executed", "data"):
        shutil.rmtree(study / name)
    bare = export_crate(study, tmp_path / "bare")
    gone = {name for name in whole if name.split("/")[0] in ("artifacts", "build", "executed", "data")}
    assert set(files(bare)) == set(whole) - gone
    found = entities(bare)
    assert found["#run/train@c"]["result"] == {"@id": "#artifacts/models/c"}
    assert found["#data"]["description"].startswith("Not in this crate. Its MD5")
    (study / "src/llicm/model.py").unlink()
    with pytest.raises(UserError, match=r"^src/llicm: differs, but"):
        export_crate(study, tmp_path / "bare")
    shutil.rmtree(study / "src/llicm")
    with pytest.raises(UserError, match=r"^src/llicm: is not there, but"):
        export_crate(study, tmp_path / "bare")


def test_what_git_knows_must_be_there(study, tmp_path):
    (study / "README.md").write_text("changed, of no stage")
    found = entities(export_crate(study, tmp_path / "crate"))
    assert found["dvc.yaml"]["version"].endswith("-dirty")
    (study / "results/notes.md").unlink()
    with pytest.raises(UserError, match="results/notes.md: not there, but in git"):
        export_crate(study, tmp_path / "crate")
    shutil.rmtree(study / ".git")
    with pytest.raises(UserError, match=r"git cannot be asked \(not a git repository"):
        export_crate(study, tmp_path / "crate")


def test_from_a_fresh_clone_also_with_links(study, tmp_path):
    """A link in git stands for the file or the folder that it leads to; one to what is not fetched is left out."""
    for name, target in {
        "results/latest": "figures", "results/readme.md": "../README.md", "results/weights": "../artifacts/release",
        "docs/again": "../results/latest",
    }.items():  # fmt: skip
        (study / name).parent.mkdir(exist_ok=True)
        (study / name).symlink_to(target)
    commit(study)
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(study), str(clone)], check=True)
    inside = files(export_crate(clone, tmp_path / "crate"))
    assert inside["results/latest/1 @0.2.png"] == inside["docs/again/1 @0.2.png"] == b"pixels"
    assert inside["results/readme.md"] == b"# A study" and not any("weights" in name for name in inside)
    assert not any(path.is_symlink() for path in (tmp_path / "crate").rglob("*"))
    assert files(export_crate(clone, tmp_path / "crate.zip").parent / "crate") == inside
    (clone / "results/secret").symlink_to(tmp_path)
    commit(clone)
    with pytest.raises(UserError, match=f"results/secret: a link to {tmp_path}, outside of the repository"):
        export_crate(clone, tmp_path / "other")


def test_photos_without_a_licence_stay_at_home(study, tmp_path):
    (study / "data/SOURCES.md").unlink()
    write_locks(study)
    crate = export_crate(study, tmp_path / "crate")
    assert not (crate / "data").exists() and entities(crate)["#data"]["md5"] == digest(study / "data")


def test_only_an_own_crate_is_replaced(study, tmp_path):
    for name in ("crate", "crate.zip"):
        out = export_crate(study, tmp_path / name)
        before = out.stat().st_ino
        assert export_crate(study, out) == out and out.stat().st_ino != before
    added = tmp_path / "crate" / "mine.txt"
    added.write_text("mine")
    with pytest.raises(UserError, match="crate there also holds mine.txt"):
        export_crate(study, tmp_path / "crate")
    with zipfile.ZipFile(tmp_path / "crate.zip", "a") as archive:
        archive.writestr("mine.txt", "mine")
    with pytest.raises(UserError, match="crate there also holds mine.txt"):
        export_crate(study, tmp_path / "crate.zip")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.zip").write_text("no archive")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / METADATA).write_text(json.dumps({"@graph": [{"@id": METADATA}]}))
    (tmp_path / "crate").rename(tmp_path / "folder.zip")
    for name in ("folder", "file.zip", "foreign", "folder.zip", "study"):
        before = files(tmp_path / name) if (tmp_path / name).is_dir() else (tmp_path / name).read_bytes()
        with pytest.raises(UserError, match=f"{name}: exists already and is no crate"):
            export_crate(study, tmp_path / name)
        assert before == (files(tmp_path / name) if (tmp_path / name).is_dir() else (tmp_path / name).read_bytes())


@pytest.mark.parametrize("name", ["crate", "crate.zip"])
def test_whole_or_not_at_all(study, tmp_path, monkeypatch, name):
    from rocrate.model.metadata import Metadata

    out = export_crate(study, tmp_path / name)
    before = files(out) if out.is_dir() else out.read_bytes()

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Metadata, "write", fail)  # the last thing that is written
    for target in (out, tmp_path / f"new-{name}"):
        with pytest.raises(OSError, match="No space left|disk is full"):
            export_crate(study, target)
    assert before == (files(out) if out.is_dir() else out.read_bytes())
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, "study"]


def test_a_stage_that_runs_meanwhile_is_noticed(study, tmp_path, monkeypatch):
    from rocrate.model.metadata import Metadata

    write = Metadata.write

    def write_late(*args):
        (study / "results/training.csv").write_text("3,4")
        write(*args)

    monkeypatch.setattr(Metadata, "write", write_late)
    with pytest.raises(UserError, match="results/training.csv: differs"):
        export_crate(study, tmp_path / "crate")
    assert [path.name for path in tmp_path.iterdir()] == ["study"]


def test_the_old_crate_comes_back(study, tmp_path, monkeypatch):
    from pathlib import Path

    out = export_crate(study, tmp_path / "crate")
    before, rename = files(out), Path.rename

    def fail(path, target):
        if path.name == "new":
            raise OSError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="Permission denied"):
        export_crate(study, out)
    assert files(out) == before and sorted(path.name for path in tmp_path.iterdir()) == ["crate", "study"]


def test_a_profile(study, tmp_path):
    folder = study / "profiles" / "small"
    for name in ("params.yaml", "dvc.yaml"):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(study / name, folder / name)
    (folder / "results").mkdir()
    (folder / "results/metrics.json").write_text("{}")
    stage = {
        "cmd": "python ../../src/run.py",
        "deps": [{"path": "../../data", "md5": digest(study / "data")}],
        "outs": [{"path": "results/metrics.json", "md5": digest(folder / "results/metrics.json")}],
    }
    with open(folder / "dvc.lock", "w") as file:
        YAML().dump({"stages": {"measure": stage}}, file)
    commit(study)
    crate = export_crate(study, tmp_path / "crate", "small")
    inside, found = files(crate), entities(crate)
    assert {"profiles/small/results/metrics.json", "src/run.py", "data/SOURCES.md"} <= set(inside)
    assert not any(name.startswith(("results/", "dvc.", "executed/")) for name in inside)
    assert found["./"]["mainEntity"] == {"@id": "profiles/small/dvc.yaml"} and found["./"]["name"].endswith("(small)")
    assert "endTime" not in found["#run/measure"]  # not recorded, not invented
    (folder / "results/metrics.json").write_text("[]")
    with pytest.raises(UserError, match="run `llicm audit --profile small`"):
        export_crate(study, tmp_path / "crate", "small")


def test_the_command(study, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(study)
    assert cli.main(["export-crate"]) == 0
    assert capsys.readouterr().out == "ro-crate: written\n" and (study / "ro-crate" / METADATA).is_file()
    assert cli.main(["export-crate", "--root", str(study), "-o", str(tmp_path / "a.zip")]) == 0
    assert zipfile.is_zipfile(tmp_path / "a.zip")
    (study / "src/llicm/model.py").write_text("x = 2")
    assert cli.main(["export-crate"]) == 1
    assert "run `llicm audit`" in capsys.readouterr().err
