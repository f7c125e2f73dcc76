# SPDX-License-Identifier: Apache-2.0
"""Conventional still-image codecs by name: JPEG, WebP, JPEG 2000, JPEG XL, AVIF, HEVC intra (HEIC), VVC intra.

A baseline's curve is the best that its encoder can do in some seconds a photo: settings are chosen for the squared
error that rate-distortion curves measure (docs/conventional.md says what that is worth).

The rate of a conventional codec is the length of the complete file it writes, headers included, so that
it can be compared with the real bitstream of a learned codec; the picture is always what the format's own
decoder makes of that file. A larger quality is a better picture and a larger file with every codec, though
WebP and JPEG may fall by a few bytes from one quality to the next.

========== ======== ================================================== ==============================
name       chroma   quality                                            needs
========== ======== ================================================== ==============================
jpeg       4:2:0    0 to 100, libjpeg's                                Pillow
jpeg444    4:4:4    0 to 100, libjpeg's                                Pillow
webp       4:2:0    0 to 100, libwebp's                                Pillow
jpeg2000   4:4:4    20 to 60, the PSNR aimed at in dB                  Pillow
jxl        4:4:4    0 to 99, libjxl's                                  pillow-jxl-plugin
avif       4:4:4    0 to 100, libavif's                                Pillow
avif420    4:2:0    0 to 100, libavif's                                Pillow
heic       4:4:4    0 to 51, 51 - QP                                   pillow-heif
heic420    4:2:0    0 to 51, 51 - QP                                   pillow-heif
vvc        program  0 to 63, 63 - QP                                   VTM, or vvenc and vvdec
========== ======== ================================================== ==============================

The published BPG, AV1 and VTM anchors are 4:4:4, to be compared with `heic`, `avif` and `vvc` by VTM; those of
JPEG and WebP are 4:2:0. :func:`available` says which codecs cannot be used here, and why.

A further codec is one class in a module of its own, found by its name (then no model is trained again):

    @register("my-codec")                      # in llicm/codec/my_codec.py
    class MyCodec(ConventionalCodec): ...
"""

import importlib
import importlib.metadata
import io
import os
import pkgutil
import re
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from PIL import Image, features
from torch import Tensor

from llicm.errors import BitstreamError, UserError
from llicm.images import to_pixels
from llicm.limits import as_pictures, check_size
from llicm.registry import CODECS

__all__ = ["CONVENTIONAL", "ConventionalCodec", "available", "find_codec", "register"]

CONVENTIONAL: dict[str, "ConventionalCodec"] = {}

_Class = TypeVar("_Class", bound=type["ConventionalCodec"])


def register(name: str) -> Callable[[_Class], _Class]:
    """Class decorator: put one object of a :class:`ConventionalCodec` into ``CONVENTIONAL`` as `name`."""

    def add(cls: _Class) -> _Class:
        if name in CONVENTIONAL:
            raise ValueError(f"a codec named {name!r} is registered already")
        CONVENTIONAL[name] = cls(name)
        return cls

    return add


def find_codec(name: str) -> "ConventionalCodec":
    """The codec of this name; a module of its own is imported.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    if name not in CONVENTIONAL and (module := CODECS.module_of(name)):
        importlib.import_module(module)
    if name not in CONVENTIONAL:
        raise UserError(f"params.yaml: codec '{name}' is unknown; choose one of raw, {', '.join(available())}")
    return CONVENTIONAL[name]


def available() -> dict[str, str | None]:
    """For each registered codec: None if it can be used here, else a sentence: why not and what to install."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)], f"{__package__}."):
        importlib.import_module(module.name)  # those in modules of their own register themselves
    return {name: codec.missing() for name, codec in sorted(CONVENTIONAL.items())}


