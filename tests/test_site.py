# SPDX-License-Identifier: Apache-2.0
"""The report of a small study whose lock file is written by hand."""

import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat.v4 as v4
import pytest
from PIL import Image
from ruamel.yaml import YAML

from llicm.errors import UserError
from llicm.provenance import site
from llicm.provenance.graph import draw
from llicm.provenance.lineage import digest
from llicm.provenance.site import build_site

ODD = "odd #1 50% <b> & 'c'"  # in the name of a picture
EVIL = "<script>alert(1)</script>"


def make_study(root):
    """data.dvc -> train@a, train@b -> figures, under DVC and git."""
    from dvc.repo import Repo

    for name, text in {
        "data/photo.txt": "a photo", "src/model.py": "x = 1", "src/plot.py": "y = 2",
        "artifacts/models/a/log.csv": "1,2", "artifacts/models/b/log.csv": "3,4",
        "artifacts/curves/curves.html": "<!DOCTYPE html><html><title>curves</title><script>1</script></html>",
        "results/tables/headline.md": f"# Head\n\n| task | BD-PSNR |\n|---|---:|\n| {EVIL} | +1.5 [-1.0, +2.0] |\n",
        "results/tables/readme.md": "**It gains 1.5 dB** `a`.\n\nThe table:\n\n| a | b |\n|---|---|\n| 1 | 2 |\n",
        "results/tables/headline.csv": "noisy,1.5", "results/timing/steps.csv": "1,2",
    }.items():  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "results/figures").mkdir()
    for name in ("figure_4_psnr", ODD):
        Image.new("RGB", (8, 6), "red").save(root / f"results/figures/{name}.png")
    write_notebooks(root)
    Repo.init(str(root), no_scm=True).close()
    (root / "params.yaml").write_text(json.dumps({"seed": 0, "title": EVIL}))
    write_stages(root)
    about = {"seconds": 125, "platform": "Linux-6", "python": "3.11", "libraries": {"torch": "2.1"}}
    (root / "results/timing/stages.json").write_text(json.dumps({"train@a": about, "figures": about | {"cpus": 2}}))
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "dvc.lock", "data.dvc", "src"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *arguments], cwd=root, check=True)
    return root


def write_notebooks(root):
    parameters = v4.new_code_cell("seed = 1", metadata={"tags": ["parameters"]})
    plot = v4.new_code_cell("plot(seed)")
    text = v4.new_markdown_cell("# 5 · Figures\n\nWhat is *drawn*.")
    del text["id"]
    outputs = [
        v4.new_output("display_data", {"image/png": "iVBORw0KGgo="}),
        v4.new_output("stream", name="stdout", text=f"done {EVIL}"),
    ]
    injected = v4.new_code_cell("seed = 0", metadata={"tags": ["injected-parameters"]})
    executed = [parameters, injected, v4.new_code_cell("plot(seed)", outputs=outputs)]
    for path, cells in {
        "notebooks/5_figures.ipynb": [text, parameters, plot], "executed/5_figures.ipynb": executed
    }.items():  # fmt: skip
        (root / path).parent.mkdir()
        (root / path).write_text(json.dumps(v4.new_notebook(cells=cells)))


