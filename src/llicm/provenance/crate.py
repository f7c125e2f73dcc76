# SPDX-License-Identifier: Apache-2.0
"""The study as a Workflow Run RO-Crate, to deposit: what was run, on what, and what came out, in a folder or ZIP file.

The crate conforms to RO-Crate 1.1, Workflow RO-Crate 1.0 and the Process, Workflow and Provenance Run Crate profiles
0.5. Its main entity is dvc.yaml; each stage is a step, its notebook the tool, and its run an action with the inputs,
parameter values and outputs that dvc.lock has. What is small is in the crate: code, parameters, results, executed
notebooks, the released weights, and photos whose folder states their licence. Larger outputs are described by their
MD5 under ids that start with ``#``, and are not shipped.
"""

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from rocrate.model.contextentity import ContextEntity
from rocrate.rocrate import ROCrate

from llicm import __version__
from llicm.errors import UserError
from llicm.files import atomic_folder, atomic_path
from llicm.provenance.git import ask, head, names
from llicm.provenance.lineage import Pipeline, Stage, members, stage_texts

METADATA = "ro-crate-metadata.json"
PROJECT = "#llicm"  # who publishes the crate: no person is known
LICENCE = "https://spdx.org/licenses/Apache-2.0"
COMPLETED = "http://schema.org/CompletedActionStatus"
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/ro/wfrun/provenance/0.5": "Provenance Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
# Spelt out, so that no second context has to be fetched. Those of Bioschemas are what RO-Crate 1.1's own context has
# and the profiles ask for; later contexts have others, and a reader may have only one of those.
TERMS = {
    "md5": "https://w3id.org/ro/terms/workflow-run#md5",
    "sha256": "https://w3id.org/ro/terms/workflow-run#sha256",
    "buildInstructions": "https://codemeta.github.io/terms/buildInstructions",
    "ComputationalWorkflow": "https://bioschemas.org/ComputationalWorkflow",
    "FormalParameter": "https://bioschemas.org/FormalParameter",
    "input": "https://bioschemas.org/ComputationalWorkflow#input",
    "output": "https://bioschemas.org/ComputationalWorkflow#output",
}
# What is shipped: of git, from the repository and from the folder of the study; and these outputs where they are there.
COMMON = ("README.md", "LICENSE", "Makefile", "pyproject.toml", "requirements.txt", "environment.yml", "docs",
          "notebooks", "src")  # fmt: skip
OWN = ("dvc.yaml", "dvc.lock", "params.yaml", "results")
OUTPUTS = ("build", "executed", "artifacts/release")
LICENCES = ("SOURCES.md", "LICENSE", "LICENSE.md", "LICENSE.txt")
# A table of our own: that of the system differs from one machine to the next.
FORMATS = {
    ".csv": "text/csv", ".dvc": "application/yaml", ".html": "text/html", ".ipynb": "application/x-ipynb+json",
    ".jpg": "image/jpeg", ".json": "application/json", ".lock": "application/yaml", ".md": "text/markdown",
    ".parquet": "application/vnd.apache.parquet", ".png": "image/png", ".py": "text/x-python", ".svg": "image/svg+xml",
    ".toml": "application/toml", ".txt": "text/plain", ".yaml": "application/yaml", ".yml": "application/yaml",
    "": "text/plain",
}  # fmt: skip
ENVIRONMENTS = {
    "environment.yml": ("https://docs.conda.io/projects/conda/en/latest/user-guide/tasks/manage-environments.html",
                        "Conda environment file"),
    "requirements.txt": ("https://pip.pypa.io/en/stable/reference/requirements-file-format/",
                         "pip requirements file"),
}  # fmt: skip


