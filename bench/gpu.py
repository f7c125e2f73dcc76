# SPDX-License-Identifier: Apache-2.0
"""The study at the paper's size: what a GPU does in six minutes, and what it will cost, counted.

    python bench/gpu.py OUT.json          # on a machine with a GPU; --tiny tries the script anywhere
    python bench/gpu.py --count           # writes docs/paper.json and the table of docs/machines.md, on a processor

It measures with random weights, so it needs no files but the repository's: whether the integer networks of the codec
give the same numbers as on the processor; pictures per second, memory, and share of what the chip reaches in a large
matrix product, of an update of every model; restored pictures per second; and of the published model and the full-size
codec a test photo encoded, decoded and enhanced, per second, with the memory, and whether its symbols are the
processor's.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common import ROOT, photos, table, write_page
from torch.utils.flop_counter import FlopCounterMode

from llicm.codec.bitstream import unpack
from llicm.files import json_text, write_json
from llicm.integer import IntegerConv
from llicm.model import load_model
from llicm.parameters import Parameters, change, read
from llicm.training.loop import Trainer
from llicm.training.models import train_model
from llicm.vlm.clip import model_config
from llicm.vlm.conditioner import Conditioner, save_conditioner
from llicm.vlm.daclip import make_daclip
from llicm.vlm.mini import mini_config

PROFILE = ROOT / "profiles/paper/params.yaml"
BRIEF: dict[str, Any] = {
    "training.pretraining": 1, "training.fine_tuning": 1, "training.warmup": 1, "training.log_every": 1,
    "training.checkpoint_every": 0, "training.accumulate": 1, "threads": 1, "paired": None, "sets": [],
    "models.irsde.restorer.weights": None,
}  # fmt: skip
TINY = {
    "training.batch": 2, "training.crop": 64, "models.rdo.codec.N": 8, "models.rdo.codec.M": 48,
    "models.irsde.restorer.nf": 4, "models.irsde.restorer.ch_mult": [1, 2], "models.irsde.restorer.heads": 1,
    "models.irsde.restorer.half": True,
}  # fmt: skip
SMALL_CLIP = {
    "image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "embed_dim": 16, "text_width": 32, "text_layers": 1
}  # fmt: skip
CHIPS = {"A100": 312e12, "H100 or H200": 989e12}  # dense bfloat16, as the maker states it
SHARE = 0.3  # of that which the hours are computed with: an assumption until bench/gpu.py has measured
MODELS = ("rdo", "irsde", "llicm")


def trainers(parameters: Parameters, folder: Path, tiny: bool) -> Iterator[tuple[str, Trainer]]:
    """Models whose weights are random, each ready for a further update."""
    torch.manual_seed(0)
    clip = mini_config(**SMALL_CLIP) if tiny else model_config("ViT-B-32")
    save_conditioner(Conditioner(make_daclip(clip), "whole"), folder / "vlm")
    for name in MODELS:
        yield (
            name,
            train_model(
                name, parameters, photos=list(photos().values()), paired=None, models=folder, out=folder / name
            ),
        )


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def repeated(function: Any, seconds: float) -> float:
    """Seconds of a call, of those that fit into so many seconds; the first is not counted."""
    function()
    synchronise()
    started, count = time.perf_counter(), 0
    while count < 1 or time.perf_counter() - started < seconds:
        function()
        count += 1
        synchronise()
    return (time.perf_counter() - started) / count


def reached(device: str, side: int, seconds: float) -> float:
    """Operations a second in a product of large matrices in bfloat16."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / repeated(lambda: a @ b, seconds)


@torch.no_grad()
def exact(device: str) -> dict[str, int]:
    """Calls of the published codec's integer networks while a photo is coded, and how many give other numbers there."""
    codec: Any = load_model().codec
    seen: list[tuple[Any, Any, Any]] = []
    hooks = [
        module.register_forward_hook(lambda m, given, made: seen.append((m, given, made)))
        for module in codec.modules()
        if isinstance(module, IntegerConv)
    ]
    codec.eval().compress(next(iter(photos().values())), 2)
    for hook in hooks:
        hook.remove()
    there = {id(m): m.to(device) for m, *_ in seen}
    differ = sum(
        not torch.equal(there[id(m)](*(v.to(device) if hasattr(v, "to") else v for v in given)).cpu(), made)
        for m, given, made in seen
    )
    return {"calls": len(seen), "differ": differ}


def update(trainer: Trainer, batch: int, seconds: float, peak: float) -> dict[str, float]:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with FlopCounterMode(display=False) as counter:
        trainer._update()
    taken = repeated(trainer._update, seconds)
    memory = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
    flops = counter.get_total_flops()
    return {"images_per_s": batch / taken, "tflop": flops / 1e12, "share": flops / taken / peak, "memory_gb": memory}


def restored(trainer: Trainer, side: int, seconds: float) -> float:
    """Pictures a second that the diffusion restorer restores, all of its steps."""
    system = trainer.system.eval()
    x = torch.rand(1, 3, side, side, device=next(system.parameters()).device)
    with torch.no_grad(), trainer.accelerator.autocast():
        return 1 / repeated(lambda: system.enhance(x), seconds)


