# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of training is what it was: losses and gradients as the first edition of the code computed them.

tests/golden.json was recorded with that code, not with this one. On the same kind of machine every bit must agree; on
another the order of sums differs, so the last bits do.
"""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from small import ROOT, start, study

from llicm.codec.conventional import CONVENTIONAL
from llicm.data.corpus import load_photos
from llicm.data.pairs import Pair
from llicm.data.stream import PairStream
from llicm.degradations import CLEAN, IN_ORDER
from llicm.framework import LLICM
from llicm.objectives import Objective
from llicm.registry import CODECS, RESTORERS
from llicm.training.models import train_model
from llicm.vlm.conditioner import Conditioner, save_conditioner
from llicm.vlm.mini import train_mini
from llicm.weights import load_part

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())
TASKS = ["noisy", "hazy"]
CODEC = {"name": "mean-scale", "N": 16, "M": 48, "lambdas": [0.002, 0.007, 0.02, 0.07]}
DIRECT = {"name": "direct", "width": 8, "blocks": [1, 1, 1]}
IRSDE = {
    "name": "irsde", "nf": 8, "ch_mult": [1, 2], "half": True, "heads": 1, "shrinkage": True, "scaling": "balanced",
    "predicts": "x0", "steps": 2, "mode": "posterior", "memory": 2_000_000,
}  # fmt: skip
MINI = {
    "image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "embed_dim": 16, "text_width": 32, "text_layers": 1,
}  # fmt: skip
DATA = {"dead_leaves_share": 0.5, "pool": 4, "refresh": 20, "severity": [0.0, 1.0], "mixed": 0.1}
TRAINING = {
    "batch": 4, "crop": 64, "pretraining": 6, "fine_tuning": 6, "lr": 1e-3, "warmup": 2, "precision": "fp32",
    "hint_share": 0.3, "log_every": 2, "checkpoint_every": 6,
}  # fmt: skip
LOG_MSE = {"log_mse": 1.0}
OBJECTIVES = {
    "rd": {"alpha": 1.0, "beta": 1.0, "distortion": {"mse": 1.0}},
    "rpo": {"alpha": 0.25, "beta": 1.0, "gamma": 0.75, "distortion": {"mse": 1.0}, "perception": LOG_MSE},
    "restore": {"gamma": 0.01, "perception": LOG_MSE},
    "diffuse": {"gamma": 0.005, "perception": LOG_MSE, "delta": 0.5, "diffusion": "x0"},
    "pure": {"beta": 1.0, "gamma": 1.0, "perception": LOG_MSE},
}
PRETRAINED = start(codec="rdo/pretrained.safetensors", restorer="restorer/pretrained.safetensors", vlm="vlm")
JOINT = {"trains": ["codec", "restorer"], "objective": "rpo", "start": PRETRAINED}
RESTORER = {"trains": ["restorer"], "objective": "restore"}
DIFFUSION = {"updates": 8, "pretraining": 4}
ABLATION = RESTORER | {"restorer": DIRECT, "updates": 6, "start": start(codec="rdo/codec.safetensors", vlm="vlm")}
MODELS = {
    "rdo": {"trains": ["codec"], "objective": "rd", "codec": CODEC, "start": start()},
    "restorer": RESTORER | {"restorer": DIRECT, "context": "both", "start": start(vlm="vlm")},
    "irsde": DIFFUSION | {
        "trains": ["restorer"], "objective": "diffuse", "restorer": IRSDE, "context": "both", "start": start(vlm="vlm"),
    },
    "adapted": RESTORER | {"start": PRETRAINED | {"codec": "rdo/codec.safetensors"}},
    "conventional": RESTORER | {"codecs": {"jpeg": [5, 70], "webp": [5, 80]}, "start": PRETRAINED | {"codec": "none"}},
    "llicm": JOINT,
    "pure": JOINT | {"objective": "pure"},
    "prefilter": JOINT | {"start": PRETRAINED | {"prefilter": "restorer/restorer.safetensors"}},
    "llicm-irsde": JOINT | DIFFUSION | {
        "start": start(codec="rdo/codec.safetensors", restorer="irsde/pretrained.safetensors", vlm="vlm"),
    },
    **{context: ABLATION | {"context": context} for context in ("none", "degradation", "both", "oracle")},
}  # fmt: skip


def machine() -> dict:
    """What decides the last bits."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": next(iter(names), ""), "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__, "threads": torch.get_num_threads(),
    }  # fmt: skip


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def compare(found: list[float], recorded: list[str], what: str, least: float = 0.0) -> None:
    """`least`: a difference that is rounding, whatever the size of the number."""
    expected = [float.fromhex(value) for value in recorded]
    if machine() == GOLDEN["machine"]:
        assert [value.hex() for value in found] == recorded, what
    assert found == pytest.approx(expected, rel=1e-3, abs=least), what


