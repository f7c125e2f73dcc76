# SPDX-License-Identifier: Apache-2.0
"""Who is compared with whom, by which rule, and what each was trained for: from records to data frames.

LL-ICM is compared with the *strongest* baseline of each task, see `strongest`. `llicm.report.tables` writes what is
computed here.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from llicm.benchmark.bdrate import SSIM_FAMILY, BDInterval, bd_interval, bd_table
from llicm.benchmark.metrics import metric_info
from llicm.benchmark.probes import PROBES
from llicm.benchmark.records import mean_curves, references
from llicm.errors import UserError
from llicm.methods import NONE, Method
from llicm.objectives import EQUAL_PSNR
from llicm.parameters import Model, Training
from llicm.report.writing import chosen

STRONGEST = "strongest"  # as an anchor: the strongest baseline of each task
HARM = 0.5  # dB of PSNR that a clean picture may lose by restoring


def of_role(methods: Iterable[Method], *roles: str) -> list[Method]:
    """The methods that play one of these roles, in their order."""
    return [method for method in methods if method.role in roles]


def baselines(methods: Iterable[Method]) -> set[str]:
    """Names of the rivals of LL-ICM; its own other forms are none."""
    return {method.name for method in of_role(methods, "baseline")}


def metrics_of(records: pd.DataFrame, methods: Iterable[str] | None = None) -> list[str]:
    """Metrics in the records, probes left out; `methods`: those measured of any of these."""
    rows = records if methods is None else records[records["method"].isin(list(methods))]
    return [name for name in dict.fromkeys(rows["metric"]) if name not in PROBES]


def quality_unit(metric: str) -> str:
    """Unit of a metric's BD-quality: dB for the SSIM family, which is compared on that scale; "" for none."""
    return "dB" if metric in SSIM_FAMILY else metric_info(metric).unit


def mean_points(records: pd.DataFrame) -> pd.DataFrame:
    """Points of all curves: one row per (metric, task, method, level) with mean bpp and mean value over images."""
    rows = [
        {"metric": metric, "task": task, "method": method, "level": level, "bpp": bpp, "value": value}
        for metric in records["metric"].unique()
        for (method, task), curve in mean_curves(records, metric).items()
        for level, bpp, value in zip(curve.level, curve.bpp, curve.value, strict=True)
    ]
    return pd.DataFrame(rows)


def restoration(records: pd.DataFrame, tasks: Sequence[str]) -> pd.DataFrame:
    """What the restorer does without any codec: mean PSNR (dB) of X, of X_H, and the gain, a row a task."""
    psnr = references(records, "psnr")
    table = pd.DataFrame({"degraded": psnr["degraded"], "restored": psnr["restored"]}).loc[list(tasks)]
    table["gain"] = table["restored"] - table["degraded"]
    return table


def candidates(table: pd.DataFrame, methods: Iterable[Method], test: str, task: str) -> pd.DataFrame:
    """Rows of `bd_table` that compare `test`, in PSNR, with a baseline whose rates meet its own."""
    rows = table[(table["test"] == test) & (table["metric"] == "psnr") & (table["task"] == task)]
    return rows[rows["bd_quality"].notna() & rows["anchor"].isin(baselines(methods))]


def strongest(table: pd.DataFrame, methods: Iterable[Method], test: str, task: str) -> str:
    """The baseline against which `test` gains least: the smallest BD-quality over the shared rates.

    The rule was fixed before the results: BD-quality and not BD-rate decides, because it exists for curves that fall
    with the rate too, and PSNR decides for all metrics, so that each is not compared with the rival that suits it.
    `table` is made by `llicm.benchmark.bdrate.bd_table`.

    Raises:
        UserError: there is no candidate.
    """
    rows = candidates(table, methods, test, task)
    if not len(rows):
        raise UserError(
            f"No baseline shares a range of rates with {test} on {task}: choose other levels in params.yaml."
        )
    return str(rows.loc[rows["bd_quality"].idxmin(), "anchor"])


def headline(
    records: pd.DataFrame, table: pd.DataFrame, methods: Iterable[Method], tasks: Sequence[str], test: str
) -> pd.DataFrame:
    """LL-ICM against the strongest baseline of each task: a row a metric and task, then one for the mean over tasks.

    Args:
        records: as read by `read_records`. table: made by `bd_table`. test: which form of LL-ICM.

    Returns:
        The columns metric, task ("mean" for the mean), anchor, and bd_rate (percent) and bd_quality, each with
        ``_low`` and ``_high``, the ends of its 95% interval over images. Undefined numbers are NaN.
    """
    best = {task: strongest(table, methods, test, task) for task in tasks}
    return versus(records, list(dict.fromkeys(table["metric"])), test, best)


