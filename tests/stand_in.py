# SPDX-License-Identifier: Apache-2.0
"""A device for machines that have none: its tensors are elsewhere, as a GPU's are, and the processor computes them.

What a GPU refuses is refused here too: to mix tensors of both places, and to hand its tensors to NumPy. Its device is
called "lazy", of PyTorch's names one that nothing else uses and that needs no driver.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "lazy"
aten = torch.ops.aten
# may mix: copies, and indices in brackets
MOVES = {aten.copy_.default, aten._to_copy.default, aten.index.Tensor, aten.index_put_.default}


class There(torch.Tensor):
    """A tensor whose numbers are kept in `here`."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> "There":
        form = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype}
        out = torch.Tensor._make_wrapper_subclass(cls, here.size(), device=torch.device(NAME, 0), **form)
        out.here = here
        return out

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return computed(function, args, kwargs or {})

    def tolist(self) -> Any:
        return self.here.tolist()

    def new_tensor(self, data: Any) -> torch.Tensor:
        return There(self.here.new_tensor(data))

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(torch.tensor(index) if isinstance(index, list) else index)

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(torch.tensor(index) if isinstance(index, list) else index, value)


class Elsewhere(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return computed(function, args, kwargs or {})


def computed(function: Any, args: tuple, kwargs: dict) -> Any:
    found = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor | torch.Generator)]
    there = any(isinstance(value, There) for value in found)
    if there and function not in MOVES:
        mixed = [value for value in found if not isinstance(value, There) and getattr(value, "ndim", 1)]
        assert not mixed, f"{function} on both the device and the processor"
    if function is aten.copy_.default:
        there = isinstance(args[0], There)
    if (device := kwargs.get("device")) is not None:
        there, kwargs = torch.device(device).type == NAME, kwargs | {"device": torch.device("cpu")}
    args, kwargs = tree_map(lambda value: value.here if isinstance(value, There) else value, (args, kwargs))
    made = function(*args, **kwargs)
    return tree_map(lambda value: There(value) if isinstance(value, torch.Tensor) and there else value, made)


@contextlib.contextmanager
def elsewhere() -> Iterator[str]:
    """The device is there, and modules can be sent to it by `to`."""
    autocast = torch.autocast

    def there_too(device: str, *args: Any, **kwargs: Any) -> Any:
        return contextlib.nullcontext() if device == NAME else autocast(device, *args, **kwargs)

    def seen(make: Any) -> Any:  # PyTorch makes these tensors out of a mode's sight
        return lambda data, device=None, **kwargs: (
            make(data, **kwargs) if device is None else make(data, **kwargs).to(device)
        )

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch("torch.autocast", there_too))
        for name in ("tensor", "as_tensor"):
            stack.enter_context(mock.patch.object(torch, name, seen(getattr(torch, name))))
        stack.enter_context(Elsewhere())
        yield NAME
