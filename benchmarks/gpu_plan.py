"""csrc/cuda/plan.cpp again, in Python: which driver runs a call, how a persistent one is cut, and the model's time.

The constants are read out of plan.cpp, the rest is written a second time, so that reports and fits can take the
model's time apart; tests/cuda/test_gpu_model.py compares the two. Letters: B rows of the batch, H hidden size.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PLAN = ROOT / "csrc" / "cuda" / "plan.cpp"
KB = 1024

# csrc/cuda/args.h
THREADS, WARPS, TILE_ROWS, TILE_COLUMNS, ROW_TILES, COLUMN_TILES = 256, 8, 16, 8, 2, 4
PASS_COLUMNS = TILE_COLUMNS * COLUMN_TILES


class Format(NamedTuple):
    """A persistent kernel's number format: bytes of a number, numbers of the depth in a block, tensor cores or not."""

    bytes: int
    depth_block: int
    tensor: bool


FORMATS = {
    "bfloat16": Format(2, 32, True),
    "float16": Format(2, 32, True),
    "tf32": Format(4, 16, True),
    "float32": Format(4, 4, False),
}


class Cell(NamedTuple):
    recurrent: int  # R, gates with a recurrent product
    states: int


CELLS = {"lstm": Cell(4, 2), "gru": Cell(3, 1), "rnn_tanh": Cell(1, 1)}


@dataclass(frozen=True)
class Machine:
    """What the choice depends on, and what occupancy does (CUDA programming guide, technical specifications).

    shared_bytes: that a block may ask for; processor_shared: of a multiprocessor, of which each block costs a further
    kilobyte.
    """

    name: str
    processors: int
    shared_bytes: int
    largest_cluster: int
    architecture: str
    processor_shared: int


H100 = Machine("H100", 132, 227 * KB, 16, "sm_90a", 228 * KB)
A100 = Machine("A100", 108, 163 * KB, 0, "sm_80", 164 * KB)


@dataclass(frozen=True)
class Problem:
    cell: str
    fmt: str
    B: int
    H: int
    backward: bool


@dataclass(frozen=True)
class Tiling:
    """args.h: Tiling."""

    units: int
    unit_slices: int
    rows: int
    row_slices: int
    matrix_rows: int
    depth: int
    warps_across: int
    warps_deep: int
    cluster: bool
    shared_bytes: int = 0


@dataclass(frozen=True)
class Choice:
    driver: str
    microseconds: float
    tiling: Tiling | None = None


