# SPDX-License-Identifier: Apache-2.0
"""One loop for everything that is trained: codec, restorer, adapted restorer, and LL-ICM.

The crops of an update are in equal shares, which the processes of torchrun or `accelerate launch` divide among them;
one process takes one after the other. Data and random numbers of a share depend on its number alone, so the weights do
not depend on how many processes there are, but for the order of sums.
"""

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from llicm.data.stream import Batch, PairStream
from llicm.errors import UserError
from llicm.framework import LLICM, Output
from llicm.objectives import Objective, psnr
from llicm.training.transcoder import Transcoder
from llicm.vlm.clip import degradation_text

__all__ = ["Store", "Trainer", "bf16_pays", "learning_rate"]


class Store(Protocol):
    """Where training keeps its state (see `llicm.pipeline.checkpoint`)."""

    def load(self) -> dict | None: ...
    def save(self, state: dict) -> None: ...
    def done(self) -> None: ...


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


class Trainer:
    """Trains some parts of a system; the others are frozen.

    Args:
        system: codec, restorer or both, with what steers and what precedes them.
        trains: which of "codec", "restorer" to update.
        objective: the loss.
        stream: training pairs by number: a share of an update at a time.
        tasks: names of the stream's tasks, for the log.
        steps, warmup: schedule in updates (see `learning_rate`). lr: peak learning rate.
        first: update to begin with, for a model that goes on from pretraining.
        max_grad_norm: limit of each part's gradient norm.
        hint_share: share of the crops whose degradation is named in words, so that users can name it later.
        transcoder: codecs in place of the system's own, which it then lacks; or None.
        precision: "bf16", "fp32", or "auto" (bf16 where the processor gains by it).
        accumulate: shares of an update, a multiple of the number of processes.
        average: decay of the moving average of the weights that `use_average` puts in their place; 0 for none.
        seed: of the quantisation noise, the levels and the hints. log_every: updates between two rows of the log.

    Raises:
        UserError: `trains` names another part, or the processes cannot share an update equally.
    """

    def __init__(
        self, system: LLICM, trains: Sequence[str], objective: Objective, stream: PairStream, tasks: Sequence[str], *,
        steps: int, warmup: int, lr: float, max_grad_norm: float, precision: str, seed: int, log_every: int,
        first: int = 0, hint_share: float = 0.0, transcoder: Transcoder | None = None,
        average: float = 0.0, accumulate: int = 1,
    ):  # fmt: skip
        wrong = sorted(set(trains) - {"prefilter", "codec", "restorer"})
        if wrong:
            raise UserError(f"params.yaml: a model can train prefilter, codec and restorer, not '{wrong[0]}'")
        if precision == "auto":
            precision = "bf16" if bf16_pays() else "fp32"
        AcceleratorState._reset_state(reset_partial_state=True)  # one process trains several models in tests
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(), mixed_precision={"fp32": "no"}.get(precision, precision)
        )
        processes = self.accelerator.num_processes
        if accumulate % processes:
            raise UserError(
                f"params.yaml: training.accumulate is {accumulate}, but there are {processes} processes; make it a "
                "multiple of their number"
            )
        self.accumulate, self.shares = accumulate, accumulate // processes
        self.system, self.objective, self.stream, self.tasks = system, objective, stream, tasks
        self.max_grad_norm, self.seed, self.log_every, self.hint_share = max_grad_norm, seed, log_every, hint_share
        self.transcoder = transcoder
        self.schedule: dict[str, Any] = {"peak": lr, "warmup": warmup, "steps": steps}
        system.requires_grad_(False)
        self.parts: dict[str, nn.Module] = {name: getattr(system, name) for name in trains}
        for part in self.parts.values():
            part.requires_grad_(True)
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # compressai's quantiles are found by bisection at the end, not by gradient
        self.parameters = {
            name: [p for key, p in part.named_parameters() if not key.endswith("quantiles")]
            for name, part in self.parts.items()
        }
        self.trained = [p for part in self.parameters.values() for p in part]
        optimizer = torch.optim.Adam(self.trained, lr=lr, betas=(0.9, 0.99), foreach=True)
        self.decay, self.average = average, [p.detach().clone() for p in self.trained] if average else []
        # Gradients are averaged here: of a system only the trained parts have some, and a prefilter runs by itself.
        self.model = self.accelerator.prepare_model(system, evaluation_mode=True)
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        self.step, self.rows, self.window = first, [], []  # type: int, list[dict], list[dict]
        self.pretrained: dict[str, dict[str, Tensor]] | None = None
        self.seconds = {"data": 0.0, "update": 0.0}

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.accelerator.is_main_process

    @property
    def steps(self) -> int:
        """Updates in all."""
        return self.schedule["steps"]

    def run(self, until: int | None = None, checkpoint: Store | None = None, checkpoint_every: int = 0) -> list[dict]:
        """Train up to (not including) step `until`; returns the log so far.

        Args:
            checkpoint: where the state goes every `checkpoint_every` updates, or None.
        """
        until = self.steps if until is None else min(until, self.steps)
        self.system.eval()
        for part in self.parts.values():
            part.train()
        bar = tqdm(total=self.steps, initial=self.step, unit="step", file=sys.stderr, disable=not self.main)
        while self.step < until:
            row = self._update()
            bar.update()
            if row is not None:
                self.rows.append(row)
                bar.set_postfix_str(f"loss {row['loss']:.3g} bpp {row['bpp']:.2f}")
            if checkpoint is not None and self.main and checkpoint_every and self.step % checkpoint_every == 0:
                checkpoint.save(self.state())
        bar.close()
        self.system.eval()
        return self.rows

    def _update(self) -> dict | None:
        started = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, **self.schedule)
        loading = self.seconds["data"]
        first = self.step * self.accumulate + self.accelerator.process_index * self.shares
        for number in range(first, first + self.shares):
            self._learn(number)
        self._average_gradients()
        for part in self.parameters.values():  # each by itself: a restless codec must not slow the restorer
            self.accelerator.clip_grad_norm_(part, self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.decay:  # slower than the mean of all weights so far, so that the first ones are soon forgotten
            weights = [p.detach() for p in self.trained]
            torch._foreach_lerp_(self.average, weights, 1 - min(self.decay, self.step / (self.step + 9)))
        self.seconds["update"] += time.perf_counter() - started - (self.seconds["data"] - loading)
        if self.step % self.log_every and self.step != self.steps:
            return None
        return self._close_window()

    def _learn(self, number: int) -> None:
        """Add the gradients of a share of an update."""
        started = time.perf_counter()
        # In this process: on few cores a loader of its own takes more from the update than it gives (measured).
        # A stream on a GPU only queues its work there, and so does all below up to the end of the window.
        batch = self.stream.batch(number)
        device = self.accelerator.device
        x, ideal = (t.to(device, memory_format=torch.channels_last) for t in (batch.degraded, batch.ideal))
        self.seconds["data"] += time.perf_counter() - started
        # The quantisation noise of compressai is drawn from the global generator: seed it by number, and give it back.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed * 1_000_003 + number)
            level, lmbda = self._levels(len(x), device)
            first = self._hints(batch) if "prefilter" in self.parts else None
            prefiltered = x
            if self.system.prefilter is not None:
                with self.accelerator.autocast():
                    prefiltered = self.system.prefiltered(x, first)
            coded = prefiltered
            if self.transcoder is not None:
                coded, level = self.transcoder(prefiltered)
            # A prefilter has removed what the words would tell of.
            hints = self._hints(batch) if self.system.prefilter is None else None
            with self.accelerator.autocast():
                output = self.model(coded, level, hints, ideal, self.objective.fork, self.objective.diffusion)
            loss, bpp = self.objective(output, x, prefiltered, ideal, lmbda)
            self.accelerator.backward(loss / self.shares)
        single = batch.task.where(batch.second < 0, -1)  # the log is by task; a mixed row is of none
        self.window.append(_measure(loss, bpp, output, x, ideal, single))

    def _average_gradients(self) -> None:
        """Over all processes; a parameter that none has used stays without."""
        if self.accelerator.num_processes == 1:
            return
        used = torch.tensor([float(p.grad is not None) for p in self.trained], device=self.accelerator.device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.trained]
        together = self.accelerator.reduce(torch.cat([used, *(g.flatten() for g in gradients)]), "mean")
        used, *parts = together.split([len(gradients), *(g.numel() for g in gradients)])
        for parameter, share, gradient in zip(self.trained, used.tolist(), parts, strict=True):
            parameter.grad = gradient.view(parameter.shape) if share else None

    def _levels(self, n: int, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        codec: Any = self.system.codec
        if codec is None:
            return None, None
        # A level in every equal share of the range: each batch covers the whole of it, ends included.
        spread = (torch.randperm(n) + torch.rand(n)) / n
        level = ((spread * 1.2 - 0.1).clamp(0, 1) * (codec.levels - 1)).to(device)
        return level, codec.lambdas(level)

    def _hints(self, batch: Batch) -> list[str | None] | None:
        if self.system.conditioner is None or not self.hint_share:
            return None
        named = torch.rand(len(batch.task)) < self.hint_share
        texts = [
            degradation_text(self.tasks[i] for i in pair if i >= 0)
            for pair in zip(batch.task.tolist(), batch.second.tolist(), strict=True)
        ]
        return [text if aloud else None for text, aloud in zip(texts, named.tolist(), strict=True)]

    def _close_window(self) -> dict:
        rows, self.window = self.window, []
        for number in ("loss", "bpp"):
            for r in rows:
                r[number] = float(r[number])
        if self.accelerator.num_processes > 1:
            rows = gather_object([{k: v.cpu() if isinstance(v, Tensor) else v for k, v in r.items()} for r in rows])
        if not all(math.isfinite(r["loss"]) for r in rows):
            raise UserError(f"training diverged before step {self.step}: lower training.lr in params.yaml")
        row: dict[str, Any] = {"step": self.step}
        row |= {key: sum(r[key] for r in rows) / len(rows) for key in ("loss", "bpp")}
        task, before, after = (torch.cat([r[k] for r in rows]).cpu() for k in ("task", "before", "after"))
        for i, name in enumerate(self.tasks):
            if (task == i).any():
                row[f"psnr_degraded/{name}"] = float(before[task == i].mean())
                row[f"psnr/{name}"] = float(after[task == i].mean())
        return row

    def keep_pretrained(self) -> None:
        """Remember the weights as they are now; the checkpoint has them too."""
        self.pretrained = {
            name: {key: value.clone() for key, value in part.state_dict().items()} for name, part in self.parts.items()
        }

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the average of the weights in their place, for use; training then does not go on from there."""
        for weight, average in zip(self.trained, self.average, strict=bool(self.decay)):
            weight.copy_(average)

    def state(self) -> dict:
        """Everything a resumed run needs to end in the same bytes."""
        return {
            "step": self.step, "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "optimizer": self.optimizer.state_dict(), "rows": json.dumps(self.rows), "pretrained": self.pretrained,
            "average": self.average,
        }  # fmt: skip

    def restore(self, state: dict) -> None:
        """Continue from what `state` returned (at a multiple of `log_every`, where the log's window is empty)."""
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.rows, self.pretrained = state["step"], json.loads(state["rows"]), state["pretrained"]
        self.average = state["average"]


@torch.no_grad()
def _measure(loss: Tensor, bpp: Tensor, output: Output, x: Tensor, ideal: Tensor, task: Tensor) -> dict:
    # left where they are: to look at a number is to wait for the device
    return {
        "loss": loss.detach(), "bpp": bpp.detach().mean(), "task": task,
        "before": psnr(x, ideal), "after": psnr(output.enhanced.detach().clamp(0, 1), ideal),
    }  # fmt: skip
