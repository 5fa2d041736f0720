"""FLOPs that `torch.utils.flop_counter` counts, against a hand count and a loop of plain torch operations."""

from __future__ import annotations

import pytest
import torch
from problems import Problem
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import fastrnn
from fastrnn import _ops, gallery
from fastrnn._call import Call, LayerWeights, Wanted
from fastrnn.cells import CELLS
from fastrnn.functional import hidden_gradients

T, B, I, H, P = 5, 3, 4, 7, 2  # noqa: E741


def flops(call) -> int:
    mode = FlopCounterMode(display=False)
    with mode:
        call()
    return mode.get_total_flops()


def loss(p: Problem, backend: str) -> torch.Tensor:
    y, states = fastrnn.functional.sequence(p.cell, p.x, p.weights, p.states, backend=backend, **p.arguments)
    return y.sum() + sum(s.sum() for s in states)


@pytest.mark.parametrize("gradients", ["all", "x", "weights", "states"])
@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize(("cell", "projected"), [*((cell, 0) for cell in CELLS), ("lstm", P)])
def test_layer_counts_as_a_loop_does(cell, projected, initial, gradients):
    p = Problem(cell, T, B, I, H, projected, initial=initial, reverse=initial)
    for kind, leaves in (("x", [p.x]), ("weights", p.weights), ("states", p.states or ())):
        for leaf in leaves:
            if leaf is not None:
                leaf.requires_grad_(gradients in ("all", kind))
    if gradients == "states" and not initial:
        pytest.skip("there is nothing to differentiate")
    width = projected or H
    hand = 2 * T * B * (CELLS[cell].gates * H * (I + width) + projected * H)
    counts = []
    for backend in ("fused", "reference"):
        y = loss(p, backend)
        counts.append(
            [
                flops(lambda b=backend: loss(p, b)),
                flops(lambda y=y: y.backward()),  # of a forward pass outside of the mode
                flops(lambda b=backend: loss(p, b).backward()),
            ]
        )
    assert counts[0] == counts[1]
    assert counts[0][0] == hand
    assert counts[0][2] == counts[0][0] + counts[0][1]


@pytest.mark.parametrize("name", ["sru", "gru_reset_before", "mut1", "multiplicative_lstm", "layer_norm_gru"])
def test_custom_cells(name):
    network, x = getattr(gallery, name)(I, H), torch.randn(T, B, I, requires_grad=True)
    counts = []
    for backend in ("fused", "reference"):
        y = network(x, backend=backend)[0]
        counts.append((flops(lambda b=backend: network(x, backend=b)), flops(lambda y=y: y.sum().backward())))
    assert counts[0] == counts[1]
    assert min(counts[0]) > 0


@pytest.mark.parametrize("batch_first", [False, True])
def test_module(batch_first):
    module = fastrnn.LSTM(I, H, 2, bidirectional=True, batch_first=batch_first)
    x = torch.randn(T, B, I).transpose(0, 1) if batch_first else torch.randn(T, B, I)
    mode = FlopCounterMode(display=False)
    with mode:
        module(x)
    wanted = 2 * 2 * T * B * 4 * H * (I + H + 2 * H + H)
    assert mode.get_total_flops() == wanted
    assert sum(mode.get_flop_counts()["LSTM"].values()) == wanted


def test_step_and_cell():
    x = torch.randn(B, I)
    assert flops(lambda: fastrnn.GRU(I, H).step(x)) == 2 * B * 3 * H * (I + H)
    assert flops(lambda: fastrnn.GRUCell(I, H)(x)) == 2 * B * 3 * H * (I + H)


def test_rows_that_are_there():
    """Packed input, and `lengths` where they can be read: the rows that are computed, forward and backward."""
    module, lengths = fastrnn.GRU(I, H), torch.tensor([5, 0, 2])
    x = torch.randn(T, B, I, requires_grad=True)
    matrix, rows, first = 3 * H * (I + H), 7, 2
    backward = 2 * (2 * rows * 3 * H * I + (2 * rows - first) * 3 * H * H)
    for run in (lambda: module(x, lengths=lengths)[0], lambda: packed(module, x[:, [0, 2]], [5, 2])):
        assert flops(run) == 2 * rows * matrix
        y = run()
        assert flops(lambda y=y: y.sum().backward()) == backward
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(t.detach()) for t in (x, *module.parameters(), lengths)]
        call = Call("gru", fake[0], LayerWeights(*fake[1:-1]), lengths=fake[-1])
        assert flops(lambda: _ops.forward(call, False)) == 2 * T * B * matrix


def packed(module, x, lengths):
    return module(pack_padded_sequence(x, torch.tensor(lengths)))[0].data


def test_exported_program():
    module, x = fastrnn.LSTM(I, H), torch.randn(T, B, I)
    program = torch.export.export(module, (x,)).module()
    assert flops(lambda: program(x)) == 2 * T * B * 4 * H * (I + H)


def test_what_is_computed_again():
    """With `recompute` the backward pass makes the forward pass's products once more."""
    module, x = fastrnn.LSTM(I, H), torch.randn(T, B, I)
    forward = 2 * T * B * 4 * H * (I + H)
    plain, again = module(x)[0].sum(), module(x, recompute=3)[0].sum()
    assert flops(again.backward) == flops(plain.backward) + forward


def test_operators_of_the_time_loop():
    p = Problem("lstm", T, B, I, H, P)
    one_pass = 2 * T * B * (4 * H * P + P * H)
    forward = 2 * T * B * 4 * H * I + one_pass
    first = 2 * B * 4 * H * P
    found = flops(lambda: hidden_gradients("lstm", p.x, p.weights, p.states, torch.ones(T, B, P).double()))
    assert found == forward + one_pass - first
    call = Call(p.cell, p.x, p.weights, p.states)
    with torch.no_grad():
        y, _, saved = _ops.forward(call, True)
        for later in (False, True):
            wanted = Wanted(w_hh=True, w_hr=True, states=True, later=later)
            assert flops(lambda w=wanted: _ops.backward(call, [torch.ones_like(y)], y, saved, w)) == 2 * one_pass
