# SPDX-License-Identifier: Apache-2.0
"""The site of a small study whose lock file is written by hand, and that of this repository."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit
from xml.etree import ElementTree

import nbformat.v4 as v4
import pytest
from PIL import Image
from ruamel.yaml import YAML

from llicm.errors import UserError
from llicm.provenance import site
from llicm.provenance.graph import picture
from llicm.provenance.lineage import digest
from llicm.provenance.pages import write_pages
from llicm.provenance.site import build_site
from llicm.report.interactive import SURROUNDINGS

ROOT = Path(__file__).resolve().parents[1]
ODD = "odd #1 50% <b> & 'c'"  # in the name of a picture
EVIL = "<script>alert(1)</script>"


def make_study(root):
    """data.dvc -> train@a, train@b -> figures, under DVC and git."""
    from dvc.repo import Repo

    for name, text in {
        "data/photo.txt": "a photo", "src/model.py": "x = 1", "src/plot.py": "y = 2",
        "artifacts/models/a/log.csv": "1,2", "artifacts/models/b/log.csv": "3,4",
        "artifacts/curves/curves.html": "<!DOCTYPE html><html><title>curves</title><script>1</script></html>",
        "artifacts/curves/better.md": SURROUNDINGS.render(images=1, number=2, all=3, metric="PSNR", words={"a": "b"}),
        "artifacts/curves/sliders.md": '# Slid\n\n<figure>\n<img src="sliders-0-0.png" alt="one">\n</figure>',
        "results/tables/headline.md": f"# Head\n\n| task | BD-PSNR |\n|---|---:|\n| {EVIL} | +1.5 [-1.0, +2.0] |\n",
        "results/tables/readme.md": "**It gains 1.5 dB** `a`.\n\nThe table:\n\n| a | b |\n|---|---|\n| 1 | 2 |\n",
        "results/tables/headline.csv": "noisy,1.5", "results/timing/steps.csv": "1,2",
        "README.md": "# Study\n\n![a](results/figures/figure_4_psnr.png)\n\n$x^2$ [b](results/tables/headline.md)",
        "docs/lineage.md": "# Lineage\n\nOf the [curves](../README.md#study), by [a script](../src/plot.py).",
        "docs/menu.md": "```{toctree}\n:hidden:\n\ndocs/lineage\nlineage/index\n```",
    }.items():  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in ("conf.py", "_static", "_templates"):
        copy = shutil.copytree if (ROOT / "docs" / name).is_dir() else shutil.copyfile
        copy(ROOT / "docs" / name, root / "docs" / name)
    (root / "results/figures").mkdir()
    Image.new("RGB", (8, 6), "red").save(root / "artifacts/curves/sliders-0-0.png")
    for name in ("figure_4_psnr", ODD):
        Image.new("RGB", (8, 6), "red").save(root / f"results/figures/{name}.png")
    write_notebooks(root)
    Repo.init(str(root), no_scm=True).close()
    (root / "params.yaml").write_text(json.dumps({"seed": 0, "title": EVIL, "size": 12}))
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
        (root / path).write_text(
            json.dumps(v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}}))
        )


def write_stages(root):
    def items(*paths):
        return [{"path": path, "hash": "md5", "md5": digest(root / path)} for path in paths]

    train = {"cmd": "python train.py", "deps": ["data", "src/model.py"], "params": ["seed", "title"]}
    figures = {
        "desc": "Draw everything", "cmd": "python plot.py", "params": ["size"],
        "deps": ["artifacts/models", "src/plot.py"],
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
    lock["figures"]["params"] = {"params.yaml": {"size": 12}}
    for name, content in {
        "dvc.yaml": {"stages": written}, "dvc.lock": {"schema": "2.0", "stages": lock},
        "data.dvc": {"outs": items("data")},
    }.items():  # fmt: skip
        with open(root / name, "w") as file:
            YAML().dump(content, file)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study and its site, not to be changed."""
    root = make_study(tmp_path_factory.mktemp("study"))
    build_site(root, root / "report")
    return root


@pytest.fixture
def study(whole, tmp_path):
    """A copy to change."""
    return shutil.copytree(whole, tmp_path / "study")


def markdown(root):
    """The pages of lineage of a study, by name, as Sphinx reads them."""
    source = root / "source"
    write_pages(root, source)
    paths = (path for suffix in ("md", "ipynb") for path in source.rglob(f"*.{suffix}"))
    found = {path.relative_to(source).as_posix(): path.read_text() for path in paths}
    shutil.rmtree(source)
    return found


