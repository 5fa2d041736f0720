"""Description of a cell for the rest of the library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastrnn._numbers import finite

#: (wx (B, G·H) and rh (B, G·H), biases included; states, each (B, H); parameters, each (H)) -> new states, `h` first
Step = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class CellSpec:
    """Recurrent cell with one matrix product per time step.

    Attributes:
        name: the cell's name; its kernels are in ``csrc/cells/<name>.h``.
        gates: G, the number of blocks of H rows in the weights.
        gate_names: the names of the gates, in order.
        states: the names of the states, the hidden state ``h`` first.
        step: the differentiable plain PyTorch step; oracle of the tests and fallback of the kernels.
        projectable: True if ``h`` may be projected: the step does not read ``states[0]``, every gate has a product with
            it, and there are no other products and no parameters. As in csrc/ops/cell.h.
        second: the number of gates that multiply another vector than h, the last of the gates with a recurrent product.
            The step then receives, after the parameters, a function that returns their products (B, ·) for a vector.
        parameters: Q, the number of per-unit parameters; they are rows of ``w_hh`` after those of the gates.
        prepare: for a cell whose kernels are compiled on demand: compiles them, and returns the reason if it cannot.
        source: the paper, and which of its variants this is.
    """

    name: str
    gates: int
    states: tuple[str, ...]
    step: Step
    projectable: bool = False
    source: str = ""
    parameters: int = 0
    second: int = 0
    prepare: Callable[[torch.dtype, torch.device], str] | None = None
    gate_names: tuple[str, ...] = ()

    def check_projection(self, w_hr: Tensor | None) -> None:
        """Raise ValueError for a projection that the cell does not support."""
        if w_hr is not None and not self.projectable:
            raise ValueError(f"w_hr: the cell {self.name} cannot be used with a projection")


def check_limit(limit: Any) -> None:
    """Raise TypeError or ValueError unless ``clip_state_gradient`` is a positive number, also once it is a float."""
    if finite(limit, "clip_state_gradient", "a positive number") <= 0:
        raise ValueError(f"clip_state_gradient: expected a positive number, got {float(limit)}")
