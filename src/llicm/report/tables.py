# SPDX-License-Identifier: Apache-2.0
"""From records to what is published: comparisons, the README's tables, and picture strips at matched rate."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from llicm.benchmark.non_monotone import non_monotone
from llicm.benchmark.bdrate import SSIM_FAMILY, bd_interval, bd_intervals, bd_table, interpolations
from llicm.benchmark.metrics import metric_info
from llicm.benchmark.probes import kept_energy
from llicm.benchmark.records import mean_curves, read_records, references, to_compressai_json
from llicm.data.pairs import Pair, centre_crop, read_pairs
from llicm.errors import UserError
from llicm.report.figures import bd_markdown, diffusion_steps, method_label, save_figure
from llicm.files import write_atomically
from llicm.methods import Coded, load_methods

__all__ = [
    "ablation",
    "ablation_markdown",
    "non_monotone_markdown",
    "budgets",
    "disagreements",
    "disagreements_markdown",
    "extra_markdown",
    "full_markdown",
    "headline_latex",
    "headline_markdown",
    "headline_table",
    "is_baseline",
    "README_TABLES",
    "mean_points",
    "readme_results",
    "recognition_markdown",
    "restoration",
    "specialists",
    "steps_of",
    "strip_rows",
    "strongest",
    "summary",
    "update_readme",
    "versus_table",
    "write_comparisons",
    "write_compressai",
    "write_runs",
    "write_timing",
]

TEST, SEPARATE = "llicm", "rdo>restorer"  # the study's method, and the framework that it replaces
DIFFUSION = ("llicm-irsde", "rdo>irsde")  # the same two with the diffusion restorer
PREFILTER = ("llicm-prefilter", "restorer>rdo>adapted")  # and with a restorer before the codec
VARIANTS = {
    "no-vlm": "no VLM",
    "degradation-only": "degradation embedding",
    "both": "both embeddings",
    "oracle": "task oracle (one-hot)",
}
SHOWN = ("psnr", "ms_ssim", "niqe_fit")  # metrics in the README's headline: two full-reference ones, one without
# Columns of `ablation` before those of the tasks.
ABLATION = (
    "method", "anchor", "metric", "bd_rate", "bd_rate_low", "bd_rate_high", "bd_quality", "bd_quality_low",
    "bd_quality_high", "tasks_defined", "images",
)  # fmt: skip


# marker in the README -> file below results/
_BOTH = ("headline", "non_monotone", "disagreements", "ablation", "recognition")
README_TABLES = {
    **{name: f"tables/{name}.md" for name in _BOTH},
    "results": "tables/readme.md",
    "extra": "tables/extra.md",
    # of the published study
    **{f"study-{name}": f"study/tables/{name}.md" for name in (*_BOTH, "headline_prefilter", "specialists")},
    "study-results": "study/tables/readme.md",
}


def mean_points(records: pd.DataFrame) -> pd.DataFrame:
    """Points of all curves: one row per (metric, task, method, level) with mean bpp and mean value over images."""
    rows = [
        {"metric": metric, "task": task, "method": method, "level": level, "bpp": bpp, "value": value}
        for metric in records["metric"].unique()
        for (method, task), curve in mean_curves(records, metric).items()
        for level, bpp, value in zip(curve.level, curve.bpp, curve.value, strict=True)
    ]
    return pd.DataFrame(rows)


def restoration(records: pd.DataFrame, tasks: list[str]) -> pd.DataFrame:
    """What the restorer does without any codec: mean PSNR (dB) of X, of X_H, and the gain, a row a task."""
    psnr = references(records, "psnr")
    table = pd.DataFrame({"degraded": psnr["degraded"], "restored": psnr["restored"]}).loc[tasks]
    table["gain"] = table["restored"] - table["degraded"]
    return table


def is_baseline(method: str) -> bool:
    """Whether a method is a rival of LL-ICM, and not LL-ICM itself in another form."""
    return method.split("-")[0] != TEST


def strongest(table: pd.DataFrame, test: str, metric: str, task: str) -> str:
    """The baseline against which `test` gains least: the smallest BD-quality over the shared rates.

    The rule was fixed before the results: BD-quality and not BD-rate decides, because it exists for curves that fall
    with the rate too, and PSNR decides for all metrics, so that each is not compared with the rival that suits it.
    `table` is made by `llicm.benchmark.bdrate.bd_table`; methods whose rates do not meet those of `test` are not
    candidates, and neither are other forms of LL-ICM.

    Raises:
        UserError: there is no candidate.
    """
    rows = table[(table["test"] == test) & (table["metric"] == metric) & (table["task"] == task)]
    rows = rows[rows["bd_quality"].notna() & rows["anchor"].map(is_baseline)]
    if not len(rows):
        raise UserError(
            f"No baseline shares a range of rates with {test} on {task}: choose other levels in params.yaml."
        )
    return str(rows.loc[rows["bd_quality"].idxmin(), "anchor"])


def headline_table(records: pd.DataFrame, table: pd.DataFrame, tasks: Sequence[str], test: str = TEST) -> pd.DataFrame:
    """LL-ICM against the strongest baseline of each task: a row a metric and task, then one for the mean over tasks.

    Args:
        records: as read by `read_records`. table: made by `bd_table`. test: which form of LL-ICM.

    Returns:
        The columns metric, task ("mean" for the mean), anchor, and bd_rate (percent) and bd_quality, each with
        ``_low`` and ``_high``, the ends of its 95% interval over images. Undefined numbers are NaN.
    """
    best = {task: strongest(table, test, "psnr", task) for task in tasks}
    return versus_table(records, list(dict.fromkeys(table["metric"])), test, best)


def versus_table(records: pd.DataFrame, metrics: Sequence[str], test: str, rivals: dict[str, str]) -> pd.DataFrame:
    """One method against one rival a task: a row a metric and task, then one for the mean over tasks.

    Args:
        records: as read by `read_records`. test: the method. rivals: task -> its anchor.

    Returns:
        As `headline_table`.
    """
    rows, tasks = [], list(rivals)
    for metric in metrics:
        for name, group in [*((task, [task]) for task in tasks), ("mean", tasks)]:
            found = bd_interval(records, metric, test, {task: rivals[task] for task in group}, group)
            row = {"metric": metric, "task": name, "anchor": "" if name == "mean" else rivals[name]}
            for value, number in (("bd_rate", found.rate), ("bd_quality", found.quality)):
                row |= {value: number.estimate, f"{value}_low": number.low, f"{value}_high": number.high}
            row["tasks_defined"] = found.rate.defined
            rows.append(row)
    numbers = [f"{name}{end}" for name in ("bd_rate", "bd_quality") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows).astype(dict.fromkeys(numbers, float))


def specialists(families: dict) -> dict[str, str]:
    """Task -> the form of LL-ICM that was made for it alone: methods of families with a single task in params.yaml."""
    alone = {spec["tasks"][0]: list(spec["methods"]) for spec in families.values() if len(spec.get("tasks") or []) == 1}
    return {task: methods[0] for task, methods in alone.items()}


def write_comparisons(
    records: pd.DataFrame, metrics: Sequence[str], methods: Sequence[str], tasks: Sequence[str], out: Path
) -> pd.DataFrame:
    """Write all tables that follow from records alone; returns that of BD-rates, with the intervals of LL-ICM's.

    ``bd_rate.csv.gz``, ``bd_rate.md``, ``interpolations.csv.gz``, ``non_monotone.csv.gz``, ``non_monotone.md``, and if
    there is a baseline ``headline.csv``, ``.md`` and ``.tex`` (of LL-ICM with a prefilter: ``headline_prefilter``),
    ``disagreements.csv`` and ``.md``.

    Args:
        records, metrics, methods, tasks: what is compared. out: folder of the tables.
    """
    out.mkdir(parents=True, exist_ok=True)

    def put(table: pd.DataFrame, name: str) -> None:
        packed = {"method": "gzip", "mtime": 0} if name.endswith(".gz") else None
        table.to_csv(out / name, index=False, float_format="%.6g", compression=packed)

    tests = [name for name in (TEST, DIFFUSION[0], PREFILTER[0]) if name in methods]
    table = bd_table(records, metrics, tests, methods, tasks)
    forms = {TEST: "headline", PREFILTER[0]: "headline_prefilter"} if any(map(is_baseline, methods)) else {}
    forms = {test: name for test, name in forms.items() if test in methods}
    if forms:
        ends = [bd_intervals(records, metrics, test, methods, tasks) for test in forms]
        ends = pd.concat(ends).drop(columns=["bd_rate", "bd_quality"])
        table = table.merge(ends, on=["test", "anchor", "task", "metric"], how="left", validate="one_to_one")
    for test, name in forms.items():
        best = headline_table(records, table, tasks, test)
        put(best, f"{name}.csv")
        write_atomically(out / f"{name}.md", headline_markdown(best).encode())
        write_atomically(out / f"{name}.tex", headline_latex(best).encode())
    if TEST in forms:
        write_atomically(out / "bd_rate.md", full_markdown(table, tasks).encode())
        put(interpolations(records, metrics, TEST, methods, tasks), "interpolations.csv.gz")
        conflicts = disagreements(table)
        put(conflicts, "disagreements.csv")
        write_atomically(out / "disagreements.md", disagreements_markdown(conflicts).encode())
    put(table, "bd_rate.csv.gz")
    fallen = non_monotone(records, metrics, tasks, methods)
    put(fallen, "non_monotone.csv.gz")
    write_atomically(out / "non_monotone.md", non_monotone_markdown(fallen, tasks).encode())
    return table


def headline_markdown(table: pd.DataFrame, metrics: Sequence[str] = SHOWN, rival: str = "strongest baseline") -> str:
    """What `headline_table` returns, as Markdown: a row a task, two columns a metric.

    Args:
        metrics: those shown, if they were measured; the CSV and LaTeX tables have all.
        rival: what the methods compared with are called.
    """
    shown = [metric for metric in metrics if metric in set(table["metric"])] or list(dict.fromkeys(table["metric"]))
    cells = _headline_cells(table[table["metric"].isin(shown)], rival)
    return "\n".join(["| " + " | ".join(row) + " |" for row in cells]) + "\n"


def headline_latex(table: pd.DataFrame) -> str:
    """The same for LaTeX, with the package booktabs."""
    head, _, *rows = _headline_cells(table)

    def line(cells: Sequence[str]) -> str:
        words = (cell.replace("**", "").replace("%", r"\%").replace("→", r"$\rightarrow$") for cell in cells)
        return " & ".join(words) + r" \\"

    lines = [r"\begin{tabular}{ll" + "r" * (len(head) - 2) + "}", r"\toprule", line(head), r"\midrule"]
    return "\n".join([*lines, *(line(row) for row in rows), r"\bottomrule", r"\end{tabular}"]) + "\n"


def _headline_cells(table: pd.DataFrame, rival: str = "strongest baseline") -> list[list[str]]:
    metrics = list(dict.fromkeys(table["metric"]))
    head = ["task", rival]
    for metric in metrics:
        head += [f"BD-rate, {metric_info(metric).label}", f"BD-{metric_info(metric).label}"]
    rows = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for task in dict.fromkeys(table["task"]):
        of = table[table["task"] == task].set_index("metric")
        anchor = of["anchor"].iloc[0]
        row = [f"**{task}**" if task == "mean" else task, method_label(anchor) if anchor else ""]
        for metric in metrics:
            row += [
                _with_ends(of.loc[metric], "bd_rate", "+.1f", "%"),
                _with_ends(of.loc[metric], "bd_quality", "+.2f"),
            ]
        rows.append(row)
    return rows


def _with_ends(row: pd.Series, name: str, spec: str, after: str = "") -> str:
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if np.isnan(value):
        return "n/a"
    return f"{value:{spec}}{after}" + ("" if np.isnan(low) else f" [{low:{spec}}, {high:{spec}}]")


def full_markdown(table: pd.DataFrame, tasks: Sequence[str]) -> str:
    """Every comparison of LL-ICM with intervals: a table a metric, of BD-rates and then of BD-qualities.

    Args:
        table: `bd_table` joined with `bd_intervals`.
    """
    table = table[table["test"] == TEST]
    lines = [
        "# LL-ICM against every method",
        "",
        "Negative BD-rate: LL-ICM needs fewer bits for the same quality. Positive BD-quality: LL-ICM is better at the "
        "same rate. In brackets 95% bootstrap intervals over the test images. n/a: undefined; `bd_rate.csv.gz` has the "
        "reason, the overlap of the ranges, and whether the curves rise.",
    ]
    for metric in dict.fromkeys(table["metric"]):
        for name, title, spec, after in (
            ("bd_rate", "BD-rate", "+.1f", "%"),
            ("bd_quality", f"BD-{metric_info(metric).label}", "+.2f", ""),
        ):
            lines += ["", f"## {title}, {metric_info(metric).label}" if name == "bd_rate" else f"## {title}", ""]
            lines += ["| anchor | " + " | ".join(tasks) + " |", "|---|" + "---:|" * len(tasks)]
            of = table[table["metric"] == metric].set_index(["anchor", "task"])
            for anchor in dict.fromkeys(of.index.get_level_values("anchor")):
                cells = [_with_ends(of.loc[(anchor, task)], name, spec, after) for task in tasks]
                lines.append(f"| {method_label(anchor)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def disagreements(table: pd.DataFrame) -> pd.DataFrame:
    """Where FR and NR metrics disagree on who is better: a row per comparison of LL-ICM with a baseline.

    Only comparisons on which all FR metrics agree are looked at, by the sign of BD-quality.

    Returns:
        The columns task, anchor, `full_reference` ("better" or "worse": LL-ICM), and one for each NR metric, likewise.
    """
    rows = table[(table["test"] == TEST) & table["anchor"].map(is_baseline) & table["bd_quality"].notna()]
    info = {metric: metric_info(metric) for metric in dict.fromkeys(rows["metric"])}
    signs = rows.pivot(index=["task", "anchor"], columns="metric", values="bd_quality").apply(np.sign)
    full = [metric for metric in info if info[metric].needs_reference]
    none = [metric for metric in info if not info[metric].needs_reference]
    agreed = signs[(signs[full].nunique(axis=1) == 1) & signs[full].notna().all(axis=1)]
    words = {1.0: "better", -1.0: "worse", 0.0: "equal"}
    out = agreed[none].replace(words) if none else agreed[[]]
    out.insert(0, "full_reference", agreed[full[0]].map(words) if full else "")
    return out.reset_index()


def disagreements_markdown(table: pd.DataFrame) -> str:
    """A summary of `disagreements`: how often each NR metric says the opposite of the FR metrics."""
    metrics = [column for column in table.columns if column not in ("task", "anchor", "full_reference")]
    lines = [
        f"On {len(table)} comparisons of LL-ICM with a baseline all full-reference metrics agree who is better. "
        "No-reference metrics say the opposite in this share of them:",
        "",
        "| metric | " + " | ".join(dict.fromkeys(table["task"])) + " | all |",
        "|---|" + "---:|" * (table["task"].nunique() + 1),
    ]
    for metric in metrics:
        known = table[table[metric].isin(["better", "worse"])]
        opposite = known[metric] != known["full_reference"]
        shares = [opposite[known["task"] == task] for task in dict.fromkeys(table["task"])] + [opposite]
        cells = [f"{share.mean():.0%}" if len(share) else "n/a" for share in shares]
        lines.append(f"| {metric_info(metric).label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def extra_markdown(records: pd.DataFrame, sets: Sequence[str], anchors: Sequence[str]) -> str:
    """LL-ICM on the further sets of pairs: a row a set, BD-PSNR against each anchor, and what clean input costs."""
    table = bd_table(records, ["psnr"], [TEST], anchors, sets).set_index(["anchor", "task"])
    lines = [
        "| set | " + " | ".join(f"BD-rate vs {method_label(a)} | BD-PSNR vs {method_label(a)}" for a in anchors) + " |",
        "|---|" + "---:|" * (2 * len(anchors)),
    ]
    for name in sets:
        cells = []
        for anchor in anchors:
            row = table.loc[(anchor, name)]
            cells += ["n/a" if np.isnan(row["bd_rate"]) else f"{row['bd_rate']:+.1f}%"]
            cells += ["n/a" if np.isnan(row["bd_quality"]) else f"{row['bd_quality']:+.2f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def budgets(families: dict, arms: dict, training: dict, init: Path | None = None) -> pd.DataFrame:
    """What each method was given: a row a method, with its codec, order, and the updates of codec and restorer.

    Args:
        families, arms, training: groups of params.yaml. init: folder with published weights that took the place of
            trunks (see `llicm.training.loop.train_arm`); their own updates are not counted. None if there was none.
    """
    published = {path.stem for path in init.glob("*.safetensors")} if init else set()

    def schedule(name: str) -> tuple[int, int]:
        spec = arms[name]
        if spec.get("steps"):
            steps, trunk = spec["steps"], spec.get("trunk", 0)
        else:
            steps, trunk = training["trunk"] + training["branch"], training["trunk"]
        return (steps - trunk, 0) if not spec["start"] and name in published else (steps, trunk)

    def updates(name: str, part: str) -> int:
        """Updates of a part of an arm, those before it went into the arm included."""
        spec, (steps, trunk) = arms[name], schedule(name)
        start = spec["start"] or {}
        before = 0
        if part in start:
            *_, earlier, file = start[part].split("/")
            before = schedule(earlier)[1] if file == "trunk.safetensors" else updates(earlier, part)
        if part not in spec["trains"]:
            return before
        fresh = any(other not in start for other in spec["trains"])
        return before + steps - (0 if fresh else trunk)

    rows = []
    for family, spec in families.items():
        folder = spec["models"].split("/")
        own = folder[-1] if folder[-1] in arms else None
        learned = spec["codec"] == "learned"
        codec_arm = own or "codec"
        restorer_arm = spec.get("restorer") or own
        for method, entry in spec["methods"].items():
            entry = entry if isinstance(entry, dict) else {"order": entry}
            codec = entry.get("codec", spec["codec"])
            restores = entry["order"] != "alone"
            rows.append({
                "method": method, "family": family, "codec": codec, "order": entry["order"],
                "codec_updates": updates(codec_arm, "codec") if learned and codec == "learned" else 0,
                "restorer_updates": updates(restorer_arm, "restorer") if restores and restorer_arm else 0,
            })  # fmt: skip
    return pd.DataFrame(rows)


def summary(records: pd.DataFrame, table: pd.DataFrame, tasks: list[str]) -> dict:
    """The study's headline numbers, for metrics.json: BD-rates (percent) and BD-PSNR (dB) of LL-ICM, restorer gains."""

    def number(value) -> float | None:
        return None if value is None or np.isnan(value) else round(float(value), 4)

    def comparison(anchors: dict[str, str], test: str = TEST) -> dict:
        rows = pd.concat([_rows(table, test, anchor, task) for task, anchor in anchors.items()])
        return {
            "bd_rate": {r.task: number(r.bd_rate) for r in rows.itertuples()},
            "bd_rate_mean": number(rows["bd_rate"].mean()) if rows["bd_rate"].notna().any() else None,
            "bd_rate_tasks": int(rows["bd_rate"].notna().sum()),
            "bd_psnr": {r.task: number(r.bd_quality) for r in rows.itertuples()},
            "bd_psnr_mean": number(rows["bd_quality"].mean()) if rows["bd_quality"].notna().any() else None,
        }

    best = {task: strongest(table, TEST, "psnr", task) for task in tasks}
    more, tests, methods = {}, set(table["test"]), set(table["anchor"])
    if DIFFUSION[0] in tests:
        more["llicm_irsde_against_codec_then_irsde"] = comparison(dict.fromkeys(tasks, DIFFUSION[1]), DIFFUSION[0])
    if PREFILTER[0] in tests:
        rivals = {task: strongest(table, PREFILTER[0], "psnr", task) for task in tasks}
        more["llicm_prefilter_against_strongest"] = {"anchor": rivals} | comparison(rivals, PREFILTER[0])
        if PREFILTER[1] in methods:
            equal = comparison(dict.fromkeys(tasks, PREFILTER[1]), PREFILTER[0])
            more["llicm_prefilter_against_the_same_separately"] = equal
    return more | {
        "llicm_against_codec_then_restorer": comparison(dict.fromkeys(tasks, SEPARATE)),
        "llicm_against_strongest": {"anchor": best} | comparison(best),
        "restorer_gain_db": {task: number(gain) for task, gain in restoration(records, tasks)["gain"].items()},
    }


