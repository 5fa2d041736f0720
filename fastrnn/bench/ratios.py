"""Ratios of neighbouring rounds, and what may be said about them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

MINIMUM_ROUNDS = 3


def quantile(values: Sequence[float], fraction: float) -> float:
    """Quantile by linear interpolation between the sorted values; ``fraction`` from 0 to 1."""
    ordered = sorted(values)
    position = fraction * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def median(values: Sequence[float]) -> float:
    return quantile(values, 0.5)


def geometric_mean(values: Iterable[float]) -> float | None:
    """Geometric mean of positive values; None when there are none."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else None


@dataclass(frozen=True)
class Speedup:
    """How many times faster the candidate was: baseline time / candidate time, round by round."""

    median: float
    quartiles: tuple[float, float]
    range: tuple[float, float]
    rounds: int

    @property
    def uncertain(self) -> bool:
        """Half of the rounds lie between the quartiles: when 1 lies there too, which one is faster is not known."""
        return self.quartiles[0] <= 1.0 <= self.quartiles[1]

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "uncertain": self.uncertain}


def compare_rounds(baseline: Sequence[float], candidate: Sequence[float]) -> Speedup | None:
    """Speed-up from seconds per call of each round; None with too few rounds to say anything.

    Only neighbours in time are divided by each other, so a machine that changes its pace during a run does not matter much.
    """
    ratios = [slow / fast for slow, fast in zip(baseline, candidate, strict=True)]
    if len(ratios) < MINIMUM_ROUNDS:
        return None
    return Speedup(
        median=median(ratios),
        quartiles=(quantile(ratios, 0.25), quantile(ratios, 0.75)),
        range=(min(ratios), max(ratios)),
        rounds=len(ratios),
    )


def calls_per_block(seconds_per_call: Sequence[float], block_seconds: float) -> int:
    """Calls in a block, the same for all engines.

    The fastest engine's block lasts ``block_seconds``, unless the slowest would need more than eight times that.
    """
    fastest, slowest = min(seconds_per_call), max(seconds_per_call)
    return max(1, min(round(block_seconds / fastest), round(8 * block_seconds / slowest)))
