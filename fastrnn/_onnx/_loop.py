"""Loop over time (ONNX's Scan or Loop) of a cell's PyTorch step, for layers without an equivalent ONNX node."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrnn import reference
from fastrnn._call import Call
from fastrnn._onnx import _traced
from fastrnn._surroundings import is_traced_for_onnx
from fastrnn.cells import CellSpec

States = tuple[Tensor, ...]
Matrices = tuple[Tensor, Tensor | None, Tensor | None]  # w_hh, b_hh, w_hr


def layer(spec: CellSpec, call: Call) -> tuple[Tensor, States]:
    """Run one layer in one direction: input product (T, B, G·H), states (B, P or H) -> y (T, B, P), final states."""
    wx, states, lengths, reset, reverse = call.x, call.states, call.lengths, call.reset, call.reverse
    matrices = (call.weights.w_hh, call.weights.b_hh, call.weights.w_hr)
    steps = [wx]
    if lengths is not None:
        time = torch.arange(wx.shape[0], device=wx.device).unsqueeze(-1)
        steps.append((time < lengths).unsqueeze(-1))
    if reset is not None:
        # Segments are the same in both directions. In reverse, the step before a segment's first one restarts.
        if lengths is not None:
            reset = reset & steps[-1].squeeze(-1)
        flags = torch.cat((reset[1:], torch.zeros_like(reset[:1]))) if reverse else reset
        steps.append(flags.unsqueeze(-1))
    if reverse:
        steps = [s.flip(0) for s in steps]
    body = Body(spec, len(states), matrices, lengths is not None, reset is not None)
    common = [t for t in matrices if t is not None]
    if reset is not None:
        common += call.restart or states
    # detach() returns distinct tensors without gradients. Tracing identifies the arguments of the body by the tensors
    # given here, and the exporter would differentiate the loop when it runs the captured program once more.
    states_in, steps_in, shared = ([t.detach() for t in tensors] for tensors in (states, steps, common))
    if is_traced_for_onnx():
        *finals, y = _traced.scan(body, states_in, steps_in, shared)
    elif type(wx.shape[0]) is int and wx.shape[0] == 1:  # a cell, or one step of a stream
        *finals, y = body(*states, *(s.squeeze(0) for s in steps), *common)
        y = y.unsqueeze(0)
    else:
        *finals, y = torch.ops.higher_order.scan(body, states_in, steps_in, tuple(shared))
    return y.flip(0) if reverse else y, tuple(finals)


class Body:
    """Step of the loop. Arguments: the states, the step's slices of the input, and the tensors all steps share."""

    def __init__(self, spec: CellSpec, states: int, matrices: Matrices, has_lengths: bool, has_reset: bool) -> None:
        self.spec, self.states = spec, states
        self.present = [m is not None for m in matrices]
        self.has_lengths, self.has_reset = has_lengths, has_reset

    def __call__(self, *arguments: Tensor) -> list[Tensor]:
        """Return the new states and the step's output."""
        rest = iter(arguments)
        states = tuple(next(rest) for _ in range(self.states))
        wx = next(rest)
        active = next(rest) if self.has_lengths else None
        again = next(rest) if self.has_reset else None
        w_hh, b_hh, w_hr = (next(rest) if present else None for present in self.present)
        assert w_hh is not None
        before = states
        if again is not None:
            before = tuple(torch.where(again, next(rest), s) for s in states)
        new = reference.step_of(self.spec, w_hh, b_hh, w_hr)(wx, before)
        y = new[0]
        if active is not None:
            new = tuple(torch.where(active, n, s) for n, s in zip(new, states, strict=True))
            y = torch.where(active, y, torch.zeros_like(y))
        # The results of a loop's body must share memory neither with one another nor with its arguments.
        return [*(n.clone() for n in new), y.clone()]
