"""Custom cells with two products per step, with fewer products than gates, and with none, against plain loops."""

from __future__ import annotations

import pytest
import torch
from accuracy import rms
from custom_loops import (
    PLAIN,
    assert_same,
    check_double_backward,
    check_forms_of_a_call,
    fused,
    independent,
    leaves,
    mixed,
    multiplicative,
    plain,
)

import fastrnn
from fastrnn import _C

cells = pytest.mark.parametrize("cell", PLAIN, ids=lambda c: c.name)


@pytest.mark.parametrize("layout", ["plain", "lengths", "reset"])
@pytest.mark.parametrize("split", ["none", "rows", "units"])
@cells
def test_equals_a_plain_loop(cell, split, layout):
    _C.set_split(split)
    torch.set_num_threads(2)
    for T, B, H, reverse in ((6, 5, 37, False), (6, 5, 37, True), (1, 3, 16, False), (2, 1, 1, False)):
        inputs = leaves(cell, T, B, H, 3, torch.float64)
        options = {"reverse": reverse}
        if layout == "lengths":
            options["lengths"] = torch.arange(B) * T // max(1, B - 1)
        if layout == "reset":
            options["reset"] = torch.rand(T, B) < 0.3
        assert_same(fused(cell, inputs, **options), plain(cell, inputs, **options), 1e-11)


@cells
def test_error_in_float32_is_at_most_twice_that_of_the_loop(cell):
    inputs = leaves(cell, 17, 9, 100, 7, torch.float32, 0.2)
    right = plain(cell, [t.detach().double().requires_grad_() for t in inputs])
    for k, (a, b, exact) in enumerate(zip(fused(cell, inputs), plain(cell, inputs), right, strict=True)):
        if exact.numel():
            theirs = max(rms(b.double() - exact), 4 * torch.finfo(torch.float32).eps * rms(exact))
            assert rms(a.double() - exact) <= 2 * theirs, k


@pytest.mark.parametrize("capability", _C.capabilities())
def test_on_every_instruction_set(capability):
    _C.set_capability(capability)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        inputs = leaves(multiplicative, 7, 17, 40, 5, dtype, 0.2)
        right = plain(multiplicative, [t.detach().double().requires_grad_() for t in inputs])
        assert_same([t.double() for t in fused(multiplicative, inputs)], right, tolerance)


@cells
def test_double_backward(cell):
    check_double_backward(cell)


@cells
def test_recomputed_compiled_and_step_by_step(cell):
    check_forms_of_a_call(cell)


def test_weights_are_those_of_the_products():
    network = mixed(3, 8)
    assert mixed.recurrent == ("r", "n")
    assert network.weight_hh_l0.shape == (16, 8)
    assert network.bias_hh_l0.shape == (16,)
    assert network.weight_ih_l0.shape == (24, 3)
    assert independent(3, 8).weight_hh_l0.shape == (0, 8)


def test_what_cannot_be_multiplied():
    def both(x, r, s):
        return r.a + r.a(torch.tanh(s.h)) + x.b

    with pytest.raises(fastrnn.CellError, match=r"got both: write r\.a\(s\.…\)"):
        fastrnn.cell(gates="a b")(both)
