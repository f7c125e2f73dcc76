# SPDX-License-Identifier: Apache-2.0
"""What a run took. Times differ from run to run, so they are none of the pipeline's outputs, and are published by hand:

    python -m llicm.report.timing

This takes what the last run has left in `.run`, and writes results/timing.
"""

import json
from pathlib import Path

import pandas as pd
import yaml

from llicm.benchmark.records import read_records
from llicm.files import write_atomically, write_json
from llicm.parameters import load
from llicm.report.comparisons import of_role
from llicm.report.figures import diffusion_steps
from llicm.report.style import save_figure


def write_timing(folder: Path, out: Path) -> bool:
    """The figure of the diffusion steps with what they cost on this machine, and the seconds as CSV.

    Args:
        folder: of params.yaml, after a run of the pipeline. out: for steps.png and steps.csv.

    Returns:
        Whether there was something to draw: methods of the role `steps`, and their times.
    """
    parameters = load(folder / "params.yaml")
    methods = of_role(parameters.methods, "steps")
    if not methods:
        return False
    group = methods[0].group
    times = folder / ".run" / "timing" / f"{group}.csv"
    if not times.is_file():
        return False
    seconds = pd.read_csv(times).set_index("method")["seconds"].to_dict()
    records = read_records([folder / "results" / "records.parquet"])
    metrics = parameters.benchmark[group].metrics or parameters.evaluate.metrics
    write_atomically(out / "steps.csv", times.read_bytes())
    figure = diffusion_steps(records, {method.name: method.steps or 0 for method in methods}, metrics, seconds)
    save_figure(figure, out / "steps.png", parameters.figures.dpi, palette=True)
    return True


def write_runs(folder: Path, out: Path) -> int:
    """What the last run took: ``stages.json`` and ``evaluation.csv``.

    The former has, by stage, seconds, host and library versions, from `.run/hosts`; the latter, by codec group, the
    seconds of all calls of codecs, restorers and metrics, the wall time, and how busy that kept the workers.

    Args:
        folder: of params.yaml, after a run of the pipeline. out: for the two files.

    Returns:
        The number of stages told of; those that did not run again keep what was published of them.
    """
    path = out / "stages.json"
    stages = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found = sorted((folder / ".run" / "hosts").glob("*.json"))
    stages |= {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in found}
    lock = folder / "dvc.lock"
    if lock.is_file():  # a stage that is gone has no time
        present = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"]
        stages = {name: told for name, told in stages.items() if name in present}
    if found:
        write_json(stages, path, sort_keys=True)
    rows = []
    for file in sorted((folder / ".run" / "timing").glob("*.json")):
        numbers = json.loads(file.read_text(encoding="utf-8"))
        rows.append({"family": file.stem} | {key: value for key, value in numbers.items() if key != "by"})
    if rows:
        write_atomically(out / "evaluation.csv", pd.DataFrame(rows).to_csv(index=False).encode())
    return len(stages)


if __name__ == "__main__":
    write_timing(Path(), Path("results/timing"))
    write_runs(Path(), Path("results/timing"))