def _rows(table: pd.DataFrame, test: str, anchor: str, task: str) -> pd.DataFrame:
    chosen = (table["test"] == test) & (table["anchor"] == anchor) & (table["task"] == task)
    return table[chosen & (table["metric"] == "psnr")]


def readme_results(
    records: pd.DataFrame, table: pd.DataFrame, tasks: list[str], given: pd.DataFrame | None = None
) -> str:
    """The result tables of the README, as Markdown.

    Args:
        records: as read by `read_records`. table: made by `bd_table`. given: made by `budgets`; adds what each method
            was trained for.
    """
    restored = restoration(records, tasks)
    lines = [
        f"**LL-ICM against the same codec and restorer trained separately (`{method_label(SEPARATE)}`): "
        f"{_headline(records, TEST, SEPARATE, tasks)}** (PSNR against the ideal photo, means of the test images; in "
        "brackets 95% bootstrap intervals over those images, under one training of each method).",
        "",
    ]
    if DIFFUSION[0] in set(table["test"]):
        lines += [
            f"With the diffusion restorer in both (`{DIFFUSION[0]}` against `{method_label(DIFFUSION[1])}`): "
            f"{_headline(records, *DIFFUSION, tasks)}.",
            "",
        ]
    if PREFILTER[0] in set(table["test"]) and PREFILTER[1] in set(table["anchor"]):
        lines += [
            f"With the restorer before the codec too, in both (`{PREFILTER[0]}` against "
            f"`{method_label(PREFILTER[1])}`): {_headline(records, *PREFILTER, tasks)}.",
            "",
        ]
    lines += [
        "BD-rate of LL-ICM in PSNR against each method (negative: LL-ICM needs fewer bits for the same quality). Where "
        "quality ranges do not meet there is no BD-rate, and the table says which side is better at every rate. "
        "Updates are those of codec and restorer in this study, each in batches of the same size:",
        "",
        _with_budgets(bd_markdown(table, "psnr", TEST, tasks=tasks, reasons=False), given),
        "BD-PSNR of LL-ICM in dB (positive: LL-ICM is better at the same rate):",
        "",
        bd_markdown(table, "psnr", TEST, tasks=tasks, value="quality", reasons=False),
        "The restorer alone, on uncompressed degraded photos, mean PSNR in dB:",
        "",
        "| | " + " | ".join(tasks) + " |",
        "|---|" + "---:|" * len(tasks),
    ]
    lines += [
        f"| {name} | " + " | ".join(f"{v:{'+' if name == 'gain' else ''}.2f}" for v in restored[name]) + " |"
        for name in restored.columns
    ]
    return "\n".join(lines) + "\n"


