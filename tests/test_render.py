# SPDX-License-Identifier: Apache-2.0
"""Documents are what their templates and the results give, hold no typed result, and link to what exists."""

import re
import subprocess
from pathlib import Path

import pytest

from llicm.errors import UserError
from llicm.report.page import results_page
from llicm.report.render import TEMPLATES, Comparison, Number, Results, environment, render, write

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(path.name for path in (ROOT / TEMPLATES).glob("*.md.j2"))
MEASURED = re.compile(r"\d[\d,]*(?:\.\d+)?\s?(?:%|dB)|\d{2,}\.\d+")  # percentages, decibels, long numbers
# what a Markdown link points to; code and images too, but no code blocks
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def rendered():
    return render(ROOT)


def documents():
    """Markdown files in git, those of the results' tables excepted: they have no links."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split() if "/tables/" not in name and not name.startswith("results/kodak")]


def without_code(text):
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def anchors(text):
    """The anchors that a code host gives to the headings of a Markdown document."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_committed_documents_are_what_the_results_give(rendered):
    assert {"README.md", "docs/results-explained.md", "docs/photos.md", "results/README.md"} < set(map(str, rendered))
    for path, text in rendered.items():
        assert (ROOT / path).read_text(encoding="utf-8") == text, f"{path} is stale: run `make readme`"


@pytest.mark.parametrize("name", NAMES)
def test_no_template_has_a_typed_result(name):
    """Nothing that looks measured and that an expression prints is typed elsewhere in the template."""
    printed = []
    environment(ROOT, lambda value: printed.append(str(value)) or value).get_template(name).render()
    results = {number.replace(" ", "") for text in printed for number in MEASURED.findall(text)}
    source = (ROOT / TEMPLATES / name).read_text(encoding="utf-8")
    prose = without_code(re.sub(r"\{\{.*?\}\}|\{%.*?%\}", "", source, flags=re.S))
    typed = {number.replace(" ", "") for number in MEASURED.findall(prose)}
    assert results and not typed & results


def test_the_readme_is_short_and_leads_with_the_strongest_baseline(rendered):
    text = rendered[Path("README.md")]
    assert text.count("\n") <= 200 and len(text.encode()) <= 10_240
    assert "make test" in text and "make repro" in text
    table = text.split("|---|")[1].splitlines()[1]
    study = Results(ROOT / "profiles/study/results")
    assert "strongest baseline" in table and study.headline().rate.show(1, "%") in table
    lead = text.split("\n\n")[1]
    number, interval = study.headline().rate.show(1, "%", sign=False).split(" ", 1)
    assert lead.startswith("**On 24 test photos") and number in lead and interval in lead


@pytest.mark.parametrize("name", documents())
def test_local_links_lead_somewhere(name):
    path = ROOT / name
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    known = {(ROOT / file).resolve() for file in listed.splitlines()}
    folders = {parent for file in known for parent in file.parents}
    for link in LINK.findall(without_code(path.read_text(encoding="utf-8"))):
        if re.match(r"\w+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        assert file in known or file in folders or file == path, f"{name}: {link} is not in git"
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), f"{name}: no heading for {link}"


def test_numbers_as_they_are_written():
    assert Number(-24.96, -30.2, -19.09).show(1, "%") == "-25.0% [-30.2, -19.1]"
    assert Number(3.0).show(2, " dB") == "+3.00 dB" and Number(float("nan")).show(1) == "n/a"
    assert abs(Number(-24.96, -30.2, -19.09)) == Number(24.96, 19.09, 30.2)


@pytest.fixture
def repository(tmp_path):
    """A repository with one template and one small study."""
    tables = tmp_path / "profiles/study/results/tables"
    tables.mkdir(parents=True)
    head = "metric,task,anchor,bd_rate,bd_rate_low,bd_rate_high,bd_quality,bd_quality_low,bd_quality_high,tasks_defined"
    (tables / "headline.csv").write_text(f"{head}\npsnr,noisy,a,1,0,2,3,2,4,1\npsnr,mean,,-10,-20,-5,3,2,4,1\n")
    (tables / "headline.md").write_text("| task | x |\n|---|---:|\n| **mean** | +1 |\n\ntext\n")
    (tmp_path / TEMPLATES).mkdir(parents=True)
    return tmp_path


def test_templates_read_result_files(repository):
    study = Results(repository / "profiles/study/results")
    assert study.headline() == Comparison(Number(-10, -20, -5), Number(3, 2, 4), 1, "nan")
    assert study.tasks == ["noisy"] and study.cells("headline") == [{"task": "mean", "x": "+1"}]
    made = environment(repository)
    text = "{{ study.headline().rate | bits }}, {{ study.headline('psnr', 'noisy').rate.value | bits }}"
    assert made.from_string(text).render() == "10.0% fewer bits [5.0, 20.0], 1.0% more bits"
    for wrong in ("study.headline('ssim')", "study.ablation('both')", "study.records"):
        with pytest.raises(UserError, match=r"headline.csv: 0 rows|ablation.csv: no such|records.parquet: no such"):
            made.from_string("{{ " + wrong + " }}").render()


def test_only_what_changed_is_written(repository, monkeypatch):
    monkeypatch.setattr("llicm.report.render.PAGES", (Path("results"), Path("profiles/study/results")))
    monkeypatch.setattr("llicm.report.render.results_page", lambda folder: f"page of {folder.name}\n")
    (repository / "results").mkdir()
    (repository / TEMPLATES / "README.md.j2").write_text("{{ study.headline().rate.value | pct }}\n")
    (repository / TEMPLATES / "other.md.j2").write_text("words\n")
    pages = [Path("results/README.md"), Path("profiles/study/results/README.md")]
    assert write(repository) == [Path("README.md"), Path("docs/other.md"), *pages]
    assert (repository / "README.md").read_text() == "-10.0%\n"
    (repository / "docs/other.md").write_text("old\n")
    assert write(repository) == [Path("docs/other.md")] and write(repository) == []


def test_a_results_page_needs_its_tables(tmp_path):
    results = ROOT / "results"
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/records.md").write_text("")
    copy = tmp_path / "deep/results"
    (copy / "tables").mkdir(parents=True)
    (copy / "records.parquet").write_bytes((results / "records.parquet").read_bytes())
    with pytest.raises(UserError, match=r"headline.md: no such table; run `dvc repro` first"):
        results_page(copy)
    for table in (results / "tables").glob("*.md"):
        (copy / "tables" / table.name).write_bytes(table.read_bytes())
    (copy / "tables/extra.md").write_text("No further sets in these parameters.\n")
    text = results_page(copy)
    assert "](../../docs/records.md)" in text and "checks the machinery" in text
    assert "## Clean photos" not in text and "diffusion_steps" not in text and "\n\n\n" not in text
