"""Known faults, not reported unless asked for: each a name and a test of case and messages. Empty in a good state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Test = Callable[[Any, list[str]], bool]

KNOWN: list[tuple[str, Test]] = []


def reason(case: Any, problems: list[str]) -> str | None:
    """The known fault that explains the problems of a case, if one does."""
    return next((name for name, test in KNOWN if test(case, problems)), None)
