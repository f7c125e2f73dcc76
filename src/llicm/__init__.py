# SPDX-License-Identifier: Apache-2.0
"""LL-ICM: image compression for low-level machine vision, as a reproducible study."""

__version__ = "0.1.0"
