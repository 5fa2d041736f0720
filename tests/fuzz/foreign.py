"""Third-party code that may end the process: such a crash is no finding."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

_BEGIN, _END = "-- not ours: begin", "-- not ours: end"


@contextlib.contextmanager
def foreign_code() -> Iterator[None]:
    """Mark on standard error, which outlives a crash, that third-party code runs."""
    print(_BEGIN, file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print(_END, file=sys.stderr, flush=True)


def crashed_in_foreign_code(errors: str) -> bool:
    """Return whether a process with these lines on standard error ended inside `foreign_code`."""
    return errors.count(_BEGIN) > errors.count(_END)