def _with_budgets(text: str, given: pd.DataFrame | None) -> str:
    """A table of `bd_markdown` with a column more, the updates of each method's codec and restorer."""
    if given is None:
        return text
    updates = {
        method_label(row.method): " + ".join(f"{n:,}" if n else "–" for n in (row.codec_updates, row.restorer_updates))
        for row in given.itertuples()
    }
    lines = []
    for line in text.splitlines():
        first = line.split("|")[1].strip() if line.startswith("|") else None
        cell = {"anchor": "updates", "---": "---:"}.get(first, updates.get(first, ""))
        lines.append(line if first is None else f"{line} {cell} |" if first != "---" else f"{line}{cell}|")
    return "\n".join(lines) + "\n"


def _headline(records: pd.DataFrame, test: str, anchor: str, tasks: Sequence[str]) -> str:
    found = bd_interval(records, "psnr", test, anchor, tasks)

    def number(mean, spec: str, unit: str) -> str:
        if mean.estimate is None:
            return "undefined"
        return f"{mean.estimate:{spec}}{unit} [{mean.low:{spec}}, {mean.high:{spec}}]"

    return (
        f"mean BD-rate {number(found.rate, '+.1f', '%')} over the {found.rate.defined} of {len(tasks)} tasks where it "
        f"is defined, mean BD-PSNR {number(found.quality, '+.2f', ' dB')} over {found.quality.defined}"
    )


