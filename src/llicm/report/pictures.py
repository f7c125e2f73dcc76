# SPDX-License-Identifier: Apache-2.0
"""Pictures of what methods give: strips at matched rate, and what a codec keeps of a degradation."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from llicm.benchmark.probes import kept_energy
from llicm.benchmark.runners import Coded, load_runners
from llicm.data.pairs import Pair, centre_crop, read_pairs
from llicm.methods import Method
from llicm.objectives import psnr as of_pictures
from llicm.report.comparisons import strongest
from llicm.report.style import WIDTH, styled
from llicm.report.writing import method_label

Column = tuple[str, Tensor, str]  # title above a picture, the picture (3, H, W) RGB in [0, 1], caption below it


def strip_rows(
    table: pd.DataFrame, methods: Iterable[Method], test: str, tasks: Sequence[str], pairs: Path, models: Path,
    *, image: str, level: float, side: int,
) -> list[tuple[str, list[Column]]]:  # fmt: skip
    """Rows for `picture_rows`: one a task, LL-ICM beside the strongest baseline at LL-ICM's rate.

    Rates and PSNR in the captions are of the whole photo; the pictures show its middle.

    Args:
        table: made by `bd_table`. test: the form of LL-ICM. pairs, models: folders of the pipeline.
        image: name of the test photo; a task without it shows its first. level: at which LL-ICM codes.
        side: of the pictures shown, in pixels.
    """
    by_name = {method.name: method for method in methods}
    best = {task: strongest(table, by_name.values(), test, task) for task in tasks}
    wanted = [by_name[name] for name in dict.fromkeys([test, *best.values()])]
    runners = {runner.method.name: runner for runner in load_runners(wanted, models)}
    rows = []
    for task in tasks:
        found = read_pairs(pairs, "val", task)
        pair = next((p for p in found if p.name == image), found[0])
        ours = runners[test].run(pair.degraded, level, task)
        theirs = runners[best[task]].at_bpp(pair.degraded, ours.bpp, task)
        rows.append((task, _columns(pair, best[task], theirs, ours, side)))
    return rows


def _columns(pair: Pair, name: str, best: Coded, ours: Coded, side: int) -> list[Column]:
    columns = [
        ("degraded X", pair.degraded, _psnr(pair.degraded, pair)),
        ("strongest baseline:\ndecoded", best.decoded, f"{method_label(name)}\n{_psnr(best.decoded, pair)}"),
        ("strongest baseline:\noutput", best.output, f"{best.bpp:.3f} bpp, {_psnr(best.output, pair)}"),
        ("LL-ICM:\ndecoded X̂", ours.decoded, _psnr(ours.decoded, pair)),
        ("LL-ICM:\nenhanced X̂_H", ours.output, f"{ours.bpp:.3f} bpp, {_psnr(ours.output, pair)}"),
        ("ideal", pair.ideal, pair.name),
    ]
    return [(title, centre_crop(picture, side), caption) for title, picture, caption in columns]


def _psnr(picture: Tensor, pair: Pair) -> str:
    return f"{float(of_pictures(picture[None], pair.ideal[None])):.2f} dB"


def failure_rows(
    table: pd.DataFrame, method: Method, pairs: Path, models: Path, *, side: int
) -> dict[str, list[Column]]:
    """What a method made of the pictures of `comparisons.failures`, by what is said of each: X, X̂, X̂_H, the ideal.

    Args:
        table: its rows to show. pairs, models: folders of the pipeline. side: of the pictures shown, in pixels.
    """
    (runner,), rows = load_runners([method], models), {}
    for row in table.itertuples():
        pair = next(pair for pair in read_pairs(pairs, "val", row.task) if pair.name == row.image)
        coded = runner.run(pair.degraded, float(row.level), row.task)
        columns = [
            ("X", pair.degraded, _psnr(pair.degraded, pair)),
            ("decoded X̂", coded.decoded, f"{coded.bpp:.3f} bpp, {_psnr(coded.decoded, pair)}"),
            ("enhanced X̂_H", coded.output, _psnr(coded.output, pair)),
            ("ideal", pair.ideal, pair.name),
        ]
        label = f"{row.task}, {row.image}: {row.change:+.2f} dB"
        rows[label] = [(title, centre_crop(picture, side), caption) for title, picture, caption in columns]
    return rows


def kept_crops(method: Method, task: str, pairs: Path, models: Path, *, side: int) -> list[Column]:
    """Pictures for `non_monotone_why`: the ideal, X, and X̂ of a codec at its lowest, middle and highest rate.

    Args:
        method: one without restoration. pairs, models: folders of the pipeline.
        side: of the pictures, in pixels, cut from the middle.
    """
    pair, (runner,) = read_pairs(pairs, "val", task)[0], load_runners([method], models)
    columns = [("ideal", pair.ideal, pair.name), ("X", pair.degraded, "100 % kept")]
    for level in (method.levels[0], method.levels[len(method.levels) // 2], method.levels[-1]):
        coded = runner.run(pair.degraded, level)
        share = kept_energy(coded.decoded, pair.degraded, pair.ideal)
        columns.append((f"X̂, {method.name}", coded.decoded, f"{coded.bpp:.2f} bpp, {share:.0%} kept"))
    return [(title, centre_crop(picture, side), caption) for title, picture, caption in columns]


@styled
def picture_rows(rows: Sequence[tuple[str, Sequence[Column]]]) -> Figure:
    """Strips below each other, e.g. one a task. Titles stand once, above the first row.

    Args:
        rows: (label, columns): the label, "" for none, stands at the left; the same number of columns in each row; the
            pictures of a row have one size; titles and captions may have several lines.

    Raises:
        ValueError: rows of different lengths, or no picture.
    """
    count = len(rows[0][1]) if rows else 0
    if not count or any(len(columns) != count for _, columns in rows):
        raise ValueError("every row needs the same number of pictures, at least one")
    # All sizes in inches: text keeps its size and place whatever the pictures' sizes.
    gap, line, left = 0.06, 0.155, 0.3 if any(label for label, _ in rows) else 0.06
    width = (WIDTH - left - gap * count) / count
    heights = [width * columns[0][1].shape[1] / columns[0][1].shape[2] for _, columns in rows]
    captions = [max(_lines(words) for _, _, words in columns) * line for _, columns in rows]
    top = max(_lines(title) for title, _, _ in rows[0][1]) * line + 2 * gap
    total = top + sum(heights) + sum(captions) + 2 * gap * len(rows)
    figure = Figure(figsize=(WIDTH, total))

    def text(x: float, y: float, words: str, size: float) -> None:
        # Line by line on their baselines, which a letter with a hat does not move.
        for i, words_of_line in enumerate(words.split("\n") if words else ()):
            height = 1 - (y + i * line + 0.12) / total
            figure.text(x / WIDTH, height, words_of_line, ha="center", va="baseline", fontsize=size)

    y = top
    for index, ((label, columns), height, caption) in enumerate(zip(rows, heights, captions, strict=True)):
        for j, (title, image, words) in enumerate(columns):
            x = left + j * (width + gap)
            axis = figure.add_axes((x / WIDTH, 1 - (y + height) / total, width / WIDTH, height / total))
            axis.imshow(image.detach().clamp(0, 1).permute(1, 2, 0).cpu().numpy(), aspect="auto")
            axis.set_axis_off()
            if index == 0:
                text(x + width / 2, top - gap - _lines(title) * line, title, 9.5)
            text(x + width / 2, y + height + gap / 2, words, 8)
        place = (left / 2 / WIDTH, 1 - (y + height / 2) / total)
        figure.text(*place, label, ha="center", va="center", rotation=90, fontsize=9.5)
        y += height + caption + 2 * gap
    return figure


def _lines(text: str) -> int:
    return text.count("\n") + 1 if text else 0
