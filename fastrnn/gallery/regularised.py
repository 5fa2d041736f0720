"""LSTM with noise in the recurrence. DropConnect on R needs no cell: see `fastrnn.training.weight_drop`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastrnn


def keep_mask(rate: float, scaled: bool) -> Callable[[Tensor, bool], Tensor]:
    """Return a function that draws a mask for every time step: 1 with probability 1 - rate.

    If `scaled`, the mask is divided by 1 - rate in training and is 1 otherwise; else it is 1 - rate outside training.
    """

    def mask(like: Tensor, training: bool) -> Tensor:
        mean = torch.full_like(like, 1 - rate)
        if not training:
            return torch.ones_like(like) if scaled else mean
        drawn = torch.bernoulli(mean)
        return drawn / (1 - rate) if scaled else drawn

    return mask


@fastrnn.cell(gates="i f g o", states="h c", inputs={"keep_h": keep_mask(0.05, False), "keep_c": keep_mask(0.5, False)})
def zoneout_lstm(x: Any, r: Any, s: Any) -> Any:
    """LSTM with zoneout: a state keeps its old value with probability 0.05 (h) and 0.5 (c).

        i, f, o = σ(W·x + b + R·h + b_r),  g = tanh(W_g·x + b_g + R_g·h + b_rg)
        c' = k_c*(f*c + i*g) + (1-k_c)*c,  h' = k_h*(o*tanh(f*c + i*g)) + (1-k_h)*h

    Krueger et al., Zoneout: regularizing RNNs by randomly preserving hidden activations, 2017 (arXiv:1606.01305). The
    masks k are drawn for each time step, batch row and unit; outside training they are their means.
    Shapes: W (4·H, I), R (4·H, H). Initialisation: all within ±1/√H, as torch.nn.
    """
    i, f, o = (torch.sigmoid(x[gate] + r[gate]) for gate in "ifo")
    c = f * s.c + i * torch.tanh(x.g + r.g)
    h = o * torch.tanh(c)
    return x.keep_h * h + (1 - x.keep_h) * s.h, x.keep_c * c + (1 - x.keep_c) * s.c


@fastrnn.cell(gates="i f g o", states="h c", inputs={"keep": keep_mask(0.25, True)})
def recurrent_dropout_lstm(x: Any, r: Any, s: Any) -> Any:
    """LSTM with recurrent dropout of the update to the cell state, never of the cell state itself.

        i, f, o = σ(W·x + b + R·h + b_r),  g = tanh(W_g·x + b_g + R_g·h + b_rg)
        c' = f*c + i*(k*g),  h' = o*tanh(c')

    Semeniuta, Severyn and Barth, Recurrent dropout without memory loss, 2016 (arXiv:1603.05118), with a mask k for each
    time step, of rate 0.25 and mean 1. Shapes: W (4·H, I), R (4·H, H). Initialisation: all within ±1/√H, as torch.nn.
    """
    i, f, o = (torch.sigmoid(x[gate] + r[gate]) for gate in "ifo")
    c = f * s.c + i * (x.keep * torch.tanh(x.g + r.g))
    return o * torch.tanh(c), c
