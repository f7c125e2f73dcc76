# SPDX-License-Identifier: Apache-2.0
"""How large an image may be, wherever one is read, written or decoded."""

__all__ = ["MAX_PIXELS", "MAX_SIDE", "check_size"]

MAX_SIDE = 1 << 14
MAX_PIXELS = 1 << 26


def check_size(width: int, height: int) -> str | None:
    """Why an image of this size in pixels is refused, or None."""
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        return f"{width}x{height} pixels; a side has 1 to {MAX_SIDE}"
    if width * height > MAX_PIXELS:
        return f"{width}x{height} pixels; {MAX_PIXELS} are the limit for an image"
    return None
