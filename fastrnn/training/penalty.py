r"""Regulariser that preserves the norm of the gradient as it propagates back through time.

.. math::
    Ω = \sum_t \left( \frac{‖ λ_{t+1} · ∂s_{t+1}/∂s_t ‖}{‖ λ_{t+1} ‖} - 1 \right)^2

with s_t the states after time step t and λ_t = ∂L/∂s_t. For a network with one state this is the formula of Pascanu,
Mikolov and Bengio, On the difficulty of training recurrent neural networks, 2013 (arXiv:1211.5063). For an LSTM, and
any other cell with several states, s_t is all of them together, (h, c): the gradient of the cell state counts too.

Its gradient is the paper's *immediate* derivative with respect to the recurrent matrix R: states, λ and the values
inside the time step are held constant, and only the R in ∂s_{t+1}/∂s_t is varied. So no gradient has to be
differentiated:

- λ·∂s_{t+1}/∂s_t is the gradient from later steps that reaches s_t; the backward kernels store it.
- R occurs in it once, as Rᵀ·δ_{t+1} with δ = ∂L/∂(R·h), which the kernels store too. With g_t = ∂Ω/∂(λ·∂s_{t+1}/∂s_t)
  for h, the gradient is Σ_t δ_{t+1} ⊗ g_t: one matrix product over all T·B rows, without a second recurrence.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastrnn import _ops, _paths
from fastrnn import _surroundings as here
from fastrnn._call import Call, Gradients
from fastrnn._numbers import finite
from fastrnn.cells import CellSpec

Pairs = Callable[[Tensor], tuple[Tensor, Tensor]]


class GradientNormPenalty:
    """Regulariser Ω of the gradient norm through time (Pascanu 2013), passed as a keyword of a call.

    It adds ``weight``·∂Ω/∂R to the gradients of the recurrent weights in the backward pass of the call.

    .. code-block:: python

        penalty = fastrnn.training.GradientNormPenalty(weight=0.5)
        y, state = rnn(x, penalty=penalty)
        loss(y).backward()  # gradient of loss + weight·Ω, by the immediate derivative
        penalty.value  # Ω

    Ω is summed over time steps, layers and directions and averaged over the batch rows. It does not depend on the
    scale of the loss; a gradient scaler, which divides all gradients by its scale, also divides this one. Terms whose
    λ is zero (no loss after that step) and pairs of steps in different segments contribute nothing.

    Supported: LSTM, GRU, RNN and networks of `fastrnn.cell` with one product of R and h in a time step, one head and
    no sums over the units. Products R·v with another vector, per-unit parameters and projections do not contribute to
    ∂Ω. ``recompute`` has no effect.

    Attributes:
        weight: the factor of Ω; may be changed at any time.
        value: Ω of the last backward pass, a 0-dimensional tensor; None before the first.

    Raises:
        TypeError: ``weight`` is not a number.
        ValueError: ``weight`` is negative.

    Example:
        >>> penalty = fastrnn.training.GradientNormPenalty(weight=0.5)
        >>> y, h = fastrnn.RNN(3, 4)(torch.randn(5, 2, 3), penalty=penalty)
        >>> y.sum().backward()
        >>> bool(penalty.value >= 0)
        True
    """

    def __init__(self, weight: float = 1.0) -> None:
        if finite(weight, "weight") < 0:
            raise ValueError(f"weight: expected a non-negative number, got {weight}")
        self.weight = weight
        self.value: Tensor | None = None
        self._finished = False

    def begin(self, call: Call, spec: CellSpec, backend: str) -> None:
        """Start a layer's forward pass; the first one after a backward pass resets the sum.

        Raises:
            ValueError: the cell or ``backend`` is not supported.
            RuntimeError: there are no kernels, or the call is traced or transformed.
        """
        _check(call, spec, backend)
        if self._finished:
            self.value, self._finished = None, False

    def backward(self, call: Call, grads: tuple[Tensor | None, ...], results: Gradients) -> None:
        """Add Ω and its gradient after a layer's backward pass."""
        value, of_weight = _omega(call, grads[0], results)
        self.value = value if self.value is None else self.value + value
        self._finished = True
        gradient = results.fixed[2]
        if gradient is not None:
            rows = gradient[: of_weight.shape[0]]  # the rows after them are per-unit parameters
            rows.add_(of_weight.to(rows.dtype), alpha=self.weight)


def _check(call: Call, spec: CellSpec, backend: str) -> None:
    traits, x = _ops.traits_of(call.cell), call.x
    if traits.second or traits.totals or not traits.recurrent:
        expected = "a cell with one product of R and h, and no sums over the units"
        raise ValueError(f"penalty: expected {expected}, got {spec.name}")
    if backend == "reference":
        raise ValueError("penalty: expected the fused kernels, got backend='reference'")
    if here.is_compiling() or here.is_transformed():
        raise RuntimeError("penalty: expected eager mode, got a call inside torch.compile or torch.func")
    known = x.device.type in ("cpu", "cuda")
    problem = _paths.no_kernels(spec, x.dtype, x.device) if known else f"no kernels on {x.device.type}"
    if problem:
        raise RuntimeError(f"penalty: expected the fused kernels, got {problem}")


def _omega(call: Call, grad_y: Tensor | None, results: Gradients) -> tuple[Tensor, Tensor]:
    """Return Ω and its immediate derivative for R, from backward results with ``products`` and ``later``."""
    drh, later_gradients = results.products[1], results.later
    dtype = later_gradients[0].dtype
    total = later_gradients[0] if grad_y is None else later_gradients[0] + grad_y.to(dtype)
    if call.clip:
        total = total.clamp(-call.clip, call.clip)
    pairs, valid, batch = _neighbours(call.layout, drh)
    side = 0 if call.reverse else 1  # index of the neighbour that was computed later
    later = [pairs(t)[side] for t in (total, *later_gradients[1:])]
    through = [pairs(t)[1 - side] for t in later_gradients]
    whole, passed = _norm(later), _norm(through)
    ratio = torch.where(whole > 0, passed / whole, 1.0)
    if valid is not None:
        ratio = torch.where(valid, ratio, 1.0)
    value = (ratio - 1).square().sum() / batch
    # ∂Ω/∂(gradient passed through), for h only; zero where either norm is zero
    counted = (whole > 0) & (passed > 0)
    slope = torch.where(counted, 2 * (ratio - 1) / (whole * passed), 0.0) / batch
    slope = torch.where(slope.isfinite(), slope, 0.0)
    g = slope.unsqueeze(-1) * through[0]
    return value, pairs(drh)[side].to(dtype).T @ g


def _norm(states: list[Tensor]) -> Tensor:
    """Return the norm over all states of each row, (M), without underflow of the squares."""
    joined = torch.cat(states, -1)
    scale = joined.abs().amax(-1, keepdim=True)
    safe = torch.where(scale > 0, scale, 1.0)
    return (joined / safe).norm(dim=-1) * scale.squeeze(-1)


def _neighbours(layout: tuple[Tensor | None, ...], like: Tensor) -> tuple[Pairs, Tensor | None, int]:
    """Return the pairs of consecutive time steps of each batch row.

    Returns:
        a function that takes the M pairs out of a tensor, (M, ·) each, the earlier first; a mask (M) of the pairs
        within one segment, or None for all; and B.
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
