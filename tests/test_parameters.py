# SPDX-License-Identifier: Apache-2.0
"""What params.yaml may hold, and what is said of what it may not."""

import copy
import json
import math
import os
import re
import subprocess
import sys

import pytest
from small import ROOT, SMOKE

from llicm import parameters
from llicm.errors import UserError
from llicm.parameters import Parameters, change, describe, load, part_of, read, validate

PROFILES = [ROOT / "params.yaml", *sorted((ROOT / "profiles").glob("*/params.yaml"))]


def changed(name, value):
    """The smoke profile with one parameter replaced."""
    values = copy.deepcopy(read(SMOKE))
    *parents, last = name.split(".")
    place = values
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return values


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_profile_is_valid_and_readable(path):
    found = load(path)
    assert found.tasks and found.methods and validate(found.model_dump(exclude_unset=True)) == found
    long = [(number, line) for number, line in enumerate(path.read_text().splitlines(), 1) if len(line) > 100]
    assert not long, "split flow mappings over lines"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("training.lrr", 1, "unknown parameter 'training.lrr' (did you mean 'training.lr'?); remove or correct it"),
        ("train.steps", 1, "unknown parameter 'train'"),
        ("models.llicm.strat", None, "unknown parameter 'models.llicm.strat' (did you mean 'models.llicm.start'?)"),
        ("objectives.rpo.gama", 1, "(did you mean 'objectives.rpo.gamma'?)"),
        ("benchmark.webp.level", [1], "(did you mean 'benchmark.webp.levels'?)"),
        ("training.lr", "fast", "parameter 'training.lr' is \"fast\": input should be a valid number; correct"),
        ("training.lr", 0, "parameter 'training.lr' is 0: input should be greater than 0"),
        ("threads", 0, "parameter 'threads' is 0: input should be greater than or equal to 1; correct it"),
        ("threads", 2.0, "parameter 'threads' is 2.0: input should be a valid integer"),
        ("threads", True, "parameter 'threads' is true: input should be a valid integer"),
        ("seed", None, "parameter 'seed' is null: input should be a valid integer"),
        ("degrade.test_severity", 1.5, "'degrade.test_severity' is 1.5: input should be less than or equal to 1"),
        ("tasks", [], "parameter 'tasks' is []:"),
        ("objectives", {}, "parameter 'objectives' is {}:"),
        ("training.precision", "fp8", "parameter 'training.precision' is \"fp8\": input should be 'auto', 'bf16' or"),
        ("vlm.view", "half", "parameter 'vlm.view' is \"half\": input should be 'whole' or 'windows'"),
        ("models.restorer.context", "all", "is \"all\": input should be 'none', 'degradation', 'both' or 'oracle'"),
        ("benchmark.webp.role", "best", "'benchmark.webp.role' is \"best\": input should be 'baseline', 'test'"),
        ("models.rdo.trains", ["vlm"], "'models.rdo.trains.0' is \"vlm\": input should be 'prefilter', 'codec'"),
        ("models.other", "copy of llicm", "parameter 'models.other' is \"copy of llicm\":"),
        ("models.a b", {}, "'models.a b"),
        # names that must be described elsewhere
        ("models.llicm.objective", "ghost", "'models.llicm' has objective 'ghost', which is none of `objectives`"),
        ("models.llicm.start.codec", "ghost/codec.safetensors", "'models.llicm.start.codec' names no model: 'ghost/"),
        ("models.rdo.codec", None, "'models.rdo' trains a codec that it neither starts from nor describes"),
        ("models.rdo.codecs", {"webp": [5, 80]}, "'models.rdo' has codecs, so it can neither train nor start from a"),
        ("models.llicm.codecs", {"webp": [5, 80]}, "'models.llicm' has codecs, so it can neither train nor start"),
        ("benchmark.webp.models", ["llicm", "none", "none"], "but its methods use ['restorer']"),
        ("benchmark.rdo.models", ["rdo", "none", "none"], "but its methods use ['rdo', 'restorer']"),
        ("benchmark.rdo.models", ["rdo", "restorer"], "parameter 'benchmark.rdo.models' is [\"rdo\", \"restorer\"]:"),
        ("benchmark.webp.methods", ["webp>nobody"], "method 'webp>nobody': 'nobody' is no model that restores"),
        ("benchmark.webp.methods", {"llicm": "webp"}, "method 'llicm' is in two groups"),
        ("benchmark.webp.levels", {"avif": [1]}, "benchmark.webp has no levels for codec 'webp'"),
        ("release.model", "ghost", "'release.model' is 'ghost', which is none of `models`"),
        ("figures.test", "ghost", "'figures' names the method 'ghost', which is none of `benchmark`"),
        ("figures.curves", ["ghost"], "'figures' names the method 'ghost'"),
        ("figures.comparisons.new", ["llicm", "ghost"], "'figures' names the method 'ghost'"),
    ],
)  # fmt: skip
def test_a_wrong_parameter_is_named(tmp_path, name, value, said):
    file = tmp_path / "params.yaml"
    file.write_text(json.dumps(changed(name, value)))
    with pytest.raises(UserError) as error:
        load(file)
    assert str(error.value).startswith(f"{file}: ") and said in str(error.value)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["training.lr", "objectives.rpo.alpha", "models.rdo.codec.lambdas", "shared.new"])
