# SPDX-License-Identifier: Apache-2.0
"""Restorers by name."""

from torch import nn

from llicm.errors import UserError

__all__ = ["RESTORERS", "make_restorer", "register_restorer"]

RESTORERS: dict[str, type[nn.Module]] = {}


def register_restorer(name: str):
    """Class decorator: make a restorer selectable as `restorer.name` in params.yaml."""

    def add(cls):
        RESTORERS[name] = cls
        return cls

    return add


def make_restorer(name: str, **config) -> nn.Module:
    """The restorer registered as `name`.

    Raises:
        UserError: no restorer of that name, or an argument that it does not have or lacks.
    """
    if name not in RESTORERS:
        raise UserError(f"params.yaml: restorer.name '{name}' is unknown; choose one of {', '.join(sorted(RESTORERS))}")
    try:
        return RESTORERS[name](**config)
    except TypeError as error:
        raise UserError(f"params.yaml: restorer '{name}': {error}; correct it") from None
