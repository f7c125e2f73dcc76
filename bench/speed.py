# SPDX-License-Identifier: Apache-2.0
"""docs/speed.md from what pytest-benchmark measured: `make bench`."""

import json
import sys
from pathlib import Path

import torch
from common import table, write_page

torch.set_num_threads(2)  # as the benchmark ran


def main(measured: Path) -> None:
    found = [
        entry["extra_info"] | {"seconds": entry["stats"]["median"]}
        for entry in json.loads(measured.read_text())["benchmarks"]
    ]
    models: dict[str, dict] = {}
    for entry in found:
        models.setdefault(entry["model"], {})[entry["step"]] = entry
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
            "times ours": f"{total[name] / total[ours]:.1f}",
        }
        for name, steps in models.items()
    ]
    enhance = models[ours]["enhance"]
    whole = total[ours] + enhance["seconds"]
    write_page(
        "speed",
        [
            table(rows),
            "To enhance what was decoded (one-pass restorer and vision-language model, "
            f"{enhance['parameters'] / 1e6:.2f} M parameters, {enhance['kmac']:.1f} kMAC/pixel) takes "
            f"{1000 * enhance['seconds']:.0f} ms: encode, decode and enhance {1000 * whole:.0f} ms.",
        ],
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
