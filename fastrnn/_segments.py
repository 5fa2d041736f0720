"""A segment of a layer's steps as a call of its own: which rows it has, how their states come and go, and their
gradients.

A segment starts from the states that the one before it has left, but after a ``reset`` its rows start from the initial
states again, and a call has one start for each row. So in a segment with resets a row becomes two: the steps up to its
first reset (in reverse: its last), and the rest, which starts from the initial states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastrnn import _ops
from fastrnn.autograd import N_FIXED

States = tuple[Tensor, ...]
Some = tuple[Tensor | None, ...]  # the weights w_ih, w_hh, b_ih, b_hh, w_hr; or batch_sizes, lengths, reset


class Pieces(NamedTuple):
    """The rows b of a segment of S steps as 2·B rows: b up to its reset, B + b after it."""

    take: tuple[Tensor, Tensor]  # (S, 2·B): step and row of the segment that are step and row here; anything as padding
    back: tuple[Tensor, Tensor]  # (S, B): and the other way
    lengths: Tensor  # (2·B)
    reset: Tensor  # (S, 2·B)
    ends: Tensor  # (B, 1): whether the row's final state is that of the piece which starts from the initial states


class Segment:
    """Steps `start` to `stop` of a layer's call: which rows they are, and how their states come and go."""

    def __init__(self, cell: str, reverse: bool, layout: Some, start: int, stop: int):
        batch_sizes, lengths, reset = layout
        self.cell, self.reverse = cell, reverse
        self.rows = slice(start, stop)
        self.batch: int | None = None  # rows of the first step of packed input
        self.batch_sizes: Tensor | None = None
        self.lengths: Tensor | None = None
        self.restart: Tensor | None = None  # (B, 1): rows that start from the initial states
        self.pieces: Pieces | None = None
        if batch_sizes is not None:
            self.batch_sizes = batch_sizes[start:stop]
            first = int(batch_sizes[:start].sum())
            self.rows = slice(first, first + int(self.batch_sizes.sum()))
            self.batch = int(self.batch_sizes[0])
        if lengths is not None:
            self.lengths = (lengths.long() - start).clamp(0, stop - start)
        if reset is not None:
            self._divide(reset[start:stop])
            border = stop if self.reverse else start
            if border < reset.shape[0]:
                # A row that has ended, or in reverse not begun, has no reset there.
                flags = reset[border] if lengths is None else reset[border] & (border < lengths)
                self.restart = flags.unsqueeze(-1)

    def _divide(self, reset: Tensor) -> None:
        steps, batch = reset.shape
        row = torch.arange(batch, device=reset.device)
        at = torch.arange(steps, device=reset.device).unsqueeze(-1)
        active = torch.full_like(row, steps) if self.lengths is None else self.lengths
        inside = reset & (at >= 1) & (at < active)
        if reset.is_cpu and _has_values() and not inside.any():  # from a GPU the answer would have to be waited for
            return
        if self.reverse:
            cut = torch.where(inside, at, 0).amax(0)
        else:
            cut = torch.minimum(torch.where(inside, at, steps).amin(0), active)
        step = (at + torch.cat((torch.zeros_like(cut), cut))).clamp(max=steps - 1)
        before = at < cut
        self.pieces = Pieces(
            (step, row.repeat(2).expand_as(step)),
            (torch.where(before, at, at - cut), torch.where(before, row, row + batch)),
            torch.cat((cut, active - cut)),
            reset[step, row.repeat(2)],
            ((cut > 0) if self.reverse else (active > cut)).unsqueeze(-1),
        )

    def _split(self, t: Tensor) -> Tensor:
        """Rows of the segment as the operators are to see them."""
        return t if self.pieces is None else t[self.pieces.take]

    def _join(self, t: Tensor) -> Tensor:
        return t if self.pieces is None else t[self.pieces.back]

    def _layout(self) -> tuple[Any, ...]:
        if self.pieces is not None:
            return None, self.pieces.lengths, self.pieces.reset, self.reverse
        return self.batch_sizes, self.lengths, None, self.reverse

    def _enter(self, carried: States, initial: States) -> States:
        """States at the start of the operators' rows."""
        if self.batch is not None:
            return tuple(s[: self.batch] for s in carried)
        if self.restart is not None:
            carried = tuple(torch.where(self.restart, i, s) for i, s in zip(initial, carried, strict=True))
        if self.pieces is None:
            return carried
        halves = (initial, carried) if self.reverse else (carried, initial)
        return tuple(torch.cat(pair) for pair in zip(*halves, strict=True))

    def run(self, x: Tensor, weights: Some, carried: States, initial: States) -> tuple[Tensor, States]:
        """Output rows, and the states after the segment."""
        y, finals, _ = _ops.forward(
            self.cell, self._split(x[self.rows]), *weights, self._enter(carried, initial), *self._layout(), False
        )
        return self._leave(y, finals, carried)

    def _leave(self, y: Tensor, finals: Any, carried: States) -> tuple[Tensor, States]:
        if self.batch is not None:
            finals = [torch.cat((f, s[self.batch :])) for f, s in zip(finals, carried, strict=True)]
        if self.pieces is not None:
            batch = self.pieces.ends.shape[0]
            early, late = ([f[:batch] for f in finals], [f[batch:] for f in finals])
            after, other = (early, late) if self.reverse else (late, early)
            finals = [torch.where(self.pieces.ends, a, o) for a, o in zip(after, other, strict=True)]
        return self._join(y), tuple(finals)

    def through(self, layer: Callable[..., Any], x: Tensor, carried: States, initial: States) -> tuple[Tensor, States]:
        """The same by a differentiable layer, called with rows, states, and how they lie; for a segment that is all of
        the call.
        """
        _, lengths, reset, _ = self._layout()
        y, finals = layer(self._split(x), self._enter(carried, initial), lengths, reset)
        return self._leave(y, finals, carried)

    def pull(
        self,
        x: Tensor,
        weights: Some,
        carried: States,
        initial: States,
        grad_y: Tensor | None,
        grad_after: list[Tensor | None],
        needs: list[bool],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor] | None]:
        """Gradients of this segment's x and of the weights (empty where not needed), of the states before it, and of
        the initial states (None where none of it starts from them).
        """
        w_ih, w_hh, _, _, w_hr = weights
        rows, entered, layout = self._split(x[self.rows]), self._enter(carried, initial), self._layout()
        y, _, reserve = _ops.forward(self.cell, rows, *weights, entered, *layout, True)
        grad_rows = None if grad_y is None else self._split(grad_y[self.rows])
        found = _ops.layer_backward(
            self.cell,
            grad_rows,
            self._grads_of_ends(grad_after),
            rows,
            w_ih,
            w_hh,
            w_hr,
            entered,
            y,
            reserve,
            *layout,
            needs,
        )
        fixed, states = found[:N_FIXED], found[N_FIXED:]
        if needs[0]:
            fixed[0] = self._join(fixed[0])
        return fixed, *self._grads_of_starts(states, grad_after, carried[0].shape[0])

    def _grads_of_ends(self, grads: list[Tensor | None]) -> list[Tensor | None]:
        if self.batch is not None:
            return [None if g is None else g[: self.batch] for g in grads]
        if self.pieces is None:
            return grads
        out: list[Tensor | None] = []
        for g in grads:
            if g is None:
                out.append(None)
                continue
            zero = torch.zeros_like(g)
            pair = (torch.where(self.pieces.ends, g, zero), torch.where(self.pieces.ends, zero, g))
            out.append(torch.cat(pair if self.reverse else pair[::-1]))
        return out

    def _grads_of_starts(
        self, grads: list[Tensor], grad_after: list[Tensor | None], batch: int
    ) -> tuple[list[Tensor], list[Tensor] | None]:
        if not grads:
            return [], None
        if self.batch is not None:  # rows that were not there hand the gradients of their states on
            rest = [
                g.new_zeros(batch - self.batch, g.shape[1]) if a is None else a[self.batch :]
                for g, a in zip(grads, grad_after, strict=True)
            ]
            return [torch.cat((g, r)) for g, r in zip(grads, rest, strict=True)], None
        initial = None
        if self.pieces is not None:
            batch = self.pieces.ends.shape[0]
            early, late = [g[:batch] for g in grads], [g[batch:] for g in grads]
            initial, grads = (early, late) if self.reverse else (late, early)
        if self.restart is not None:
            zero = grads[0].new_zeros(())
            back = [torch.where(self.restart, g, zero) for g in grads]
            initial = back if initial is None else [i + b for i, b in zip(initial, back, strict=True)]
            grads = [torch.where(self.restart, zero, g) for g in grads]
        return grads, initial


