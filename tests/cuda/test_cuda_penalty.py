"""The gradient norm penalty on a GPU, against the CPU's kernels, which test_gradient_penalty.py holds to the formula.

Over the emulator, for which no GPU is needed, and on a GPU where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import cuda_ops
import custom_cells
import emulated
import pytest
import torch
from cuda_device import GpuProblem, drivers_for, finish, needs_gpu, reset_gpu, runs
from problems import LAYOUTS, Problem, assert_same, error

from fastrnn import gallery
from fastrnn.custom.build_cuda import FORMATS
from fastrnn.training import GradientNormPenalty

ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-5}
#: T, B, I, H, P
SIZES = [(1, 3, 2, 5, 0), (5, 4, 3, 7, 0), (6, 5, 3, 12, 0)]


@contextmanager
def emulator() -> Iterator[None]:
    try:
        cuda_ops.load()
    except SystemExit as problem:
        pytest.skip(str(problem))
    with cuda_ops.instead():
        yield


def penalised(p: Problem, bound: float | None) -> dict[str, torch.Tensor]:
    penalty = GradientNormPenalty(0.7)
    p.arguments |= {"penalty": penalty, "clip_state_gradient": bound}
    found = p.run()
    assert penalty.value is not None
    return found | {"Ω": penalty.value.detach().cpu()}


@pytest.mark.parametrize("bound", [None, 0.3])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cell", cuda_ops.CELLS)
def test_stepwise_equals_the_cpu(cell, layout, bound):
    for *sizes, _ in SIZES:
        for reverse in (False, True):
            for P in {0, 3 if cell == "lstm" and sizes[-1] > 3 else 0}:
                given = (cell, *sizes, P, layout, reverse)
                wanted = penalised(Problem(*given), bound)
                with emulator():
                    torch.ops.fastrnn_emulated.set_driver("stepwise")
                    before = cuda_ops.runs()["stepwise"]
                    assert_same(penalised(Problem(*given), bound), wanted, ROUNDING[torch.float64])
                    assert cuda_ops.runs()["stepwise"] == before + 2


@pytest.mark.parametrize("driver", ["stepwise", "grid", "cluster"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cell", cuda_ops.CELLS)
def test_every_driver_in_float32(cell, layout, driver):
    for T, B, inputs, H, P in SIZES:
        given = (cell, T, B, inputs, H, P, layout)
        wanted = penalised(Problem(*given), 0.5)
        with emulator():
            torch.ops.fastrnn_emulated.set_driver(driver)
            before = cuda_ops.runs()[driver]
            found = penalised(Problem(*given, dtype=torch.float32), 0.5)
            assert cuda_ops.runs()[driver] == before + 2
        assert_same(found, wanted, ROUNDING[torch.float32])


@pytest.mark.parametrize("name", ["mixed", "nas"])
def test_cells_of_python(name):
    cell = custom_cells.mixed if name == "mixed" else gallery.CELLS[name]
    torch.manual_seed(2)
    net = cell(3, 5, dtype=torch.float64).eval()
    x = torch.randn(6, 4, 3, dtype=torch.float64)

    def gradients():
        penalty = GradientNormPenalty(0.7)
        net.zero_grad()
        net(x, lengths=[6, 2, 5, 6], penalty=penalty)[0].sin().sum().backward()
        return {n: p.grad.clone() for n, p in net.named_parameters()} | {"Ω": penalty.value}

    wanted = gradients()
    assert wanted["Ω"] > 0
    with emulator():
        try:
            cuda_ops.load_own(cell.kernels, cell.source(), FORMATS[torch.float64])
        except emulated.BuildError as problem:
            pytest.fail(str(problem))
        found = gradients()
    assert_same(found, wanted, ROUNDING[torch.float64])


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn_relu", "rnn_tanh"])
def test_on_a_gpu(cell, layout, dtype):
    from fastrnn import _gpu

    _gpu.module.set_poison(True)
    try:
        for T, B, inputs, H, P in [*SIZES, (20, 9, 6, 64, 0)]:
            given = (cell, T, B, inputs, H, P, layout)
            wanted = penalised(Problem(*given), 0.5)
            for driver in drivers_for(GpuProblem(*given, dtype=dtype)):
                _gpu.module.set_driver(driver)
                before = runs()[driver]
                found = penalised(GpuProblem(*given, dtype=dtype), 0.5)
                assert runs()[driver] == before + 2
                assert error(found["Ω"], wanted["Ω"]) <= ROUNDING[dtype]
                assert_same({n: t.cpu() for n, t in found.items()}, wanted, ROUNDING[dtype])
    finally:
        finish()
        reset_gpu()