def export_crate(
    root: str | os.PathLike, out: str | os.PathLike, profile: str | None = None, about: Mapping[str, str] | None = None
) -> Path:
    """Write the crate of a study that has been run.

    The same study gives the same bytes: ids are paths and names, dates those of the commit and of the recorded runs.

    Args:
        root: the repository. profile: name of a folder below profiles/; None for the default study.
        out: folder to make, or file if it ends in ``.zip``; replaced if it is a crate of this function, untouched
            until the new one is complete.
        about: name of a parameter, whole or up to its first dot -> its description.

    Returns:
        `out`.

    Raises:
        UserError: `out` is something else; a file differs from dvc.lock or is missing; there is no dvc.lock or commit.
    """
    out, pipeline = Path(out), Pipeline(root, profile)
    _check_target(out)
    _verify(pipeline)
    crate = _Study(pipeline, about or {}).crate

    def write(folder: Path) -> None:
        crate.write(folder)
        _verify(Pipeline(root, profile))  # a stage may have run while files were copied

    if out.suffix.lower() != ".zip":
        with atomic_folder(out) as new:
            write(new)
        return out
    with atomic_path(out) as file, tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        write(Path(folder, "new"))
        _zip(Path(folder, "new"), file)
    return out


def _check_target(out: Path) -> None:
    """Only a crate of ours, and with nothing added to it, may be replaced."""
    if not out.exists():
        return
    held, names = {}, []
    try:
        if out.is_dir():
            names = [file.relative_to(out).as_posix() for file in out.rglob("*") if not file.is_dir()]
            held = json.loads((out / METADATA).read_text(encoding="utf-8"))
        else:
            with zipfile.ZipFile(out) as archive:
                names = [name for name in archive.namelist() if not name.endswith("/")]
                held = json.loads(archive.read(METADATA))
        entities = {unquote(entity["@id"]): entity for entity in held["@graph"]}
        ours = entities[METADATA]["sdPublisher"] == {"@id": PROJECT}
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        ours = False
    if not ours or out.is_dir() == (out.suffix.lower() == ".zip"):
        raise UserError(f"{out}: exists already and is no crate of `llicm export-crate`; remove it or choose another.")
    added = sorted(set(names) - set(entities))
    if added:
        raise UserError(f"{out}: the crate there also holds {added[0]}, which would be lost; move that away first.")


def _verify(pipeline: Pipeline) -> None:
    """What is on disk must be what the lock says; what stages made need not be there."""
    for item, _ in pipeline.differences(pipeline.own):
        if item.found is None and pipeline.makers(pipeline.root / item.what):
            continue
        state = "is not there" if item.found is None else "differs"
        audit = f"llicm audit --profile {pipeline.profile}" if pipeline.profile else "llicm audit"
        raise UserError(
            f"{item.what}: {state}, but {pipeline.relative(item.stage.lock)} has it for {item.stage.name}; run "
            f"`{audit}` to see what to do."
        )


def _tracked(root: Path, places: Iterable[Path]) -> set[Path]:
    """The files of git below these places. A crate has no links: one stands for the file, or those in the folder, that
    it leads to; one to what was not fetched or made is left out."""
    found: set[Path] = set()
    for path in (root / name for name in names(root, "ls-files", "-z", "--", *map(str, places))):
        if not path.is_symlink():
            found.add(path)
            continue
        target = path.resolve()
        if not target.is_relative_to(root):
            raise UserError(f"{path}: a link to {target}, outside of the repository; put a copy there, and commit it.")
        if target.is_dir():
            inside = (root / name for name in names(root, "ls-files", "-z", "--", str(target)))
            found |= {path / file.relative_to(target) for file in inside if file.is_file() and not file.is_symlink()}
        elif target.is_file():
            found.add(path)
    return found


def _zip(folder: Path, file: Path) -> None:
    """Pack a folder; names in order and no dates, so that the bytes depend on the files alone."""
    names = {path.relative_to(folder).as_posix() + "/" * path.is_dir(): path for path in folder.rglob("*")}
    with zipfile.ZipFile(file, "w") as archive:
        for name, path in sorted(names.items()):
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (0o40755 << 16) | 0x10 if path.is_dir() else 0o100644 << 16
            entry.compress_type = zipfile.ZIP_STORED if path.is_dir() else zipfile.ZIP_DEFLATED
            archive.writestr(entry, b"" if path.is_dir() else path.read_bytes())


