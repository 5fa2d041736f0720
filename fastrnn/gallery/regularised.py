"""LSTM with noise inside the recurrence. DropConnect on R needs no cell: it is a parametrization of ``weight_hh``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastrnn


def kept(rate: float, scaled: bool) -> Callable[[Tensor, bool], Tensor]:
    """Makes a mask for every step: 1 with probability 1 - rate. Outside training its mean, or if it is `scaled` in
    training (to have mean 1) ones.
    """

    def mask(like: Tensor, training: bool) -> Tensor:
        mean = torch.full_like(like, 1 - rate)
        if not training:
            return torch.ones_like(like) if scaled else mean
        drawn = torch.bernoulli(mean)
        return drawn / (1 - rate) if scaled else drawn

    return mask


@fastrnn.cell(gates="i f g o", states="h c", inputs={"keep_h": kept(0.05, False), "keep_c": kept(0.5, False)})
def zoneout_lstm(x: Any, r: Any, s: Any) -> Any:
    """LSTM with zoneout: a state stays as it was, with probability 0.05 (h) and 0.5 (c).

        i, f, o = σ(W·x + b + R·h + b_r),  g = tanh(W_g·x + b_g + R_g·h + b_rg)
        c' = k_c*(f*c + i*g) + (1-k_c)*c,  h' = k_h*(o*tanh(f*c + i*g)) + (1-k_h)*h

    Krueger et al., Zoneout: regularizing RNNs by randomly preserving hidden activations, 2017 (arXiv:1606.01305). The
    masks k are drawn for each step, row and unit; outside training they are their means.
    Shapes: W (4·H, I), R (4·H, H). Initialisation: all within ±1/√H, as torch.nn.
    """
    i, f, o = (torch.sigmoid(x[gate] + r[gate]) for gate in "ifo")
    c = f * s.c + i * torch.tanh(x.g + r.g)
    h = o * torch.tanh(c)
    return x.keep_h * h + (1 - x.keep_h) * s.h, x.keep_c * c + (1 - x.keep_c) * s.c


@fastrnn.cell(gates="i f g o", states="h c", inputs={"keep": kept(0.25, True)})
def recurrent_dropout_lstm(x: Any, r: Any, s: Any) -> Any:
    """LSTM with recurrent dropout: what is written is dropped, never what is remembered.

        i, f, o = σ(W·x + b + R·h + b_r),  g = tanh(W_g·x + b_g + R_g·h + b_rg)
        c' = f*c + i*(k*g),  h' = o*tanh(c')

    Semeniuta, Severyn and Barth, Recurrent dropout without memory loss, 2016 (arXiv:1603.05118), with a mask k for each
    step, of rate 0.25 and mean 1. Shapes: W (4·H, I), R (4·H, H). Initialisation: all within ±1/√H, as torch.nn.
    """
    i, f, o = (torch.sigmoid(x[gate] + r[gate]) for gate in "ifo")
    c = f * s.c + i * (x.keep * torch.tanh(x.g + r.g))
    return o * torch.tanh(c), c
