"""The gate before the clock: a case that computes something else has no speed.

Every tensor (outputs with and without a graph, gradients of input, states and parameters) is compared with torch.nn
in float64, fed with the same rounded numbers. The rule: our error ≤ 2 × torch.nn's own error in the measured format,
plus ``FLOOR`` units of rounding of the tensor's scale, for the tensors where torch.nn happens to be right to the last
bit. An error is the largest absolute difference in a tensor, its scale the reference's largest magnitude. Parameters
must be equal bit by bit.

Two kinds of candidate have more room. Under ``torch.set_float32_matmul_precision("high")`` products need not be quite
float32: ``HIGH_FACTOR`` takes the place of 2. Other libraries are not ours to judge: their gate only has to see that
they compute the same thing, in float32 and not in 16 bits, see `check_peer`.

For float64 there is no finer torch.nn: its error is estimated as its float32 error in units of float32 rounding, and
the difference between the two engines may hold both errors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

FACTOR = 2.0
HIGH_FACTOR = 4.0
PEER_FACTOR, PEER_FLOOR = 4.0, 16.0
EPSILON = {"float32": 2.0**-23, "float64": 2.0**-52, "bfloat16": 2.0**-7, "float16": 2.0**-10}
# Results in half formats are sums in a wider one, rounded once: both sides come within about one unit.
FLOOR = {"float32": 4.0, "float64": 4.0, "bfloat16": 1.0, "float16": 1.0}

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class TensorCheck:
    """One tensor's verdict; errors in units of the tensor's scale."""

    name: str
    error: float  # the candidate's
    baseline_error: float
    allowed: float
    problem: str = ""  # what makes a comparison impossible
    epsilon: float = EPSILON["float32"]  # unit of rounding of the format

    @property
    def ok(self) -> bool:
        return not self.problem and self.error <= self.allowed

    @property
    def ratio(self) -> float:
        """Error in units of torch.nn's own, which counts as one unit of rounding at least; infinite with a problem."""
        return float("inf") if self.problem else self.error / max(self.baseline_error, self.epsilon)

    @property
    def used(self) -> float:
        """Share of the allowed error that was used."""
        return float("inf") if self.problem else self.error / self.allowed if self.allowed else float(self.error > 0)

    def describe(self) -> str:
        if self.problem:
            return f"{self.name}: {self.problem}"
        return f"{self.name}: error {self.error:.2g} of its scale, allowed {self.allowed:.2g}"


@dataclass(frozen=True)
class Parity:
    """Verdict on a case: the tensor that used most of its allowance, and how many there were."""

    worst: TensorCheck
    tensors: int
    failed: tuple[str, ...]  # names
    ratio: float = 0.0  # largest of the tensors' error ratios

    @property
    def ok(self) -> bool:
        return not self.failed

    def as_dict(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "tensors": self.tensors,
            "failed": list(self.failed),
            "worst": asdict(self.worst),
            "error_ratio": self.ratio if math.isfinite(self.ratio) else None,
        }


def _distance(values: np.ndarray, reference: np.ndarray, scale: float) -> float:
    """Largest difference in units of ``scale``; infinite if something that should be finite is not."""
    difference = np.abs(values.astype(np.float64) - reference.astype(np.float64))
    largest = float(difference.max(initial=0.0))
    return largest / scale if np.isfinite(largest) else float("inf")


@dataclass(frozen=True)
class _Rule:
    """How large an error may be: ``factor`` times the baseline's plus ``floor`` units of rounding."""

    dtype: str
    factor: float
    floor: float

    def check(self, name: str, candidate: Tensors, baseline: Tensors, reference: Tensors) -> TensorCheck:
        if name not in candidate or name not in baseline:
            where = "here" if name not in candidate else "in torch.nn"
            return TensorCheck(name, float("inf"), 0.0, 0.0, f"missing {where}")
        ours, theirs, exact = candidate[name], baseline[name], reference.get(name)
        if exact is None or ours.shape != exact.shape:
            return TensorCheck(name, float("inf"), 0.0, 0.0, f"shape {ours.shape}, expected {theirs.shape}")
        if not (np.isfinite(theirs).all() and np.isfinite(exact).all()):
            return TensorCheck(name, float("inf"), 0.0, 0.0, "not finite in torch.nn itself, so it cannot be compared")
        scale = float(np.abs(exact).max(initial=0.0)) or 1.0
        if name.startswith("parameter "):
            return TensorCheck(name, _distance(ours, exact, scale), 0.0, 0.0)
        epsilon, own = EPSILON[self.dtype], _distance(theirs, exact, scale)
        if self.dtype == "float64":
            # ``theirs`` is the float32 run here, ``exact`` the float64 one.
            own *= epsilon / EPSILON["float32"]
            allowed = (1.0 + self.factor) * own + self.floor * epsilon
        else:
            allowed = self.factor * own + self.floor * epsilon
        return TensorCheck(name, _distance(ours, exact, scale), own, allowed, epsilon=epsilon)


def check_parity(
    candidate: Tensors, baseline: Tensors, reference: Tensors, dtype: str, factor: float = FACTOR
) -> Parity:
    """Compare the candidate's tensors with torch.nn's in the measured format and in float64.

    For ``dtype`` float64 the baseline is torch.nn's float32 run, from which its float64 error is estimated.
    """
    rule = _Rule(dtype, factor, FLOOR[dtype])
    names = dict.fromkeys([*reference, *candidate])
    return _verdict([rule.check(name, candidate, baseline, reference) for name in names])


def check_peer(candidate: Tensors, baseline: Tensors, reference: Tensors) -> Parity:
    """Compare what another library computes with torch.nn, in float32: its outputs, and its gradients if it has any."""
    rule = _Rule("float32", PEER_FACTOR, PEER_FLOOR)
    names = dict.fromkeys([*(name for name in reference if name.startswith("inference ")), *candidate])
    return _verdict([rule.check(name, candidate, baseline, reference) for name in names])


def _verdict(checks: list[TensorCheck]) -> Parity:
    worst = max(checks, key=lambda check: (not check.ok, check.used))
    failed = tuple(check.name for check in checks if not check.ok)
    return Parity(worst, len(checks), failed, max(check.ratio for check in checks))
