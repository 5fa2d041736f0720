"""Error messages for arguments of ``functional.sequence`` that do not fit."""

from __future__ import annotations

import pytest
import torch
from bad_calls import BAD, W, X

from fastrnn.functional import LayerWeights, lstm


@pytest.mark.parametrize("name", BAD)
def test_error(name):
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call()


def test_fallback_warns_once_with_the_reason():
    weights = LayerWeights(W.w_ih.cfloat(), W.w_hh.cfloat())
    from fastrnn import _paths

    _paths._warned.clear()
    with pytest.warns(UserWarning, match="no kernels for torch.complex64 on cpu"):
        y, _ = lstm(X.cfloat(), weights)
    assert y.dtype == torch.complex64
    lstm(X.cfloat(), weights)  # pytest turns a second warning into an error


def test_empty_batch():
    y, (h, c) = lstm(torch.randn(4, 0, 3), W)
    assert y.shape == (4, 0, 2)
    assert h.shape == c.shape == (0, 2)
    w = LayerWeights(*(t.clone().requires_grad_() for t in W[:4]))
    y, _ = lstm(torch.randn(4, 0, 3), w)
    y.sum().backward()
    assert all(t.grad.abs().sum() == 0 for t in w[:4])
