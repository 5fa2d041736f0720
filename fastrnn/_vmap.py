"""Handling of a vmapped dimension in a layer's call: as more batch rows, or as one call for each sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastrnn._call import Call


def needs_each(call: Call, dims: Any) -> bool:
    """Return True if vmap must make one call for each sample.

    Packed rows and `lengths` cannot be folded into one batch without changing the contents of the saved tensors, and a
    call has one set of weights.
    """
    return call.batch_sizes is not None or call.lengths is not None or any(d is not None for d in dims.weights)


def can_expand(arguments: tuple, reset: Tensor | None) -> bool:
    """Return True if the per-sample products are not subject to further differentiation."""
    if torch._C._functorch.maybe_current_level() is not None or reset is not None:
        return False
    return not any(isinstance(t, Tensor) and t.requires_grad for t in arguments)


class Rows:
    """A vmapped dimension V folded into the batch: (…, B, …) ↔ (…, V·B, …)."""

    def __init__(self, size: int, call: Call, dims: Any):
        self.size = size
        self.batch = call.x.shape[1] if dims.x is None else call.x.movedim(dims.x, 0).shape[2]

    def fold_call(self, call: Call, dims: Any) -> Call:
        """Return the call of all samples at once. The weights have no dimension V."""

        def states(given: tuple[Tensor, ...], places: tuple) -> tuple[Any, ...]:
            return tuple(self.fold(s, d, 0) for s, d in zip(given, places, strict=True))

        return call._replace(
            x=self.fold(call.x, dims.x, 1),  # type: ignore[arg-type] # x is a Tensor
            states=states(call.states, dims.states),
            restart=states(call.restart, dims.restart),
            reset=self.fold(call.reset, dims.reset, 1),
        )

    def fold(self, t: Tensor | None, dim: int | None, at: int) -> Tensor | None:
        """Fold V into the batch, which is dimension `at` of a tensor without V."""
        if t is None:
            return None
        t = t.unsqueeze(at).expand(*t.shape[:at], self.size, *t.shape[at:]) if dim is None else t.movedim(dim, at)
        return t.flatten(at, at + 1)

    def unfold(self, t: Tensor, at: int) -> Tensor:
        return t.unflatten(at, (self.size, self.batch))

    def fold_saved(self, t: Tensor, dim: int | None) -> Tensor:
        """Fold a saved tensor (T, B, ·); one that the cell does not use, (0, 0), stays empty."""
        if t.dim() - (dim is not None) == 2:
            return t if dim is None else t.select(dim, 0)
        return self.fold(t, dim, 1)  # type: ignore[return-value]

    def unfold_saved(self, t: Tensor) -> Tensor:
        return t if t.dim() == 2 else self.unfold(t, 1)


def step_dim(t: Tensor) -> int | None:
    """Return the vmapped dimension of an unfolded (T, V, B, ·), or None for an empty tensor."""
    return 1 if t.dim() == 4 else None


def each(function: Any, size: int, in_dims: tuple, args: tuple) -> tuple[tuple, tuple]:
    """Apply vmap by one call for each sample."""

    def sample(value: Any, dim: int | None, v: int) -> Any:
        return value.select(dim, v) if isinstance(value, Tensor) and dim is not None else value

    outs = [function.apply(*(sample(a, d, v) for a, d in zip(args, in_dims, strict=True))) for v in range(size)]
    return tuple(torch.stack(ts) for ts in zip(*outs, strict=True)), (0,) * len(outs[0])
