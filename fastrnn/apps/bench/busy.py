"""How much slower an engine gets when other processes want the cores.

Each engine is timed call by call, first alone, then beside competitors: processes that do nothing but use a core,
pinned nowhere. What is compared is an engine with itself. Medians say what a usual call pays; means, which add up to
the time of a program, also hold the rare call that lost a core for a whole turn of the scheduler.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any

from fastrnn.apps.bench import ratios
from fastrnn.apps.bench.cases import Case
from fastrnn.apps.bench.client import WorkerDiedError, WorkerError
from fastrnn.apps.bench.figures import NOTHING, WORDS, format_seconds, multiply_signs
from fastrnn.apps.bench.runner import SIDES, CaseResult, Note, Runner, Settings

SECONDS = 1.5  # of each engine in each condition
KINDS = {"train": "training", "inference": "inference"}

# Ends by itself when its parent is gone, even if that was killed: a competitor that stays would spoil everything after.
_COMPETITOR = """\
import os, sys
parent = os.getppid()
sys.stdout.write(".")
sys.stdout.close()
while os.getppid() == parent:
    for _ in range(1000000):
        pass
"""


class Competitors:
    """That many busy processes while a ``with`` block runs; they are gone after it, whatever happens in it."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Competitors:
        try:
            for _ in range(self.count):
                command = [sys.executable, "-S", "-c", _COMPETITOR]
                self.processes.append(self._start(command))
            for process in self.processes:
                assert process.stdout is not None
                if process.stdout.read(1) != b".":
                    raise RuntimeError("a competitor did not start")
        except BaseException:
            self.kill()
            raise
        return self

    @staticmethod
    def _start(command: list[str]) -> subprocess.Popen[bytes]:
        # Its last words would be a traceback when Ctrl-C reaches the whole process group.
        quiet = subprocess.DEVNULL
        return subprocess.Popen(command, stdin=quiet, stdout=subprocess.PIPE, stderr=quiet)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self.processes.clear()


@dataclass(frozen=True)
class Stretch:
    """Seconds of single calls."""

    calls: int
    median: float
    mean: float
    highest: float

    @classmethod
    def of(cls, times: Sequence[float]) -> Stretch:
        return cls(len(times), ratios.median(times), sum(times) / len(times), max(times))


@dataclass
class BusyRow:
    """One row: the check's verdict, and kind of block → side → ``quiet`` and ``busy``."""

    checked: CaseResult
    stretches: dict[str, dict[str, dict[str, Stretch]]] = field(default_factory=dict)

    def slowdown(self, kind: str, side: str, figure: str) -> float | None:
        """Busy over quiet ``median`` or ``mean`` of one engine."""
        found = self.stretches.get(kind, {}).get(side, {})
        if self.checked.status != "ok" or len(found) < 2:
            return None
        return float(getattr(found["busy"], figure) / getattr(found["quiet"], figure))

    def as_dict(self) -> dict[str, Any]:
        found = {
            kind: {
                side: {
                    **{name: asdict(stretch) for name, stretch in those.items()},
                    "slowdown": {figure: self.slowdown(kind, side, figure) for figure in ("median", "mean")},
                }
                for side, those in sides.items()
            }
            for kind, sides in self.stretches.items()
        }
        checked = self.checked
        return {
            "case": checked.case.as_dict(),
            "status": checked.status,
            "message": checked.message,
            "engines": found if checked.status == "ok" else {},
        }


@dataclass
class BusyResults:
    """Grows row by row."""

    settings: Settings
    environment: dict[str, Any]
    competitors: int
    seconds: float = field(default_factory=lambda: SECONDS)
    rows: list[BusyRow] = field(default_factory=list)
    complete: bool = False

    @property
    def problems(self) -> list[str]:
        bad = [row.checked for row in self.rows if row.checked.status in ("failed", "error")]
        return [f"{row.case.name}: {WORDS[row.status]}, {row.message}" for row in bad]

    def means(self, kind: str, side: str) -> dict[str, float | None]:
        """Geometric means over the rows, of the slow-downs by median and by mean."""
        found = {}
        for figure in ("median", "mean"):
            values = [row.slowdown(kind, side, figure) for row in self.rows]
            found[figure] = ratios.geometric_mean([value for value in values if value is not None])
        return found

    def as_dict(self) -> dict[str, Any]:
        sides = [*SIDES, *self.settings.peers]
        return {
            "schema": "fastrnn-bench-busy/1",
            "complete": self.complete,
            "environment": self.environment,
            "settings": {
                "engines": {"baseline": self.settings.baseline, "candidate": self.settings.candidate},
                "peers": list(self.settings.peers),
                "threads": self.settings.threads,
                "competitors": self.competitors,
                "seconds": self.seconds,
                "seed": self.settings.seed,
            },
            "problems": self.problems,
            "summary": {kind: {side: self.means(kind, side) for side in sides} for kind in KINDS},
            "rows": [row.as_dict() for row in self.rows],
        }


