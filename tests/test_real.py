# SPDX-License-Identifier: Apache-2.0
"""The tables of real degradations follow from the records beside them."""

import runpy
from pathlib import Path

from llicm.benchmark.records import read_records

ROOT = Path(__file__).resolve().parents[1]


def test_tables_are_what_the_records_give(tmp_path):
    script = runpy.run_path(str(ROOT / "bench" / "real.py"))
    committed = {path.name: path.read_bytes() for path in (ROOT / "results" / "real" / "tables").iterdir()}
    script["write_tables"].__globals__["TABLES"] = tmp_path
    script["write_tables"]({kind: read_records(ROOT / f"results/real/{kind}.parquet") for kind in ("whole", "some")})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == committed
    assert {"restoration.md", "points.csv", *(f"{name}.md" for name in script["SETS"])} <= set(committed)
