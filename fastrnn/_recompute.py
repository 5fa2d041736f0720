"""Training with less memory: gates are not saved for backward but recomputed, segment by segment.

The forward pass runs over the sequence in segments and saves the input and the states between segments. The backward
pass runs the segments from the last to the first: it runs each once more with everything saved and propagates the
gradients through it. With √T time steps to a segment, both the saved tensors and the part recomputed at a time grow as
√T, at the cost of one more forward pass.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn import _gpu, _ops
from fastrnn import _surroundings as here
from fastrnn._call import N_FIXED, Call, Gradients, Wanted, as_returned, needs_of, save, saved, wanted_of
from fastrnn.autograd import BackwardPass, differentiable_backward

States = tuple[Tensor, ...]
Some = Sequence[Tensor | None]


def check(recompute: Any) -> None:
    """Raise TypeError or ValueError unless ``recompute`` is a bool or a valid number of time steps per segment.

    A segment of one time step is not allowed: its products use other kernels, whose last bits may differ.
    """
    if isinstance(recompute, bool):
        return
    if not isinstance(recompute, int):
        raise TypeError(
            f"recompute: expected True, False or a number of steps for each segment, got {type(recompute).__name__}"
        )
    if recompute < 2:
        raise ValueError(f"recompute: expected True, False or at least 2 steps for each segment, got {recompute}")


def layer(call: Call, recompute: bool | int) -> tuple[Tensor, States] | None:
    """Run a layer whose input requires a gradient. Return None for invalid arguments, which the operators report, and
    under dispatch modes, whose tensors may have no values.
    """
    if here.has_modes() or torch._C._get_tracing_state() is not None:
        return None
    if isinstance(call.x, Tensor) and call.x.is_cuda:
        on = call.x.device
        call = call._replace(lengths=_to_gpu(call.lengths, on), reset=_to_gpu(call.reset, on))
    if not _fits(call):
        return None
    steps = call.x.shape[0] if call.batch_sizes is None else call.batch_sizes.shape[0]
    if steps == 1:  # recomputing saves nothing
        return None
    borders = _borders(steps, max(2, math.isqrt(steps)) if recompute is True else recompute)
    y, *finals = Recomputed.apply(borders, *call.flat())
    return y, tuple(finals)


def _to_gpu(t: Tensor | None, device: torch.device) -> Tensor | None:
    return t.to(device, non_blocking=True) if isinstance(t, Tensor) else t


def _borders(steps: int, each: int) -> list[int]:
    """Return the first time steps of all segments, and the end. Only a sequence of one step has such a segment."""
    starts = list(range(0, steps, each))
    if len(starts) > 1 and steps - starts[-1] == 1:
        starts.pop()
    return [*starts, steps]


def _fits(call: Call) -> bool:
    """Return True if an operator would accept the call, as far as row layout and sizes are concerned."""
    x, (w_ih, w_hh, *_) = call.x, call.weights
    tensors = (*call.inputs, *call.layout)
    if not all(t is None or isinstance(t, Tensor) for t in tensors):
        return False
    if not (x.is_cpu or _gpu.takes(x)) or not (call.batch_sizes is None or call.batch_sizes.is_cpu):
        return False
    if not all(t is None or t is call.batch_sizes or t.device == x.device for t in tensors):
        return False
    if w_hh is None or w_hh.dim() != 2 or (w_ih is not None and w_ih.dim() != 2):
        return False
    batch = _batch_of(call)
    if batch is None or x.shape[-1] != (w_hh.shape[0] if w_ih is None else w_ih.shape[1]):
        return False
    sizes = _state_sizes(call, batch)
    return all(not states or [tuple(s.shape) for s in states] == sizes for states in (call.states, call.restart))


def _batch_of(call: Call) -> int | None:
    """Return B, or None if the row layout is invalid for an operator."""
    x, (batch_sizes, lengths, reset) = call.x, call.layout
    if batch_sizes is not None:
        if x.dim() != 2 or lengths is not None or reset is not None:
            return None
        if batch_sizes.dim() != 1 or batch_sizes.dtype != torch.int64 or batch_sizes.numel() == 0:
            return None
        counts = batch_sizes.tolist()
        if counts[-1] < 1 or sum(counts) != x.shape[0] or counts != sorted(counts, reverse=True):
            return None
        return counts[0]
    if x.dim() != 3 or x.shape[0] == 0:
        return None
    if reset is not None and (reset.dtype != torch.bool or reset.shape != x.shape[:2]):
        return None
    if lengths is not None:
        whole = not (lengths.dtype.is_floating_point or lengths.dtype.is_complex or lengths.dtype == torch.bool)
        if not whole or lengths.shape != x.shape[1:2]:
            return None
        if lengths.is_cpu and not bool(((lengths >= 0) & (lengths <= x.shape[0])).all()):
            return None
    return x.shape[1]


def _state_sizes(call: Call, batch: int) -> list[tuple[int, int]]:
    hidden, projected = call.weights.hidden, call.weights.projected
    return [(batch, hidden if s else projected) for s in range(_ops.traits_of(call.cell).states)]


def _initial(call: Call) -> States:
    if call.states:
        return call.states
    batch = call.x.shape[1] if call.batch_sizes is None else int(call.batch_sizes[0])
    return tuple(call.x.new_zeros(size) for size in _state_sizes(call, batch))


class Segment:
    """Time steps `start` to `stop` of a call, as a call of its own that starts from the previous segment's states."""

    def __init__(self, whole: Call, restart: States, start: int, stop: int):
        batch_sizes, lengths, reset = whole.layout
        self.rows = slice(start, stop)
        self.batch: int | None = None  # batch rows of the first time step of packed input
        self.flags: Tensor | None = None  # (B, 1): rows of a reversed segment followed by a new one
        if batch_sizes is not None:
            first = int(batch_sizes[:start].sum())
            batch_sizes = batch_sizes[start:stop]
            self.rows = slice(first, first + int(batch_sizes.sum()))
            self.batch = int(batch_sizes[0])
        if reset is not None and whole.reverse and stop < reset.shape[0]:
            # A batch row whose sequence is too short to reach this step has no reset there.
            flags = reset[stop] if lengths is None else reset[stop] & (stop < lengths)
            self.flags = flags.unsqueeze(-1)
        self.restart = restart
        self.call = whole._replace(
            x=whole.x[self.rows],
            restart=restart if reset is not None else (),
            batch_sizes=batch_sizes,
            lengths=None if lengths is None else (lengths.long() - start).clamp(0, stop - start),
            reset=None if reset is None else reset[start:stop],
        )

    def _entered(self, carried: States) -> Call:
        if self.batch is not None:
            carried = tuple(s[: self.batch] for s in carried)
        if self.flags is not None:
            carried = tuple(torch.where(self.flags, r, s) for r, s in zip(self.restart, carried, strict=True))
        return self.call._replace(states=carried)

    def run(self, carried: States) -> tuple[Tensor, States]:
        """Return the output rows, and the states after the segment."""
        y, finals, _ = _ops.forward(self._entered(carried), False)
        if self.batch is not None:
            finals = [torch.cat((f, s[self.batch :])) for f, s in zip(finals, carried, strict=True)]
        return y, tuple(finals)

    def pull(self, carried: States, grad_y: Tensor | None, grad_after: Some, wanted: Wanted) -> Gradients:
        """Return the gradients of the inputs, of the states before the segment, and of those after resets."""
        call = self._entered(carried)
        y, _, results = _ops.forward(call, True)
        grads = [None if grad_y is None else grad_y[self.rows], *grad_after]
        if self.batch is not None:
            grads[1:] = [None if g is None else g[: self.batch] for g in grad_after]
        wanted = wanted._replace(restart=wanted.states and bool(call.restart))
        gradients = _ops.backward(call, grads, y, results, wanted)
        if self.batch is not None and gradients.states:  # rows absent here pass the gradients of their states on
            rest = [
                g.new_zeros(carried[0].shape[0] - self.batch, g.shape[1]) if a is None else a[self.batch :]
                for g, a in zip(gradients.states, grad_after, strict=True)
            ]
            gradients = gradients._replace(
                states=tuple(torch.cat(pair) for pair in zip(gradients.states, rest, strict=True))
            )
        if self.flags is not None and gradients.states:
            zero = y.new_zeros(())
            back = [torch.where(self.flags, g, zero) for g in gradients.states]
            gradients = gradients._replace(
                states=tuple(torch.where(self.flags, zero, g) for g in gradients.states),
                restart=tuple(r + b for r, b in zip(gradients.restart, back, strict=True)),
            )
        return gradients


