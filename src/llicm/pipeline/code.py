# SPDX-License-Identifier: Apache-2.0
"""`clean.py NOTEBOOKS OUT`: the first stage of the pipeline.

Checks params.yaml in the current folder, then writes each numbered notebook reduced to its code cells. The
other stages depend on these copies, so that prose, saved outputs and editor metadata never cause a rerun. (A
git filter that strips outputs would not do: DVC hashes the file on disk, git the filtered one, and they
disagree for ever.)
"""

import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
sys.path[0] = str(SOURCE)  # run as a script: import this checkout, whatever is installed

import nbformat  # noqa: E402

from llicm.errors import UserError  # noqa: E402
from llicm.files import write_atomically  # noqa: E402
from llicm.pipeline import ROOT  # noqa: E402
from llicm.pipeline import parameters as params  # noqa: E402

__all__ = ["clean", "check_photos", "write_clean"]


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook's non-empty code cells and their tags, with ordinal ids and nothing else (in place)."""
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook.cells = [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
    for i, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
        cell.id, cell.outputs, cell.execution_count = f"c{i}", [], None
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def write_clean(notebooks: Path, out: Path) -> list[Path]:
    """Write the code of every `[0-9]*.ipynb` in `notebooks` to `out`; returns the files written.

    Raises:
        UserError: no numbered notebook in the folder, or one that cannot be read; or the disk is full.
    """
    sources = sorted(Path(notebooks).glob("[0-9]*.ipynb"))
    if not sources:
        raise UserError(
            f"{notebooks}: no numbered notebooks (1_….ipynb) in this folder; restore it with `git checkout`"
        )
    cleaned = {}
    for source in sources:
        try:
            cleaned[source.name] = clean(nbformat.read(source, 4))
        except Exception as error:
            # nbformat raises whatever its JSON parser or its schema raises
            raise UserError(f"{source}: not a readable notebook ({type(error).__name__}); repair it") from None
    for name, notebook in cleaned.items():
        write_atomically(Path(out) / name, (nbformat.writes(notebook) + "\n").encode())
    return [Path(out) / name for name in cleaned]


def check_photos(values: dict) -> None:
    """Fail early, and with the remedy, where a folder named in the parameters is not there.

    Raises:
        UserError: `photos` or `paired` is not a folder.
    """
    photos = Path(values["photos"])
    if not photos.is_dir():
        remedy = "correct 'photos' in params.yaml"
        if photos.resolve() == ROOT / "data":
            remedy = "restore it with `dvc pull data.dvc`"
        raise UserError(f"{photos}: no such folder of photos; {remedy}")
    paired = values.get("paired")
    if paired is not None and not Path(paired).is_dir():
        raise UserError(
            f"{paired}: no such folder of paired images; correct 'paired' in params.yaml, or set it to null"
        )


def main(notebooks: str, out: str) -> None:
    check_photos(params.load("params.yaml"))
    write_clean(Path(notebooks), Path(out))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
