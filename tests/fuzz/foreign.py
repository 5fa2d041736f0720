"""Code that is not ours and may end the process: such a crash is no finding."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

_BEGIN, _END = "-- not ours: begin", "-- not ours: end"


@contextlib.contextmanager
def foreign_code() -> Iterator[None]:
    """Notes on standard error, which outlives a crash, that what runs is not ours."""
    print(_BEGIN, file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print(_END, file=sys.stderr, flush=True)


def crashed_in_foreign_code(errors: str) -> bool:
    """Whether a process with these lines on standard error ended inside of `foreign_code`."""
    return errors.count(_BEGIN) > errors.count(_END)