class Recomputed(torch.autograd.Function):
    """``apply(borders, *call.flat())`` → y, final states."""

    @staticmethod
    def forward(ctx: Any, borders: list[int], *flat: Any) -> States:
        call = Call.of_flat(*flat)
        ctx.borders = borders
        ctx.set_materialize_grads(False)
        initial = _initial(call)
        y = call.x.new_empty(*call.x.shape[:-1], call.weights.w_hh.shape[1])
        carried, between = initial, list[Tensor]()
        for segment in _segments(call, borders, call.restart or initial):
            if carried is not initial:
                between.extend(carried)
            y[segment.rows], carried = segment.run(carried)
        save(ctx, call, *between)
        return (y, *carried)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Some:
        if all(g is None for g in grads):
            return (None,) * len(ctx.needs_input_grad)
        call, between = saved(ctx)
        needs = needs_of(ctx, call)
        wanted = wanted_of(needs)
        if here.is_compiling() and call.batch_sizes is not None:
            # Compiled autograd cannot trace sizes that depend on packed rows: one segment of the whole sequence.
            y, _, results = _ops.forward(call, True)
            gradients: Some = BackwardPass(call, grads, y, results, wanted).run()
        elif not here.is_compiling() and (torch.is_grad_enabled() or any(map(_is_wrapped, grads))):
            # Gradients that are differentiated themselves, or batched by vmap: save everything.
            with torch.no_grad():
                y, _, results = _ops.forward(call, True)
            gradients = differentiable_backward(call.flat(), wanted, grads, (y, *results))
        else:
            gradients = _by_segments(call, ctx.borders, between, grads, wanted)
        return as_returned(ctx, needs, gradients)


