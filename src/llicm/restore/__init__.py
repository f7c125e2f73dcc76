# SPDX-License-Identifier: Apache-2.0
"""Restorers: networks that turn a degraded (or decoded) image into an enhanced one; one a file, see `llicm.registry`."""
