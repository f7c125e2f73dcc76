# SPDX-License-Identifier: Apache-2.0
"""All rate-perception curves as one interactive page that needs no network, and in words which method is best where."""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby

import jinja2
import numpy as np
import pandas as pd

from llicm.benchmark.metrics import MetricInfo, metric_info
from llicm.benchmark.records import Curve, mean_curves, references
from llicm.methods import Method
from llicm.report.lines import line_styles
from llicm.report.writing import method_label

DASHES = {":": "dot", "-": "solid", "--": "dash", "-.": "dashdot"}
MARKERS = {
    "o": "circle", "s": "square", "^": "triangle-up", "v": "triangle-down", "D": "diamond", "P": "cross", "X": "x",
    "h": "hexagon", "<": "triangle-left", ">": "triangle-right",
}  # fmt: skip
PAGE = jinja2.Template("""\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Rate-perception curves</title>
<style>
body { font: 15px/1.4 sans-serif; margin: 0.5rem; background: #fff; color: #222; }
h2 { font-size: 1rem; margin: 0; } section p { margin: 0; font-size: 0.85rem; }
select { font: inherit; max-width: 100%; }
#methods { display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; margin: 0.5rem 0 1rem; font-size: 0.85rem; }
#panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: 1rem; }
section { min-width: 0; } section div { height: 17rem; }
</style>
<script>{{ library }}</script></head><body>
<h1 style="font-size: 1.2rem; margin: 0 0 0.5rem">Means over the test images</h1>
<label>Metric <select id="metric" autocomplete="off"></select></label>
<p id="legend"></p>
<details><summary>Choose among all methods</summary><div id="methods"></div></details>
<div id="panels"></div>
<script>
const study = {{ data }};
const add = (parent, tag, more) => parent.appendChild(Object.assign(document.createElement(tag), more));
const menu = document.getElementById("metric"), list = document.getElementById("methods");
const marks = {dot: "┈┈", solid: "━━", dash: "╍╍", dashdot: "━╍"};
function swatch(parent, method) {
  add(parent, "span", {textContent: " " + marks[method.line.dash], style: "color: " + method.line.color});
  add(parent, "span", {textContent: " " + method.label + " ", style: "margin-right: 0.6rem"});
}
const boxes = study.methods.map(method => {
  const label = add(list, "label");
  const box = add(label, "input", {type: "checkbox", checked: method.shown, onchange: draw, autocomplete: "off"});
  swatch(label, method);
  return box;
});
const panels = study.tasks.map(task => {
  const section = add(document.getElementById("panels"), "section");
  add(section, "h2", {textContent: task});
  return [task, add(section, "div"), add(section, "p")];
});
study.metrics.forEach(([name, label]) => add(menu, "option", {value: name, textContent: label}));
menu.onchange = draw;
function draw() {
  const metric = menu.value, shown = study.methods.filter((_, i) => boxes[i].checked);
  const legend = document.getElementById("legend");
  legend.textContent = shown.length + " of " + boxes.length + " methods:";
  shown.forEach(method => swatch(legend, method));
  for (const [task, panel, words] of panels) {
    const of = study.curves[metric][task], lines = shown.filter(method => method.name in of).map(method => (
      {...method, ...of[method.name], name: method.label, mode: "lines+markers",
       hovertemplate: "%{x:.3f} bpp, %{y:.4g} " + study.units[metric] + "<br>%{text}"}));
    const flat = study.references[metric][task].map(([label, y], i) => (
      {type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: {color: "grey", dash: "dot", width: 1},
       label: {text: label, textposition: "end", yanchor: i ? "top" : "bottom", font: {size: 10, color: "#555"}}}));
    Plotly.react(panel, lines, {
      margin: {l: 42, r: 8, t: 18, b: 38}, showlegend: false, shapes: flat, template: "plotly_white",
      xaxis: {type: "log", title: {text: "rate (bits per pixel)"}, dtick: "D2"}, hoverlabel: {namelength: -1},
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",  // a finger scrolls the page
    }, {responsive: true, displayModeBar: false});
    words.textContent = study.words[metric][task];
  }
}
draw();
// the page around this one gives it the height that it needs
new ResizeObserver(() => parent.postMessage(document.documentElement.scrollHeight, "*")).observe(document.body);
</script></body></html>
""")
SURROUNDINGS = jinja2.Template("""\
# Curves, and which method is best where

Means over {{ images }} test images, the rates of real files. {{ number }} of {{ all }} methods are shown at first: the
forms of LL-ICM that are compared with the strongest baselines, these, and others of the figures. All can be chosen, and
other metrics. This is what the first ones' curves say in {{ metric }}, over the rates that they share:

{% for task, text in words.items() %}
- **{{ task }}**: {{ text }}
{% endfor %}

Intervals, by bootstrap over the images, are in the tables of the results page.

<p><a href="curves.html">The curves alone</a></p>
<iframe class="curves" src="curves.html" title="All curves, interactive"></iframe>
<script>addEventListener("message", event => {
if (event.source === document.querySelector("iframe.curves").contentWindow)
document.querySelector("iframe.curves").style.height = event.data + 20 + "px" });</script>
""", trim_blocks=True, lstrip_blocks=True)  # fmt: skip


