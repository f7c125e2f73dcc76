# SPDX-License-Identifier: Apache-2.0
"""What docs/extending.md shows can be added to a repository that has run, works there, and reruns only what it must."""

import json
import re
import subprocess
from pathlib import Path

import nbformat
import pytest
from clone import ROOT
from ruamel.yaml import YAML

PAGE = (ROOT / "docs/extending.md").read_text()
SECTIONS = dict(re.findall(r"^## An? ([\w ]+)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
SHARED = "shared:\n  nothing: &nothing {codec: none, restorer: none, prefilter: none, vlm: none}\n"
SMOKE = YAML(typ="safe").load((ROOT / "profiles/smoke/params.yaml").read_text())
EVALUATIONS = {f"evaluate@{name}" for name in SMOKE["benchmark"]}
TRAININGS = {f"train@{name}" for name in SMOKE["models"]}

STALE = {
    "metric": EVALUATIONS | {"figures"},
    "task": {"degrade", "vlm", "release", "figures"} | TRAININGS | EVALUATIONS,
    "conventional codec": {"evaluate@webp-sharp", "figures"},
    "learned codec": {"train@plain", "evaluate@plain", "figures"},
    "restorer": {"train@dncnn", "evaluate@dncnn", "figures"},
    "model": {"train@fidelity", "evaluate@fidelity", "figures"},
    "method": {"evaluate@webp", "figures"},
    "figure": {"figures"},
}
TRAIN = """
from pathlib import Path
from llicm.images import read_image
from llicm.pipeline.training import train
quick = {"training.pretraining": 2, "training.fine_tuning": 2, "training.warmup": 1, "training.checkpoint_every": 0}
(folder,) = train(["NAME"], Path("."), changes=quick, out=Path(".run/extending"))
photo = read_image(next(Path("../../data/test").iterdir()))[:, :70, :90]
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
from llicm.cli.common import TASKS
from llicm.data.pairs import set_of
from llicm.data.stream import PairStream
from llicm.degradations import DEGRADATIONS, degrade
from llicm.vlm.clip import WORDS
assert tuple(DEGRADATIONS) == TASKS and "vignetted" in WORDS
assert set_of("noisy+vignetted", 0.5)[0] == ["vignetted", "noisy"]
out = degrade("vignetted", torch.full((1, 3, 64, 64), 0.8), 0.5, torch.Generator())
assert out[0, 0, 0, 0] < 0.6 < 0.79 < out[0, 0, 32, 32]
stream = PairStream([torch.rand(3, 80, 80)], ["noisy", "vignetted"], 64, 4, 0, 0.0, (0.2, 0.8), 2, 10)
batch = stream.batch(0)
assert (batch.degraded[batch.task == 1] < batch.ideal[batch.task == 1]).float().mean() > 0.9
""",
    "conventional codec": """
import torch
from llicm.codec.conventional import available, find_codec
codec = find_codec("webp-sharp")
x = torch.rand(3, 64, 80)
small, large = (codec.compress(x, level) for level in (20, 60))
assert available()["webp-sharp"] is None and len(small) < len(large)
""",
    "learned codec": TRAIN.replace("NAME", "plain") + """
from llicm.weights import load_part
codec = load_part("codec", folder / "codec.safetensors")
data = codec.compress(photo, 1)
decoded, level = codec.decompress(data)
assert level == 1 and decoded.shape == photo.shape and (decoded - photo).square().mean() < 0.02
""",
    "restorer": TRAIN.replace("NAME", "dncnn") + """
import torch
from llicm.weights import load_part
restorer = load_part("restorer", folder / "restorer.safetensors")
assert type(restorer).__name__ == "DnCNN" and restorer.config["width"] == 32
assert restorer(photo[None]).shape == (1, *photo.shape)
""",
    "model": TRAIN.replace("NAME", "fidelity") + """
assert {path.name for path in folder.iterdir()} >= {"codec.safetensors", "restorer.safetensors"}
""",
    "method": """
from llicm.parameters import load
(method,) = [method for method in load("params.yaml").methods if method.name == "restorer>webp>restorer"]
assert (method.order, method.prefilter, method.codec, method.restorer) == ("around", "restorer", "webp", "restorer")
""",
    "figure": """
from llicm.benchmark.records import read_records
from llicm.pipeline.stage import open_stage
from llicm.report.study import Study
from IPython.display import Image
study = open_stage("figures", profile="profiles/smoke")
every = read_records("artifacts/records.csv")
made = Study(every, study.parameters, study.output("results"), study.output("artifacts"), study.folder, study.init)
CODE
assert study.output("results/figures/sizes.png").stat().st_size > 1000
""",
}  # fmt: skip


def merge(values: dict, more: dict) -> dict:
    both = {key: merge(values[key], more[key]) for key in more if isinstance(values.get(key), dict)}
    return values | more | both


def add(clone, section: str, params: Path) -> str:
    """Add what a section shows to a repository; returns the section's Python."""
    for patch in re.findall(r"```diff\n(.*?)```", section, re.S):
        subprocess.run(["git", "apply", "-"], input=patch, text=True, check=True, cwd=clone.folder)
    code = ""
    for name, code in re.findall(r"```python\n# (\S+)\n(.*?)```", section, re.S):  # noqa: B007
        if name.endswith(".ipynb"):
            notebook = nbformat.read(clone.folder / name, 4)
            notebook.cells.append(nbformat.v4.new_code_cell(code))
            nbformat.write(notebook, clone.folder / name)
        else:
            assert not (clone.folder / name).exists()
            (clone.folder / name).write_text(code)
    for yaml in re.findall(r"```yaml\n(.*?)```", section, re.S):
        more = YAML(typ="safe").load(SHARED + yaml)
        params.write_text(json.dumps(merge(YAML(typ="safe").load(params.read_text()), more)))
    return code


def use(clone, program: str) -> None:
    command = clone.command("")
    command["args"][1:] = ["-c", program]
    command["env"]["PYTHONPATH"] = str(clone.folder / "src")
    ran = subprocess.run(**command | {"cwd": clone.profile}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.fixture
def restored(clone):
    yield clone
    subprocess.run(["git", "checkout", "-q", "."], cwd=clone.folder, check=True)
    subprocess.run(["git", "clean", "-fdq", "src"], cwd=clone.folder, check=True)


def test_the_page_has_them_all():
    assert set(SECTIONS) == set(STALE) == set(USES)


@pytest.mark.slow
@pytest.mark.parametrize("kind", STALE)
def test_what_is_added_works_and_makes_nothing_else_stale(restored, kind):
    code = add(restored, SECTIONS[kind], restored.profile / "params.yaml")
    restored.write_code()
    assert set(restored.stale()) == STALE[kind]
    use(restored, USES[kind].replace("CODE", code))


@pytest.mark.slow
def test_a_part_outside_the_package_by_its_import_path(restored):
    section = SECTIONS["restorer"].replace("src/llicm/restore/dncnn.py", "src/lab.py")
    section = section.replace("name: dncnn", "name: lab:DnCNN").replace('"name": "dncnn"', '"name": "lab:DnCNN"')
    section = section.replace('@RESTORERS.register("dncnn")\n', "")
    add(restored, section, restored.profile / "params.yaml")
    restored.write_code()
    assert set(restored.stale()) == STALE["restorer"]
    modules = json.loads((restored.profile / "build/train-dncnn.json").read_text())["modules"]
    assert "src/llicm/restore/dncnn.py" not in modules and {"lab", "src/lab.py"} & set(modules)
    use(restored, USES["restorer"])


def test_the_patches_apply_to_this_repository():
    """Without a run of the pipeline."""
    for section in SECTIONS.values():
        for patch in re.findall(r"```diff\n(.*?)```", section, re.S):
            check = ["git", "apply", "--check", "-"]
            done = subprocess.run(check, input=patch, text=True, capture_output=True, cwd=ROOT)
            assert done.returncode == 0, done.stderr
        for name in re.findall(r"```python\n# (\S+)\n", section):
            assert name.endswith(".ipynb") or not (ROOT / name).exists()
