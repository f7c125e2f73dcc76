# SPDX-License-Identifier: Apache-2.0
"""Rate control: the level whose file has the wanted size."""

import math
from collections.abc import Callable

from llicm.codec.bitstream import LEVEL_UNIT
from llicm.errors import UserError

DEFAULT_LEVEL = 2  # where neither level nor size is asked for
_CLOSE = 0.995  # of the wanted size: near enough to stop


def compress_to(encode: Callable[[float], bytes], size: float, low: float, high: float) -> tuple[bytes, float]:
    """Compress to at most `size` bytes, by bisection over the levels that a header can carry.

    Args:
        encode: gives the file for a level; larger files for higher levels, at least roughly.
        size: the largest number of bytes wanted. low, high: range of the levels.

    Returns:
        The largest file found that is not larger than `size`, and its level; the highest level's if even that is
        smaller.

    Raises:
        UserError: the lowest level's file is larger already, or the size is no finite number.
    """
    if not math.isfinite(size):
        raise UserError(f"a file of {size} bytes: give a finite number")
    best, found = encode(low), low
    if len(best) > size:
        raise UserError(
            f"this image takes {len(best)} bytes at the lowest level {low:g}; {int(size)} are too few: allow more, or "
            "make the image smaller"
        )
    data = encode(high)
    if len(data) <= size:
        return data, high
    low, high = round(low * LEVEL_UNIT), round(high * LEVEL_UNIT)
    while high - low > 1 and len(best) < _CLOSE * size:
        middle = (low + high) // 2
        data = encode(middle / LEVEL_UNIT)
        if len(data) > size:
            high = middle
        else:
            low = middle
            if len(data) > len(best):
                best, found = data, middle / LEVEL_UNIT
    return best, found