def up(n: int, to: int) -> int:
    return -(-n // to) * to


def constants(text: str | None = None) -> dict[str, float]:
    """plan.cpp's constants by name; raises ValueError if one that the model needs is not there."""
    text = PLAN.read_text(encoding="utf-8") if text is None else text
    found: dict[str, float] = {}
    for line in re.findall(r"^constexpr double (.+?);", text, re.MULTILINE):
        found |= {name: float(value) for name, value in re.findall(r"(k\w+) = ([\d.e+-]+)", line)}
    missing = [name for name in NAMES if name not in found]
    if missing:
        raise ValueError(f"plan.cpp: expected constants {', '.join(missing)}, found {', '.join(found)}")
    return found


NAMES = ("kGridBarrier", "kClusterBarrier", "kLaunches", "kAlone", "kTensorRate", "kPlainRate", "kSharedRate")
NAMES += ("kOperandRate", "kUnitRate")


def shared_bytes(t: Tiling, cell: Cell, fmt: Format) -> int:
    """persistent.h: Share::shared_bytes: the matrix, partial sums, states, and a cluster's two operands."""
    matrix = t.matrix_rows * t.depth * fmt.bytes
    partials = t.warps_deep * min(PASS_COLUMNS, up(t.rows, TILE_COLUMNS)) * (t.matrix_rows + 4) * 4
    states = up(cell.states * t.rows * t.units * 4, 16)
    return matrix + partials + states + (2 * operand_bytes(t, fmt) if t.cluster else 0)


def operand_bytes(t: Tiling, fmt: Format) -> int:
    """Of what a group exchanges in a step, with its padding."""
    return up(t.rows, TILE_COLUMNS) * t.depth * fmt.bytes


def cut(p: Problem, unit_slices: int, row_slices: int, cluster: bool) -> Tiling:
    """How a call is cut into about so many slices. It may be none that fits: see `cuts`."""
    cell, fmt = CELLS[p.cell], FORMATS[p.fmt]
    units = up(-(-p.H // unit_slices), 8)
    rows = -(-p.B // row_slices)
    matrix_rows = up(units if p.backward else cell.recurrent * units, 8)
    tiles = -(-matrix_rows // TILE_ROWS)
    across = -(-tiles // ROW_TILES)
    t = Tiling(
        units=units,
        unit_slices=-(-p.H // units),
        rows=rows,
        row_slices=-(-p.B // rows),
        matrix_rows=matrix_rows,
        depth=up(cell.recurrent * p.H if p.backward else p.H, fmt.depth_block),
        warps_across=across,
        warps_deep=max(1, WARPS // across),
        cluster=cluster,
    )
    return dataclasses.replace(t, shared_bytes=shared_bytes(t, cell, fmt))


def cuts(p: Problem, m: Machine, cluster: bool) -> Iterator[Tiling]:
    """All ways that plan.cpp considers, in its order."""
    if cluster:
        sizes = [1 << k for k in range(10) if 1 << k <= m.largest_cluster]
    else:
        size, sizes = min(m.processors, -(-p.H // 8)), []
        while size >= 1:
            sizes.append(size)
            size //= 2
    for size in sizes:
        rows = 1
        while rows * size <= m.processors:
            t = cut(p, size, rows, cluster)
            if t.warps_across <= WARPS and t.shared_bytes <= m.shared_bytes:
                yield t
            rows *= 2


class Parts(NamedTuple):
    """A step's time in microseconds."""

    wait: float
    product: float
    operand: float
    units: float

    @property
    def total(self) -> float:
        return self.wait + self.product + self.operand + self.units


def parts(t: Tiling, fmt: Format, c: Mapping[str, float]) -> Parts:
    """plan.cpp: step_time."""
    columns = up(t.rows, TILE_COLUMNS)
    product = up(t.matrix_rows, TILE_ROWS) * t.depth * columns
    passes = up(t.rows, PASS_COLUMNS) // PASS_COLUMNS
    matrix = t.matrix_rows * t.depth * fmt.bytes * passes
    operand = t.depth * columns * fmt.bytes * t.warps_across
    wait = c["kGridBarrier"] if not t.cluster else c["kClusterBarrier"] if t.unit_slices > 1 else c["kAlone"]
    rate = c["kTensorRate"] if fmt.tensor else c["kPlainRate"]
    return Parts(
        wait,
        max(product / rate, matrix / c["kSharedRate"]),
        0.0 if t.cluster else operand / c["kOperandRate"],
        t.units * t.rows / c["kUnitRate"],
    )


def stepwise_time(p: Problem, c: Mapping[str, float]) -> float:
    return c["kLaunches"] + p.B * p.H * p.H * CELLS[p.cell].recurrent / (100 * c["kPlainRate"])


def clusters_at_once(m: Machine, size: int) -> int:
    """As the machine would be if all its processors were alike. The real number is the occupancy calculator's."""
    return m.processors // size


def choose(p: Problem, m: Machine, c: Mapping[str, float], wanted: str = "auto") -> Choice | None:
    """The driver that plan.cpp chooses, or the best way to cut for the one that is wanted; None if that cannot be."""
    best = Choice("stepwise", stepwise_time(p, c)) if wanted in ("auto", "stepwise") else None
    if wanted == "stepwise":
        return best
    for driver in ("grid", "cluster"):
        if wanted not in ("auto", driver):
            continue
        for t in cuts(p, m, driver == "cluster"):
            time = parts(t, FORMATS[p.fmt], c).total
            if t.cluster:
                time *= -(-t.row_slices // clusters_at_once(m, t.unit_slices))
            elif t.unit_slices * t.row_slices > m.processors:
                continue
            if best is None or time < best.microseconds:
                best = Choice(driver, time, t)
    return best