@torch.no_grad()
def coded(system: Any, photo: torch.Tensor, seconds: float) -> dict[str, Any]:
    """A photo (3, H, W) through a whole system, on its device, as often as fits."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    found: dict[str, Any] = {"megapixels": photo[0].numel() / 1e6}
    data = system.codec.compress(photo, 2)
    decoded, _ = system.codec.decompress(data)
    calls: dict[str, Any] = {
        "encoded": lambda: system.codec.compress(photo, 2), "decoded": lambda: system.codec.decompress(data),
        "enhanced": lambda: system.enhance(decoded[None]),
    }  # fmt: skip
    if system.restorer is None:
        del calls["enhanced"]
    found |= {f"{name}_per_s": 1 / repeated(call, seconds) for name, call in calls.items()}
    found["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
    there = system.codec.latent(unpack(data))
    system.codec.cpu()
    found["same_symbols"] = all(map(torch.equal, there, system.codec.latent(unpack(data))))
    return found


def measure(tiny: bool, seconds: float) -> dict:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parameters = change(read(PROFILE), BRIEF | (TINY if tiny else {}))
    name = torch.cuda.get_device_name() if device == "cuda" else "processor"
    peak = reached(device, 256 if tiny else 8192, seconds)
    found: dict[str, Any] = {"device": name, "tflops_reached": peak / 1e12, "integer_networks": exact(device)}
    photo = next(iter(photos().values()))[:, : 128 if tiny else None, : 128 if tiny else None]
    found["published"] = coded(load_model().to(device), photo, seconds)
    with tempfile.TemporaryDirectory() as folder:
        for model, trainer in trainers(parameters, Path(folder), tiny):
            found[model] = update(trainer, parameters.training.batch, seconds, peak)
            if model == "irsde":
                trainer.system.restorer.steps = 2 if tiny else 100
                found["restored_per_s"] = restored(trainer, parameters.training.crop, seconds)
            if model == "rdo":
                trainer.system.codec.update()
                found[model]["codec"] = coded(trainer.system.eval(), photo, seconds)
    return found


def count(crops: tuple[int, int], tiny: bool = False) -> dict:
    """Operations, weights and kept activations of an update of one crop of the profile's size, by model.

    They are counted at two smaller crops, and are a constant (the vision-language model's) and a multiple of the area.
    """
    found: dict[str, Any] = {}
    for crop in crops:
        own = {"training.batch": 1, "training.crop": crop, "training.precision": "fp32"}
        parameters = change(read(PROFILE), BRIEF | (TINY if tiny else {}) | own)
        with tempfile.TemporaryDirectory() as folder, mock.patch.object(Trainer, "run"):  # one update is enough
            for model, trainer in trainers(parameters, Path(folder), tiny):
                found.setdefault(model, []).append(counted(trainer))
    area = (read(PROFILE)["training"]["crop"] ** 2 - crops[0] ** 2) / (crops[1] ** 2 - crops[0] ** 2)
    return {
        model: {name: low[name] + area * (high[name] - low[name]) for name in low}
        for model, (low, high) in found.items()
    }


def counted(trainer: Trainer) -> dict[str, float]:
    """What an update of this model takes."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        trainer._update()
    weights = list(trainer.system.parameters())
    for weight in weights:
        kept.pop(weight.untyped_storage().data_ptr(), None)
    return {
        "gflop": counter.get_total_flops() / 1e9, "activations_gb": sum(kept.values()) / 1e9,
        "weights": sum(p.numel() for p in weights), "trained": sum(p.numel() for p in trainer.trained),
    }  # fmt: skip


def page(found: dict) -> None:
    values = read(PROFILE)
    training = values["training"]
    batch, updates = training["batch"], {name: training["fine_tuning"] for name in MODELS}
    updates["rdo"] += training["pretraining"]
    rows = []
    for name, model in found.items():
        flops = model["gflop"] * 1e9 * batch * updates[name]
        memory = (4 * model["weights"] + 12 * model["trained"]) / 1e9 + batch * model["activations_gb"]
        row = {
            "model": name, "updates": f"{updates[name]:,}", "trained (M)": f"{model['trained'] / 1e6:.1f}",
            "an update (TFLOP)": f"{model['gflop'] * batch / 1000:.1f}", "memory, fp32 (GB)": f"{memory:.0f}",
        }  # fmt: skip
        for chip, peak in CHIPS.items():
            hours = flops / (SHARE * peak) / 3600
            row[f"hours on 1, 4, 8 {chip}"] = " / ".join(f"{hours / n:.1f}" for n in (1, 4, 8))
        rows.append(row)
    write_page("machines", [table(rows)])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--count", action="store_true", help="without a GPU: docs/paper.json and docs/machines.md")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=15, help="of each measurement (default: %(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.count:
        found = count((64, 128))
        write_json(found, ROOT / "docs/paper.json")
        page(found)
        return
    found = measure(given.tiny, given.seconds)
    print(json_text(found))
    if given.out:
        write_json(found, given.out)


if __name__ == "__main__":
    main()