class ConventionalCodec:
    """An image file format with a fixed set of encoder settings; this class writes and reads it with Pillow.

    A codec of another library overrides :meth:`missing`, :meth:`write`, :meth:`read` and :meth:`versions`.

    Attributes:
        format: Pillow's name of the format.
        feature: Pillow's name of the library behind it, asked for its presence and version.
        settings: encoder options other than the quality; part of the record of a measurement.
        quality_range: smallest and largest quality accepted, both included.
    """

    format: str
    feature: str
    settings: dict[str, Any] = {}
    quality_range = (0, 100)

    def __init__(self, name: str):
        self.name = name

    def missing(self) -> str | None:
        """None if the codec can be used here, else one sentence: why not and what to install."""
        if features.check(self.feature):
            return None
        return f"{self.name}: this Pillow has no {self.format} support: install the pinned Pillow."

    def relative_level(self, quality: float) -> float:
        """The quality on a scale from 0 (smallest file) to 1 (largest)."""
        low, high = self.quality_range
        return (quality - low) / (high - low)

    def options(self, quality: int) -> dict[str, Any]:
        """Pillow's save options that express `quality` (a larger value: a better picture, a larger file)."""
        return {"quality": quality}

    def whole(self, data: bytes) -> bool:
        """Whether the outermost structure of the file ends exactly where the bytes end."""
        return _boxes_fill(data)

    def write(self, pixels: np.ndarray, quality: int) -> bytes:
        """The complete file of `pixels`, (H, W, 3) uint8 RGB, at a checked quality; raises OSError, ValueError or
        RuntimeError where the format cannot hold the picture."""
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, self.format, **self.options(quality), **self.settings)
        return buffer.getvalue()

    def read(self, data: bytes) -> np.ndarray:
        """(H, W, 3) uint8 RGB of a complete file; raises any exception where the bytes are not one."""
        with Image.open(io.BytesIO(data), formats=[self.format]) as file:
            _check_header(file.size, file.mode, getattr(file, "n_frames", 1))
            return np.array(file)

    def compress(self, image: Tensor, quality: float) -> bytes:
        """Compress one image.

        Args:
            image: (3, H, W) RGB in [0, 1]; rounded to 8 bits first.
            quality: whole number in `quality_range`; larger means a better picture and a larger file.

        Returns:
            The complete file; the same bytes for the same input, whatever the number of threads.

        Raises:
            UserError: the quality is no whole number in range, the picture is too large for the format, or the codec is
                missing here (with the sentence of :meth:`missing`).
        """
        self._require()
        low, high = self.quality_range
        if isinstance(quality, bool) or not isinstance(quality, Real) or quality % 1 or not low <= quality <= high:
            raise UserError(f"{self.name} takes a whole quality from {low} to {high}, not {quality!r}.")
        image = as_pictures(image, 3)
        height, width = image.shape[1:]
        if problem := check_size(width, height):
            raise UserError(f"{self.name} cannot write a picture of {problem}.")
        try:
            return self.write(to_pixels(image), int(quality))
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            raise UserError(f"{self.name} cannot write a picture of {width}x{height} pixels: {error}.") from error

    def decompress(self, data: bytes) -> Tensor:
        """Decompress one file.

        Args:
            data: a file written by :meth:`compress`. Damage that a format without checksum cannot tell from content
                decodes to another picture.

        Returns:
            (3, H, W) float32 RGB in [0, 1], on the 8-bit grid.

        Raises:
            BitstreamError: the bytes are not a whole file of this format, or declare more pixels than `llicm.limits`
                allows.
            UserError: the codec is missing here (with the sentence of :meth:`missing`).
        """
        self._require()
        try:
            if not self.whole(data):
                raise ValueError("it is cut off, has bytes appended, or is of another format")
            pixels = self.read(data)
        except UserError:
            raise
        except Exception as error:  # a damaged header makes the libraries raise almost every kind
            what = f"These {len(data)} bytes are not a complete {self.name} file"
            raise BitstreamError(f"{what}: encode again ({error}).") from error
        return torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32) / 255

    def describe(self) -> dict[str, Any]:
        """Name, format, encoder settings and library versions, for the record of a measurement."""
        described = {"name": self.name, "format": self.format, "settings": dict(self.settings), "library": None}
        return described | (self.versions() if self.missing() is None else {})

    def versions(self) -> dict[str, Any]:
        """Of the libraries or programs behind the codec, where it can be used."""
        return {"pillow": PIL.__version__, "library": f"{self.feature} {features.version(self.feature)}"}

    def _require(self) -> None:
        if reason := self.missing():
            raise UserError(reason)


