"""Nodes of ONNX in a captured program and in a trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn._onnx import _traced


def recurrent(
    node: str,
    inputs: Sequence[Tensor | None],
    attributes: dict[str, Any],
    states: int,
    compute: Callable[[], tuple[Tensor, ...]],
) -> tuple[Tensor, ...]:
    """A node LSTM, GRU or RNN: Y (T, 1, B, H) and as many final states (1, B, H).

    ``inputs`` are ONNX's: x (T, B, I), W, R, bias or None, lengths or None, then the initial states or None. A trace
    has values, which ``compute`` finds; a captured program only shapes.
    """
    if _traced.is_active():
        return _traced.node(node, inputs, attributes, 1 + states, compute)
    x, _, w_hh = inputs[:3]
    assert x is not None
    assert w_hh is not None
    final = (1, x.shape[1], w_hh.shape[2])
    shapes = [(x.shape[0], *final), *[final] * states]
    dtypes = [x.dtype] * len(shapes)
    return tuple(torch.onnx.ops.symbolic_multi_out(node, list(inputs), attributes, dtypes=dtypes, shapes=shapes))
