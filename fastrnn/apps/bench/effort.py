"""Processor time next to wall time of a piece of work, which shows whether other processes took the cores."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TASKS = Path("/proc/self/task")


@dataclass(frozen=True)
class Effort:
    """Times of a piece of work, in seconds.

    Attributes:
        wall: wall time from start to end.
        cpu: processor time of the calling thread.
        waited: time that runnable threads of the process waited for a core, summed; 0 if the system does not report it.
    """

    wall: float
    cpu: float
    waited: float

    def lost(self, threads: int) -> float:
        """Return the share of time lost to other processes: for the calling thread, or for all threads if higher."""
        if self.wall <= 0:
            return 0.0
        share = max(1 - self.cpu / self.wall, self.waited / (self.wall * threads))
        return min(max(share, 0.0), 1.0)  # more threads than ``threads`` may wait


def measured(work: Callable[[], Any]) -> tuple[Any, Effort]:
    """Run ``work``; return its result and its effort."""
    waited, wall, cpu = _waited(), time.perf_counter(), time.thread_time()
    result = work()
    cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
    return result, Effort(wall, cpu, max(0.0, _waited() - waited))


def _waited() -> float:
    """Return the seconds that this process's threads were runnable without running (Linux: schedstat)."""
    total = 0
    with contextlib.suppress(OSError):  # another system
        for task in _TASKS.iterdir():
            with contextlib.suppress(OSError, IndexError, ValueError):  # a thread that has just ended
                total += int((task / "schedstat").read_text().split()[1])
    return total / 1e9
