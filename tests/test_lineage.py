# SPDX-License-Identifier: Apache-2.0
"""Lineage on a small pipeline whose lock file is written by hand; tests/test_pipeline.py audits a real one."""

import hashlib
import json
import shutil
import subprocess

import pytest
from ruamel.yaml import YAML

from llicm import cli
from llicm.errors import UserError
from llicm.pipeline import checks
from llicm.pipeline.checks import STUDY_CHECKS, model_of
from llicm.provenance.audit import audit
from llicm.provenance.lineage import Pipeline, digest, nest, survey, to_dot, trace
from llicm.registry import CODECS
from llicm.weights import load_part, save_part


@pytest.fixture
def repository(tmp_path):
    """data.dvc -> train@a -> figures, under git."""
    for name, text in {
        "data/photo.txt": "a photo", "src/model.py": "x = 1", "src/plot.py": "y = 2",
        "artifacts/models/a/log.csv": "1,2",
        "results/figures/one.png": "pixels", "results/figures/two.png": "more pixels", "README.md": "words",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    codec = CODECS.make("mean-scale", N=8, M=48, lambdas=[0.002, 0.02])
    codec.update()
    save_part(codec, tmp_path / "artifacts/models/a/codec.safetensors")
    write_locks(tmp_path)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run([*git, "add", "dvc.lock", "data.dvc", "src", "README.md"], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-qm", "all"], cwd=tmp_path, check=True)
    return tmp_path


def write_locks(root):
    def items(*paths):
        return [{"path": path, "hash": "md5", "md5": digest(root / path)} for path in paths]

    stages = {
        "train@a": {
            "cmd": "python train.py", "deps": items("data", "src/model.py"), "outs": items("artifacts/models/a"),
            "params": {"params.yaml": {"seed": 0, "arms.a": {"steps": 3}}},
        },
        "figures": {
            "cmd": "python plot.py", "deps": items("artifacts/models", "src/plot.py"),
            "outs": items("results/figures"),
        },
    }  # fmt: skip
    for name, content in {
        "dvc.lock": {"schema": "2.0", "stages": stages}, "data.dvc": {"outs": items("data")}
    }.items():  # fmt: skip
        with open(root / name, "w") as file:
            YAML().dump(content, file)


def test_digests_are_those_of_dvc(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/b.txt").write_text("b")
    (tmp_path / "folder/a.txt").write_text("a")
    # computed by dvc 3.67
    assert digest(tmp_path / "folder/a.txt") == "0cc175b9c0f1b6a831c399e269772661"
    assert digest(tmp_path / "nothing") is None
    from dvc.repo import Repo

    with Repo.init(str(tmp_path), no_scm=True) as repo:
        repo.add(str(tmp_path / "folder"))
    held = YAML(typ="safe").load((tmp_path / "folder.dvc").read_text())["outs"][0]["md5"]
    assert digest(tmp_path / "folder") == held


def test_from_a_figure_back_to_the_data(repository):
    found = trace(repository / "results/figures/one.png", repository)
    assert found.verified and found.artefact == "results/figures/one.png"
    assert [stage["stage"] for stage in found.stages] == ["figures", "train@a", "data.dvc"]
    figures, train, data = found.stages
    assert train["params"] == {"seed": 0, "arms.a": {"steps": 3}} and train["command"] == "python train.py"
    assert [row["path"] for row in train["code"]] == ["src/model.py"]
    assert [row["path"] for row in train["inputs"]] == ["data"]
    assert ("train@a", "data", "data.dvc") in found.links and ("figures", "artifacts/models", "train@a") in found.links
    assert len(figures["commit"]["hash"]) == 40 and figures["run"] is None and data["command"] == ""
    assert json.loads(found.as_json())["verified"] is True
    assert '"figures" -> "train@a"' in to_dot(found)


def test_what_a_run_took_is_told_where_known(repository):
    (repository / "results/timing").mkdir()
    about = {"seconds": 12.5, "platform": "Linux", "python": "3.11", "libraries": {"torch": "2"}}
    (repository / "results/timing/stages.json").write_text(json.dumps({"train@a": about}))
    (repository / ".run/hosts").mkdir(parents=True)
    (repository / ".run/hosts/figures.json").write_text(json.dumps(about | {"seconds": 3}))
    figures, train, _ = trace(repository / "results/figures", repository).stages
    assert train["run"]["seconds"] == 12.5 and figures["run"]["seconds"] == 3


@pytest.mark.parametrize(
    "path, count",
    [
        ("data/photo.txt", 1),
        ("src/model.py", 1),
        # the folder of all models is an input of the figures, that of this one an output of its training: one cause
        ("artifacts/models/a/codec.safetensors", 1),
        ("results/figures/two.png", 1),
    ],
)
def test_whatever_was_touched_is_named(repository, path, count):
    (repository / path).write_bytes((repository / path).read_bytes() + b" ")
    found = trace(repository / "results/figures/one.png", repository)
    assert not found.verified
    assert len(found.findings) == count, found.findings
    assert all(path.startswith(finding.split(":")[0]) for finding in found.findings)
    assert "restore it with" in found.findings[0]


def test_what_is_absent_is_told(repository):
    (repository / "data/photo.txt").unlink()
    (repository / "data").rmdir()
    (finding, *_) = trace(repository / "artifacts/models/a/log.csv", repository).findings
    assert finding.startswith("data: is not there")


def test_a_survey_tells_of_all_stages_also_where_nothing_is_on_disk(repository):
    found = survey(Pipeline(repository))
    assert [stage["stage"] for stage in found.stages] == ["data.dvc", "train@a", "figures"]
    assert found.verified and found.artefact == "dvc.lock" and len(found.git["date"]) == 10
    links = set(found.links)
    assert ("figures", "artifacts/models", "train@a") in links
    for name in ("artifacts", "data", "results"):
        shutil.rmtree(repository / name)
    found = survey(Pipeline(repository))
    assert not found.verified and set(found.links) == links


def test_a_compressed_file_is_traced_through_its_model(repository, tmp_path):
    import torch

    codec = load_part("codec", repository / "artifacts/models/a/codec.safetensors")
    file = tmp_path / "photo.llicm"
    file.write_bytes(codec.compress(torch.rand(3, 64, 64), 1))
    found = trace(file, repository, model_of)
    assert [stage["stage"] for stage in found.stages] == ["train@a", "data.dvc"]
    assert found.links[0] == ("photo.llicm", "artifacts/models/a/codec.safetensors", "train@a")
    with torch.no_grad():
        codec.log_gain += 0.01
    codec.update()
    file.write_bytes(codec.compress(torch.rand(3, 64, 64), 1))
    with pytest.raises(UserError, match="written by model [0-9a-f]{8}, which is none of this repository's"):
        trace(file, repository, model_of)
    with pytest.raises(UserError, match="photo.llicm: no stage of the pipeline made it"):
        trace(file, repository)  # provenance by itself knows no such files


def test_the_short_form_fits_on_a_screen(repository):
    """However many stages there are and however much differs."""
    short = trace(repository / "results/figures/one.png", repository).summary().splitlines()
    commit = trace(repository / "results/figures/one.png", repository).stages[0]["commit"]
    said = f"(commit {commit['hash'][:10]} of {commit['date']})"
    assert short[0].startswith("results/figures/one.png  ")
    assert f"  stage   figures  {said}" in short and f"  stage   train@a  {said}" in short
    assert "  models  artifacts/models/a" in short and f"  data    data {digest(repository / 'data')}" in short
    (repository / "data/photo.txt").write_text("another")
    changed = trace(repository / "results/figures/one.png", repository).summary()
    assert "NOT VERIFIED\ndata: is " in changed
    with open(repository / "dvc.lock") as file:
        lock = YAML(typ="safe").load(file)
    for name in [f"kind{number}@{item}" for number in range(30) for item in "abcdefghij"]:
        lock["stages"][name] = {"cmd": "x", "outs": [{"path": f"artifacts/models/{name}", "md5": "0" * 32}]}
    with open(repository / "dvc.lock", "w") as file:
        YAML().dump(lock, file)
    whole = trace(repository / "results/figures/one.png", repository)
    short = whole.summary().splitlines()
    assert len(whole.stages) > 300 and len(short) <= 40 and short[-1] == "all of it: --full"
    assert "NOT VERIFIED" in short and any(line.startswith("and ") and "more findings" in line for line in short)


def git(root, *arguments):
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *author, *arguments], cwd=root, check=True, capture_output=True)


def test_photos_changed_with_their_dvc_file_are_found(repository):
    """The stages that used them have the old hash in their entries."""
    old = digest(repository / "data")
    (repository / "data/photo.txt").write_text("another photo")
    text = (repository / "data.dvc").read_text()
    (repository / "data.dvc").write_text(text.replace(old, digest(repository / "data")))
    (finding,) = audit(repository, checks=["hashes"])
    assert finding.what == "data" and finding.expected == f"md5 {old} (input of train@a)"
    (finding,) = audit(repository, checks=["history"])
    assert finding.what == "data.dvc: data" and finding.expected == f"md5 {old}, as in the last commit"
    git(repository, "commit", "-qam", "hide it")  # the stages still tell
    assert [found.what for found in audit(repository, checks=["hashes", "history"])] == ["data"]


def test_a_result_changed_with_its_hash_in_the_lock_is_found(repository):
    old = digest(repository / "results/figures")
    assert audit(repository, checks=["history", "hashes"]) == []
    (repository / "results/figures/one.png").write_text("other pixels")
    text = (repository / "dvc.lock").read_text()
    (repository / "dvc.lock").write_text(text.replace(old, digest(repository / "results/figures")))
    (finding,) = audit(repository, checks=["history", "hashes"])
    assert finding.check == "history" and finding.what == "dvc.lock: results/figures"
    assert finding.expected == f"md5 {old}, as in the last commit"
    assert finding.found == f"md5 {digest(repository / 'results/figures')}" and "`git checkout`" in finding.remedy
    (repository / "dvc.lock").write_text(text.replace("seed: 0", "seed: 1"))  # that is of the check `lock`
    assert audit(repository, checks=["history"]) == []


def test_a_damaged_cache_is_not_believed(repository):
    pipeline, path = Pipeline(repository), repository / "absent.json"
    text = b'{"modules": {}}'
    md5 = hashlib.md5(text).hexdigest()
    cached = repository / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    cached.parent.mkdir(parents=True, exist_ok=True)
    cached.write_bytes(text)
    assert pipeline.locked(path, md5) == text
    cached.write_bytes(b"{}")
    assert pipeline.locked(path, md5) is None


def test_without_git_the_history_is_unknown(repository, tmp_path):
    shutil.rmtree(repository / ".git")
    (finding,) = audit(repository, checks=["history"])
    assert "git cannot be asked" in finding.found


def test_a_folder_called_like_the_scratch_folder(repository, tmp_path):
    """As DVC has it: what lies in `.run` within a folder is left out, not a file of that name or a study below."""
    place = tmp_path / "x/.run/study"
    shutil.copytree(repository, place, ignore=shutil.ignore_patterns("x"))
    assert audit(place, checks=["hashes"]) == []
    (place / "src/model.py").write_text("x = 9")
    (place / "data/photo.txt").write_text("another photo")
    assert {found.what for found in audit(place, checks=["hashes"])} == {"src/model.py", "data"}
    before = digest(repository / "data")
    (repository / "data/.run").write_text("a file")
    assert digest(repository / "data") != before
    (repository / "data/.run").unlink()
    (repository / "data/.run").mkdir()
    (repository / "data/.run/state").write_text("scratch")
    assert digest(repository / "data") == before


def test_audit_tells_how_far_it_is(repository, monkeypatch, capfd):
    monkeypatch.chdir(repository)
    cli.main(["audit", "--checks", "history,hashes"])
    captured = capfd.readouterr()
    assert captured.err == "check 1 of 2: history\ncheck 2 of 2: hashes\n" and captured.out.startswith("history ")


def test_wrong_questions(repository, tmp_path):
    with pytest.raises(UserError, match="nowhere.png: no such file; get it with `dvc pull`"):
        trace(repository / "nowhere.png", repository)
    with pytest.raises(UserError, match="README.md: no stage of the pipeline made it"):
        trace(repository / "README.md", repository)
    (repository / "dvc.lock").write_text("stages: [")
    with pytest.raises(UserError, match="dvc.lock: damaged"):
        Pipeline(repository)
    with pytest.raises(UserError, match="dvc.lock: no such file"):
        Pipeline(tmp_path / "other")


def test_the_command(repository, monkeypatch, capsys):
    monkeypatch.chdir(repository)
    assert cli.main(["lineage", "results/figures/one.png"]) == 0
    out = capsys.readouterr().out
    assert "train@a" in out and "\nverified\n" in out and "seed = 0" not in out and "--full" in out
    assert cli.main(["lineage", "results/figures/one.png", "--full"]) == 0
    out = capsys.readouterr().out
    assert "train@a" in out and "seed = 0" in out and out.rstrip().endswith("verified")
    (repository / "src/plot.py").write_text("y = 3")
    assert cli.main(["lineage", "results/figures/one.png", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["verified"] is False
    assert cli.main(["audit", "--checks", "colours"]) == 1
    assert "no check is called 'colours'" in capsys.readouterr().err


def test_documents_say_what_is_rendered(repository, monkeypatch):
    from pathlib import Path

    texts = {Path("README.md"): "# A\n\n-3.7%\n", Path("docs/a.md"): "words\n"}
    monkeypatch.setattr(checks, "render", lambda root: texts)
    (repository / "docs").mkdir()
    for path, text in texts.items():
        (repository / path).write_text(text)
    assert audit(repository, checks=["readme"], more=STUDY_CHECKS) == []
    (repository / "README.md").write_text("# A\n\n-13.7%\n")
    (finding,) = audit(repository, checks=["readme"], more=STUDY_CHECKS)
    assert finding.what == "README.md:3" and finding.remedy == "run `make readme`"
    assert (finding.expected, finding.found) == ("-3.7%", "-13.7%")
    (repository / "docs/a.md").unlink()
    assert [found.what for found in audit(repository, checks=["readme"], more=STUDY_CHECKS)][1:] == ["docs/a.md:1"]


def test_nested_parameters():
    assert nest({"a.b": 1, "a.c.d": 2, "e": [3]}) == {"a": {"b": 1, "c": {"d": 2}}, "e": [3]}


# --- manifests of code ---


def lock_with_manifests(root, edit_lock=True):
    """The stages of `repository` after a stage `code` that writes a manifest for each, also into DVC's cache."""
    modules = {"src/model.py": digest(root / "src/model.py")}
    contents = {
        "train@a": {"notebook": "1.ipynb", "modules": modules, "packages": {"torch": "2.1", "numpy": "1.26"}},
        "figures": {
            "notebook": "2.ipynb", "modules": modules | {"src/plot.py": digest(root / "src/plot.py")},
            "packages": {"numpy": "1.26"},
        },
    }  # fmt: skip
    (root / "build").mkdir(exist_ok=True)
    for name, content in contents.items():
        path = root / "build" / f"{name.replace('@', '-')}.json"
        path.write_text(json.dumps(content))
        cached = root / ".dvc/cache/files/md5" / digest(path)[:2] / digest(path)[2:]
        cached.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, cached)
    if not edit_lock:
        return
    with open(root / "dvc.lock") as file:
        lock = YAML(typ="safe").load(file)
    for name, stage in lock["stages"].items():
        path = f"build/{name.replace('@', '-')}.json"
        stage["deps"] = [item for item in stage["deps"] if not item["path"].endswith(".py")]
        stage["deps"].append({"path": path, "md5": digest(root / path)})
    code = {
        "cmd": "python code.py", "deps": [{"path": "src", "md5": digest(root / "src")}],
        "outs": [{"path": "build", "md5": digest(root / "build")}],
    }  # fmt: skip
    lock["stages"] = {"code": code} | lock["stages"]
    with open(root / "dvc.lock", "w") as file:
        YAML().dump(lock, file)


def test_a_manifest_lists_the_code_of_a_stage(repository):
    lock_with_manifests(repository)
    found = trace(repository / "results/figures/one.png", repository)
    assert found.verified, found.findings
    figures, train = (next(s for s in found.stages if s["stage"] == name) for name in ("figures", "train@a"))
    assert [(row["path"], row["on_disk"]) for row in figures["code"]] == [("src/model.py", "ok"), ("src/plot.py", "ok")]
    assert figures["code"][1]["md5"] == digest(repository / "src/plot.py")
    assert [row["path"] for row in figures["inputs"]] == ["artifacts/models", "build/figures.json"]
    assert [row["path"] for row in train["code"]] == ["src/model.py"]
    assert (
        train["packages"] == {"torch": "2.1", "numpy": "1.26"}
        and ("figures", "build/figures.json", "code") in found.links
    )
    assert "packages torch 2.1, numpy 1.26" in found.as_text()


@pytest.mark.parametrize("rerun", [False, True], ids=["edited", "edited and the stage `code` run again"])
def test_an_edited_module_is_one_finding(repository, rerun):
    lock_with_manifests(repository)
    before = digest(repository / "src/model.py")
    (repository / "src/model.py").write_text("x = 7")
    if rerun:
        lock_with_manifests(repository, edit_lock=False)
    (finding,) = audit(repository, checks=["hashes"])
    assert finding.what == "src/model.py" and finding.found == f"md5 {digest(repository / 'src/model.py')}"
    assert finding.expected == f"md5 {before} (code of train@a and 2 more stages)"
    found = trace(repository / "results/figures/one.png", repository)
    assert len(found.findings) == 1 and found.findings[0].startswith("src/model.py: is ")
    figures = next(stage for stage in found.stages if stage["stage"] == "figures")
    assert [row["on_disk"] for row in figures["code"]] == ["changed", "ok"]
    (repository / "src/model.py").unlink()
    (finding,) = audit(repository, checks=["hashes"])
    assert finding.what == "src/model.py" and finding.found == "nothing there"
    assert finding.remedy.startswith("restore it with `git checkout`")


def test_another_package_is_one_finding(repository):
    lock_with_manifests(repository)
    for path in (repository / "build").iterdir():
        path.write_text(path.read_text().replace("1.26", "2.0"))
    (finding,) = audit(repository, checks=["hashes"])
    assert (finding.what, finding.found) == ("numpy", "2.0")
    assert finding.expected == "1.26 (package of train@a and 2 more stages)"


def test_manifests_that_are_gone(repository):
    """DVC's cache still has them; without it their modules are unknown, and the folder is what is missing."""
    lock_with_manifests(repository)
    shutil.rmtree(repository / "build")
    (repository / "src/plot.py").write_text("y = 3")
    findings = audit(repository, checks=["hashes"])
    assert {finding.what for finding in findings} == {"build", "src/plot.py"}
    shutil.rmtree(repository / ".dvc/cache")
    findings = audit(repository, checks=["hashes"])
    assert {finding.what for finding in findings} == {"build", "src"}


# --- executed notebooks ---


@pytest.mark.parametrize("form", ["one dictionary", "a name each"])
def test_parameters_of_executed_notebooks(repository, form):
    values = {"seed": 0, "arms": {"a": {"steps": 3}}}

    def write(values):
        code = {"cell_type": "code", "metadata": {}, "source": "train()"}
        given = {"stage": "train@a", "parameters": values} if form == "one dictionary" else values
        text = "# Parameters\n" + "".join(f"{name} = {value!r}\n" for name, value in given.items())
        injected = {"cell_type": "code", "metadata": {"tags": ["injected-parameters"]}, "source": text}
        for name, cells in {"source.ipynb": [code], "executed.ipynb": [injected, code]}.items():
            (repository / name).write_text(json.dumps({"cells": cells, "metadata": {"llicm": record}}))

    with open(repository / "dvc.lock") as file:
        lock = YAML(typ="safe").load(file)
    stage, record = lock["stages"]["train@a"], {}
    write(values)
    stage["deps"].append({"path": "source.ipynb", "md5": digest(repository / "source.ipynb")})
    record |= {kind: {item["path"]: item["md5"] for item in stage[kind]} for kind in ("deps", "outs")}
    stage["outs"].append({"path": "executed.ipynb", "md5": "0"})
    with open(repository / "dvc.lock", "w") as file:
        YAML().dump(lock, file)
    write(values)
    assert audit(repository, checks=["notebooks"]) == []
    write(values | {"seed": 1})
    (finding,) = audit(repository, checks=["notebooks"])
    assert finding.what == "executed.ipynb, parameter seed" and (finding.expected, finding.found) == ("0", "1")
    assert finding.remedy == "run `dvc repro -f train@a`"
    record["deps"]["data"] = "0"
    write(values)
    (finding,) = audit(repository, checks=["notebooks"])
    assert finding.what == "executed.ipynb, recorded deps data"
