"""Elman networks with other activations than those of :class:`fastrnn.RNN` (tanh, relu)."""

from __future__ import annotations

from typing import Any

import torch

import fastrnn


@fastrnn.cell(gates="h")
def elman_sigmoid(x: Any, r: Any, s: Any) -> Any:
    """Elman network with logistic units, as in the paper.

        h' = σ(W·x + b + R·h + b_r)

    Elman, Finding structure in time, 1990, where the copied hidden units are called context units.
    Shapes: W (H, I), R (H, H). Initialisation: all within ±1/√H, as torch.nn.
    """
    return torch.sigmoid(x.h + r.h)


@fastrnn.cell(gates="h")
def elman_identity(x: Any, r: Any, s: Any) -> Any:
    """Linear recurrence.

        h' = W·x + b + R·h + b_r

    The model behind analyses of vanishing and exploding gradients: Pascanu et al., On the difficulty of training
    recurrent neural networks, 2013; Saxe et al., Exact solutions to the nonlinear dynamics of learning, 2014.
    Shapes: W (H, I), R (H, H). Initialisation: all within ±1/√H, as torch.nn; orthogonal R keeps the norm of h.
    """
    return x.h + r.h