def ablation(
    records: pd.DataFrame, anchor: str, tests: Sequence[str], tasks: Sequence[str], metrics: Sequence[str]
) -> pd.DataFrame:
    """What each variant gains over one of them: a row per (metric, test), in the given order.

    Args:
        records: as read by `read_records`. anchor, tests, tasks, metrics: names.

    Returns:
        The columns `method` (the test), `anchor`, `metric`; `bd_rate` (percent) and `bd_quality`, means over tasks,
        with the ends `_low` and `_high` of their 95% intervals over the test images (see `bd_interval`);
        `tasks_defined`, the number of tasks with a BD-rate; `images`; and a column per task, named like it, with its
        BD-quality.
        Undefined numbers are NaN.

    Raises:
        UserError: see `bd_table`.
    """
    rows = []
    for metric in metrics:
        single = bd_table(records, [metric], list(tests), [anchor], list(tasks)).set_index(["test", "task"])
        for test in tests:
            found = bd_interval(records, metric, test, anchor, list(tasks))
            rate, quality = (
                [np.nan if v is None else v for v in (number.estimate, number.low, number.high)]
                for number in (found.rate, found.quality)
            )
            values = (test, anchor, metric, *rate, *quality, found.rate.defined, found.images)
            of_tasks = {task: single.loc[(test, task), "bd_quality"] for task in tasks}
            rows.append(dict(zip(ABLATION, values, strict=True)) | of_tasks)
    return pd.DataFrame(rows, columns=[*ABLATION, *tasks])


