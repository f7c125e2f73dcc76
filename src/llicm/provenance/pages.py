# SPDX-License-Identifier: Apache-2.0
"""The lineage of studies as Markdown, and their executed notebooks: what Sphinx makes a site of.

A page for each stage, and for each figure and table all that `llicm lineage` knows of it; a list of all result files;
the whole as JSON. Nothing is computed again but checksums; what is not on disk is said where it would be.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import networkx as nx

from llicm.provenance import audit
from llicm.provenance.graph import picture
from llicm.provenance.lineage import ABSENT, CHANGED, SAME, Pipeline, digest, stage_texts, survey
from llicm.provenance.notebooks import readable

PAGED = (".png", ".jpg", ".jpeg", ".md")  # results that have a page of their own
WORDS = {SAME: "as recorded", CHANGED: "changed", ABSENT: "not on disk"}
FETCH = "Get it with `dvc pull`, or make it with `dvc repro`."
NO_CODE = "None is known. Where one of the inputs is a list of modules, it has to be on disk."
CHECKS = ("lock", "hashes")  # the quick ones
FILES = ("path", "on disk", "MD5 on record")
SHOWN = {  # pages that a study may make for its site, with all that they load beside them, in artifacts/curves
    "better": "Curves, and which method is best where", "sliders": "Pictures under a slider", "failures": "Failures",
}  # fmt: skip
LEGEND = """\
*Inputs at the left, results at the right; each box leads to its stage. Green: what it read and made is on disk as
recorded. Orange, ≠: changed since. White, ○: not all of it is on disk. An arrow at a box of several stages belongs to
all or some of them, as their pages tell; one that a longer way implies is left out.*"""


def write_pages(root: str | os.PathLike, source: Path) -> dict[str, str]:
    """Write pages of the default study, and of every profile that has a dvc.lock, below `source`/lineage.

    Executed notebooks go to the place in `source` that they have in the repository, curves to `source`/extra.

    Returns:
        Each figure and table, by its path from the repository -> its lineage page, by its path from `source`.

    Raises:
        UserError: there is no dvc.lock, or a damaged one, or a damaged notebook.
    """
    profiles = sorted(lock.parent.name for lock in Path(root).glob("profiles/*/dvc.lock"))
    shown = _Study(root, None, source).write([f"profiles/{name}/index" for name in profiles])
    for name in profiles:
        shown |= _Study(root, name, source).write([])
    return shown


class _Study:
    def __init__(self, root: str | os.PathLike, profile: str | None, source: Path):
        self.pipeline, self.source = Pipeline(root, profile), source
        self.found = survey(self.pipeline)
        self.place = Path("lineage", self.pipeline.relative(self.pipeline.folder))
        about = stage_texts(self.pipeline.folder)
        graph = nx.DiGraph((maker, reader) for reader, _, maker in self.found.links)
        graph.add_nodes_from(entry["stage"] for entry in self.found.stages)
        stages = {entry["stage"]: entry | self._more(entry, about) for entry in self.found.stages}
        self.stages = {name: stages[name] for layer in nx.topological_generations(graph) for name in layer}
        self.behind = {name: nx.ancestors(graph, name) for name in graph}

    def write(self, others: list[str]) -> dict[str, str]:
        """All pages; others: what the first leads to beside them."""
        results = self.pipeline.folder / "results"
        files = sorted(path for path in results.rglob("*") if path.is_file() and not path.name.startswith("."))
        pages = {self.pipeline.relative(path): self._result(path) for path in files}
        for name in self.stages:
            self._page(_stage_page(name), f"# Stage {_code(name)}", self._stage(name, "stages"))
        rows = [(f"[{_plain(file)}](/{page})", f"{path.stat().st_size:,}", _code(str(digest(path))), self._maker(path))
                for path, (file, page) in zip(files, pages.items(), strict=True)]  # fmt: skip
        missing = f"There are no results: `{self.pipeline.relative(results)}` is not on disk. {FETCH}"
        self._page(
            "files.md", "# Result files", "Every result with its checksum; figures and tables lead to their lineage.",
            _table(("file", "bytes", "MD5", "made by"), rows) if files else _warning(missing),
        )  # fmt: skip
        self._notebooks()
        shown = {file: page for file, page in pages.items() if page.endswith(".md")}
        self._shown()
        self._index(shown, others)
        return shown

    def _page(self, name: str, *parts: str) -> None:
        path = self.source / self.place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")

    def _more(self, entry: dict[str, Any], about: dict[str, str]) -> dict[str, Any]:
        """What pages say of a stage beside what its lineage has."""
        name, run = entry["stage"], entry["run"]
        rows = [row for kind in ("inputs", "code", "outputs") for row in entry[kind]]
        changed = {row["path"] for row in rows if row["on_disk"] == CHANGED}
        absent = any(row["on_disk"] == ABSENT for row in rows)
        findings = [finding for finding in self.found.findings if finding.split(": ")[0] in changed]
        default = "Made by a command of the pipeline" if entry["command"] else "Files that no stage made, kept by DVC"
        return {
            "about": about.get(name.split("@")[0], default).rstrip("."),
            "state": CHANGED if changed else ABSENT if absent else SAME,
            "findings": findings + [f"Not all of it is on disk. {FETCH}"] * absent,
            "time": _time(run["seconds"]) if run else "",
            "notebook": next((row for row in entry["outputs"] if row["path"].endswith(".ipynb")), None),
        }

    def _links(self, names: Iterable[str]) -> str:
        return ", ".join(f"[{_plain(name)}](/{self.place}/{_stage_page(name)})" for name in dict.fromkeys(names))

    def _maker(self, path: Path) -> str:
        maker = self.pipeline.producer(path)
        return self._links([maker.name]) if maker else "no stage: it holds times, or was put there by hand"

    def _makers(self, name: str, path: str | None = None) -> str:
        """The stages from which a stage reads, or reads this."""
        return self._links(maker for reader, what, maker in self.found.links if reader == name and path in (None, what))

    def _stage(self, name: str, folder: str) -> str:
        """All that is known of a stage and what is behind it, for a page in a folder of this study's."""
        stage, behind = self.stages[name], [other for other in self.stages if other in self.behind[name]]
        changed = [other for other in behind if self.stages[other]["state"] == CHANGED]
        sources = [self.stages[other] for other in behind if not self.stages[other]["command"]]
        packages = stage["packages"] | ((stage["run"] or {}).get("libraries") or {})
        parts = [
            f"{_plain(stage['about'])}.",
            _facts({
                "state": _state(stage["state"]), "command": stage["command"] and _code(stage["command"]),
                "recorded in": _code(stage["pipeline"]), "commit": _commit(stage), "run": _ran(stage),
                "notebook": stage["notebook"] and _notebook(stage["notebook"]), "reads from": self._makers(name),
                "read by": self._links(reader for reader, _, maker in self.found.links if maker == name),
            }),
            _warning(f"Not everything behind it is as recorded: {self._links(changed)}.") if changed else "",
            _warning("\n".join(f"- {_plain(finding)}" for finding in stage["findings"])) if stage["findings"] else "",
            "## Outputs", _table(FILES, map(_row, stage["outputs"])),
        ]  # fmt: skip
        if stage["command"]:
            inputs = [(*_row(row)[:2], self._makers(name, row["path"]), _row(row)[2]) for row in stage["inputs"]]
            parts += [
                "## Stages behind it", self._picture([*behind, name], folder),
                "## Data behind it", _table(FILES, [_row(row) for source in sources for row in source["outputs"]]),
                "## Inputs", _table((*FILES[:2], "made by", FILES[2]), inputs),
                "## Parameters", "What the stage saw of `params.yaml`.",
                _table(("name", "value"), [(_code(key), _value(value)) for key, value in stage["params"].items()]),
                "## Code", "Files under git that this stage read.",
                _table(FILES, map(_row, stage["code"])) if stage["code"] else NO_CODE,
                "## Library versions", ", ".join(f"{key} {packages[key]}" for key in sorted(packages)) or "No record.",
            ]  # fmt: skip
        return "\n\n".join(filter(None, parts))

    def _picture(self, names: list[str], folder: str) -> str:
        up = os.path.relpath(".", folder)
        shown = {name: self.stages[name] for name in names}
        links = ((reader, maker) for reader, _, maker in self.found.links)
        drawn = picture(shown, links, lambda name: quote(f"{up}/{_stage_page(name)}"[:-3] + ".html"))
        return f'<div class="graph">\n{drawn}\n</div>\n\n{LEGEND}'

    def _result(self, path: Path) -> str:
        """Copy a result; a figure or table gets a page, whose place is returned instead of the copy's."""
        file, relative = self.pipeline.relative(path), path.relative_to(self.pipeline.folder)
        name = _safe(relative.as_posix())
        copy = self.source / self.place / (f"{name}.txt" if path.suffix == ".md" else name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        if path.suffix not in PAGED:
            return f"{self.place}/{name}"
        maker = self.pipeline.producer(path)
        facts = {"file": f"{_code(file)}, {path.stat().st_size:,} bytes", "MD5": _code(str(digest(path)))}
        facts["made by"] = f"stage {self._maker(path)}" if maker else self._maker(path)
        show = f"![{_plain(path.stem)}]({copy.name})\n\n" if path.suffix != ".md" else ""
        if maker:
            places = [self.pipeline.relative(place) for place in (path, *path.parents) if place in maker.outs]
            (output,) = [row for row in self.stages[maker.name]["outputs"] if row["path"] == places[0]]
            inside = ", the folder that the stage made," if places[0] != file else ""
            facts["on disk"] = f"{_code(places[0])}{inside} is {_state(output['on_disk'])}"
        self._page(
            f"{name}.md", f"# Lineage of {_plain(path.name)}", f"{show}[The file]({copy.name})", _facts(facts),
            self._stage(maker.name, str(relative.parent)) if maker else "",
        )  # fmt: skip
        return f"{self.place}/{name}.md"

    def _index(self, shown: dict[str, str], others: list[str]) -> None:
        git, profile = self.found.git, self.pipeline.profile
        changed = "" if git["clean"] else ", with tracked files changed since"
        commit = f"Commit {_code(git['commit'])} of {git['date']}{changed}." if git["commit"] else (
            "Git could not be asked." if git["problem"] else "Not under git.")  # fmt: skip
        findings = [finding for name in CHECKS for finding in audit.CHECKS[name](self.pipeline)]
        counts, _, told = audit.as_text(findings, CHECKS).partition("\n\n")
        folded = f"<details><summary>What was found</summary>\n\n```text\n{told}\n```\n\n</details>" if told else ""
        rows = [(self._links([name]), _state(stage["state"]), self._makers(name), stage["time"], _commit(stage))
                for name, stage in self.stages.items()]  # fmt: skip
        self._page(
            "index.md",
            f"# Lineage of {f'the profile {_code(profile)}' if profile else 'the default study'}",
            f"From the photos to the figures and the released model: {len(self.stages)} stages. All is recorded in "
            f"{_code(self.found.artefact)}, and every checksum was computed again for this page. "
            "[The same as JSON](lineage.json).",
            "## State", f"{commit} These are the quick checks; `llicm audit` makes all of them.",
            f"```text\n{counts}\n```", folded,
            "## Stages", self._picture(list(self.stages), "."),
            _table(("stage", "state", "reads from", "run", "commit"), rows),
            "## Figures and tables", "\n".join(f"- [{_plain(file)}](/{page})" for file, page in shown.items()),
            " · ".join(
                f"[{text}]({name}.md)" for name, text in {
                    "files": "All result files", "notebooks": "executed notebooks",
                    **{f"curves/{name}": title for name, title in SHOWN.items()},
                }.items()
            ), _toctree(["files", *others]),
        )  # fmt: skip
        (self.source / self.place / "lineage.json").write_text(self.found.as_json(), encoding="utf-8")

    def _shown(self) -> None:
        """Pages that the study made to be looked at, as far as they are on disk."""
        made = self.pipeline.folder / "artifacts/curves"
        for name, title in SHOWN.items():
            page = made / f"{name}.md"
            missing = f"`{self.pipeline.relative(page)}` is not on disk. {FETCH}"
            text = page.read_text(encoding="utf-8") if page.is_file() else f"# {title}\n\n{_warning(missing)}"
            maker = f"Made by {self._maker(page)}." if page.is_file() else ""
            self._page(f"curves/{name}.md", text, maker)
        if made.is_dir():
            pages = shutil.ignore_patterns("*.md")
            shutil.copytree(made, self.source / "extra" / self.place / "curves", ignore=pages)

    def _notebooks(self) -> None:
        stages = [stage for stage in self.stages.values() if stage["notebook"]]
        stages.sort(key=lambda stage: stage["notebook"]["path"])
        executed = []
        for stage in stages:
            row = stage["notebook"]
            if row["on_disk"] != ABSENT:
                path, copy = self.pipeline.root / row["path"], self.source / row["path"]
                original = self.pipeline.root / "notebooks" / f"{path.stem.split('-')[0]}.ipynb"
                made = f"stage {self._links([stage['stage']])}, {_state(row['on_disk'])}"
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_text(readable(path, original, f"Executed by {made}. Run: {_ran(stage)}."), encoding="utf-8")
                executed.append(f"/{Path(row['path']).with_suffix('')}")
        absent = len(stages) - len(executed)
        missing = (
            f"Missing on disk: {absent} of {len(stages)}. Get them with `dvc pull`, or make them with `dvc repro`."
        )
        rows = [(_notebook(stage["notebook"]), self._links([stage["stage"]]), stage["time"]) for stage in stages]
        self._page(
            "notebooks.md", "# Executed notebooks",
            "The study is computed in notebooks, one run a stage. These are they as they ran, with the code folded.",
            _warning(missing) if absent else "",
            _table(("notebook", "stage", "run"), rows), _toctree(executed),
        )  # fmt: skip


def _safe(name: str) -> str:
    """A path of letters that links, lists and file systems take as they are; different for different ones."""
    return quote(name, safe="/@").replace("%", "=")


def _stage_page(name: str) -> str:
    return f"stages/{_safe(name.replace('/', '-'))}.md"


def _plain(text: str) -> str:
    """Text as Markdown, with its `code` and nothing else that Markdown takes for its own."""
    parts = re.split(r"(`[^`\n]+`)", " ".join(text.split()))
    return "".join(part if i % 2 else re.sub(r"([\\`*_{}<>\[\]#|~$&])", r"\\\1", part) for i, part in enumerate(parts))


def _code(text: str) -> str:
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{pad}{' '.join(text.split())}{pad}{ticks}"


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    long = f"<details><summary>{len(text)} characters</summary><code>{_plain(text)}</code></details>"
    return _code(text) if len(text) < 300 else long


def _state(state: str) -> str:
    return f'<span class="state {state}">{WORDS[state]}</span>'


def _row(row: dict[str, str]) -> tuple[str, str, str]:
    return _code(row["path"]), _state(row["on_disk"]), _code(row["md5"])


def _time(seconds: float) -> str:
    return f"{seconds:.0f}\u00a0s" if seconds < 100 else f"{seconds / 60:.0f}\u00a0min"


def _ran(stage: dict[str, Any]) -> str:
    if not (run := stage["run"]):
        return "no record of the run" if stage["command"] else ""
    cpus, started = (
        f"{text} {run[key]}" if key in run else "" for key, text in (("cpus", ", CPUs"), ("started", "; started"))
    )
    return f"{stage['time']} on {_plain(run['platform'])}{cpus}, Python {run['python']}{started}"


def _commit(stage: dict[str, Any]) -> str:
    commit = stage["commit"]
    return f"{_code(commit['hash'][:10])} of {commit['date']}" if commit else _plain(stage["no_commit"])


def _notebook(row: dict[str, str]) -> str:
    if row["on_disk"] == ABSENT:
        return f"{_code(row['path'])} is not on disk. {FETCH}"
    return f"[{_plain(row['path'])}](/{quote(row['path'])}) {_state(row['on_disk'])}"


def _facts(facts: Mapping[str, str | None]) -> str:
    return "\n".join(f"- {name}: {text}" for name, text in facts.items() if text)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head, lines = list(head), [[re.sub(r"\\?\|", r"\\|", cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines)) if lines else "None."


def _warning(text: str) -> str:
    return f":::{{warning}}\n{text}\n:::"


def _toctree(names: Iterable[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", "", *names, "```"])
