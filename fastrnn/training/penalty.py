r"""A regulariser that keeps the norm of the gradient as it goes back through time.

.. math::
    Ω = \sum_t \left( \frac{‖ λ_{t+1} · ∂s_{t+1}/∂s_t ‖}{‖ λ_{t+1} ‖} - 1 \right)^2

with s_t the states after step t and λ_t = ∂L/∂s_t. For a network of one state this is the formula of Pascanu, Mikolov
and Bengio, On the difficulty of training recurrent neural networks, 2013 (arXiv:1211.5063). Of an LSTM, and of any
other cell with several states, s_t is all of them together, (h, c): the gradient that the cell state carries counts
too.

Its gradient is the paper's *immediate* derivative, for the recurrent matrix R: states, λ and the values inside the step
are held constant, and only where R stands in ∂s_{t+1}/∂s_t is it varied. So no gradient has to be differentiated:

- λ·∂s_{t+1}/∂s_t is what comes to s_t from later steps in the backward pass. The kernels of that pass write it down.
- R stands in it once, as Rᵀ·δ_{t+1} with δ = ∂L/∂(R·h), which they write too. With g_t = ∂Ω/∂(λ·∂s_{t+1}/∂s_t) of h the
  gradient is Σ_t δ_{t+1} ⊗ g_t: one matrix product over all T·B rows at once, and no second recurrence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastrnn import _ops, functional
from fastrnn._numbers import finite
from fastrnn.autograd import N_FIXED
from fastrnn.cells import CellSpec, split_bound

Pairs = Callable[[Tensor], tuple[Tensor, Tensor]]


class GradientNormPenalty:
    """Adds ``weight``·∂Ω/∂R to the gradients of the recurrent weights, in the backward pass of what it was given to.

    .. code-block:: python

        penalty = fastrnn.training.GradientNormPenalty(weight=0.5)
        y, state = rnn(x, penalty=penalty)
        loss(y).backward()  # the gradient of loss + weight·Ω, by the immediate derivative
        penalty.value  # Ω

    Ω is summed over steps, layers and directions and averaged over the rows of the batch. It does not depend on the
    scale of the loss; a gradient scaler, which divides all gradients by its scale, divides this one's too. Terms whose
    λ is zero (no loss behind that step) and pairs of steps in different segments count nothing.

    For LSTM, GRU, RNN and networks of `fastrnn.cell` with one product of R and h in a step, one head and no sums over
    the units. Products R·v with another vector, numbers for each unit and projections have no part in ∂Ω.
    ``recompute`` is without effect.

    Attributes:
        weight: the factor of Ω; may be changed at any time.
        value: Ω of the last backward pass, a number in a tensor; None before the first.

    Raises:
        TypeError: ``weight`` is no number.
        ValueError: it is negative.
    """

    def __init__(self, weight: float = 1.0) -> None:
        if finite(weight, "weight") < 0:
            raise ValueError(f"weight: expected a number that is not negative, got {weight}")
        self.weight = weight
        self.value: Tensor | None = None
        self._finished = False
        self._batch: int | None = None

    def _begin(self) -> None:
        """A forward pass after a backward pass begins another sum."""
        if self._finished:
            self.value, self._finished = None, False

    def _add(self, value: Tensor) -> None:
        self.value = value if self.value is None else self.value + value
        self._finished = True

    @contextmanager
    def _of_rows(self, batch: int) -> Iterator[None]:
        """Within, the rows of a call are parts of so many rows of a batch."""
        self._batch = batch
        try:
            yield
        finally:
            self._batch = None

    def _layer(
        self,
        cell: str,
        spec: CellSpec,
        x: Tensor,
        weights: tuple[Tensor | None, ...],
        states: tuple[Tensor, ...],
        layout: tuple[Any, ...],
        backend: str,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`fastrnn.functional.sequence` with this penalty. Raises where there are no kernels for it."""
        _check(cell, spec, x, backend)
        self._begin()
        batch_sizes, lengths, reset, reverse = layout
        y, *finals = _Penalised.apply(self, cell, reverse, batch_sizes, lengths, reset, x, *weights, *states)
        return y, tuple(finals)


def _check(cell: str, spec: CellSpec, x: Tensor, backend: str) -> None:
    sizes = _ops.sizes_of(cell)
    if sizes.second or sizes.totals or not sizes.recurrent:
        raise ValueError(f"penalty: expected a cell with one product of R and h, got {spec.name}")
    if backend == "reference":
        raise ValueError("penalty: expected the fused kernels, got backend='reference'")
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        raise RuntimeError("penalty: expected eager mode, got a call inside torch.compile or torch.func")
    known = x.device.type in ("cpu", "cuda")
    problem = functional.no_kernels(spec, x.dtype, x.device) if known else f"no kernels on {x.device.type}"
    if problem:
        raise RuntimeError(f"penalty: expected the fused kernels, got {problem}")


