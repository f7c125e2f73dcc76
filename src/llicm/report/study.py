# SPDX-License-Identifier: Apache-2.0
"""What a study publishes, section by section: each function writes its files and returns what a notebook shows.

That is Markdown, or the path of a picture. Nothing is measured here except the few pictures that are shown.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from llicm.benchmark.records import write_records
from llicm.files import write_atomically, write_json
from llicm.methods import Method
from llicm.parameters import Parameters
from llicm.report import comparisons, diagrams, figures, tables
from llicm.report.comparisons import metrics_of, of_role, sampling_steps
from llicm.report.interactive import curves_pages
from llicm.report.pictures import failure_rows, kept_crops, picture_rows, strip_rows
from llicm.report.recognition import recognition_markdown
from llicm.report.sliders import write_sliders
from llicm.report.style import save_figure
from llicm.report.writing import write_csv

OPENING = 6  # curves that the interactive page shows at first
GALLERY = 8  # failures that are shown


@dataclass(frozen=True)
class Study:
    """Records with the parameters that made them, and the folders to write to.

    Attributes:
        every: records of all methods, as `read_records` reads them.
        parameters: tasks, extra, models, benchmark, training and figures are used.
        out: folder of the results. artifacts: folder for what is too large for them.
        made: folder of the pipeline's artifacts, with the models and pairs of what is shown.
        init: folder with published weights that took the place of pretraining, or None.
        flat: tables and figures go into `out` itself instead of folders below it.
    """

    every: pd.DataFrame
    parameters: Parameters
    out: Path = Path("results")
    artifacts: Path = Path("artifacts")
    made: Path = Path("artifacts")
    init: Path | None = None
    flat: bool = False

    @property
    def tables(self) -> Path:
        return self.out if self.flat else self.out / "tables"

    @property
    def test(self) -> str:
        """The method that the tables are about."""
        return self.parameters.figures.test

    @property
    def tasks(self) -> list[str]:
        return self.parameters.tasks

    @cached_property
    def methods(self) -> list[Method]:
        """Those measured."""
        measured = set(self.every["method"])
        return [method for method in self.parameters.methods if method.name in measured]

    @cached_property
    def compared(self) -> list[Method]:
        """Forms of LL-ICM and their rivals; if none was measured all that have a codec."""
        return of_role(self.methods, "test", "baseline") or [m for m in self.methods if m.role != "reference"]

    @cached_property
    def direct(self) -> list[Method]:
        """Those of them without a diffusion restorer."""
        return [method for method in self.compared if sampling_steps(method, self.parameters.models) is None]

    @cached_property
    def measured(self) -> pd.DataFrame:
        """Records of what is compared, and of the uncompressed references, on all sets of pairs."""
        names = [method.name for method in (*self.compared, *of_role(self.methods, "reference"))]
        return self.every[self.every["method"].isin(names)]

    @cached_property
    def records(self) -> pd.DataFrame:
        """The same on the study's tasks."""
        return self.measured[self.measured["task"].isin(self.tasks)]

    @cached_property
    def metrics(self) -> list[str]:
        """Metrics of the tasks that all that is compared was measured by, PSNR and MS-SSIM first."""
        compared, by = {method.name for method in self.compared}, self.records.groupby("metric")["method"]
        common = [name for name in metrics_of(self.records) if compared <= set(by.get_group(name))]
        return sorted(common, key=lambda name: (name != "psnr", name != "ms_ssim"))

    def having(self, methods: Sequence[Method], probe: str) -> list[Method]:
        """Those of `methods` with a value of the probe."""
        names = set(self.records.loc[self.records["metric"] == probe, "method"])
        return [method for method in methods if method.name in names]

    def save(self, figure: Figure, name: str) -> Path:
        """Write a figure; `name` ends in .png or .jpg."""
        path = (self.out if self.flat else self.out / "figures") / name
        save_figure(figure, path, self.parameters.figures.dpi, palette=True)
        return path

    def write(self, name: str, text: str) -> str:
        """Write a table of that name and return it."""
        write_atomically(self.tables / name, text.encode())
        return text


