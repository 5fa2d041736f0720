"""Cells with a second recurrent product in each time step, of a vector computed from the first."""

from __future__ import annotations

from typing import Any

import torch

import fastrnn


@fastrnn.cell(gates="r z n")
def gru_reset_before(x: Any, r: Any, s: Any) -> Any:
    """Gated recurrent unit that resets before the product.

        r, z = σ(W·x + b + R·h + b_r)
        n = tanh(W_n·x + b_n + R_n·(r*h) + b_rn)
        h' = z*h + (1-z)*n

    Cho et al., Learning phrase representations using RNN encoder-decoder, 2014 (arXiv:1406.1078v3); torch's and
    cuDNN's GRU, :class:`fastrnn.GRU`, resets after the product. Shapes: W (3·H, I), R (3·H, H). Initialisation: all
    within ±1/√H, as torch.nn.
    """
    z = torch.sigmoid(x.z + r.z)
    n = torch.tanh(x.n + r.n(torch.sigmoid(x.r + r.r) * s.h))
    return z * s.h + (1 - z) * n


@fastrnn.cell(gates="z r h")
def mut1(x: Any, r: Any, s: Any) -> Any:
    """MUT1, the first of three cells found by evolutionary search.

        z = σ(W_z·x + b_z),  r = σ(W_r·x + R_r·h + b_r)
        h' = tanh(R_h·(r*h) + tanh(W_h·x) + b_h)*z + h*(1-z)

    Jozefowicz, Zaremba and Sutskever, An empirical exploration of recurrent network architectures, 2015. The paper uses
    x itself in place of W_h·x, which needs as many inputs as units. Shapes: W (3·H, I), R (2·H, H) for r and h.
    Initialisation: all within ±1/√H, as torch.nn.
    """
    z = torch.sigmoid(x.z)
    return torch.tanh(r.h(torch.sigmoid(x.r + r.r) * s.h) + torch.tanh(x.h)) * z + s.h * (1 - z)


@fastrnn.cell(gates="z r h")
def mut2(x: Any, r: Any, s: Any) -> Any:
    """MUT2, the second of three cells found by evolutionary search.

        z = σ(W_z·x + R_z·h + b_z),  r = σ(W_r·x + R_r·h + b_r)
        h' = tanh(R_h·(r*h) + W_h·x + b_h)*z + h*(1-z)

    Jozefowicz, Zaremba and Sutskever, 2015, see :data:`mut1`; the paper uses x itself in place of W_r·x. Shapes: W
    (3·H, I), R (3·H, H). Initialisation: all within ±1/√H, as torch.nn.
    """
    z = torch.sigmoid(x.z + r.z)
    return torch.tanh(r.h(torch.sigmoid(x.r + r.r) * s.h) + x.h) * z + s.h * (1 - z)


@fastrnn.cell(gates="z r h")
def mut3(x: Any, r: Any, s: Any) -> Any:
    """MUT3, the third of three cells found by evolutionary search.

        z = σ(W_z·x + R_z·tanh(h) + b_z),  r = σ(W_r·x + R_r·h + b_r)
        h' = tanh(R_h·(r*h) + W_h·x + b_h)*z + h*(1-z)

    Jozefowicz, Zaremba and Sutskever, 2015, see :data:`mut1`. Shapes: W (3·H, I), R (3·H, H) with blocks r, z, h.
    Initialisation: all within ±1/√H, as torch.nn.
    """
    z = torch.sigmoid(x.z + r.z(torch.tanh(s.h)))
    return torch.tanh(r.h(torch.sigmoid(x.r + r.r) * s.h) + x.h) * z + s.h * (1 - z)


@fastrnn.cell(gates="m h")
def multiplicative_rnn(x: Any, r: Any, s: Any) -> Any:
    """Multiplicative network, in which the input modulates the recurrent matrix.

        m = (W_m·x + b_m)*(R_m·h + b_rm)
        h' = tanh(W_h·x + b_h + R_h·m + b_rh)

    Sutskever, Martens and Hinton, Generating text with recurrent neural networks, 2011, with as many factors as units.
    Shapes: W (2·H, I), R (2·H, H). Initialisation: all within ±1/√H, as torch.nn.
    """
    return torch.tanh(x.h + r.h(x.m * r.m))


@fastrnn.cell(gates="m i f o g", states="h c")
def multiplicative_lstm(x: Any, r: Any, s: Any) -> Any:
    """Multiplicative LSTM.

        m = (W_m·x + b_m)*(R_m·h + b_rm)
        i, f, o = σ(W·x + b + R·m + b_r),  g = tanh(W_g·x + b_g + R_g·m + b_rg)
        c' = f*c + i*g,  h' = o*tanh(c')

    Krause et al., Multiplicative LSTM for sequence modelling, 2016 (arXiv:1609.07959). Shapes: W (5·H, I), R (5·H, H).
    Initialisation: all within ±1/√H, as torch.nn.
    """
    m = x.m * r.m
    i, f, o = (torch.sigmoid(x[gate] + r[gate](m)) for gate in "ifo")
    c = f * s.c + i * torch.tanh(x.g + r.g(m))
    return o * torch.tanh(c), c
