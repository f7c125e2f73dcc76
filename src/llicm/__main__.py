# SPDX-License-Identifier: Apache-2.0
"""`python -m llicm`: the command `llicm`."""

import sys

from llicm.cli import main

if __name__ == "__main__":
    sys.exit(main())
