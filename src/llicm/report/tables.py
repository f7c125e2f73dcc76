# SPDX-License-Identifier: Apache-2.0
"""Tables of comparisons as files: CSV, Markdown for pages, LaTeX for papers."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from llicm.benchmark.bdrate import Interval, bd_interval, bd_intervals, bd_table, interpolations
from llicm.benchmark.metrics import metric_info
from llicm.benchmark.non_monotone import non_monotone
from llicm.benchmark.records import mean_curves, to_compressai_json
from llicm.files import write_atomically
from llicm.methods import Method
from llicm.report.comparisons import (
    STRONGEST,
    bd_rows,
    candidates,
    disagreements,
    headline,
    headline_tests,
    of_role,
    quality_unit,
    restoration,
)
from llicm.report.writing import bd_number, markdown, method_label, text_of, with_interval, write_csv

SHOWN = ("psnr", "ms_ssim", "niqe_fit")  # metrics of the headline in Markdown: two full-reference ones, one without


def write_comparisons(
    records: pd.DataFrame, metrics: Sequence[str], methods: Iterable[Method], tasks: Sequence[str], out: Path,
    test: str, comparisons: Mapping[str, Sequence[str]],
) -> pd.DataFrame:  # fmt: skip
    """Write all tables that follow from records alone; returns that of BD-rates, with the intervals of LL-ICM's.

    ``bd_rate.csv.gz``, ``bd_rate.md``, ``interpolations.csv.gz``, ``non_monotone.csv.gz``, ``non_monotone.md``, and if
    every task has a baseline to compare with in PSNR ``headline.csv``, ``.md`` and ``.tex`` (of another form of LL-ICM
    that is compared with the strongest baseline, ``headline_<form>``), ``disagreements.csv`` and ``.md``.

    Args:
        records, metrics, tasks: what is compared. methods: those of the roles test and baseline are.
        out: folder of the tables. test, comparisons: of `figures` in params.yaml.
    """
    methods = of_role(methods, "test", "baseline")
    names = [method.name for method in methods]
    tests = [name for name in dict.fromkeys([test, *(pair[0] for pair in comparisons.values())]) if name in names]
    table = bd_table(records, metrics, tests, names, tasks)
    forms = [
        form for form in headline_tests(methods, test, comparisons)
        if all(len(candidates(table, methods, form, task)) for task in tasks)
    ]  # fmt: skip
    if forms:
        ends = pd.concat([bd_intervals(records, metrics, form, names, tasks) for form in forms])
        ends = ends.drop(columns=["bd_rate", "bd_quality"])
        table = table.merge(ends, on=["test", "anchor", "task", "metric"], how="left", validate="one_to_one")
    for form in forms:
        best = headline(records, table, methods, tasks, form)
        name = "headline" if form == test else f"headline_{form.removeprefix(f'{test}-')}"
        write_csv(best, out / f"{name}.csv")
        write_atomically(out / f"{name}.md", headline_markdown(best).encode())
        write_atomically(out / f"{name}.tex", headline_latex(best).encode())
    if test in forms:
        write_atomically(out / "bd_rate.md", full_markdown(table, tasks, test).encode())
        write_csv(interpolations(records, metrics, test, names, tasks), out / "interpolations.csv.gz")
        conflicts = disagreements(table, methods, test)
        write_csv(conflicts, out / "disagreements.csv")
        write_atomically(out / "disagreements.md", disagreements_markdown(conflicts).encode())
    write_csv(table, out / "bd_rate.csv.gz")
    fallen = non_monotone(records, metrics, tasks, names)
    write_csv(fallen, out / "non_monotone.csv.gz")
    write_atomically(out / "non_monotone.md", non_monotone_markdown(fallen, tasks).encode())
    return table


def write_compressai(records: pd.DataFrame, folder: Path) -> int:
    """Every curve as `<folder>/<task>/<method>.json` in CompressAI's results format; returns their number."""
    curves = sorted(mean_curves(records, "psnr"))
    for method, task in curves:
        path = folder / task / f"{method.replace('>', '-then-')}.json"
        write_atomically(path, to_compressai_json(records, method, task).encode())
    return len(curves)


def _with_ends(row: pd.Series, name: str, spec: str, after: str = "") -> str:
    """A number of a row with its interval."""
    return with_interval(row[name], row[f"{name}_low"], row[f"{name}_high"], spec, after)


