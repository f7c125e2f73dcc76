# SPDX-License-Identifier: Apache-2.0
"""docs/speed.md and docs/speed.json from what pytest-benchmark measured: `make bench`."""

import json
import sys
from pathlib import Path

import torch
from common import ROOT, table, write_page

from llicm.files import write_json

torch.set_num_threads(1)  # as the benchmark ran


def main(measured: Path) -> None:
    found = [
        entry["extra_info"] | {"seconds": entry["stats"]["median"]}
        for entry in json.loads(measured.read_text())["benchmarks"]
    ]
    write_json(found, ROOT / "docs" / "speed.json")
    models: dict[str, dict] = {}
    for entry in found:
        models.setdefault(entry["model"], {})[entry["step"]] = entry
    enhance = models.pop("LL-ICM")["enhance"]
    ours, *others = models
    total = {name: m["encode"]["seconds"] + m["decode"]["seconds"] for name, m in models.items()}
    rows = [
        {
            "model": name,
            "parameters (M)": f"{steps['encode']['parameters'] / 1e6:.2f}",
            "kMAC/pixel, encode": f"{steps['encode']['kmac']:.1f}",
            "kMAC/pixel, decode": f"{steps['decode']['kmac']:.1f}",
            "encode (ms)": f"{1000 * steps['encode']['seconds']:.0f}",
            "decode (ms)": f"{1000 * steps['decode']['seconds']:.0f}",
            "both (ms)": f"{1000 * total[name]:.0f}",
            "times the first": f"{total[name] / total[ours]:.1f}",
        }
        for name, steps in models.items()
    ]
    waited = ", ".join(
        f"{name} {1000 * steps['encode']['wall']:.0f} and {1000 * steps['decode']['wall']:.0f} ms"
        for name, steps in models.items()
        if "wall" in steps["encode"]
    )
    write_page(
        "speed",
        [
            table(rows),
            f"Wall time on two threads, best of several, to encode and to decode: {waited}.",
            "To enhance what was decoded (one-pass restorer and vision-language model, "
            f"{enhance['parameters'] / 1e6:.2f} M parameters, {enhance['kmac']:.1f} kMAC/pixel) takes "
            f"{1000 * enhance['seconds']:.0f} ms of CPU time.",
        ],
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
