# SPDX-License-Identifier: Apache-2.0
"""Numbers and pictures from outside: finite, in range and of the one form, or refused with the reason."""

import json
import math
import re
import subprocess

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small import CODEC, DIRECT, ROOT, SMOKE

from llicm import cli
from llicm.benchmark.metrics import make_metrics
from llicm.codec.conventional import find_codec
from llicm.codec.rate import compress_to
from llicm.degradations import degrade
from llicm.errors import PictureError, UserError
from llicm.files import json_text
from llicm.framework import LLICM
from llicm.images import write_png
from llicm.model import load_model, save_model
from llicm.objectives import EQUAL_PSNR, psnr
from llicm.parameters import part_of, read, validate
from llicm.registry import CODECS, RESTORERS
from llicm.vlm.checkpoint import read_checkpoint
from llicm.vlm.conditioner import Conditioner

CONTEXT = {"name": "context", "N": 8, "M": 12, "lambdas": [0.002, 0.07], "features": 8, "loop": 4}


def restorer(seed=0):
    torch.manual_seed(seed)
    part = RESTORERS.make(**DIRECT)
    torch.nn.init.normal_(part.residual.weight, std=0.02)
    return part.eval()


@pytest.fixture(scope="module", params=[CODEC, CONTEXT], ids=["mean-scale", "context"])
def system(request, tiny_daclip):
    torch.manual_seed(0)
    codec = CODECS.make(**request.param)
    codec.update()
    return LLICM(codec.eval(), restorer(), Conditioner(tiny_daclip, "windows"), restorer(1)).eval()


