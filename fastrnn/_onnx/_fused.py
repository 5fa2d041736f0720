"""The nodes LSTM, GRU and RNN of ONNX.

ONNX (https://onnx.ai/onnx/operators/onnx__LSTM.html and related pages) orders the gates of an LSTM i, o, f, c and those
of a GRU z, r, h, and marks a GRU that resets after the product by ``linear_before_reset=1``. Both biases are one
vector. Weights, states and outputs have a dimension for directions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastrnn import _ops
from fastrnn._call import Call
from fastrnn._onnx import _nodes

States = tuple[Tensor, ...]


class Kind(NamedTuple):
    """Node type of ONNX that computes a cell."""

    node: str
    gates: tuple[int, ...]  # positions of ONNX's gates among torch's
    attributes: dict[str, Any]
    states: int = 1


KINDS = {
    "lstm": Kind("LSTM", (0, 3, 1, 2), {}, 2),
    "gru": Kind("GRU", (1, 0, 2), {"linear_before_reset": 1}),
    "rnn_tanh": Kind("RNN", (0,), {"activations": ["Tanh"]}),
    "rnn_relu": Kind("RNN", (0,), {"activations": ["Relu"]}),
}


def can_take(call: Call) -> bool:
    """Return True if an ONNX node is equivalent to this layer and onnxruntime can run it.

    ONNX has no projection, no resets, and no node that takes the input product. onnxruntime has no node in float64.
    """
    w_ih, w_hh, _, _, w_hr = call.weights
    if call.cell not in KINDS or call.reset is not None or w_ih is None or w_hr is not None:
        return False
    return w_hh.dtype != torch.float64


def layer(call: Call) -> tuple[Tensor, States]:
    """Run one layer in one direction: x (T, B, I), states (B, H), lengths (B) -> y (T, B, H), final states (B, H)."""
    kind, x, lengths, dtype = KINDS[call.cell], call.x, call.lengths, call.x.dtype
    w_ih, w_hh, b_ih, b_hh, _ = call.weights
    assert w_ih is not None
    inputs: list[Tensor | None] = [
        x,
        _in_order(w_ih, kind).unsqueeze(0),
        _in_order(w_hh, kind).unsqueeze(0),
        _bias(w_hh, b_ih, b_hh, kind),
        None if lengths is None else lengths.to(torch.int32),
        *(s.unsqueeze(0) for s in call.states),
        *(() if call.states else (None,)),
    ]
    if dtype is torch.bfloat16:  # ONNX allows it from opset 22 on, onnxruntime never
        inputs = [t.float() if t is not None and t.dtype is dtype else t for t in inputs]
    attributes = {
        **kind.attributes,
        "hidden_size": w_hh.shape[1],
        "direction": "reverse" if call.reverse else "forward",
    }

    def compute() -> tuple[Tensor, ...]:
        y, finals, _ = _ops.forward(call, False)
        wanted = torch.float32 if dtype is torch.bfloat16 else dtype
        return y.unsqueeze(1).to(wanted), *(f.unsqueeze(0).to(wanted) for f in finals)

    y, *finals = _nodes.recurrent(kind.node, inputs, attributes, kind.states, compute)
    y = y.squeeze(1).to(dtype)
    finals = [f.squeeze(0).to(dtype) for f in finals]
    if lengths is not None and call.states:  # onnxruntime returns zero as the final state of an empty row
        has_steps = (lengths > 0).unsqueeze(-1)
        finals = [torch.where(has_steps, f, s) for f, s in zip(finals, call.states, strict=True)]
    return y, tuple(finals)


def _in_order(weight: Tensor, kind: Kind) -> Tensor:
    """Reorder the rows of a weight or bias to ONNX's order of gates."""
    if len(kind.gates) == 1:
        return weight
    blocks = weight.chunk(len(kind.gates))
    return torch.cat([blocks[gate] for gate in kind.gates])


def _bias(w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None, kind: Kind) -> Tensor | None:
    """Join both biases, (1, 2·G·H); a missing one is zero."""
    if b_ih is None and b_hh is None:
        return None
    zeros = w_hh.new_zeros(w_hh.shape[0])
    return torch.cat([_in_order(zeros if b is None else b, kind) for b in (b_ih, b_hh)]).unsqueeze(0)
