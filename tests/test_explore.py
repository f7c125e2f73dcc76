# SPDX-License-Identifier: Apache-2.0
"""The tutorials in notebooks/explore run, show what they say, and write nothing outside a temporary folder.

The site of this repository shows them: its test, which takes the notebooks as they were executed, is here too.
"""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from test_by_hand import RUN
from test_site import check_links

from llicm.provenance import site

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks/explore").glob("*.ipynb"))

# In front of a notebook: every file that Python opens for writing, makes, moves or removes.
WATCH = """
import os as _os, sys as _sys
_changed = []
def _watch(event, arguments):
    path, *rest = arguments or (None,)
    if event == "open" and isinstance(path, (str, bytes)):
        mode, flags = rest
        writes = set(mode or "") & set("wax+") if mode else flags & (_os.O_WRONLY | _os.O_RDWR | _os.O_CREAT)
        _changed.extend([_os.path.abspath(_os.fsdecode(path))] if writes else [])
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.link", "os.symlink", "os.truncate"):
        inside = event == "os.remove" and rest[0] != -1  # of a folder that is open, as shutil.rmtree does
        if isinstance(path, (str, bytes)) and not inside:
            _changed.append(_os.path.abspath(_os.fsdecode(path)))
_sys.addaudithook(_watch)
"""
# Behind it: what it must have shown.
SHOWS = {
    "0_overview": """
shown = picture.value, numbers.value
for name, value in {"level": 5, "task": "rainy", "strength": 0, "severity": 1}.items():
    controls[name].value = value
    assert shown[0] != picture.value and shown[1] != numbers.value, name
    shown = picture.value, numbers.value
small, large = (measure(level=level)[1] for level in (0, 4))
assert (large["bytes"] > 2 * small["bytes"]).all()
plain, restored = (measure(strength=strength)[1].loc["LL-ICM"] for strength in (0, 1))
assert plain["PSNR decoded"] == plain["PSNR restored"] < restored["PSNR restored"]
""",
    "1_codec": """
total = float(y_bits.sum() + z_bits.sum()) / 8
assert abs(total + 24 - len(data)) < 0.02 * len(data)
assert sum(map(len, groups)) == codec.config["M"]
means = by_pass.loc["mean"]
assert means.iloc[-1] < 0.8 * means.iloc[0]
assert (costs["the file"] < costs.drop(columns="the file").T).all().all()
""",
    "2_rate_and_perception": """
assert abs(by_hand - bd(*anchor, *test).rate) < 0.02
assert decoded.argmax() < len(decoded) - 50 and (np.diff(restored) > 0).all()
assert np.ptp(np.percentile(resampled(True, 100), (5, 95))) < np.ptp(np.percentile(resampled(False, 100), (5, 95)))
""",
    "3_before_or_after": """
for task in ("noisy", "rainy"):
    before, after = (found[task][0][name] for name in ("restorer → codec", "codec → restorer"))
    assert bd(*after[:, :5], *before[:, :5]).quality > 1, task
assert float(maps["restored"].sum()) < 0.5 * float(maps["noisy"].sum())
""",
    "4_vision_language": """
assert table["X"].mean() > 0.6 > table.loc["noisy", "level 0"]
assert gains.loc["low-light", "low-light"] > max(3, gains.loc["low-light", "hazy"], gains.loc["noisy", "low-light"])
""",
    "5_diffusion": """
of_variance = chain["of the posterior's variance"]
assert abs(of_variance[1] - 1) < 0.1 and abs(of_variance[100] - 2) < 0.2
assert psnr(final, photo) > psnr(noisy[0], photo) + 2
assert rows["30 steps, mean of 6 chains"] > np.mean([psnr(image, photo) for image in several])
""",
    "6_lineage": """
assert abs(again(ROOT) - row.bd_rate) < 0.01 and not copy.exists()
assert [len(findings) for findings in caught.values()] == [1, 1, 1, 0]
""",
}