def _is_wrapped(grad: Tensor | None) -> bool:
    return grad is not None and (here.is_wrapped(grad) or here.is_batched(grad))


def _segments(call: Call, borders: list[int], restart: States) -> list[Segment]:
    """Return the segments in the order of the forward pass."""
    segments = [Segment(call, restart, *pair) for pair in itertools.pairwise(borders)]
    return segments[::-1] if call.reverse else segments


def _by_segments(call: Call, borders: list[int], between: States, grads: Some, wanted: Wanted) -> list[Tensor | None]:
    initial = _initial(call)
    width = len(initial)
    after: Some = grads[1:]
    grad_x = torch.empty_like(call.x, memory_format=torch.contiguous_format) if wanted.x else None
    sums: list[Tensor | None] = [None] * N_FIXED
    restarted: States = ()
    segments = _segments(call, borders, call.restart or initial)
    into_states = wanted.states or wanted.restart
    for place in range(len(segments) - 1, -1, -1):
        segment = segments[place]
        carried = between[(place - 1) * width : place * width] if place else initial
        results = segment.pull(carried, grads[0], after, wanted._replace(states=bool(place) or into_states))
        after = results.states
        for k, g in enumerate(results.fixed):
            if g is None:
                continue
            if k == 0 and grad_x is not None:
                grad_x[segment.rows] = g
            else:
                sums[k] = _add(sums[k], g)
        if results.restart:
            pairs = zip(restarted, results.restart, strict=True) if restarted else ()
            restarted = tuple(r + g for r, g in pairs) or results.restart
    out = [s if s is None or s.dtype == call.x.dtype else s.to(call.x.dtype) for s in sums]
    out[0] = grad_x
    if restarted and wanted.states and not call.restart:
        after = [r if a is None else a + r for a, r in zip(after, restarted, strict=True)]
    states = after if wanted.states and call.states else (None,) * len(call.states)
    zeros = [torch.zeros_like(s) for s in call.restart]
    return [*out, *states, *((restarted or zeros) if wanted.restart else (None,) * len(call.restart))]


def _add(total: Tensor | None, part: Tensor) -> Tensor:
    """Add a part to a sum; sums of 16-bit parts are accumulated in float32."""
    part = part.float() if part.dtype in (torch.bfloat16, torch.float16) else part
    return part if total is None else total.add_(part)
