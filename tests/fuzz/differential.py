"""Random calls of modules and functions, compared with torch.nn: `python -m tests.fuzz.differential --help`."""

from __future__ import annotations

import sys

from .case import Case, drawn, simpler
from .differential_check import check

__all__ = ["Case", "check", "drawn", "simpler"]

if __name__ == "__main__":
    from .driver import main

    sys.exit(main("differential"))
