# SPDX-License-Identifier: Apache-2.0
"""Train one codec of params.yaml on clean photos by itself, and compare its files with those of conventional codecs.

    python bench/codec.py --codec context --photos FOLDER ... --test FOLDER --out .run/codec
    python bench/codec.py --codec mean-scale --photos FOLDER ... --test FOLDER --out .run/codec

Both get the same crops, level by level, so that what is compared are the codecs. The loop is that of the study; a run
that was stopped goes on from its last checkpoint. Results are written as JSON, weights beside them. For a long run:

    python bench/codec.py --codec context --updates 40000 --ema 0.999 --compile --threads 1 --photos FOLDER ... \\
        --arguments '{"M": 384, "lambdas": [0.0006, 0.0016, 0.004, 0.01, 0.025, 0.07, 0.2]}'

The same command with --now evaluates its last checkpoint as it is, while it runs or when it was stopped; with --publish
it also makes a folder of weights of that, from which studies start (`init: context`):

    python bench/codec.py ... --now --checkpoint FILE --every 6 --publish init/context && dvc add init/context
"""

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import ROOT, credits, machine, read, table
from torch import Tensor

from llicm.benchmark.bdrate import bd
from llicm.codec.conventional import find_codec
from llicm.data.catalogue import attributions
from llicm.data.stream import Batch
from llicm.files import atomic_folder, write_json
from llicm.framework import LLICM
from llicm.images import list_images, quantize8
from llicm.model import load_model, save_model
from llicm.objectives import Objective
from llicm.parameters import load
from llicm.pipeline.checkpoint import Checkpoint
from llicm.provenance.lineage import digest
from llicm.registry import CODECS
from llicm.report.show import psnr
from llicm.training.loop import Trainer
from llicm.weights import load_part, save_part

QUALITIES = {"webp": (1, 5, 10, 20, 40, 60, 80), "heic": (8, 12, 16, 20, 24), "avif": (10, 25, 40, 55, 70, 80)}
SCALES = (0.75, 0.5, 0.35)
PUBLISHED = ROOT / "init/published"


@torch.no_grad()
def averaged(codec, state: dict):
    """The codec with the averaged weights of a checkpoint, which has them in the order of its state dict."""
    codec.load_state_dict(state["parts"]["codec"])
    weights = dict(codec.named_parameters())
    names = [name for name in state["parts"]["codec"] if name in weights and not name.endswith("quantiles")]
    for name, average in zip(names, state["average"], strict=bool(state["average"])):
        weights[name].copy_(average)
    return codec


class Crops:
    """Clean crops of photos at four scales, in the eight poses of a square: `batch(step)` depends on the step alone."""

    def __init__(self, photos: Sequence[Tensor], crop: int, rows: int):
        self.crop, self.rows = crop, rows
        self.pyramids = [self._pyramid(photo) for photo in photos]

    def _pyramid(self, photo: Tensor) -> list[Tensor]:
        levels = [photo]
        for scale in SCALES:
            size = [round(side * scale) for side in photo.shape[1:]]
            if min(size) >= self.crop:
                small = F.interpolate(photo[None] / 255, size, mode="bicubic", antialias=True)[0]
                levels.append((small.clamp(0, 1) * 255).round().to(torch.uint8))
        return levels

    def batch(self, step: int) -> Batch:
        rng, out = np.random.default_rng(step), torch.empty(self.rows, 3, self.crop, self.crop)
        for row in range(self.rows):
            levels = self.pyramids[rng.integers(len(self.pyramids))]
            image = levels[rng.integers(len(levels))]
            top, left = (int(rng.integers(side - self.crop + 1)) for side in image.shape[1:])
            piece, pose = image[:, top : top + self.crop, left : left + self.crop], rng.integers(8)
            piece = piece.flip([dim for dim, bit in ((2, 1), (1, 2)) if pose & bit])
            out[row] = (piece.transpose(1, 2) if pose & 4 else piece) / 255
        zero, none = torch.zeros(self.rows, dtype=torch.int64), torch.full((self.rows,), -1)
        return Batch(out, out.clone(), zero, torch.zeros(self.rows), none, zero)