def headline_markdown(table: pd.DataFrame, rival: str = "strongest baseline") -> str:
    """What `headline` returns, as Markdown: a row a task, two columns a metric of `SHOWN`, if any was measured.

    Args:
        rival: what the methods compared with are called.
    """
    shown = [metric for metric in SHOWN if metric in set(table["metric"])] or list(dict.fromkeys(table["metric"]))
    head, *rows = _headline_cells(table[table["metric"].isin(shown)], rival)
    aligned = ["---", "---", *["---:"] * (len(head) - 2)]
    return text_of(f"| {' | '.join(row)} |" for row in (head, aligned, *rows))


def headline_latex(table: pd.DataFrame) -> str:
    """The same for LaTeX, with the package booktabs."""
    head, *rows = _headline_cells(table)

    def line(cells: Sequence[str]) -> str:
        words = (cell.replace("**", "").replace("%", r"\%").replace("→", r"$\rightarrow$") for cell in cells)
        return " & ".join(words) + r" \\"

    lines = [r"\begin{tabular}{ll" + "r" * (len(head) - 2) + "}", r"\toprule", line(head), r"\midrule"]
    return text_of([*lines, *(line(row) for row in rows), r"\bottomrule", r"\end{tabular}"])


def _headline_cells(table: pd.DataFrame, rival: str = "strongest baseline") -> list[list[str]]:
    metrics = list(dict.fromkeys(table["metric"]))
    rows = [["task", rival]]
    for metric in metrics:
        rows[0] += [f"BD-rate, {metric_info(metric).label}", f"BD-{metric_info(metric).label}"]
    for task in dict.fromkeys(table["task"]):
        of = table[table["task"] == task].set_index("metric")
        row = [f"**{task}**" if task == "mean" else task, method_label(of["anchor"].iloc[0])]
        for metric in metrics:
            row += [
                _with_ends(of.loc[metric], "bd_rate", "+.1f", "%"),
                _with_ends(of.loc[metric], "bd_quality", "+.2f"),
            ]
        rows.append(row)
    return rows


def full_markdown(table: pd.DataFrame, tasks: Sequence[str], test: str) -> str:
    """Every comparison of LL-ICM with intervals: a table a metric, of BD-rates and then of BD-qualities.

    Args:
        table: `bd_table` joined with `bd_intervals`. test: the form of LL-ICM.
    """
    table = table[table["test"] == test]
    lines = [
        "# LL-ICM against every method",
        "",
        "Negative BD-rate: LL-ICM needs fewer bits for the same quality. Positive BD-quality: LL-ICM is better at the "
        "same rate. In brackets 95% bootstrap intervals over the test images. n/a: undefined; `bd_rate.csv.gz` has the "
        "reason, the overlap of the ranges, and whether the curves rise.",
    ]
    for metric in dict.fromkeys(table["metric"]):
        label, of = metric_info(metric).label, table[table["metric"] == metric].set_index(["anchor", "task"])
        anchors = list(dict.fromkeys(of.index.get_level_values("anchor")))
        for name, title, spec, after in (
            ("bd_rate", f"BD-rate, {label}", "+.1f", "%"),
            ("bd_quality", f"BD-{label}", "+.2f", ""),
        ):
            rows = [
                [method_label(anchor), *(_with_ends(of.loc[(anchor, task)], name, spec, after) for task in tasks)]
                for anchor in anchors
            ]
            lines += ["", f"## {title}", "", *markdown(["anchor", *tasks], rows)]
    return text_of(lines)


def bd_markdown(
    table: pd.DataFrame, metric: str, test: str, tasks: Sequence[str] | None = None, value: str = "rate",
    more: Mapping[str, Mapping[str, str]] | None = None,
) -> str:  # fmt: skip
    """The numbers of `llicm.report.figures.bd_heatmap` as Markdown.

    Args:
        table, metric, test, tasks, value: as there. more: further columns: title -> anchor -> cell.

    Returns:
        Text that ends in a line break. "n/a" stands for an undefined number; a mean over part of the tasks says over
        how many.
    """
    tasks, rows = bd_rows(table, metric, test, tasks, value)
    unit, lines, more = "%" if value == "rate" else "", [], more or {}
    for row in rows:
        cells = [
            f"{bd_number(number, value)}{unit}" if not np.isnan(number) else f"n/a ({verdict})" if verdict else "n/a"
            for number, verdict in zip(row.numbers, row.verdicts, strict=True)
        ]
        mean = f"**{bd_number(row.mean, value)}{unit if row.defined else ''}**"
        cells += [
            f"{mean} ({row.partly})" if row.partly else mean,
            *(cell.get(row.anchor, "") for cell in more.values()),
        ]
        lines.append([method_label(row.anchor), *cells])
    return text_of(markdown(["anchor", *tasks, "mean", *more], lines))


