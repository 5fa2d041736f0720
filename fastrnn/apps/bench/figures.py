"""Numbers as text, the same in every table and picture."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Protocol

from fastrnn.apps.bench.engines import find_engine

if TYPE_CHECKING:
    from fastrnn.apps.bench.ratios import Speedup
    from fastrnn.apps.bench.runner import Settings

NOTHING = "–"
MIB = 2**20
WORDS = {"failed": "FAILED parity", "error": "ERROR", "skipped": "skipped"}


def format_seconds(seconds: float | None) -> str:
    """Three significant digits in µs, ms or s."""
    if seconds is None:
        return NOTHING
    for unit, scale in (("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)):
        value = seconds / scale
        if value < 999.5 or unit == "s":
            digits = max(0, 2 - math.floor(math.log10(float(f"{value:.3g}")))) if value > 0 else 0
            return f"{value:.{digits}f} {unit}"
    raise AssertionError


def format_speedup(speedup: Speedup | None, spread: bool = False) -> str:
    """``2.31×``, with ``spread`` also its interval; ``~`` where it may be nothing."""
    if speedup is None:
        return NOTHING
    text = f"{'~' if speedup.uncertain else ''}{speedup.median:.2f}×"
    return f"{text} ({speedup.interval[0]:.2f}–{speedup.interval[1]:.2f})" if spread else text


def format_memory(size: int | None) -> str:
    """MiB; what is below one MiB is below the resolution too."""
    if size is None:
        return "n/a"
    return "<1" if size < MIB else f"{size / MIB:.0f}" if size >= 10 * MIB else f"{size / MIB:.1f}"


def format_share(share: float | None) -> str:
    """Per cent, two digits."""
    if share is None:
        return NOTHING
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"


def multiply_signs(text: str) -> str:
    """``16x100x256`` as people write it."""
    return re.sub(r"(?<=\d)x(?=\d)", "×", text)


class HasSettings(Protocol):
    @property
    def settings(self) -> Settings:
        """Whose engines they are."""


def labels(results: HasSettings) -> tuple[str, str]:
    """Names of baseline and candidate for people."""
    settings = results.settings
    baseline, candidate = find_engine(settings.baseline).label, find_engine(settings.candidate).label
    return baseline, candidate if candidate != baseline else f"{candidate} again"


def side_labels(results: HasSettings) -> dict[str, str]:
    """Names for people of every side: baseline, candidate, peers."""
    baseline, candidate = labels(results)
    peers = {name: find_engine(name).label for name in results.settings.peers}
    return {"baseline": baseline, "candidate": candidate, **peers}