def _known(**values: object) -> dict[str, Any]:
    """Properties without those that are unknown, and the only one of a list by itself, as RO-Crate 1.1 wants it."""
    return {
        key: value[0] if isinstance(value, list) and len(value) == 1 else value
        for key, value in values.items()
        if value is not None and value != []
    }


class _Study:
    """Makes the entities of a study, into `crate`."""

    def __init__(self, pipeline: Pipeline, about: Mapping[str, str]):
        self.pipeline, self.root, self.folder, self.about = pipeline, pipeline.root, pipeline.folder, about
        self.sources = [stage for stage in pipeline.own if not stage.command]
        self.stages = _in_order(pipeline)
        self.runs = {stage.name: stage.run or {} for stage in self.stages}
        self.locked = {path: md5 for stage in pipeline.own for path, md5 in (stage.deps | stage.outs).items()}
        self.sizes = {path: size for stage in pipeline.own for path, size in stage.sizes.items()}
        last = head(pipeline.root, "%cI")
        if last is None:
            raise UserError(f"{pipeline.root}: no commit there; the crate names the one that it is of: commit first.")
        self.commit, self.date = last
        self.crate = ROCrate(version="1.1")
        self.crate.metadata.extra_terms.update(TERMS)
        self.refs: dict[Path, dict[str, str]] = {}
        self.tools = {stage.name: self._tool(stage) for stage in self.stages}
        self._files()
        self._context()
        self._workflow()

    # --- helpers ---

    def add(self, identifier: str, kind: str | list[str], **values: object) -> dict:
        """Add an entity that is no file of the crate; gives the reference to it."""
        self.crate.add(ContextEntity(self.crate, identifier, {"@type": kind, **_known(**values)}))
        return {"@id": identifier}

    def extend(self, ref: dict, **values: object) -> None:
        """Add properties to an entity."""
        for key, value in _known(**values).items():
            self.crate.get(ref["@id"])[key] = value

    def ref(self, path: Path) -> dict:
        """The reference to a file or folder. One that is not shipped is described by what the lock says of it."""
        if path in self.refs:
            return self.refs[path]
        name, md5, maker = self.pipeline.relative(path), self.locked.get(path), self.pipeline.producer(path)
        folder = path.is_dir() or (md5 or "").endswith(".dir")
        parts, made = [self.refs[file] for file in self.inside.get(path, ())], self._made(path)
        said = [
            f"Made by stage {maker.name}." if maker and maker.command else "",
            "" if parts else "Not in this crate; the pipeline makes it again." if made else "Not in this crate.",
            "Its MD5 is that of DVC's list of its files." if folder and md5 else "",
        ]
        whole = next((place for place in path.parents if maker and place in maker.outs), None)
        values = _known(
            name=name, md5=md5, contentSize=None if path not in self.sizes else str(self.sizes[path]), hasPart=parts,
            description=" ".join(filter(None, said)) or None, encodingFormat=None if folder else _format(path),
            isPartOf=None if whole is None or parts else self.ref(whole),
        )  # fmt: skip
        if parts:
            ref = {"@id": self.crate.add_dataset(dest_path=name, properties=values).id}
        else:
            ref = self.add(f"#{quote(name)}", "Dataset" if folder else "File", **values)
        self.refs[path] = ref
        return ref

    def _tool(self, stage: Stage) -> Path | None:
        """What a stage runs: its notebook, as it is in git, or the program of its command."""
        names = [Path(os.path.normpath(stage.folder / word)) for word in stage.command.split()]
        if stage.source is not None:
            names.insert(0, self.root / "notebooks" / stage.source.name)
        return next((path for path in names if path.is_file() and path.is_relative_to(self.root)), None)

    # --- entities ---

    def _files(self) -> None:
        """All files that are shipped."""
        self.places = [*(self.root / name for name in COMMON), *(self.folder / name for name in OWN)]
        self.places += [*(stage.lock for stage in self.sources), *filter(None, self.tools.values())]
        self.shipped = _tracked(self.root, self.places)
        changed = ask(self.root, "status", "--porcelain=v1", "-z", "-uno", "--", *map(str, self.places))
        # Code may have run that git does not know.
        used = {path for stage in self.stages for path in self._code(stage) if self._ours(path)}
        used = {file for path in used for file in ([path] if path.is_file() else members(path))}
        self.version = self.commit + ("-dirty" if changed or used - self.shipped else "")
        self.shipped |= used
        for stage in self.pipeline.own:
            for out in stage.outs:
                if any(out.is_relative_to(self.folder / name) for name in OUTPUTS) or self._licence(out):
                    self.shipped |= {out} if out.is_file() else set(members(out))
        if self.folder / "dvc.yaml" not in self.shipped:
            raise UserError(f"{self.folder / 'dvc.yaml'}: not in git, but the crate is about that workflow; commit it.")
        self.inside: dict[Path, list[Path]] = {}  # folder -> the shipped files below it
        for path in sorted(self.shipped):
            if not path.is_file():
                raise UserError(f"{self.pipeline.relative(path)}: not there, but in git; restore it by `git checkout`.")
            for place in path.parents:
                self.inside.setdefault(place, []).append(path)
            data, kind = path.read_bytes(), ["File"]
            if path in self.tools.values() or path == self.folder / "dvc.yaml":
                kind.append("SoftwareSourceCode")
            if path == self.folder / "dvc.yaml":
                kind += ["ComputationalWorkflow", "HowTo"]
            name = self.pipeline.relative(path)
            properties = _known(
                name=name, contentSize=str(len(data)), sha256=hashlib.sha256(data).hexdigest(),
                md5=hashlib.md5(data).hexdigest(), encodingFormat=_format(path),
            )  # fmt: skip
            properties["@type"] = kind if len(kind) > 1 else kind[0]
            self.refs[path] = {"@id": self.crate.add_file(path, dest_path=name, properties=properties).id}

    def _licence(self, folder: Path) -> Path | None:
        """The file in a folder of photos that states their licence."""
        photos = any(folder in stage.outs for stage in self.sources)
        return next((folder / name for name in LICENCES if photos and (folder / name).is_file()), None)

    def _context(self) -> None:
        """The crate as a whole, its licences, and who and what made it."""
        root = self.crate.root_dataset
        self.home = self.refs.get(self.root / "README.md")
        self.agent = self.add(
            PROJECT, "Organization", name="llicm", description="The project that made this study.", url=self.home
        )
        licence = self.add(
            LICENCE, "CreativeWork", name="Apache License 2.0", url=LICENCE,
            description="Of everything here that does not state a licence of its own.",
        )  # fmt: skip
        for identifier, name in PROFILES.items():
            self.add(identifier, "CreativeWork", name=name, version=identifier.rsplit("/", 1)[-1])
        profile = f" ({self.pipeline.profile})" if self.pipeline.profile else ""
        root["name"] = (_heading(self.root / "README.md") or "A reproducible study") + profile
        root["description"] = (
            "The DVC pipeline of the study, its code, parameters, results, executed notebooks and released weights, "
            "and the run that made them. Larger outputs are described by their MD5 and are not included."
        )
        root["datePublished"] = self.date
        root["license"] = licence
        root["author"] = root["publisher"] = self.agent
        root["conformsTo"] = [{"@id": identifier} for identifier in PROFILES]
        descriptor = self.crate.metadata
        descriptor["conformsTo"] = [{"@id": "https://w3id.org/ro/crate/1.1"}, {"@id": list(PROFILES)[-1]}]
        descriptor["sdPublisher"] = self.agent
        descriptor["description"] = f"Written by llicm {__version__}, `llicm export-crate`."
        if self.home:
            self.extend(self.home, about={"@id": "./"})
        for stage in self.sources:
            for out in stage.outs:
                terms = self._licence(out)
                if terms:
                    for path in (out, *(path for path in sorted(members(out)) if path != terms)):
                        self.extend(self.ref(path), license=self.refs[terms])
        for name, (identifier, title) in ENVIRONMENTS.items():
            if self.root / name in self.refs:
                self.add(identifier, "WebPage", name=title, url=identifier)
                self.extend(self.refs[self.root / name], conformsTo={"@id": identifier})

    def _workflow(self) -> None:
        """The workflow with its parameters and steps, and its run with those of the steps."""
        self.values, self.inputs, self.outputs = self._values(), self._inputs(), self._outputs()
        tools, steps, actions, controls = self._steps()
        workflow = self.refs[self.folder / "dvc.yaml"]
        language = self.add(
            "#dvc.yaml-language", "ComputerLanguage", name="DVC pipeline", alternateName="dvc.yaml",
            url="https://dvc.org/doc/user-guide/project-structure/dvcyaml-files",
        )  # fmt: skip
        form = "https://bioschemas.org/profiles/ComputationalWorkflow/1.0-RELEASE"
        self.add(form, "CreativeWork", name="Bioschemas ComputationalWorkflow", version="1.0-RELEASE")
        slots = [{"@id": f"#parameter/{key}"} for key in dict.fromkeys(key for key, _ in self.values)]
        self.extend(
            workflow, programmingLanguage=language, version=self.version, url=self.home, creator=self.agent,
            license={"@id": LICENCE}, conformsTo={"@id": form}, step=steps, hasPart=tools,
            input=[*slots, *self.inputs.values()], output=list(self.outputs.values()),
            buildInstructions=[self.refs[path] for name in ENVIRONMENTS if (path := self.root / name) in self.refs],
        )  # fmt: skip
        times = _times(self.runs.values())
        given = [path for path in (*self.inputs, self.folder / "params.yaml") if path in self.locked]
        whole = self.add(
            "#run", "CreateAction", name="Run of the study", instrument=workflow, agent=self.agent,
            description="dvc repro: from the start of the first stage to the end of the last.",
            object=[*map(self.ref, given), *self.values.values()], result=list(map(self.ref, self.outputs)),
            actionStatus=COMPLETED, **times,
        )  # fmt: skip
        versions = {run["libraries"]["dvc"] for run in self.runs.values() if "dvc" in run.get("libraries", {})}
        engine = self.add(
            "https://dvc.org/", "SoftwareApplication", name="DVC", url="https://dvc.org/",
            softwareVersion=", ".join(sorted(versions)) or None,
        )  # fmt: skip
        organised = self.add(
            "#organize", "OrganizeAction", name="DVC running the pipeline", instrument=engine, agent=self.agent,
            object=controls, result=whole, **times,
        )  # fmt: skip
        self.crate.root_dataset["mainEntity"] = workflow
        self.crate.root_dataset["mentions"] = [whole, *actions, organised]
        self._records(actions)

    def _steps(self) -> tuple[list[dict], list[dict], list[dict], list[dict]]:
        """What the stages run, the stages, their runs, and DVC's control of those."""
        texts, environments = stage_texts(self.folder), self._environments()
        tools: dict[str, dict[str, dict[str, None]]] = {}
        steps, actions, controls = [], [], []
        for position, stage in enumerate(self.stages):
            name, run = stage.name, self.runs[stage.name]
            tool = self._tool_entity(stage)
            # Several stages may run one tool: dictionaries, as sets that keep their order.
            about = tools.setdefault(tool["@id"], {"input": {}, "output": {}, "softwareRequirements": {}})
            about["input"] |= {f"#parameter/{key}": None for key in stage.params}
            about["input"] |= {self.inputs[path]["@id"]: None for path in stage.deps if path in self.inputs}
            about["output"] |= {self.outputs[path]["@id"]: None for path in stage.outs if path in self.outputs}
            code = [*environments[name], *map(self.ref, self._code(stage)), *self._packages(stage)]
            about["softwareRequirements"] |= {ref["@id"]: None for ref in code if ref != tool}
            step = self.add(
                f"#step/{name}", "HowToStep", name=name, position=str(position), workExample=tool,
                description=texts.get(name.split("@")[0]),
            )  # fmt: skip
            given = [self.values[key, _text(value)] for key, value in stage.params.items()]
            action = self.add(
                f"#run/{name}", "CreateAction", name=f"Run of stage {name}", instrument=tool, agent=self.agent,
                description=_description(stage, run), object=[*map(self.ref, self._needed(stage)), *given],
                result=list(map(self.ref, stage.outs)), actionStatus=COMPLETED, **_times([run]),
            )  # fmt: skip
            control = self.add(
                f"#control/{name}", "ControlAction", name=f"DVC running stage {name}", instrument=step, object=action
            )
            steps.append(step)
            actions.append(action)
            controls.append(control)
        for identifier, about in tools.items():
            lists = {key: [{"@id": name} for name in names] for key, names in about.items()}
            self.extend({"@id": identifier}, version=self.version, url=self.home, **lists)
        return [{"@id": identifier} for identifier in tools], steps, actions, controls

    def _code(self, stage: Stage) -> list[Path]:
        """The code of a stage: its inputs below src/ that no stage made, and the modules of its manifest."""
        named = (self.root / item.what for item in self.pipeline.items(stage) if item.kind == "code")
        return [path for path in named if path.exists() and (path not in stage.deps or self._is_code(path))]

    def _packages(self, stage: Stage) -> list[dict]:
        """The packages of a stage's manifest."""
        found = []
        for item in self.pipeline.items(stage):
            if item.kind == "package":
                url = f"https://pypi.org/project/{quote(item.what)}/{quote(item.expected)}/"
                known = self.crate.get(url) is not None
                about = {"name": item.what, "softwareVersion": item.expected, "url": url}
                found.append({"@id": url} if known else self.add(url, "SoftwareApplication", **about))
        return found

    def _records(self, actions: list[dict]) -> None:
        """Say which of these runs the published record describes; a later one may have its own on this machine."""
        path = self.folder / "results" / "timing" / "stages.json"
        if path in self.refs:
            published = json.loads(path.read_text(encoding="utf-8"))
            about = [action for action, stage in zip(actions, self.stages, strict=True)
                     if self.runs[stage.name] and published.get(stage.name) == self.runs[stage.name]]  # fmt: skip
            self.extend(self.refs[path], about=about, description="Seconds, host and library versions of the runs.")

    def _values(self) -> dict[tuple[str, str], dict]:
        """Parameter values, by name and JSON text. Stages have one value of a parameter, unless not all were rerun."""
        found: dict[tuple[str, str], dict] = {}
        seen = {(key, _text(value)): value for stage in self.stages for key, value in stage.params.items()}
        for name, text in sorted(seen):
            value = seen[name, text]
            count = sum(other == name for other, _ in found)
            if not count:
                self.add(
                    f"#parameter/{name}", "FormalParameter", name=name, additionalType=_kind(value),
                    description=self.about.get(name, self.about.get(name.split(".")[0])),
                )  # fmt: skip
            found[name, text] = self.add(
                f"#value/{name}" + (f"-{count + 1}" if count else ""), "PropertyValue", name=name,
                value=text if isinstance(value, (dict, list)) or value is None else value,
                exampleOfWork={"@id": f"#parameter/{name}"},
            )  # fmt: skip
        return found

    def _inputs(self) -> dict[Path, dict]:
        """Data that the workflow starts from, as parameters of it."""
        taken = dict.fromkeys(path for stage in self.stages for path in stage.deps)
        return {path: self._slot(path) for path in taken if not self._made(path) and not self._ours(path)}

    def _outputs(self) -> dict[Path, dict]:
        """What no stage takes further, as parameters of the workflow."""
        used = {path for stage in self.stages for path in stage.deps}
        above = used | {folder for path in used for folder in path.parents}
        made = [path for stage in self.stages for path in stage.outs]
        return {path: self._slot(path) for path in made if path not in above and not used & set(path.parents)}

    def _slot(self, path: Path) -> dict:
        name, ref = self.pipeline.relative(path), self.ref(path)
        kind = "Dataset" if self.crate.get(ref["@id"]).type == "Dataset" else "File"
        slot = self.add(f"#slot/{quote(name)}", "FormalParameter", name=name, additionalType=kind)
        self.extend(ref, exampleOfWork=slot)
        return slot

    def _environments(self) -> dict[str, list[dict]]:
        """Machine and libraries of the run of each stage, none where not recorded; equal ones are one entity."""
        found: dict[str, dict] = {}
        by_stage: dict[str, list[dict]] = {}
        for name, run in self.runs.items():
            about = {key: run[key] for key in ("platform", "processor", "cpus", "python", "libraries") if key in run}
            text = json.dumps(about, sort_keys=True)
            if about and text not in found:
                found[text] = self.add(
                    f"#environment/{len(found) + 1}", "SoftwareApplication", name="Python with libraries",
                    softwareVersion=about.get("python"), operatingSystem=about.get("platform"),
                    processorRequirements=f"{about.get('processor')}, {about.get('cpus')} CPUs",
                    softwareRequirements=[f"{lib}=={v}" for lib, v in sorted(about.get("libraries", {}).items())],
                    url="https://www.python.org/",
                )  # fmt: skip
            by_stage[name] = [found[text]] if about else []
        return by_stage

    def _tool_entity(self, stage: Stage) -> dict:
        path = self.tools[stage.name]
        if path in self.refs:
            return self.refs[path]
        identifier = f"#tool/{stage.name.split('@')[0]}"
        return self.add(identifier, "SoftwareApplication", name=stage.command.replace("\n", " "))

    def _made(self, path: Path) -> bool:
        """Whether stages made it or fill it, and not the user."""
        return any(maker.command for maker in self.pipeline.makers(path))

    def _ours(self, path: Path) -> bool:
        """Whether it belongs to what is shipped of the repository."""
        return any(path.is_relative_to(place) for place in self.places)

    def _is_code(self, path: Path) -> bool:
        return path.is_relative_to(self.root / "src") and not self._made(path)

    def _needed(self, stage: Stage) -> list[Path]:
        """Inputs of a stage other than code; in place of a folder that several stages fill, what they put there."""
        needed = [self.pipeline.parts(path) or [path] for path in stage.deps if not self._is_code(path)]
        return [path for paths in needed for path in paths]