def headline_tests(methods: Sequence[Method], test: str, comparisons: Mapping[str, Sequence[str]]) -> list[str]:
    """Those of `methods` with a headline table: the study's `test`, and what is compared with the strongest."""
    known = {method.name for method in methods}
    wanted = [test, *(name for name, anchor in comparisons.values() if anchor == STRONGEST)]
    return [name for name in dict.fromkeys(wanted) if name in known]


def versus(records: pd.DataFrame, metrics: Sequence[str], test: str, rivals: Mapping[str, str]) -> pd.DataFrame:
    """One method against one rival a task: a row a metric and task, then one for the mean over tasks.

    Args:
        records: as read by `read_records`. test: the method. rivals: task -> its anchor.

    Returns:
        As `headline`.
    """
    rows, tasks = [], list(rivals)
    for metric in metrics:
        for name, group in [*((task, [task]) for task in tasks), ("mean", tasks)]:
            found = bd_interval(records, metric, test, {task: rivals[task] for task in group}, group)
            row: dict[str, Any] = {"metric": metric, "task": name, "anchor": "" if name == "mean" else rivals[name]}
            rows.append(row | _with_ends(found) | {"tasks_defined": found.rate.defined})
    return pd.DataFrame(rows)


def _with_ends(found: BDInterval) -> dict[str, float]:
    """BD-rate and BD-quality with the ends of their intervals, NaN where undefined."""
    return {
        f"{name}{end}": math.nan if number is None else number
        for name, interval in (("bd_rate", found.rate), ("bd_quality", found.quality))
        for end, number in (("", interval.estimate), ("_low", interval.low), ("_high", interval.high))
    }


def specialists(records: pd.DataFrame, methods: Iterable[Method], tasks: Sequence[str]) -> dict[str, str]:
    """Task -> the form of LL-ICM that was made, and measured, for it alone."""
    measured = records[records["task"].isin(tasks)].groupby("method")["task"].unique()
    found = [method.name for method in of_role(methods, "specialist") if method.name in measured]
    return {str(measured[name][0]): name for name in found}


def disagreements(table: pd.DataFrame, methods: Iterable[Method], test: str) -> pd.DataFrame:
    """Where FR and NR metrics disagree on who is better: a row per comparison of LL-ICM with a baseline.

    Only comparisons on which all FR metrics agree are looked at, by the sign of BD-quality.

    Returns:
        The columns task, anchor, `full_reference` ("better" or "worse": LL-ICM), and one for each NR metric, likewise.
    """
    rows = table[(table["test"] == test) & table["anchor"].isin(baselines(methods)) & table["bd_quality"].notna()]
    info = {metric: metric_info(metric) for metric in dict.fromkeys(rows["metric"])}
    signs = rows.pivot(index=["task", "anchor"], columns="metric", values="bd_quality").apply(np.sign)
    full = [metric for metric in info if info[metric].needs_reference]
    none = [metric for metric in info if not info[metric].needs_reference]
    agreed = signs[(signs[full].nunique(axis=1) == 1) & signs[full].notna().all(axis=1)]
    words = {1.0: "better", -1.0: "worse", 0.0: "equal"}
    out = agreed[none].replace(words) if none else agreed[[]]
    out.insert(0, "full_reference", agreed[full[0]].map(words) if full else "")
    return out.reset_index()


def ablation(
    records: pd.DataFrame, anchor: str, tests: Sequence[str], tasks: Sequence[str], metrics: Sequence[str]
) -> pd.DataFrame:
    """What each variant gains over one of them: a row per (metric, test), in the given order.

    Args:
        records: as read by `read_records`. anchor, tests, tasks, metrics: names.

    Returns:
        The columns `method` (the test), `anchor`, `metric`; `bd_rate` (percent) and `bd_quality`, means over tasks,
        with the ends `_low` and `_high` of their 95% intervals over the test images (see `bd_interval`);
        `tasks_defined`, the number of tasks with a BD-rate; `images`; and last a column per task, named like it, with
        its BD-quality. Undefined numbers are NaN.
    """
    rows: list[dict[str, Any]] = []
    for metric in metrics:
        single = bd_table(records, [metric], tests, [anchor], tasks).set_index(["test", "task"])
        for test in tests:
            found = bd_interval(records, metric, test, anchor, tasks)
            row: dict[str, Any] = {"method": test, "anchor": anchor, "metric": metric} | _with_ends(found)
            row |= {"tasks_defined": found.rate.defined, "images": found.images}
            rows.append(row | {task: single.loc[(test, task), "bd_quality"] for task in tasks})
    return pd.DataFrame(rows)


