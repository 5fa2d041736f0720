"""Check one case: both sides, the comparison, and further draws if the first looks wrong."""

from __future__ import annotations

import contextlib
import dataclasses

import torch

from fastrnn import _C

from . import compare
from .case import Case
from .invalid import check_invalid
from .nets import Inputs
from .runs import Results, run

DRAWS = 12  # further ones, twice
GROSS = 20  # times the allowed error, from which a single draw is enough


def check(case: Case) -> list[str]:
    """Return the errors in our results of a case; empty if they are right."""
    with settings(case):
        if case.invalid:
            return check_invalid(case)
        ours, theirs = attempt(case, "ours"), attempt(case, "theirs")
        if isinstance(ours, Exception) or isinstance(theirs, Exception):
            return _raised(ours, theirs)
        found = compare.structure(case, ours, theirs)
        if case.special or not found:
            found += compare.masks(ours, theirs)
        return found or _accuracy(case, ours, theirs)


@contextlib.contextmanager
def settings(case: Case):
    """Set the library's switches as the case asks."""
    before = _C.capability(), torch.get_num_threads()
    _C.set_poison(True)
    if case.capability in _C.capabilities():
        _C.set_capability(case.capability)
    _C.set_split(case.split)
    torch.set_num_threads(case.threads)
    try:
        yield
    finally:
        _C.set_poison(False)
        _C.set_capability(before[0])
        _C.set_split("auto")
        torch.set_num_threads(before[1])
        if case.extra == "compile":
            torch.compiler.reset()


def attempt(case: Case, side: str) -> Results | Exception:
    try:
        return run(case, Inputs(case, case.values), side)
    except Exception as error:
        return error


def _raised(ours: Results | Exception, theirs: Results | Exception) -> list[str]:
    def words(result: Results | Exception) -> str:
        return f"{type(result).__name__}: {str(result)[:300]}" if isinstance(result, Exception) else "results"

    if isinstance(theirs, Exception) and isinstance(ours, type(theirs)):
        return []
    if "could not create a primitive" in str(theirs) and not isinstance(ours, Exception):
        return []  # oneDNN on this machine lacks an operation that torch.nn uses
    return [f"expected {words(theirs)}, as the reference; got {words(ours)}"]


def _accuracy(case: Case, ours: Results, theirs: Results) -> list[str]:
    inputs = Inputs(case, case.values)
    exact = run(case, inputs, "theirs", exact=True)
    first = compare.errors(case, ours, theirs, exact)
    suspects = [name for name, e in first.items() if e.ours > compare.allowed(case, e)]
    if not suspects:
        return []
    _widen(case, inputs, exact, first, scale=32)
    gross = {name: first[name] for name in suspects if first[name].ours > GROSS * compare.allowed(case, first[name])}
    if gross:
        return [
            f"{name}: error {e.ours:.3e}, torch.nn's {e.theirs:.3e}, of values of {e.right:.3e}"
            for name, e in gross.items()
        ]
    for attempt_no in range(2):  # further draws must confirm a suspected error
        draws = [_draw(case, case.values + 1 + attempt_no * DRAWS + k) for k in range(DRAWS)]
        wrong = {
            name: compare.pooled(case, [d[name] for d in draws if name in d] or [first[name]]) for name in suspects
        }
        suspects = [name for name, what in wrong.items() if what]
        if not suspects:
            return []
    return [f"{name}: {wrong[name]}" for name in suspects]


def _draw(case: Case, values: int) -> dict[str, compare.Errors]:
    case = dataclasses.replace(case, values=values)
    inputs = Inputs(case, values)
    exact = run(case, inputs, "theirs", exact=True)
    found = compare.errors(case, run(case, inputs, "ours"), run(case, inputs, "theirs"), exact)
    _widen(case, inputs, exact, found, scale=2)
    return found


def _widen(case: Case, inputs: Inputs, exact: Results, found: dict[str, compare.Errors], scale: float) -> None:
    """Record how far the exact values change when the inputs change by `scale` units in the last place."""
    for k in range(3):
        nudged = run(case, inputs, "theirs", exact=True, nudge=scale * compare.epsilon(case) * (1 + k / 10))
        for name, value in compare.spread(exact, nudged).items():
            if name in found:
                found[name].spread = max(found[name].spread, value)
