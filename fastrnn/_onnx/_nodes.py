"""Nodes of ONNX in a captured program and in a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def recurrent(node: str, inputs: Sequence[Tensor | None], attributes: dict[str, Any], states: int) -> list[Tensor]:
    """A node LSTM, GRU or RNN: Y (T, 1, B, H) and as many final states (1, B, H).

    ``inputs`` are ONNX's: x (T, B, I), W, R, bias or None, lengths or None, then the initial states or None.
    """
    x, _, w_hh = inputs[:3]
    assert x is not None
    assert w_hh is not None
    final = (1, x.shape[1], w_hh.shape[2])
    shapes = [(x.shape[0], *final), *[final] * states]
    found = torch.onnx.ops.symbolic_multi_out(
        node, list(inputs), attributes, dtypes=[x.dtype] * len(shapes), shapes=shapes
    )
    return list(found)
