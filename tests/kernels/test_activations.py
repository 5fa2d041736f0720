"""Accuracy of sigmoid and tanh in units in the last place, as csrc/simd/activations.h states it.

They are reached through cells: with a zero state an RNN step is tanh of its input; with n = 0 and h = 1 a GRU step is
sigmoid of its update gate's input.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accuracy import ulp

from fastrnn import _C
from fastrnn.functional import LayerWeights, sequence

STATED_ULP = 3


def tanh(x: torch.Tensor) -> torch.Tensor:
    weights = LayerWeights(None, torch.zeros(1, 1, dtype=x.dtype))
    return sequence("rnn_tanh", x.view(1, -1, 1), weights, backend="fused")[0].flatten()


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    weights = LayerWeights(None, torch.zeros(3, 1, dtype=x.dtype))
    gates = torch.stack((torch.zeros_like(x), x, torch.zeros_like(x)), -1).unsqueeze(0)
    return sequence("gru", gates, weights, (torch.ones_like(x).unsqueeze(-1),), backend="fused")[0].flatten()


def arguments(dtype: torch.dtype) -> torch.Tensor:
    small = torch.logspace(-30, 0, 20001, dtype=torch.float64)
    large = torch.linspace(0, 80, 40001, dtype=torch.float64)
    both = torch.cat((small, large)).to(dtype)
    return torch.cat((both, -both))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("capability", _C.capabilities())
def test_stated_accuracy(capability, dtype):
    _C.set_capability(capability)
    x = arguments(dtype)
    wide = x.numpy().astype(np.longdouble)
    assert ulp(tanh(x), np.tanh(wide)) <= (1.5 if dtype == torch.float32 else STATED_ULP)
    assert ulp(sigmoid(x), 1 / (1 + np.exp(-wide))) <= STATED_ULP


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("capability", _C.capabilities())
def test_limits(capability, dtype):
    _C.set_capability(capability)
    x = torch.tensor([float("inf"), -float("inf"), float("nan"), 1e30, -1e30, 0.0], dtype=dtype)
    assert tanh(x).tolist()[:2] == [1.0, -1.0]
    assert tanh(x).tolist()[3:] == [1.0, -1.0, 0.0]
    assert sigmoid(x)[0] == 1
    assert sigmoid(x)[1] == sigmoid(x)[4] == 0  # a closed gate times infinity is NaN
    assert sigmoid(x)[5] == 0.5
    assert tanh(x)[2].isnan()
    assert sigmoid(x)[2].isnan()
