"""The drivers against the plain-torch reference in float64: every cell, layout, direction, instruction set, split."""

from __future__ import annotations

import pytest
import torch
from problems import LAYOUTS, Problem, assert_same, error

from fastrnn import _C
from fastrnn.cells import CELLS
from fastrnn.functional import sequence

SHAPES = [(1, 1, 1, 1), (1, 3, 2, 5), (5, 4, 3, 7), (6, 17, 5, 33), (3, 2, 40, 100)]  # T, B, I, H


@pytest.mark.parametrize("split", ["none", "rows", "units"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("capability", _C.capabilities())
def test_fused_equals_reference(capability, cell, layout, split):
    _C.set_capability(capability)
    _C.set_split(split)
    for T, B, inputs, H in SHAPES:
        for P in {0, 3 if CELLS[cell].projectable and H > 3 else 0}:
            for reverse in (False, True):
                for with_all in (True, False):
                    p = Problem(cell, T, B, inputs, H, P, layout, reverse, bias=with_all, initial=with_all)
                    assert_same(p.run("fused"), p.run("reference"), 1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_instruction_sets_agree_in_float32(cell):
    found = []
    for capability in _C.capabilities():
        _C.set_capability(capability)
        found.append(Problem(cell, 20, 9, 11, 37, dtype=torch.float32).run())
    for other in found[1:]:
        assert_same(other, found[0], 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cell", CELLS)
def test_same_bits_for_any_sharing_of_the_work(cell, dtype):
    """y and the driver's own gradients, which no library product touches: x is the input product already."""
    p = Problem(cell, 7, 23, 1, 75, dtype=dtype)
    spec = CELLS[cell]
    wx = torch.randn(7, 23, spec.gates * 75, dtype=torch.float64).to(dtype).requires_grad_()
    weights = p.weights._replace(w_ih=None)

    def run():
        y, finals = sequence(cell, wx, weights, p.states)
        seeds = p.seeds((y, *finals))
        return [y, *finals, *torch.autograd.grad((y, *finals), (wx, *p.states), seeds)]

    _C.set_split("none")
    wanted = run()
    for split in ("rows", "units", "auto"):
        for threads in (1, 2, 3, 5):
            _C.set_split(split)
            torch.set_num_threads(threads)
            for repeat in range(2):
                for a, b in zip(run(), wanted, strict=True):
                    assert torch.equal(a, b), (split, threads, repeat)


@pytest.mark.parametrize("cell", CELLS)
def test_a_row_does_not_depend_on_its_batch(cell):
    p = Problem(cell, 6, 13, 1, 33, dtype=torch.float32)
    wx = torch.randn(6, 13, CELLS[cell].gates * 33)
    weights = p.weights._replace(w_ih=None)
    with torch.no_grad():
        y, _ = sequence(cell, wx, weights, p.states)
        for b in (0, 5, 12):
            alone, _ = sequence(cell, wx[:, b : b + 1], weights, tuple(s[b : b + 1] for s in p.states))
            assert torch.equal(alone[:, 0], y[:, b])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_as_in_the_reference(cell, value):
    for capability in _C.capabilities():
        _C.set_capability(capability)
        p = Problem(cell, 4, 3, 2, 5, dtype=torch.float32)
        with torch.no_grad():
            p.x[1, 1, 0] = value
            fused, _ = sequence(cell, p.x, p.weights, p.states)
            wanted, _ = sequence(cell, p.x, p.weights, p.states, backend="reference")
        assert torch.equal(fused.isnan(), wanted.isnan())
        torch.testing.assert_close(fused, wanted, equal_nan=True)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_padding_may_hold_anything(cell, reverse):
    p = Problem(cell, 6, 5, 3, 8, layout="lengths", reverse=reverse)
    clean = p.run()
    with torch.no_grad():
        for b, n in enumerate(p.arguments["lengths"].tolist()):
            p.x[n:, b] = float("nan")
    for backend in ("fused", "reference"):
        assert_same(p.run(backend), clean, 1e-13)


@pytest.mark.parametrize("cell", CELLS)
def test_a_reset_equals_separate_sequences(cell):
    p = Problem(cell, 9, 2, 3, 6)
    reset = torch.zeros(9, 2, dtype=torch.bool)
    reset[[0, 4], 0] = True
    reset[7, 1] = True
    with torch.no_grad():
        y, finals = sequence(cell, p.x, p.weights, p.states, reset=reset)
        for b, border in ((0, 4), (1, 7)):
            row = tuple(s[b : b + 1] for s in p.states)
            first, _ = sequence(cell, p.x[:border, b : b + 1], p.weights, row)
            second, last = sequence(cell, p.x[border:, b : b + 1], p.weights, row)
            assert error(y[:, b : b + 1], torch.cat((first, second))) < 1e-14
            for s, wanted in zip(finals, last, strict=True):
                assert error(s[b : b + 1], wanted) < 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cell", CELLS)
def test_long_sequences(cell, dtype):
    """T = 2000: the error stays that of the dtype and does not accumulate."""
    settings = {"steps": 2000, "batch": 3, "inputs": 4, "hidden": 17}
    exact = Problem(cell, **settings).run("fused")
    found = Problem(cell, **settings, dtype=dtype).run("fused")
    eps = torch.finfo(dtype).eps
    for name in ("y", "dx", "dh0"):
        assert error(found[name], exact[name]) < 20 * eps, name


def test_guards_catch_a_write_past_the_end():
    """Or no test here would mean anything."""
    assert _C.guards_work()