def ablation_markdown(table: pd.DataFrame, steps: int) -> str:
    """The ablation of what steers the restorer, for the README: a table per metric (PSNR first) and what it shows.

    Args:
        table: made by `ablation`, with one anchor. steps: updates that every variant was trained for.

    Returns:
        Text that ends in a line break. Whether a variant helps is read off the interval of its mean BD-quality, which
        exists for every shape of curve.
    """
    (anchor,) = table["anchor"].unique()
    metrics = sorted(table["metric"].unique(), key=lambda metric: metric != "psnr")
    single = metric_info(metrics[0]).label if len(metrics) == 1 else "quality"
    lines = [
        f"Restorers trained from scratch with an equal budget of {steps:,} updates each on the output of the frozen "
        f"RDO codec, alike except for what steers them, compared with {_variant(anchor)} (means over tasks, with 95% "
        f"bootstrap intervals over the {table['images'].max()} test images in brackets; then BD-{single} per task):",
    ]
    for metric in metrics:
        lines += ["", *_ablation_lines(table[table["metric"] == metric], metric, _variant(anchor))]
    return "\n".join(lines) + "\n"


def _variant(method: str) -> str:
    return VARIANTS.get(method, method_label(method))


def _ablation_lines(rows: pd.DataFrame, metric: str, anchor: str) -> list[str]:
    tasks = [column for column in rows.columns if column not in ABLATION]
    label, unit = metric_info(metric).label, "dB" if metric in SSIM_FAMILY else metric_info(metric).unit

    def number(row: pd.Series, name: str, spec: str, after: str) -> str:
        value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
        return "n/a" if np.isnan(value) else f"{value:{spec}}{after} [{low:{spec}}, {high:{spec}}]"

    heads = [
        "variant", f"mean BD-rate vs {anchor}", "tasks where defined",
        f"mean BD-{label}{f' ({unit})' if unit else ''}", *tasks,
    ]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    verdicts = []
    for _, row in rows.iterrows():
        name = _variant(row["method"])
        cells = [
            name, number(row, "bd_rate", "+.1f", "%"), f"{row['tasks_defined']} of {len(tasks)}",
            number(row, "bd_quality", "+.2f", ""), *(f"{row[t]:+.2f}" if pd.notna(row[t]) else "n/a" for t in tasks),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
        if np.isnan(row["bd_quality"]):
            verdict = "cannot be compared"
        elif row["bd_quality_low"] > 0:
            verdict = "helps (its interval excludes zero)"
        elif row["bd_quality_high"] < 0:
            verdict = "hurts (its interval excludes zero)"
        else:
            verdict = "no difference shown at this size (its interval includes zero)"
        verdicts.append(f"{name}: {verdict}")
    return [*lines, "", f"By mean BD-{label} against {anchor}, {'; '.join(verdicts)}."]


def non_monotone_markdown(table: pd.DataFrame, tasks: Sequence[str]) -> str:
    """How many curves fall with the rate, by metric and task, and the methods they belong to.

    Args:
        table: made by `llicm.benchmark.non_monotone.non_monotone`.
    """
    lines = ["| metric | " + " | ".join(tasks) + " |", "|---|" + "---|" * len(tasks)]
    for metric in dict.fromkeys(table["metric"]):
        cells = []
        for task in tasks:
            of = table[(table["metric"] == metric) & (table["task"] == task)]
            names = [method_label(name) for name in of.loc[of["non_monotone"], "method"]]
            cells.append(f"{len(names)} of {len(of)}" + (f": {', '.join(names)}" if 0 < len(names) <= 4 else ""))
        lines.append(f"| {metric_info(metric).label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_compressai(records: pd.DataFrame, folder: Path) -> int:
    """Every curve as `<folder>/<task>/<method>.json` in CompressAI's results format; returns their number."""
    curves = sorted(mean_curves(records, "psnr"))
    for method, task in curves:
        path = Path(folder) / task / f"{method.replace('>', '-then-')}.json"
        write_atomically(path, to_compressai_json(records, method, task).encode())
    return len(curves)


def strip_rows(
    table: pd.DataFrame,
    tasks: list[str],
    families: dict,
    models: Path,
    vlm: Path,
    pairs: Path,
    *,
    image: str,
    level: float,
    side: int,
) -> list[tuple[str, list[tuple[str, Tensor, str]]]]:
    """Rows for `llicm.report.figures.picture_rows`: one a task, LL-ICM beside the strongest baseline at LL-ICM's rate.

    Rates and PSNR in the captions are of the whole photo; the pictures show its middle.

    Args:
        table: made by `bd_table`. families: of params.yaml. models, vlm, pairs: folders of the pipeline.
        image: name of the test photo; a task without it shows its first. level: at which LL-ICM codes.
        side: of the pictures shown, in pixels.
    """
    compared = {TEST, *table["anchor"]}
    methods = {
        method.name: method
        for family, spec in families.items() if compared & set(spec["methods"])
        for method in load_methods(family, spec, models, vlm)
    }  # fmt: skip
    rows = []
    for task in tasks:
        found = read_pairs(pairs, "val", task)
        pair = next((p for p in found if p.name == image), found[0])
        ours = methods[TEST].run(pair.degraded, level, task)
        name = strongest(table, TEST, "psnr", task)
        best = methods[name].at_bpp(pair.degraded, ours.bpp, task)
        rows.append((task, _columns(pair, name, best, ours, side)))
    return rows


def kept_crops(family: str, task: str, families: dict, artifacts: Path, *, side: int) -> list[tuple[str, Tensor, str]]:
    """Pictures for `llicm.report.figures.non_monotone_why`: the ideal, X, and X̂ of a codec at its lowest, middle and highest rate.

    Args:
        family: of params.yaml, whose method without restoration is shown. artifacts: folder of the pipeline.
        side: of the pictures, in pixels, cut from the middle.
    """
    pair = read_pairs(artifacts / "pairs", "val", task)[0]
    methods = load_methods(family, families[family], artifacts / "models", artifacts / "vlm")
    method = next(method for method in methods if method.order == "alone")

    columns = [
        ("ideal", centre_crop(pair.ideal, side), pair.name),
        ("X", centre_crop(pair.degraded, side), "100 % kept"),
    ]
    for level in (method.levels[0], method.levels[len(method.levels) // 2], method.levels[-1]):
        coded = method.run(pair.degraded, level)
        share = kept_energy(coded.decoded, pair.degraded, pair.ideal)
        columns.append(
            (f"X̂, {method.name}", centre_crop(coded.decoded, side), f"{coded.bpp:.2f} bpp, {share:.0%} kept")
        )
    return columns


def _columns(pair: Pair, name: str, best: Coded, ours: Coded, side: int) -> list[tuple[str, Tensor, str]]:
    def psnr(picture: Tensor) -> str:
        return f"{-10 * float((picture - pair.ideal).square().mean().log10()):.2f} dB"

    return [
        ("degraded X", centre_crop(pair.degraded, side), psnr(pair.degraded)),
        (
            "strongest baseline:\ndecoded",
            centre_crop(best.decoded, side),
            f"{method_label(name)}\n{psnr(best.decoded)}",
        ),
        ("strongest baseline:\noutput", centre_crop(best.output, side), f"{best.bpp:.3f} bpp, {psnr(best.output)}"),
        ("LL-ICM:\ndecoded X̂", centre_crop(ours.decoded, side), psnr(ours.decoded)),
        ("LL-ICM:\nenhanced X̂_H", centre_crop(ours.output, side), f"{ours.bpp:.3f} bpp, {psnr(ours.output)}"),
        ("ideal", centre_crop(pair.ideal, side), pair.name),
    ]


def recognition_markdown(numbers: dict) -> str:
    """How often the guide names the degradation, as Markdown: a row per question, a column per level.

    Args:
        numbers: results/vlm/recognition.json, written by notebook 2.
    """
    questions = {
        "accuracy_of_tasks_among_tasks": "the study's tasks, told apart among themselves",
        "accuracy_of_tasks": "the study's tasks, among all ten words and *clean*",
        "accuracy_of_all_words": "all ten words and *clean*",
    }
    levels = list(numbers["accuracy_of_tasks"])
    names = ["uncompressed" if level == "none" else f"level {level}" for level in levels]
    lines = [
        f"Share of test images ({numbers['images_per_level']} a level) whose degradation the guide names, zero-shot, "
        "in X̂ of the RDO codec (level 0 is the lowest rate):",
        "",
        "| | " + " | ".join(names) + " |",
        "|---|" + "---:|" * len(levels),
    ]
    for key, text in questions.items():
        lines.append(f"| {text} | " + " | ".join(f"{numbers[key][level]:.0%}" for level in levels) + " |")
    return "\n".join(lines) + "\n"


def steps_of(family: dict) -> dict[str, int]:
    """Method -> steps, of a family of params.yaml whose methods differ in nothing else."""
    methods = family["methods"].items()
    return {name: entry["steps"] for name, entry in methods if isinstance(entry, dict) and "steps" in entry}


def write_timing(folder: Path, out: Path) -> bool:
    """The figure of the diffusion steps with what they cost on this machine, and the seconds as CSV.

    Times differ from run to run, so they are none of the pipeline's outputs: this takes what the evaluation has left
    in `.run/timing`, and is run by hand to publish it.

    Args:
        folder: of params.yaml, after a run of the pipeline. out: for steps.png and steps.csv.

    Returns:
        Whether there was something to draw: a family named by `figures.steps`, and its times.
    """
    from llicm.pipeline.parameters import load

    values = load(folder / "params.yaml")
    name = values["figures"]["steps"]
    times = folder / ".run/timing" / f"{name}.csv"
    if name is None or not times.is_file():
        return False
    seconds = pd.read_csv(times).set_index("method")["seconds"].to_dict()
    family = values["families"][name]
    records = read_records([folder / "results/records.parquet"])
    metrics = family.get("metrics") or values["evaluate"]["metrics"]
    write_atomically(out / "steps.csv", times.read_bytes())
    figure = diffusion_steps(records, steps_of(family), metrics, seconds)
    save_figure(figure, out / "steps.png", values["figures"]["dpi"], palette=True)
    return True


def write_runs(folder: Path, out: Path) -> int:
    """What the last run took, as it cannot be among the outputs: ``stages.json`` and ``evaluation.csv``.

    The former has, by stage, seconds, host and library versions, from `.run/hosts`; the latter, by family, the seconds
    of all calls of codecs, restorers and metrics, the wall time, and how busy that kept the workers.

    Args:
        folder: of params.yaml, after a run of the pipeline. out: for the two files.

    Returns:
        The number of stages told of; those that did not run again keep what was published of them.
    """
    path = out / "stages.json"
    stages = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found = sorted((folder / ".run" / "hosts").glob("*.json"))
    stages |= {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in found}
    if found:
        write_atomically(path, (json.dumps(stages, indent=1, sort_keys=True) + "\n").encode())
    rows = []
    for file in sorted((folder / ".run" / "timing").glob("*.json")):
        numbers = json.loads(file.read_text(encoding="utf-8"))
        rows.append({"family": file.stem} | {key: value for key, value in numbers.items() if key != "by"})
    if rows:
        write_atomically(out / "evaluation.csv", pd.DataFrame(rows).to_csv(index=False).encode())
    return len(stages)


def update_readme(readme: Path, results: Path) -> None:
    """Put the published tables between the markers of the README, atomically.

    Args:
        results: folder with the files of ``README_TABLES``.

    Raises:
        UserError: the README lacks a marker, or a table is missing.
    """
    text = readme.read_text(encoding="utf-8")
    for name, file in README_TABLES.items():
        path, begin, end = results / file, f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        if not path.is_file():
            raise UserError(f"{path}: no such table; run `dvc repro` first")
        if begin not in text or end not in text:
            raise UserError(f"{readme}: its markers {begin.strip()} and {end} are missing; put them where it goes")
        head, tail = text.split(begin)[0], text.split(end)[1]
        text = head + begin + path.read_text(encoding="utf-8") + end + tail
    write_atomically(readme, text.encode())


if __name__ == "__main__":
    try:
        write_timing(Path(), Path("results/timing"))
        write_runs(Path(), Path("results/timing"))
        update_readme(Path("README.md"), Path("results"))
    except UserError as error:
        sys.exit(str(error))
