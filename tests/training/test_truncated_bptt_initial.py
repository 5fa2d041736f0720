"""truncated_bptt: what rows start from, at the beginning and after a restart."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from dropin_cases import H, I, same
from initial_states import randomised
from torch import nn

import fastrnn
from fastrnn.training import truncated_bptt

T, B = 12, 4


class TwoOfOurs(nn.Module):
    """Hands resets on; one part may learn its initial state, the other does not."""

    def __init__(self, learned):
        super().__init__()
        self.below = fastrnn.GRU(I, H, learn_initial_state=learned)
        self.above = fastrnn.GRU(H, H)

    def forward(self, x, state, reset=None, initial=None):
        below, above = (None, None) if state is None else state
        from_below, from_above = (None, None) if initial is None else initial
        y, below = self.below(x, below, reset=reset, initial=from_below)
        y, above = self.above(y, above, reset=reset, initial=from_above)
        return y, (below, above)


def learned_in_a_function():
    """A module whose initial state is not visible from outside."""
    module = randomised(fastrnn.LSTM(I, H, learn_initial_state=True)).double()
    return lambda x, state, reset=None, initial=None: module(x, state, reset=reset, initial=initial)


@pytest.mark.parametrize(
    "model",
    [
        lambda: randomised(TwoOfOurs(True)).double(),
        lambda: TwoOfOurs(False).double(),
        learned_in_a_function,
    ],
    ids=["one of two learns", "none learns", "a function"],
)
def test_rows_restart_from_what_the_model_starts_from(model):
    torch.manual_seed(0)
    model = model()
    x, reset = torch.randn(T, B, I).double(), torch.zeros(T, B, dtype=torch.bool)
    reset[5, 1] = reset[9, 3] = reset[10, 0] = True
    found = torch.cat([chunk.output for chunk in truncated_bptt(model, x, steps=4, reset=reset)])
    for row in range(B):
        for start, stop in pairwise([0, *reset[:, row].nonzero().flatten().tolist(), T]):
            piece = slice(start, stop)
            expected = model(x[piece, row : row + 1], None)[0]
            same(found[piece, row : row + 1], expected, rtol=1e-9, atol=1e-10)


def test_rows_restart_from_a_given_state():
    for model in (fastrnn.GRU(I, H).double(), nn.GRU(I, H).double()):
        x, initial, state = torch.randn(T, B, I).double(), torch.randn(1, B, H).double(), torch.randn(1, B, H).double()
        reset = torch.zeros(T, B, dtype=torch.bool)
        reset[4, 1] = reset[6, :] = True
        chunks = list(truncated_bptt(model, x, steps=4, reset=reset, initial=initial, state=state))
        found = torch.cat([c.output for c in chunks])
        same(found[:6, 0], model(x[:6], state)[0][:, 0], rtol=1e-9, atol=1e-10)
        same(found[4:6, 1], model(x[4:6], initial)[0][:, 1], rtol=1e-9, atol=1e-10)
        same(found[6:], model(x[6:], initial)[0], rtol=1e-9, atol=1e-10)
        first = next(iter(truncated_bptt(model, x, steps=4, initial=initial)))
        same(first.output, model(x[:4], initial)[0], rtol=1e-12, atol=1e-12)


def test_learned_states_get_gradients_from_restarts():
    model = fastrnn.LSTM(I, H, learn_initial_state=True)
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[9, 2] = True
    chunks = iter(truncated_bptt(model, torch.randn(T, B, I), steps=4, reset=reset))
    for expected in (True, False, True):
        model.zero_grad()
        next(chunks).output.sum().backward()
        grad = model.initial_c_l0.grad
        assert (grad is not None and bool(grad.any())) is expected


def test_a_given_initial_state_gets_gradients():
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[9, 2] = True
    for model in (fastrnn.GRU(I, H), nn.GRU(I, H)):
        initial = torch.randn(1, B, H, requires_grad=True)
        chunks = iter(truncated_bptt(model, torch.randn(T, B, I), steps=4, reset=reset, initial=initial))
        for rows in ([0, 1, 2, 3], [], [2]):
            initial.grad = None
            next(chunks).output.sum().backward()
            found = [] if initial.grad is None else initial.grad[0].any(-1).nonzero().flatten().tolist()
            assert found == rows


@pytest.mark.parametrize("library", [fastrnn, nn])
@pytest.mark.parametrize("window", [4, 8])
def test_an_initial_state_that_is_computed(library, window):
    """With new weights at each chunk, from a graph of its own each time; the same as leaves say."""
    torch.manual_seed(0)
    model, make = library.GRU(I, H).double(), nn.Linear(2, H).double()
    context, x = torch.randn(1, B, 2).double(), torch.randn(T, B, I).double()
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[6, 2] = reset[9, :] = True

    def initial():
        return make(context).tanh()

    chunks = truncated_bptt(model, x, steps=4, window=window, reset=reset, initial=initial)
    same(chunks.state, initial(), rtol=0, atol=0)
    leaf = initial().detach().requires_grad_()
    expected = truncated_bptt(model, x, steps=4, window=window, reset=reset, initial=leaf)
    for ours, theirs in zip(chunks, expected, strict=True):
        make.zero_grad()
        leaf.grad = None
        ours.output.square().sum().backward()
        theirs.output.square().sum().backward()
        assert leaf.grad is not None
        (wanted,) = torch.autograd.grad(initial(), make.bias, leaf.grad)
        same(make.bias.grad, wanted, rtol=1e-9, atol=1e-11)
        with torch.no_grad():
            make.weight.mul_(1.01)
            leaf.copy_(initial())


def test_states_whose_batch_lies_elsewhere():
    """A function with the states of `fastrnn.functional`, (B, H)."""
    module = fastrnn.GRU(I, H).double()
    weights = fastrnn.functional.LayerWeights(
        module.weight_ih_l0, module.weight_hh_l0, module.bias_ih_l0, module.bias_hh_l0
    )

    def model(x, state, reset=None, initial=None):
        return fastrnn.functional.gru(x, weights, state, reset=reset, initial=initial)

    x, reset = torch.randn(T, B, I).double(), torch.zeros(T, B, dtype=torch.bool)
    reset[6, 1] = reset[9, 0] = True
    with pytest.raises(
        ValueError, match=r"state_dim: expected the batch dimension of the states, of size 4, got 1 for .*\(4, "
    ):
        list(truncated_bptt(model, x, steps=4, reset=reset))
    found = torch.cat([c.output for c in truncated_bptt(model, x, steps=4, reset=reset, state_dim=0)])
    same(found, module(x, reset=reset)[0], rtol=1e-9, atol=1e-10)