def test_numbers_that_are_none_are_refused(tmp_path, name, number):
    listed = name.endswith("lambdas")
    file = tmp_path / "params.yaml"
    text = json.dumps(changed(name, [0.1, number] if listed else number))
    for word, yaml in {"-Infinity": "-.inf", "Infinity": ".inf", "NaN": ".nan"}.items():
        text = text.replace(word, yaml)
    file.write_text(text)
    full = f"{name}.1" if listed else name
    with pytest.raises(UserError, match=f"params.yaml: parameter '{full}' is {number}; give a finite number"):
        load(file)


def test_a_missing_parameter_is_named_with_its_meaning():
    values = copy.deepcopy(read(SMOKE))
    del values["training"]["lr"]
    with pytest.raises(UserError, match=r"parameter 'training.lr' is missing; add it \(Peak learning rate of Adam\)"):
        validate(values)
    values = copy.deepcopy(read(SMOKE))
    del values["models"]["rdo"]["objective"]
    with pytest.raises(UserError, match=r"'models.rdo.objective' is missing; add it \(Its loss, an entry"):
        validate(values)


@pytest.mark.parametrize("text", ["a: [1, 2\n", "a: 1\na: 2\n", "a: 'x\n", "\x00"])
def test_a_file_that_is_not_yaml_is_refused_with_the_place(tmp_path, text):
    file = tmp_path / "params.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"params\.yaml.*not valid YAML"):
        load(file)


def test_an_empty_or_missing_parameter_file_is_refused(tmp_path):
    file = tmp_path / "params.yaml"
    with pytest.raises(UserError, match="no such file"):
        load(file)
    file.write_text("")
    with pytest.raises(UserError, match=r"params\.yaml: must be"):
        load(file)


def test_yaml_is_read_as_dvc_reads_it(tmp_path):
    from dvc.utils.serialize import load_yaml

    text = re.sub(r"^  lr: .*", "  lr: 1e-3", (ROOT / "params.yaml").read_text(), flags=re.M)
    file = tmp_path / "params.yaml"
    file.write_text(text)
    assert load(file).training.lr == 0.001
    assert read(file) == load_yaml(str(file))


def test_whole_levels_stay_whole():
    """Records and file names have levels as they are written."""
    for level, text in ((3, "3"), (3.0, "3.0"), (1.5, "1.5")):
        found = validate(changed("benchmark.rdo.levels", [0, level])).benchmark["rdo"].levels
        assert [repr(number) for number in found] == ["0", text]


def test_a_stage_sees_what_it_declares():
    values = read(SMOKE)
    some = part_of({name: values[name] for name in ("seed", "training", "objectives")})
    assert (some.seed, some.training.lr, some.objectives["rd"].beta) == (0, 0.001, 1.0)
    with pytest.raises(AttributeError):
        some.models  # noqa: B018
    with pytest.raises(UserError, match="parameter '(training.)?lr' is .fast.: input should be a valid number"):
        part_of({"training": values["training"] | {"lr": "fast"}})


def test_changed_parameters_are_checked_too():
    values = read(SMOKE)
    assert change(values, {"objectives.rpo.alpha": 0.0}).objectives["rpo"].alpha == 0
    assert values["objectives"]["rpo"]["alpha"] > 0
    with pytest.raises(UserError, match="nothing.at.all: params.yaml has no such parameter"):
        change(values, {"nothing.at.all": 1})
    with pytest.raises(UserError, match="'benchmark.raw.models'"):
        change(values, {"benchmark.raw.models": ["llicm", "none", "none"]})


def test_every_parameter_is_described():
    described = describe()
    assert len(described) > 90 and {"training.lr", "models.*.start.codec", "benchmark.*.role"} <= set(described)
    assert not [name for name, meaning in described.items() if len(meaning) <= 10]


def test_the_schema_is_valid_and_describes_the_files():
    from jsonschema import Draft202012Validator

    schema = Parameters.model_json_schema()
    Draft202012Validator.check_schema(schema)
    checker = Draft202012Validator(schema)
    for path in PROFILES:
        assert not list(checker.iter_errors(read(path))), path
    assert list(checker.iter_errors(changed("training.lrr", 1))) and list(checker.iter_errors(changed("threads", 0)))


def test_the_schema_for_editors_is_up_to_date():
    command = [sys.executable, "-m", parameters.__name__]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    committed = (ROOT / "docs/params.schema.json").read_text()
    assert committed == printed, "python -m llicm.parameters > docs/params.schema.json"
    for path in PROFILES:
        first, folder = path.read_text().splitlines()[0], path.parent
        target = first.removeprefix("# yaml-language-server: $schema=")
        assert (folder / target).resolve() == ROOT / "docs/params.schema.json"