def keep_records(study: Study) -> str:
    """All records: in single precision for the repository's sake, and as CSV with all digits. Returns their size."""
    single = study.every.astype({"bpp": "float32", "value": "float32"}).astype({"bpp": float, "value": float})
    write_records(single, study.out / "records.parquet")
    write_records(study.every, study.artifacts / "records.csv")
    return (
        f"{len(study.every)} values: {len(study.compared)} methods, {len(study.tasks)} tasks, "
        f"metrics {', '.join(study.metrics)}"
    )


def framework(study: Study) -> Path:
    """Figures 1 to 3: what is compared, what is minimised, and the system."""
    study.save(diagrams.frameworks(), "figure_1_frameworks.png")
    study.save(diagrams.objectives(), "figure_2_objectives.png")
    return study.save(diagrams.system(), "figure_3_system.png")


def curves(study: Study) -> Path:
    """Figure 4: rate-perception curves, a figure a metric."""
    by_name, settings = {method.name: method for method in study.compared}, study.parameters.figures
    drawn = [by_name[name] for name in settings.curves if name in by_name] or study.compared
    thick = comparisons.headline_tests(study.compared, study.test, settings.comparisons)
    paths = []
    for metric in study.metrics:
        name = "figure_4_psnr.png" if metric == "psnr" and not study.flat else f"rate_perception_{metric}.png"
        figure = figures.rate_perception(study.records, metric, study.tasks, drawn, highlight=thick)
        paths.append(study.save(figure, name))
    return paths[0]


def compare(study: Study) -> pd.DataFrame:
    """Tables of all comparisons, and BD-rates and BD-PSNR as heat maps; returns the table of `write_comparisons`."""
    table = tables.write_comparisons(
        study.records, study.metrics, study.compared, study.tasks, study.tables, study.test,
        study.parameters.figures.comparisons,
    )  # fmt: skip
    if ((table["test"] == study.test) & (table["metric"] == "psnr")).any():
        study.save(figures.bd_heatmap(table, "psnr", study.test, study.tasks), "bd_rate_psnr.png")
        study.save(figures.bd_heatmap(table, "psnr", study.test, study.tasks, "quality"), "bd_psnr.png")
    return table


def results(study: Study, table: pd.DataFrame) -> str:
    """LL-ICM against every method in PSNR; also all points, the budgets, and the curves in CompressAI's format.

    Args:
        table: made by `compare`.
    """
    parameters, shown = study.parameters, study.records[study.records["metric"].isin(["psnr", "ms_ssim"])]
    write_csv(comparisons.mean_points(shown), study.out / "points.csv", digits=5)
    write_csv(comparisons.restoration(study.records, study.tasks), study.tables / "restoration.csv", index=True)
    given = comparisons.budgets(parameters.methods, parameters.models, parameters.training, study.init)
    write_csv(given, study.tables / "methods.csv", digits=None)
    tables.write_compressai(study.every, study.tables / "compressai")
    pairs = parameters.figures.comparisons
    intros = {name: _intro(study, test) for name, (test, _) in pairs.items()}
    text = tables.results_markdown(study.records, table, study.tasks, pairs, study.test, intros, given)
    return study.write("readme.md", text)


def _intro(study: Study, test: str) -> str:
    """How a sentence begins that compares `test` with the same parts trained separately."""
    method, ours = (next(m for m in study.parameters.methods if m.name == name) for name in (test, study.test))
    if method is ours:
        return "LL-ICM against the same codec and restorer trained separately"
    if method.prefilter:
        return "With the restorer before the codec too, in both"
    if sampling_steps(method, study.parameters.models):
        return "With the diffusion restorer in both"
    return "In the paper's order, the restorer behind the codec" if ours.prefilter else "Another form of LL-ICM"