pytestmark = pytest.mark.slow


def state():
    """Place, size and time of all files of the repository but those that git and Python keep for themselves."""
    found = {}
    for folder, folders, names in os.walk(ROOT):
        # hidden folders are for programs beside it: .git, .venv, .run of another command
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        for path in (os.path.join(folder, name) for name in names):
            about = os.lstat(path)
            found[path] = about.st_size, about.st_mtime_ns
    return found


@pytest.fixture(scope="module")
def executed():
    """Name -> the notebook as it was executed, for those whose test has run."""
    return {}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_shows_what_it_says_and_writes_nothing(path, tmp_path, executed):
    notebook = nbformat.read(path, 4)
    end = f"assert not [name for name in _changed if not name.startswith(({str(tmp_path)!r}, '/dev/'))], _changed"
    watch, *shows = (nbformat.v4.new_code_cell(text) for text in (WATCH, SHOWS[path.stem], end))
    notebook.cells = [watch, *notebook.cells, *shows]
    nbformat.write(notebook, tmp_path / path.name)
    own = {"HOME": "home", "TMPDIR": "tmp", "IPYTHONDIR": "ipython", "JUPYTER_RUNTIME_DIR": "jupyter"}
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "MPL", "LLICM_", "TORCH"))
    }
    for name, folder in own.items():
        (tmp_path / folder).mkdir()
        environment[name] = str(tmp_path / folder)
    environment |= {"PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    before = state()
    ran = subprocess.run(
        [sys.executable, "-c", RUN, tmp_path / path.name, path.parent], env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert state() == before
    found = nbformat.read(tmp_path / path.name, 4)
    outputs = [output for cell in found.cells for output in cell.get("outputs", [])]
    assert any({"image/png", "image/jpeg"} & set(output.get("data", {})) for output in outputs)
    found.cells = found.cells[1 : -len(shows)]
    executed[path.name] = found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_without_outputs_and_asks_before_it_answers(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert not [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert sum(text.count("**Question.**") for text in texts) >= 3
    assert any("$$" in text for text in texts)


def test_the_site_of_this_repository(tmp_path, executed, monkeypatch):
    """Sphinx executes one notebook, and those whose test has not run."""

    def gather(root, source, gathered=site._gather):
        gathered(root, source)
        for path in NOTEBOOKS[:-1]:
            if notebook := executed.get(path.name):
                notebook.metadata["mystnb"] = {"execution_mode": "off"}
                nbformat.write(notebook, source / "notebooks/explore" / path.name)

    monkeypatch.setattr(site, "_gather", gather)
    found = check_links(site.build_site(ROOT, tmp_path / "report").parent)
    names = {path.relative_to(tmp_path / "report").as_posix() for path in found}
    documents = {f"docs/{path.stem}.html" for path in (ROOT / "docs").glob("*.md")} - {"docs/menu.html"}
    modules = {
        ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "src/llicm").rglob("*.py") if path.name != "__main__.py"
    }  # fmt: skip
    assert documents | {f"docs/api/{module}.html" for module in modules} <= names
    front = found[tmp_path / "report/README.html"]
    assert documents <= set(front.links), "docs/menu.md lists every document"
    for path in (ROOT / "notebooks/explore").glob("*.ipynb"):  # executed
        page = found[tmp_path / f"report/notebooks/explore/{path.stem}.html"]
        assert f"notebooks/explore/{path.stem}.html" in front.links and page.images
        assert all(image["alt"] for image in page.images)
    for study in ("", "profiles/study/"):
        assert f"lineage/{study}results/figures/figure_4_psnr.png.html" in names
        assert f"{study}results/README.html" in front.links
    audited = " ".join(found[tmp_path / "report/lineage/results/figures/figure_4_psnr.png.html"].text.split())
    for words in ("build/5_figures.ipynb", "build/figures.json", "artifacts/records", "benchmark", "init/context"):
        assert words in audited  # code, its list of modules, inputs, parameters, data; with or without a run
