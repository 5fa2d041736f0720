"""Products of few rows (csrc/cpu/small.h), seen through layers of so few rows that they are chosen."""

from __future__ import annotations

import pytest
import torch
from problems import Problem, error

from fastrnn import _C, _ops
from fastrnn._call import Call, LayerWeights
from fastrnn.cells import CELLS
from fastrnn.functional import sequence

SIZES = [(1, 9), (3, 5), (20, 33), (64, 64), (130, 70)]  # I, H: less than a vector, ends of vectors, whole blocks


@pytest.fixture(params=_C.capabilities())
def capability(request):
    before = _C.capability()
    _C.set_capability(request.param)
    yield request.param
    _C.set_capability(before)


def problem(cell: str, rows: tuple[int, int], sizes: tuple[int, int], dtype: torch.dtype, **options) -> Problem:
    return Problem(cell, *rows, *sizes, dtype=dtype, **options)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("rows", [(1, 1), (1, 7), (7, 1), (2, 3)])  # T, B
@pytest.mark.parametrize("cell", CELLS)
def test_right_against_float64(cell, rows, sizes, capability):
    exact = problem(cell, rows, sizes, torch.float64).run("reference")
    double = problem(cell, rows, sizes, torch.float64).run()
    single, plain = (problem(cell, rows, sizes, torch.float32).run(b) for b in ("fused", "reference"))
    for name, wanted in exact.items():
        assert error(double[name], wanted) < 1e-13, name
        assert error(single[name], wanted) <= 2 * error(plain[name], wanted) + 3e-7, name


@pytest.mark.parametrize("options", [{"bias": False}, {"initial": False}, {"reverse": True}, {"projected": 5}])
@pytest.mark.parametrize("rows", [(1, 3), (3, 2)])
def test_with_less_and_more(options, rows, capability):
    exact = problem("lstm", rows, (9, 17), torch.float64, **options).run("reference")
    found = problem("lstm", rows, (9, 17), torch.float32, **options).run()
    for name, wanted in exact.items():
        assert error(found[name], wanted) < 2e-6, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cell", CELLS)
def test_a_row_has_the_same_bits_in_any_company(cell, dtype, capability):
    full = problem(cell, (1, 8), (20, 33), dtype)
    x, states = full.x.detach(), tuple(s.detach() for s in full.states)
    weights = LayerWeights(*(w if w is None else w.detach() for w in full.weights))
    together = _ops.layer(Call(cell, x, weights, states))
    for b in range(8):
        own = tuple(s[b : b + 1] for s in states)
        alone = _ops.layer(Call(cell, x[:, b : b + 1], weights, own))
        assert torch.equal(alone[0], together[0][:, b : b + 1])


def test_the_same_bits_with_any_number_of_threads(capability):
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(problem("gru", (1, 2), (200, 150), torch.float32).run())
    finally:
        torch.set_num_threads(before)
    for name, wanted in found[0].items():
        assert torch.equal(found[1][name], wanted), name
        assert torch.equal(found[2][name], wanted), name


def test_nan_stays_in_its_row():
    p = problem("rnn_tanh", (1, 2), (20, 33), torch.float32)
    with torch.no_grad():
        p.x[0, 1, 3] = float("nan")
    y, _ = sequence("rnn_tanh", p.x, p.weights, p.states)
    assert y[0, 0].isfinite().all()
    assert y[0, 1].isnan().all()