def write_stages(root):
    def items(*paths):
        return [{"path": path, "hash": "md5", "md5": digest(root / path)} for path in paths]

    train = {"cmd": "python train.py", "deps": ["data", "src/model.py"], "params": ["seed", "title"]}
    figures = {
        "desc": "Draw everything", "cmd": "python plot.py", "deps": ["artifacts/models", "src/plot.py"],
        "outs": ["artifacts/curves", "executed/5_figures.ipynb", "results/figures", "results/tables"],
    }  # fmt: skip
    arms = {f"train@{arm}": train | {"outs": [f"artifacts/models/{arm}"]} for arm in "ab"}
    written = {
        "train": {"foreach": ["a", "b"], "do": train | {"outs": ["artifacts/models/${item}"]}}, "figures": figures
    }  # fmt: skip
    lock = {
        name: {"cmd": stage["cmd"], "deps": items(*stage["deps"]), "outs": items(*stage["outs"])}
        for name, stage in (arms | {"figures": figures}).items()
    }
    for arm in arms:
        lock[arm]["params"] = {"params.yaml": {"seed": 0, "title": EVIL}}
    for name, content in {
        "dvc.yaml": {"stages": written}, "dvc.lock": {"schema": "2.0", "stages": lock},
        "data.dvc": {"outs": items("data")},
    }.items():  # fmt: skip
        with open(root / name, "w") as file:
            YAML().dump(content, file)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study and its report, not to be changed."""
    root = make_study(tmp_path_factory.mktemp("study"))
    build_site(root, root / "report")
    return root


@pytest.fixture
def study(whole, tmp_path):
    """A copy to change."""
    return shutil.copytree(whole, tmp_path / "study")


class Page(HTMLParser):
    """Links, loaded resources, ids, tags and text of a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loaded, self.ids, self.tags, self.text = [], [], [], [], ""
        self.images = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if tag == "a" and "href" in given else []
        self.loaded += [given[key] for key in ("src", "data", "srcset") if key in given]
        self.loaded += [given["href"]] if tag == "link" else []
        self.images += [given] if tag == "img" else []

    def handle_data(self, data):
        self.text += data


def pages(root):
    return {path: Page(path) for path in sorted((root / "report").rglob("*.html"))}


def check_links(found):
    """Every local link leads somewhere; what is loaded is local."""
    for path, page in found.items():
        assert len(set(page.ids)) == len(page.ids), path
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme:
                assert parts.scheme == ("data" if link in page.loaded else "https"), (path, link)
                continue
            target = path.parent / unquote(parts.path) if parts.path else path
            assert not parts.netloc and target.is_file(), (path, link)
            assert not parts.fragment or unquote(parts.fragment) in Page(target).ids, (path, link)
        assert all(image.get("alt") for image in page.images), path


def text_of(root, page):
    return " ".join(Page(root / "report" / page).text.split())


def test_every_local_link_leads_somewhere_and_nothing_is_loaded_from_a_network(whole):
    found = pages(whole)
    assert {path.relative_to(whole / "report").as_posix() for path in found} >= {
        "index.html", "results.html", "lineage.html", "curves.html", "notebooks/5_figures.html", "stages/train@a.html",
        "stages/data.dvc.html", "results/figures/figure_4_psnr.png.html", "results/tables/headline.md.html",
    }  # fmt: skip
    check_links(found)
    style = (whole / "report/style.css").read_text()
    assert "url(" not in style and "@import" not in style


def test_every_figure_and_table_has_its_lineage(whole):
    front = Page(whole / "report/index.html")
    assert "results/figures/figure_4_psnr.png.html#lineage" in front.links
    assert "results/tables/headline.md.html#lineage" in front.links
    overview = Page(whole / "report/results.html")
    for name in (f"figures/{ODD}.png", "figures/figure_4_psnr.png", "tables/headline.md", "tables/readme.md"):
        path = whole / "results" / name
        (link,) = [link for link in overview.links if unquote(link) == f"results/{name}.html#lineage"]
        text = text_of(whole, unquote(link.split("#")[0]))
        assert "stage figures: Draw everything" in text and digest(path) in text, name
        assert digest(path.parent) in text and "python plot.py" in text and "2 min on Linux-6, 2 CPUs" in text
        assert "artifacts/models" in text and "train@b" in text
    stage = text_of(whole, "stages/train@a.html")
    assert "seed" in stage and "torch 2.1" in stage and digest(whole / "src/model.py") in stage
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=whole, capture_output=True, text=True).stdout
    assert commit[:10] in stage and commit.strip() in text_of(whole, "index.html")


def test_what_no_stage_made_says_so(whole, study):
    Image.new("RGB", (8, 6)).save(study / "results/timing/steps.png")
    build_site(study, study / "report")
    assert "no stage of the pipeline" in text_of(study, "results/timing/steps.png.html")
    assert "steps.csv" in text_of(whole, "results.html")


def test_the_front_page(whole):
    text = text_of(whole, "index.html")
    assert "It gains 1.5 dB a." in text and "The table:" not in text
    assert text.count("Yes.") == 2  # the checks
    assert "not on disk" not in text and "figures" in text


