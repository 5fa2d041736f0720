"""Checks of measured times: other work on the machine, spread, and more than the machine can do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fastrnn.apps.bench import ratios

if TYPE_CHECKING:
    from fastrnn.apps.bench.results import ModelResult, Results, Row

#: Largest share of the time that other processes may take; on a machine without other work it is below 0.02.
LOST = 0.1
#: Largest quotient of the ends of a speed-up's interval; on a machine without other work it is below 1.8.
SPREAD = 3.0
#: By precision, the largest share of the limit, which is measured with float32 products; at "highest" up to 1.05 has
#: been measured. Products of bfloat16 on a matrix unit may take a sixteenth of the time.
SHARES = {"highest": 1.25, "high": 6.0, "medium": 16.0}
#: Busy mode: largest quotient of mean and median of the calls that ran alone.
QUIET = 2.0


def doubts_of_row(row: Row, precision: str = "highest") -> list[str]:
    """Reasons not to trust a row's times, a few words each."""
    if not row.ok:
        return []
    return [*doubts_of_shares(row.lost_shares()), *_spread(row), *_limit(row, precision), *_quiet(row)]


def doubts_of_model(model: ModelResult) -> list[str]:
    """Reasons not to trust the language model's times."""
    if not model.ok:
        return []
    speedup = model.speedup()
    wide = speedup is not None and speedup.interval[1] > SPREAD * speedup.interval[0]
    found = [f"its blocks are {_times(speedup.interval)} apart"] if wide and speedup else []
    return [*doubts_of_shares(model.lost), *found]


def doubts(results: Results) -> list[str]:
    """Reasons not to trust a run's times, one line each; empty if they may be trusted."""
    precision = results.settings.precision
    lines = [f"{row.case.name}: {why}" for row in results.rows for why in doubts_of_row(row, precision)]
    if results.model is not None:
        lines += [f"language model: {why}" for why in doubts_of_model(results.model)]
    return lines


def doubts_of_shares(shares: Iterable[float]) -> list[str]:
    """The same of the shares of time that rounds lost to other processes: half of them and more were disturbed."""
    typical = ratios.median(list(shares) or [0.0])
    return [f"other processes took {100 * typical:.0f} % of its time"] if typical > LOST else []


def _spread(row: Row) -> list[str]:
    found = []
    for side in ("baseline", *row.peers):
        for metric in row.case.metrics:
            speedup = row.speedup(metric, side)
            if speedup and speedup.interval[1] > SPREAD * speedup.interval[0]:
                found.append(f"rounds of {metric} are {_times(speedup.interval)} apart")
    return found[:1]


def _times(interval: tuple[float, float]) -> str:
    return f"{interval[1] / interval[0]:.1f}×"


def exceeds_limit(row: Row, precision: str) -> bool:
    """Return True if the row took less time than the machine's limit allows."""
    return bool(_limit(row, precision))


def _limit(row: Row, precision: str) -> list[str]:
    shares = {metric: share for metric in row.case.metrics if (share := row.limit_share(metric))}
    worst = max(shares, key=shares.__getitem__, default="")
    if worst and shares[worst] > SHARES[precision]:
        return [f"{worst} reaches {100 * shares[worst]:.0f} % of the machine's limit, which was measured too low"]
    return []


def _quiet(row: Row) -> list[str]:
    for kind, sides in row.samples.items():
        for side, sample in sides.items():
            quiet = sample.get("quiet")
            if quiet and quiet["mean"] > QUIET * quiet["median"]:
                return [f"{kind} of {side} alone took {quiet['mean'] / quiet['median']:.1f}× its median on average"]
    return []
