r"""Elman recurrent network with relu.

.. math::
    h' = \operatorname{relu}(W x + b + R h + b_r)

Source: Elman 1990.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastrnn.cells._spec import CellSpec


def step(wx: Tensor, rh: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Run one time step: wx, rh (B, H); state h (B, H) -> h' (B, H)."""
    return (torch.relu(wx + rh),)


CELL = CellSpec("rnn_relu", 1, ("h",), step, source="Elman 1990", gate_names=("h",))
