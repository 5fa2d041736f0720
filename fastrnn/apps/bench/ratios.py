"""Statistics of rounds: ratios of neighbouring times and the certainty of their median."""

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
RANGE_BELOW = 9  # with fewer rounds median_interval is the whole range
# Two processes of the same engine differ by this much for as long as they live, because their memory is laid out
# differently; more rounds do not help.
BETWEEN_PROCESSES = 0.02


def geometric_mean(values: Iterable[float]) -> float | None:
    """Geometric mean of positive values; None if there are none."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else None


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Interval of the true median with at least 95 % confidence, whatever the distribution (sign test).

    Up to eight values it is their whole range; from nine on it leaves out one value at each end, and so on.
    """
    ordered = sorted(values)
    count, cut, outside = len(ordered), 0, 1.0
    # ``outside``: chance that at most ``cut`` of the values lie on one given side of the median, in units of 2^-count.
    while 2.0 * (outside + math.comb(count, cut + 1)) <= 0.05 * 2.0**count:
        cut += 1
        outside += math.comb(count, cut)
    return ordered[cut], ordered[count - 1 - cut]


@dataclass(frozen=True)
class Speedup:
    """Baseline time / candidate time, round by round."""

    median: float
    interval: tuple[float, float]  # of the median, see median_interval
    range: tuple[float, float]
    rounds: int
    uncertain: bool  # the interval includes 1 or comes within BETWEEN_PROCESSES of it


def compare_rounds(baseline: Sequence[float], candidate: Sequence[float]) -> Speedup | None:
    """Speed-up from the seconds per call of each round; None with fewer than ``MINIMUM_ROUNDS``.

    Only times of the same round are divided, so a machine that changes its pace between rounds matters little.
    """
    ratios = [slow / fast for slow, fast in zip(baseline, candidate, strict=True)]
    if len(ratios) < MINIMUM_ROUNDS:
        return None
    return _speedup(median(ratios), median_interval(ratios), ratios)


def with_quotient(speedup: Speedup | None, baseline: float, candidate: float) -> Speedup | None:
    """The speed-up as the quotient of two times that are shown beside it, inside its interval."""
    if speedup is None:
        return None
    quotient, (low, high) = baseline / candidate, speedup.interval
    found = _speedup(quotient, (min(low, quotient), max(high, quotient)), speedup.range)
    return replace(found, rounds=speedup.rounds)


def _speedup(middle: float, interval: tuple[float, float], ratios: Sequence[float]) -> Speedup:
    uncertain = interval[0] <= 1.0 + BETWEEN_PROCESSES and interval[1] >= 1.0 - BETWEEN_PROCESSES
    return Speedup(middle, interval, (min(ratios), max(ratios)), len(ratios), uncertain)


def calls_per_block(seconds_per_call: Sequence[float], block_seconds: float) -> int:
    """Calls in a block, the same for all engines: the fastest engine's block lasts ``block_seconds``, unless the
    slowest would need more than eight times that.
    """
    fastest, slowest = min(seconds_per_call), max(seconds_per_call)
    return max(1, min(round(block_seconds / fastest), round(8 * block_seconds / slowest)))
