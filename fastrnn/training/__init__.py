"""Training through time: truncated BPTT, a regulariser of the gradient's norm, DropConnect on recurrent weights.

For any recurrent module (fastrnn's, torch.nn's, networks of `fastrnn.cell`, models around them) `truncated_bptt`,
`detach` and `weight_drop`; for the kernels' calls `GradientNormPenalty`. The limit for ∂L/∂h_t at every step is a
keyword of the modules, ``clip_state_gradient``; learned initial states are one of their constructors.
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
