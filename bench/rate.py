# SPDX-License-Identifier: Apache-2.0
"""Rate control: how close files come to the size that was asked for. `make rate` writes docs/rate.md."""

import math

from common import photos, table, write_page

from llicm.codec.rate import compress_to
from llicm.model import load_model

TARGETS = [("bpp", 0.15), ("bpp", 0.25), ("bpp", 0.5), ("bpp", 1.0), ("bytes", 8_000), ("bytes", 20_000)]


def main() -> None:
    codec, rows = load_model().codec, []
    for name, x in photos().items():
        pixels = x[0].numel()
        smallest, largest = (len(codec.compress(x, level)) for level in (0, codec.levels - 1))
        for unit, target in TARGETS:
            size = target if unit == "bytes" else target * pixels / 8
            row = {"photo": name, "asked": f"{target:g} {unit}", "at most": int(size)}
            if not smallest <= size <= largest:
                row |= {"bytes": "-", "share": f"out of {smallest} to {largest}", "level": "-", "encodings": "-"}
            else:
                tried = []
                data, level = compress_to(
                    lambda at, x=x, tried=tried: (tried.append(at), codec.compress(x, at))[1], size, 0, codec.levels - 1
                )
                share = f"{math.floor(10_000 * len(data) / size) / 100:.2f}%"
                row |= {"bytes": str(len(data)), "share": share, "level": f"{level:.3f}", "encodings": str(len(tried))}
            rows.append(row)
    shares = [float(row["share"][:-1]) for row in rows if row["share"].endswith("%")]
    write_page(
        "rate",
        [
            f"{len(shares)} targets that are within a photo's range: files of {min(shares):.2f} to {max(shares):.2f}% "
            f"of the size allowed, {sum(98 <= share <= 100 for share in shares)} of them within 2% from below.",
            table(rows),
        ],
    )


if __name__ == "__main__":
    main()
