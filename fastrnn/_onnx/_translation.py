"""Translation of the operator ``sequence_forward`` to operations that the exporters support."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fastrnn import cells, reference
from fastrnn._call import N_SAVED, Call, LayerWeights
from fastrnn._onnx import _fused, _loop, _packed

States = tuple[Tensor, ...]


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
    restart: Sequence[Tensor] | None = None,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return the operator's results; tensors saved for backward are empty, as an exported model runs no backward."""
    weights = LayerWeights(w_ih, w_hh, b_ih, b_hh, w_hr)
    call = Call(cell, x, weights, tuple(states or ()), tuple(restart or ()), None, lengths, reset, reverse)
    if batch_sizes is None:
        y, finals = layer(call)
    else:
        rows = _packed.Rows(batch_sizes, x, call.states)
        y, finals = layer(call._replace(x=rows.pad(x), lengths=rows.lengths))
        y = rows.pack(y)
    return y, list(finals), [w_hh.new_empty(0) for _ in range(N_SAVED)] if training else []


def layer(call: Call) -> tuple[Tensor, States]:
    """Run one layer in one direction on padded input (T, B, I): an equivalent ONNX node if any, else a loop."""
    if _fused.can_take(call):
        return _fused.layer(call)
    spec = cells.find(call.cell)
    assert spec is not None
    x, w_ih, b_ih = call.x, call.weights.w_ih, call.weights.b_ih
    states = call.states or reference.zero_states(spec, x, x.shape[1], call.weights.hidden, call.weights.projected)
    if w_ih is not None:
        wx = F.linear(x, w_ih, b_ih)
    else:
        wx = x if b_ih is None else x + b_ih
    return _loop.layer(spec, call._replace(x=wx, states=states))
