"""States of any form: a tensor, or tuples, lists and dicts of states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def detach(state: Any) -> Any:
    """Return states with the same values and structure, detached from the graph.

    Args:
        state: a tensor; or tuples (also named ones), lists and dicts of states, at any depth; None and numbers stay.

    Example:
        >>> y, state = fastrnn.LSTM(3, 4)(torch.randn(5, 2, 3))
        >>> [part.requires_grad for part in fastrnn.training.detach(state)]
        [False, False]
    """
    return transform(Tensor.detach, state)


def transform(function: Callable[..., Tensor], state: Any, *others: Any) -> Any:
    """`function` of each tensor of a state, and of those in the same places of others in the same form."""
    if isinstance(state, Tensor):
        return function(state, *others)
    if isinstance(state, dict):
        found = {key: transform(function, value, *(o[key] for o in others)) for key, value in state.items()}
        return type(state)(found) if type(state) is not dict else found
    if isinstance(state, (tuple, list)):
        values = [transform(function, *each) for each in zip(state, *others, strict=True)]
        return type(state)(*values) if hasattr(state, "_fields") else type(state)(values)
    return state


def leaves(state: Any) -> list[Tensor]:
    """The tensors of a state."""
    found: list[Tensor] = []
    transform(lambda t: found.append(t) or t, state)  # type: ignore[func-returns-value]
    return found


def take_rows(state: Any, rows: Tensor, dim: int) -> Any:
    """Some rows of a batch, which is the dimension `dim` of every tensor."""
    return transform(lambda t: t.index_select(dim, rows.to(t.device)), state)


def join_rows(states: list[Any], rows: list[Tensor], dim: int) -> Any:
    """A batch out of parts: `rows` are the places of each part's rows."""
    order = torch.cat(rows).argsort()
    return transform(lambda *ts: torch.cat(ts, dim).index_select(dim, order.to(ts[0].device)), *states)
