# SPDX-License-Identifier: Apache-2.0
"""`python -m llicm.provenance.site [OUT]`: the study as a folder of HTML pages that needs no network and no server.

Front page, a page for each executed notebook (nbconvert makes its cells), for each figure and table with its lineage,
for each stage, and the whole pipeline as a picture. The same files give the same bytes. Templates are in `pages/`.
"""

import argparse
import json
import os
import re
import shutil
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import nbformat
from markupsafe import Markup, escape

from llicm.errors import UserError
from llicm.files import atomic_folder
from llicm.provenance import audit
from llicm.provenance.graph import Drawing, draw
from llicm.provenance.lineage import ABSENT, CHANGED, SAME, Pipeline, Stage, digest, stage_texts, survey

MARKER = ".llicm-report"  # a folder that holds it may be replaced
TITLE = "LL-ICM: image compression for low-level machine vision"
PICTURES = (".png", ".jpg", ".jpeg")
# In the order of the report; what is not named here comes behind them.
CAPTIONS = {
    "figure_4_psnr": "Figure 4: rate-perception curves in PSNR. Each panel is a task, each point a mean over the test "
    "photos of real file sizes and of the quality of the method's output.",
    "bd_rate_psnr": "BD-rate of LL-ICM in PSNR against each method. Blue: LL-ICM needs fewer bits for equal quality.",
    "figure_6_pictures": "Figure 6: pictures at one rate per task: the input X, what the strongest baseline makes of "
    "it, and LL-ICM's decoded X̂ and enhanced X̂_H.",
    "figure_5_non_monotone": "Figure 5: why quality falls with the rate. How much of the noise is still in the decoded "
    "image, the quality of the output, and what a codec keeps.",
    "confusion": "What the vision-language model takes each degradation for, uncompressed and through the codec.",
    "figure_1_frameworks": "Figure 1: the frameworks compared, from a degraded image X to an enhanced one.",
    "figure_2_objectives": "Figure 2: what rate-distortion and rate-perception optimisation minimise.",
    "figure_3_system": "Figure 3: codec, restorer and the vision-language model that steers it.",
    "bd_psnr": "BD-PSNR of LL-ICM against each method. Blue: LL-ICM is better at the same rate.",
    "diffusion_steps": "Quality by the number of steps of the diffusion restorer.",
    "rate_gap": "How far the size of real files is from what the entropy model estimates.",
    "steps": "Quality by the number of steps of the diffusion restorer, and the time they take.",
}
MAIN = list(CAPTIONS)[:5]
TABLES = {
    "headline": "LL-ICM against the strongest baseline of each task",
    "readme": "LL-ICM against every method in PSNR",
    "bd_rate": "Every comparison in every metric",
    "non_monotone": "Curves that fall with the rate",
    "disagreements": "Where metrics disagree",
    "extra": "Clean input, mixtures and other severities",
    "recognition": "What the vision-language model recognises",
    "ablation": "Whether the vision-language model helps",
    "specialists": "One codec for all tasks, or one for each",
    "headline_prefilter": "LL-ICM with a prefilter against the strongest baseline",
}
CHECKS = {
    "lock": "Does `dvc.lock` say what `dvc.yaml` and `params.yaml` say?",
    "hashes": "Is every input and output on disk what `dvc.lock` says?",
}


def build_site(root: str | os.PathLike, out: str | os.PathLike, profile: str | None = None) -> Path:
    """Write the pages of a study; nothing is computed again but checksums.

    A page says what is not on disk where it would be.

    Args:
        root: the repository. out: folder for the pages; an earlier report there is replaced, once all is written.
        profile: name of a folder below profiles/; None for the default study.

    Returns:
        The front page.

    Raises:
        UserError: `out` is something else than a report, or the study has no dvc.lock, or a damaged one, or a damaged
            notebook.
        OSError: the disk is full or the place is not writable; an earlier report is then still there.
    """
    out = Path(out).resolve()
    empty = out.is_dir() and not any(out.iterdir())
    if out.exists() and not empty and not (out / MARKER).is_file():
        raise UserError(f"{out}: not a report that this command made; remove it, or name another folder.")
    pipeline = Pipeline(root, profile)
    with atomic_folder(out) as new:
        _Site(pipeline, new).write()
    return out / "index.html"