def headline(study: Study, table: pd.DataFrame) -> str:
    """LL-ICM against the strongest baseline of each task. Writes comparisons.csv, and to metrics.json their means and
    what LL-ICM does to clean pictures at the level where it is worst.

    Args:
        table: made by `compare`.
    """
    pairs = study.parameters.figures.comparisons
    summarised = comparisons.summary(table, study.compared, study.tasks, pairs)
    write_csv(summarised, study.tables / "comparisons.csv", digits=None)
    gains = comparisons.restoration(study.records, study.tasks)["gain"]
    numbers = comparisons.headline_numbers(summarised, gains, study.test)
    lost = comparisons.harm(study.every[study.every["method"] == study.test])
    if len(lost):
        numbers |= {"harm_share": round(lost["share"].max(), 4), "harm_worst_db": round(lost["worst"].min(), 4)}
    write_json(numbers, study.out / "metrics.json")
    return (study.tables / "headline.md").read_text(encoding="utf-8")


def non_monotone(study: Study) -> Path:
    """Figure 5: curves that fall with the rate, and why. The table non_monotone.md is written by `compare`."""
    kept = [method for method in study.direct if method.order == "alone" or method.role == "test"]
    shown = next(method for method in study.methods if method.name == study.parameters.figures.decoded)
    side, task = study.parameters.figures.side // 2, study.tasks[0]
    crops = kept_crops(shown, task, study.made / "pairs", study.made / "models", side=side)
    figure = figures.non_monotone_why(study.records, task, study.having(kept, "kept"), crops)
    return study.save(figure, "figure_5_non_monotone.jpg")


def hidden(study: Study) -> Path:
    """The gap between estimated and real rates. What metrics hide is in disagreements.md, written by `compare`."""
    return study.save(figures.rate_gap(study.records, study.having(study.direct, "bpp_estimated")), "rate_gap.png")


def extra_sets(study: Study) -> str:
    """LL-ICM on clean input, mixtures and other severities, compared with those of `figures.anchors` measured there."""
    extra = study.parameters.extra
    among = study.measured[study.measured["task"].isin(extra)]
    anchors = [name for name in study.parameters.figures.anchors if name in set(among["method"])]
    text = "No further sets in these parameters.\n"
    return study.write("extra.md", tables.extra_markdown(among, extra, study.test, anchors) if extra else text)


def harm(study: Study) -> str:
    """What restoring takes from clean pictures: a table of all methods that restore."""
    table = comparisons.harm(study.measured)
    text = "No clean pictures in these parameters.\n"
    return study.write("harm.md", tables.harm_markdown(table) if len(table) else text)


def recognition(study: Study, measured: Path) -> str:
    """How often the vision-language model names the degradation, from recognition.json."""
    numbers = json.loads(measured.read_text(encoding="utf-8"))
    return study.write("recognition.md", recognition_markdown(numbers))


def ablation(study: Study) -> str:
    """Does the vision-language model help? Restorers that are alike but for what steers them, against the first."""
    variants = of_role(study.methods, "ablation")
    if not variants:
        return study.write("ablation.md", "No ablation in these parameters.\n")
    first, *others = (method.name for method in variants)
    among = study.every[study.every["method"].isin([first, *others])]
    compared = comparisons.ablation(among, first, others, study.tasks, metrics_of(among))
    write_csv(compared, study.tables / "ablation.csv")
    updates = study.parameters.models[variants[0].restorer or ""].updates or 0
    titles = {method.name: method.title for method in variants}
    return study.write("ablation.md", tables.ablation_markdown(compared, updates, titles))


def specialists(study: Study) -> str:
    """LL-ICM against forms of itself that were trained for one task alone: what the one universal codec costs."""
    alone = comparisons.specialists(study.every, study.methods, study.tasks)
    if not alone:
        return study.write("specialists.md", "No specialists in these parameters.\n")
    among = study.every[study.every["method"].isin([*alone.values(), study.test])]
    common = set(metrics_of(among, alone.values()))
    table = comparisons.versus(among, [name for name in study.metrics if name in common], study.test, alone)
    write_csv(table, study.tables / "specialists.csv")
    return study.write("specialists.md", tables.headline_markdown(table, rival="specialist"))


