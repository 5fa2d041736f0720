"""Recurrences without a recurrent matrix product: each unit depends on its own state only."""

from __future__ import annotations

from typing import Any

import torch

import fastrnn


@fastrnn.cell(gates="h", parameters={"u": lambda u: u.uniform_(0, 1)})
def indrnn(x: Any, r: Any, s: Any, p: Any) -> Any:
    """Independently recurrent network.

        h' = relu(W·x + b + u*h)

    Li et al., Independently recurrent neural network (IndRNN), 2018 (arXiv:1803.04831). Shapes: W (H, I), u (H).
    Initialisation: W within ±1/√H, u within 0 and 1; for T steps the paper keeps abs(u) below the T-th root of 2.
    """
    return torch.relu(x.h + p.u * s.h)


@fastrnn.cell(gates="u f r skip", states="h c", parameters="v_f v_r")
def sru(x: Any, r: Any, s: Any, p: Any) -> Any:
    """Simple recurrent unit.

        f = σ(W_f·x + v_f*c + b_f),  r = σ(W_r·x + v_r*c + b_r)
        c' = f*c + (1-f)*(W·x),  h' = r*c' + (1-r)*(W_s·x)

    Lei et al., Simple recurrent units for highly parallelizable recurrence, 2018 (arXiv:1709.02755). The paper uses x
    itself in place of W_s·x if there are as many inputs as units. Shapes: W (4·H, I), v (H) each. Initialisation: W
    within ±1/√H, v zero.
    """
    f = torch.sigmoid(x.f + p.v_f * s.c)
    reset = torch.sigmoid(x.r + p.v_r * s.c)
    c = f * s.c + (1 - f) * x.u
    return reset * c + (1 - reset) * x.skip, c


@fastrnn.cell(gates="z h")
def min_gru(x: Any, r: Any, s: Any) -> Any:
    """Minimal GRU, whose gate depends on the input only, so that it is linear in h.

        z = σ(W_z·x + b_z)
        h' = (1-z)*h + z*(W_h·x + b_h)

    Feng et al., Were RNNs all we needed?, 2024 (arXiv:2410.01201). Shapes: W (2·H, I). Initialisation: within ±1/√H.
    """
    z = torch.sigmoid(x.z)
    return (1 - z) * s.h + z * x.h


@fastrnn.cell(gates="f i h")
def min_lstm(x: Any, r: Any, s: Any) -> Any:
    """Minimal LSTM, whose gates depend on the input only and sum to one.

        f, i = σ(W·x + b),  f' = f/(f+i),  i' = i/(f+i)
        h' = f'*h + i'*(W_h·x + b_h)

    Feng et al., Were RNNs all we needed?, 2024 (arXiv:2410.01201). Shapes: W (3·H, I). Initialisation: within ±1/√H.
    """
    # If both gates are nearly closed, both would underflow and the quotients become 0/0. Opening both by the same
    # amount leaves the quotients unchanged (up to exp(-40)).
    shift = torch.clamp(torch.maximum(x.f, x.i) + 40, max=0)
    f, i = torch.sigmoid(x.f - shift), torch.sigmoid(x.i - shift)
    return (f * s.h + i * x.h) / (f + i)
