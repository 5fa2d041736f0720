"""Fits the constants of csrc/cuda/plan.cpp to measured steps, by least squares of relative errors.

The model's step is a sum of terms, each a quantity times a constant (a rate's reciprocal), but for the product, which
is the slower one of multiplying and reading the matrix. Which of the two it is follows from the constants, so the fit
is repeated until that no longer changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from gpu_plan import (
    FORMATS,
    PASS_COLUMNS,
    TILE_COLUMNS,
    TILE_ROWS,
    Machine,
    Problem,
    Tiling,
    clusters_at_once,
    parts,
    stepwise_time,
    up,
)

#: Those that are times; the others are rates.
TIMES = ("kGridBarrier", "kClusterBarrier", "kAlone")
RATES = ("kTensorRate", "kPlainRate", "kSharedRate", "kOperandRate", "kUnitRate")
ROUNDS = 50


@dataclass(frozen=True)
class Measured:
    """A step of a call. tiling: None of the step-wise driver."""

    problem: Problem
    tiling: Tiling | None
    microseconds: float


@dataclass(frozen=True)
class Fit:
    """constants: all of plan.cpp's. fitted: those that the measurements say something about; the others are as before.
    worst: the largest relative error of a persistent step by the fit, and median: the median of them.
    """

    constants: dict[str, float]
    fitted: tuple[str, ...]
    worst: float
    median: float


def waves(t: Tiling, m: Machine) -> int:
    """How often the machine is filled: clusters that do not fit at once run one after the other."""
    return -(-t.row_slices // clusters_at_once(m, t.unit_slices)) if t.cluster else 1


def quantities(p: Problem, t: Tiling, c: Mapping[str, float]) -> dict[str, float]:
    """By constant, what it is multiplied by (a rate: its reciprocal) in the model of a step with constants `c`."""
    fmt = FORMATS[p.fmt]
    columns, passes = up(t.rows, TILE_COLUMNS), up(t.rows, PASS_COLUMNS) // PASS_COLUMNS
    product = float(up(t.matrix_rows, TILE_ROWS) * t.depth * columns)
    matrix = float(t.matrix_rows * t.depth * fmt.bytes * passes)
    rate = "kTensorRate" if fmt.tensor else "kPlainRate"
    found = {"kUnitRate": float(t.units * t.rows)}
    found["kClusterBarrier" if t.cluster and t.unit_slices > 1 else "kAlone" if t.cluster else "kGridBarrier"] = 1.0
    if not t.cluster:
        found["kOperandRate"] = float(t.depth * columns * fmt.bytes * t.warps_across)
    return found | ({rate: product} if product / c[rate] >= matrix / c["kSharedRate"] else {"kSharedRate": matrix})


def fit(measured: Sequence[Measured], m: Machine, start: Mapping[str, float]) -> Fit:
    """Constants for a machine, beginning with `start`.

    Raises:
        ValueError: nothing was measured by a persistent driver.
    """
    steps = [(s.problem, s.tiling, s.microseconds) for s in measured if s.tiling is not None]
    if not steps:
        raise ValueError("measured: expected steps of persistent drivers, got none")
    constants, fitted = dict(start), set()
    seen: set[tuple[tuple[str, ...], ...]] = set()
    for _ in range(ROUNDS):
        rows = [quantities(p, t, constants) for p, t, _ in steps]
        pattern = tuple(tuple(sorted(row)) for row in rows)
        if pattern in seen:
            break
        seen.add(pattern)
        times = np.array([us / waves(t, m) for _, t, us in steps])
        new = _solve(rows, times, start)
        fitted |= set(new)
        constants = constants | new
    launches = [
        s.microseconds - stepwise_time(s.problem, constants | {"kLaunches": 0.0}) for s in measured if s.tiling is None
    ]
    if launches and np.median(launches) > 0:
        constants["kLaunches"] = float(np.median(launches))
        fitted.add("kLaunches")
    errors = [
        abs(parts(t, FORMATS[p.fmt], constants).total * waves(t, m) / us - 1) for p, t, us in steps
    ]  # fmt: skip
    ordered = tuple(name for name in start if name in fitted)
    return Fit(constants, ordered, float(max(errors)), float(np.median(errors)))


def _solve(rows: Sequence[Mapping[str, float]], times: np.ndarray, start: Mapping[str, float]) -> dict[str, float]:
    """Constants that leave the smallest relative errors; one that would not come out positive stays as it was."""
    names = [name for name in (*TIMES, *RATES) if any(name in row for row in rows)]
    quantity = np.array([[row.get(name, 0.0) for name in names] for row in rows])
    before = np.array([start[name] if name in TIMES else 1 / start[name] for name in names])
    free = np.ones(len(names), bool)
    while free.any():
        left = times - quantity[:, ~free] @ before[~free]
        # Columns of the same size, or the rank would be judged by their units.
        scaled = quantity[:, free] * before[free] / times[:, None]
        found, _, rank, _ = np.linalg.lstsq(scaled, left / times, rcond=1e-9)
        bad = found <= 0
        if rank < free.sum() and not bad.any():
            # Measurements that do not tell two constants apart say nothing of either's share: keep the last one.
            bad = np.arange(len(found)) == len(found) - 1
        if not bad.any():
            values = found * before[free]
            chosen = [name for name, is_free in zip(names, free, strict=True) if is_free]
            return {n: float(v) if n in TIMES else 1 / float(v) for n, v in zip(chosen, values, strict=True)}
        free[np.flatnonzero(free)[bad]] = False
    return {}


def lines(found: Fit) -> str:
    """As they stand in plan.cpp, a line each; what was not fitted is marked."""
    return "\n".join(
        f"constexpr double {name} = {value:.3g};" + ("" if name in found.fitted else "  // not measured")
        for name, value in found.constants.items()
    )
