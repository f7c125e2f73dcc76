# SPDX-License-Identifier: Apache-2.0
"""The command `llicm`."""

from llicm.cli.study import TASKS, main

__all__ = ["TASKS", "main"]