class BDRow(NamedTuple):
    """One method against one anchor: a number a task, NaN where undefined, and whether it is "better" or "worse" at
    every rate measured, or ""."""

    anchor: str
    numbers: list[float]
    verdicts: list[str]

    @property
    def defined(self) -> list[float]:
        return [number for number in self.numbers if not math.isnan(number)]

    @property
    def mean(self) -> float:
        """Over the tasks where it is defined."""
        return float(np.mean(self.defined)) if self.defined else math.nan

    @property
    def partly(self) -> str:
        """\"2 of 6\", if the mean is over some of the tasks."""
        return f"{len(self.defined)} of {len(self.numbers)}" if 0 < len(self.defined) < len(self.numbers) else ""


def bd_rows(
    table: pd.DataFrame, metric: str, test: str, tasks: Sequence[str] | None, value: str
) -> tuple[list[str], list[BDRow]]:
    """Tasks, and BD-rates or BD-qualities of one method against each anchor.

    Args:
        table: made by `bd_table`. tasks: None for those of the table. value: "rate" or "quality".

    Raises:
        UserError: the table does not hold these comparisons.
    """
    rows = table[(table["test"] == test) & (table["metric"] == metric)]
    if not len(rows):
        raise UserError(f"The BD table has no {metric} of {test}: add them to it.")
    anchors = list(dict.fromkeys(rows["anchor"]))
    tasks = chosen(tasks, list(dict.fromkeys(rows["task"])), "task")
    words = {"test": "better", "anchor": "worse"}
    found = rows.set_index(["anchor", "task"])[[f"bd_{value}", "better"]].to_dict("index")
    cells = [[found.get((anchor, task), {}) for task in tasks] for anchor in anchors]
    return tasks, [
        BDRow(anchor, [c.get(f"bd_{value}", math.nan) for c in row], [words.get(c.get("better"), "") for c in row])
        for anchor, row in zip(anchors, cells, strict=True)
    ]


def sampling_steps(method: Method, models: Mapping[str, Model]) -> int | None:
    """How often a method calls the network of its diffusion restorer; None if its restorer is of another kind.

    Args:
        models: of params.yaml.
    """
    name, steps = method.restorer or NONE, method.steps
    while steps is None and name != NONE:  # the restorer may come from another model
        steps = getattr(models[name].restorer, "steps", None)
        name = NONE if models[name].restorer else models[name].start.restorer.partition("/")[0]
    return steps


