# SPDX-License-Identifier: Apache-2.0
"""What the vision-language model recognises: files, figure and table."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from llicm.errors import UserError
from llicm.files import write_json
from llicm.report.style import WIDTH, save_figure, styled
from llicm.report.writing import chosen, markdown, text_of, write_csv
from llicm.vlm.clip import WORDS
from llicm.vlm.recognition import accuracy

# Questions of results/vlm/recognition.json.
QUESTIONS = {
    "accuracy_of_tasks_among_tasks": "the study's tasks, told apart among themselves",
    "accuracy_of_tasks": "the study's tasks, among all ten words and *clean*",
    "accuracy_of_all_words": "all ten words and *clean*",
}


def recognised(guesses: pd.DataFrame, tasks: Sequence[str], levels: Sequence[float], out: Path) -> Path:
    """How often the vision-language model names the degradation: guesses.csv, recognition.json and confusion.png.

    Args:
        guesses: made by `llicm.vlm.recognition.recognise_all`. levels: of the codec, in ascending rate.
        out: folder; made.
    """
    write_csv(guesses, out / "guesses.csv", digits=None)
    among_tasks = guesses[guesses["word"].isin(tasks)].assign(guess=lambda table: table["guess_of_tasks"])
    numbers = {
        "accuracy_of_all_words": accuracy(guesses, WORDS),
        "accuracy_of_tasks": accuracy(guesses, tasks),
        "accuracy_of_tasks_among_tasks": accuracy(among_tasks, tasks),
        "images_per_level": int(len(guesses) / guesses["level"].nunique(dropna=False)),
    }
    write_json(numbers, out / "recognition.json")
    figure = confusion(guesses, WORDS, [math.nan, levels[-1], levels[0]], core=tasks)
    save_figure(figure, out / "confusion.png", 100)
    return out / "confusion.png"


@styled
def confusion(table: pd.DataFrame, words: Sequence[str], levels: Sequence[float], core: Sequence[str] = ()) -> Figure:
    """What a degradation is recognised as, in percent: a panel a level, a row a true word, a column a guess.

    Rows sum to 100 (but for rounding, and guesses that are not among the words drawn); 0 is left blank. The core words
    come first, set apart by a line; the accuracies in the titles weigh words equally.

    Args:
        table: made by ``llicm.vlm.recognition.recognise_all``.
        words: rows and columns, in this order behind the core words. core: the study's tasks.
        levels: of the codec, a panel each; NaN for uncompressed images.

    Raises:
        UserError: a word or level that the table does not hold, or an empty table.
    """
    if not len(table):
        raise UserError("The table of recognised degradations is empty: recognise at least one image.")
    known = list(dict.fromkeys(table["word"]))
    core = chosen(core, known, "degradation")
    words = [*core, *(word for word in chosen(words, known, "degradation") if word not in core)]
    shares = [_confused(table, words, level) for level in levels]
    # Sizes in inches: cells stay square, and hold their numbers, whatever the number of panels and words.
    left, gap, bottom, top = 1.36, 0.14, 1.36, 0.46
    side = min((WIDTH - left - gap * len(shares)) / len(shares), 0.42 * len(words))
    width, height = left + (side + gap) * len(shares), bottom + side + top
    figure = Figure(figsize=(width, height))
    axes = [
        figure.add_axes(((left + i * (side + gap)) / width, bottom / height, side / width, side / height))
        for i in range(len(shares))
    ]
    cell = side / len(words)
    for i, (axis, level, share) in enumerate(zip(axes, levels, shares, strict=True)):
        axis.imshow(np.where(share > 0, share, np.nan), cmap="Blues", vmin=-8, vmax=115)  # white is for none alone
        for y, x in zip(*np.nonzero(share >= 0.5), strict=True):
            axis.text(
                x, y, f"{share[y, x]:.0f}", ha="center", va="center", color="white" if share[y, x] > 60 else "black",
                fontsize=min(8, 72 * cell / 2.4),
            )  # fmt: skip
        if 0 < len(core) < len(words):
            for line in (axis.axhline, axis.axvline):
                line(len(core) - 0.5, color="0.3", linewidth=0.8)
        axis.set_xticks(range(len(words)), words, rotation=90)
        axis.set_yticks(range(len(words)), words if i == 0 else [""] * len(words))
        axis.tick_params(length=0, pad=3)
        axis.grid(False)
        axis.spines[:].set(visible=True, color="0.6", linewidth=0.6)
        right = np.diag(share)
        of = f"core tasks {right[: len(core)].mean():.0f}%, all " if 0 < len(core) < len(words) else ""
        name = "uncompressed" if math.isnan(level) else f"level {level:g}"
        axis.set_title(f"{name}\n{of}{right.mean():.0f}% right")
    middle = (left + (width - left - gap) / 2) / width
    figure.text(0.06 / width, (bottom + side / 2) / height, "true degradation", rotation=90, ha="left", va="center")
    figure.text(middle, 0.06 / height, "recognised as", ha="center", va="bottom")
    return figure


def _confused(table: pd.DataFrame, words: Sequence[str], level: float) -> np.ndarray:
    """Percent of the images of each word (rows) that are taken for each word (columns), at one level."""
    rows = table[table["level"].isna() if math.isnan(level) else table["level"] == level]
    counts = pd.crosstab(rows["word"], rows["guess"])
    if absent := [word for word in words if word not in counts.index]:
        of = "uncompressed" if math.isnan(level) else f"level {level:g}"
        raise UserError(f"No image of {absent[0]}, {of}, was recognised: recognise it, or leave it out.")
    percent = 100 * counts.div(counts.sum(axis=1), axis=0)
    return percent.reindex(index=list(words), columns=list(words), fill_value=0.0).to_numpy()


def recognition_markdown(numbers: Mapping[str, Any]) -> str:
    """How often the vision-language model names the degradation, as Markdown: a row per question, a column per level.

    Args:
        numbers: results/vlm/recognition.json, see `recognised`.
    """
    levels = list(numbers["accuracy_of_tasks"])
    names = ["uncompressed" if level == "none" else f"level {level}" for level in levels]
    first = (
        f"Share of test images ({numbers['images_per_level']} a level) whose degradation the model names, zero-shot, "
        "in X̂ of the RDO codec (level 0 is the lowest rate):"
    )
    rows = [[text, *(f"{numbers[key][level]:.0%}" for level in levels)] for key, text in QUESTIONS.items()]
    return text_of([first, "", *markdown(["", *names], rows)])
