# SPDX-License-Identifier: Apache-2.0
"""One loop for everything that is trained: codec, restorer, adapted restorer, and LL-ICM.

Every module of every method gets the same number of updates at the same learning rates: one cosine from the first
update to the last. At the end of the *trunk* the ways part: the separately trained codec and restorer go down their own
branch, while the adapted restorer and LL-ICM go on from the same trunks. So methods differ in what the last updates
minimise, not in how many there were or how large.
"""

import json
import math
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from llicm.data.stream import Batch, PairStream
from llicm.errors import UserError
from llicm.framework import LLICM
from llicm.objectives import bits_per_pixel, distance
from llicm.vlm.clip import degradation_text
from llicm.vlm.conditioner import Oracle, conditioner_for, load_conditioner

__all__ = ["Objective", "Trainer", "Transcoder", "bf16_pays", "learning_rate", "restorer_context", "train_arm"]


@dataclass(frozen=True)
class Objective:
    """Weights of the loss (see `llicm.objectives`) and the mixtures of distances for D and P.

    `delta` is the weight of a diffusion restorer's own loss, which `diffusion` names (see `llicm.restore.irsde`).
    """

    alpha: float
    beta: float
    gamma: float
    distortion: dict[str, float] = field(default_factory=dict)
    perception: dict[str, float] = field(default_factory=dict)
    delta: float = 0.0
    diffusion: str | None = None

    def __call__(self, output, x: Tensor, ideal: Tensor, lmbda: Tensor | None) -> tuple[Tensor, Tensor]:
        """Loss (scalar) and estimated bits per pixel (N,) of a batch of X and X_ideal (N, 3, H, W).

        Args:
            lmbda: Lagrangian weight of each sample's level (N,); None without a codec. Each sample's loss is divided
                by the square root of it (relative to the batch): the optimum of a level stays what it is, but neither
                the lowest nor the highest rates own the gradient of the weights that all levels share. To the restorer
                all levels count the same, so P is weighted by the batch's mean lambda here, and by the sample's own on
                its way from the restorer back to the codec (see `llicm.framework`). An objective without a rate term
                has no trade-off, so it ignores lambda.
        """
        if lmbda is None or not self.beta:
            lmbda = x.new_ones(len(x))
        mean = lmbda.log().mean().exp()
        per_sample = bpp = x.new_zeros(len(x))
        if self.alpha:
            per_sample = per_sample + self.alpha * lmbda * distance(self.distortion, output.decoded, x)
        if output.likelihoods:
            bpp = bits_per_pixel(output.likelihoods, *x.shape[-2:])
        loss = (mean / lmbda).sqrt() * (per_sample + self.beta * bpp)
        if self.gamma:
            loss = loss + self.gamma * mean * distance(self.perception, output.enhanced, ideal)
        if self.delta:
            if output.diffusion is None:
                raise UserError("params.yaml: an objective with delta needs a restorer named irsde")
            loss = loss + self.delta * mean * output.diffusion
        return loss.mean(), bpp


