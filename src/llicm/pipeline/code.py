# SPDX-License-Identifier: Apache-2.0
"""`code.py ROOT`, the first stage: checks params.yaml, and writes which code every other stage depends on.

In the current folder it makes

- `build/<notebook>.ipynb`: each numbered notebook reduced to its code cells, so that prose, saved outputs and editor
  metadata cause no rerun. (A git filter that strips outputs would not do: DVC hashes the file on disk, git the filtered
  one, and they disagree for ever.)
- `build/<stage>.json`, the manifest of a stage: every module that its notebook imports, directly or not, by MD5, the
  parts (codecs, restorers) that its parameters name, and the pinned versions of the packages that those import. The
  runner that executes the notebooks is left out: it decides no result.
"""

import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[0] = str(SOURCE)  # import this checkout, whatever is installed

sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]  # as in run.py

import ast  # noqa: E402
import functools  # noqa: E402
import importlib.util  # noqa: E402
import re  # noqa: E402
from collections.abc import Iterable, Iterator  # noqa: E402
from importlib import metadata  # noqa: E402

import nbformat  # noqa: E402
from packaging.utils import canonicalize_name  # noqa: E402

from llicm.errors import UserError  # noqa: E402
from llicm.files import write_atomically, write_json  # noqa: E402
from llicm.methods import NONE  # noqa: E402
from llicm.parameters import Model, Parameters, load  # noqa: E402
from llicm.provenance.lineage import digest  # noqa: E402
from llicm.provenance.pull import pull  # noqa: E402
from llicm.registry import CODECS, RESTORERS  # noqa: E402

PACKAGE = "llicm"
NOTHING = "artifacts/models/none"  # what a stage depends on that does without a model


