# SPDX-License-Identifier: Apache-2.0
"""What restoring does to clean pictures, and to degraded ones. `make harm` writes docs/harm.md.

    python bench/harm.py --model FILE --photos FOLDER... --crop 384

Photos are those of the folders; beside them there are 60 generated graphics. All figures are of real files, PSNR of
8-bit pictures. Points are kept in docs/harm.json; what is there for this model is not measured again.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from common import ROOT, table, write_page
from torch import Generator, Tensor

from llicm.data.graphics import GRAPHICS, graphic
from llicm.data.pairs import centre_crop, stable_seed
from llicm.degradations import CLEAN, degrade
from llicm.files import json_text, write_atomically
from llicm.framework import LLICM
from llicm.images import list_images, quantize8, read_image
from llicm.model import default_model, load_model
from llicm.parameters import load
from llicm.report.comparisons import HARM
from llicm.report.show import psnr
from llicm.vlm.clip import WORDS

POINTS = ROOT / "docs" / "harm.json"
COUNT = 60  # generated graphics
SEVERITIES = (0.2, 0.5, 1.0)
KEYS = ("set", "picture", "task", "severity", "level")  # of a point


@torch.no_grad()
def measure(system: LLICM, ideal: Tensor, x: Tensor, levels: list[float]) -> Iterator[tuple[float, dict]]:
    """Of each level the PSNR without restoring, restored as far as the recogniser is sure, and restored wholly; and how
    surely something is wrong with what it is restored from."""
    free = LLICM(codec := system.codec, system.restorer, system.conditioner, system.prefilter)
    free.sureness = lambda image, context, hints=None: (x.new_ones(1), x.new_ones(1))  # type: ignore[method-assign]
    once = system.restorer is system.prefilter
    bounded, whole = (s.prefiltered(x) for s in (system, free))
    for level in levels:
        plain = codec.decompress(codec.compress(x, level))[0]
        values = {"plain": plain}
        for name, own, source in (("bounded", system, bounded), ("whole", free, whole)):
            if once and torch.equal(source, x):  # nothing was restored
                values[name] = plain
            elif once and name == "whole" and torch.equal(source, bounded):
                values[name] = values["bounded"]
            else:
                values[name] = own.decompress(own.encode(source, level))[1]
        looked = plain if system.prefilter is None else x
        wrong = 1 - system.conditioner.recognise(looked[None])[0, WORDS.index(CLEAN)]
        yield level, {name: psnr(quantize8(value), ideal) for name, value in values.items()} | {"wrong": float(wrong)}


def pictures(folders: list[Path], crop: int) -> list[tuple[str, str, Tensor]]:
    """Set, name and pixels (3, H, W) of all clean pictures."""
    found = [
        (folder.name, path.stem, centre_crop(quantize8(read_image(path)), crop).clone())
        for folder in folders
        for path in list_images(folder)
    ]
    for n in range(COUNT):
        kind = list(GRAPHICS)[n % len(GRAPHICS)]
        found.append(("graphics", f"{kind}-{n}", graphic(kind, min(crop, 256), Generator().manual_seed(n))))
    return found


def harm(points: pd.DataFrame) -> list[dict]:
    """A row a level and set: share that loses more than `HARM` dB, and the worst, with the bound and without."""
    rows = []
    clean = points[points["task"] == CLEAN]
    for level, of in clean.groupby("level"):
        for name, part in [*of.groupby("set", sort=False), ("all", of)]:
            row = {"level": f"{level:g}", "pictures": name, "number": len(part)}
            for title, column in (("as far as it is sure", "bounded"), ("wholly", "whole")):
                change = part[column] - part["plain"]
                row[f"{title}: lose > {HARM} dB"] = f"{(change < -HARM).mean():.1%}"
                row[f"{title}: worst"] = f"{change.min():+.2f} dB ({part.loc[change.idxmin(), 'picture']})"
            rows.append(row)
    return rows


def verdict(points: pd.DataFrame) -> str:
    """At which levels the goal is reached, in words."""
    clean = points[points["task"] == CLEAN]
    lost = (clean["plain"] - clean["bounded"]).groupby(clean["level"])
    share, worst = lost.apply(lambda change: (change > HARM).mean()), lost.max()
    few, mild = (
        ", ".join(f"{v:g}" for v in of.index[of <= most]) or "none" for of, most in ((share, 0.02), (worst, 1))
    )
    return (
        f"The goal is that at most 2% lose more than {HARM} dB, and none more than 1 dB. The share is kept at levels "
        f"{few} (at most {share.max():.1%} elsewhere), the worst at levels {mild} (at most {worst.max():.1f} dB "
        "elsewhere)."
    )


def gains(points: pd.DataFrame) -> list[dict]:
    """A row a task: mean gain in PSNR by severity, with the bound and without."""
    rows = []
    for task, of in points[points["task"] != CLEAN].groupby("task", sort=False):
        row = {"task": task}
        for severity, part in of.groupby("severity"):
            bounded, whole = (float((part[name] - part["plain"]).mean()) for name in ("bounded", "whole"))
            row[f"severity {severity:g}"] = f"{bounded:+.2f} of {whole:+.2f} dB"
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, help="a .safetensors file; default: the published model")
    parser.add_argument("--photos", type=Path, nargs="+", default=[ROOT / "data" / "test"], help="folders")
    parser.add_argument("--crop", type=int, default=384, help="side of the middle that is used")
    parser.add_argument("--degraded", type=int, default=4, help="photos that are degraded too")
    parser.add_argument("--named", default="the default model", help="of the model, for the page")
    a = parser.parse_args()
    torch.set_num_threads(1)
    system, tasks = load_model(a.model), load(ROOT / "params.yaml").tasks
    levels = [float(level) for level in range(system.codec.levels)]
    model = hashlib.sha256((a.model or default_model()).read_bytes()).hexdigest()
    kept = json.loads(POINTS.read_text()) if POINTS.exists() else {}
    same = (kept.get("model"), kept.get("crop")) == (model, a.crop)
    points = {tuple(p[k] for k in KEYS): p for p in kept["points"]} if same else {}
    found = pictures(a.photos, a.crop)
    photos = [picture for picture in found if picture[0] != "graphics"]
    jobs = [(*picture, CLEAN, 0.0, levels) for picture in found]
    for picture in photos[:: max(len(photos) // a.degraded, 1)][: a.degraded]:
        jobs += [(*picture, task, s, levels[::2]) for task in tasks for s in SEVERITIES]
    for done, (group, name, ideal, task, severity, wanted) in enumerate(jobs):
        key = (group, name, task, severity)
        if all((*key, level) in points for level in wanted):
            continue
        x = ideal
        if task != CLEAN:
            x = quantize8(degrade(task, ideal[None], severity, Generator().manual_seed(stable_seed(task, name)))[0])
        for level, values in measure(system, ideal, x, wanted):
            points[*key, level] = dict(zip(KEYS, (*key, level), strict=True)) | values
        if done % 10 == 9:
            print(done + 1, "of", len(jobs), flush=True)
            write_points(model, a.crop, points)
    write_points(model, a.crop, points)
    rows = pd.DataFrame(list(points.values()))
    sets = rows[rows["task"] == CLEAN].groupby("set", sort=False)["picture"].nunique()
    words = (
        f"{a.named[0].upper()}{a.named[1:]}, on the middle {a.crop}x{a.crop} pixels of clean pictures ("
        + ", ".join(f"{name}: {count}" for name, count in sets.items())
        + "). The level is that of the codec; 0 is the lowest rate."
    )
    degraded = rows[rows["task"] != CLEAN]
    more = (
        f"Gain in PSNR on {degraded['picture'].nunique()} of the photos, degraded, mean over levels "
        f"{', '.join(f'{level:g}' for level in levels[::2])}: restored as far as it is sure, of what restoring wholly "
        "gains."
    )
    write_page("harm", [words, table(harm(rows)), verdict(rows), more, table(gains(rows))])


def write_points(model: str, crop: int, points: dict) -> None:
    rounded = [{k: round(v, 3) if isinstance(v, float) else v for k, v in p.items()} for p in points.values()]
    write_atomically(POINTS, json_text({"model": model, "crop": crop, "points": rounded}, None).encode())


if __name__ == "__main__":
    main()
