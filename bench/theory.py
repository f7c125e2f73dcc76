# SPDX-License-Identifier: Apache-2.0
"""The figure of docs/theory.md: one photo restored before and after coding, of the published study's records.

python bench/theory.py
"""

from common import ROOT

from llicm.parameters import load
from llicm.report.figures import rate_perception
from llicm.report.render import Results
from llicm.report.style import save_figure

STUDY, PHOTO = ROOT / "profiles" / "study", "kodim19"
TASKS = ["noisy", "rainy", "motion-blurry"]
METHODS = ["rdo", "rdo>restorer", "restorer>rdo"]

if __name__ == "__main__":
    records = Results(STUDY / "results").records
    methods = [method for method in load(STUDY / "params.yaml").methods if method.name in METHODS]
    figure = rate_perception(records[records["image"] == PHOTO], "psnr", TASKS, methods)
    save_figure(figure, ROOT / "docs" / "theory.png", 110, palette=True)