def _check_header(size: tuple[int, int], mode: str, frames: int) -> None:
    """Refuse what no encoder here writes, before memory is spent on it.

    Raises:
        ValueError: the declared (width, height) is too large, the mode is not RGB, or there is not one frame.
    """
    if problem := check_size(*size):
        raise ValueError(f"it declares {problem}")
    if mode != "RGB" or frames != 1:
        raise ValueError(f"it holds {frames} pictures of mode {mode}, not one of RGB")


def _boxes_fill(data: bytes) -> bool:
    """Whether `data` is a row of ISO base media boxes (AVIF, HEIC, JP2), each with its length and none cut off."""
    position = 0
    while position + 8 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        header = 8
        if length == 1:  # a 64-bit length follows the type
            length, header = int.from_bytes(data[position + 8 : position + 16], "big"), 16
        if length < header:
            return False
        position += length
    return bool(data) and position == len(data)


@register("jpeg")
class JPEG(ConventionalCodec):
    """JPEG, 4:2:0 like the published anchors, through libjpeg(-turbo); progressive, with Huffman tables of its own."""

    format, feature = "JPEG", "jpg"
    settings = {"subsampling": "4:2:0", "progressive": True, "optimize": True}

    def whole(self, data: bytes) -> bool:
        return data[:2] == b"\xff\xd8" and data[-2:] == b"\xff\xd9"  # start and end of image

    def versions(self) -> dict[str, Any]:
        turbo = features.version("libjpeg_turbo")
        return super().versions() | ({"library": f"libjpeg_turbo {turbo}"} if turbo else {})


@register("jpeg444")
class JPEG444(JPEG):
    """As `jpeg`, without chroma subsampling."""

    settings = JPEG.settings | {"subsampling": "4:4:4"}


@register("webp")
class WebP(ConventionalCodec):
    """Lossy WebP (always 4:2:0) at libwebp's greatest effort."""

    format, feature = "WEBP", "webp"
    settings = {"method": 6}

    def whole(self, data: bytes) -> bool:
        return data[:4] == b"RIFF" and int.from_bytes(data[4:8], "little") + 8 == len(data)


@register("avif")
class AVIF(ConventionalCodec):
    """AVIF by libaom, 4:4:4, tuned for PSNR. One encoder thread, since bytes may depend on the number of threads."""

    format, feature = "AVIF", "avif"
    settings = {"subsampling": "4:4:4", "speed": 4, "codec": "aom", "advanced": {"tune": "psnr"}, "max_threads": 1}


@register("avif420")
class AVIF420(AVIF):
    """As `avif`, with chroma subsampling."""

    settings = AVIF.settings | {"subsampling": "4:2:0"}


@register("jxl")
class JPEGXL(ConventionalCodec):
    """Lossy JPEG XL by libjxl, which optimizes its own perceptual distance and has no mode for PSNR.

    The container costs 40 bytes, which count: a bare codestream does not show that bytes were appended.
    """

    format = "JXL"
    quality_range = (0, 99)  # 100 is lossless, another coder
    settings = {"effort": 9, "use_container": True, "num_threads": 1}

    def missing(self) -> str | None:
        try:
            importlib.import_module("pillow_jxl")  # registers the format with Pillow
        except ImportError:
            return f"{self.name} needs the package pillow-jxl-plugin: pip install pillow-jxl-plugin."
        return None

    def versions(self) -> dict[str, Any]:
        plugin = importlib.metadata.version("pillow-jxl-plugin")
        return {"pillow": PIL.__version__, "library": f"libjxl of pillow-jxl-plugin {plugin}"}


