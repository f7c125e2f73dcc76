# SPDX-License-Identifier: Apache-2.0
"""The published models on pairs with a real degradation. `make real` writes results/real, which docs/real.md shows.

What restoring gives is measured on all pictures, codecs on some, with learned metrics that take seconds a picture.
"""

import sys
from pathlib import Path

import pandas as pd

from llicm.benchmark.metrics import metric_info
from llicm.benchmark.records import read_records, write_records
from llicm.data.catalogue import catalogue
from llicm.errors import UserError
from llicm.files import write_atomically, write_json
from llicm.model import load_model
from llicm.parameters import change, read
from llicm.pipeline.benchmark import run_benchmark
from llicm.report.writing import markdown, method_label, text_of, write_csv
from llicm.vlm.conditioner import save_conditioner
from llicm.weights import save_part

OUT, WORK, PUBLISHED = Path("results/real"), Path(".run/real"), Path("init/published")
TABLES = OUT / "tables"
SETS = [name for name, entry in catalogue().items() if entry.kind == "real"]
METRICS = ["psnr", "ms_ssim", "stlpips", "stlpips-vgg", "niqe", "brisque"]
DIGITS = {"psnr": 2, "ms_ssim": 4, "stlpips": 3, "stlpips-vgg": 3, "niqe": 2, "brisque": 1}
PICTURES, SIDE = 4, 224  # of each set, in equal distances, and cut to so many pixels a side
GROUPS = {
    "raw": {"role": "reference", "methods": {"degraded": "raw", "restored": "raw>restorer"}, "levels": [0]},
    "heic": {"methods": ["heic", "restorer>heic"], "levels": [8, 14, 20]},
    "rdo": {"methods": ["rdo>restorer", "restorer>rdo"], "levels": [0, 2, 4]},
    "llicm": {"role": "test", "methods": ["llicm"], "levels": [0, 2, 4]},
}
MODELS = {"raw": ["restorer"], "heic": ["restorer"], "rdo": ["rdo", "restorer"], "llicm": ["llicm"]}


def lay_out(root: Path, images: int | None) -> Path:
    """The published weights as a study that `llicm benchmark` takes, with the methods and levels above."""
    models, system = root / "artifacts" / "models", load_model(PUBLISHED / "llicm.safetensors")
    for part in ("codec", "restorer", "prefilter"):
        if getattr(system, part) is not None:
            save_part(getattr(system, part), models / "llicm" / f"{part}.safetensors")
    save_conditioner(system.conditioner, models / "vlm")
    for model, part in (("rdo", "codec"), ("restorer", "restorer")):
        write_atomically(models / model / f"{part}.safetensors", (PUBLISHED / f"{model}.safetensors").read_bytes())
    groups = {
        name: {**group, "models": (MODELS[name] + ["none"] * 3)[:3]} | ({"images": images} if images else {})
        for name, group in GROUPS.items()
    }
    figures = {"comparisons": {}, "curves": [], "anchors": [], "decoded": "heic"}
    changes = {f"figures.{name}": value for name, value in figures.items()} | {"benchmark": groups}
    changes |= {"evaluate.workers": 1, "evaluate.metrics": METRICS}
    # YAML has all of JSON
    write_json(change(read("profiles/study/params.yaml"), changes).model_dump(mode="json"), root / "params.yaml")
    return root


def measure() -> dict[str, pd.DataFrame]:
    """Records of all pictures and of some, with the name of the set in place of the task."""
    whole = {"groups": ["raw"], "metrics": ["psnr", "ms_ssim"]}
    some = {"groups": list(GROUPS), "metrics": METRICS, "max_side": SIDE}
    found = {}
    for kind, images, options in (("whole", None, whole), ("some", PICTURES, some)):
        root, parts = lay_out(WORK / kind, images), []
        for name in SETS:
            folder = run_benchmark(name, root / "out" / name, root=root, datasets=Path("datasets"), **options)
            parts.append(read_records(folder / "records.parquet").assign(task=name))
        found[kind] = pd.concat(parts, ignore_index=True)
        write_records(found[kind], OUT / f"{kind}.parquet")
    return found


def restoration(records: pd.DataFrame) -> pd.DataFrame:
    """What the restorer does to whole pictures without a codec, a row a set."""
    means = records.groupby(["task", "metric", "method"])["value"].mean().unstack()
    rows = []
    for name in SETS:
        row = {"set": name, "pictures": records.loc[records["task"] == name, "image"].nunique()}
        for metric in ("psnr", "ms_ssim"):
            before, after = means.loc[(name, metric), ["degraded", "restored"]]
            label = metric_info(metric).label
            row |= {f"{label} X": before, f"{label} restored": after, f"{label} gain": after - before}
        rows.append(row)
    return pd.DataFrame(rows)


def points(records: pd.DataFrame) -> pd.DataFrame:
    """Means over the pictures: a row a set, method and level, in the order above."""
    measured = records[records["metric"].isin(METRICS)]
    values = measured.groupby(["task", "method", "level", "metric"])["value"].mean().unstack()[METRICS]
    values.insert(0, "bpp", measured.groupby(["task", "method", "level"])["bpp"].mean())
    order = [
        (name, method, f"{level:g}")
        for name in SETS for group in GROUPS.values() for method in group["methods"] for level in group["levels"]
    ]  # fmt: skip
    return values.loc[order].reset_index()


def write_tables(found: dict[str, pd.DataFrame]) -> None:
    gains, values = restoration(found["whole"]), points(found["some"])
    write_csv(gains, TABLES / "restoration.csv")
    write_csv(values, TABLES / "points.csv")
    rows = [
        [row["set"], str(row["pictures"])]
        + [f"{row[name]:{'+' if 'gain' in name else ''}.{4 if 'SSIM' in name else 2}f}" for name in gains.columns[2:]]
        for _, row in gains.iterrows()
    ]
    write_atomically(TABLES / "restoration.md", text_of(markdown(list(gains.columns), rows)).encode())
    head = [
        "method",
        "level",
        "bpp",
        *(f"{i.label} {'↓' if i.lower_better else '↑'}" for i in map(metric_info, METRICS)),
    ]
    for name, of in values.groupby("task"):
        rows = [
            [method_label(row["method"]), row["level"] if row["bpp"] < 24 else "", f"{row['bpp']:.3f}"]
            + [f"{row[metric]:.{DIGITS[metric]}f}" for metric in METRICS]
            for _, row in of.iterrows()
        ]
        write_atomically(TABLES / f"{name}.md", text_of(markdown(head, rows)).encode())
    images = found["some"].groupby("task")["image"].unique()
    lines = [f"- {name}: {', '.join(f'`{image}`' for image in sorted(images[name]))}" for name in SETS]
    lines = [f"The middle of these pictures, at most {SIDE}x{SIDE} pixels:", "", *lines]
    write_atomically(TABLES / "pictures.md", text_of(lines).encode())


if __name__ == "__main__":
    try:
        write_tables(measure())
    except UserError as error:
        sys.exit(f"error: {error}")
