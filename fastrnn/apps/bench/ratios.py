"""Ratios of neighbouring rounds, and what may be said about them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

MINIMUM_ROUNDS = 3
RANGE_BELOW = 9  # with fewer rounds median_interval is the whole range
BETWEEN_PROCESSES = 0.02


def median(values: Sequence[float]) -> float:
    """Middle value, or the mean of the two in the middle."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2.0


def geometric_mean(values: Iterable[float]) -> float | None:
    """Geometric mean of positive values; None when there are none."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else None


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the true median lies with at least 95 % confidence, whatever the distribution (the sign test's interval).

    With fewer than six values nothing has that confidence; then it is their whole range. So it is up to eight values,
    from nine on one value at each end may be left out, and so on.
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
    """How many times faster the candidate was: baseline time / candidate time, round by round."""

    median: float
    interval: tuple[float, float]  # of the median, see median_interval
    range: tuple[float, float]
    rounds: int

    @property
    def uncertain(self) -> bool:
        """Whether it may be no difference at all: the interval includes 1, or comes so near that no one would notice.

        Two processes of one and the same engine differ by as much, each for as long as it lives, because their memory
        lies differently; no number of rounds takes that away.
        """
        return self.interval[0] <= 1.0 + BETWEEN_PROCESSES and self.interval[1] >= 1.0 - BETWEEN_PROCESSES

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "uncertain": self.uncertain}


def compare_rounds(baseline: Sequence[float], candidate: Sequence[float]) -> Speedup | None:
    """Speed-up from seconds per call of each round; None with too few rounds to say anything.

    Only neighbours in time are divided by each other, so a machine that changes its pace during a run does not matter
    much.
    """
    ratios = [slow / fast for slow, fast in zip(baseline, candidate, strict=True)]
    if len(ratios) < MINIMUM_ROUNDS:
        return None
    return Speedup(
        median=median(ratios),
        interval=median_interval(ratios),
        range=(min(ratios), max(ratios)),
        rounds=len(ratios),
    )


def calls_per_block(seconds_per_call: Sequence[float], block_seconds: float) -> int:
    """Calls in a block, the same for all engines.

    The fastest engine's block lasts ``block_seconds``, unless the slowest would need more than eight times that.
    """
    fastest, slowest = min(seconds_per_call), max(seconds_per_call)
    return max(1, min(round(block_seconds / fastest), round(8 * block_seconds / slowest)))