class Page(HTMLParser):
    """Links, loaded resources, ids, images, text and scripts of a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loaded, self.ids, self.images, self.text, self.scripts = [], [], [], [], "", ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if tag == "a" and "href" in given else []
        self.loaded += [given[key] for key in ("src", "data", "srcset") if given.get(key)]
        self.loaded += [given["href"]] if tag == "link" else []
        self.images += [given] if tag == "img" else []

    def handle_data(self, data):
        self.scripts += data if self.cdata_elem == "script" else ""
        self.text += data if self.cdata_elem is None else ""


def check_links(folder):
    """Every local link of a site leads somewhere; what its pages load is local, and the browser is told so."""
    found = {path: Page(path) for path in sorted(folder.rglob("*.html"))}
    for path, page in found.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme:
                assert parts.scheme == ("data" if link in page.loaded else "https"), (path, link)
                continue
            target = Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
            assert not parts.netloc and target.is_file(), (path, link)
            assert target not in found or parts.fragment in ("", *map(quote, found[target].ids)), (path, link)
        assert all("alt" in image for image in page.images), path
        if path.name not in ("curves.html", "index.html"):
            assert "Content-Security-Policy" in path.read_text(encoding="utf-8"), path
    for path in folder.rglob("*.css"):
        assert not re.search(r"url\(.?(https?:)?//|@import", path.read_text(encoding="utf-8")), path
    return found


def text_of(root, page):
    return " ".join(Page(root / "report" / page).text.split())


def test_every_local_link_leads_somewhere_and_nothing_is_loaded_from_a_network(whole):
    found = check_links(whole / "report")
    assert {path.relative_to(whole / "report").as_posix() for path in found} >= {
        "index.html", "README.html", "docs/lineage.html", "executed/5_figures.html", "results/tables/headline.html",
        "lineage/index.html", "lineage/files.html", "lineage/notebooks.html", "lineage/curves/better.html",
        "lineage/curves/sliders.html", "lineage/curves/failures.html",
        "lineage/curves/curves.html", "lineage/stages/train@a.html", "lineage/stages/data.dvc.html",
        "lineage/results/figures/figure_4_psnr.png.html", "lineage/results/tables/headline.md.html",
    }  # fmt: skip
    assert "<math" in (whole / "report/README.html").read_text()
    front = found[whole / "report/README.html"].links
    assert "lineage/results/figures/figure_4_psnr.png.html" in front and "lineage/index.html" in front


def test_the_lineage_of_a_figure_and_a_table_names_code_data_and_parameters(whole):
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=whole, capture_output=True, text=True).stdout.strip()
    for name in (f"figures/{ODD}.png", "figures/figure_4_psnr.png", "tables/headline.md", "tables/readme.md"):
        path = whole / "results" / name
        text = text_of(whole, f"lineage/{quote('results/' + name).replace('%', '=')}.html")
        for there in (path, path.parent, whole / "src/plot.py", whole / "data", whole / "artifacts/models"):
            assert digest(there) in text, (name, there)
        for words in (
            "python plot.py",
            "Draw everything.",
            "2 min on Linux-6, CPUs 2",
            "train@b",
            "torch 2.1",
            commit[:10],
        ):
            assert words in text, (name, words)
        assert "size 12" in text and "the folder that the stage made, is as recorded" in text
    stage = text_of(whole, "lineage/stages/train@a.html")
    assert "seed 0" in stage and EVIL in stage and digest(whole / "src/model.py") in stage
    index = text_of(whole, "lineage/index.html")
    assert commit in index and "hashes ok" in index and "train@a as recorded" in index
    (told,) = [path for path in (whole / "report/_downloads").rglob("lineage.json")]
    assert {stage["stage"] for stage in json.loads(told.read_text())["stages"]} == {
        "data.dvc", "train@a", "train@b", "figures"
    }  # fmt: skip


def test_pages_of_a_study_are_shown_with_what_made_them_and_one_that_is_absent_says_so(whole):
    assert "Made by figures." in text_of(whole, "lineage/curves/better.html")
    assert (whole / "report/lineage/curves/sliders-0-0.png").is_file()
    text = text_of(whole, "lineage/curves/failures.html")
    assert "artifacts/curves/failures.md is not on disk. Get it with dvc pull, or make it with dvc repro" in text


def test_all_result_files_are_listed_with_what_made_them(whole, study):
    text = text_of(whole, "lineage/files.html")
    assert f"steps.csv 3 {digest(whole / 'results/timing/steps.csv')} no stage" in text
    assert f"headline.csv 9 {digest(whole / 'results/tables/headline.csv')} figures" in text
    Image.new("RGB", (8, 6)).save(study / "results/timing/steps.png")
    assert "made by: no stage" in markdown(study)["lineage/results/timing/steps.png.md"]


def test_notebooks_are_shown_with_their_text(whole):
    page = Page(whole / "report/executed/5_figures.html")
    text = " ".join(page.text.split())
    order = [
        "5 · Figures (5_figures)", "Executed by stage figures, as recorded", "What is drawn.", "parameters by default",
        "parameters of this run", "plot(seed)", "done",
    ]  # fmt: skip
    places = [text.rindex(part) for part in order]
    assert places == sorted(places)
    assert "5 · Figures (5_figures)" in [image["alt"] for image in page.images]


def test_text_of_other_code_is_not_shown(study):
    other = json.loads((study / "notebooks/5_figures.ipynb").read_text().replace("plot(seed)", "draw(seed)"))
    (study / "notebooks/5_figures.ipynb").write_text(json.dumps(other))
    text = markdown(study)["executed/5_figures.ipynb"]
    assert "has other code than the one that ran" in text and "What is *drawn*" not in text


def test_everything_is_escaped(whole):
    for path in (whole / "report").rglob("*.html"):
        assert "alert" not in Page(path).scripts, path
    for page in ("lineage/stages/train@a.html", "executed/5_figures.html", "results/tables/headline.html"):
        assert EVIL in text_of(whole, page)  # a parameter, what a notebook printed, in a table


def test_what_was_changed_is_told(study):
    (study / "results/figures/figure_4_psnr.png").write_bytes(b"other")
    (study / "src/model.py").write_text("x = 2")
    found = markdown(study)
    page, index = found["lineage/results/figures/figure_4_psnr.png.md"], found["lineage/index.md"]
    assert '`results/figures`, the folder that the stage made, is <span class="state changed">' in page
    assert "Not everything behind it is as recorded: [train@a](/lineage/stages/train@a.md), [train@b]" in page
    assert "results/figures: is " in page and index.count('class="stage changed"') == 3
    assert re.search(r"hashes +2 findings", index)


def test_what_is_absent_is_told(study):
    for name in ("executed", "artifacts", "data"):
        shutil.rmtree(study / name)
    build_site(study, study / "report")
    assert not (study / "report/executed").exists()
    assert "artifacts/curves/better.md is not on disk" in text_of(study, "lineage/curves/better.html")
    check_links(study / "report")
    assert "Missing on disk: 1 of 1. Get them with dvc pull" in text_of(study, "lineage/notebooks.html")
    text = text_of(study, "lineage/stages/figures.html")
    assert "executed/5_figures.ipynb is not on disk" in text
    # the folder of all models is not there, and still known to be filled by their stages
    assert "not on disk train@a, train@b" in text
    shutil.rmtree(study / "results")
    assert "There are no results: `results` is not on disk." in markdown(study)["lineage/files.md"]
    with pytest.raises(UserError, match="The site was not built"):  # README shows a figure of them
        build_site(study, study / "report")


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
    found = markdown(study)
    assert "profiles/small/index" in found["lineage/index.md"]
    assert "profiles/small/results/figures" in found["lineage/profiles/small/results/figures/figure_4_psnr.png.md"]
    assert "Lineage of the profile `small`" in found["lineage/profiles/small/index.md"]
    assert re.search(r"hashes +ok", found["lineage/profiles/small/index.md"])


def test_a_damaged_notebook(study):
    (study / "executed/5_figures.ipynb").write_text("{")
    with pytest.raises(UserError, match="5_figures.ipynb: not a readable notebook"):
        build_site(study, study / "report")


def test_a_broken_link_is_an_error_and_the_site_before_it_stays(study, capfd):
    (study / "docs/lineage.md").write_text("# Lineage\n\n[Nothing](nothing.md)\n")
    before = (study / "report/docs/lineage.html").read_bytes()
    with pytest.raises(UserError, match="The site was not built"):
        build_site(study, study / "report")
    assert "docs/lineage.md:3" in capfd.readouterr().err
    assert (study / "report/docs/lineage.html").read_bytes() == before and not list(study.glob(".report.*"))


def test_the_same_study_gives_the_same_bytes(whole, tmp_path):
    build_site(whole, tmp_path / "again")
    first, second = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (whole / "report", tmp_path / "again")
    )
    assert first == second


def test_only_a_site_is_replaced(study, monkeypatch):
    monkeypatch.setattr(site, "_gather", lambda root, source: source.mkdir())
    monkeypatch.setattr(site, "_sphinx", lambda source, out, doctrees: (out.mkdir(), (out / ".buildinfo").touch()))
    other = study / "other"
    other.mkdir()
    assert build_site(study, other) == other / "index.html"  # an empty folder will do
    (other / "index.html").write_text("old")
    build_site(study, other)
    assert (other / "index.html").read_text() != "old"
    with pytest.raises(UserError, match="src: not a site that this command made"):
        build_site(study, study / "src")
    assert (study / "src/model.py").is_file()
    with pytest.raises(UserError, match="dvc.lock: not a site"):
        build_site(study, study / "dvc.lock")

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(site, "_sphinx", full)
    with pytest.raises(OSError, match="no space"):
        build_site(study, other)
    assert (other / "index.html").is_file() and not list(study.glob(".other.*"))


def test_the_command(study, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(study)
    monkeypatch.setattr(site, "_sphinx", lambda source, out, doctrees: out.mkdir())
    site.main(["report"])
    assert capsys.readouterr().out.strip().endswith("index.html")
    with pytest.raises(UserError, match="dvc.lock: no such file"):
        build_site(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the picture of a pipeline -----------------------------------------------------------------------------
STAGES = [
    "data", "code", "degrade", "vlm", *(f"train@{i}" for i in range(8)), *(f"test@{i}" for i in range(8)), "figures",
    "release",
]  # fmt: skip
INPUTS = [
    *((f"train@{i}", maker) for i in range(8) for maker in ("data", "code")),
    *((f"test@{i}", maker) for i in range(8) for maker in (f"train@{i}", "code", "data")),
    *(("figures", f"test@{i}") for i in range(8)), ("figures", "code"), ("release", "train@1"), ("release", "data"),
    *((stage, maker) for stage in ("degrade", "vlm") for maker in ("data", "code")),
    *((f"train@{i}", "vlm") for i in range(8)), *((f"test@{i}", "degrade") for i in range(8)),
]  # fmt: skip


ABOUT = {"about": "<a>", "state": "ok", "time": "3 min"}


def drawn(stages, links):
    return picture({name: ABOUT for name in stages}, links, str)


def parsed(svg):
    tree = ElementTree.fromstring(svg)
    rects = {
        link.get("href"): tuple(int(link.find("rect").get(key)) for key in ("x", "y", "width", "height"))
        for link in tree.iter("a")
    }  # fmt: skip
    return tree, rects, len(tree.findall("path"))


def test_a_drawing():
    tree, rects, arrows = parsed(drawn(STAGES, INPUTS))
    assert set(rects) == set(STAGES)
    row = [rects[name][0] for name in ("data", "vlm", "train@0", "test@0", "figures")]
    assert row == sorted(set(row)) and rects["degrade"][0] == rects["vlm"][0]
    assert arrows == 9  # between boxes, without those that a longer way implies
    assert {text.text for text in tree.iter("text") if text.get("class") == "kind"} == {"train (8)", "test (8)"}
    _, _, width, height = map(int, tree.get("viewBox").split())
    for name, (x, y, w, h) in rects.items():
        assert 0 <= x and x + w <= width and 0 <= y and y + h <= height
        for other, (x1, y1, _, h1) in rects.items():
            assert other == name or x1 != x or y1 >= y + h or y >= y1 + h1


def test_stages_that_need_one_of_their_kind_are_not_put_together():
    _, rects, arrows = parsed(drawn(["a", "b@1", "b@2", "c"], [("b@1", "a"), ("b@2", "b@1"), ("c", "b@2"), ("c", "a")]))
    assert arrows == 3 and len({x for x, *_ in rects.values()}) == 4
    # x@1 -> y -> x@2: a box of both x would need itself
    assert parsed(drawn(["x@1", "x@2", "y"], [("y", "x@1"), ("x@2", "y")]))[2] == 2
    assert parsed(drawn([], []))[1] == {}


def test_a_drawing_does_not_depend_on_the_order_of_sets():
    code = f"print(picture(dict.fromkeys({STAGES}, {ABOUT}), {INPUTS}, str))"
    made = {
        subprocess.run(
            [sys.executable, "-c", f"from llicm.provenance.graph import picture; {code}"],
            capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT / "src")},
        ).stdout
        for seed in "123"
    }  # fmt: skip
    assert len(made) == 1 and "<svg" in made.pop()