def run_row(runner: Runner, case: Case, competitors: int, seconds: float, note: Note = lambda text: None) -> BusyRow:
    """Check one case and time it alone and beside competitors. Errors and dead workers end up in the row."""
    note("parity")
    row = BusyRow(runner.check_case(case))
    if row.checked.status != "ok":
        return row
    try:
        sides = [*SIDES, *(name for name, peer in row.checked.peers.items() if peer.status == "ok")]
        able = {side: runner.worker(side).call("prepare", case=case, seed=runner.settings.seed) for side in sides}
        _sample(runner, row, "quiet", able, seconds, note)
        with Competitors(competitors):
            _sample(runner, row, "busy", able, seconds, note)
        for side in sides:
            runner.worker(side).call("release")
    except (WorkerError, WorkerDiedError) as error:
        row.checked.status, row.checked.message = "error", str(error)
    return row


def _sample(
    runner: Runner, row: BusyRow, condition: str, able: dict[str, dict[str, float]], seconds: float, note: Note
) -> None:
    """``able``: the kinds of block of each side."""
    for kind in KINDS:
        for side in (side for side, kinds in able.items() if kind in kinds):
            note(f"{condition}, {KINDS[kind]}, {runner.engines[side]}")
            times = runner.worker(side).call("samples", kind=kind, seconds=seconds)
            row.stretches.setdefault(kind, {}).setdefault(side, {})[condition] = Stretch.of(times)


EXPLANATION = (
    "Quiet: median time of a call while nothing else runs. Slower: the time beside the busy processes divided by the "
    "engine's own quiet time, by the medians and in brackets by the means of all calls in {seconds:g} s or more. If "
    "all who want a core were treated alike, an engine would take (threads + busy processes) / cores times as long."
)


def count_processes(count: int) -> str:
    return f"{count} busy process{'es' if count != 1 else ''}"


def to_tables(results: BusyResults, names: dict[str, str]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows for training and for inference. ``names``: labels by side."""
    tables = []
    for kind, title in KINDS.items():
        sides = [side for side in names if any(side in row.stretches.get(kind, {}) for row in results.rows)]
        header = ["row"]
        for side in sides or SIDES:
            header += [f"{names[side]}\nquiet", f"{names[side]}\nslower (mean)"]
        rows = [_cells(row, kind, sides or SIDES) for row in results.rows]
        if sides:
            means = [results.means(kind, side) for side in sides]
            cells = [text for mean in means for text in (NOTHING, _times(mean["median"], mean["mean"]))]
            rows.append(["geometric mean", *cells])
        tables.append((f"{title} beside {count_processes(results.competitors)}", header, rows))
    return tables


def _cells(row: BusyRow, kind: str, sides: Sequence[str]) -> list[str]:
    case = row.checked.case
    name = multiply_signs(case.name)
    if row.checked.status != "ok":
        return [name, WORDS[row.checked.status], *[NOTHING] * (2 * len(sides) - 1)]
    cells = [name]
    for side in sides:
        found = row.stretches.get(kind, {}).get(side)
        if found is None:
            cells += [NOTHING] * 2
            continue
        quiet = found["quiet"]
        slower = _times(row.slowdown(kind, side, "median"), row.slowdown(kind, side, "mean"))
        cells += [format_seconds(quiet.median), slower]
    return cells


def _times(median: float | None, mean: float | None) -> str:
    return NOTHING if median is None or mean is None else f"{median:.2f}× ({mean:.2f}×)"
