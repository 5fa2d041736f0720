"""Recurrent nodes of ONNX, in a captured program and in a trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn._onnx import _traced
from fastrnn._surroundings import is_traced_for_onnx


def recurrent(
    node: str,
    inputs: Sequence[Tensor | None],
    attributes: dict[str, Any],
    states: int,
    compute: Callable[[], tuple[Tensor, ...]],
) -> tuple[Tensor, ...]:
    """Add an LSTM, GRU or RNN node.

    Args:
        node: its type.
        inputs: ONNX's: x (T, B, I), W (1, G·H, I), R (1, G·H, H), bias (1, 2·G·H) or None, lengths (B) or None, and
            the initial states (1, B, H) or None.
        attributes: ONNX's.
        states: number of final states.
        compute: returns the values of the outputs, which a trace needs; a captured program has only shapes.

    Returns:
        Y (T, 1, B, H), and the final states (1, B, H).
    """
    if is_traced_for_onnx():
        return _traced.node(node, inputs, attributes, 1 + states, compute)
    x, _, w_hh = inputs[:3]
    assert x is not None
    assert w_hh is not None
    final = (1, x.shape[1], w_hh.shape[2])
    shapes = [(x.shape[0], *final), *[final] * states]
    dtypes = [x.dtype] * len(shapes)
    outputs = torch.onnx.ops.symbolic_multi_out(node, list(inputs), attributes, dtypes=dtypes, shapes=shapes)
    return tuple(output.to(x.device) for output in outputs)  # they are created on the CPU
