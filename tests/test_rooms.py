# SPDX-License-Identifier: Apache-2.0
"""The house in src/llicm: lower rooms never import upper ones, and no import goes in a circle."""

import ast
from pathlib import Path

import networkx as nx
import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"
STORIES = (
    "errors", "limits integer colour strips", "transforms", "files registry methods", "images weights parameters",
    "degradations", "data", "codec", "vlm", "restore", "framework objectives", "model", "pillow hub zoo", "training",
    "benchmark", "report", "provenance", "pipeline", "cli", "__main__",
)  # fmt: skip
HEIGHT = {room: height for height, rooms in enumerate(STORIES) for room in rooms.split()}
FREE = {"errors", "files", "provenance"}  # all that provenance may import: it serves any study


def modules(source: Path) -> dict[str, Path]:
    paths = (source / "llicm").rglob("*.py")
    names = {".".join(path.relative_to(source).with_suffix("").parts): path for path in paths}
    return {name.removesuffix(".__init__"): path for name, path in names.items()}


def imports(source: Path) -> nx.DiGraph:
    """Which module imports which, functions and blocks for type checkers included."""
    known, graph = modules(source), nx.DiGraph()
    for name, path in known.items():
        graph.add_node(name)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found = []
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: name the package in full"
                inside = [f"{node.module}.{alias.name}" for alias in node.names]
                found = [full if full in known else str(node.module) for full in inside]
            graph.add_edges_from((name, other) for other in found if other in known)
    return graph


def room(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]  # "" for the package itself, which has the version alone


def upward(graph: nx.DiGraph) -> list[tuple[str, str]]:
    edges = [(a, b) for a, b in graph.edges if room(b) and room(a) != room(b)]
    return [(a, b) for a, b in edges if not room(a) or HEIGHT[room(b)] >= HEIGHT[room(a)]]


def circles(graph: nx.DiGraph) -> list[set[str]]:
    return [found for found in nx.strongly_connected_components(graph) if len(found) > 1]


def test_every_module_is_in_a_room():
    rooms = {room(module) for module in modules(SOURCE)} - {""}
    assert rooms == set(HEIGHT)


def test_lower_rooms_import_no_upper_ones():
    assert upward(imports(SOURCE)) == []


def test_no_import_goes_in_a_circle():
    graph = imports(SOURCE)
    assert circles(graph) == []
    rooms = nx.DiGraph((room(a), room(b)) for a, b in graph.edges if room(a) != room(b))
    assert circles(rooms) == []


def test_provenance_serves_any_study():
    edges = [(a, b) for a, b in imports(SOURCE).edges if room(a) == "provenance" and room(b)]
    assert {room(b) for _, b in edges} == FREE
    text = "".join(path.read_text() for path in (SOURCE / "llicm/provenance").glob("*.py"))
    assert "import torch" not in text


@pytest.mark.parametrize(
    ("at", "line", "found"),
    [
        ("codec/rate.py", "def f():\n    from llicm.training import loop\n", "upward"),
        ("files.py", "from llicm import images\n", "upward"),
        ("methods.py", "import llicm.parameters\n", "upward"),
        ("vlm/clip.py", "from llicm.vlm.conditioner import Conditioner\n", "circles"),
    ],
)
def test_these_tests_would_tell(tmp_path, at, line, found):
    for path in modules(SOURCE).values():
        copy = tmp_path / path.relative_to(SOURCE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text(encoding="utf-8"))
    file = tmp_path / "llicm" / at
    file.write_text(f"{file.read_text()}\n{line}")
    assert {"upward": upward, "circles": circles}[found](imports(tmp_path))
