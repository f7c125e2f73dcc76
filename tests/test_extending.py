# SPDX-License-Identifier: Apache-2.0
"""The patches of docs/extending.md apply, and what they add works: a metric, a task, a codec, a restorer."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = dict(re.findall(r"^## A (\w+)\n(.*?)(?=^## |\Z)", (ROOT / "docs/extending.md").read_text(), re.M | re.S))
PARAMS = """
import sys
from ruamel.yaml import YAML
from llicm.pipeline.parameters import validate
values, more = (YAML(typ="safe").load(open(path)) for path in sys.argv[1:3])
for key, value in more.items():
    values[key] = values[key] | value if isinstance(value, dict) else value
validate(values)
"""
USES = {
    "metric": """
import torch
from llicm.benchmark.metrics import make_metrics
(metric,) = make_metrics(["mae"])
a, b = torch.zeros(1, 3, 80, 80), torch.full((1, 3, 80, 80), 0.25)
assert float(metric(a, b)) == 0.25 and metric.info.axis_label == "mean absolute error (lower is better)"
""",
    "task": """
import torch
from llicm import cli
from llicm.data.pairs import set_of
from llicm.data.stream import PairStream
from llicm.degradations import DEGRADATIONS, degrade
from llicm.vlm.clip import WORDS
assert tuple(DEGRADATIONS) == cli.TASKS and "vignetted" in WORDS
assert set_of("noisy+vignetted", 0.5)[0] == ["vignetted", "noisy"]
out = degrade("vignetted", torch.full((1, 3, 64, 64), 0.8), 0.5, torch.Generator())
assert out[0, 0, 0, 0] < 0.6 < 0.79 < out[0, 0, 32, 32]
stream = PairStream([torch.rand(3, 80, 80)], ["noisy", "vignetted"], 64, 4, 0, 0.0, (0.2, 0.8), 2, 10)
batch = stream.batch(0)
assert (batch.degraded[batch.task == 1] < batch.ideal[batch.task == 1]).float().mean() > 0.9
""",
    "codec": """
import torch
from llicm.codec.conventional import available
from llicm.methods import load_methods
from pathlib import Path
assert available()["webp-sharp"] is None
spec = {"codec": "webp-sharp", "models": "none", "methods": {"webp-sharp": "alone"}, "levels": [20, 60]}
(method,) = load_methods("webp-sharp", spec, Path("none"), Path("none"))
small, large = (method.run(torch.rand(3, 64, 80), level) for level in method.levels)
assert 0 < small.bpp < large.bpp and large.output.shape == (3, 64, 80)
""",
    "restorer": """
import tempfile, torch
from pathlib import Path
from llicm.framework import LLICM, load_part, save_part
from llicm.registry import make_restorer
import llicm.restore
restorer = make_restorer("dncnn", width=8, context=None)
LLICM(None, restorer)(torch.rand(1, 3, 33, 41)).enhanced.sum().backward()
with tempfile.TemporaryDirectory() as folder:
    save_part(restorer, Path(folder) / "restorer.safetensors")
    again = load_part("restorer", Path(folder) / "restorer.safetensors")
x = torch.rand(1, 3, 33, 41)
assert torch.allclose(again(x), restorer(x), atol=1e-2) and not again.level_conditioned
""",
}


def test_the_page_has_the_four():
    assert list(SECTIONS) == list(USES)


@pytest.mark.slow
@pytest.mark.parametrize("kind", USES)
def test_what_is_added_works(kind, tmp_path):
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    (patch,) = re.findall(r"```diff\n(.*?)```", SECTIONS[kind], re.S)
    (yaml,) = re.findall(r"```yaml\n(.*?)```", SECTIONS[kind], re.S)
    # without a repository around it, so that git takes the paths as they are
    done = subprocess.run(
        ["git", "apply", "--verbose", "-"], input=patch, text=True, capture_output=True, cwd=tmp_path,
        env={"GIT_CEILING_DIRECTORIES": str(tmp_path.parent), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (tmp_path / "more.yaml").write_text(yaml)
    assert YAML(typ="safe").load(yaml)
    environment = {"PYTHONPATH": str(tmp_path / "src"), "PATH": "/usr/bin:/bin"}
    for code, arguments in ((PARAMS, [ROOT / "params.yaml", tmp_path / "more.yaml"]), (USES[kind], [])):
        ran = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=environment,
            cwd=tmp_path,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
