"""Time per step against one size at a time: hidden units, batch rows, length, threads.

The points are ordinary rows (checked, then timed in turns) and their figures are the rows' figures. Length is measured
as a stream: passes of at most ``CHUNK`` steps without a graph, each from the state in which the last one ended, so that
100 000 steps need no more memory than 1000.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastrnn.apps.bench.cases import Case, Shape
from fastrnn.apps.bench.figures import NOTHING, WORDS, format_seconds, format_speedup
from fastrnn.apps.bench.runner import SIDES, CaseResult, Settings

ROUNDS, QUICK_ROUNDS = 5, 3
CHUNK = 1000

HIDDEN_SIZES = (32, 64, 128, 256, 512, 1024)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (100, 1000, 10_000, 100_000)


@dataclass(frozen=True)
class Axis:
    """One column of the picture."""

    name: str  # in the JSON
    label: str
    fixed: str  # the other sizes


AXES = (
    Axis("hidden", "hidden units H", "B = 1, T = 100, I = H"),
    Axis("batch", "batch rows B", "T = 50, I = H = 256"),
    Axis("steps", "steps T, in chunks of at most 1000", "B = 1, I = H = 128, state handed on"),
    Axis("threads", "threads", "16×100×256"),
)


@dataclass(frozen=True)
class Point:
    """What to measure for one value on one axis."""

    axis: str
    value: int
    case: Case
    threads: int | None


@dataclass
class ScalingResults:
    """Grows point by point."""

    settings: Settings
    environment: dict[str, Any]
    points: list[tuple[Point, CaseResult]] = field(default_factory=list)
    complete: bool = False

    @property
    def problems(self) -> list[str]:
        bad = [row for _, row in self.points if row.status in ("failed", "error")]
        return [f"{row.case.name}: {WORDS[row.status]}, {row.message}" for row in bad]

    @property
    def axes(self) -> list[Axis]:
        """Those with points."""
        names = {point.axis for point, _ in self.points}
        return [axis for axis in AXES if axis.name in names]

    @property
    def cells(self) -> list[str]:
        return list(dict.fromkeys(point.case.cell for point, _ in self.points))

    def rows(self, cell: str, axis: str) -> list[tuple[int, CaseResult]]:
        """Values and results of one panel, in order."""
        return [(point.value, row) for point, row in self.points if (point.case.cell, point.axis) == (cell, axis)]

    def as_dict(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "schema": "fastrnn-bench-scaling/1",
            "complete": self.complete,
            "environment": self.environment,
            "settings": {
                "engines": {"baseline": settings.baseline, "candidate": settings.candidate},
                "peers": list(settings.peers),
                "threads": settings.threads,
                "precision": settings.precision,
                "rounds": settings.rounds,
                "block_seconds": settings.block_seconds,
                "seed": settings.seed,
            },
            "problems": self.problems,
            "points": [
                {"axis": point.axis, "value": point.value, "threads": point.threads, **row.as_dict()}
                for point, row in self.points
            ],
        }


def seconds_per_step(row: CaseResult, metric: str, side: str) -> float | None:
    """Median over the rounds."""
    seconds = row.median_seconds(metric, side)
    return None if seconds is None else seconds / (row.case.shape.steps * max(1, row.case.chunks))


def make_points(
    cells: Sequence[str], dtype: str, threads: int, shrink: int = 1, sizes: tuple[int, ...] = HIDDEN_SIZES
) -> Iterator[Point]:
    """Every point, those of one number of threads together.

    Args:
        cells: names of cells.
        dtype: number format.
        threads: of all points but those of the axis ``threads``, which go from one to as many; none, if that is one.
        shrink: leave out all but every so-many-th value (the first and the last stay).
        sizes: hidden sizes.
    """

    def some(values: Sequence[int]) -> list[int]:
        return [value for n, value in enumerate(values) if n % shrink == 0 or n == len(values) - 1]

    for cell in cells:
        for size in some(sizes):
            yield Point("hidden", size, Case(cell, Shape(1, 100, size, size), dtype), threads)
        for size in some(BATCH_SIZES):
            yield Point("batch", size, Case(cell, Shape(size, 50, 256, 256), dtype), threads)
        for size in some(LENGTHS):
            chunk = min(size, CHUNK)
            yield Point("steps", size, Case(cell, Shape(1, chunk, 128, 128), dtype, chunks=size // chunk), threads)
    for count in thread_counts(threads) if threads > 1 else ():
        for cell in cells:
            yield Point("threads", count, Case(cell, Shape(16, 100, 256, 256), dtype), count)


def thread_counts(most: int) -> list[int]:
    """1, 2, 4 … and the most itself."""
    return [*(2**power for power in range(most.bit_length()) if 2**power < most), most]


def settings_of(settings: Settings, threads: int | None) -> Settings:
    """The settings of the runner for the points with that many threads."""
    return replace(settings, threads=threads, memory=False, model=None, steps=())


def to_tables(results: ScalingResults, names: dict[str, str]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows for every panel: time per step of every side, speed-up. ``names``: labels by side."""
    tables = []
    for cell in results.cells:
        for axis in AXES:
            rows = results.rows(cell, axis.name)
            if not rows:
                continue
            metrics = ("stream",) if axis.name == "steps" else ("total", "inference")
            header = [axis.label]
            sides = {metric: _timed(rows, metric, names) for metric in metrics}
            for metric in metrics:
                kind = {"total": "training\n", "inference": "inference\n", "stream": "inference\n"}[metric]
                header += [*(kind + names[side] for side in sides[metric]), kind + "speed-up"]
            cells = [_cells(value, row, sides) for value, row in rows]
            tables.append((f"{cell}, time per step, {axis.fixed}", header, cells))
    return tables


def _timed(rows: Iterable[tuple[int, CaseResult]], metric: str, names: Iterable[str]) -> list[str]:
    """Sides that were timed in any of the rows; baseline and candidate in any case."""
    return [side for side in names if side in SIDES or any(row.median_seconds(metric, side) for _, row in rows)]


def _cells(value: int, row: CaseResult, sides: dict[str, list[str]]) -> list[str]:
    if row.status != "ok":
        return [f"{value:,}", WORDS[row.status], *[NOTHING] * (sum(len(those) + 1 for those in sides.values()) - 1)]
    cells = [f"{value:,}"]
    for metric, those in sides.items():
        cells += [format_seconds(seconds_per_step(row, metric, side)) for side in those]
        cells.append(format_speedup(row.speedup(metric), spread=True))
    return cells
