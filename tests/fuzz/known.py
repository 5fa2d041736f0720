"""Known faults, not reported unless asked for: each a name and a test of case and messages. Empty in a good state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Test = Callable[[Any, list[str]], bool]


def _masks(case: Any, problems: list[str]) -> bool:
    return bool(getattr(case, "special", "")) and all("NaN in" in p or "inf in" in p for p in problems)


def _meta(case: Any, problems: list[str]) -> bool:
    return "meta" in problems[0] and problems[0].startswith("invalid call")


def _flag_of_c(case: Any, problems: list[str]) -> bool:
    return all("requires_grad" in p and p.startswith("c_n") for p in problems) and getattr(case, "P", 0) > 0


def _projection(case: Any, problems: list[str]) -> bool:
    return getattr(case, "P", 0) > 0 and all(p.startswith("d net.weight_hh") and "error" in p for p in problems)


def _compiled_packed(case: Any, problems: list[str]) -> bool:
    return getattr(case, "extra", "") == "compile" and case.layout.startswith("packed")


def _fake_kernels(case: Any, problems: list[str]) -> bool:
    return "on_meta" in problems[0] and ("KeyError" in problems[0] or "AttributeError" in problems[0])


KNOWN: list[tuple[str, Test]] = [
    ("where NaN and infinities are", _masks),
    ("two devices in one call", _meta),
    ("requires_grad of c where only weight_hr requires one", _flag_of_c),
    ("accuracy of the gradient of weight_hh with a projection", _projection),
    ("fake kernels with an unknown cell or None for a tensor", _fake_kernels),
    ("torch.compile with a PackedSequence", _compiled_packed),
]


def reason(case: Any, problems: list[str]) -> str | None:
    """The known fault that explains the problems of a case, if one does."""
    return next((name for name, test in KNOWN if test(case, problems)), None)
