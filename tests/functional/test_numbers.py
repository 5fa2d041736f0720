"""Numbers that no argument can be: of hundreds of digits, NaN, infinite, of another kind. Errors name the argument."""

from __future__ import annotations

import cmath
from fractions import Fraction

import numpy as np
import pytest
import torch

import fastrnn
from fastrnn import init
from fastrnn.functional import LayerWeights, sequence
from fastrnn.training import GradientNormPenalty, truncated_bptt, weight_drop

X, W = torch.randn(4, 2, 3), LayerWeights(torch.randn(8, 3), torch.randn(8, 2))
WRONG = {
    "huge": 10**400,
    "negative": -(10**400),
    "nan": float("nan"),
    "infinite": float("inf"),
    "text": "x",
    "complex": 1j,
    "bool of numpy": np.bool_(True),
    "list": [1],
    "list of none": [None],
    "tensor": torch.zeros(2),
}


@fastrnn.cell(gates="z n")
def cell(x, r, s):
    z = torch.sigmoid(x.z + r.z)
    return z * s.h + (1 - z) * torch.tanh(x.n + r.n)


def bptt(**numbers):
    return list(truncated_bptt(fastrnn.GRU(3, 2), X, **({"steps": 2} | numbers)))


CALLS = {
    "clip_state_gradient": lambda v: sequence("lstm", X, W, clip_state_gradient=v),
    "clip_state_gradient of a module": lambda v: fastrnn.LSTM(3, 2)(X, clip_state_gradient=v),
    "clip_state_gradient of a network": lambda v: cell(3, 2)(X, clip_state_gradient=v),
    "recompute": lambda v: fastrnn.LSTM(3, 2)(X, recompute=v),
    "input_size": lambda v: cell(v, 2),
    "hidden_size": lambda v: cell(3, v),
    "num_layers": lambda v: cell(3, 2, v),
    "heads": lambda v: cell(3, 2, heads=v),
    "dropout": lambda v: cell(3, 2, 2, dropout=v),
    "batch": lambda v: fastrnn.Stream(fastrnn.LSTM(3, 2), batch=v),
    "lengths": lambda v: fastrnn.LSTM(3, 2)(X, lengths=[v, 1]),
    "p": lambda v: weight_drop(fastrnn.LSTM(3, 2), v),
    "weight": lambda v: GradientNormPenalty(v),
    "steps": lambda v: bptt(steps=v),
    "window": lambda v: bptt(window=v),
    "burn_in": lambda v: bptt(burn_in=v),
    "t_max": lambda v: init.chrono_(fastrnn.LSTM(3, 2), v),
    "value": lambda v: init.forget_bias_(fastrnn.LSTM(3, 2), v),
    "scale": lambda v: init.identity_(fastrnn.RNN(3, 2), v),
    "gain": lambda v: init.orthogonal_(fastrnn.LSTM(3, 2), v),
}
#: Counts of steps, of which any number is right that is large enough.
LARGE = {"recompute", "steps", "window"}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_number(name, kind):
    if kind == "huge" and name in LARGE:
        CALLS[name](WRONG[kind])
        return
    with pytest.raises((ValueError, TypeError), match=name.split(" ")[0]):
        pytest.fail(f"computed {CALLS[name](WRONG[kind])}")


@pytest.mark.parametrize("bound", [np.float32(0.5), np.float64(0.5), Fraction(1, 2), 0.5])
def test_real_numbers_of_other_kinds(bound):
    leaf = X.clone().requires_grad_()
    (grad,) = torch.autograd.grad(sequence("lstm", leaf, W, clip_state_gradient=bound)[0].sum() * 3, leaf)
    (right,) = torch.autograd.grad(sequence("lstm", leaf, W, clip_state_gradient=0.5)[0].sum() * 3, leaf)
    assert torch.equal(grad, right)


@pytest.mark.parametrize("bound", [Fraction(1, 10**400), np.float32("inf"), np.int64(0), np.float64("nan"), cmath.inf])
def test_bounds_that_are_none_as_floats(bound):
    with pytest.raises(ValueError, match="clip_state_gradient: expected a positive number"):
        sequence("lstm", X, W, clip_state_gradient=bound)
