"""A loop over time, ONNX's Scan, around the plain-torch step of a cell: what no node of ONNX computes."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrnn import reference
from fastrnn._onnx import _traced
from fastrnn.cells import CellSpec

States = tuple[Tensor, ...]
Matrices = tuple[Tensor, Tensor | None, Tensor | None]  # w_hh, b_hh, w_hr


def layer(
    spec: CellSpec,
    wx: Tensor,
    matrices: Matrices,
    states: States,
    lengths: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, States]:
    """One layer in one direction: input product (T, B, G·H), states (B, P or H) -> y (T, B, P), final states."""
    steps = [wx]
    if lengths is not None:
        time = torch.arange(wx.shape[0], device=wx.device).unsqueeze(-1)
        steps.append((time < lengths).unsqueeze(-1))
    if reset is not None:
        # In both directions segments are the same: in reverse, a step follows on the first one of the next segment.
        flags = torch.cat((reset[1:], torch.zeros_like(reset[:1]))) if reverse else reset
        steps.append(flags.unsqueeze(-1))
    if reverse:
        steps = [s.flip(0) for s in steps]
    body = Body(spec, len(states), matrices, lengths is not None, reset is not None)
    given = [t for t in matrices if t is not None]
    if reset is not None:
        given += states
    # No tensor twice, as the body is traced with these very tensors as its arguments; and none that requires a
    # gradient, as the exporter runs the captured program again, and would have the loop differentiated.
    states_in, steps_in, given_in = ([t.detach() for t in tensors] for tensors in (states, steps, given))
    if _traced.is_active():
        *finals, y = _traced.scan(body, states_in, steps_in, given_in)
    elif type(wx.shape[0]) is int and wx.shape[0] == 1:  # a cell, or one step of a stream
        *finals, y = body(*states, *(s.squeeze(0) for s in steps), *given)
        y = y.unsqueeze(0)
    else:
        *finals, y = torch.ops.higher_order.scan(body, states_in, steps_in, tuple(given_in))
    return y.flip(0) if reverse else y, tuple(finals)


class Body:
    """One step of the loop: called with states, what the step reads, and what all steps have in common."""

    def __init__(self, spec: CellSpec, states: int, matrices: Matrices, has_lengths: bool, has_reset: bool) -> None:
        self.spec, self.states = spec, states
        self.present = [m is not None for m in matrices]
        self.has_lengths, self.has_reset = has_lengths, has_reset

    def __call__(self, *arguments: Tensor) -> list[Tensor]:
        """New states, and the step's output."""
        rest = iter(arguments)
        states = tuple(next(rest) for _ in range(self.states))
        wx = next(rest)
        active = next(rest) if self.has_lengths else None
        again = next(rest) if self.has_reset else None
        w_hh, b_hh, w_hr = (next(rest) if there else None for there in self.present)
        assert w_hh is not None
        before = states
        if again is not None:
            before = tuple(torch.where(again, next(rest), s) for s in states)
        new = reference.step_of(self.spec, w_hh, b_hh, w_hr)(wx, before)
        y = new[0]
        if active is not None:
            new = tuple(torch.where(active, n, s) for n, s in zip(new, states, strict=True))
            y = torch.where(active, y, torch.zeros_like(y))
        # A loop's results must not share memory with one another, nor with its inputs.
        return [*(n.clone() for n in new), y.clone()]