def strip(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook's non-empty code cells and their tags, with ordinal ids and nothing else (in place)."""
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook.cells = [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
    for i, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
        cell.id, cell.outputs, cell.execution_count = f"c{i}", [], None
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def notebooks_of(folder: Path) -> dict[str, nbformat.NotebookNode]:
    """Every `[0-9]*.ipynb` in a folder, stripped, by name.

    Raises:
        UserError: no numbered notebook in the folder, or one that cannot be read.
    """
    sources = sorted(Path(folder).glob("[0-9]*.ipynb"))
    if not sources:
        raise UserError(f"{folder}: no numbered notebooks (1_….ipynb) in this folder; restore it with `git checkout`")
    stripped = {}
    for source in sources:
        try:
            stripped[source.name] = strip(nbformat.read(source, 4))
        except Exception as error:
            # nbformat raises whatever its JSON parser or its schema raises
            raise UserError(f"{source}: not a readable notebook ({type(error).__name__}); repair it") from None
    return stripped


def check_folders(parameters: Parameters, root: Path) -> None:
    """Fail early, and with the remedy, where a folder named in the parameters is not there.

    What a ``.dvc`` file beside it names is fetched, and compared where it is there: DVC, which comes to it after this
    stage, would take what it finds for the new data set.

    Raises:
        UserError: one is no folder, cannot be fetched, or is not what its ``.dvc`` file says.
    """
    given: dict[str, str | Path | None] = {
        "photos": parameters.photos, "init": root / "init" / parameters.init, "paired": parameters.paired,
        "vlm.folder": parameters.vlm.folder, "evaluate.weights": parameters.evaluate.weights,
    }  # fmt: skip
    for name, folder in given.items():
        if folder is None:
            continue
        tracked = Path(f"{Path(folder).resolve()}.dvc")
        if tracked.is_file() and tracked.is_relative_to(root):
            pull(tracked.relative_to(root), root)
        if not Path(folder).is_dir():
            null = ", or set it to null" * (name not in ("photos", "init"))
            raise UserError(f"params.yaml: '{name}' names {folder}, which is no folder; correct it{null}")


def stages_of(parameters: Parameters) -> dict[str, tuple[str, list[str]]]:
    """Stage -> its notebook, and the models whose parts it builds and the conventional codecs that it uses, by name."""
    every = list(parameters.models)
    vlm = [parameters.vlm.codec.partition("/")[0]]
    stages: dict[str, tuple[str, list[str]]] = {
        "degrade": ("1_degrade.ipynb", []),
        "vlm": ("2_vlm.ipynb", vlm),
        "figures": ("5_figures.ipynb", every),
        "release": ("6_release.ipynb", [parameters.release.model]),
    }
    stages |= {f"train@{name}": ("3_train.ipynb", [name]) for name in parameters.models}
    groups: dict[str, list[str]] = {name: [] for name in parameters.benchmark}
    for method in parameters.methods:
        groups[method.group] += sorted({*method.models, method.codec})
    return stages | {f"evaluate@{name}": ("4_evaluate.ipynb", models) for name, models in groups.items()}


def _parts(parameters: Parameters, names: Iterable[str]) -> set[str]:
    """Modules of these codecs, and of the parts that these models build or get from the models that they start from."""
    found: set[str] = set()
    queue, seen = list(names), set()
    while queue:
        name = queue.pop()
        model: Model | None = parameters.models.get(name)
        if name in seen or name in (NONE, "vlm"):
            continue
        seen.add(name)
        if model is None:  # a conventional codec; those of the package's own are in one module, which imports have
            found |= {module for module in (CODECS.module_of(name),) if module}
            continue
        queue += [file.partition("/")[0] for _, file in model.start]
        for registry, part in ((CODECS, model.codec), (RESTORERS, model.restorer)):
            if part is not None and (module := registry.module_of(part.name)):
                found.add(module)
        found |= {module for codec in model.codecs or () if (module := CODECS.module_of(codec))}
    return found


@functools.cache
def _file(module: str) -> Path | None:
    """The file of a module of this package, or None."""
    path = SOURCE / module.replace(".", "/")
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def _imports(tree: ast.AST) -> Iterator[str]:
    """Names that a program imports, those inside functions included, those for type checkers not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from _imports(node)


@functools.cache
def _imported(path: Path) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_imports(ast.parse(path.read_text(encoding="utf-8")))))


def closure(names: Iterable[str]) -> tuple[dict[str, Path], set[str]]:
    """What an import of these names brings in.

    Returns:
        Modules of this package, its folders' `__init__` included, with their files; and the other packages' names.
    """
    modules: dict[str, Path] = {}
    others: set[str] = set()
    queue = list(names)
    while queue:
        name = queue.pop()
        top = name.partition(".")[0]
        if top != PACKAGE:
            others |= set() if top in sys.stdlib_module_names else {top}
            continue
        parents = [".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 2)]
        for module in parents:
            path = _file(module)
            if path is not None and module not in modules and not module.startswith(f"{PACKAGE}.pipeline.run"):
                modules[module] = path
                queue += _imported(path)
    return modules, others


def pins(path: Path) -> dict[str, str]:
    """Versions in a requirements file, by normalised name."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", path.read_text(encoding="utf-8"), re.M)
    return {canonicalize_name(name): version for name, version in found}


def manifest(notebook: nbformat.NotebookNode, parts: Iterable[str], pinned: dict[str, str], root: Path) -> dict:
    """Modules (path in the repository -> MD5) and packages (name -> version) behind a notebook and these parts."""
    source = "\n".join(cell.source for cell in notebook.cells)
    modules, others = closure([*_imports(ast.parse(source)), *parts])
    files = {path.relative_to(root).as_posix(): path for path in modules.values()}
    files |= {p.relative_to(root).as_posix(): p for f in modules.values() if (p := f.with_suffix(".json")).is_file()}
    for part in parts:  # outside the package
        if part.partition(".")[0] != PACKAGE and (spec := importlib.util.find_spec(part)) and spec.origin:
            files[part] = Path(spec.origin)
    packages = {}
    for name in others:
        for distribution in _distributions().get(name, ()):
            key = canonicalize_name(distribution)
            packages[key] = pinned.get(key) or metadata.version(distribution)
    return {
        "modules": {name: digest(files[name]) for name in sorted(files)},
        "packages": dict(sorted(packages.items())),
    }


@functools.cache
def _distributions() -> dict[str, list[str]]:
    return {name: sorted(set(found)) for name, found in metadata.packages_distributions().items()}


def write_code(root: Path, out: Path = Path("build")) -> None:
    """Write stripped notebooks and manifests for the params.yaml of the current folder.

    Raises:
        UserError: see `llicm.parameters.load`, `check_needs`, `check_folders` and `notebooks_of`; or the disk is full.
    """
    root = Path(root).resolve()
    parameters = load("params.yaml")
    if parameters.sets or parameters.vlm.name != "mini":
        from llicm.pipeline.needs import check_needs  # loads open_clip

        check_needs(parameters)
    check_folders(parameters, root)
    notebooks = notebooks_of(root / "notebooks")
    for name, notebook in notebooks.items():
        write_atomically(out / name, (nbformat.writes(notebook) + "\n").encode())
    pinned = pins(root / "requirements.txt")
    for stage, (name, models) in stages_of(parameters).items():
        if name not in notebooks:
            raise UserError(f"{root / 'notebooks' / name}: missing, stage {stage} runs it; restore it with git")
        found = {"notebook": name, **manifest(notebooks[name], _parts(parameters, models), pinned, root)}
        write_json(found, out / f"{stage.replace('@', '-')}.json")
    write_atomically(Path(NOTHING) / "none", b"")


if __name__ == "__main__":
    try:
        write_code(Path(sys.argv[1]))
    except UserError as error:
        sys.exit(f"error: {error}")
