"""Measurements of the demo: layers against torch.nn, and a custom cell against itself as a loop in PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import fastrnn
from fastrnn.apps.bench import ratios, trust
from fastrnn.apps.bench.cases import Case, parse_shapes
from fastrnn.apps.bench.effort import measured
from fastrnn.apps.bench.results import Row, Settings
from fastrnn.apps.bench.runner import Progress, Runner

#: A small batch, where call and step overheads dominate; a usual one; batch rows of different lengths.
CASES = (("lstm", "1x100x128"), ("gru", "16x100x256"), ("lstm", "packed"))
CELL_SHAPE = (100, 16, 128)  # T, B, H
ROUNDS = 5
#: Seconds after which no further layer is started: under load torch.nn may take a hundred times as long.
PATIENCE = 20.0
#: Largest error of the cell's kernels relative to the loop's own, and the floor below which both are rounding.
FACTOR, FLOOR = 2.0, 1e-6


@fastrnn.cell(gates="f u")
def one_state(x: Any, r: Any, s: Any) -> Any:
    """Gated unit with one gate for forgetting and one for reading.

    h' = σ(W_f·x + R_f·h)*h + tanh(W_u·x + R_u·h)
    """
    return torch.sigmoid(x.f + r.f) * s.h + torch.tanh(x.u + r.u)


@dataclass(frozen=True)
class Comparison:
    """A training step in two implementations, compared.

    Attributes:
        name, other: the names of the timed implementation and of the one it is compared with.
        seconds: median times of the other and of fastrnn; None if not timed.
        error: the largest error of any output or gradient against float64, relative to the other's own.
        problem: the reason why there is no speed-up, or an empty string.
        doubts: reasons why the times are unreliable.
    """

    name: str
    other: str
    seconds: tuple[float, float] | None = None
    error: float | None = None
    problem: str = ""
    doubts: list[str] = field(default_factory=list)

    @property
    def speedup(self) -> float | None:
        return None if self.seconds is None else self.seconds[0] / self.seconds[1]


class _Silent(Progress):
    """Progress without output."""

    def _write(self, text: str, end: str) -> None:
        pass


def layers(threads: int | None, cases: tuple[tuple[str, str], ...] = CASES) -> Iterator[Comparison]:
    """Yield each layer once it is timed; engines run in separate processes, alternately, as in ``fastrnn bench``."""
    made = [Case(cell, parse_shapes(shape)[0], "float32") for cell, shape in cases]
    settings = Settings(tuple(made), threads=threads, rounds=ROUNDS, block_seconds=0.02, quick=True, memory=False)
    runner, deadline = Runner(settings, _Silent(len(made))), time.monotonic() + PATIENCE
    try:
        runner.start({})
        for case in made:
            if time.monotonic() > deadline:
                yield Comparison(_name(case), "torch.nn", problem="skipped, because the machine is under load")
                continue
            row = Row(case=case)
            runner.run_case(row)
            yield _of_row(row)
    finally:
        runner.close()


def _name(case: Case) -> str:
    return f"{case.cell.upper()} {case.shape.label}"


def _of_row(row: Row) -> Comparison:
    error = row.parity.ratio if row.parity else None
    if not row.ok:
        return Comparison(_name(row.case), "torch.nn", error=error, problem=row.describe())
    times = row.median("total", "baseline"), row.median("total", "candidate")
    seconds = (times[0], times[1]) if times[0] and times[1] else None
    return Comparison(_name(row.case), "torch.nn", seconds, error, doubts=trust.doubts_of_row(row))


def cell(shape: tuple[int, int, int] = CELL_SHAPE) -> Comparison:
    """Compare `one_state` in its kernels with a loop; the first call compiles."""
    T, B, H = shape
    name, other = f"custom cell {B}x{T}x{H}", "a loop in PyTorch"
    torch.manual_seed(0)
    network, x = one_state(H, H), torch.randn(T, B, H)
    try:
        one_state.build()
    except RuntimeError as missing:  # no compiler
        return Comparison(name, other, problem=str(missing))
    exact = _results(network.double(), x.double(), "reference")
    network.float()
    theirs, ours = (_error(_results(network, x, backend), exact) for backend in ("reference", "fused"))
    error = ours / max(theirs, FLOOR / FACTOR)
    if ours > max(FACTOR * theirs, FLOOR):
        return Comparison(name, other, error=error, problem="FAILED parity")
    times: dict[str, list[float]] = {"reference": [], "fused": []}
    lost = []
    for _ in range(ROUNDS):
        for backend, spent in times.items():
            _, effort = measured(_step(network, x, backend))
            spent.append(effort.wall)
            lost.append(effort.lost(torch.get_num_threads()))
    seconds = ratios.median(times["reference"]), ratios.median(times["fused"])
    return Comparison(name, other, seconds, error, doubts=trust.doubts_of_shares(lost))


def _step(network: torch.nn.Module, x: Tensor, backend: str) -> Callable[[], None]:
    def step() -> None:
        network.zero_grad()
        network(x, backend=backend)[0].square().sum().backward()

    return step


def _results(network: torch.nn.Module, x: Tensor, backend: str) -> list[Tensor]:
    y, _ = network(x, backend=backend)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), list(network.parameters()))]


def _error(results: list[Tensor], exact: list[Tensor]) -> float:
    """Return the largest error of any tensor, relative to its largest magnitude."""
    pairs = zip(results, exact, strict=True)
    return max(((a.double() - b).abs().max() / b.abs().max()).item() for a, b in pairs)