@pytest.fixture
def x():
    return torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("part", ["codec", "restorer", "prefilter", "conditioner"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(system, tmp_path, part, value):
    path = tmp_path / "model.safetensors"
    save_model(system, path)
    with __import__("safetensors").safe_open(path, "pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    name = next(n for n, v in state.items() if n.startswith(f"{part}.") and v.is_floating_point() and v.numel())
    state[name].view(-1)[0] = value
    save_file(state, path, metadata=metadata)
    for reading in (load_model, read_checkpoint):
        with pytest.raises(UserError, match=f"{path}: the tensor {name} has NaN or infinite"):
            reading(path)


def test_weights_that_are_not_finite_are_not_written(system, tmp_path):
    broken = LLICM(None, restorer())
    broken.restorer.stem.bias.data[0] = math.nan
    with pytest.raises(UserError, match=r"restorer\.stem\.bias"):
        save_model(broken, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_no_picture_leaves_that_is_not_finite(system, x, tmp_path):
    broken = LLICM(system.codec, restorer(), None)
    broken.restorer.stem.weight.data.mul_(1e38)  # finite, but what it computes is not
    with pytest.raises(PictureError, match="NaN or infinite"):
        broken.decompress(broken.compress(x, 1))
    with pytest.raises(PictureError, match="NaN or infinite"):
        broken.enhance(x[None])
    with pytest.raises(PictureError, match=r"a\.png has NaN"):
        write_png(x * math.nan, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    "options",
    [("--bpp", n) for n in ("nan", "inf", "-inf", "-1", "0", "1e400", "1e308")]
    + [("--level", n) for n in ("nan", "inf", "-1")]
    + [("--bytes", n) for n in ("nan", "0", "-5", "9" * 400)],
)
def test_numbers_of_compress(options, tmp_path, monkeypatch, capsys, x):
    monkeypatch.chdir(tmp_path)
    write_png(x, "a.png")
    assert cli.main(["compress", "a.png", *options]) == 2
    assert options[0] in capsys.readouterr().err and not (tmp_path / "a.llicm").exists()


@pytest.mark.parametrize(
    "arguments",
    [["degrade", "a.png", "--task", "noisy", "--severity", n] for n in ("nan", "inf", "-0.1", "1.1")]
    + [["degrade", "a.png", "--task", "noisy", "--seed", n] for n in ("nan", "-1", "4294967296", "1" + "0" * 400)]
    + [["evaluate", "a.png", "--levels", n] for n in ("nan", "0,inf", "-1")]
    + [["restorer", "convert", "a.pth", "b.safetensors", "--steps", n] for n in ("0", "101", "nan")],
)
def test_numbers_of_other_commands(arguments, capsys):
    assert cli.main(arguments) == 2
    assert arguments[-2] in capsys.readouterr().err


def test_levels_and_sizes_of_the_library(system, x):
    with pytest.raises(ValueError, match="level nan"):
        system.compress(x, math.nan)
    with pytest.raises(UserError, match="finite"):
        compress_to(lambda level: b"x", math.inf, 0, 4)


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e999"])
@pytest.mark.parametrize("place", ["lambdas", "weight", "severity", "shared"])
def test_parameters(tmp_path, value, place):
    number = read(_written(tmp_path, f"v: {value}"))["v"]
    values = read(SMOKE)
    model = next(m for m in values["models"].values() if m.get("codec"))
    objective = next(o for o in values["objectives"].values() if o.get("distortion"))
    if place == "lambdas":
        model["codec"]["lambdas"][0] = number
    elif place == "weight":
        objective["distortion"]["mse"] = number
    elif place == "severity":
        values["degrade"]["test_severity"] = number
    else:
        values["shared"] = {"a": {"b": [number]}}
    with pytest.raises(UserError, match="finite"):
        validate(values)
    group = {"lambdas": "models", "weight": "objectives", "severity": "degrade", "shared": "shared"}[place]
    with pytest.raises(UserError, match="finite"):
        part_of({group: values[group]})


def _written(folder, text):
    path = folder / "v.yaml"
    path.write_text(text)
    return path


def _wrong(x):
    yield (x * 255).to(torch.uint8)
    yield (x * 255).round()
    yield x - 0.5
    yield x[:1]
    yield x.movedim(0, -1)
    yield x.masked_fill(x > 0.9, math.nan)
    yield x.masked_fill(x > 0.9, math.inf)
    yield x[:, :0]
    yield x.expand(2, -1, -1, -1)


def test_what_is_no_picture_is_refused_by_every_function(system, x):
    generator, quality = torch.Generator(), make_metrics(["ssim"])[0]
    one = (
        lambda p: system.compress(p, 1), lambda p: system.codec.compress(p, 1),
        lambda p: find_codec("jpeg").compress(p, 50),
    )  # fmt: skip
    several = (
        lambda p: system.enhance(p), lambda p: system(p, torch.tensor([1.0])), system.prefiltered,
        lambda p: system.codec(p, torch.tensor([1.0])), lambda p: degrade("noisy", p, 0.5, generator), quality,
    )  # fmt: skip
    for function in one:
        for wrong in _wrong(x):
            with pytest.raises(PictureError, match="expected a picture"):
                function(wrong)
    for function in several:
        for wrong in _wrong(x):
            with pytest.raises(PictureError, match="expected"):
                function(wrong[None])
    for function in (system.restorer, system.conditioner):  # X̂ of training is not clamped
        for wrong in ((x[None] * 255).to(torch.uint8), x[None, :1], x, x[None] * math.nan):
            with pytest.raises(PictureError, match="expected"):
                function(wrong)
    with pytest.raises(PictureError, match="ndarray"):
        system.compress(np.zeros((3, 8, 8), np.float32), 1)


def test_a_batch_is_refused_with_the_way_out(system, x):
    with pytest.raises(PictureError, match=r"a picture \(3, H, W\), got \(2, 3, 40, 50\); give one after the other"):
        system.compress(torch.stack([x, x]), 1)


def test_the_same_under_autocast_and_in_double_precision(system, x):
    data = system.compress(x, 1)
    decoded, enhanced = system.decompress(data)
    with torch.autocast("cpu", torch.bfloat16):
        assert system.compress(x, 1) == data and system.codec.compress(x, 1) == system.codec.compress(x, 1)
        again = system.decompress(data)
    assert torch.equal(again[0], decoded) and torch.equal(again[1], enhanced)
    assert system.compress(x.double(), 1) == data


def test_equal_pictures_have_80_db(x):
    assert psnr(x[None], x[None]).tolist() == pytest.approx([EQUAL_PSNR])
    assert float(make_metrics(["psnr"])[0](x[None], x[None])) == pytest.approx(EQUAL_PSNR)
    assert float(psnr(x[None], x[None] * 0.9)) == pytest.approx(float(-10 * (0.1 * x).square().mean().log10()))


def test_json_has_no_value_where_there_is_none():
    text = json_text({"a": [math.nan, 1.5, (math.inf,)], "b": {"c": -math.inf}}, None)
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [None, 1.5, [None]], "b": {"c": None}}


def test_what_is_written_or_printed_as_json_has_one_writer():
    """For a file that only this program reads again, such as a checkpoint, NaN may stay."""
    files = [*ROOT.glob("src/**/*.py"), *ROOT.glob("bench/*.py"), *ROOT.glob("notebooks/**/*.ipynb")]
    plain = re.compile(r"(print|write\w*)\(.*json\.dumps?\((?!.*(allow_nan=False|sort_keys))")
    kept = {"values.json"}  # of an evaluation that was interrupted
    for path in files:
        for line in path.read_text(encoding="utf-8").splitlines():
            assert not plain.search(line) or any(word in line for word in kept), f"{path}: {line}"


def test_every_tracked_json_file_is_json():
    listed = subprocess.run(["git", "ls-files", "-z", "*.json"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in listed.decode().split("\0")[:-1]:
        json.loads((ROOT / name).read_text(), parse_constant=lambda word, name=name: pytest.fail(f"{name}: {word}"))
