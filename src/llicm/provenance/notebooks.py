# SPDX-License-Identifier: Apache-2.0
"""Executed notebooks as a reader wants them: with the prose that they ran without, results open, code folded."""

import warnings
from pathlib import Path

import nbformat

from llicm.errors import UserError
from llicm.provenance import audit

PROMPTS = {"parameters": "parameters by default", "injected-parameters": "parameters of this run"}
OTHER = "*The notebook in `notebooks/` has other code than the one that ran, so its text is not shown.*"


def readable(path: Path, original: Path, note: str) -> str:
    """An executed notebook for MyST-NB.

    Args:
        path: the executed notebook. original: the one with prose. note: Markdown below the title.

    Returns:
        Its JSON. Without the prose, and saying so, if the code of the original is not what ran.

    Raises:
        UserError: a notebook is damaged.
    """
    notebook = read(path)
    told = original.is_file() and _add_prose(notebook, read(original))
    head = notebook.cells.pop(0).source if told and notebook.cells[0].cell_type == "markdown" else ""
    title, _, rest = head.partition("\n") if head.startswith("# ") else ("", "", head)
    heading = f"{title.lstrip('# ')} ({path.stem})" if title else path.stem
    text = "\n\n".join(filter(None, [f"# {heading}", note, "" if told else OTHER, rest.strip()]))
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell(text, id="head"))
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = next((line.lstrip("# ") for line in cell.source.splitlines()[::-1] if line[:1] == "#"), heading)
        else:  # a picture is named by the heading that it stands under
            tags = cell.metadata.get("tags", [])
            prompt = next((PROMPTS[tag] for tag in tags if tag in PROMPTS), "code")
            shown = {"code_prompt_show": prompt, "code_prompt_hide": prompt, "image": {"alt": heading}}
            cell.metadata = nbformat.from_dict({"tags": [*tags, "hide-input"], "mystnb": shown})
    return nbformat.writes(notebook)


def read(path: Path) -> nbformat.NotebookNode:
    """A notebook of format 4.

    Raises:
        UserError: it is damaged.
    """
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
