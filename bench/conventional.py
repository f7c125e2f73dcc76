# SPDX-License-Identifier: Apache-2.0
"""What the settings of the conventional codecs are worth on clean photos: writes docs/conventional.csv and its page.

python bench/conventional.py ../shared/datasets/kodak
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from codec import curve
from common import ROOT, table, write_page

from llicm.benchmark.bdrate import bd
from llicm.codec.conventional import find_codec
from llicm.files import write_atomically
from llicm.images import list_images, read_image

HIGHER = (10, 25, 40, 55, 70)
QUALITIES = {
    "jpeg": (5, 10, 20, 40, 70), "webp": (5, 20, 40, 60, 80), "jpeg2000": (21, 24, 27, 30, 33), "avif": HIGHER,
    "jxl": HIGHER, "heic": (8, 11, 14, 17, 20),
}  # fmt: skip
# Settings of the earlier editions, where they were others.
BEFORE: dict[str, dict] = {
    "jpeg": {"subsampling": "4:2:0"},
    "webp": {"method": 4},
    "avif": {"subsampling": "4:2:0", "speed": 6, "max_threads": 1},
}


def main() -> None:
    images = [read_image(path) for path in list_images(Path(sys.argv[1]))[::4]]
    curves = {}
    for name, qualities in QUALITIES.items():
        codec = find_codec(name)
        curves[name, "now"] = curve(codec.compress, codec.decompress, qualities, images)
        if name in BEFORE:
            codec = type(codec)(name)
            codec.settings = BEFORE[name]
            curves[name, "before"] = curve(codec.compress, codec.decompress, qualities, images)
    points = [{"codec": key[0], "settings": key[1]} | point for key, found in curves.items() for point in found]
    write_atomically(ROOT / "docs" / "conventional.csv", pd.DataFrame(points).round(5).to_csv(index=False).encode())

    def rate(anchor: tuple[str, str], test: tuple[str, str]) -> str:
        if anchor not in curves or anchor == test:
            return "-"
        found = bd(*([p[key] for p in curves[c]] for c in (anchor, test) for key in ("bpp", "psnr")), names=("a", "b"))
        return found.reason if found.rate is None else f"{found.rate:+.1f}%"

    rows = [
        {
            "codec": name, "BD-rate against before": rate((name, "before"), (name, "now")),
            "before against HEIC": rate(("heic", "now"), (name, "before")) if name in BEFORE else "-",
            "now against HEIC": rate(("heic", "now"), (name, "now")),
            "seconds to encode": f"{np.mean([point['encode_s'] for point in curves[name, 'now']]):.2f}",
            "settings now": "`" + str(find_codec(name).settings).replace("'", "").strip("{}") + "`",
        }
        for name in QUALITIES
    ]  # fmt: skip
    write_page("conventional", [f"{len(images)} photos, RGB PSNR, whole files, seconds of CPU time.", table(rows)])


if __name__ == "__main__":
    main()
