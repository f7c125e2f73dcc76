# SPDX-License-Identifier: Apache-2.0
"""Train the universal restorer on: more photos, noise as cameras leave it, and pictures that are fine as they are.

    python bench/restorer.py --photos FOLDER ... --test FOLDER --out .run/restorer

It starts from published weights, steered by the published vision-language model. Beside the study's six tasks it learns
"clean", half of whose crops are generated graphics. The loop and the stream are the study's; a run that was stopped
goes on from its last checkpoint. In the folder are then the weights with card and lineage, for `bench/codec.py
--publish --restorer FOLDER`, and what was measured: PSNR before and after, on photos that it has not seen.
"""

import argparse
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import ROOT, credits, machine, read, table
from torch import Tensor

from llicm.data.graphics import GRAPHICS, graphic
from llicm.data.pairs import centre_crop, stable_seed
from llicm.data.stream import PairStream
from llicm.degradations import CLEAN, degrade
from llicm.files import write_json
from llicm.framework import LLICM
from llicm.images import quantize8
from llicm.model import load_model
from llicm.objectives import Objective, psnr
from llicm.parameters import load
from llicm.pipeline.checkpoint import Checkpoint
from llicm.provenance.lineage import digest
from llicm.training.loop import Trainer
from llicm.weights import load_part, save_part

SEVERITIES = (0.2, 0.5, 0.8)  # measured
SEVERITY = (0.05, 0.9)  # trained

CARD = """---
library_name: llicm
license: apache-2.0
model_name: llicm-restorer
pipeline_tag: image-to-image
tags:
- image-restoration
---

# Universal one-pass restorer, trained on

The restorer of `init/published`, trained on with more photos, noise as cameras leave it, and clean pictures: photos,
and generated graphics such as text, charts and night skies. For photos that were not compressed.

`restorer.safetensors`: {parameters:,} parameters, {size:,} bytes, SHA-256 `{sha256}`. Safetensors; the configuration is
in the metadata, weights of convolutions and linear layers are 8-bit with one unit a channel (`llicm.weights`).

| | |
|---|---|
| photos | {photos}: {sets}; and synthetic dead leaves, 15% of all crops |
| degradations | {tasks}; severity {mild} to {severe} |
| updates | {updates:,} beyond those of the published one; of 12 crops of 128 x 128 |
| learning rate | {lr:g} at its peak, cosine to zero |
| weights | the average over the updates, of decay {ema:g} |
| loss | P = bounded_log_mse |
| made with | {machine} |

## Measured

PSNR in dB on {tests} photos ({test}) that it has not seen, cut to 256 pixels, and on one generated graphic of each
kind (clean pictures have at most 80 dB): as they come, restored by the weights that it started from, and by these; and
the worst picture of either.

{measured}

## Licence and limits

Weights: Apache-2.0, like the code. Photos that they were trained on: {terms}.

- A clean picture may still lose: see the table. Not for medical, forensic or other evidence.
"""


