"""Parity check before timing: a case with wrong results is not timed.

Every tensor (outputs with and without a graph, gradients of input, states and parameters) is compared with torch.nn
in float64 on the same rounded numbers. The rule: our error ≤ 2 × torch.nn's own error in the measured dtype, plus
``FLOOR`` units of rounding of the tensor's scale, for tensors where torch.nn happens to be exact. An error is the
largest absolute difference in a tensor, its scale the reference's largest magnitude. Parameters must be bitwise equal.

Two kinds of candidates have larger tolerances. Under ``torch.set_float32_matmul_precision("high")`` and ``"medium"``
the factors of float32 products are rounded: ``FACTORS`` replaces the 2. `check_peer` only verifies that another
library computes the same function, in float32 and not in 16 bits.

For float64 there is no more precise torch.nn: its error is estimated as its float32 error in units of float32 rounding,
and the difference between the two engines may contain both errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

FACTOR = 2.0
# By precision setting: two bfloat16 parts of a factor round at 2⁻¹⁷, one at 2⁻⁹, float32 at 2⁻²⁴.
FACTORS = {"highest": FACTOR, "high": 2.0**7, "medium": 2.0**15}
PEER_FACTOR, PEER_FLOOR = 4.0, 16.0
EPSILON = {"float32": 2.0**-23, "float64": 2.0**-52, "bfloat16": 2.0**-7, "float16": 2.0**-10}
# Results in 16-bit dtypes are sums in a wider one, rounded once: both engines are within about one unit.
FLOOR = {"float32": 4.0, "float64": 4.0, "bfloat16": 1.0, "float16": 1.0}

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class TensorCheck:
    """Result for one tensor; errors in units of the tensor's scale."""

    name: str
    error: float  # the candidate's
    baseline_error: float
    allowed: float
    problem: str = ""  # reason why the tensors cannot be compared
    epsilon: float = EPSILON["float32"]  # unit of rounding of the dtype

    @property
    def ok(self) -> bool:
        return not self.problem and self.error <= self.allowed

    @property
    def ratio(self) -> float:
        """Error relative to torch.nn's own, which counts as at least one unit of rounding; infinite with a problem."""
        return math.inf if self.problem else self.error / max(self.baseline_error, self.epsilon)

    @property
    def used(self) -> float:
        """Fraction of the allowed error that was used."""
        return math.inf if self.problem else self.error / self.allowed if self.allowed else float(self.error > 0)

    def describe(self) -> str:
        text = self.problem or f"error {self.error:.2g} of its scale, allowed {self.allowed:.2g}"
        return f"{self.name}: {text}"


@dataclass(frozen=True)
class Parity:
    """Result for a case: the tensor that used most of its allowance, and the number of tensors."""

    worst: TensorCheck
    tensors: int
    failed: tuple[str, ...]  # names
    ratio: float = 0.0  # largest of the tensors' error ratios

    @property
    def ok(self) -> bool:
        return not self.failed

    def describe(self) -> str:
        others = len(self.failed) - 1
        return self.worst.describe() + (f" (and {others} more)" if others > 0 else "")

    def as_dict(self) -> dict[str, Any]:
        counts = {"ok": self.ok, "tensors": self.tensors, "failed": list(self.failed), "worst": asdict(self.worst)}
        return {**counts, "error_ratio": self.ratio if math.isfinite(self.ratio) else None}


def _distance(values: np.ndarray, reference: np.ndarray, scale: float) -> float:
    """Return the largest difference in units of ``scale``; infinite if a difference is not finite."""
    largest = float(np.abs(values.astype(np.float64) - reference.astype(np.float64)).max(initial=0.0))
    return largest / scale if math.isfinite(largest) else math.inf


def check_tensor(
    name: str, candidate: Tensors, baseline: Tensors, reference: Tensors, dtype: str, factor: float, floor: float
) -> TensorCheck:
    """Allow ``factor`` times the baseline's error plus ``floor`` units of rounding."""
    ours, theirs, exact = candidate.get(name), baseline.get(name), reference.get(name)
    broken = partial(TensorCheck, name, math.inf, 0.0, 0.0)
    if ours is None or theirs is None:
        return broken("missing here" if ours is None else "missing in torch.nn")
    if exact is None or ours.shape != exact.shape:
        return broken(f"expected shape {theirs.shape}, got {ours.shape}")
    if not (np.isfinite(theirs).all() and np.isfinite(exact).all()):
        return broken("expected finite values in torch.nn to compare with, got infinity or NaN")
    scale = float(np.abs(exact).max(initial=0.0)) or 1.0
    if name.startswith("parameter "):
        return TensorCheck(name, _distance(ours, exact, scale), 0.0, 0.0)
    epsilon, own = EPSILON[dtype], _distance(theirs, exact, scale)
    if dtype == "float64":  # ``theirs`` is the float32 run here, ``exact`` the float64 one
        own *= epsilon / EPSILON["float32"]
        factor += 1.0
    return TensorCheck(name, _distance(ours, exact, scale), own, factor * own + floor * epsilon, epsilon=epsilon)


def check_parity(
    candidate: Tensors, baseline: Tensors, reference: Tensors, dtype: str, factor: float = FACTOR
) -> Parity:
    """Compare the candidate's tensors with torch.nn's in the measured dtype and in float64.

    For ``dtype`` float64 the baseline is torch.nn's float32 run, from which its float64 error is estimated.
    """
    names = dict.fromkeys([*reference, *candidate])
    return _verdict(check_tensor(n, candidate, baseline, reference, dtype, factor, FLOOR[dtype]) for n in names)


def check_peer(candidate: Tensors, baseline: Tensors, reference: Tensors) -> Parity:
    """Compare another library with torch.nn in float32: its outputs, and its gradients if it has any."""
    names = dict.fromkeys([*(name for name in reference if name.startswith("inference ")), *candidate])
    rule = ("float32", PEER_FACTOR, PEER_FLOOR)
    return _verdict(check_tensor(name, candidate, baseline, reference, *rule) for name in names)


def _verdict(tensors: Iterable[TensorCheck]) -> Parity:
    checks = list(tensors)
    worst = max(checks, key=lambda check: (not check.ok, check.used))
    failed = tuple(check.name for check in checks if not check.ok)
    return Parity(worst, len(checks), failed, max(check.ratio for check in checks))