@register("jpeg2000")
class JPEG2000(ConventionalCodec):
    """JPEG 2000 with the irreversible wavelet, 4:4:4; `quality` is the PSNR aimed at, in dB (20 to 60)."""

    format, feature = "JPEG2000", "jpg_2000"
    settings = {"irreversible": True, "mct": 1, "quality_mode": "dB"}
    quality_range = (20, 60)

    def options(self, quality: int) -> dict[str, Any]:
        return {"quality_layers": [quality]}


@register("heic")
class HEIC(ConventionalCodec):
    """HEVC intra in a HEIC file, 8-bit 4:4:4, by x265 inside pillow-heif: what stands in for BPG 4:4:4.

    `quality` is 51 - QP with the same QP in the whole picture, as BPG has it. Adaptive and psychovisual quantization
    are off, since they spend bits against the error that the rate-distortion curves measure.
    """

    format = "HEIF"
    quality_range = (0, 51)
    settings = {
        "chroma": 444,
        "preset": "placebo",
        "x265:aq-mode": 0,
        "x265:psy-rd": 0,
        "x265:psy-rdoq": 0,
        "x265:ctu": 64,  # libheif shrinks it for small pictures, to what this preset cannot be opened with
        "x265:ipratio": 1,  # else an intra picture gets a QP 3 below the one asked for
        # With its default wavefronts x265 writes other bytes where it has no pool of threads, so all three are fixed.
        "x265:wpp": 0,
        "x265:pools": "none",
        "x265:frame-threads": 1,
    }

    def missing(self) -> str | None:
        try:
            library = importlib.import_module("pillow_heif")  # only here: the other codecs do without it
            encoders = library.libheif_info()["encoders"]
        except ImportError:
            return f"{self.name} needs the package pillow-heif: pip install pillow-heif."
        if "x265" not in encoders:
            return f"{self.name}: this pillow-heif has no x265 encoder: pip install --force-reinstall pillow-heif."
        return None

    def options(self, quality: int) -> dict[str, Any]:
        return {"x265:qp": self.quality_range[1] - quality}

    def write(self, pixels: np.ndarray, quality: int) -> bytes:
        import pillow_heif

        buffer = io.BytesIO()
        # Whatever pillow_heif.options can change for the whole process is given here.
        pillow_heif.from_pillow(Image.fromarray(pixels)).save(
            buffer, quality=50,  # replaced by x265:qp
            tile_size=0, save_nclx_profile=True, matrix_coefficients=6, full_range_flag=1,
            enc_params={key: str(value) for key, value in (self.settings | self.options(quality)).items()},
        )  # fmt: skip
        return buffer.getvalue()

    def read(self, data: bytes) -> np.ndarray:
        import pillow_heif

        if data[4:12] not in (b"ftypheic", b"ftypheix"):
            raise ValueError("it is of another format")
        # The size of the picture may be that of a crop (small pictures are coded in one of 64x64); memory is taken for
        # the coded one, which exceeds it by one at most where it is large.
        for found in re.finditer(rb"ispe....(.{4})(.{4})", data[: data.find(b"mdat")], re.DOTALL):
            width, height = (int.from_bytes(side, "big") for side in found.groups())
            problem = check_size(max(1, width - 1), max(1, height - 1)) or check_size(max(width, height), 1)
            if problem:
                raise ValueError(f"it declares {problem}")
        file = pillow_heif.open_heif(io.BytesIO(data))
        declared = file.size
        _check_header(declared, file.mode, len(file))
        picture = file.to_pillow()
        if picture.size != declared:
            raise ValueError(f"it declares {declared} pixels and holds {picture.size}")
        return np.array(picture)

    def versions(self) -> dict[str, Any]:
        import pillow_heif

        info = pillow_heif.libheif_info()
        library = f"libheif {info['libheif']}, {info['encoders']['x265']}"
        decoder = ", ".join(info["decoders"].values())
        packages = {"pillow": PIL.__version__, "pillow_heif": pillow_heif.__version__}
        return {"library": library, "decoder": decoder} | packages


