# SPDX-License-Identifier: Apache-2.0
"""Networks that see only what is near, over pictures that are too large for memory: one strip of rows after the other.

A strip is computed with as many rows more, above and below, as the network can see, and these are cut off again. So its
result is that of the whole picture, but for the last bits of a float where a library sums in another order for another
height. What a network learns from the whole picture must be computed before.
"""

import contextlib
import ctypes
import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

PIXELS = 1 << 19  # of a strip, without what is cut off

# What maps of a strip take stays with the process until `give_back`: to be given it anew, page by page, for each
# picture takes a tenth of the time. (M_MMAP_THRESHOLD, at its largest, and M_TRIM_THRESHOLD; a study's runner sets its
# own.)
if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
    with contextlib.suppress(OSError, AttributeError):  # of glibc
        for _parameter, _size in ((-3, 1 << 25), (-1, 1 << 28)):
            ctypes.CDLL(None).mallopt(_parameter, _size)


def fits(pixels: int) -> bool:
    """Whether a picture is one strip. It always is where gradients are recorded: their graph holds all anyway."""
    return torch.is_grad_enabled() or pixels <= PIXELS


def give_back() -> None:
    """Give freed memory back to the system. The C library keeps it in pieces, of which a large picture can use few."""
    with contextlib.suppress(OSError, AttributeError):  # of glibc
        ctypes.CDLL(None).malloc_trim(0)


def by_strips(
    function: Callable[..., Tensor], maps: Sequence[Tensor], rows: Sequence[int], reach: int, unit: int,
    into: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`function(*maps)`, strip by strip if the picture is larger than a strip.

    Args:
        function: of maps (N, C, h, w) with equally many units of rows, to a map (N, C', h', w').
        maps, rows: maps, and how many rows of each make a unit; its last unit may be cut short.
        reach: how many units above and below a unit its result depends on.
        unit: a unit's pixels.
        into: the result is written there, where `function` would give more rows without the last ones. It may be one of
            the maps: no strip is written before the next has been computed.
    """
    units, step = -(-maps[0].shape[2] // rows[0]), max(PIXELS // unit, 4 * reach, 1)
    if fits(units * unit) or step >= units:  # nothing is given back: the next call would take it again, page by page
        whole = function(*maps)
        return whole if into is None else into.copy_(whole[:, :, : into.shape[2]])
    waiting: list[tuple[Tensor, Tensor]] = []
    for start in range(0, units, step):
        give_back()
        above, stop = min(start, reach), min(start + step, units)
        piece = function(*(m[:, :, (start - above) * r : (stop + reach) * r] for m, r in zip(maps, rows, strict=True)))
        high = -(-piece.shape[2] // (min(stop + reach, units) - start + above))  # rows of the result that make a unit
        if into is None:
            into = piece.new_empty(*piece.shape[:2], units * high, piece.shape[3])
        place = into[:, :, start * high : stop * high]
        waiting.append((place, piece[:, :, above * high :][:, :, : place.shape[2]]))
        while len(waiting) > (stop < units):
            target, value = waiting.pop(0)
            target.copy_(value)
    assert into is not None
    give_back()
    return into
