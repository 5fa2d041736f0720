"""Conversion of numeric arguments to float."""

from __future__ import annotations

import math
import numbers
from typing import Any


def finite(value: Any, name: str, expected: str = "a finite number") -> float:
    """Return a finite real number as a float; accepts an int, a float or a NumPy number.

    Args:
        name, expected: the argument's name and its expected value, for errors.

    Raises:
        TypeError: it is not a real number; a bool is not accepted.
        ValueError: it is NaN, infinite, or outside the range of float.
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
