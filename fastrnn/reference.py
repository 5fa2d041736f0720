"""A whole sequence computed by a cell's plain PyTorch step: test oracle, fallback, and path of higher derivatives.

No operation is in place, and every branch depends on shapes and masks only, so that autograd, ``torch.func``
transforms and forward mode apply any number of times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrnn._call import Call
from fastrnn._call_checks import check_devices
from fastrnn.cells import CellSpec

States = tuple[Tensor, ...]
_WEIGHTS = ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr")
Step = Callable[[Tensor, States], States]


class _ClipGradient(torch.autograd.Function):
    """``apply(h, limit)``: h, whose gradient is clipped to ±limit."""

    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor, limit: float) -> Tensor:
        return h.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.limit = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.clamp(-ctx.limit, ctx.limit), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        return tangent.clone()


def clip_gradient(h: Tensor, limit: float) -> Tensor:
    """Return h; in backward, clip every element of its gradient to ±limit. Forward mode does not clip."""
    return _ClipGradient.apply(h, limit)


def zero_states(spec: CellSpec, like: Tensor, batch: int, hidden: int, projected: int) -> States:
    """Return initial states of zeros: `h` (B, P), the others (B, H), with the dtype and device of `like`."""
    return tuple(like.new_zeros(batch, hidden if k else projected) for k in range(len(spec.states)))


def step_of(spec: CellSpec, w_hh: Tensor, b_hh: Tensor | None, w_hr: Tensor | None, clip: float = 0.0) -> Step:
    """Return one time step of a layer as a function of the input product (B, G·H) and the states.

    The step includes the projection, and clips ∂L/∂h to ±``clip`` if that is not 0.
    """
    more: tuple[Any, ...] = ()
    if spec.parameters:
        more = w_hh[-spec.parameters :].unbind()
        w_hh = w_hh[: -spec.parameters]
    if spec.second:
        first = w_hh.shape[0] - spec.second * w_hh.shape[1]
        later, b_later = w_hh[first:], None if b_hh is None else b_hh[first:]
        w_hh, b_hh = w_hh[:first], None if b_hh is None else b_hh[:first]
        H = w_hh.shape[1]

        def multiply(vector: Tensor, begin: int, count: int) -> Tensor:
            """Multiply by `count` of the matrices of the second product, starting with number `begin`."""
            rows = slice(begin * H, (begin + count) * H)
            return F.linear(vector, later[rows], None if b_later is None else b_later[rows])

        more = (*more, multiply)

    def step(wx: Tensor, now: States) -> States:
        h, *rest = spec.step(wx, F.linear(now[0], w_hh, b_hh), now, *more)
        h = h if w_hr is None else F.linear(h, w_hr)
        return (clip_gradient(h, clip) if clip else h, *rest)

    return step


def sequence(
    spec: CellSpec,
    x: Tensor,
    weights: tuple[Tensor | None, ...],
    states: States,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
    *,
    restart: States = (),
    clip: float = 0.0,
) -> tuple[Tensor, States]:
    """Run one layer in one direction.

    Args:
        spec: the cell.
        x: (T, B, I), or (N, I) with `batch_sizes`; the input product (…, G·H) if ``w_ih`` is None.
        weights: ``(w_ih, w_hh, b_ih, b_hh, w_hr)`` as in :class:`fastrnn.functional.LayerWeights`.
        states: initial states, `h` (B, P) first.
        batch_sizes: (T), the batch rows of each time step of packed input.
        lengths: (B), the time steps of each batch row of padded input.
        reset: (T, B) bool, true at the first time step of a segment.
        reverse: run from the last time step to the first.
        restart: the states that segments start from; empty: the initial ones.
        clip: a limit for the elements of ∂L/∂h at every time step; 0: none.

    Returns:
        outputs (T, B, P) or (N, P), and the final states.
    """
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    assert w_hh is not None
    spec.check_projection(w_hr)
    check_devices(x, {**dict(zip(_WEIGHTS, weights, strict=True)), **{f"states[{k}]": s for k, s in enumerate(states)}})
    step = step_of(spec, w_hh, b_hh, w_hr, clip)
    if lengths is not None:  # padding may hold anything, even NaN, which must not reach a gradient as 0 · NaN
        lengths = lengths.to(x.device)
        steps = torch.arange(x.shape[0], device=x.device).unsqueeze(-1)
        x = torch.where((steps < lengths).unsqueeze(-1), x, torch.zeros_like(x))
    if reset is not None:
        reset = reset.to(x.device)
    if w_ih is not None:
        wx = F.linear(x, w_ih, b_ih)
    else:
        wx = x if b_ih is None else x + b_ih
    if batch_sizes is not None:
        return _packed(step, wx, states, [int(n) for n in batch_sizes.tolist()], reverse)
    return _padded(step, wx, states, restart or states, lengths, reset, reverse)


def run(spec: CellSpec, call: Call) -> tuple[Tensor, States]:
    """Run a call of a layer by `sequence`."""
    states, weights = call.states, call.weights
    if not states:
        batch = call.x.shape[1] if call.batch_sizes is None else int(call.batch_sizes[0])
        states = zero_states(spec, call.x, batch, weights.hidden, weights.projected)
    rows = (*call.layout, call.reverse)
    return sequence(spec, call.x, call.weights, states, *rows, restart=call.restart, clip=call.clip)


def _padded(
    step: Step,
    wx: Tensor,
    initial: States,
    restart: States,
    lengths: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, States]:
    steps = wx.shape[0]
    order = range(steps - 1, -1, -1) if reverse else range(steps)
    states, outputs = initial, []
    for t in order:
        active = None if lengths is None else (t < lengths).unsqueeze(-1)
        first = t + 1 if reverse else t  # the segments are the same in both directions
        before = states
        if reset is not None and first < steps:
            again = reset[first] if lengths is None else reset[first] & (first < lengths)
            before = tuple(torch.where(again.unsqueeze(-1), s0, s) for s0, s in zip(restart, states, strict=True))
        new = step(wx[t], before)
        if active is None:
            states = new
            outputs.append(new[0])
        else:
            states = tuple(torch.where(active, n, s) for n, s in zip(new, states, strict=True))
            outputs.append(torch.where(active, new[0], torch.zeros_like(new[0])))
    if reverse:
        outputs.reverse()
    return torch.stack(outputs), states


def _packed(step: Step, wx: Tensor, initial: States, sizes: list[int], reverse: bool) -> tuple[Tensor, States]:
    chunks = wx.split(sizes)
    states, outputs = initial, []
    for t in range(len(sizes) - 1, -1, -1) if reverse else range(len(sizes)):
        rows = sizes[t]
        new = step(chunks[t], tuple(s[:rows] for s in states))
        outputs.append(new[0])
        # rows beyond have ended (their state is final) or, in reverse, not started (their state is initial)
        states = tuple(torch.cat((n, s[rows:])) for n, s in zip(new, states, strict=True))
    if reverse:
        outputs.reverse()
    return torch.cat(outputs), states
