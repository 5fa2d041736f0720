"""Gated units with a single state."""

from __future__ import annotations

from typing import Any

import torch

import fastrnn


@fastrnn.cell(gates="f u")
def one_state(x: Any, r: Any, s: Any) -> Any:
    """One-state gated unit: the cell of an LSTM without output gate and with the input gate fixed at one.

        f = σ(W_f·x + b_f + R_f·h + b_rf)
        u = tanh(W_u·x + b_u + R_u·h + b_ru)
        h' = f*h + u

    The smallest cell whose gradient passes a time step multiplied by f, without a matrix; an intermediate between the
    Elman network and the LSTM in lectures on recurrent networks. h is not bounded by 1.
    Shapes: W (2·H, I), R (2·H, H), blocks f, u. Initialisation: all within ±1/√H, as torch.nn.
    """
    f = torch.sigmoid(x.f + r.f)
    return f * s.h + torch.tanh(x.u + r.u)
