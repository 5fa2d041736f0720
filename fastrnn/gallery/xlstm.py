"""LSTM with exponential gates and scalar memory, from the xLSTM."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

import fastrnn


def _stabilised(x: Any, r: Any, s: Any, log_f: Any) -> Any:
    """Run one step, given the logarithm of the forget gate."""
    log_i = x.i + r.i
    # n = 0 only at the start of a sequence, where m' is set to i~; otherwise c'/n' could be 0/0 for small i.
    remembered = torch.where(s.n > 0, log_f + s.m, log_i)
    m = torch.maximum(remembered, log_i)
    i, f = torch.exp(log_i - m), torch.exp(remembered - m)
    c = f * s.c + i * torch.tanh(x.z + r.z)
    n = f * s.n + i
    return torch.sigmoid(x.o + r.o) * c / n, c, n, m


@fastrnn.cell(gates="i f z o", states="h c n m")
def slstm(x: Any, r: Any, s: Any) -> Any:
    """sLSTM with an exponential forget gate; k~ = W_k·x + b_k + R_k·h + b_rk for k = i, f, z, o.

        m' = max(f~ + m, i~)
        i = exp(i~ − m')
        f = exp(f~ + m − m')
        c' = f*c + i*tanh(z~)
        n' = f*n + i
        h' = σ(o~)*c'/n'

    Beck et al., xLSTM: extended long short-term memory, 2024; n normalises, m prevents overflow of the exponentials and
    cancels out of h'. Where n is 0, as at the beginning, f~ + m is replaced by i~ to avoid a division by 0.
    The paper's R is block-diagonal, with a block for each head: `slstm(input_size, hidden_size, heads=4)`. The causal
    convolution, group norm and projections around the paper's cell are ordinary layers.
    Shapes: W (4·H, I), R (4·H, H), blocks i, f, z, o. Initialisation: all within ±1/√H, as torch.nn. An initial state
    other than zero needs n > 0.
    """
    return _stabilised(x, r, s, x.f + r.f)


@fastrnn.cell(gates="i f z o", states="h c n m")
def slstm_sigmoid(x: Any, r: Any, s: Any) -> Any:
    """sLSTM with a logistic forget gate; k~ = W_k·x + b_k + R_k·h + b_rk for k = i, f, z, o.

        m' = max(log σ(f~) + m, i~)
        i = exp(i~ − m')
        f = exp(log σ(f~) + m − m')
        c' = f*c + i*tanh(z~)
        n' = f*n + i
        h' = σ(o~)*c'/n'

    Beck et al., xLSTM: extended long short-term memory, 2024, with the other of its two forget gates.
    Heads and the start at n = 0: see `slstm`.
    Shapes: W (4·H, I), R (4·H, H), blocks i, f, z, o. Initialisation: all within ±1/√H, as torch.nn. An initial state
    other than zero needs n > 0.
    """
    return _stabilised(x, r, s, F.logsigmoid(x.f + r.f))