def learning_rate(step: int, *, peak: float, warmup: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def bf16_pays() -> bool:
    """Whether this processor computes in bfloat16 natively (AVX512-BF16, AMX, or a GPU of Ampere or later)."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    flags = Path("/proc/cpuinfo")
    words = set(flags.read_text().split()) if flags.exists() else set()
    return bool(words & {"avx512_bf16", "amx_bf16"})


class Transcoder:
    """Sends training images through conventional codecs, for a restorer that is adapted to what those make of X.

    Args:
        codecs: name -> (lowest, highest) quality; every image draws a codec and a quality.

    Raises:
        UserError: a codec is unknown, or missing here.
    """

    def __init__(self, codecs: dict[str, list[int]]):
        from llicm.codec.conventional import find_codec

        self.codecs = [(find_codec(name), low, high) for name, (low, high) in codecs.items()]
        for codec, _, _ in self.codecs:
            if reason := codec.missing():
                raise UserError(f"params.yaml: an arm is to learn from the codec {codec.name}. {reason}")

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """X (N, 3, H, W) in [0, 1] to X̂, and the relative qualities (N,) in [0, 1]; draws from torch's generator."""
        decoded, quality = torch.empty_like(x), torch.empty(len(x))
        choice, place = torch.randint(len(self.codecs), (len(x),)).tolist(), torch.rand(len(x)).tolist()

        def transcode(row: int) -> None:
            codec, low, high = self.codecs[choice[row]]
            level = min(low + int(place[row] * (high - low + 1)), high)
            decoded[row] = codec.decode(codec.encode(x[row].cpu(), level))
            quality[row] = codec.relative_level(level)

        # The libraries behind the codecs compute in one thread each, without Python's lock.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(transcode, range(len(x))))
        return decoded, quality.to(x)


class Trainer:
    """Trains the parts named in `trains` of a system; the others are frozen.

    Args:
        system: codec and/or restorer.
        trains: which of "codec", "restorer" to update.
        objective: the loss.
        stream: training pairs by step.
        tasks: names of the stream's tasks, for the log.
        steps, warmup: schedule in updates (see `learning_rate`). lr: peak learning rate.
        clip: limit of each part's gradient norm.
        first: update to begin with, for an arm that goes on from a trunk.
        told: share of the rows whose degradation the guide is told in words, so that it can be told later.
        transcoder: codecs in place of the system's own, which it then lacks; or None.
        precision: "bf16", "fp32", or "auto" (bf16 where the processor gains by it).
        seed: of the levels and the quantisation noise; step s depends on (seed, s) alone.
        log_every: updates between two rows of the log.
    """

    def __init__(
        self, system: LLICM, trains: list[str], objective: Objective, stream: PairStream, tasks: list[str], *,
        steps: int, warmup: int, lr: float, clip: float, precision: str, seed: int, log_every: int,
        first: int = 0, hints: float = 0.0, transcoder: Transcoder | None = None,
    ):  # fmt: skip
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        wrong = sorted(set(trains) - {"codec", "restorer"})
        if wrong:
            raise UserError(f"params.yaml: an arm can train codec and restorer, not '{wrong[0]}'")
        if precision == "auto":
            precision = "bf16" if bf16_pays() else "fp32"
        AcceleratorState._reset_state(reset_partial_state=True)  # one process trains several arms in tests
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(), mixed_precision={"fp32": "no"}.get(precision, precision)
        )
        self.system, self.objective, self.stream, self.tasks = system, objective, stream, tasks
        self.trains, self.clip, self.seed, self.log_every, self.hints = trains, clip, seed, log_every, hints
        self.transcoder = transcoder
        self.schedule = {"peak": lr, "warmup": warmup, "steps": steps}
        if objective.alpha:
            system.most = objective.gamma / objective.alpha
        system.requires_grad_(False)
        for name in trains:
            getattr(system, name).requires_grad_(True)
        # compressai's quantiles are found by bisection at the end, not by gradient
        self.parameters = {
            part: [p for name, p in getattr(system, part).named_parameters() if not name.endswith("quantiles")]
            for part in trains
        }
        self.optimizer = torch.optim.Adam(
            [p for part in self.parameters.values() for p in part], lr=lr, betas=(0.9, 0.99)
        )
        system.to(memory_format=torch.channels_last)
        self.model, self.optimizer = self.accelerator.prepare(system, self.optimizer)
        for frozen in (system.conditioner, system.prefilter):  # none of the system's parts, so they did not move with it
            if frozen is not None:
                frozen.to(self.accelerator.device)
        self.step, self.rows, self.window, self.trunk_weights = first, [], [], None
        self.seconds = {"data": 0.0, "update": 0.0}

    @property
    def steps(self) -> int:
        """Updates in all."""
        return self.schedule["steps"]

    def run(self, until: int | None = None, checkpoint=None, checkpoint_every: int = 0) -> list[dict]:
        """Train up to (not including) step `until`; returns the log so far.

        Args:
            checkpoint: object with `save(state)`, called every `checkpoint_every` updates, or None.
        """
        from tqdm import tqdm

        until = self.steps if until is None else min(until, self.steps)
        self.system.train()
        for name in {"codec", "restorer"} - set(self.trains):
            if getattr(self.system, name) is not None:
                getattr(self.system, name).eval()
        bar = tqdm(total=self.steps, initial=self.step, unit="step", file=sys.stderr)
        while self.step < until:
            row = self._update()
            bar.update()
            if row is not None:
                self.rows.append(row)
                bar.set_postfix_str(f"loss {row['loss']:.3g} bpp {row['bpp']:.2f}")
            if checkpoint is not None and checkpoint_every and self.step % checkpoint_every == 0:
                checkpoint.save(self.state())
        bar.close()
        self.system.eval()
        return self.rows

    def _update(self) -> dict | None:
        started = time.perf_counter()
        # In this process: on few cores a loader of its own takes more from the update than it gives (measured).
        batch = self.stream.batch(self.step)
        device = self.accelerator.device
        x, ideal = (t.to(device, memory_format=torch.channels_last) for t in (batch.degraded, batch.ideal))
        loaded = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, **self.schedule)
        # The quantisation noise of compressai is drawn from the global generator: seed it per step, and give it back.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed * 1_000_003 + self.step)
            level, lmbda = self._levels(len(x), device)
            with self.accelerator.autocast():
                prepared = self.system.prepare(x)
            coded = prepared
            if self.transcoder is not None:
                coded, level = self.transcoder(prepared)
            hints = self._told(batch)
            with self.accelerator.autocast():
                output = self.model(coded, level, hints, ideal, self.objective.diffusion)
            loss, bpp = self.objective(output, prepared, ideal, lmbda)
            self.accelerator.backward(loss)
        for part in self.parameters.values():  # each by itself: a restless codec must not slow the restorer
            self.accelerator.clip_grad_norm_(part, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        single = batch.task.where(batch.second < 0, -1)  # the log is by task; a mixed row is of none
        self.window.append(self._measure(loss, bpp, output, x, ideal, single))
        self.seconds["data"] += loaded - started
        self.seconds["update"] += time.perf_counter() - loaded
        if self.step % self.log_every and self.step != self.steps:
            return None
        return self._close_window()

    def _levels(self, n: int, device) -> tuple[Tensor | None, Tensor | None]:
        if self.system.codec is None:
            return None, None
        # A level in every equal share of the range: each batch covers the whole of it, ends included.
        top = self.system.codec.levels - 1
        spread = (torch.randperm(n) + torch.rand(n)) / n
        level = ((spread * 1.2 - 0.1).clamp(0, 1) * top).to(device)
        return level, self.system.codec.lambdas(level)

    def _told(self, batch: Batch) -> list[str | None] | None:
        # A prefilter has removed what the words would tell of.
        if self.system.conditioner is None or self.system.prefilter is not None or not self.hints:
            return None
        spoken = torch.rand(len(batch.task)) < self.hints
        texts = [
            degradation_text(self.tasks[i] for i in pair if i >= 0)
            for pair in zip(batch.task.tolist(), batch.second.tolist(), strict=True)
        ]
        return [text if aloud else None for text, aloud in zip(texts, spoken.tolist(), strict=True)]

    @torch.no_grad()
    def _measure(self, loss, bpp, output, x, ideal, task) -> dict:
        def psnr(a, b):
            return -10 * (a.clamp(0, 1) - b).square().mean((1, 2, 3)).log10()

        return {
            "loss": float(loss), "bpp": float(bpp.mean()), "task": task,
            "before": psnr(x, ideal).cpu(), "after": psnr(output.enhanced.detach(), ideal).cpu(),
        }  # fmt: skip

    def _close_window(self) -> dict:
        rows, self.window = self.window, []
        if not all(math.isfinite(r["loss"]) for r in rows):
            raise UserError(f"training diverged before step {self.step}: lower training.lr in params.yaml")
        row = {"step": self.step}
        row |= {key: sum(r[key] for r in rows) / len(rows) for key in ("loss", "bpp")}
        task, before, after = (torch.cat([r[k] for r in rows]) for k in ("task", "before", "after"))
        for i, name in enumerate(self.tasks):
            if (task == i).any():
                row[f"psnr_degraded/{name}"] = float(before[task == i].mean())
                row[f"psnr/{name}"] = float(after[task == i].mean())
        return row

    def state(self) -> dict:
        """Everything a resumed run needs to end in the same bytes."""
        return {
            "step": self.step, "system": self.system.state_dict(), "optimizer": self.optimizer.state_dict(),
            "rows": json.dumps(self.rows), "trunk": self.trunk_weights,
        }  # fmt: skip

    def restore(self, state: dict) -> None:
        """Continue from what `state` returned (at a multiple of `log_every`, where the log's window is empty)."""
        self.system.load_state_dict(state["system"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.rows, self.trunk_weights = state["step"], json.loads(state["rows"]), state["trunk"]


def restorer_context(context: str, tasks: list[str], vlm: Path) -> dict | None:
    """What steers a restorer, as its configuration has it (see `llicm.restore.direct`).

    Args:
        context: "none"; "degradation" for that embedding alone; "both" for the content embedding too; "oracle" for the
            true task, as no decoder knows it.
        vlm: folder of the vision-language model.

    Raises:
        UserError: another `context`, or the model is missing.
    """
    if context == "none":
        return None
    if context == "oracle":
        return {"words": list(tasks)}
    if context not in ("degradation", "both"):
        raise UserError(f"params.yaml: an arm's context can be none, degradation, both or oracle, not '{context}'")
    width = load_conditioner(vlm).width
    return {"degradation": width, "content": width if context == "both" else 0}


def _check_size(config: dict, wanted: dict, path: Path) -> None:
    for key, value in wanted.items():
        if config.get(key) != value:
            raise UserError(
                f"{path}: has {key} {config.get(key)}, but params.yaml wants {value}; make them equal, or set init: "
                "scratch"
            )


def train_arm(
    name: str, spec: dict, *, photos: list[Tensor], paired: dict | None, tasks: list[str], data: dict, codec: dict,
    restorer: dict, training: dict, seed: int, models: Path, vlm: Path, out: Path, checkpoint=None,
    init: Path | None = None,
) -> "Trainer":  # fmt: skip
    """Train one arm of params.yaml and write its parts; returns the finished trainer, whose `rows` are the log.

    An arm goes on from its `start` (part -> weight file below `models`): with learning rate, data and step count of the
    trunk's last update. Parts that it trains but does not start from are built anew. The schedule has `training.trunk +
    training.branch` updates, or `steps` of the arm's own, of which `trunk` are its trunk (none if absent). An arm
    without a `start` also writes the weights as they are at the end of the trunk (`trunk.safetensors`). If `init` has
    weights of its name, those are its trunk, and it goes on from there.

    Args:
        spec: `trains` (parts to update), `start` (or null), `objective`, and, all optional, `context` (what steers a
            new restorer: see `restorer_context`), `restorer` (in place of the study's), `steps` and `trunk`, `tasks`
            (fewer than the study's, for a specialist), `codecs` (see `Transcoder`).
        photos: clean training photos (3, H, W). paired: ready-made training pairs by task, or None.
        data, codec, restorer, training: groups of params.yaml. vlm: folder of the vision-language model.
        out: folder of this arm's weights. checkpoint: see `llicm.pipeline.checkpoint`; None to go without.
        init: folder with published weights `<arm>.safetensors`, or None.

    Raises:
        UserError: unknown parts or distances, missing weights to start from, published weights of another size than
            the parameters want, or divergence.
    """
    from llicm.codec.mean_scale import make_codec
    from llicm.framework import load_part, save_part
    from llicm.registry import make_restorer

    torch.manual_seed(seed)
    start, tasks = spec["start"] or {}, spec.get("tasks") or tasks
    parts = {kind: load_part(kind, Path(models) / file) for kind, file in start.items()}
    if init is not None and not start and (found := Path(init) / f"{name}.safetensors").is_file():
        (kind,) = spec["trains"]
        parts[kind] = load_part(kind, found)
        _check_size(parts[kind].config, codec if kind == "codec" else spec.get("restorer") or restorer, found)
    fresh = [kind for kind in spec["trains"] if kind not in parts]
    if "codec" in fresh:
        parts["codec"] = make_codec(**codec)
    if "restorer" in fresh:
        context = restorer_context(spec.get("context") or "none", tasks, vlm)
        parts["restorer"] = make_restorer(**(spec.get("restorer") or restorer), context=context)
    system = LLICM(
        parts.get("codec"), parts.get("restorer"), conditioner_for(parts.get("restorer"), vlm), parts.get("prefilter")
    )
    transcoder = Transcoder(spec["codecs"]) if spec.get("codecs") else None
    if transcoder is not None and "codec" in parts:
        raise UserError(f"params.yaml: arm '{name}' has codecs, so it can neither train nor start from a learned one")
    if {"codec", "restorer"} <= parts.keys() or transcoder is not None:
        system.restorer.level_conditioned = True
    steps, parting = training["trunk"] + training["branch"], training["trunk"]
    if spec.get("steps"):
        steps, parting = spec["steps"], spec.get("trunk", 0)
    first, trunk = 0 if fresh else parting, 0 if start else parting
    if training["checkpoint_every"] % training["log_every"]:
        raise UserError("params.yaml: training.checkpoint_every must be a multiple of training.log_every")
    stream = PairStream(
        photos, tasks, training["crop"], training["batch"], seed, data["dead_leaves_share"],
        tuple(data["severity"]), data["pool"], data["refresh"], paired, data["mixed"],
    )  # fmt: skip
    trainer = Trainer(
        system, spec["trains"], Objective(**spec["objective"]), stream, tasks,
        steps=steps, first=first, warmup=training["warmup"], lr=training["lr"], clip=training["clip"],
        precision=training["precision"], seed=seed, log_every=training["log_every"],
        hints=1.0 if isinstance(system.conditioner, Oracle) else training["told"], transcoder=transcoder,
    )  # fmt: skip
    saved = checkpoint.load() if checkpoint is not None else None
    if saved is not None:
        trainer.restore(saved)
    if trunk and trainer.trunk_weights is None:
        trainer.run(trunk, checkpoint, training["checkpoint_every"])
        # Kept in the checkpoint too: a pipeline that resumes has deleted the arm's files.
        trainer.trunk_weights = {name: value.clone() for name, value in system.state_dict().items()}
    trainer.run(None, checkpoint, training["checkpoint_every"])
    if trunk:
        (part,) = spec["trains"]
        prefix = part + "."
        weights = {n.removeprefix(prefix): v for n, v in trainer.trunk_weights.items() if n.startswith(prefix)}
        save_part(getattr(system, part), Path(out) / "trunk.safetensors", weights)
    for kind, part in parts.items():
        if kind == "codec" and kind in spec["trains"]:
            part.update()
        save_part(part, Path(out) / f"{kind}.safetensors")
    if checkpoint is not None:
        checkpoint.done()
    return trainer
