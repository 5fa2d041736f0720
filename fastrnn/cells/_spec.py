"""What a cell is to the rest of the library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastrnn._numbers import finite

#: wx (B, G·H) and rh (B, G·H), biases included; states, each (B, H); parameters, each (H) -> new states, `h` first.
Step = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class CellSpec:
    """A recurrent cell with one matrix product per step.

    Attributes:
        name: the cell's name; its kernels are in ``csrc/cells/<name>.h``.
        gates: G, how many blocks of H rows the weights have.
        gate_names: their names, in order.
        states: names of the states, the hidden state ``h`` first.
        step: the differentiable plain-torch step, oracle of the tests and fallback of the kernels.
        projectable: whether ``h`` may be projected: the step does not read ``states[0]``, every gate has a product with
            it, and there are no other products and no parameters. The same as in csrc/ops/cell.h.
        second: how many gates multiply another vector than h: the last ones of those that multiply anything. The step
            then gets, behind the parameters, a function of that vector that gives their products (B, ·).
        parameters: Q, how many numbers each hidden unit has of its own; they are rows of ``w_hh`` behind the gates'.
        prepare: of a cell whose kernels are compiled when they are needed: does so, and says why it cannot.
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
        """Raise ValueError for a projection that the cell cannot be used with."""
        if w_hr is not None and not self.projectable:
            raise ValueError(f"w_hr: the cell {self.name} cannot be used with a projection")


def check_bound(bound: Any) -> None:
    """Raises TypeError or ValueError unless ``clip_state_gradient`` is a positive number, also as a float."""
    if finite(bound, "clip_state_gradient", "a positive number") <= 0:
        raise ValueError(f"clip_state_gradient: expected a positive number, got {float(bound)}")
