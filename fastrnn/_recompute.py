"""Training with less memory: gates are not kept for the backward pass but computed again, segment by segment.

The forward pass goes through the sequence in segments and keeps inputs and the states between segments. The backward
pass takes the segments from the last to the first, runs each once more with everything kept, and pulls the gradients
back through it. With √T steps to a segment both what is kept and what is computed again at a time grow as √T, for one
more forward pass of time. What a segment is, is in ``_segments.py``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastrnn import _gpu, _ops
from fastrnn._segments import Segment, Some, States
from fastrnn.autograd import N_FIXED, Setting, _higher_order, _layer_backward


def check(recompute: Any) -> None:
    """Raises TypeError or ValueError unless it is a bool, or a number of steps that a segment may have.

    A single step is no segment: its products are made in another way, whose last bits may differ.
    """
    if isinstance(recompute, bool):
        return
    if not isinstance(recompute, int):
        raise TypeError(
            f"recompute: expected True, False or a number of steps for each segment, got {type(recompute).__name__}"
        )
    if recompute < 2:
        raise ValueError(f"recompute: expected True, False or at least 2 steps for each segment, got {recompute}")


def layer(
    cell: str,
    x: Tensor,
    weights: Some,
    states: States,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    recompute: bool | int,
) -> tuple[Tensor, States] | None:
    """`fastrnn.functional.sequence` for an input that requires a gradient; None where the arguments do not fit, which
    is for the operators to say, and under dispatch modes, which may have no values to decide on.
    """
    if torch._C._len_torch_dispatch_stack() > 0 or torch._C._get_tracing_state() is not None:
        return None
    if isinstance(x, Tensor) and x.is_cuda:
        lengths, reset = _to_gpu(lengths, x.device), _to_gpu(reset, x.device)
    if not _fits(cell, x, weights, states, batch_sizes, lengths, reset):
        return None
    steps = x.shape[0] if batch_sizes is None else batch_sizes.shape[0]
    borders = _borders(steps, max(2, math.isqrt(steps)) if recompute is True else recompute)
    y, *finals = Recomputed.apply(cell, reverse, borders, batch_sizes, lengths, reset, x, *weights, *states)
    return y, tuple(finals)


def _to_gpu(t: Tensor | None, device: torch.device) -> Tensor | None:
    return t.to(device, non_blocking=True) if isinstance(t, Tensor) else t


def _borders(steps: int, each: int) -> list[int]:
    """First steps of all segments, and the end. No segment of a single step, unless there are no more."""
    starts = list(range(0, steps, each))
    if len(starts) > 1 and steps - starts[-1] == 1:
        starts.pop()
    return [*starts, steps]


def _fits(
    cell: str,
    x: Tensor,
    weights: Some,
    states: States,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
) -> bool:
    """Whether an operator would take the whole call, as far as it depends on how rows lie and on sizes."""
    tensors = (x, *weights, *states, batch_sizes, lengths, reset)
    if not all(t is None or isinstance(t, Tensor) for t in tensors):
        return False
    if not (x.is_cpu or _gpu.takes(x)) or not (batch_sizes is None or batch_sizes.is_cpu):
        return False
    if not all(t is None or t is batch_sizes or t.device == x.device for t in tensors):
        return False
    w_ih, w_hh = weights[:2]
    if w_hh is None or w_hh.dim() != 2 or (w_ih is not None and w_ih.dim() != 2):
        return False
    if batch_sizes is not None:
        if x.dim() != 2 or lengths is not None or reset is not None:
            return False
        if batch_sizes.dim() != 1 or batch_sizes.dtype != torch.int64 or batch_sizes.numel() == 0:
            return False
        counts = batch_sizes.tolist()
        if counts[-1] < 1 or sum(counts) != x.shape[0] or counts != sorted(counts, reverse=True):
            return False
        batch = counts[0]
    else:
        if x.dim() != 3 or x.shape[0] == 0:
            return False
        batch = x.shape[1]
    sizes = _state_sizes(cell, batch, w_hh)
    if x.shape[-1] != w_hh.shape[0] if w_ih is None else x.shape[-1] != w_ih.shape[1]:
        return False
    if states and [tuple(s.shape) for s in states] != sizes:
        return False
    if reset is not None and (reset.dtype != torch.bool or reset.shape != x.shape[:2]):
        return False
    if lengths is None:
        return True
    whole = not (lengths.dtype.is_floating_point or lengths.dtype.is_complex or lengths.dtype == torch.bool)
    if not whole or lengths.shape != x.shape[1:2]:
        return False
    return not lengths.is_cpu or bool(((lengths >= 0) & (lengths <= x.shape[0])).all())


class Recomputed(torch.autograd.Function):
    """``apply(cell, reverse, borders, batch_sizes, lengths, reset, x, *weights, *states)`` → y, final states."""

    @staticmethod
    def forward(
        ctx: Any,
        cell: str,
        reverse: bool,
        borders: list[int],
        batch_sizes: Any,
        lengths: Any,
        reset: Any,
        x: Tensor,
        *tensors: Any,
    ) -> States:
        ctx.cell, ctx.reverse, ctx.borders = cell, reverse, borders
        ctx.set_materialize_grads(False)
        weights, states = tensors[: N_FIXED - 1], tensors[N_FIXED - 1 :]
        layout = (batch_sizes, lengths, reset)
        initial = states or _zero_states(ctx, x, weights, batch_sizes)
        y = x.new_empty(*x.shape[:-1], weights[1].shape[1])
        carried, kept = initial, list[Tensor]()
        for k in _order(ctx):
            if carried is not initial:
                kept.extend(carried)
            segment = _segment(ctx, layout, k)
            y[segment.rows], carried = segment.run(x, weights, carried, initial)
        ctx.save_for_backward(*layout, x, *tensors, *kept)
        ctx.count = 1 + len(tensors)
        return (y, *carried)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Some:
        nothing = (None,) * 6
        if all(g is None for g in grads):
            return (*nothing, *(None,) * ctx.count)
        saved = ctx.saved_tensors
        layout, inputs, kept = saved[:3], saved[3 : 3 + ctx.count], saved[3 + ctx.count :]
        needed = ctx.needs_input_grad[6:]
        needs = [*needed[:N_FIXED], any(needed[N_FIXED:])]
        if torch.compiler.is_compiling():  # compiled autograd, which cannot trace sizes that packed rows decide on
            run = _by_segments if layout[0] is None else _at_once
            found = run(ctx, layout, inputs, kept, grads, needs)
        elif torch.is_grad_enabled() or any(g is not None and _is_wrapped(g) for g in grads):
            found = _with_everything_kept(ctx, layout, inputs, grads, needs)
        else:
            found = _by_segments(ctx, layout, inputs, kept, grads, needs)
        padded = (*found, *(None for _ in inputs[len(found) :]))
        return (*nothing, *(g if need else None for g, need in zip(padded, needed, strict=True)))


def _is_wrapped(grad: Tensor) -> bool:
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(grad) or functorch.is_legacy_batchedtensor(grad)


def _segment(ctx: Any, layout: Some, k: int) -> Segment:
    return Segment(ctx.cell, ctx.reverse, layout, ctx.borders[k], ctx.borders[k + 1])


def _order(ctx: Any) -> list[int]:
    """The segments in the order of the forward pass."""
    order = list(range(len(ctx.borders) - 1))
    return order[::-1] if ctx.reverse else order


def _state_sizes(cell: str, batch: int, w_hh: Tensor) -> list[tuple[int, int]]:
    sizes = _ops.sizes_of(cell)
    # Only with one product there may be a projection, and h be narrower.
    hidden = w_hh.shape[0] // sizes.gates if sizes.one_product else w_hh.shape[1]
    return [(batch, hidden if s else w_hh.shape[1]) for s in range(sizes.states)]


def _zero_states(ctx: Any, x: Tensor, weights: Some, batch_sizes: Tensor | None) -> States:
    assert weights[1] is not None
    batch = x.shape[1] if batch_sizes is None else int(batch_sizes[0])
    return tuple(x.new_zeros(size) for size in _state_sizes(ctx.cell, batch, weights[1]))


def _with_everything_kept(ctx: Any, layout: Some, inputs: tuple[Any, ...], grads: Some, needs: list[bool]) -> Some:
    """Where gradients are differentiated themselves, or batched by vmap."""
    x, *weights = inputs[:N_FIXED]
    with torch.no_grad():
        y, _, reserve = _ops.forward(ctx.cell, x, *weights, inputs[N_FIXED:], *layout, ctx.reverse, True)
    batch_sizes, lengths, reset = layout
    results = (y, *reserve)
    return _higher_order(ctx.cell, ctx.reverse, batch_sizes, lengths, reset, tuple(needs), inputs, grads, results)


def _at_once(ctx: Any, layout: Some, inputs: tuple[Any, ...], _: States, grads: Some, needs: list[bool]) -> Some:
    """Gradients by one segment that is the whole sequence."""
    y, _, reserve = _ops.forward(ctx.cell, *inputs[:N_FIXED], inputs[N_FIXED:], *layout, ctx.reverse, True)
    return _layer_backward(Setting(ctx.cell, ctx.reverse, *layout), needs, inputs, grads, (y, *reserve))


def _by_segments(ctx: Any, layout: Some, inputs: tuple[Any, ...], kept: States, grads: Some, needs: list[bool]) -> Some:
    x, weights, states = inputs[0], inputs[1:N_FIXED], inputs[N_FIXED:]
    initial = states or _zero_states(ctx, x, weights, layout[0])
    grad_y = grads[0]
    after: list[Any] = list(grads[1:])
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format) if needs[0] else None
    sums: list[Tensor | None] = [grad_x, *(None for _ in weights)]
    extra: list[Tensor] | None = None
    order, width = _order(ctx), len(initial)
    for place in range(len(order) - 1, -1, -1):
        segment = _segment(ctx, layout, order[place])
        carried = kept[(place - 1) * width : place * width] if place else initial
        fixed, after, to_initial = segment.pull(
            x, weights, carried, initial, grad_y, after, [*needs[:N_FIXED], bool(place) or needs[N_FIXED]]
        )
        if grad_x is not None:
            grad_x[segment.rows] = fixed[0]
        for k in range(1, N_FIXED):
            if needs[k]:
                sums[k] = _add(sums[k], fixed[k])
        if to_initial is not None:
            extra = to_initial if extra is None else [a + b for a, b in zip(extra, to_initial, strict=True)]
    if extra is not None and needs[N_FIXED]:
        after = [a + b for a, b in zip(after, extra, strict=True)]
    out = [s if s is None or s.dtype == x.dtype else s.to(x.dtype) for s in sums]
    return (*out, *(after if needs[N_FIXED] else ()))


def _add(total: Tensor | None, part: Tensor) -> Tensor:
    """Sums of 16-bit parts are kept in float32."""
    part = part.float() if part.dtype in (torch.bfloat16, torch.float16) else part
    return part if total is None else total.add_(part)