class _Site:
    def __init__(self, pipeline: Pipeline, folder: Path):
        self.pipeline, self.profile, self.folder = pipeline, pipeline.profile, folder
        self.found = survey(pipeline.root, pipeline.profile)
        self.needs: dict[str, set[str]] = defaultdict(set)  # stage -> the stages it reads from
        for reader, _, maker in self.found.links:
            self.needs[reader].add(maker)
        about = stage_texts(pipeline.folder)
        self.stages = {entry["stage"]: self._stage(entry, about) for entry in self.found.stages}
        # From here on in the order of the picture: from the data to the results.
        boxes = sorted(self._drawing(list(self.stages)).boxes, key=lambda box: (box.x, box.y))
        self.stages = {name: self.stages[name] for box in boxes for name in box.stages}
        for name, stage in self.stages.items():
            stage["needs"] = [other for other in self.stages if other in self.needs[name]]
            stage["feeds"] = [other for other in self.stages if name in self.needs[other]]
            changed = [other for other in self._behind([name]) if self.stages[other]["state"] == CHANGED]
            stage["changed_behind"] = [other for other in changed if other != name]
        self.pages = jinja2.Environment(
            loader=jinja2.PackageLoader("llicm.provenance", "pages"), autoescape=True, trim_blocks=True,
            lstrip_blocks=True, undefined=jinja2.StrictUndefined,
        )  # fmt: skip
        self.pages.filters["ticks"] = _ticks
        self.curves = self.pipeline.folder / "artifacts" / "curves" / "curves.html"

    def write(self) -> None:
        self.folder.mkdir()
        (self.folder / MARKER).write_text("`make report` made this folder and may replace it.\n", encoding="utf-8")
        self._style()
        items = list(self._items())
        pictures = sorted((item for item in items if item["kind"] == "picture"), key=_rank(CAPTIONS))
        tables = sorted((item for item in items if item["kind"] == "table"), key=_rank(TABLES))
        data = [item for item in items if item["kind"] == "data"]
        for stage in self.stages.values():
            self._notebook(stage)
        missing = []
        if not items:
            results = self.pipeline.relative(self.pipeline.folder / "results")
            missing.append(
                f"There are no results: `{results}` is not on disk. Get it with `git checkout`, or make it with "
                "`dvc repro`."
            )
        self._front(pictures, tables, missing)
        groups = defaultdict(list)
        for item in data:
            groups[item["file"].rsplit("/", 1)[0]].append(item)
        self._page(
            "results.html", "results.html.j2", "Figures and tables", pictures=pictures, tables=tables,
            data=groups.items(), missing=missing,
        )  # fmt: skip
        for item in [*pictures, *tables]:
            stage = item["stage"]
            others = [other for other in data if other["file"].rsplit(".", 1)[0] == item["file"].rsplit(".", 1)[0]]
            self._page(
                item["page"], "artefact.html.j2", item["title"], item=item | {"others": others}, stage=stage,
                output=item["output"], drawing=self._drawing([stage["stage"]]) if stage else None,
            )  # fmt: skip
        for name, stage in self.stages.items():
            shown = [item for item in [*pictures, *tables] if item["stage"] is stage]
            self._page(
                _stage_page(name), "stage.html.j2", f"Stage {name}", stage=stage, shown=shown,
                drawing=self._drawing([name]),
            )  # fmt: skip
        self._page(
            "lineage.html", "lineage.html.j2", "Lineage of the whole study", artefact=self.found.artefact,
            drawing=self._drawing(list(self.stages)),
        )  # fmt: skip
        if self.curves.is_file():
            maker = self.pipeline.producer(self.curves)
            self._copy(self.curves, "curves/curves.html")
            self._page(
                "curves.html", "curves.html.j2", "All curves, interactive", file="curves/curves.html",
                stage=maker and self.stages.get(maker.name),
            )  # fmt: skip

    def _page(self, page: str, template: str, title: str, **values: Any) -> None:
        def url(target: str) -> str:
            return quote(os.path.relpath(target, os.path.dirname(page) or "."))

        menu = [("Report", "index.html"), ("Figures and tables", "results.html"), ("Lineage", "lineage.html")]
        if self.curves.is_file():
            menu.append(("Curves", "curves.html"))
        text = self.pages.get_template(template).render(
            page=page, title=title, url=url, menu=menu, git=self.found.git, stages=self.stages, stage_page=_stage_page,
            study=TITLE.split(":")[0] + (f", profile {self.profile}" if self.profile else ""), **values,
        )  # fmt: skip
        path = self.folder / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")

    def _copy(self, path: Path, place: str) -> None:
        (self.folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, self.folder / place)

    def _style(self) -> None:
        from pygments.formatters import HtmlFormatter

        own = Path(__file__).with_name("pages").joinpath("style.css").read_text(encoding="utf-8").rstrip("\n")
        code = HtmlFormatter(style="default").get_style_defs(".highlight")
        (self.folder / "style.css").write_text(f"{own}\n{code}\n", encoding="utf-8", newline="\n")

    def _stage(self, entry: dict[str, Any], about: dict[str, str]) -> dict[str, Any]:
        """What the pages say of a stage."""
        name = entry["stage"]
        rows = [row for kind in ("inputs", "code", "outputs") for row in entry[kind]]
        changed = {row["path"] for row in rows if row["on_disk"] == CHANGED}
        gone = any(row["on_disk"] == ABSENT for row in entry["outputs"])
        findings = [finding for finding in self.found.findings if finding.split(": ")[0] in changed]
        if any(row["on_disk"] == ABSENT for row in rows):
            findings.append("Not all of it is on disk; get it with `dvc pull`, or make it with `dvc repro`.")
        makers: dict[str, dict[str, None]] = defaultdict(dict)
        for stage, path, maker in self.found.links:
            if stage == name:
                makers[path][maker] = None
        inputs = [row | {"makers": list(makers[row["path"]])} for row in entry["inputs"]]
        notebook = next((row for row in entry["outputs"] if row["path"].endswith(".ipynb")), None)
        there = notebook and notebook["on_disk"] != ABSENT
        return entry | {
            "about": about.get(name.split("@")[0], "").rstrip("."),
            "state": CHANGED if changed else ABSENT if gone else SAME,
            "inputs": inputs,
            "params": {key: json.dumps(value, ensure_ascii=False) for key, value in entry["params"].items()},
            "findings": findings,
            "time": _time(entry["run"]["seconds"]) if entry["run"] else "",
            "notebook": notebook and notebook["path"],
            "notebook_row": notebook,
            "notebook_page": f"notebooks/{Path(notebook['path']).stem}.html" if notebook and there else None,
        }

    def _behind(self, names: list[str]) -> list[str]:
        """These stages and all that they need."""
        queue, seen = list(names), set(names)
        while queue:
            new = self.needs[queue.pop()] - seen
            seen |= new
            queue += new
        return [name for name in self.stages if name in seen]

    def _drawing(self, names: list[str]) -> Drawing:
        """These stages and all behind them."""
        links = [(stage, maker) for stage, _, maker in self.found.links]
        return draw(self._behind(names), links, {name: stage["time"] for name, stage in self.stages.items()})

    def _items(self) -> Iterator[dict[str, Any]]:
        """All files in results/, copied."""
        results = self.pipeline.folder / "results"
        for path in sorted(results.rglob("*")):
            place = path.relative_to(self.pipeline.folder)
            if not path.is_file() or any(part.startswith(".") for part in place.parts):
                continue
            file = place.as_posix()
            maker = self.pipeline.producer(path)
            stage = self.stages.get(maker.name) if maker else None
            output = self._output(maker, path) if maker and stage else None
            item: dict[str, Any] = {
                "file": file, "path": self.pipeline.relative(path), "name": place.name, "stem": place.stem,
                "page": f"{file}.html", "bytes": path.stat().st_size, "md5": digest(path), "stage": stage,
                "output": output, "kind": "data", "html": None,
            }  # fmt: skip
            self._copy(path, file)
            if path.suffix in PICTURES:
                caption = CAPTIONS.get(place.stem) or _caption(place.stem)
                title = caption.split(". ")[0].rstrip(".")
                item |= {"kind": "picture", "caption": caption, "title": title, "alt": title, "size": _size(path)}
            elif path.suffix == ".md":
                text = path.read_text(encoding="utf-8", errors="replace")
                title = TABLES.get(place.stem) or place.stem.replace("_", " ").capitalize()
                item |= {"kind": "table", "title": title, "text": text, "html": _markdown(text)}
            yield item

    def _output(self, maker: Stage, path: Path) -> dict[str, str]:
        """The row of the output that a file is or lies in."""
        rows = {row["path"]: row for row in self.stages[maker.name]["outputs"]}
        names = [self.pipeline.relative(place) for place in (path, *path.parents) if place in maker.outs]
        return rows[names[0]]

    def _front(self, pictures: list[dict], tables: list[dict], missing: list[str]) -> None:
        main = [item for item in pictures if item["stem"] in MAIN] or pictures
        by_stem = {item["stem"]: item for item in tables}
        numbers = None
        if "readme" in by_stem:
            # Its sentences before the tables; the last introduces the first of these.
            blocks = by_stem["readme"]["text"].split("\n\n")
            before = next((i for i, block in enumerate(blocks) if block.startswith("|")), len(blocks))
            numbers = _markdown("\n\n".join(block for block in blocks[:before] if not block.endswith(":")))
        findings = audit.audit(self.pipeline.root, self.profile, list(CHECKS))
        checks = [_check(name, [finding for finding in findings if finding.check == name]) for name in CHECKS]
        runs = [stage for stage in self.stages.values() if stage["notebook"]]
        notebooks = defaultdict(list)
        for stage in runs:
            notebooks[Path(stage["notebook"]).stem.split("-")[0]].append(stage)
        self._page(
            "index.html", "front.html.j2", TITLE + (f" (profile {self.profile})" if self.profile else ""),
            pictures=main, headline=by_stem.get("headline"), numbers=numbers, checks=checks, findings=findings,
            notebooks=sorted(notebooks.items()), runs=len(runs), curves=self.curves.is_file(), missing=missing,
            absent=sum(stage["notebook_page"] is None for stage in runs),
        )  # fmt: skip

    def _notebook(self, stage: dict[str, Any]) -> None:
        if stage["notebook_page"] is None:
            return
        path = self.pipeline.root / stage["notebook"]
        number = path.stem.split("-")[0]
        notebook = _read(path)
        source = self.pipeline.root / "notebooks" / f"{number}.ipynb"
        prose = source.is_file() and _add_prose(notebook, _read(source))
        _name_pictures(notebook, path.stem)
        self._page(
            stage["notebook_page"], "notebook.html.j2", path.stem, stage=stage, prose=prose, body=_cells(notebook),
            notebook_state=stage["notebook_row"]["on_disk"],
        )  # fmt: skip


