"""Plausibility checks of measured times: other load on the machine, spread, and times below the machine's limit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fastrnn.apps.bench import ratios

if TYPE_CHECKING:
    from fastrnn.apps.bench.results import ModelResult, Results, Row

#: Largest share of time that other processes may take; without other load it is below 0.02.
LOST = 0.1
#: Largest ratio of the ends of a speed-up's interval; without other load it is below 1.8.
SPREAD = 3.0
#: By precision setting, the largest share of the limit, which is measured with float32 products; at "highest" up to
#: 1.05 has been measured. bfloat16 products in AMX, the CPU's matrix unit, may take a sixteenth of the time.
SHARES = {"highest": 1.25, "high": 6.0, "medium": 16.0}
#: Busy mode: largest ratio of mean and median of the calls that ran alone.
QUIET = 2.0


def doubts_of_row(row: Row, precision: str = "highest") -> list[str]:
    """Return the reasons why a row's times are unreliable, a few words each."""
    if not row.ok:
        return []
    return [*doubts_of_shares(row.lost_shares()), *_spread(row), *_limit(row, precision), *_quiet(row)]


def doubts_of_model(model: ModelResult) -> list[str]:
    """Return the reasons why the language model's times are unreliable."""
    if not model.ok:
        return []
    speedup = model.speedup()
    wide = speedup is not None and speedup.interval[1] > SPREAD * speedup.interval[0]
    spread = [f"its blocks differ by {_times(speedup.interval)}"] if wide and speedup else []
    return [*doubts_of_shares(model.lost), *spread]


def doubts(results: Results) -> list[str]:
    """Return the reasons why a run's times are unreliable, one line each; empty if they are reliable."""
    precision = results.settings.precision
    lines = [f"{row.case.name}: {why}" for row in results.rows for why in doubts_of_row(row, precision)]
    if results.model is not None:
        lines += [f"language model: {why}" for why in doubts_of_model(results.model)]
    return lines


def doubts_of_shares(shares: Iterable[float]) -> list[str]:
    """Return the same for the shares of time that rounds lost to other processes, judged by their median."""
    typical = ratios.median(list(shares) or [0.0])
    return [f"other processes took {100 * typical:.0f} % of its time"] if typical > LOST else []


def _spread(row: Row) -> list[str]:
    reasons = []
    for side in ("baseline", *row.peers):
        for metric in row.case.metrics:
            speedup = row.speedup(metric, side)
            if speedup and speedup.interval[1] > SPREAD * speedup.interval[0]:
                reasons.append(f"rounds of {metric} differ by {_times(speedup.interval)}")
    return reasons[:1]


def _times(interval: tuple[float, float]) -> str:
    return f"{interval[1] / interval[0]:.1f}×"


def exceeds_limit(row: Row, precision: str) -> bool:
    """Return True if the row took less time than the machine's limit allows."""
    return bool(_limit(row, precision))


def _limit(row: Row, precision: str) -> list[str]:
    shares = {metric: share for metric in row.case.metrics if (share := row.limit_share(metric))}
    worst = max(shares, key=shares.__getitem__, default="")
    if worst and shares[worst] > SHARES[precision]:
        return [f"{worst} reaches {100 * shares[worst]:.0f} % of the machine's limit, whose measurement is too low"]
    return []


def _quiet(row: Row) -> list[str]:
    for kind, sides in row.samples.items():
        for side, sample in sides.items():
            quiet = sample.get("quiet")
            if quiet and quiet["mean"] > QUIET * quiet["median"]:
                return [f"{kind} of {side} alone took {quiet['mean'] / quiet['median']:.1f}× its median on average"]
    return []
