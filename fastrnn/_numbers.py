"""Numbers that a caller gives, as floats."""

from __future__ import annotations

import math
import numbers
from typing import Any


def finite(value: Any, name: str, expected: str = "a finite number") -> float:
    """A finite real number as a float: an int, a float, or a number of numpy's.

    Args:
        name, expected: of the argument, and what it must be, for errors.

    Raises:
        TypeError: it is no real number; a bool is none.
        ValueError: it is NaN, infinite, or beyond the range of float.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise ValueError(f"{name}: expected {expected}, got {found}")
    return found
