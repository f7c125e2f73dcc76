# SPDX-License-Identifier: Apache-2.0
"""A place for every stage of a pipeline in a picture: columns by depth, stages of one kind in one box.

networkx thins out the arrows; grandalf, which draws DVC's `dvc dag`, puts boxes in layers with few crossings.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import networkx as nx
from grandalf.graphs import Edge, Vertex, graph_core
from grandalf.layouts import SugiyamaLayout, VertexViewer

ROW, HEAD, PAD = 20, 24, 8  # heights: of a stage in a box, of the box's title; space around the text
GAP_X, GAP_Y, LANE, MARGIN = 38, 22, 12, 6
SWEEPS = 16
LETTER = 6.9  # width of a letter at 12 px, more or less


@dataclass(eq=False)
class Box:
    """Stages of one kind; x and y are its upper left corner.

    Attributes:
        title: of a box of several stages, else "". stages: names. labels: what is written, a line a stage.
    """

    title: str
    stages: list[str]
    labels: list[str]
    x: int = 0
    y: int = 0
    width: int = 0
    height: int = 0

    def row(self, number: int) -> int:
        """Upper edge of a stage's row."""
        return self.y + (HEAD if self.title else 0) + number * ROW + PAD // 2


@dataclass
class Drawing:
    """Boxes, and arrows as SVG paths, on a sheet of this size."""

    boxes: list[Box]
    arrows: list[str] = field(default_factory=list)
    width: int = 2 * MARGIN
    height: int = 2 * MARGIN


def draw(stages: Iterable[str], inputs: Iterable[tuple[str, str]], notes: dict[str, str] | None = None) -> Drawing:
    """Lay a pipeline out, from its data at the left to its results at the right.

    An arrow that a longer way implies is left out.

    Args:
        stages: names; those of one kind differ behind an ``@``, as in DVC. inputs: (stage, stage it depends on).
        notes: name -> a few letters behind it, such as its time.
    """
    stages, notes = list(dict.fromkeys(stages)), notes or {}
    known = set(stages)
    edges = list(dict.fromkeys((maker, stage) for stage, maker in inputs if {maker, stage} <= known))
    reduced = nx.transitive_reduction(nx.DiGraph(edges))
    # In the order given: networkx takes its own from sets, which differs from run to run.
    edges = [edge for edge in edges if reduced.has_edge(*edge)]
    owner = _kinds(stages, edges)
    members: dict[str, list[str]] = {}
    for name in stages:
        members.setdefault(owner[name], []).append(name)
    boxes = {kind: _box(kind, names, notes) for kind, names in members.items()}
    drawing = Drawing(list(boxes.values()))
    if boxes:
        between = dict.fromkeys((owner[a], owner[b]) for a, b in edges if owner[a] != owner[b])
        _lay_out(drawing, [(boxes[a], boxes[b]) for a, b in between])
    return drawing


def _kinds(stages: list[str], edges: list[tuple[str, str]]) -> dict[str, str]:
    """Stage -> the box it goes into: its kind where that is shared, and where the boxes then still have an order."""
    owner = {name: name.split("@")[0] for name in stages}
    shared = list(owner.values())
    owner = {name: kind if shared.count(kind) > 1 else name for name, kind in owner.items()}
    between = nx.DiGraph((owner[a], owner[b]) for a, b in edges)
    circular = {kind for part in nx.strongly_connected_components(between) if len(part) > 1 for kind in part}
    circular |= {kind for kind, _ in nx.selfloop_edges(between)}
    return {name: name if kind in circular else kind for name, kind in owner.items()}


def _box(kind: str, names: list[str], notes: dict[str, str]) -> Box:
    title = f"{kind} ({len(names)})" if len(names) > 1 else ""
    labels = [name.split("@", 1)[1] if title else name for name in names]
    pairs = zip(labels, (notes.get(name) for name in names), strict=True)
    letters = max(len(label) + (2 + len(note) if note else 0) for label, note in pairs)
    width = round(LETTER * max(letters, len(title))) + 2 * PAD + ROW
    return Box(title, names, labels, width=width, height=(HEAD if title else 0) + ROW * len(names) + PAD)


def _lay_out(drawing: Drawing, edges: list[tuple[Box, Box]]) -> None:
    """Give boxes their places and add the arrows."""
    vertices = {box: Vertex(box) for box in drawing.boxes}
    root = Vertex(None)  # before all boxes, so that no part of the picture stands alone
    for vertex in (root, *vertices.values()):  # grandalf's layers are rows, ours are columns
        vertex.view = VertexViewer(w=vertex.data.height if vertex.data else LANE, h=1)
    ways = [Edge(vertices[a], vertices[b]) for a, b in edges]
    targets = {target for _, target in edges}
    starts = [Edge(root, vertex) for box, vertex in vertices.items() if box not in targets]
    layout = SugiyamaLayout(graph_core([root, *vertices.values()], [*ways, *starts]))
    layout.init_all(roots=[root])
    layout.xspace = GAP_Y
    layout.draw(SWEEPS)

    columns = layout.layers[1:]
    extent = [(place.view.xy[0], place.view.w / 2) for column in columns for place in column]
    top = min(middle - half for middle, half in extent) - MARGIN
    drawing.height = round(max(middle + half for middle, half in extent) - top) + MARGIN
    heights = {place: round(place.view.xy[0] - top) for column in columns for place in column}
    spans, left = [(0, 0)], MARGIN  # of the columns, by rank: left and right edge
    for column in columns:
        boxes = {box: vertex for box, vertex in vertices.items() if vertex in column}
        width = max(box.width for box in boxes)
        for box, vertex in boxes.items():
            box.x, box.y, box.width = left, heights[vertex] - box.height // 2, width
        spans.append((left, left + width))
        left += width + GAP_X
    drawing.width = left - GAP_X + MARGIN

    routes = []  # from box to box, through a lane of each column between
    for way in ways:
        first, last = (layout.grx[vertex].rank for vertex in way.v)
        routes.append([way.v[0], *(layout.ctrls[way][rank] for rank in range(first + 1, last)), way.v[1]])
    for route, y0, y1 in zip(routes, _ports(routes, heights, 0, 1), _ports(routes, heights, -1, -2), strict=True):
        rank, points, path = layout.grx[route[0]].rank, [y0, *(heights[lane] for lane in route[1:-1]), y1], ""
        for i in range(len(points) - 1):
            x0, x1 = spans[rank + i][1], spans[rank + i + 1][0]
            half = (x0 + x1) // 2
            path += (
                f"{'L' if path else 'M'}{x0} {points[i]}C{half} {points[i]} {half} {points[i + 1]} {x1} {points[i + 1]}"
            )
        drawing.arrows.append(path)


def _ports(routes: list[list], heights: dict, end: int, near: int) -> list[int]:
    """Heights of the ends of the arrows: spread about the middle of the box, in the order of where they go."""
    found = []
    for number, route in enumerate(routes):
        here = sorted((heights[other[near]], i) for i, other in enumerate(routes) if other[end] is route[end])
        step = min(14, (route[end].data.height - 10) // len(here))
        place = here.index((heights[route[near]], number)) - (len(here) - 1) / 2
        found.append(heights[route[end]] + round(step * place))
    return found
