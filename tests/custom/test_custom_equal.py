"""Cells of torch.nn written in Python give what the kernels written by hand give, to a few units in the last place."""

from __future__ import annotations

import pytest
import torch
from problems import LAYOUTS, Problem

from fastrnn import _C, _ops

BUILT_IN = ("lstm", "gru", "rnn_tanh", "rnn_relu")
FORMATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ULP = 8  # of the largest number of a tensor: the generated gradient rounds in another order


def compare(cells, name: str, **options) -> None:
    """Outputs, final states and all gradients of a problem, by the cell of Python and by the one written by hand."""
    wanted = Problem(name, **options).run()
    found = Problem(getattr(cells, name).kernels, **options).run()
    assert found.keys() == wanted.keys()
    for key, right in wanted.items():
        difference = (found[key] - right).abs().max().item()
        allowed = ULP * torch.finfo(right.dtype).eps * right.abs().max().item()
        assert difference <= allowed, f"{key}: {difference:.2e}, allowed {allowed:.2e}"


CASES = [(name, dtype) for name in BUILT_IN for dtype in FORMATS if name in ("lstm", "gru") or dtype in FORMATS[:2]]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_equals_the_kernel_written_by_hand(cells, name, dtype):
    for H in (1, 5, 33):
        compare(cells, name, steps=7, batch=3, inputs=4, hidden=H, dtype=dtype)


@pytest.mark.parametrize("capability", _C.capabilities())
def test_on_every_instruction_set(cells, capability):
    _C.set_capability(capability)
    for T, B, H in ((1, 1, 1), (5, 2, 17), (6, 40, 64)):
        compare(cells, "lstm", steps=T, batch=B, inputs=4, hidden=H, dtype=torch.float32)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_in_every_layout(cells, name, layout, reverse):
    compare(cells, name, steps=6, batch=5, inputs=3, hidden=9, layout=layout, reverse=reverse, bias=not reverse)


@pytest.mark.parametrize("name", BUILT_IN)
def test_keeps_no_more_than_by_hand(cells, name):
    """The saved values are found as a minimum cut; a person's choice is an upper bound."""
    by_hand, found = _ops.traits_of(name), getattr(cells, name)._compiled.traits()
    assert (found.gates, found.states) == (by_hand.gates, by_hand.states)
    assert found.values <= by_hand.values
    assert (found.split_from < found.recurrent) == (by_hand.split_from < by_hand.recurrent)