@pytest.mark.slow
def test_losses_of_every_kind_of_model(tmp_path, one_thread, monkeypatch):
    monkeypatch.setattr("llicm.data.stream.camera_noise", lambda noisy, *_: noisy)  # as they were then
    monkeypatch.setattr(CONVENTIONAL["jpeg"], "settings", {"subsampling": "4:2:0"})
    monkeypatch.setattr(CONVENTIONAL["webp"], "settings", {"method": 4})
    corpus = load_photos(ROOT / "data")
    parameters = study(MODELS, OBJECTIVES, tasks=TASKS, data=DATA, training=TRAINING, seed=0)
    assert set(MODELS) == set(GOLDEN["losses"])
    for name in MODELS:
        trainer = train_model(
            name, parameters, photos=list(corpus.train.values()), paired=None, models=tmp_path, out=tmp_path / name
        )
        compare([row["loss"] for row in trainer.rows], GOLDEN["losses"][name], name)
        if name == "rdo":
            model, rows = train_mini(
                corpus.train, TASKS, mini=MINI, data=DATA, steps=[3, 3], batch=6, lr=1e-3, severity=[0.2, 1.0],
                mixed=0.15, codec=load_part("codec", tmp_path / "rdo/codec.safetensors"), seed=0, log_every=1,
            )  # fmt: skip
            for row, recorded in zip(rows, GOLDEN["vlm"], strict=True):
                compare([row[loss] for loss in recorded], list(recorded.values()), f"vlm {row}")
            save_conditioner(Conditioner(model, "windows"), tmp_path / "vlm")


@pytest.mark.parametrize("restorer", [DIRECT, IRSDE | {"memory": None}], ids=["direct", "irsde"])
def test_gradients_of_one_batch(restorer, one_thread):
    torch.manual_seed(0)
    parts = {"codec": CODECS.make(**CODEC), "restorer": RESTORERS.make(**restorer)}
    parts["restorer"].level_conditioned = True
    with torch.no_grad():  # no part may be as it begins, when much is zero
        for part in parts.values():
            for name, value in part.named_parameters():
                if not name.endswith("quantiles"):
                    value.add_(0.02 * torch.randn(value.shape))
    objective = Objective(**OBJECTIVES["rpo"])
    x, ideal = torch.rand(2, 4, 3, 64, 64)
    level = torch.tensor([0.0, 0.7, 1.9, 3.0])
    output = LLICM(parts["codec"], parts["restorer"]).train()(x, level, None, ideal, objective.fork)
    loss, bpp = objective(output, x, x, ideal, parts["codec"].lambdas(level))
    loss.backward()

    recorded = GOLDEN["gradients"][restorer["name"]]
    compare([loss.item(), bpp.mean().item()], [recorded["loss"], recorded["bpp"]], "loss")
    for kind, part in parts.items():
        gradients = {name: value.grad for name, value in part.named_parameters() if value.grad is not None}
        assert len(gradients) == recorded[kind]["parameters"]
        norm = torch.cat([value.flatten().double() for value in gradients.values()]).norm().item()
        compare([norm], [recorded[kind]["norm"]], kind)
        for name, entries in recorded[kind]["entries"].items():
            compare(gradients[name].flatten()[:3].tolist(), entries, f"{kind} {name}", least=1e-6 * norm)


def batches() -> dict[str, list]:
    """Batches of the stream: of each the bytes' hash, and the mean of its degraded crops as float.hex."""
    photos = list(load_photos(ROOT / "data").train.values())
    small = photos[0][:, :40, :30]
    pairs = {"rainy": [Pair("p", photos[1], photos[1] * 0.5), Pair("q", small, small * 0.25)]}
    streams = {
        "study": ([*photos, small], IN_ORDER[1:8], 128, 12, 0, 0.35, (0.2, 0.8), 3, 2, None, 0.1),
        "all": ([*photos, small], [*IN_ORDER, CLEAN], 65, 11, 1, 0.2, (0.0, 1.0), 2, 3, pairs, 0.5),
    }
    found = {}
    for name, arguments in streams.items():
        made = [PairStream(*arguments).batch(step) for step in (0, 1, 5, 1000)]
        hashes = [
            hashlib.sha256(b"".join(x.contiguous().numpy().tobytes() for x in batch)).hexdigest() for batch in made
        ]
        found[name] = [
            [code[:16], batch.degraded.mean().item().hex()] for code, batch in zip(hashes, made, strict=True)
        ]
    return found


def test_batches_of_the_stream(one_thread, monkeypatch):
    monkeypatch.setattr("llicm.data.stream.camera_noise", lambda noisy, *_: noisy)  # as it was then
    found = batches()
    for name, recorded in GOLDEN["batches"].items():
        if machine() == GOLDEN["machine"]:
            assert [code for code, _ in found[name]] == [code for code, _ in recorded], name
        means = [float.fromhex(mean) for _, mean in found[name]]
        compare(means, [mean for _, mean in recorded], name)