def disagreements_markdown(table: pd.DataFrame) -> str:
    """A summary of `disagreements`: how often each NR metric says the opposite of the FR metrics."""
    metrics = [column for column in table.columns if column not in ("task", "anchor", "full_reference")]
    tasks, rows = list(dict.fromkeys(table["task"])), []
    for metric in metrics:
        known = table[table[metric].isin(["better", "worse"])]
        opposite = known[metric] != known["full_reference"]
        shares = [opposite[known["task"] == task] for task in tasks] + [opposite]
        cells = [f"{share.mean():.0%}" if len(share) else "n/a" for share in shares]
        rows.append([metric_info(metric).label, *cells])
    first = (
        f"On {len(table)} comparisons of LL-ICM with a baseline all full-reference metrics agree who is better. "
        "No-reference metrics say the opposite in this share of them:"
    )
    return text_of([first, "", *markdown(["metric", *tasks, "all"], rows)])


def extra_markdown(records: pd.DataFrame, sets: Sequence[str], test: str, anchors: Sequence[str]) -> str:
    """LL-ICM on the further sets of pairs: a row a set, BD-PSNR against each anchor, and what clean input costs."""
    table = bd_table(records, ["psnr"], [test], anchors, sets).set_index(["anchor", "task"])
    rows = []
    for name in sets:
        row = [name]
        for anchor in anchors:
            rate, quality = table.loc[(anchor, name), ["bd_rate", "bd_quality"]]
            row += ["n/a" if np.isnan(rate) else f"{rate:+.1f}%", "n/a" if np.isnan(quality) else f"{quality:+.2f}"]
        rows.append(row)
    heads = [f"{kind} vs {method_label(anchor)}" for anchor in anchors for kind in ("BD-rate", "BD-PSNR")]
    return text_of(markdown(["set", *heads], rows))


def harm_markdown(table: pd.DataFrame) -> str:
    """What `harm` returns as Markdown: a row a method, a column a level, and in it the share and the worst picture."""
    levels = list(dict.fromkeys(table["level"]))
    cells = {(row.method, row.level): f"{row.share:.0%}, {row.worst:+.2f} dB" for row in table.itertuples()}
    rows = [
        [method_label(name), *(cells.get((name, level), "") for level in levels)]
        for name in dict.fromkeys(table["method"])
    ]
    return text_of(markdown(["", *(f"level {level}" for level in levels)], rows))


def non_monotone_markdown(table: pd.DataFrame, tasks: Sequence[str]) -> str:
    """How many curves fall with the rate, by metric and task, and the methods they belong to.

    Args:
        table: made by `llicm.benchmark.non_monotone.non_monotone`.
    """
    rows = []
    for metric in dict.fromkeys(table["metric"]):
        row = [metric_info(metric).label]
        for task in tasks:
            of = table[(table["metric"] == metric) & (table["task"] == task)]
            names = [method_label(name) for name in of.loc[of["non_monotone"], "method"]]
            row.append(f"{len(names)} of {len(of)}" + (f": {', '.join(names)}" if 0 < len(names) <= 4 else ""))
        rows.append(row)
    return text_of(markdown(["metric", *tasks], rows, "---|"))


def ablation_markdown(table: pd.DataFrame, updates: int, titles: Mapping[str, str]) -> str:
    """The ablation of what steers the restorer: a table per metric (PSNR first) and what it shows.

    Args:
        table: made by `ablation`, with one anchor. updates: that every variant was trained for.
        titles: method -> what it is called.

    Returns:
        Text that ends in a line break. Whether a variant helps is read off the interval of its mean BD-quality, which
        exists for every shape of curve.
    """
    (anchor,) = table["anchor"].unique()
    metrics = sorted(table["metric"].unique(), key=lambda metric: metric != "psnr")
    single = metric_info(metrics[0]).label if len(metrics) == 1 else "quality"
    lines = [
        f"Restorers trained from scratch with an equal budget of {updates:,} updates each on the output of the frozen "
        f"RDO codec, alike except for what steers them, compared with {titles[anchor]} (means over tasks, with 95% "
        f"bootstrap intervals over the {table['images'].max()} test images in brackets; then BD-{single} per task):",
    ]
    for metric in metrics:
        lines += ["", *_ablation_lines(table[table["metric"] == metric], metric, titles[anchor], titles)]
    return text_of(lines)


