# SPDX-License-Identifier: Apache-2.0
"""A place for every stage of a pipeline in a picture: columns by depth, stages of one kind in one box.

networkx thins out the arrows and finds the depth; scipy's isotonic regression puts boxes beside what they are joined
to without overlaps. (Graphviz would do all this, but pip does not install its program.)
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations

import networkx as nx

__all__ = ["Box", "Drawing", "draw"]

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
    arrows: list[str]
    width: int = 0
    height: int = 0


@dataclass(eq=False)
class _Lane:
    """Where an arrow that skips columns passes one."""

    height: int = LANE
    x: int = 0
    y: int = 0
    width: int = 0


@dataclass
class _Port:
    """The ends of arrows on one side of a box, or on a lane."""

    place: Box | _Lane
    others: list = field(default_factory=list)

    def at(self, other: Box | _Lane) -> int:
        """Height of the arrow to or from `other`: spread about the middle, in the order of where they go."""
        middle = self.place.y + self.place.height // 2
        if isinstance(self.place, _Lane):
            return middle
        order = sorted(self.others, key=lambda there: (there.y + there.height / 2, there.x))
        number = next(i for i, there in enumerate(order) if there is other)
        step = min(14, (self.place.height - 10) // max(1, len(order)))
        return middle + round(step * (number - (len(order) - 1) / 2))


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
    graph = nx.DiGraph()
    graph.add_nodes_from(stages)
    # In the order given: networkx takes its own from sets, which differs from run to run.
    graph.add_edges_from(edge for edge in edges if reduced.has_edge(*edge))
    owner = _kinds(stages, graph)
    boxes = {}
    for name in stages:
        boxes.setdefault(owner[name], []).append(name)
    boxes = {kind: _box(kind, names, notes) for kind, names in boxes.items()}

    between = nx.DiGraph()
    between.add_nodes_from(boxes)
    between.add_edges_from((owner[a], owner[b]) for a, b in graph.edges if owner[a] != owner[b])
    columns: list[list] = [[boxes[kind] for kind in layer] for layer in nx.topological_generations(between)]
    joints = _joints(columns, [(boxes[a], boxes[b]) for a, b in between.edges])
    _arrange(columns, joints)
    drawing = Drawing(list(boxes.values()), [])
    _measure(columns, drawing)
    drawing.arrows = _arrows(columns, joints)
    return drawing


def _kinds(stages: list[str], graph: nx.DiGraph) -> dict[str, str]:
    """Stage -> the box it goes into: its kind where that is shared, and where the boxes then still have an order."""
    owner = {name: name.split("@")[0] for name in stages}
    shared = list(owner.values())
    owner = {name: kind if shared.count(kind) > 1 else name for name, kind in owner.items()}
    between = nx.DiGraph((owner[a], owner[b]) for a, b in graph.edges)
    circular = {kind for part in nx.strongly_connected_components(between) if len(part) > 1 for kind in part}
    circular |= {kind for kind, _ in nx.selfloop_edges(between)}
    return {name: name if kind in circular else kind for name, kind in owner.items()}


def _box(kind: str, names: list[str], notes: dict[str, str]) -> Box:
    title = f"{kind} ({len(names)})" if len(names) > 1 else ""
    labels = [name.split("@", 1)[1] if title else name for name in names]
    letters = max(
        len(label) + (2 + len(notes[name]) if notes.get(name) else 0) for name, label in zip(names, labels, strict=True)
    )
    width = round(LETTER * max(letters, len(title))) + 2 * PAD + ROW
    return Box(title, names, labels, width=width, height=(HEAD if title else 0) + ROW * len(names) + PAD)


def _joints(columns: list[list], edges: list[tuple[Box, Box]]) -> list[tuple]:
    """Pairs in neighbouring columns. Arrows from one box that skip columns share their lanes, which are added here."""
    depth = {place: number for number, column in enumerate(columns) for place in column}
    joints, lanes = [], {}
    for source, target in edges:
        before = source
        for number in range(depth[source] + 1, depth[target]):
            lane = lanes.get((source, number))
            if lane is None:
                lane = lanes[source, number] = _Lane()
                columns[number].append(lane)
                joints.append((before, lane))
            before = lane
        joints.append((before, target))
    return joints


def _middle(place: Box | _Lane) -> float:
    return place.y + place.height / 2


def _arrange(columns: list[list], joints: list[tuple]) -> None:
    """Order in each column with few crossings, then heights as near to the neighbours' as the order allows."""
    before, behind = {}, {}
    for a, b in joints:
        before.setdefault(b, []).append(a)
        behind.setdefault(a, []).append(b)
    best, fewest = [list(column) for column in columns], _crossings(columns, joints)
    for turn in range(SWEEPS):
        for column in columns[::-1] if turn % 2 else columns:
            _stack(columns)
            near = behind if turn % 2 else before
            # Stable, so that equals keep the order of the pipeline.
            column.sort(key=lambda place: _mean(near.get(place), place))
        if (count := _crossings(columns, joints)) < fewest:
            best, fewest = [list(column) for column in columns], count
    for column, order in zip(columns, best, strict=True):
        column[:] = order
    _stack(columns)
    near = {place: before.get(place, []) + behind.get(place, []) for column in columns for place in column}
    for turn in range(SWEEPS):
        for column in columns if turn % 2 else columns[::-1]:
            _settle(column, [_mean(near[place], place) - place.height / 2 for place in column])


