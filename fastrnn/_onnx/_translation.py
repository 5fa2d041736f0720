"""The operator ``sequence_forward`` in operations that the exporters translate to ONNX."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fastrnn import _ops, cells, reference
from fastrnn._onnx import _fused, _loop, _packed

States = tuple[Tensor, ...]
Weights = tuple[Tensor | None, ...]  # w_ih, w_hh, b_ih, b_hh, w_hr


def sequence_forward(
    cell: str,
    x: Tensor,
    w_ih: Tensor | None,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    w_hr: Tensor | None,
    states: Sequence[Tensor] | None,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    training: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return the operator's results. An exported model runs no backward pass, so that the tensors that training saves
    for it are empty.
    """
    weights = (w_ih, w_hh, b_ih, b_hh, w_hr)
    initial = tuple(states) if states else None
    if batch_sizes is None:
        y, finals = layer(cell, x, weights, initial, lengths, reset, reverse)
    else:
        rows = _packed.Rows(batch_sizes, x, initial)
        y, finals = layer(cell, rows.pad(x), weights, initial, rows.lengths, None, reverse)
        y = rows.pack(y)
    return y, list(finals), [w_hh.new_empty(0) for _ in range(4)] if training else []


def layer(
    cell: str,
    x: Tensor,
    weights: Weights,
    states: States | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, States]:
    """Run one layer in one direction on padded input (T, B, I): a node of ONNX where there is one, else a loop."""
    cell = cells.split_bound(cell)[0]  # clipping gradients has no effect in inference
    if _fused.can_take(cell, weights, reset):
        return _fused.layer(cell, x, weights, states, lengths, reverse)
    spec = cells.find(cell)
    assert spec is not None
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    assert w_hh is not None
    if states is None:
        states = reference.zero_states(spec, x, x.shape[1], *_ops.state_widths(w_hh, w_hr))
    if w_ih is not None:
        wx = F.linear(x, w_ih, b_ih)
    else:
        wx = x if b_ih is None else x + b_ih
    return _loop.layer(spec, wx, (w_hh, b_hh, w_hr), states, lengths, reset, reverse)