def test_notebooks_are_shown_with_their_text(whole):
    page = Page(whole / "report/notebooks/5_figures.html")
    text = " ".join(page.text.split())
    order = ["5 · Figures", "What is drawn.", "parameters by default", "parameters of this run", "plot(seed)", "done"]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    assert page.tags.count("details") == 3 and [image["alt"] for image in page.images] == ["5 · Figures"]


def test_text_of_other_code_is_not_shown(study):
    other = json.loads((study / "notebooks/5_figures.ipynb").read_text().replace("plot(seed)", "draw(seed)"))
    (study / "notebooks/5_figures.ipynb").write_text(json.dumps(other))
    build_site(study, study / "report")
    text = text_of(study, "notebooks/5_figures.html")
    assert "has other code than the one that ran" in text and "What is drawn" not in text


def test_everything_is_escaped(whole):
    for path, page in pages(whole).items():
        if path.parent.name != "curves":
            assert "script" not in page.tags and "b" not in page.tags, path
    assert EVIL in text_of(whole, "stages/train@a.html")  # a parameter
    assert EVIL in text_of(whole, "index.html")  # in the table
    assert EVIL in text_of(whole, "notebooks/5_figures.html")  # what a notebook printed


def test_what_was_changed_is_told(study):
    (study / "results/figures/figure_4_psnr.png").write_bytes(b"other")
    (study / "src/model.py").write_text("x = 2")
    build_site(study, study / "report")
    text = text_of(study, "results/figures/figure_4_psnr.png.html")
    assert "changed results/figures, the folder that the stage made" in text
    assert "Not everything behind it is as recorded: train@a, train@b" in text
    stage = (study / "report/stages/figures.html").read_text()
    assert 'class="stage changed here"' in stage and "results/figures: is " in stage
    assert (study / "report/lineage.html").read_text().count('class="stage changed"') == 3
    assert "differ from the record" in text_of(study, "index.html")


def test_what_is_absent_is_told(study):
    for name in ("executed", "artifacts", "data"):
        shutil.rmtree(study / name)
    build_site(study, study / "report")
    assert not (study / "report/notebooks").exists() and not (study / "report/curves.html").exists()
    text = text_of(study, "index.html")
    assert "Missing on disk: 1 of 1. Get them with dvc pull" in text
    assert "5 are not on disk; dvc pull gets them" in text
    assert "executed/5_figures.ipynb is not on disk" in text_of(study, "stages/figures.html")
    # the folder of all models is not there, and still known to be filled by their stages
    assert "train@a, train@b" in text_of(study, "stages/figures.html")
    shutil.rmtree(study / "results")
    build_site(study, study / "report")
    assert "There are no results: results is not on disk." in text_of(study, "index.html")


def test_a_profile(study):
    folder = study / "profiles/small"
    shutil.copytree(study / "results/figures", folder / "results/figures")
    (folder / "params.yaml").write_text("{}")
    command, source = "python plot.py", "../../src/plot.py"
    deps, outs = ([{"path": path, "hash": "md5", "md5": digest(folder / path)}] for path in (source, "results/figures"))
    for name, stage in {
        "dvc.yaml": {"cmd": command, "deps": [source], "outs": ["results/figures"]},
        "dvc.lock": {"cmd": command, "deps": deps, "outs": outs},
    }.items():
        with open(folder / name, "w") as file:
            YAML().dump({"stages": {"figures": stage}} | ({"schema": "2.0"} if name == "dvc.lock" else {}), file)
    shutil.rmtree(study / "report")
    build_site(study, study / "report", profile="small")
    check_links(pages(study))
    text = text_of(study, "results/figures/figure_4_psnr.png.html")
    assert "profiles/small/results/figures" in text and "profile small" in text_of(study, "index.html")
    assert "Is every input and output on disk what dvc.lock says? Yes." in text_of(study, "index.html")


def test_a_damaged_notebook(study):
    (study / "executed/5_figures.ipynb").write_text("{")
    with pytest.raises(UserError, match="5_figures.ipynb: not a readable notebook"):
        build_site(study, study / "report")