def train(name: str, a: argparse.Namespace) -> tuple[object, dict]:
    """The trained codec, and what training took."""
    path, log = a.out / f"{name}-{a.updates}.safetensors", a.out / f"{name}-{a.updates}.log.json"
    if path.exists() and not a.now:
        return load_part("codec", path), json.loads(log.read_text())
    torch.manual_seed(0)
    arguments = load(ROOT / "params.yaml").models["rdo"].codec.model_dump() | {"name": name} | a.arguments
    codec = CODECS.make(**arguments)
    described = {
        "codec": arguments,
        "updates": a.updates,
        "lr": a.lr,
        "ema": a.ema,
        "compile": a.compile,
        "photos": [str(f) for f in a.photos],
    }
    checkpoint = Checkpoint(f"codec-{name}", described, code=[ROOT / "src/llicm/codec"], root=a.out / "checkpoints")
    if a.now:
        checkpoint.path = a.checkpoint or checkpoint.path
        if (saved := checkpoint.load()) is None:
            raise SystemExit(f"{checkpoint.path}: no checkpoint yet")
        averaged(codec, saved).update()
        taken = {"photos": sum(len(list_images(folder)) for folder in a.photos), "cpu_seconds_an_update": None}
        return codec.to(memory_format=torch.channels_last).eval(), taken | {"done": saved["step"]}
    photos = read(a.photos)
    photos = [photo for photo in photos if min(photo.shape[1:]) >= 128]
    if hasattr(codec, "measure"):
        codec.measure([photo / 255 for photo in photos[:: max(len(photos) // 100, 1)]])
    trainer = Trainer(
        LLICM(codec, None), ["codec"], Objective(alpha=1.0, beta=1.0, distortion={"mse": 1.0}),
        Crops(photos, 128, 12), ["clean"], steps=a.updates, warmup=200, lr=a.lr, max_grad_norm=1.0, precision="bf16",
        seed=0, log_every=100, average=a.ema,
    )  # fmt: skip
    if a.compile:  # with the random numbers of a run without
        codec.compile(dynamic=False, options={"fallback_random": True})
    if (saved := checkpoint.load()) is not None:
        trainer.restore(saved)
    started, first = time.process_time(), trainer.step
    rows = trainer.run(None, checkpoint, 500)
    trainer.use_average()
    pace = (time.process_time() - started) / max(trainer.step - first, 1)
    codec.update()
    save_part(codec, path)
    taken = {"photos": len(photos), "cpu_seconds_an_update": round(pace, 3), "log": rows}
    write_json(taken, log)
    return load_part("codec", path), taken


@torch.no_grad()
def curve(compress, decompress, levels: Sequence[float], images: Sequence[Tensor]) -> list[dict]:
    """Mean bits per pixel of whole files and mean PSNR of their 8-bit pictures, by level, and seconds of CPU time."""
    points = []
    for level in levels:
        sizes, values, seconds = [], [], np.zeros(2)
        for x in images:
            began = time.process_time()
            data = compress(x, level)
            coded = time.process_time()
            decoded = decompress(data)
            seconds += (coded - began, time.process_time() - coded)
            sizes.append(8 * len(data) / x[0].numel())
            values.append(psnr(quantize8(decoded), x))
        points.append(
            {
                "level": level, "bpp": float(np.mean(sizes)), "psnr": float(np.mean(values)),
                "encode_s": float(seconds[0] / len(images)), "decode_s": float(seconds[1] / len(images)),
            }
        )  # fmt: skip
    return points


CARD = """---
library_name: llicm
license: apache-2.0
model_name: llicm-{name}-codec
pipeline_tag: image-to-image
tags:
- image-compression
---

# Learned codec `{name}`, trained on clean photos

A variable-rate codec with memory and a loop filter (`llicm.codec.{name}`, docs/parts.md): the one that the default
study starts from.

`rdo.safetensors`: {parameters:,} parameters, {size:,} bytes, SHA-256 `{sha256}`.
Safetensors; the configuration is in the metadata, weights of convolutions and linear layers are 8-bit with one unit a
channel (`llicm.weights`).

| | |
|---|---|
| architecture | {architecture} |
| photos | {photos}: {sets}; clean, at four scales |
| updates | {updates}; of 12 crops of 128 x 128 |
| learning rate | {lr:g} at its peak, cosine to zero{unfinished} |
| weights | the average over the updates, of decay {ema:g} |
| loss | lambda D + R, D = mse |
| made with | {machine} |

## Measured

Kodak, every {every}photo, whole and clean, real files, means: {rates}.

{measured}

## Beside it

{restorer} `llicm.safetensors` has it all: this codec, the restorer, which stands before the codec or behind it,
and the vision-language model that steers it, of which a study takes the last. That is of `init/published`: it saw
pictures behind WebP and behind the published study's codec, `mean-scale`.{judge}

[lineage.json](lineage.json) has the command, the code's commit and the hashes of checkpoint, photos and weights.

## Licence and limits

Weights: Apache-2.0, like the code. Photos that they were trained on: {terms}.

- Trained on small photos. Not for medical, forensic or other evidence: a decoder can invent what was not coded.
- A study of methods, not a product; a `.llicm` file is bound to the very weights that wrote it.
"""


AS_PUBLISHED = """`restorer.safetensors` is that of `init/published`, byte for byte: trained on photos that were not
compressed, so for no codec."""
OWN = "`restorer.safetensors` has a [card](restorer.md) of its own."


JUDGE = " Its judge of what is clean was fitted to the photos above\n(`bench/judge.py`)."


def publish(a: argparse.Namespace, codec, taken: dict, rates: dict, measured: str) -> None:
    """Make a folder of weights that studies start from: this codec with card and lineage, the rest as published."""
    sets, found, terms = credits(a.photos)
    done = taken.get("done", a.updates)
    arguments = f"--updates {a.updates} --lr {a.lr:g} --ema {a.ema:g}{' --compile' * a.compile} --threads {a.threads}"
    authors = "\n".join(filter(None, map(attributions, found)))
    with atomic_folder(a.publish) as new:
        new.mkdir()
        save_part(codec, new / "rdo.safetensors")
        shutil.copyfile((a.restorer or PUBLISHED) / "restorer.safetensors", new / "restorer.safetensors")
        restorer = load_part("restorer", new / "restorer.safetensors")
        conditioner = load_model(a.recogniser).conditioner
        save_model(LLICM(codec, restorer, conditioner, restorer), new / "llicm.safetensors")
        if a.restorer:
            shutil.copyfile(a.restorer / "restorer.md", new / "restorer.md")
        if authors:
            (new / "photos.md").write_text(f"# Photos that were trained on\n\n{authors}", encoding="utf-8")
        sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(new.glob("*.safetensors"))}
        card = CARD.format(
            name=a.codec, parameters=sum(p.numel() for p in codec.parameters()), sha256=sums["rdo.safetensors"],
            size=(new / "rdo.safetensors").stat().st_size, machine=machine(), every=ordinal(a.every),
            architecture=", ".join(f"{key} {value}" for key, value in codec.config.items() if key != "name"),
            photos=taken["photos"], sets=sets,
            updates=f"{done:,} of {a.updates:,}" if done < a.updates else f"{done:,}", lr=a.lr, ema=a.ema,
            unfinished=", which it has not reached" if done < a.updates else "", measured=measured,
            rates="; ".join(f"BD-rate against {name} {rate:+.1f}%" for name, rate in rates.items() if rate is not None),
            judge="" if conditioner.judge is None else JUDGE, terms=terms,
            restorer=OWN if a.restorer else AS_PUBLISHED,
        )  # fmt: skip
        (new / "rdo.md").write_text(card, encoding="utf-8")
        lineage = {
            "command": f"python bench/codec.py --codec {a.codec} {arguments} --arguments '{json.dumps(a.arguments)}'",
            "commit": a.commit, "updates": done,
            "checkpoint": hashlib.sha256(a.checkpoint.read_bytes()).hexdigest() if a.checkpoint else None,
            "photos": {name: digest(folder) for name, folder in found.items()}, "weights": sums,
        }  # fmt: skip
        if a.restorer:
            lineage["restorer"] = json.loads((a.restorer / "restorer-lineage.json").read_text(encoding="utf-8"))
        write_json(lineage, new / "lineage.json")


def ordinal(number: int) -> str:
    return {1: "", 2: "second ", 3: "third "}.get(number, f"{number}th ")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--codec", required=True, help="name of a learned codec")
    parser.add_argument(
        "--photos", type=Path, nargs="+", default=[ROOT / "data" / "train"], help="folders to learn from"
    )
    parser.add_argument("--test", type=Path, default=ROOT / "data" / "test")
    parser.add_argument("--every", type=int, default=1, help="use each so manieth test photo")
    parser.add_argument("--against", nargs="*", default=["webp"], choices=sorted(QUALITIES))
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--out", type=Path, default=ROOT / ".run" / "codec")
    parser.add_argument("--ema", type=float, default=0.0, help="decay of the average of the weights, e.g. 0.999")
    parser.add_argument("--compile", action="store_true", help="minutes at the start; an update then takes less time")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--arguments", type=json.loads, default={}, help="JSON, over those of params.yaml")
    parser.add_argument("--now", action="store_true", help="evaluate the last checkpoint; train nothing")
    parser.add_argument("--checkpoint", type=Path, help="with --now: this one, whatever code wrote it")
    parser.add_argument("--publish", type=Path, help="make this folder of weights that studies start from")
    parser.add_argument("--restorer", type=Path, help="with --publish: what bench/restorer.py made, for the published")
    published = PUBLISHED / "llicm.safetensors"
    parser.add_argument("--recogniser", type=Path, default=published, help="with --publish: model file with the VLM")
    parser.add_argument("--commit", help="of the code that trained, for the lineage")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    a.out.mkdir(parents=True, exist_ok=True)
    codec, taken = train(a.codec, a)
    images = [photo / 255 for photo in read([a.test])[:: a.every]]
    curves = {a.codec: curve(codec.compress, lambda d: codec.decompress(d)[0], range(codec.levels), images)}
    for name in a.against:
        anchor = find_codec(name)
        curves[name] = curve(anchor.compress, anchor.decompress, QUALITIES[name], images)
    digits = {"bpp": 4, "psnr": 2, "encode_s": 3, "decode_s": 3}
    rows = [{"codec": name} | point for name, points in curves.items() for point in points]
    rows = [row | {key: round(row[key], places) for key, places in digits.items()} for row in rows]
    print(table(rows))
    rates: dict[str, float | None] = {}
    for name in a.against:
        points = [[point[key] for point in curves[c]] for c in (name, a.codec) for key in ("bpp", "psnr")]
        found = bd(*points, names=(name, a.codec), unit="dB")
        rates[name] = found.rate
        print(f"{a.codec} against {name}: BD-rate {found.reason if found.rate is None else f'{found.rate:.2f}%'}")
    if a.publish:
        publish(a, codec, taken, rates, table([dict(list(row.items())[:4]) for row in rows]))
    result = {"codec": a.codec, "updates": a.updates, "test": len(images), "bd_rate": rates, "curves": curves}
    result |= {"cpu_seconds_an_update": taken["cpu_seconds_an_update"], "photos": taken["photos"]}
    suffix = "-now" if a.now else ""
    write_json(result, a.out / f"{a.codec}-{a.updates}{suffix}.json")


if __name__ == "__main__":
    main()
