"""Training through time: truncated BPTT, regularisation of the gradient's norm, DropConnect on recurrent weights.

`truncated_bptt`, `detach` and `weight_drop` work with any recurrent module: fastrnn's, torch.nn's, networks of
`fastrnn.cell`, and models that contain them; `GradientNormPenalty` needs calls of the kernels. The limit for ∂L/∂h_t at
every time step is a keyword of the modules, ``clip_state_gradient``; learned initial states are a keyword of their
constructors.
"""

from __future__ import annotations

from fastrnn.training.bptt import Chunk, TruncatedBPTT, truncated_bptt
from fastrnn.training.penalty import GradientNormPenalty
from fastrnn.training.states import detach
from fastrnn.training.weight_drop import remove_weight_drop, weight_drop

__all__ = [
    "Chunk",
    "GradientNormPenalty",
    "TruncatedBPTT",
    "detach",
    "remove_weight_drop",
    "truncated_bptt",
    "weight_drop",
]
