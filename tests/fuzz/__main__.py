"""All fuzzers: `python -m tests.fuzz --minutes 10`."""

from __future__ import annotations

import sys

from .driver import main_of_all

if __name__ == "__main__":
    sys.exit(main_of_all(("differential", "operators")))
