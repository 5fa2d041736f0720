"""Calls of ``functional.sequence`` with an argument that does not fit."""

from __future__ import annotations

import torch

from fastrnn.functional import LayerWeights, gru, lstm, rnn, sequence

W = LayerWeights(torch.randn(8, 3), torch.randn(8, 2), torch.randn(8), torch.randn(8))


X = torch.randn(4, 5, 3)


BAD = {
    "cell": (lambda: sequence("ltsm", X, W), ValueError, r"cell: expected one of .*lstm.*, got 'ltsm'"),
    "backend": (lambda: sequence("lstm", X, W, backend="fast"), ValueError, "backend: expected one of auto"),
    "rank": (lambda: sequence("lstm", X[0], W), RuntimeError, "input must have 3 dimensions, got 2"),
    "no steps": (lambda: sequence("lstm", X[:0], W), RuntimeError, "sequence length to be larger than 0"),
    "input size": (lambda: sequence("lstm", X[..., :2], W), RuntimeError, r"x: expected shape \[4, 5, 3\]"),
    "dtype": (lambda: sequence("lstm", X.double(), W), RuntimeError, "x: expected dtype Float, got Double"),
    "w_hh": (lambda: sequence("lstm", X, W._replace(w_hh=torch.randn(8, 3))), RuntimeError, "w_hh: expected shape"),
    "w_hh rows": (lambda: sequence("gru", X, W), RuntimeError, "w_hh: expected shape"),
    "b_ih": (lambda: sequence("lstm", X, W._replace(b_ih=torch.randn(7))), RuntimeError, "b_ih: expected shape"),
    "states": (lambda: sequence("lstm", X, W, (torch.zeros(5, 2),)), RuntimeError, "states: expected 2 tensors, got 1"),
    "state size": (
        lambda: sequence("lstm", X, W, (torch.zeros(5, 2), torch.zeros(5, 3))),
        RuntimeError,
        r"states: expected shape \[5, 2\], got \[5, 3\]",
    ),
    "lengths dtype": (lambda: sequence("lstm", X, W, lengths=torch.ones(5)), ValueError, "lengths: expected an int"),
    "lengths size": (
        lambda: sequence("lstm", X, W, lengths=torch.ones(4, dtype=torch.long)),
        ValueError,
        r"lengths: expected an integer tensor of shape \[5\]",
    ),
    "lengths range": (
        lambda: sequence("lstm", X, W, lengths=torch.tensor([1, 2, 5, 3, 4])),
        ValueError,
        "lengths: expected numbers from 0 to the 4 steps of the input, got 5 for row 2",
    ),
    "reset dtype": (lambda: sequence("lstm", X, W, reset=torch.ones(4, 5)), ValueError, "reset: expected a bool"),
    "reset size": (
        lambda: sequence("lstm", X, W, reset=torch.ones(5, 4, dtype=torch.bool)),
        ValueError,
        r"reset: expected a bool tensor of shape \[4, 5\]",
    ),
    "batch_sizes sum": (
        lambda: sequence("lstm", X[0], W, batch_sizes=torch.tensor([3, 3])),
        ValueError,
        "batch_sizes: expected a sum equal to the rows of the packed input, 5, got 6",
    ),
    "batch_sizes grow": (
        lambda: sequence("lstm", X[0], W, batch_sizes=torch.tensor([2, 3])),
        ValueError,
        "batch_sizes: expected positive numbers that never grow, got 3 at step 1",
    ),
    "packed and reset": (
        lambda: sequence("lstm", X[0], W, batch_sizes=torch.tensor([3, 2]), reset=torch.zeros(2, 3, dtype=torch.bool)),
        ValueError,
        "packed input takes neither lengths nor reset",
    ),
    "projection": (
        lambda: gru(torch.randn(4, 5, 3), LayerWeights(torch.randn(6, 3), torch.randn(6, 1), w_hr=torch.randn(1, 2))),
        ValueError,
        "w_hr: the cell gru cannot be used with a projection",
    ),
    "nonlinearity": (lambda: rnn(X, W, nonlinearity="sine"), ValueError, "nonlinearity: expected tanh or relu"),
    "no kernels": (
        lambda: lstm(X.cfloat(), LayerWeights(W.w_ih.cfloat(), W.w_hh.cfloat()), backend="fused"),
        RuntimeError,
        'backend="fused": no kernels for torch.complex64',
    ),
}
