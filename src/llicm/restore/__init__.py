# SPDX-License-Identifier: Apache-2.0
"""Restorers, one a file: networks that turn a degraded or decoded image into an enhanced one (see `llicm.registry`)."""
