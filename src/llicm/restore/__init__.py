# SPDX-License-Identifier: Apache-2.0
"""Restorers: networks that turn a degraded (or decoded) image into an enhanced one."""

from llicm.restore import direct, irsde  # noqa: F401  (each registers its restorer)