@torch.no_grad()
def measure(restorer, conditioner, tasks: Sequence[str], photos: Sequence[Tensor]) -> list[dict]:
    """PSNR in dB before and after of each task at each severity, and of clean pictures; and the worst after."""
    system, rows = LLICM(None, restorer, conditioner), []
    graphics = [graphic(kind, 256, torch.Generator().manual_seed(10**6 + i)) for i, kind in enumerate(GRAPHICS)]
    sets = {(task, s): photos for task in tasks if task != CLEAN for s in SEVERITIES}
    sets |= {("clean photos", None): photos, ("clean graphics", None): graphics}
    for (task, severity), ideals in sets.items():
        before, after = [], []
        for number, photo in enumerate(ideals):
            ideal = (centre_crop(photo, 256).float() / (255 if photo.dtype == torch.uint8 else 1))[None]
            x = ideal
            if severity is not None:
                generator = torch.Generator().manual_seed(stable_seed(task, severity, number))
                x = quantize8(degrade(task, ideal, severity, generator).clamp(0, 1))
            before.append(float(psnr(x, ideal)))
            after.append(float(psnr(quantize8(system.enhance(x).clamp(0, 1)), ideal)))
        quality = {"before": np.mean(before), "after": np.mean(after), "worst": np.min(after)}
        rows.append({"set": task, "severity": severity} | {key: round(float(v), 2) for key, v in quality.items()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--start", type=Path, default=ROOT / "init/published", help="folder of published weights")
    parser.add_argument("--photos", type=Path, nargs="+", default=[ROOT / "data/train"], help="folders to learn from")
    parser.add_argument("--test", type=Path, default=ROOT / "data/test")
    parser.add_argument("--every", type=int, default=1, help="use each so manieth test photo")
    parser.add_argument("--updates", type=int, default=5000)
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / ".run/restorer")
    parser.add_argument("--commit", help="of the code that trained, for the lineage")
    parser.add_argument("--now", action="store_true", help="measure the last checkpoint; train nothing")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    parameters = load(ROOT / "params.yaml")
    tasks = [*parameters.tasks, CLEAN]
    restorer = load_part("restorer", a.start / "restorer.safetensors")
    conditioner = load_model(a.start / "llicm.safetensors").conditioner
    photos = [photo for photo in read(a.photos) if min(photo.shape[1:]) >= 128]
    stream = PairStream(photos, tasks, 128, 12, 0, 0.15, SEVERITY, 24, 60, None, 0.1, None, 0.5)
    objective = {"gamma": 0.01, "perception": {"bounded_log_mse": 1.0}}
    described = {"updates": a.updates, "lr": a.lr, "ema": a.ema, "photos": len(photos), "objective": objective}
    checkpoint = Checkpoint("restorer", described, code=[a.start], root=a.out / "checkpoints")
    trainer = Trainer(
        LLICM(None, restorer, conditioner), ["restorer"], Objective(**objective), stream, tasks, steps=a.updates,
        warmup=100, lr=a.lr, max_grad_norm=1.0, precision="bf16", seed=0, log_every=100, average=a.ema, hint_share=0.1,
    )  # fmt: skip
    tests = read([a.test])[:: a.every]
    start = measure(restorer.eval(), conditioner, tasks, tests)
    if (saved := checkpoint.load()) is not None:
        trainer.restore(saved)
    started, first = time.process_time(), trainer.step
    if not a.now:
        trainer.run(None, checkpoint, 200)
    pace = (time.process_time() - started) / max(trainer.step - first, 1)
    trainer.use_average()
    restorer.eval()
    rows = [
        {
            "set": own["set"], "severity": own["severity"] or "", "degraded": own["before"], "start": old["after"],
            "restored": own["after"], "worst, start": old["worst"], "worst": own["worst"],
        } for old, own in zip(start, measure(restorer, conditioner, tasks, tests), strict=True)
    ]  # fmt: skip
    path = a.out / "restorer.safetensors"
    save_part(restorer, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    sets, found, terms = credits(a.photos)
    card = CARD.format(
        parameters=sum(p.numel() for p in restorer.parameters()), size=path.stat().st_size, sha256=sha256,
        photos=len(photos), sets=sets, tasks=", ".join(tasks), mild=SEVERITY[0], severe=SEVERITY[1],
        updates=trainer.step, lr=a.lr, ema=a.ema, machine=machine(), tests=len(tests), test=a.test.name,
        measured=table(rows), terms=terms,
    )  # fmt: skip
    (a.out / "restorer.md").write_text(card, encoding="utf-8")
    lineage = {
        "command": f"python bench/restorer.py --updates {a.updates} --lr {a.lr:g} --ema {a.ema:g}",
        "commit": a.commit, "updates": trainer.step, "photos": {name: digest(folder) for name, folder in found.items()},
        "start": hashlib.sha256((a.start / "restorer.safetensors").read_bytes()).hexdigest(), "weights": sha256,
    }  # fmt: skip
    write_json(lineage, a.out / "restorer-lineage.json")
    about = described | {"cpu_seconds_an_update": round(pace, 3), "machine": machine()}
    write_json(about | {"measured": rows, "log": trainer.rows}, a.out / f"restorer-{trainer.step}.json")
    print(table(rows))


if __name__ == "__main__":
    main()
