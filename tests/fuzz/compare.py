"""Decide whether our results of a case are as accurate as torch.nn's."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from .case import Case
from .nets import DTYPES
from .runs import Results

FEW_ULPS = 4  # lower limit, in units in the last place, of torch's error, which may be small by chance
EXACT = 1e-9  # largest relative difference of float64 results, from sums in another order


@dataclass
class Errors:
    """Root mean squares of one result in one draw."""

    ours: float
    theirs: float
    right: float
    spread: float = 0.0  # change of the exact value when the inputs change by a few units in the last place


def structure(case: Case, ours: Results, theirs: Results) -> list[str]:
    """List differences in which results exist, and in their kinds."""
    found = []
    if looped(case):  # where no row has a step the loop's outputs require no gradient, and there are none
        theirs = {name: theirs.get(name) for name in ours} | theirs
    if list(ours) != list(theirs):
        return [f"results: expected {list(theirs)}, got {list(ours)}"]
    for name, right in theirs.items():
        mine = ours[name]
        if name == "generator":
            if not torch.equal(mine, right):
                found.append("generator: expected the state that torch.nn leaves, got another")
            continue
        if (mine is None) != (right is None):
            if case.custom and mine is not None and mine.numel() == 0:
                continue  # an empty bias
            if (case.reset or case.lengths) and right is None and not mine.count_nonzero():
                continue  # the loop has no path where no row has a step, or every row is reset
            found.append(f"{name}: expected {_kind(right)}, got {_kind(mine)}")
        elif mine is not None and right is not None:
            found += _structure_of(case, name, mine, right)
    return found


def looped(case: Case) -> bool:
    """Return True if the exact value is computed by a loop."""
    return bool(case.lengths or case.reset or case.clip or case.mode == "vmap")


def _kind(t: Tensor | None) -> str:
    return "None" if t is None else f"{t.dtype} {tuple(t.shape)}"


def _structure_of(case: Case, name: str, mine: Tensor, right: Tensor) -> list[str]:
    promoted = case.autocast and looped(case) and case.dtype != "float64"  # by the loop's own concatenations
    if mine.shape != right.shape or (mine.dtype != right.dtype and not promoted):
        return [f"{name}: expected {_kind(right)}, got {_kind(mine)}"]
    found = []
    if mine.requires_grad != right.requires_grad and not (looped(case) and mine.requires_grad):
        found.append(f"{name}: expected requires_grad={right.requires_grad}, got {mine.requires_grad}")
    if name in ("y", "h_n", "c_n") and right.is_contiguous() and not mine.is_contiguous() and not looped(case):
        found.append(f"{name}: expected contiguous memory as torch.nn's, got strides {mine.stride()}")
    return found


def masks(ours: Results, theirs: Results) -> list[str]:
    """List differences in the places of NaN and infinities."""
    found = []
    for name, right in theirs.items():
        mine = ours[name]
        if mine is None or right is None or mine.shape != right.shape:
            continue
        for kind, test in (("NaN", torch.isnan), ("inf", torch.isinf)):
            a, b = int(test(mine).sum()), int(test(right).sum())
            if not torch.equal(test(mine), test(right)):
                found.append(
                    f"{name}: expected {kind} in the {b} places of torch.nn's, got {a} places of {mine.numel()}"
                )
                break
    return found


def errors(case: Case, ours: Results, theirs: Results, exact: Results) -> dict[str, Errors]:
    found = {}
    for name, right in exact.items():
        a, b = ours.get(name), theirs.get(name)
        if name == "generator" or a is None or b is None or right is None or right.numel() == 0:
            continue
        a, b, right = (t.detach().double() for t in (a, b, right))
        finite = a.isfinite() & b.isfinite() & right.isfinite()
        a, b, right = (torch.where(finite, t, 0.0) for t in (a, b, right))
        found[name] = Errors(_rms(a - right), _rms(b - right), _rms(right))
    return found


def _rms(t: Tensor) -> float:
    return t.square().mean().sqrt().item()


def spread(exact: Results, nudged: Results) -> dict[str, float]:
    pairs = {n: (t, nudged[n]) for n, t in exact.items() if t is not None and nudged.get(n) is not None}
    pairs = {n: pair for n, pair in pairs.items() if n != "generator" and pair[0].numel()}
    return {n: _rms((a - b).detach().nan_to_num(0.0, 0.0, 0.0)) for n, (a, b) in pairs.items()}


def epsilon(case: Case) -> float:
    return torch.finfo(DTYPES[case.autocast or case.dtype]).eps


def allowed(case: Case, e: Errors) -> float:
    if case.dtype == "float64":
        return max(2 * e.theirs, EXACT * max(e.right, 1e-4), 2 * e.spread)
    return 2 * max(e.theirs, FEW_ULPS * epsilon(case) * max(e.right, 1e-30), e.spread)


def pooled(case: Case, draws: list[Errors]) -> str | None:
    """Return the error in a result, judged by many draws; None if there is none.

    Errors of a few numbers vary widely. Both the joint error and the median of the draws must be too large, so that
    neither a draw where torch's error was small by chance nor one at the kink of a ReLU decides.
    """
    joint = Errors(*(_joint(draws, part) for part in ("ours", "theirs", "right", "spread")))
    ratio = statistics.median(d.ours / max(allowed(case, d), 1e-300) for d in draws)
    limit = allowed(case, joint)
    if joint.ours <= limit or ratio <= 1:
        return None
    return f"error {joint.ours:.3e}, torch.nn's {joint.theirs:.3e}, of values of {joint.right:.3e}, {len(draws)} draws"


def _joint(draws: list[Errors], part: str) -> float:
    return (sum(getattr(d, part) ** 2 for d in draws) / len(draws)) ** 0.5