def budgets(
    methods: Iterable[Method], models: Mapping[str, Model], training: Training, init: Path | None = None
) -> pd.DataFrame:
    """What each method was given: a row a method, with its codec, its order, and the updates of its parts.

    Args:
        models, training: of params.yaml. init: folder with published weights that took the place of pretraining; their
            own updates are not counted. None if there was none.
    """
    published = {path.stem for path in init.glob("*.safetensors")} if init else set()

    def schedule(name: str) -> tuple[int, int]:
        """Updates of a model, and how many of them are pretraining."""
        model = models[name]
        if model.updates:
            updates, pretraining = model.updates, model.pretraining or 0
        else:
            updates, pretraining = training.pretraining + training.fine_tuning, training.pretraining
        replaced = name in published and not any(_origin(model, part) for part in ("codec", "restorer", "prefilter"))
        return (updates - pretraining, 0) if replaced else (updates, pretraining)

    def updates_of(name: str, part: str) -> int:
        """Updates of a part of a model, those before it went into the model included."""
        model, (updates, pretraining), before = models[name], schedule(name), 0
        if origin := _origin(model, part):
            earlier, file = origin
            if file == "pretrained.safetensors":
                before = schedule(earlier)[1]
            else:  # a prefilter may have been another model's restorer
                before = updates_of(earlier, Path(file).stem)
        if part not in model.trains:
            return before
        fresh = not all(_origin(model, other) for other in model.trains)
        return before + updates - (0 if fresh else pretraining)

    rows = []
    for method in methods:
        restorer, before = method.restorer or method.prefilter, method.prefilter
        own = before == method.codec  # trained with its codec, not another model's restorer
        rows.append({
            "method": method.name, "family": method.group, "codec": "learned" if method.learned else method.codec,
            "order": method.order, "codec_updates": updates_of(method.codec, "codec") if method.learned else 0,
            "restorer_updates": updates_of(restorer, "restorer") if restorer else 0,
            "prefilter_updates": 0 if before is None else updates_of(before, "prefilter" if own else "restorer"),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _origin(model: Model, part: str) -> tuple[str, str] | None:
    """Model and weight file that a part starts from, or None."""
    name, _, file = getattr(model.start, part).partition("/")
    return None if name == NONE else (name, file)


def summary(
    table: pd.DataFrame, methods: Iterable[Method], tasks: Sequence[str], comparisons: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """BD-rates (percent) and BD-PSNR (dB) of LL-ICM: a row a comparison and task, then one of their means.

    Args:
        table: made by `bd_table`. comparisons: name -> test and anchor, or `STRONGEST` for the strongest of each task.

    Returns:
        Columns comparison, test, anchor (the strongest there), task ("mean" for the mean, of the BD-rates that exist),
        bd_rate and bd_psnr, rounded to 4 digits behind the point; NaN where undefined.

    Raises:
        UserError: the table lacks a comparison.
    """
    methods, rows = list(methods), []
    for name, (test, anchor) in comparisons.items():
        best = {task: strongest(table, methods, test, task) if anchor == STRONGEST else anchor for task in tasks}
        found = pd.concat([_psnr_row(table, test, rival, task) for task, rival in best.items()])
        found = found.rename(columns={"bd_quality": "bd_psnr"})[["test", "anchor", "task", "bd_rate", "bd_psnr"]]
        mean = {"test": test, "anchor": anchor, "task": "mean", **found[["bd_rate", "bd_psnr"]].mean()}
        rows.append(pd.concat([found, pd.DataFrame([mean])]).assign(comparison=name))
    if not rows:
        return pd.DataFrame(columns=["comparison", "test", "anchor", "task", "bd_rate", "bd_psnr"])
    together = pd.concat(rows, ignore_index=True)
    numbers = together[["bd_rate", "bd_psnr"]].astype(float).replace([math.inf, -math.inf], math.nan)
    together[["bd_rate", "bd_psnr"]] = numbers.round(4)
    return together[["comparison", "test", "anchor", "task", "bd_rate", "bd_psnr"]]


def headline_numbers(summarised: pd.DataFrame, gains: pd.Series, test: str) -> dict[str, float]:
    """The at most seven finite numbers of metrics.json: of three comparisons, and what the restorer gains.

    Comparisons of `test`, the method that the tables are about, go first, and among them that with the strongest
    baseline. A number that does not exist is left out.

    Args:
        summarised: made by `summary`. gains: PSNR in dB of each task, see `restoration`.
    """
    means = summarised[summarised["task"] == "mean"]
    chosen = sorted(
        means.itertuples(), key=lambda row: (row.test != test, row.test == test and row.anchor != STRONGEST)
    )
    numbers: dict[str, float] = {
        f"{row.comparison}.{column}": getattr(row, column) for row in chosen[:3] for column in ("bd_rate", "bd_psnr")
    } | {"restorer_gain_db": gains.mean()}
    return {name: round(float(number), 4) for name, number in numbers.items() if math.isfinite(number)}


def harm(records: pd.DataFrame) -> pd.DataFrame:
    """What restoring takes from clean pictures, a row a method and level, in the order of the records.

    Args:
        records: with the probe ``harm`` (see ``llicm.benchmark.probes``).

    Returns:
        `method`, `level`, `pictures`, `share` that lose more than `HARM` dB, and `worst`, the change in dB of the
        picture that loses most.
    """
    lost = records[records["metric"] == "harm"].groupby(["method", "level"], sort=False)["value"]
    table = pd.DataFrame({
        "pictures": lost.size(), "share": lost.agg(lambda values: (values > HARM).mean()), "worst": 0.0 - lost.max(),
    })  # fmt: skip
    return table.reset_index()


def failures(records: pd.DataFrame, test: str) -> pd.DataFrame:
    """Pictures that a method, at its highest rate, makes worse than doing nothing would, the worst first.

    Doing nothing is to keep X; for clean pictures, to code them without restoring (the probe ``harm``).

    Args:
        records: with those of the degraded pictures. test: the method.

    Returns:
        `task`, `image`, `level`, and `change` in dB of PSNR, below 0.
    """
    key = ["task", "image"]
    kept = records[(records["method"] == "degraded") & (records["metric"] == "psnr")].set_index(key)["value"]
    last = records[records["method"] == test].sort_values("bpp").groupby([*key, "metric"]).tail(1)
    psnr, lost = (last[last["metric"] == name].set_index(key) for name in ("psnr", "harm"))
    # of a clean picture X is the ideal: what a codec loses there is no failure
    change = (-lost["value"]).combine_first(psnr["value"] - kept[kept < EQUAL_PSNR])
    table = psnr[["level"]].assign(change=change).query("change < 0")
    return table.sort_values("change", kind="stable").reset_index()


def _psnr_row(table: pd.DataFrame, test: str, anchor: str, task: str) -> pd.DataFrame:
    rows = table[(table["test"] == test) & (table["anchor"] == anchor) & (table["task"] == task)]
    rows = rows[rows["metric"] == "psnr"]
    if not len(rows):
        raise UserError(f"There is no comparison of {test} with {anchor} on {task}: correct figures.comparisons.")
    return rows
