# SPDX-License-Identifier: Apache-2.0
"""The results page of a study: its tables and figures in one document, results/README.md."""

import os
from pathlib import Path

import jinja2

from llicm.benchmark.records import read_records
from llicm.errors import UserError

REFERENCES = ("degraded", "restored")  # rows of the records that no codec has made
# In this module, and not in a file of its own, so that a stage that makes the page depends on it.
TEMPLATE = jinja2.Template(
    """\
# Results

{{ images }} test images, {{ methods }} methods, {{ "{:,}".format(values) }} measured values, by the parameters in
[`params.yaml`](../params.yaml). The pipeline writes this page, with its tables and figures.
{% if images < 12 %}

So few images give wide intervals: this run checks the machinery. The study to quote is the
[published one]({{ root }}profiles/study/results/README.md).
{% endif %}

[What the results say]({{ root }}docs/results-explained.md) · [the table of records]({{ root }}docs/records.md) ·
[where a number comes from]({{ root }}docs/lineage.md)

- **BD-rate**: difference in bits for the same quality; negative: LL-ICM needs fewer.
- **BD-PSNR**, BD-MS-SSIM, …: difference in quality at the same rate; positive: LL-ICM is better.
- In brackets: 95% bootstrap intervals over the test images (2,000 draws, paired), under one training of each method.
- `restorer → heic → adapted`: restored, coded with HEVC intra, decoded, and restored by a restorer adapted to that.

## Against the strongest baseline

The rule was fixed before the results: the strongest baseline of a task is the one against which LL-ICM gains least in
BD-PSNR. It stands for all metrics of the task.

{{ headline }}
{% if headline_prefilter %}

### With a prefilter

LL-ICM with the separately trained restorer before its codec, which baselines may have too:

{{ headline_prefilter }}
{% endif %}
{% if headline_decoder %}

### In the paper's order

LL-ICM without a restorer before its codec, only behind it (`llicm-decoder`):

{{ headline_decoder }}
{% endif %}

## Rate and quality

![Rate-perception curves, PSNR](figures/figure_4_psnr.png)

*A panel is a task. A point is a mean over the test photos: the size of real files, and the PSNR between the method's
output and the ideal photo. Dashed: the degraded photo itself, and the restorer on it without compression.*
[The same in MS-SSIM.](figures/rate_perception_ms_ssim.png)

![Pictures at matched rate](figures/figure_6_pictures.jpg)

*At one rate per task: the input X, what the strongest baseline makes of it, LL-ICM's decoded X̂ and its enhanced X̂_H.*

## Against every method

![BD-rate of LL-ICM against each method](figures/bd_rate_psnr.png)

{{ every }}

[All metrics, with intervals](tables/bd_rate.md). A BD-rate exists only where both curves rise with the rate and share
enough quality; `tables/bd_rate.csv.gz` has the reason where there is none, and the BD-quality still compares the two.
{% if specialists %}

## One codec for all tasks, or one for each

LL-ICM against forms of itself that were trained for one task. A positive BD-rate is what the universal codec costs.

{{ specialists }}
{% endif %}

## Non-monotone curves

A codec that spends bits on the noise of its input gets worse, against the ideal photo, as its rate grows. A
[test]({{ root }}src/llicm/benchmark/non_monotone.py) decides for every curve whether the quality at its highest rate is
below that at its peak, beyond chance, with 5% false discoveries over all curves of a metric. So many curves fall:

{{ non_monotone }}

![Why quality falls with the rate](figures/figure_5_non_monotone.jpg)

*Left: how much of the noise's energy is still in the decoded image; right: quality of the output; below: what a codec
keeps.*

## Where metrics disagree

{{ disagreements }}

## Real files and estimated rates

Every rate is that of a real file. This is its distance from the entropy model's estimate, which many papers report:

![Real files above the entropy model's estimate](figures/rate_gap.png)

## What the vision-language model recognises

{{ recognition }}

![Confusion matrices](vlm/confusion.png)
{% if ablation %}

## Whether it helps the restorer

{{ ablation }}
{% endif %}
{% if extra %}

## Clean photos, mixtures, other severities

The same models on further test sets: clean photos as a control, two degradations at once, degradations that no model
here was trained on, and the tasks milder (`@0.2`) and more severe (`@0.8`), where the parameters name them.

{{ extra }}
{% endif %}
{% if harm %}

## What restoring does to clean photos

PSNR against the same codec at the same level without restoring: the share of the clean photos that lose more than
0.5 dB, and the change of the photo that loses most. [Many more pictures]({{ root }}docs/harm.md).

{{ harm }}
{% endif %}
{% if steps %}

## Steps of the diffusion restorer

![Quality by the number of steps](figures/diffusion_steps.png)

*The same restorer behind the same codec at one level, sampled with few or many calls of its network.*
{% endif %}

## Files

| file | content |
|---|---|
| [`records.parquet`](records.parquet) | every measured value ([columns]({{ root }}docs/records.md)) |
| [`metrics.json`](metrics.json) | the headline numbers |
| [`tables/headline.csv`](tables/headline.csv), [`.tex`](tables/headline.tex) | the first table, all metrics |
| [`tables/bd_rate.md`](tables/bd_rate.md) | every comparison of every metric, with its interval |
| [`tables/methods.csv`](tables/methods.csv) | each method's codec and what it was trained for |
| `tables/compressai/` | every curve in CompressAI's format |
""",
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def results_page(results: Path) -> str:
    """The page of one study as Markdown.

    Args:
        results: folder with records.parquet, tables/, figures/ and vlm/, as the pipeline has written them. It lies
            below the repository, whose documents the page links to.

    Raises:
        UserError: a table is missing.
    """
    tables = results / "tables"

    def table(name: str, needed: bool = True) -> str:
        path = tables / f"{name}.md"
        if not path.is_file():
            if not needed:
                return ""
            raise UserError(f"{path}: no such table; run `dvc repro` first")
        text = path.read_text(encoding="utf-8").strip()
        return "" if text.startswith("No ") else text  # "No ablation in these parameters."

    records = read_records([results / "records.parquet"])
    names = ("headline", "non_monotone", "disagreements", "recognition", "ablation", "extra", "specialists")
    return TEMPLATE.render(
        {name: table(name) for name in names}
        | {name: table(name, needed=False) for name in ("headline_prefilter", "headline_decoder", "harm")},
        every=table("readme"),
        steps=(results / "figures/diffusion_steps.png").is_file(),
        images=records["image"].nunique(),
        methods=len(set(records["method"]) - set(REFERENCES)),
        values=len(records),
        root=_up(results),
    )


def _up(results: Path) -> str:
    """The way from a folder to the repository that it lies in: ``../`` or more of it."""
    for parent in results.resolve().parents:
        if (parent / "docs/records.md").is_file():
            return os.path.relpath(parent, results.resolve()) + "/"
    raise UserError(f"{results}: not below the repository, whose docs/ its page links to")
