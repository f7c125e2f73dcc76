# SPDX-License-Identifier: Apache-2.0
"""All rate-perception curves as one interactive page that needs no network."""

from collections.abc import Sequence

import pandas as pd

from llicm.benchmark.metrics import metric_info
from llicm.benchmark.records import mean_curves, references
from llicm.methods import Method
from llicm.report.lines import line_styles
from llicm.report.writing import method_label

DASHES = {":": "dot", "-": "solid", "--": "dash", "-.": "dashdot"}
MARKERS = {
    "o": "circle", "s": "square", "^": "triangle-up", "v": "triangle-down", "D": "diamond", "P": "cross", "X": "x",
    "h": "hexagon", "<": "triangle-left", ">": "triangle-right",
}  # fmt: skip


def curves_page(records: pd.DataFrame, metrics: Sequence[str], tasks: Sequence[str], methods: Sequence[Method]) -> str:
    """One HTML page: a panel a task, a curve a method, a menu for the metric; a click on a method hides it.

    Args:
        records: as read by ``read_records``. metrics, tasks, methods: in the order of menu, panels and legend.

    Returns:
        The page, about 5 MB, since it holds the library that draws it. The same records give the same text.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = make_subplots(
        rows, columns, subplot_titles=list(tasks), shared_xaxes=True, horizontal_spacing=0.06, vertical_spacing=0.1
    )
    styles, owners = line_styles(methods), []
    for metric in metrics:
        info, curves, levels = metric_info(metric), mean_curves(records, metric), references(records, metric)
        for number, task in enumerate(tasks):
            place = {"row": number // columns + 1, "col": number % columns + 1}
            common = {"showlegend": not number, "visible": metric == metrics[0]}
            traces = []
            for method, style in styles.items():
                if (method, task) not in curves:
                    continue
                curve = curves[method, task]
                text = [f"level {level}<br>{len(curve.images)} images" for level in curve.level]
                traces.append(go.Scatter(
                    x=curve.bpp.round(6).tolist(), y=curve.value.round(6).tolist(), name=method_label(method),
                    legendgroup=method, mode="lines+markers", text=text, **common,
                    line={"color": style["color"], "dash": DASHES.get(style["linestyle"], "solid"), "width": 1.6},
                    marker={"symbol": MARKERS.get(style["marker"], "circle"), "size": 6},
                    hovertemplate=f"%{{x:.3f}} bpp, %{{y:.4g}}{' ' + info.unit if info.unit else ''}<br>%{{text}}",
                ))  # fmt: skip
            ends = [min(c.bpp[0] for c in curves.values()), max(c.bpp[-1] for c in curves.values())]
            for i, (name, values) in enumerate(levels.items()):
                if task in values:
                    traces.append(go.Scatter(
                        x=[round(end, 6) for end in ends], y=[round(values[task], 6)] * 2, name=name, legendgroup=name,
                        mode="lines", **common,
                        line={"color": "grey", "dash": "dash" if i else "dot", "width": 1},
                    ))  # fmt: skip
            for trace in traces:
                figure.add_trace(trace, **place)
                owners.append(metric)
    buttons = [
        {
            "label": metric_info(metric).axis_label,
            "method": "update",
            "args": [{"visible": [owner == metric for owner in owners]}],
        }
        for metric in metrics
    ]
    figure.update_xaxes(title_text="rate (bits per pixel)", row=rows, type="log")
    figure.update_xaxes(type="log")
    figure.update_layout(
        template="plotly_white", height=330 * rows + 160, title="Rate-perception curves: means over the test images",
        updatemenus=[{"buttons": buttons, "x": 0, "y": 1.12, "xanchor": "left", "yanchor": "bottom"}],
        margin={"t": 130},
    )  # fmt: skip
    return figure.to_html(include_plotlyjs=True, full_html=True, div_id="curves", config={"displaylogo": False})
