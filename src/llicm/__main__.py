# SPDX-License-Identifier: Apache-2.0
"""`python -m llicm`: the command `llicm`."""

import sys

from llicm.cli import main

sys.exit(main())
