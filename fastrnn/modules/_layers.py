"""Stacks of layers and directions, built on `fastrnn.functional.sequence`, which runs one layer in one direction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..functional import LayerWeights, sequence
from . import _streams

LayerResult = tuple[Tensor, tuple[Tensor, ...]]


def as_layers(weights: list[Tensor], bias: bool, proj_size: int) -> list[LayerWeights]:
    """Split a list in torch's order (w_ih, w_hh, [b_ih, b_hh], [w_hr], …) into weights by layer and direction."""
    count = 2 + 2 * bool(bias) + (proj_size > 0)
    layers = []
    for first in range(0, len(weights), count):
        group = weights[first : first + count]
        layers.append(LayerWeights(group[0], group[1], None, None, group[2]) if count == 3 else LayerWeights(*group))
    return layers


def run_layers(
    cell: str,
    x: Tensor,
    weights: list[LayerWeights],
    states: tuple[Tensor, ...] | None,
    directions: int,
    dropout: float,
    options: dict[str, Any],
    layer: Callable[..., LayerResult] = sequence,
) -> LayerResult:
    """Run all layers and directions of a recurrent network.

    Args:
        cell: name in `fastrnn.cells.CELLS`.
        x: (T, B, I), or (N, I) if packed; with an embedding, ids (T, B, 1) or (N, 1).
        weights: L·D entries, the directions of a layer adjacent.
        states: ``h`` (L·D, B, P) and, for LSTM, ``c`` (L·D, B, H); None for zeros.
        directions: D, 1 or 2.
        dropout: probability of dropping an element between layers; 0 outside training.
        options: the keywords of `fastrnn.functional.sequence` except ``reverse``.
        layer: runs one layer in one direction; same signature as that function.

    Returns:
        ``y`` (T, B, D·P) or (N, D·P), and the final states, shaped like ``states``.
    """
    if options.get("embedding") is not None:
        x = x.squeeze(-1)
    if len(weights) == 1:  # the usual case, without stacking
        initial = None if states is None else tuple([state.squeeze(0) for state in states])
        if "initial" in options:
            options = {**options, "initial": tuple([state.squeeze(0) for state in options["initial"]])}
        y, last = layer(cell, x, weights[0], initial, **options)
        return y, tuple([state.unsqueeze(0) for state in last])

    initials = _by_layer(states, len(weights))
    options = options.copy()
    given = options.pop("initial", None)
    again = [{} if s is None else {"initial": s} for s in _by_layer(given, len(weights))]
    finals: list[tuple[Tensor, ...]] = []
    for first in range(0, len(weights), directions):
        if first and dropout:
            # torch's own call on the layer's whole output: the same seed drops the same elements.
            x = torch.dropout(x, dropout, True)
        if directions == 1:
            x, last = layer(cell, x, weights[first], initials[first], **options, **again[first])
            finals.append(last)
        else:
            both = slice(first, first + 2)
            ahead, back = _both_directions(cell, x, weights[both], initials[both], again[both], options, layer)
            finals += [ahead[1], back[1]]
            x = torch.cat((ahead[0], back[0]), -1)
        options.pop("embedding", None)
    return x, tuple([torch.stack(column) for column in zip(*finals, strict=True)])


def _by_layer(states: tuple[Tensor, ...] | None, count: int) -> list[Any]:
    """Return the states of each layer and direction; None for each if there are none."""
    return [None] * count if states is None else list(zip(*[state.unbind(0) for state in states], strict=True))


def _both_directions(
    cell: str,
    x: Tensor,
    weights: list[LayerWeights],
    initials: list[Any],
    again: list[Any],
    options: dict[str, Any],
    layer: Callable[..., LayerResult],
) -> tuple[LayerResult, LayerResult]:
    def ahead() -> LayerResult:
        return layer(cell, x, weights[0], initials[0], **options, **again[0])

    def back() -> LayerResult:
        return layer(cell, x, weights[1], initials[1], reverse=True, **options, **again[1])

    if not _streams.apply(x):
        return ahead(), back()
    layout = (options.get("lengths"), options.get("reset"), options.get("embedding"))
    inputs = (x, *weights[1], *(initials[1] or ()), *again[1].get("initial", ()), *layout)
    return _streams.both(ahead, back, inputs, lambda found: (found[0], *found[1]), x.device)