def _mean(near: list | None, place) -> float:
    return sum(map(_middle, near)) / len(near) if near else _middle(place)


def _crossings(columns: list[list], joints: list[tuple]) -> int:
    rank = {place: number for column in columns for number, place in enumerate(column)}
    depth = {place: number for number, column in enumerate(columns) for place in column}
    pairs = combinations([(depth[a], rank[a], rank[b]) for a, b in joints], 2)
    return sum(c == d and (a - e) * (b - f) < 0 for (c, a, b), (d, e, f) in pairs)


def _stack(columns: list[list]) -> None:
    """Columns without gaps to spare, about a common middle."""
    for column in columns:
        top = -sum(place.height + GAP_Y for place in column) / 2
        for place in column:
            place.y, top = top, top + place.height + GAP_Y


def _settle(column: list, wishes: list[float]) -> None:
    """Move the places of a column as near to where they wish as their order and the gaps allow."""
    from scipy.optimize import isotonic_regression

    offsets = [0]
    for place in column[:-1]:
        offsets.append(offsets[-1] + place.height + GAP_Y)
    found = isotonic_regression([wish - offset for wish, offset in zip(wishes, offsets, strict=True)]).x
    for place, offset, start in zip(column, offsets, found, strict=True):
        place.y = float(start) + offset


def _measure(columns: list[list], drawing: Drawing) -> None:
    """Whole numbers, from the upper left corner on."""
    top = min((place.y for column in columns for place in column), default=0)
    left = MARGIN
    for column in columns:
        width = max((place.width for place in column), default=0)
        for place in column:
            place.x, place.y, place.width = left, round(place.y - top) + MARGIN, width
        left += width + GAP_X
    drawing.width = max(left - GAP_X, 0) + MARGIN
    drawing.height = max((place.y + place.height for column in columns for place in column), default=0) + MARGIN


def _arrows(columns: list[list], joints: list[tuple]) -> list[str]:
    """SVG paths, those through the same lanes in one piece each, so that every path ends in a box."""
    leaving, arriving = {}, {}
    for a, b in joints:
        leaving.setdefault(a, _Port(a)).others.append(b)
        arriving.setdefault(b, _Port(b)).others.append(a)
    before = {b: a for a, b in joints if isinstance(b, _Lane)}
    paths = []
    for a, b in joints:
        if isinstance(b, _Lane):
            continue
        way = [b, a]
        while way[-1] in before:
            way.append(before[way[-1]])
        way.reverse()
        path = ""
        for start, end in zip(way, way[1:], strict=False):
            x0, y0 = start.x + start.width, leaving[start].at(end)
            x1, y1 = end.x, arriving[end].at(start)
            half = (x0 + x1) // 2
            path += f"{'L' if path else 'M'}{x0} {y0}C{half} {y0} {half} {y1} {x1} {y1}"
        paths.append(path)
    return paths
