# SPDX-License-Identifier: Apache-2.0
"""What the scripts of this folder share. Each measures one thing and writes the table of a page in docs/."""

import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from llicm.codec.learned import LearnedCodec
from llicm.data.catalogue import attributions, catalogue, known_sets
from llicm.files import write_atomically
from llicm.images import list_images, read_image
from llicm.model import load_model
from llicm.weights import load_part

ROOT = Path(__file__).resolve().parents[1]


def photos() -> dict[str, Tensor]:
    """The study's test photos by name, (3, H, W)."""
    return {path.stem: read_image(path) for path in list_images(ROOT / "data" / "test")}


def codecs() -> dict[str, LearnedCodec]:
    """The codec of the published model, and the one that the quick run starts from, by name."""
    path = ROOT / "init" / "context" / "rdo.safetensors"
    found = [load_model().codec, *([load_part("codec", path)] if path.is_file() else [])]
    return {codec.config["name"]: codec for codec in found}


def machine() -> str:
    """Processor, threads and versions, for the line under a table."""
    import importlib.metadata as versions

    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    model = names[0] if names else platform.processor() or platform.machine()
    packages = ", ".join(f"{name} {versions.version(name)}" for name in ("torch", "compressai", "constriction"))
    return f"{model}, {torch.get_num_threads()} threads, Python {platform.python_version()}, {packages}"


def read(folders: Sequence[Path]) -> list[Tensor]:
    """Photos (3, H, W) uint8 of folders, in the order of their names."""
    files = [file for folder in folders for file in list_images(folder)]
    return [torch.from_numpy(np.array(Image.open(f).convert("RGB"))).permute(2, 0, 1) for f in files]


def credits(folders: Sequence[Path]) -> tuple[str, dict[str, Path], str]:
    """For a card: the known sets of photos in these folders in words, their folders by name, and their terms of use."""
    found = {name: folder for folder in folders for name in sorted(known_sets(list_images(folder)))}
    sets = [catalogue()[name] for name in found]
    terms = list(dict.fromkeys(entry.licence for entry in sets))
    terms += ["each with its author in [photos.md](photos.md)"] if any(map(attributions, found)) else []
    return "; ".join(f"{entry.title} ({entry.source})" for entry in sets), found, ", ".join(terms)


def resident(name: str) -> float:
    """MB of memory of this process: `VmRSS` now; `VmHWM` at most, since it began or `/proc/self/clear_refs` had a 5."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(name))


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def table(rows: list[dict]) -> str:
    """Rows as a Markdown table; numbers to the right, as they are in the rows."""
    frame = pd.DataFrame(rows)
    aligned = ["right" if pd.api.types.is_numeric_dtype(frame[name]) else "left" for name in frame]
    return frame.to_markdown(index=False, colalign=aligned, disable_numparse=True)


def write_page(name: str, parts: list[str]) -> None:
    """Put paragraphs and tables between the markers of docs/<name>.md, and leave what is around them."""
    path, (begin, end) = ROOT / "docs" / f"{name}.md", ("<!-- measured:begin -->", "<!-- measured:end -->")
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    body = "\n\n".join([*parts, f"*{machine()}.*"])
    write_atomically(path, f"{before}{begin}\n{body}\n{end}{after}".encode())
    print(body)