def curves_pages(
    records: pd.DataFrame, metrics: Sequence[str], tasks: Sequence[str], methods: Sequence[Method], first: Sequence[str]
) -> tuple[str, str]:
    """A panel a task, a curve a method, a menu for the metric, a box for each method.

    Args:
        records: as read by ``read_records``. metrics, tasks, methods: in the order of menu, panels and boxes.
        first: names of the methods that are shown at first, and told of in words. The others are compared with the
            first of them.

    Returns:
        The HTML page, about 5 MB, since it holds the library that draws it; and a page around it, curves.html, as
        Markdown. The same records give the same text.
    """
    from plotly.offline import get_plotlyjs

    curves = {metric: mean_curves(records, metric) for metric in metrics}
    flat = {metric: references(records, metric) for metric in metrics}
    infos = {metric: metric_info(metric) for metric in metrics}
    words = {
        metric: {
            task: best_where({name: found[name, task] for name in first if (name, task) in found}, infos[metric])
            for task in tasks
        }
        for metric, found in curves.items()
    }
    data = {
        "metrics": [(metric, info.axis_label) for metric, info in infos.items()],
        "units": {metric: info.unit for metric, info in infos.items()},
        "tasks": list(tasks),
        "methods": [
            {
                "name": name, "label": method_label(name), "shown": name in first,
                "line": {"color": style["color"], "dash": DASHES.get(style["linestyle"], "solid"), "width": 1.6},
                "marker": {"symbol": MARKERS.get(style["marker"], "circle"), "size": 6},
            }
            for name, style in line_styles(methods).items()
        ],
        "curves": {
            metric: {
                task: {
                    method.name: _line(found[method.name, task]) for method in methods if (method.name, task) in found
                }
                for task in tasks
            }
            for metric, found in curves.items()
        },
        "references": {
            metric: {task: [(name, round(of[task], 6)) for name, of in levels.items() if task in of] for task in tasks}
            for metric, levels in flat.items()
        },
        "words": words,
    }  # fmt: skip
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    around = SURROUNDINGS.render(
        images=records["image"].nunique(), number=len(first), all=len(methods), metric=infos[metrics[0]].label,
        words=words[metrics[0]],
    )  # fmt: skip
    return PAGE.render(library=get_plotlyjs(), data=text), around


def _line(curve: Curve) -> dict[str, list]:
    text = [f"level {level}<br>{len(curve.images)} images" for level in curve.level]
    return {"x": curve.bpp.round(6).tolist(), "y": curve.value.round(6).tolist(), "text": text}


def best_where(curves: Mapping[str, Curve], info: MetricInfo) -> str:
    """In words which of some curves is best at which rates, among those that all have, and how far above the first.

    The first stays the best where no other is ahead of it by a hundredth of its own range: that is no lead to speak of.

    Args:
        curves: by method. They are compared along straight lines between their points over the logarithm of the rate.
    """
    low, high = (
        max((c.bpp[0] for c in curves.values()), default=1),
        min((c.bpp[-1] for c in curves.values()), default=0),
    )
    if len(curves) < 2 or low >= high:
        return "these curves have no rate in common."
    rates = np.geomspace(low, high, 101)
    sign = -1 if info.lower_better else 1
    values = np.array([sign * np.interp(np.log(rates), np.log(c.bpp), c.value) for c in curves.values()])
    names, ahead = list(curves), values.max(axis=0) - values[0]
    best = np.where(ahead > 0.01 * np.ptp(values[0]), values.argmax(axis=0), 0)
    said = []
    for winner, places in groupby(range(len(rates)), key=lambda place: best[place]):
        start, *rest = places
        end = min((rest or [start])[-1] + 1, len(rates) - 1)
        lead = (values[winner] - values[0])[start : end + 1].max()
        unit = f" {info.unit}" if info.unit else ""
        more = f", up to {lead:.2f}{unit} ahead of {method_label(names[0])}" if winner else ""
        said.append(f"{method_label(names[winner])} is best from {rates[start]:.2f} to {rates[end]:.2f} bpp{more}")
    return "; ".join(said) + "."