def diffusion_steps(study: Study) -> Path | None:
    """What more steps of the diffusion restorer give; None if none were measured."""
    steps = {method.name: method.steps or 0 for method in of_role(study.methods, "steps")}
    if not steps:
        return None
    return study.save(
        figures.diffusion_steps(study.every, steps, metrics_of(study.every, steps)), "diffusion_steps.png"
    )


def pictures(study: Study, table: pd.DataFrame) -> Path:
    """Figure 6: LL-ICM beside the strongest baseline, coded to the same rate.

    Args:
        table: made by `compare`.
    """
    settings = study.parameters.figures
    rows = strip_rows(
        table, study.compared, study.test, study.tasks, study.made / "pairs", study.made / "models",
        image=settings.image, level=settings.level, side=settings.side,
    )  # fmt: skip
    text = (
        "At one rate a task: the strongest baseline at the left, LL-ICM at the right. Move the slider, also by the "
        "arrow keys, and choose other pictures for both sides. They show the middle of a test photo; rates and PSNR "
        "are those of the whole."
    )
    page = study.artifacts / "curves" / "sliders.md"
    write_sliders(page, "Pictures at one rate, under a slider", text, dict(rows), 2, 4)
    return study.save(picture_rows(rows), "figure_6_pictures.jpg")


def interactive(study: Study, table: pd.DataFrame) -> str:
    """All curves in one interactive page that opens with six methods, and a page around it, whose list is returned:
    which of them is best where.

    Args:
        table: made by `compare`.
    """
    settings = study.parameters.figures
    strongest = Counter(comparisons.strongest(table, study.compared, study.test, task) for task in study.tasks)
    wanted = [
        *comparisons.headline_tests(study.compared, study.test, settings.comparisons),
        *(name for name, _ in strongest.most_common()), *settings.curves, *(method.name for method in study.compared),
    ]  # fmt: skip
    names = {method.name for method in study.compared}
    first = [name for name in dict.fromkeys(wanted) if name in names][:OPENING]
    alone, around = curves_pages(study.records, study.metrics, study.tasks, study.compared, first)
    write_atomically(study.artifacts / "curves" / "curves.html", alone.encode())
    write_atomically(study.artifacts / "curves" / "better.md", around.encode())
    return "\n".join(line for line in around.splitlines() if line.startswith("- "))


def failures(study: Study) -> str:
    """A gallery of the test pictures that LL-ICM makes worst; returns how many it makes worse than doing nothing."""
    of = study.every[study.every["method"].isin([study.test, "degraded"])]
    table, seen = comparisons.failures(of, study.test), of.groupby(["task", "image"]).ngroups
    (method,) = [method for method in study.methods if method.name == study.test]
    side, shown = study.parameters.figures.side, table.head(GALLERY)
    rows = failure_rows(shown, method, study.made / "pairs", study.made / "models", side=side)
    text = (
        f"At its highest rate `{study.test}` makes {len(table)} of {seen} test pictures worse, in PSNR, than doing "
        "nothing: than leaving X as it is, or where X is clean than coding it without restoring."
    )
    shows = f"These are the worst {len(shown)}: X at the left, enhanced X̂_H at the right." if len(shown) else ""
    write_sliders(study.artifacts / "curves" / "failures.md", "Failures", f"{text} {shows}", rows, 0, 2)
    return text


def elsewhere(study: Study) -> None:
    """All that follows from records alone, for a benchmark on other photos: records, curves and comparisons, as far as
    what was measured has them."""
    for name in ("records.parquet", "records.csv.gz"):
        write_records(study.every, study.out / name)
    if study.compared:
        curves(study)
        compare(study)
