r"""Gated recurrent unit with the reset gate after the product, as in torch and cuDNN.

.. math::
    r, z = σ(W_{r,z} x + b + R_{r,z} h + b_r), \quad n = \tanh(W_n x + b_n + r * (R_n h + b_{rn}))

    h' = (1 - z) * n + z * h

Gates are in torch's order (r, z, n). Source: Cho et al. 2014, first version of the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastrnn.cells._spec import CellSpec


def step(wx: Tensor, rh: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Run one time step: wx, rh (B, 3·H); state h (B, H) -> h' (B, H)."""
    wr, wz, wn = wx.chunk(3, -1)
    rr, rz, rn = rh.chunk(3, -1)
    n = torch.tanh(wn + torch.sigmoid(wr + rr) * rn)
    return (n + torch.sigmoid(wz + rz) * (states[0] - n),)


CELL = CellSpec("gru", 3, ("h",), step, source="Cho 2014, v1 (reset after)", gate_names=("r", "z", "n"))
