"""FLOP formulas of the operators, for `torch.utils.flop_counter.FlopCounterMode`.

The mode counts matrix products, 2·m·n·k each, and so do these formulas. With the letters of
``docs/design/0001-spine.md``, N rows and R recurrent gates, a forward pass costs 2·N·(G·H·I + R·H·P), and a projection
adds 2·N·P·H. Every time step counts, including the first one from zero states, as in a loop of plain torch operations.
N is T·B for padded input, the sum of ``batch_sizes`` for packed input, and the sum of ``lengths`` where they can be
read (on the CPU and outside the compiler), else T·B. Element-wise operations count nothing.

In the backward pass each product of the forward pass adds one product for the gradient of its matrix and one for that
of its vector, if requested by ``wanted``. The gradient of the initial ``h`` is one product over N_0 rows, the batch
rows that have a first time step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import register_flop_formula

from fastrnn._call import LayerWeights, Wanted
from fastrnn._ops import traits_of

States = Sequence[Tensor] | None


class _Rows(NamedTuple):
    """N, and the number of those rows that are first time steps, which start from an initial state."""

    all: Any  # an integer, or a symbol of the compiler
    first: Any


def _rows(x: Tensor, states: States, batch_sizes: Tensor | None, lengths: Tensor | None) -> _Rows:
    if batch_sizes is not None:
        if states:
            return _Rows(x.shape[0], states[0].shape[0])
        return _Rows(x.shape[0], int(batch_sizes[0]) if _is_readable(batch_sizes) else 0)
    steps, batch = x.shape[:2]
    if lengths is not None and _is_readable(lengths):
        active = lengths.clamp(0, steps)
        return _Rows(int(active.sum()), int((active > 0).sum()))
    return _Rows(steps * batch, batch)


def _is_readable(t: Tensor) -> bool:
    return t.is_cpu and not isinstance(t, FakeTensor)


class _Products(NamedTuple):
    """Multiply-adds of one row, by product."""

    input: Any  # W·x
    recurrent: Any  # R·h
    second: Any  # recurrent matrices with other vectors than h
    projection: Any


def _products(cell: str, w_ih: Tensor | None, w_hh: Tensor, w_hr: Tensor | None) -> _Products:
    traits = traits_of(cell)
    weights = LayerWeights(w_ih, w_hh, w_hr=w_hr)
    hidden, projected = weights.hidden, weights.projected
    second = traits.second * hidden
    return _Products(
        0 if w_ih is None else w_ih.shape[0] * w_ih.shape[1],
        (w_hh.shape[0] - traits.parameters - second) * projected,
        second * projected,
        0 if w_hr is None else projected * hidden,
    )


@register_flop_formula(torch.ops.fastrnn.sequence_forward, get_raw=True)
def forward_flops(
    cell: str,
    x: Tensor,
    w_ih: Tensor | None,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    w_hr: Tensor | None,
    states: States,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    *_: Any,
    **more: Any,
) -> Any:
    """Count the FLOPs of a layer's forward pass."""
    return 2 * _rows(x, states, batch_sizes, lengths).all * sum(_products(cell, w_ih, w_hh, w_hr))


def _loop_flops(one: _Products, rows: _Rows, initial: bool) -> Any:
    """Count the FLOPs of gradients carried from step to step; with `initial`, also those of the initial states."""
    recurrent = rows.all if initial else rows.all - rows.first
    return 2 * (recurrent * one.recurrent + rows.all * (one.second + one.projection))


@register_flop_formula(torch.ops.fastrnn.layer_backward, get_raw=True)
def backward_flops(
    cell: str,
    grad_y: Tensor | None,
    grad_final: Sequence[Tensor | None],
    x: Tensor,
    w_ih: Tensor | None,
    w_hh: Tensor,
    w_hr: Tensor | None,
    states: States,
    y: Tensor,
    saved: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    wanted: Sequence[bool],
    *_: Any,
    **more: Any,
) -> Any:
    """Count the FLOPs of a layer's backward pass."""
    rows = _rows(y, states, batch_sizes, lengths)
    one = _products(cell, w_ih, w_hh, w_hr)
    want = Wanted(*wanted)
    gradients = (int(want.x) + int(want.w_ih)) * one.input + int(want.w_hh) * (one.recurrent + one.second)
    gradients += int(want.w_hr) * one.projection
    return _loop_flops(one, rows, want.states or want.restart) + 2 * rows.all * gradients
