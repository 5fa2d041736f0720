"""What benchmarks/gpu_tune.py measures, in which order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gpu_plan import Machine, Problem, Tiling, cut, cuts

LENGTHS = (64, 576)  # steps of the two calls whose difference counts
#: Stages that can be left out, as in csrc/cuda/stages.h.
STAGES = {"exchange": 1, "product": 2, "unit": 4, "wait": 8}
LIBRARY = "cudnn"


@dataclass(frozen=True)
class Point:
    """What is measured. driver: also "cudnn". slices: 0 where there are none. without: a stage that is left out."""

    cell: str
    fmt: str
    B: int
    H: int
    backward: bool
    driver: str
    unit_slices: int = 0
    row_slices: int = 0
    without: str = ""

    @property
    def problem(self) -> Problem:
        return Problem(self.cell, self.fmt, self.B, self.H, self.backward)

    def tiling(self) -> Tiling | None:
        if not self.unit_slices:
            return None
        return cut(self.problem, self.unit_slices, self.row_slices, self.driver == "cluster")


class CannotMeasureError(Exception):
    """Why a point cannot be had on this machine."""


#: Microseconds of a step; raises CannotMeasureError.
Meter = Callable[[Point], float]


def shapes() -> Iterator[tuple[str, str, int, int, bool]]:
    """Cell, format, B, H, backward: the ones with a target, then further away from them. Each once."""
    listed = [
        (("lstm",), ("bfloat16",), (16,), (512, 1024), (False, True)),
        (("lstm",), ("bfloat16",), (16,), (128, 256, 768, 1536), (False, True)),
        (("lstm",), ("bfloat16",), (1, 64), (512, 1024), (False, True)),
        (("lstm",), ("float32", "tf32"), (16,), (256, 512, 1024), (False, True)),
        (("gru", "rnn_tanh"), ("bfloat16",), (16,), (256, 1024, 2048), (False, True)),
        (("lstm", "gru"), ("bfloat16",), (8, 32, 128), (256, 1024), (False, True)),
        (("lstm",), ("float16",), (16, 64), (512, 1024), (False, True)),
    ]
    seen = set()
    for group in listed:
        for shape in itertools.product(*group):
            if shape not in seen:
                seen.add(shape)
                yield shape


def points(m: Machine) -> Iterator[Point]:
    """All that is to be measured, the most valuable first."""
    for number, (cell, fmt, B, H, backward) in enumerate(shapes()):
        problem = Problem(cell, fmt, B, H, backward)
        found = [(driver, t) for driver in ("cluster", "grid") for t in cuts(problem, m, driver == "cluster")]
        found = list(dict.fromkeys(found))
        for driver, t in found:
            yield Point(cell, fmt, B, H, backward, driver, t.unit_slices, t.row_slices)
        for driver in ("stepwise", LIBRARY):
            yield Point(cell, fmt, B, H, backward, driver)
        if number < 4:  # one way for each driver: as many blocks as there are
            for driver in ("cluster", "grid"):
                ways = [t for name, t in found if name == driver]
                if ways:
                    t = max(ways, key=lambda t: t.unit_slices * t.row_slices)
                    for stage in STAGES:
                        yield Point(cell, fmt, B, H, backward, driver, t.unit_slices, t.row_slices, stage)
