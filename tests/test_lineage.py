# SPDX-License-Identifier: Apache-2.0
"""Lineage on a small pipeline whose lock file is written by hand; tests/test_pipeline.py audits a real one."""

import json
import shutil
import subprocess

import pytest
from ruamel.yaml import YAML

from llicm import cli
from llicm.codec.mean_scale import make_codec
from llicm.errors import UserError
from llicm.framework import save_part
from llicm.provenance.audit import audit
from llicm.provenance.lineage import Pipeline, digest, survey, to_dot, trace


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
    codec = make_codec("mean-scale", N=8, M=48, lambdas=[0.002, 0.02])
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
        # the folder of all models is an input of the figures, that of this one an output of its training
        ("artifacts/models/a/codec.safetensors", 2),
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
    found = survey(repository)
    assert [stage["stage"] for stage in found.stages] == ["data.dvc", "train@a", "figures"]
    assert found.verified and found.artefact == "dvc.lock" and len(found.git["date"]) == 10
    links = set(found.links)
    assert ("figures", "artifacts/models", "train@a") in links
    for name in ("artifacts", "data", "results"):
        shutil.rmtree(repository / name)
    found = survey(repository)
    assert not found.verified and set(found.links) == links


def test_a_compressed_file_is_traced_through_its_model(repository, tmp_path):
    import torch

    from llicm.framework import load_part

    codec = load_part("codec", repository / "artifacts/models/a/codec.safetensors")
    file = tmp_path / "photo.llicm"
    file.write_bytes(codec.encode(torch.rand(3, 64, 64), 1))
    found = trace(file, repository)
    assert [stage["stage"] for stage in found.stages] == ["train@a", "data.dvc"]
    assert found.links[0] == ("photo.llicm", "artifacts/models/a/codec.safetensors", "train@a")
    with torch.no_grad():
        codec.log_gain += 0.01
    codec.update()
    file.write_bytes(codec.encode(torch.rand(3, 64, 64), 1))
    with pytest.raises(UserError, match="written by model [0-9a-f]{8}, which is none of this repository's"):
        trace(file, repository)


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
    assert "train@a" in out and "seed = 0" in out and out.rstrip().endswith("verified")
    (repository / "src/plot.py").write_text("y = 3")
    assert cli.main(["lineage", "results/figures/one.png", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["verified"] is False
    assert cli.main(["audit", "--checks", "colours"]) == 1
    assert "no check is called 'colours'" in capsys.readouterr().err


def test_numbers_of_the_readme(repository):
    from llicm.report.tables import README_TABLES

    text = ""
    for name, file in README_TABLES.items():
        (repository / "results" / file).parent.mkdir(parents=True, exist_ok=True)
        (repository / "results" / file).write_text(f"| noisy | -3.7% |\n| {name} | 1 |\n")
        text += f"<!-- {name}:begin -->\n| noisy | -3.7% |\n| {name} | 1 |\n<!-- {name}:end -->\n"
    (repository / "README.md").write_text(text)
    assert audit(repository, checks=["readme"]) == []
    (repository / "README.md").write_text(text.replace("-3.7%", "-13.7%", 1))
    (finding,) = audit(repository, checks=["readme"])
    assert finding.what == "README.md: headline"
    assert (finding.expected, finding.found) == ("| noisy | -3.7% |", "| noisy | -13.7% |")
    assert finding.mend == "run `make readme`"