def from_initial(
    sequence: Callable[..., tuple[Tensor, States]],
    cell: str,
    x: Tensor,
    weights: Any,
    states: States,
    initial: States,
    lengths: Tensor | None,
    reset: Tensor,
    options: dict[str, Any],
) -> tuple[Tensor, States]:
    """`fastrnn.functional.sequence` where rows begin with `states`, but after a reset with `initial`."""
    fits = torch.jit.is_tracing() or reset.shape == x.shape[:2]  # type: ignore[attr-defined]
    if options.get("batch_sizes") is not None or x.dim() < 2 or not fits:
        raise RuntimeError(f"reset: expected shape {tuple(x.shape[:2])}, got {tuple(reset.shape)}")
    reset = reset.to(x.device)
    segment = Segment(cell, options["reverse"], (None, lengths, reset), 0, x.shape[0])

    def layer(rows: Tensor, entered: States, lengths: Tensor | None, reset: Tensor | None) -> tuple[Tensor, States]:
        return sequence(cell, rows, weights, entered, lengths=lengths, reset=reset, **options)

    penalty = options.get("penalty")
    if penalty is None:
        return segment.through(layer, x, states, initial)
    with penalty._of_rows(x.shape[1]):
        return segment.through(layer, x, states, initial)


def _has_values() -> bool:
    """Whether a decision may rest on values: not while something traces, nor under `torch.func`."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False
    return not torch._C._are_functorch_transforms_active()
