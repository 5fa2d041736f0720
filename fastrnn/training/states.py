"""Functions on states of any structure: a tensor, or tuples, lists and dicts of states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def detach(state: Any) -> Any:
    """Return states with the same values and structure, detached from the graph.

    Args:
        state: a tensor; or tuples (also named ones), lists and dicts of states, nested to any depth; None and numbers
            are returned unchanged.

    Example:
        >>> y, state = fastrnn.LSTM(3, 4)(torch.randn(5, 2, 3))
        >>> [part.requires_grad for part in fastrnn.training.detach(state)]
        [False, False]
    """
    return transform(Tensor.detach, state)


def transform(function: Callable[..., Tensor], state: Any, *others: Any) -> Any:
    """Apply `function` to each tensor of a state, along with the tensors at the same places of the others."""
    if isinstance(state, Tensor):
        return function(state, *others)
    if isinstance(state, dict):
        mapped = {key: transform(function, value, *(o[key] for o in others)) for key, value in state.items()}
        return type(state)(mapped) if type(state) is not dict else mapped
    if isinstance(state, (tuple, list)):
        values = [transform(function, *each) for each in zip(state, *others, strict=True)]
        return type(state)(*values) if hasattr(state, "_fields") else type(state)(values)
    return state


def leaves(state: Any) -> list[Tensor]:
    """Return the tensors of a state."""
    tensors: list[Tensor] = []
    transform(lambda t: tensors.append(t) or t, state)  # type: ignore[func-returns-value]
    return tensors


def take_rows(state: Any, rows: Tensor, dim: int) -> Any:
    """Select rows of a batch, which is the dimension `dim` of every tensor."""
    return transform(lambda t: t.index_select(dim, rows.to(t.device)), state)


def join_rows(states: list[Any], rows: list[Tensor], dim: int) -> Any:
    """Join parts of a batch: `rows` holds the indices of each part's rows."""
    order = torch.cat(rows).argsort()
    return transform(lambda *ts: torch.cat(ts, dim).index_select(dim, order.to(ts[0].device)), *states)
