# SPDX-License-Identifier: Apache-2.0
"""A pipeline as a picture in SVG: columns by depth, stages of one kind in one box, each with a link to its page."""

from collections.abc import Callable, Iterable, Mapping
from html import escape

import networkx as nx

ROW, HEAD, PAD = 20, 24, 8  # heights: of a stage in a box, of the box's title; space around the text
GAP_X, GAP_Y, MARGIN = 46, 22, 6
LETTER = 6.9  # width of a letter at 12 px, more or less
MARKS = {"changed": "≠ ", "absent": "○ "}  # for those who do not see the colours
TIP = """<defs><marker id="tip" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="8" markerHeight="8" orient="auto">\
<path d="M0 0.8L8 4L0 7.2z"/></marker></defs>"""


def picture(stages: Mapping[str, Mapping], links: Iterable[tuple[str, str]], url: Callable[[str], str]) -> str:
    """Lay a pipeline out, from its data at the left to its results at the right.

    An arrow that a longer way implies is left out.

    Args:
        stages: name -> `about`, `state` (a CSS class) and `time`, all text. Stages of one kind differ behind an ``@``.
        links: (stage, stage it depends on). url: gives a stage's page, by its name.

    Returns:
        An <svg> without blank lines, of the classes arrow, box, kind, stage and note.
    """
    edges = list(dict.fromkeys((maker, stage) for stage, maker in links if {maker, stage} <= set(stages)))
    reduced = nx.transitive_reduction(nx.DiGraph(edges))
    # In the order given: networkx takes its own from sets, which differs from run to run.
    edges = [edge for edge in edges if reduced.has_edge(*edge)]
    graph = nx.DiGraph(edges)
    graph.add_nodes_from(stages)
    layers = [set(names) for names in nx.topological_generations(graph)]
    owner = {name: (depth, name.split("@")[0]) for depth, layer in enumerate(layers) for name in layer}
    boxes: dict[tuple[int, str], list[str]] = {}
    for name in stages:
        boxes.setdefault(owner[name], []).append(name)
    labels = {name: name.split("@", 1)[-1] if len(boxes[owner[name]]) > 1 else name for name in stages}
    columns = [[box for box in boxes if box[0] == depth] for depth in range(len(layers))]
    heights = {box: ROW * len(names) + PAD + (HEAD if len(names) > 1 else 0) for box, names in boxes.items()}
    total = max((sum(heights[box] + GAP_Y for box in column) for column in columns), default=0)
    places, left, drawn = {}, MARGIN, []
    for column in columns:
        top = MARGIN + (total - sum(heights[box] + GAP_Y for box in column)) // 2
        letters = (len(labels[name] + stages[name]["time"]) for box in column for name in boxes[box])
        width = round(LETTER * max(10, *letters)) + 2 * PAD + 2 * ROW
        for box in column:
            places[box] = left, top, width
            named = {name: labels[name] for name in boxes[box]}
            drawn.append(_box(named, stages, url, (left, top, width, heights[box])))
            top += heights[box] + GAP_Y
        left += width + GAP_X
    arrows = []
    for a, b in dict.fromkeys((owner[a], owner[b]) for a, b in edges):
        x0, y0 = places[a][0] + places[a][2], places[a][1] + heights[a] // 2
        x1, y1 = places[b][0], places[b][1] + heights[b] // 2
        arrows.append(f'<path class="arrow" d="M{x0} {y0}C{x0 + GAP_X} {y0} {x1 - GAP_X} {y1} {x1} {y1}"/>')
    width, height = left - GAP_X + MARGIN, total - GAP_Y + 2 * MARGIN
    start = f'<svg viewBox="0 0 {width} {height}" width="{width}" style="min-width: {width * 17 // 20}px" role="img"'
    return "\n".join(
        [f'{start} aria-label="{len(stages)} stages and what each needs">', TIP, *arrows, *drawn, "</svg>"]
    )


def _box(labels: dict[str, str], stages: Mapping, url: Callable[[str], str], place: tuple[int, ...]) -> str:
    x, y, width, height = place
    parts = []
    if many := len(labels) > 1:
        kind = escape(next(iter(labels)).split("@")[0])
        parts.append(f'<rect class="box" x="{x}" y="{y}" width="{width}" height="{height}" rx="5"/>')
        parts.append(f'<text class="kind" x="{x + 10}" y="{y + 19}">{kind} ({len(labels)})</text>')
    for number, (name, label) in enumerate(labels.items()):
        stage = stages[name]
        inset, high, at = (4, ROW - 2, y + HEAD + number * ROW + PAD // 2) if many else (0, height, y)
        parts.append(
            f'<a href="{url(name)}" class="stage {stage["state"]}">'
            f"<title>{escape(name)}: {escape(stage['about'])}</title>"
            f'<rect x="{x + inset}" y="{at}" width="{width - 2 * inset}" height="{high}" rx="4"/>'
            f'<text x="{x + 10}" y="{at + high // 2 + 4}">{MARKS.get(stage["state"], "")}{escape(label)}</text>'
            f'<text class="note" x="{x + width - 10}" y="{at + high // 2 + 4}">{escape(stage["time"])}</text></a>'
        )
    return "\n".join(parts)