@register("heic420")
class HEIC420(HEIC):
    """As `heic`, with chroma subsampling; a side of one pixel or an odd side is padded inside the file."""

    settings = HEIC.settings | {"chroma": 420}


@dataclass(frozen=True)
class _Programs:
    """A VVC encoder, its decoder and how they are called.

    Attributes:
        encoder, decoder: names of the programs.
        chroma: chroma format of the raw video given to the encoder, "4:4:4" or "4:2:0".
        encode, decode: arguments, split at blanks; the names in braces are filled in.
        version: argument that makes a program print its version.
        config: name of a file of encoder settings that has to lie beside the encoder, if it needs one.
    """

    encoder: str
    decoder: str
    chroma: str
    encode: str
    decode: str
    version: str
    config: str = ""


# The first that is found is used: VTM before vvenc, which takes 4:2:0 only. Perceptual quantization is off as for HEVC.
_VVC_PROGRAMS = (
    _Programs(
        "EncoderAppStatic", "DecoderAppStatic", "4:4:4",
        "-c {config} -i {video} -b {stream} -o {null} -q {qp} -wdt {width} -hgt {height} -fr 1 -f 1 "
        "--InputChromaFormat=444 --ChromaFormatIDC=444 --InputBitDepth=10 --InternalBitDepth=10",
        "-b {stream} -o {video} -d 10", "--help", "encoder_intra_vtm.cfg",
    ),
    _Programs(
        "vvencapp", "vvdecapp", "4:2:0",
        "-i {video} -s {width}x{height} -c yuv420_10 -r 30 -f 1 -q {qp} --qpa 0 --preset slower -t 1 -o {stream}",
        "-b {stream} -o {video} -t 1", "--version",
    ),
    _Programs(
        "vvencFFapp", "vvdecapp", "4:2:0",
        "-i {video} -s {width}x{height} --InputChromaFormat 420 --InputBitDepth 10 --InternalBitDepth 10 -fr 30 -f 1 "
        "-q {qp} -qpa 0 --preset slower -t 1 -b {stream}",
        "-b {stream} -o {video} -t 1", "--version",
    ),
)  # fmt: skip

_VVC_HEADER = struct.Struct(">HHI")  # width, height, CRC-32
_KR, _KB = 0.2126, 0.0722  # BT.709