def _stage_page(name: str) -> str:
    return f"stages/{name.replace('/', '-')}.html"


def _rank(names: dict[str, str]) -> Callable[[dict[str, Any]], tuple[int, str]]:
    order = list(names)
    return lambda item: (order.index(item["stem"]) if item["stem"] in order else len(order), item["file"])


def _caption(stem: str) -> str:
    if stem.startswith("rate_perception_"):
        metric = stem.removeprefix("rate_perception_")
        return f"The curves of Figure 4 in {metric.removesuffix('_fit').upper().replace('_', '-')}" + (
            " with our own fit." if metric.endswith("_fit") else "."
        )
    return stem.replace("_", " ").capitalize() + "."


def _size(path: Path) -> tuple[int, int] | None:
    """Width and height; a page that knows them does not jump while it loads."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.size
    except OSError:
        return None  # not a picture: the browser says so


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _markdown(text: str) -> Markup:
    """Safe HTML, with headings below that of the page and tables that scroll."""
    import mistune

    class Renderer(mistune.HTMLRenderer):
        def heading(self, text: str, level: int, **attributes: Any) -> str:
            return super().heading(text, min(level + 1, 6), **attributes)

    html = str(mistune.create_markdown(renderer=Renderer(escape=True), plugins=["table"])(text))
    # Text is escaped, so that these tags are the renderer's own.
    html = html.replace("<table>", '<div class="scroll"><table>').replace("</table>", "</table></div>")
    html = re.sub(r"(<td[^>]*>[^<\[]+) (\[[^<\]]+\])</td>", r'\1 <span class="interval">\2</span></td>', html)
    return Markup(html)


def _ticks(text: str) -> Markup:
    """Text with `commands` between ticks, as messages have them."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _check(name: str, findings: Sequence[audit.Finding]) -> dict[str, str]:
    absent = sum(finding.found == audit.NOTHING for finding in findings)
    other = len(findings) - absent
    parts = []
    if other:
        parts.append(f"{other} {'differ' if other > 1 else 'differs'} from the record.")
    if absent:
        parts.append(
            f"{absent} {'are' if absent > 1 else 'is'} not on disk; `dvc pull` gets them, `dvc repro` makes them."
        )
    state = CHANGED if other else ABSENT if absent else SAME
    return {"name": name, "question": CHECKS[name], "state": state, "answer": " ".join(parts) or "Yes."}


