# SPDX-License-Identifier: Apache-2.0
"""Read params.yaml and check it against `params.schema.json`, which also documents every parameter.

The schema holds types, ranges, units and meanings, and no values: those are in params.yaml alone.
"""

import difflib
import functools
import json
import os
from collections.abc import Iterator
from operator import getitem
from pathlib import Path

from llicm.errors import UserError

__all__ = ["load", "names", "schema", "validate"]


@functools.cache
def schema() -> dict:
    """The JSON schema (draft 2020-12) of params.yaml."""
    return json.loads(Path(__file__).with_name("params.schema.json").read_text(encoding="utf-8"))


def load(path: str | os.PathLike = "params.yaml") -> dict:
    """The parameters of a profile, checked.

    YAML 1.2, as DVC reads it: `1e-3` is a number, `no` is a text.

    Raises:
        UserError: the file is missing or not YAML, or a parameter is unknown, missing, or out of its range.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        values = YAML(typ="safe", pure=True).load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; restore it with `git checkout {path}`") from None
    except (YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        problem = (getattr(error, "problem", None) or "not a text file").strip()
        raise UserError(f"{path}{place}: not valid YAML ({problem}); correct it") from None
    validate(values, path)
    return values


def validate(values: dict, path: str | os.PathLike = "params.yaml") -> None:
    """Check parameters; `path` is the file named in the message.

    Raises:
        UserError: one sentence about the first thing that is wrong.
    """
    from jsonschema import Draft202012Validator

    errors = list(Draft202012Validator(schema()).iter_errors(values))
    if errors:
        # a misspelt name also shows up as a missing one: report the misspelling
        order = {"additionalProperties": 0, "required": 2}
        first = min(errors, key=lambda e: (order.get(e.validator, 1), list(map(str, e.absolute_path))))
        raise UserError(f"{path}: {_sentence(first, values)}")
    _check_arms(values, path)


def names(values: dict) -> list[str]:
    """Dotted names of all parameters that params.yaml may hold, with the arms and families of `values`."""
    return sorted(set(_names(schema(), values, "")))


def _names(node: dict, values, prefix: str) -> Iterator[str]:
    if "$ref" in node:
        node = functools.reduce(getitem, node["$ref"].removeprefix("#/").split("/"), schema())
    values = values if isinstance(values, dict) else {}
    for key, child in node.get("properties", {}).items():
        yield prefix + key
        yield from _names(child, values.get(key), f"{prefix}{key}.")
    if isinstance(node.get("additionalProperties"), dict):
        for key, value in values.items():
            if key not in node.get("properties", {}):
                yield from _names(node["additionalProperties"], value, f"{prefix}{key}.")


def _sentence(error, values) -> str:
    where = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        allowed = error.schema.get("properties", {})
        unknown = next(key for key in error.instance if key not in allowed)
        name = f"{where}.{unknown}" if where else str(unknown)
        close = difflib.get_close_matches(name, names(values), n=1, cutoff=0.7)
        guess = f" (did you mean '{close[0]}'?)" if close else ""
        return f"unknown parameter '{name}'{guess}; remove or correct it"
    if error.validator == "required":
        missing = next(key for key in error.schema["required"] if key not in error.instance)
        name = f"{where}.{missing}" if where else missing
        meaning = error.schema["properties"][missing].get("description", "").rstrip(".")
        return f"parameter '{name}' is missing; add it" + (f" ({meaning})" if meaning else "")
    if not where:
        return "must be a list of `name: value` lines; restore it with `git checkout`"
    meaning = error.schema.get("description", "").rstrip(".")
    return f"parameter '{where}': {error.message}; correct it" + (f" ({meaning})" if meaning else "")


def _check_arms(values: dict, path: str | os.PathLike) -> None:
    groups = ("codec_arms", "restorer_arms", "train_arms")
    listed = [name for group in groups for name in values[group]]
    for name in listed:
        if name not in values["arms"]:
            raise UserError(f"{path}: '{name}' is in a list of arms but not described; add 'arms.{name}' or remove it")
        if listed.count(name) > 1:
            raise UserError(f"{path}: '{name}' is in more than one of {', '.join(groups)}; leave it in one")
    for name in values["arms"]:
        if name not in listed:
            raise UserError(f"{path}: 'arms.{name}' is never trained; add '{name}' to one of {', '.join(groups)}")