def test_the_same_study_gives_the_same_bytes(whole, tmp_path):
    build_site(whole, tmp_path / "again")
    first, second = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (whole / "report", tmp_path / "again")
    )
    assert first == second


def test_only_a_report_is_replaced(study, monkeypatch):
    other = study / "other"
    other.mkdir()
    assert build_site(study, other) == other / "index.html"  # an empty folder will do
    (other / "index.html").write_text("old")
    build_site(study, other)
    assert (other / "index.html").read_text() != "old"
    with pytest.raises(UserError, match="src: not a report that this command made"):
        build_site(study, study / "src")
    assert (study / "src/model.py").is_file()
    with pytest.raises(UserError, match="dvc.lock: not a report"):
        build_site(study, study / "dvc.lock")

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(site._Site, "_front", full)
    with pytest.raises(OSError, match="no space"):
        build_site(study, other)
    assert (other / "index.html").is_file() and not list(study.glob(".other.*"))


def test_the_command(study, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(study)
    site.main(["report"])
    assert capsys.readouterr().out.strip().endswith("index.html")
    with pytest.raises(UserError, match="dvc.lock: no such file"):
        build_site(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UserError, match="dvc.lock: no such file"):
        build_site(study, tmp_path / "out", profile="smoke")
    assert not (tmp_path / "out").exists()


STAGES = [
    "data",
    "code",
    "degrade",
    "vlm",
    *(f"train@{i}" for i in range(8)),
    *(f"test@{i}" for i in range(8)),
    "figures",
    "release",
]
INPUTS = [
    *((f"train@{i}", maker) for i in range(8) for maker in ("data", "code")),
    *((f"test@{i}", maker) for i in range(8) for maker in (f"train@{i}", "code", "data")),
    *(("figures", f"test@{i}") for i in range(8)), ("figures", "code"), ("release", "train@1"), ("release", "data"),
    *((stage, maker) for stage in ("degrade", "vlm") for maker in ("data", "code")),
    *((f"train@{i}", "vlm") for i in range(8)), *((f"test@{i}", "degrade") for i in range(8)),
]  # fmt: skip


def test_a_drawing():
    drawing = draw(STAGES, INPUTS, {"train@0": "3 min"})
    boxes = {box.title or box.stages[0]: box for box in drawing.boxes}
    assert set(boxes) == {"data", "code", "degrade", "vlm", "train (8)", "test (8)", "figures", "release"}
    row = [boxes[name].x for name in ("data", "vlm", "train (8)", "test (8)", "figures")]
    assert row == sorted(set(row)) and boxes["degrade"].x == boxes["vlm"].x
    assert len(drawing.arrows) == 9  # without those that a longer way implies
    for box in drawing.boxes:
        assert 0 <= box.x and box.x + box.width <= drawing.width and 0 <= box.y
        assert box.y + box.height <= drawing.height
        for other in drawing.boxes:
            if other is not box and other.x == box.x:
                assert other.y >= box.y + box.height or box.y >= other.y + other.height


def test_stages_that_need_one_of_their_kind_are_not_put_together():
    drawing = draw(["a", "b@1", "b@2", "c"], [("b@1", "a"), ("b@2", "b@1"), ("c", "b@2"), ("c", "a")])
    assert [box.stages for box in drawing.boxes] == [["a"], ["b@1"], ["b@2"], ["c"]]
    # x@1 -> y -> x@2: a box of both x would need itself
    drawing = draw(["x@1", "x@2", "y"], [("y", "x@1"), ("x@2", "y")])
    assert len(drawing.boxes) == 3 and len(drawing.arrows) == 2
    assert draw([], []).boxes == []


def test_a_drawing_does_not_depend_on_the_order_of_sets():
    code = f"d = draw({STAGES}, {INPUTS}); print(d.arrows, [vars(box) for box in d.boxes])"
    drawn = {
        subprocess.run(
            [sys.executable, "-c", f"from llicm.provenance.graph import draw; {code}"],
            capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(site.__file__).parents[2])},
        ).stdout
        for seed in "123"
    }  # fmt: skip
    assert len(drawn) == 1 and "M" in drawn.pop()