@register("vvc")
class VVC(ConventionalCodec):
    """VVC intra by programs found in the folder that LLICM_VVC names, or on PATH where it is not set.

    The programs are VTM's (4:4:4, like the published anchors) or vvenc's with vvdec's (4:2:0, the only one that vvenc
    supports); :meth:`describe` says which. `quality` is 63 - QP; vvenc lowers the QP of an intra picture by an offset
    of its own. The picture is coded in 10 bits, BT.709 full range, so that the change of colour space is exact.

    The file is the encoder's bitstream after 8 bytes, which count: width and height (2 bytes each, since the coded
    picture is padded to whole 8x8 blocks and at least 64 pixels a side) and the CRC-32 of all the rest (a cut-off
    stream would decode to a wrong picture otherwise).

    Attributes:
        timeout: seconds that one run of a program may take.
    """

    format = "VVC"
    quality_range = (0, 63)
    settings = {"bit_depth": 10, "matrix": "BT.709", "range": "full"}
    timeout = 3600.0

    def missing(self) -> str | None:
        found = self._find()
        return found if isinstance(found, str) else None

    def whole(self, data: bytes) -> bool:
        size, stream = data[:4], data[_VVC_HEADER.size :]
        if not stream.startswith((b"\0\0\1", b"\0\0\0\1")):  # the start code of the first unit
            return False
        return _vvc_crc(size, stream) == _VVC_HEADER.unpack_from(data)[2]

    def write(self, pixels: np.ndarray, quality: int) -> bytes:
        programs, paths = self._require_programs()
        height, width = pixels.shape[:2]
        rows, columns = _padded(height), _padded(width)
        pixels = np.pad(pixels, ((0, rows - height), (0, columns - width), (0, 0)), mode="edge")
        with tempfile.TemporaryDirectory(prefix="llicm-vvc-") as folder:
            video, stream = Path(folder, "in.yuv"), Path(folder, "out.266")
            video.write_bytes(_to_yuv(pixels, programs.chroma))
            values = {"video": video, "stream": stream, "null": os.devnull, "width": columns, "height": rows}
            values |= {"qp": self.quality_range[1] - quality, "config": paths.get("config")}
            if failure := self._run(paths["encoder"], programs.encode, values):
                raise UserError(f"{self.name}: {failure}.")
            coded = stream.read_bytes() if stream.is_file() else b""
        if not coded:
            raise UserError(f"{self.name}: {programs.encoder} ended without an error and without a bitstream.")
        size = struct.pack(">HH", width, height)
        return size + struct.pack(">I", _vvc_crc(size, coded)) + coded

    def read(self, data: bytes) -> np.ndarray:
        programs, paths = self._require_programs()
        width, height, _ = _VVC_HEADER.unpack_from(data)
        if problem := check_size(width, height):
            raise ValueError(f"it declares {problem}")
        with tempfile.TemporaryDirectory(prefix="llicm-vvc-") as folder:
            stream, video = Path(folder, "in.266"), Path(folder, "out.yuv")
            stream.write_bytes(data[_VVC_HEADER.size :])
            if failure := self._run(paths["decoder"], programs.decode, {"stream": stream, "video": video}):
                raise ValueError(failure)
            decoded = video.read_bytes() if video.is_file() else b""
        return _from_yuv(decoded, _padded(height), _padded(width))[:height, :width]

    def versions(self) -> dict[str, Any]:
        programs, paths = self._require_programs()
        settings = self.settings | {"chroma": programs.chroma, "arguments": programs.encode}
        return {
            "settings": settings | ({"config": programs.config} if programs.config else {}),
            "library": f"{programs.encoder} {_version(paths['encoder'], programs.version)}",
            "decoder": f"{programs.decoder} {_version(paths['decoder'], programs.version)}",
        }

    def _find(self) -> tuple[_Programs, dict[str, str]] | str:
        """The programs to use with the paths of "encoder", "decoder" and "config", or why there are none."""
        folder = os.environ.get("LLICM_VVC")
        path = os.pathsep.join([folder, str(Path(folder, "bin"))]) if folder else None
        place = f"in the folder {folder} that LLICM_VVC names" if folder else "on PATH"
        incomplete = []
        for programs in _VVC_PROGRAMS:
            encoder, decoder = (shutil.which(name, path=path) for name in (programs.encoder, programs.decoder))
            if not encoder:
                continue
            paths = {"encoder": encoder, "decoder": decoder or ""}
            if programs.config:
                parent = Path(encoder).resolve().parent
                places = [where / programs.config for where in (parent, parent / "cfg", parent.parent / "cfg")]
                paths["config"] = next((str(place) for place in places if place.is_file()), "")
            lacking = [getattr(programs, key) for key, value in paths.items() if not value]
            if not lacking:
                return programs, paths
            incomplete.append(f"{programs.encoder} without {' and '.join(lacking)}")
        found = f"only {', '.join(incomplete)}" if incomplete else "no VVC encoder"
        return (
            f"{self.name}: there is {found} {place}: build VTM (EncoderAppStatic, DecoderAppStatic, "
            "encoder_intra_vtm.cfg) or vvenc and vvdec (vvencapp, vvdecapp) and name their folder in LLICM_VVC."
        )

    def _require_programs(self) -> tuple[_Programs, dict[str, str]]:
        found = self._find()
        if isinstance(found, str):
            raise UserError(found)
        return found

    def _run(self, program: str, arguments: str, values: dict[str, Any]) -> str | None:
        """Run a program to its end: None if it succeeded, else how it failed.

        Raises:
            UserError: the program cannot be started or takes longer than `timeout`.
        """
        command = [program, *(argument.format(**values) for argument in arguments.split())]
        name = Path(program).name
        try:
            done = _run(command, self.timeout)
        except subprocess.TimeoutExpired as error:
            raise UserError(f"{self.name}: {name} did not end within {self.timeout:g} seconds.") from error
        except OSError as error:
            raise UserError(f"{self.name}: {program} cannot be started: {error}.") from error
        if done.returncode == 0:
            return None
        lines = done.stdout.decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
        return f"{name} failed with exit status {done.returncode}: {last[:200]}"


