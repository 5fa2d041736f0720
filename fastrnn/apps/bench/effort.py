"""The processor time that a piece of work got, beside its wall time: shows whether other processes took the cores."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TASKS = Path("/proc/self/task")


@dataclass(frozen=True)
class Effort:
    """Seconds of a piece of work.

    Attributes:
        wall: from its start to its end.
        cpu: in which the calling thread ran.
        waited: which threads of the process waited for a core, all together; 0 where the system does not tell.
    """

    wall: float
    cpu: float
    waited: float

    def lost(self, threads: int) -> float:
        """The share of the time that was lost to others: of the calling thread, or of all threads if that is more."""
        if self.wall <= 0:
            return 0.0
        return max(0.0, 1 - self.cpu / self.wall, self.waited / (self.wall * threads))


def measured(work: Callable[[], Any]) -> tuple[Any, Effort]:
    """Run ``work``. Returns its result and what it took."""
    waited, wall, cpu = _waited(), time.perf_counter(), time.thread_time()
    result = work()
    cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
    return result, Effort(wall, cpu, max(0.0, _waited() - waited))


def _waited() -> float:
    """Seconds that the threads of this process have been runnable without running (Linux: schedstat)."""
    total = 0
    try:
        for task in _TASKS.iterdir():
            total += int((task / "schedstat").read_text().split()[1])
    except (OSError, IndexError, ValueError):  # another system, or a thread that has just ended
        return 0.0
    return total / 1e9
