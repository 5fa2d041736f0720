"""Known faults, reported only on request: each a name and a test of case and messages. Ideally there are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Test = Callable[[Any, list[str]], bool]

KNOWN: list[tuple[str, Test]] = []


def reason(case: Any, problems: list[str]) -> str | None:
    """Return the known fault that explains the problems of a case, None if there is none."""
    return next((name for name, test in KNOWN if test(case, problems)), None)