def _read(path: Path) -> nbformat.NotebookNode:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of cells without an id
            return nbformat.read(path, 4)
    except Exception as error:
        # nbformat raises whatever its JSON parser or its schema raises
        raise UserError(
            f"{path}: not a readable notebook ({type(error).__name__}); restore it with `dvc checkout --force` or "
            "`git checkout`."
        ) from None


def _add_prose(executed: nbformat.NotebookNode, source: nbformat.NotebookNode) -> bool:
    """Put the text of the notebook between the cells that ran, which were stripped of it; False if the code differs."""
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    ran = [cell for cell in code if not audit.injected(cell)]
    wanted = [cell for cell in source.cells if cell.cell_type == "code" and cell.source.strip()]
    if [cell.source for cell in ran] != [cell.source for cell in wanted]:
        return False
    cells: list[nbformat.NotebookNode] = []
    rest = iter(code)
    for cell in source.cells:
        if cell.cell_type == "markdown":
            cell.id = f"text-{len(cells)}"  # nbformat gives random ones to cells without
            cells.append(cell)
        elif cell in wanted:
            for found in rest:
                cells.append(found)
                if not audit.injected(found):
                    break
    executed.cells = cells
    return True


def _name_pictures(notebook: nbformat.NotebookNode, name: str) -> None:
    """An alternative text for every picture: the heading that it stands under."""
    heading = name
    for cell in notebook.cells:
        for line in cell.source.splitlines() if cell.cell_type == "markdown" else ():
            if line.startswith("#"):
                heading = line.lstrip("# ")
        for output in cell.get("outputs", []):
            for kind in output.get("data", {}):
                if kind.startswith("image/"):
                    output.metadata.setdefault(kind, {}).setdefault("alt", heading)


def _cells(notebook: nbformat.NotebookNode) -> Markup:
    """The cells as HTML. nbconvert's template `basic` loads nothing from a network, unlike its others."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        template_name="basic", template_file="cells.html.j2", exclude_anchor_links=True,
        extra_loaders=[jinja2.PackageLoader("llicm.provenance", "pages")],
    )  # fmt: skip
    return Markup(exporter.from_notebook_node(notebook)[0])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m llicm.provenance.site", description="Write the report of a study.")
    parser.add_argument("out", nargs="?", default="report", help="folder to write to (default: report)")
    parser.add_argument("--profile", help="a folder below profiles/ (default: the default study)")
    given = parser.parse_args(arguments)
    print(build_site(".", given.out, given.profile))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