def _ablation_lines(table: pd.DataFrame, metric: str, anchor: str, titles: Mapping[str, str]) -> list[str]:
    tasks = list(table.columns[table.columns.get_loc("images") + 1 :])
    label, unit = metric_info(metric).label, quality_unit(metric)
    mean = f"mean BD-{label}{f' ({unit})' if unit else ''}"
    rows, verdicts = [], []
    for _, row in table.iterrows():
        name = titles[row["method"]]
        rows.append([
            name, _with_ends(row, "bd_rate", "+.1f", "%"), f"{row['tasks_defined']} of {len(tasks)}",
            _with_ends(row, "bd_quality", "+.2f"), *(f"{row[t]:+.2f}" if pd.notna(row[t]) else "n/a" for t in tasks),
        ])  # fmt: skip
        verdict = "no difference shown at this size (its interval includes zero)"
        if np.isnan(row["bd_quality"]):
            verdict = "cannot be compared"
        elif row["bd_quality_low"] > 0 or row["bd_quality_high"] < 0:
            verdict = f"{'helps' if row['bd_quality_low'] > 0 else 'hurts'} (its interval excludes zero)"
        verdicts.append(f"{name}: {verdict}")
    head = ["variant", f"mean BD-rate vs {anchor}", "tasks where defined", mean, *tasks]
    return [*markdown(head, rows), "", f"By mean BD-{label} against {anchor}, {'; '.join(verdicts)}."]


def results_markdown(
    records: pd.DataFrame, table: pd.DataFrame, tasks: Sequence[str], comparisons: Mapping[str, Sequence[str]],
    test: str, intros: Mapping[str, str], given: pd.DataFrame | None = None,
) -> str:  # fmt: skip
    """LL-ICM against every method in PSNR, as Markdown: comparisons with a given anchor in words, then tables.

    Args:
        records: as read by `read_records`. table: made by `bd_table`. test, comparisons: of `figures` in params.yaml.
        intros: name of a comparison -> how the sentence about it begins; others are left out.
        given: made by `budgets`; adds what each method was trained for.
    """
    restored, lines = restoration(records, tasks), []
    for name, (first, anchor) in sorted(comparisons.items(), key=lambda item: item[1][0] != test):
        if name in intros and anchor != STRONGEST:
            pair = f"`{method_label(anchor)}`" if first == test else f"`{first}` against `{method_label(anchor)}`"
            text = f"{intros[name]} ({pair}): {_comparison(records, first, anchor, tasks)}"
            about = (
                "** (PSNR against the ideal photo, means of the test images; in brackets 95% bootstrap intervals over "
                "those images, under one training of each method)."
            )
            lines += [f"**{text}{about}" if first == test else f"{text}.", ""]
    updates = {}
    if given is not None:
        counts = zip(given["method"], given["codec_updates"], given["restorer_updates"], strict=True)
        updates = {"updates": {name: " + ".join(f"{n:,}" if n else "–" for n in both) for name, *both in counts}}
    gains = [[name, *(f"{v:{'+' if name == 'gain' else ''}.2f}" for v in restored[name])] for name in restored.columns]
    lines += [
        "BD-rate of LL-ICM in PSNR against each method (negative: LL-ICM needs fewer bits for the same quality). Where "
        "quality ranges do not meet there is no BD-rate, and the table says which side is better at every rate. "
        "Updates are those of codec and restorer in this study, each in batches of the same size:",
        "",
        bd_markdown(table, "psnr", test, tasks, more=updates),
        "BD-PSNR of LL-ICM in dB (positive: LL-ICM is better at the same rate):",
        "",
        bd_markdown(table, "psnr", test, tasks, "quality"),
        "The restorer alone, on uncompressed degraded photos, mean PSNR in dB:",
        "",
        *markdown(["", *tasks], gains),
    ]
    return text_of(lines)


def _comparison(records: pd.DataFrame, test: str, anchor: str, tasks: Sequence[str]) -> str:
    found = bd_interval(records, "psnr", test, anchor, tasks)

    def number(mean: Interval, spec: str, unit: str) -> str:
        if mean.estimate is None:
            return "undefined"
        return f"{mean.estimate:{spec}}{unit} [{mean.low:{spec}}, {mean.high:{spec}}]"

    return (
        f"mean BD-rate {number(found.rate, '+.1f', '%')} over the {found.rate.defined} of {len(tasks)} tasks where it "
        f"is defined, mean BD-PSNR {number(found.quality, '+.2f', ' dB')} over {found.quality.defined}"
    )