class _Penalised(torch.autograd.Function):
    """``apply(penalty, cell, reverse, batch_sizes, lengths, reset, x, *weights, *states)`` → y, final states."""

    @staticmethod
    def forward(
        ctx: Any,
        penalty: GradientNormPenalty,
        cell: str,
        reverse: bool,
        batch_sizes: Any,
        lengths: Any,
        reset: Any,
        x: Tensor,
        *tensors: Any,
    ) -> tuple[Tensor, ...]:
        ctx.penalty, ctx.cell, ctx.reverse, ctx.batch = penalty, cell, reverse, penalty._batch
        ctx.count = 1 + len(tensors)
        ctx.set_materialize_grads(False)
        training = any(ctx.needs_input_grad)
        weights, states = tensors[: N_FIXED - 1], tensors[N_FIXED - 1 :]
        layout = (batch_sizes, lengths, reset)
        y, finals, reserve = _ops.forward(cell, x, *weights, states, *layout, reverse, training)
        if training:
            ctx.save_for_backward(*layout, x, *tensors, y, *reserve)
        return (y, *finals)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("penalty: expected a backward pass without create_graph=True")
        nothing = (None,) * 6
        if all(g is None for g in grads):
            return (*nothing, *(None,) * ctx.count)
        saved = ctx.saved_tensors
        layout, inputs, (y, *reserve) = saved[:3], saved[3 : 3 + ctx.count], saved[3 + ctx.count :]
        x, w_ih, w_hh, _, _, w_hr = inputs[:N_FIXED]
        needed = ctx.needs_input_grad[6:]
        needs = [*needed[:N_FIXED], any(needed[N_FIXED:])]
        states = inputs[N_FIXED:]
        found = _ops.layer_backward_flow(
            ctx.cell, grads[0], grads[1:], x, w_ih, w_hh, w_hr, states, y, reserve, *layout, ctx.reverse, needs
        )
        count = N_FIXED + (_ops.sizes_of(ctx.cell).states if needs[-1] else 0)
        gradients, flow = found[:count], found[count:]
        value, of_weight = _omega(flow, grads[0], layout, ctx.reverse, split_bound(ctx.cell)[1], ctx.batch)
        ctx.penalty._add(value)
        if needs[2]:
            rows = gradients[2][: of_weight.shape[0]]  # behind them a cell's numbers for each unit
            rows.add_(of_weight.to(rows.dtype), alpha=ctx.penalty.weight)
        padded = (*gradients, *(None for _ in inputs[len(gradients) :]))
        return (*nothing, *(g if need else None for g, need in zip(padded, needed, strict=True)))


def _omega(
    flow: list[Tensor],
    grad_y: Tensor | None,
    layout: tuple[Tensor | None, ...],
    reverse: bool,
    bound: float,
    rows: int | None,
) -> tuple[Tensor, Tensor]:
    """Ω and its immediate derivative for R.

    Args:
        flow: ∂L/∂(R·h) (…, R·H); of each state what came to it from later steps (…, P or H).
        grad_y: ∂L/∂y (…, P) or None.
        layout: batch_sizes, lengths, reset.
        reverse: whether time ran backwards.
        bound: what ∂L/∂h was cut to, 0 for nothing.
        rows: over how many rows to average; None: B.
    """
    drh, *arrived = flow
    dtype = arrived[0].dtype
    total = arrived[0] if grad_y is None else arrived[0] + grad_y.to(dtype)
    if bound:
        total = total.clamp(-bound, bound)
    pairs, valid, batch = _neighbours(layout, drh)
    batch = batch if rows is None else rows
    side = 0 if reverse else 1  # which of two neighbours was computed later
    later = [pairs(t)[side] for t in (total, *arrived[1:])]
    through = [pairs(t)[1 - side] for t in arrived]
    whole, passed = _norm(later), _norm(through)
    ratio = torch.where(whole > 0, passed / whole, 1.0)
    if valid is not None:
        ratio = torch.where(valid, ratio, 1.0)
    value = (ratio - 1).square().sum() / batch
    # ∂Ω/∂(what passed through), of h alone; nothing where nothing passed, or nothing came
    counted = (whole > 0) & (passed > 0)
    slope = torch.where(counted, 2 * (ratio - 1) / (whole * passed), 0.0) / batch
    slope = torch.where(slope.isfinite(), slope, 0.0)
    g = slope.unsqueeze(-1) * through[0]
    return value, pairs(drh)[side].to(dtype).T @ g


def _norm(states: list[Tensor]) -> Tensor:
    """Of all states of a row together, safe from underflow of the squares: (M)."""
    joined = torch.cat(states, -1)
    scale = joined.abs().amax(-1, keepdim=True)
    safe = torch.where(scale > 0, scale, 1.0)
    return (joined / safe).norm(dim=-1) * scale.squeeze(-1)


def _neighbours(layout: tuple[Tensor | None, ...], like: Tensor) -> tuple[Pairs, Tensor | None, int]:
    """Rows of two steps one after the other in time: what takes them out of a tensor, (M, ·) each, the earlier first;
    which of these M pairs are of one segment, None for all; and B.
    """
    batch_sizes, lengths, reset = layout
    if batch_sizes is not None:
        counts = batch_sizes.tolist()
        second = torch.arange(counts[0], int(batch_sizes.sum()))
        first = second - torch.repeat_interleave(batch_sizes[:-1], batch_sizes[1:])
        first, second = first.to(like.device), second.to(like.device)
        return (lambda t: (t[first], t[second])), None, counts[0]
    steps, batch = like.shape[:2]
    valid: Tensor | None = None
    if lengths is not None:
        valid = torch.arange(1, steps, device=like.device).unsqueeze(1) < lengths.to(like.device)
    if reset is not None:
        goes_on = ~reset[1:].to(like.device)
        valid = goes_on if valid is None else valid & goes_on
    flat = None if valid is None else valid.expand(steps - 1, batch).reshape(-1)
    return (lambda t: (t[:-1].flatten(0, 1), t[1:].flatten(0, 1))), flat, batch
