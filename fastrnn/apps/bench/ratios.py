"""Statistics of rounds: ratios of adjacent times, and the confidence interval of their median."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

__all__ = [
    "Speedup",
    "calls_per_block",
    "compare_rounds",
    "geometric_mean",
    "median",
    "median_interval",
    "with_quotient",
]

MINIMUM_ROUNDS = 3
RANGE_BELOW = 9  # with fewer rounds, median_interval returns the whole range
# Two processes of the same engine differ by this much throughout their life, because of their memory layout; more
# rounds do not help.
BETWEEN_PROCESSES = 0.02


def geometric_mean(values: Iterable[float]) -> float | None:
    """Return the geometric mean of positive values; None if there are none."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else None


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return an interval that contains the true median with at least 95 % confidence, for any distribution (sign test).

    Up to eight values it is their whole range; from nine on it excludes one value at each end, and so on.
    """
    ordered = sorted(values)
    count, excluded, tail = len(ordered), 0, 1.0
    # ``tail``: probability that at most ``excluded`` values lie on a given side of the median, in units of 2^-count
    while 2.0 * (tail + math.comb(count, excluded + 1)) <= 0.05 * 2.0**count:
        excluded += 1
        tail += math.comb(count, excluded)
    return ordered[excluded], ordered[count - 1 - excluded]


@dataclass(frozen=True)
class Speedup:
    """Baseline time / candidate time, round by round."""

    median: float
    interval: tuple[float, float]  # of the median, see median_interval
    range: tuple[float, float]
    rounds: int
    uncertain: bool  # the interval includes 1 or comes within BETWEEN_PROCESSES of it


def compare_rounds(baseline: Sequence[float], candidate: Sequence[float]) -> Speedup | None:
    """Return the speed-up from the seconds per call of each round; None with fewer than ``MINIMUM_ROUNDS``.

    Only times of the same round are divided, so that changes of the machine's speed between rounds matter little.
    """
    ratios = [slow / fast for slow, fast in zip(baseline, candidate, strict=True)]
    if len(ratios) < MINIMUM_ROUNDS:
        return None
    return _speedup(median(ratios), median_interval(ratios), ratios)


def with_quotient(speedup: Speedup | None, baseline: float, candidate: float) -> Speedup | None:
    """Return the speed-up as the quotient of two displayed times, clamped to its interval."""
    if speedup is None:
        return None
    quotient, (low, high) = baseline / candidate, speedup.interval
    result = _speedup(quotient, (min(low, quotient), max(high, quotient)), speedup.range)
    return replace(result, rounds=speedup.rounds)


def _speedup(middle: float, interval: tuple[float, float], ratios: Sequence[float]) -> Speedup:
    uncertain = interval[0] <= 1.0 + BETWEEN_PROCESSES and interval[1] >= 1.0 - BETWEEN_PROCESSES
    return Speedup(middle, interval, (min(ratios), max(ratios)), len(ratios), uncertain)


def calls_per_block(seconds_per_call: Sequence[float], block_seconds: float) -> int:
    """Return the calls in a block, equal for all engines.

    The fastest engine's block lasts ``block_seconds``, unless the slowest would need more than eight times that.
    """
    fastest, slowest = min(seconds_per_call), max(seconds_per_call)
    return max(1, min(round(block_seconds / fastest), round(8 * block_seconds / slowest)))
