"""Measures of accuracy, and a layer of torch.nn run for its outputs and all gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

#: torch.nn's layer for each built-in cell.
TORCH = {
    "lstm": (torch.nn.LSTM, {}),
    "gru": (torch.nn.GRU, {}),
    "rnn_tanh": (torch.nn.RNN, {}),
    "rnn_relu": (torch.nn.RNN, {"nonlinearity": "relu"}),
}


def run(step: Callable, module: torch.nn.RNNBase, x, states, seeds):
    """Return [y, final states, gradients of x, of the states and of the weights]; `step`(x, states) → y, states."""
    x = x.clone().requires_grad_()
    states = [s.clone().requires_grad_() for s in states]
    y, finals = step(x, states)
    outputs = (y, *(finals if isinstance(finals, tuple) else (finals,)))
    return [*outputs, *torch.autograd.grad(outputs, [x, *states, *module.parameters()], seeds)]


def torch_run(module: torch.nn.RNNBase, *arguments):
    return run(lambda x, states: module(x, tuple(states) if len(states) == 2 else states[0]), module, *arguments)


def rms(t: torch.Tensor) -> float:
    return t.double().square().mean().sqrt().item()


def ulp(value: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the largest error in units in the last place of the exact value (float64; longdouble for float64)."""
    info = torch.finfo(value.dtype)
    right = exact.numpy() if isinstance(exact, torch.Tensor) else exact
    spacing = np.maximum(np.abs(np.asarray(right, dtype=np.float64)), info.tiny)
    spacing = 2.0 ** np.floor(np.log2(spacing)) * info.eps
    return float(np.max(np.abs(value.numpy().astype(np.longdouble) - right) / spacing))
