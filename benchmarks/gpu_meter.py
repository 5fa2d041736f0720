"""The clock of benchmarks/gpu_tune.py: steps of fastrnn's drivers and of cuDNN on the GPU at hand."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from gpu_plan import Machine
from gpu_points import LENGTHS, LIBRARY, STAGES, CannotMeasureError, Meter, Point

REPEATS, WARM_UP = 5, 2
DTYPES = {"tf32": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MODULES = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn_tanh": torch.nn.RNN}

#: Microseconds of a call of so many steps.
Call = Callable[[int], float]


def on_this_machine() -> tuple[str, Machine, Meter]:
    """The GPU's name, what the plan depends on, and its meter. Raises CannotMeasureError where there is none."""
    from fastrnn import _gpu

    if not torch.cuda.is_available():
        raise CannotMeasureError("expected a GPU to measure on, torch sees none")
    problem = _gpu.problem(torch.device("cuda", 0))
    if problem:
        raise CannotMeasureError(f"expected kernels that run on the GPU: {problem}")
    found, name = _gpu.module.machine(0), torch.cuda.get_device_name(0)
    machine = Machine(name, found["processors"], found["shared_bytes"], found["largest_cluster"], "", 0)
    return name, machine, Gpu(_gpu.module)


def median_step(call: Call) -> float:
    """Microseconds of a step: of two lengths, so that what a call costs once falls out."""
    times = []
    for steps in LENGTHS:
        for _ in range(WARM_UP):
            call(steps)
        times.append(statistics.median(call(steps) for _ in range(REPEATS)))
    if times[1] <= times[0]:
        raise CannotMeasureError(f"{LENGTHS[1]} steps took no longer than {LENGTHS[0]}")
    return (times[1] - times[0]) / (LENGTHS[1] - LENGTHS[0])


def without(cell: str, stage: str) -> tuple[str, str]:
    """Name and header of a cell whose kernels leave a stage out (csrc/cuda/stages.h)."""
    name = f"{cell}_without_{stage}"
    header = (
        f'#pragma once\n#include "cells/{cell}.h"\nnamespace FASTRNN_NAMESPACE {{\n'
        f"struct {name} : {cell} {{\n  static constexpr unsigned kLeaveOut = {STAGES[stage]};\n}};\n}}\n"
    )
    return name, header


class Gpu:
    """`module`: fastrnn._cuda."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.capability = torch.cuda.get_device_capability(0)

    def __call__(self, point: Point) -> float:
        matmul, rnn = torch.backends.cuda.matmul, torch.backends.cudnn.rnn
        before = matmul.fp32_precision, rnn.fp32_precision
        matmul.fp32_precision = rnn.fp32_precision = "tf32" if point.fmt == "tf32" else "ieee"
        try:
            if point.driver == LIBRARY:
                return median_step(self.library(point))
            cell = self.prepared(point)
            self.module.set_driver(point.driver)
            self.module.set_slices(point.unit_slices, point.row_slices)
            self.check(point, cell)
            return median_step(self.ours(point, cell))
        except torch.OutOfMemoryError as problem:
            raise CannotMeasureError(str(problem).splitlines()[0]) from None
        finally:
            matmul.fp32_precision, rnn.fp32_precision = before
            self.module.set_driver("auto")
            self.module.set_slices(0, 0)

    def prepared(self, point: Point) -> str:
        """The name of the point's cell, compiled if it leaves something out."""
        from fastrnn.custom import build_cuda

        if not point.without:
            return point.cell
        name, header = without(point.cell, point.without)
        dtype = DTYPES[point.fmt]
        if not self.known(name, dtype):
            try:
                library = build_cuda.library(name, header, self.capability, dtype)
            except build_cuda.BuildError as problem:
                raise CannotMeasureError(str(problem).splitlines()[0]) from None
            capability = 10 * self.capability[0] + self.capability[1]
            library.load(lambda path: self.module.load_cell(path, capability))
        return name

    def known(self, name: str, dtype: torch.dtype) -> bool:
        return bool(self.module.has_kernels(name, str(dtype).removeprefix("torch."), 0))

    def check(self, point: Point, cell: str) -> None:
        """That the GPU can hold it, cut as it was asked for."""
        dtype = str(DTYPES[point.fmt]).removeprefix("torch.")
        found = self.module.explain(
            0, cell, LENGTHS[1], point.B, point.H, dtype, False, point.backward, point.driver
        )  # fmt: skip
        if not found["possible"]:
            raise CannotMeasureError(found["reason"])
        slices = found["unit_slices"], found["row_slices"]
        if slices != (point.unit_slices, point.row_slices):
            raise CannotMeasureError(f"it was cut into {slices[0]} and {slices[1]} slices")

    def ours(self, point: Point, cell: str) -> Call:
        """The recurrence alone: W·x is given."""
        from fastrnn.cells import CELLS

        spec, dtype = CELLS[point.cell], DTYPES[point.fmt]
        w_hh = torch.randn(spec.gates * point.H, point.H, device="cuda", dtype=dtype) * point.H**-0.5
        given: dict[int, tuple[Any, ...]] = {}

        def forward(wx: torch.Tensor) -> Any:
            return torch.ops.fastrnn.sequence_forward(
                cell, wx, None, w_hh, None, None, None, [], None, None, None, False, True
            )  # fmt: skip

        def call(steps: int) -> float:
            if steps not in given:
                wx = torch.randn(steps, point.B, spec.gates * point.H, device="cuda", dtype=dtype)
                y, _, saved = forward(wx)
                given[steps] = wx, torch.randn_like(y), y, saved
            wx, grad_y, y, saved = given[steps]
            if not point.backward:
                return _timed(lambda: forward(wx))
            return _timed(
                lambda: torch.ops.fastrnn.layer_backward(
                    cell, grad_y, [], wx, None, w_hh, None, [], y, saved, None, None, None, False, [False] * 11
                )
            )

        return call

    def library(self, point: Point) -> Call:
        """torch.nn, as a user calls it: with the input product, and backward all gradients."""
        dtype = DTYPES[point.fmt]
        module = MODULES[point.cell](point.H, point.H).to("cuda", dtype)

        def call(steps: int) -> float:
            x = torch.randn(steps, point.B, point.H, device="cuda", dtype=dtype, requires_grad=True)
            if not point.backward:
                return _timed(lambda: module(x))
            y, _ = module(x)
            grad = torch.randn_like(y)
            return _timed(lambda: torch.autograd.grad(y, [x, *module.parameters()], grad))

        return call


def _timed(run: Callable[[], Any]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return 1e3 * begin.elapsed_time(end)
