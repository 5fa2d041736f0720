r"""Long short-term memory.

.. math::
    i, f, o = σ(W_{i,f,o} x + b + R_{i,f,o} h + b_r), \quad g = \tanh(W_g x + b_g + R_g h + b_{rg})

    c' = f * c + i * g, \qquad h' = o * \tanh(c')

Gates are in torch's order (i, f, g, o). With a projection (Sak 2014) ``h' = P · (o * tanh(c'))``.
Source: Hochreiter & Schmidhuber 1997 with the forget gate of Gers 2000.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastrnn.cells._spec import CellSpec


def step(wx: Tensor, rh: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Run one time step: wx, rh (B, 4·H); states h (B, P), c (B, H) -> h' before any projection (B, H), c' (B, H)."""
    i, f, g, o = (wx + rh).chunk(4, -1)
    c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


CELL = CellSpec(
    "lstm",
    4,
    ("h", "c"),
    step,
    projectable=True,
    source="Hochreiter & Schmidhuber 1997; Gers 2000; Sak 2014",
    gate_names=("i", "f", "g", "o"),
)