def _run(command: list[str], timeout: float) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout
    )


def _vvc_crc(size: bytes, stream: bytes) -> int:
    return zlib.crc32(stream, zlib.crc32(size))


def _version(program: str, argument: str) -> str:
    """The version that a program prints, or "of unknown version"."""
    try:
        done = _run([program, argument], 30)
    except (OSError, subprocess.TimeoutExpired):
        return "of unknown version"
    found = re.search(r"version:?\s*\[?v?(\d[\w.+-]*)", done.stdout.decode(errors="replace"), re.IGNORECASE)
    return found[1] if found else "of unknown version"


def _padded(side: int) -> int:
    """The coded length of a side: whole blocks of 8 pixels, which every chroma format and encoder takes, 64 or more."""
    return max(64, -(-side // 8) * 8)


def _to_yuv(pixels: np.ndarray, chroma: str) -> bytes:
    """Raw 10-bit video of one frame.

    Args:
        pixels: (H, W, 3) uint8 RGB, even sides. chroma: "4:4:4" or "4:2:0" (the mean of each 2x2 block).

    Returns:
        The planes Y, Cb and Cr, BT.709 full range, little-endian 16-bit.
    """
    red, green, blue = pixels.astype(np.float64).transpose(2, 0, 1) / 255
    luma = _KR * red + (1 - _KR - _KB) * green + _KB * blue
    planes = [luma * 1023]
    for difference in ((blue - luma) / (2 - 2 * _KB), (red - luma) / (2 - 2 * _KR)):
        plane = difference * 1023 + 512
        if chroma == "4:2:0":
            plane = plane.reshape(plane.shape[0] // 2, 2, plane.shape[1] // 2, 2).mean((1, 3))
        planes.append(plane)
    return b"".join(plane.round().clip(0, 1023).astype("<u2").tobytes() for plane in planes)


def _from_yuv(video: bytes, height: int, width: int) -> np.ndarray:
    """The inverse of :func:`_to_yuv`; the chroma format follows from the length.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: the video is not one frame of this size in 4:4:4 or 4:2:0.
    """
    area = height * width
    if len(video) not in (6 * area, 3 * area):
        raise ValueError(f"its decoder wrote {len(video)} bytes, not one picture of {width}x{height}")
    samples = np.frombuffer(video, "<u2").astype(np.float64)
    luma, chroma = samples[:area].reshape(height, width) / 1023, (samples[area:] - 512) / 1023
    if len(chroma) == 2 * area:
        chroma = chroma.reshape(2, height, width)
    else:  # samples lie amid their 2x2 blocks, as _to_yuv puts them
        small = torch.from_numpy(chroma.reshape(1, 2, height // 2, width // 2))
        chroma = F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)[0].numpy()
    blue, red = luma + (2 - 2 * _KB) * chroma[0], luma + (2 - 2 * _KR) * chroma[1]
    green = (luma - _KR * red - _KB * blue) / (1 - _KR - _KB)
    return (np.stack([red, green, blue], 2) * 255).round().clip(0, 255).astype(np.uint8)