def _in_order(pipeline: Pipeline) -> list[Stage]:
    """Stages with a command, each after those whose outputs it takes."""
    stages = [stage for stage in pipeline.own if stage.command]
    graph = {
        stage: [maker for path in stage.deps for maker in pipeline.makers(path) if maker in stages] for stage in stages
    }
    return list(TopologicalSorter(graph).static_order())


def _heading(path: Path) -> str | None:
    """The first heading of a Markdown file, if it is there."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((line.removeprefix("# ").strip() for line in lines if line.startswith("# ")), None)


def _format(path: Path) -> str:
    return FORMATS.get(path.suffix.lower(), "application/octet-stream")


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _kind(value: object) -> str:
    kinds = {bool: "Boolean", int: "Integer", float: "Float", dict: "PropertyValue", list: "PropertyValue"}
    return kinds.get(type(value), "Text")


def _description(stage: Stage, run: dict) -> str:
    if "seconds" not in run:
        return stage.command
    host = f"{run.get('platform')}, {run.get('processor')}, {run.get('cpus')} CPUs, Python {run.get('python')}"
    return f"{stage.command} ({run['seconds']} s on {host})"


def _times(runs: Iterable[dict]) -> dict[str, str]:
    """Start of the first and end of the last of these runs, in UTC; empty where no run is recorded."""
    spans = []
    for run in runs:
        if "started" in run and "seconds" in run:
            start = datetime.fromisoformat(run["started"])
            spans.append((start, start + timedelta(seconds=round(run["seconds"]))))
    if not spans:
        return {}
    start, end = min(start for start, _ in spans), max(end for _, end in spans)
    return {"startTime": start.isoformat(), "endTime": end.isoformat()}
