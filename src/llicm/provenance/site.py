# SPDX-License-Identifier: Apache-2.0
"""`python -m llicm.provenance.site [OUT]`: documents, results, notebooks, lineage and API as one site by Sphinx.

It needs neither network nor server. docs/conf.py configures it, docs/menu.md is its menu. A link that leads nowhere, or
anything else that Sphinx warns of, is an error.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from llicm.errors import UserError
from llicm.files import atomic_folder
from llicm.provenance.pages import write_pages

MARKER = ".buildinfo"  # Sphinx puts it there; a folder that holds it may be replaced
FOLDERS = ("docs", "results", "profiles/*/results", "src", "slurm", "notebooks/explore")
PLAIN = "---\nmyst:\n  disable_syntax: [html_block, html_inline]\n---\n\n"  # what a run has written is no HTML
SKIP = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")


def build_site(root: str | os.PathLike, out: str | os.PathLike) -> Path:
    """Write the site of a repository.

    Args:
        root: the repository. out: folder for the pages; an earlier site there is replaced, once all is written.

    Returns:
        The front page.

    Raises:
        UserError: `out` is something else than a site, Sphinx warns of something, the study has no dvc.lock, or a
            damaged one, or a damaged notebook. An earlier site is then still there.
    """
    root, out = Path(root).resolve(), Path(out).resolve()
    empty = out.is_dir() and not any(out.iterdir())
    if out.exists() and not empty and not (out / MARKER).is_file():
        raise UserError(f"{out}: not a site that this command made; remove it, or name another folder.")
    with tempfile.TemporaryDirectory() as work, atomic_folder(out) as new:
        _gather(root, source := Path(work, "source"))
        _sphinx(source, new, Path(work, "doctrees"))
        # the document at the root is README, as everywhere
        (new / "index.html").write_text('<!DOCTYPE html><meta http-equiv="refresh" content="0; url=README.html">\n')
    return out / "index.html"


def _gather(root: Path, source: Path) -> None:
    """Copy what documents consist of and link to, beside the pages made of the studies."""
    for path in (path for pattern in FOLDERS for path in root.glob(pattern)):
        shutil.copytree(path, source / path.relative_to(root), ignore=SKIP)
    for path in (path for pattern in ("*", "profiles/*/*.yaml") for path in root.glob(pattern)):
        if path.suffix in (".md", ".yaml", ".cff", "") and path.is_file() and path.name[0] != ".":
            (source / path.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, source / path.relative_to(root))
    (source / "extra").mkdir(parents=True)
    lineage = write_pages(root, source)
    for document in source.rglob("*.md"):
        name = document.relative_to(source).as_posix()
        if not name.startswith("lineage/"):
            text = document.read_text(encoding="utf-8")
            if name in lineage:
                title = "" if text.startswith("# ") else f"# {document.stem.replace('_', ' ').capitalize()}\n\n"
                text = f"{PLAIN}{title}{text}\n[Lineage of this page](/{lineage[name]})\n"
            text = re.sub(r"(\[[+-][\d.]+,) (?=[+-])", "\\1\u00a0", text)  # an interval stays on one line
            document.write_text(_link_figures(text, os.path.dirname(name), lineage), encoding="utf-8")
    menu = source / "docs/menu.md"
    with open(source / "README.md", "a", encoding="utf-8") as file:
        file.write("\n" + menu.read_text(encoding="utf-8"))
    menu.unlink()


def _link_figures(text: str, folder: str, lineage: dict[str, str]) -> str:
    """Put a link to its lineage below each figure of a document that lies in this folder."""

    def linked(found: re.Match) -> str:
        page = lineage.get(os.path.normpath(os.path.join(folder, found[1])))
        return f"{found[0]}\n[Lineage of this figure](/{page})" if page else found[0]

    return re.sub(r"^!\[.*\]\((.*)\)$", linked, text, flags=re.MULTILINE)


def _sphinx(source: Path, out: Path, doctrees: Path) -> None:
    from sphinx.cmd.build import build_main

    arguments = ["-q", "-E", "-W", "--keep-going", "-c", f"{source}/docs", "-d", f"{doctrees}", f"{source}", f"{out}"]
    if build_main(arguments):
        raise UserError("The site was not built: see what Sphinx says above, with the document and line.")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m llicm.provenance.site", description="Write the site of a study.")
    parser.add_argument("out", nargs="?", default="report", help="folder to write to (default: report)")
    print(build_site(".", parser.parse_args(arguments).out))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
