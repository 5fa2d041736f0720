"""All states and gates of a recurrent module over a whole sequence.

States come from one call of the fused kernels for each layer: h is the output, the others are among the tensors saved
for backward. Gates are then recomputed for all time steps at once, from W·x_t + b and R·h_{t-1} + b_r, without a
recurrence: three products of large matrices instead of T small ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastrnn import _ops
from fastrnn._call import Call
from fastrnn.inspect.graph import gate_values
from fastrnn.inspect.layers import Layer, States, as_input, as_states, layers_of, run_stack


@dataclass(frozen=True, eq=False)
class LayerStates:
    """States and gates of one layer in one direction.

    Attributes:
        name: ``"layer 1"``, ``"layer 1, reverse"``, …
        states: by name, after each time step: (T, B, H), h (T, B, P).
        gates: by name, in each time step: (T, B, H), between 0 and 1.

    Example:
        >>> layer = fastrnn.inspect.follow(fastrnn.LSTM(3, 4), torch.randn(5, 2, 3))[0]
        >>> layer.name, list(layer.states), sorted(layer.gates)
        ('layer 1', ['h', 'c'], ['f', 'i', 'o'])
    """

    name: str
    states: dict[str, Tensor]
    gates: dict[str, Tensor]


def follow(module: nn.Module, x: Tensor, hx: Any = None) -> list[LayerStates]:
    """Run a module over a sequence and return all states and gates, layer by layer. Not differentiable.

    Gates of an LSTM are i, f, o; of a GRU r, z; of a cell made by `fastrnn.cell` all values of a logistic function,
    named after the nearest gate of W·x. An Elman network has none. No dropout is applied.

    Args:
        module: an LSTM, GRU or RNN, or one of their cells, of torch.nn or of fastrnn; or a network made by
            `fastrnn.cell`.
        x: (T, B, I), (B, T, I) if the module is ``batch_first``, or (T, I).
        hx: initial states as the module takes them; None for its learned ones, or zeros.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value.

    Example:
        >>> layer = fastrnn.inspect.follow(fastrnn.GRU(3, 4), torch.randn(5, 2, 3))[0]
        >>> sorted(layer.gates), layer.states["h"].shape
        (['r', 'z'], torch.Size([5, 2, 4]))
    """
    layers = layers_of(module)
    x = as_input(module, x)
    followed: list[LayerStates] = []
    with torch.no_grad():
        initial = as_states(module, layers, hx, x)

        def run(number: int, x: Tensor) -> Tensor:
            layer = layers[number]
            wx = layer.columns(x)
            states = all_states(layer, wx, initial[number])
            names = dict(zip(layer.spec.states, states, strict=True))
            followed.append(LayerStates(layer.name, names, gates_of(layer, wx, initial[number], states)))
            return states[0]

        run_stack(layers, x, run)
    return followed


def all_states(layer: Layer, wx: Tensor, initial: States) -> States:
    """Return each state after each time step, (T, B, ·), for `Layer.columns` (T, B, ·). Not differentiable."""
    if not layer.has_kernels():
        return stepwise(layer, wx, initial)
    y, _, reserve = _ops.forward(Call(layer.spec.name, wx, layer.after_input, initial, reverse=layer.reverse), True)
    if len(initial) == 1:
        return (y,)
    others = reserve[2][..., : (len(initial) - 1) * layer.hidden].to(y.dtype)  # sums over the units follow
    return (y, *others.chunk(len(initial) - 1, -1))


def stepwise(layer: Layer, wx: Tensor, initial: States) -> States:
    """Return the same by a loop in plain PyTorch, differentiable."""
    steps: list[States] = []
    states = initial
    for t in layer.order(len(wx)):
        states = layer.step(wx[t], states)
        steps.append(states)
    if layer.reverse:
        steps.reverse()
    return tuple(torch.stack(column) for column in zip(*steps, strict=True))


def gates_of(layer: Layer, wx: Tensor, initial: States, states: States) -> dict[str, Tensor]:
    """Return the gates of every time step, (T, B, H) by name, from `Layer.columns` and the states after each step."""
    before = tuple(layer.before(s0, s) for s0, s in zip(initial, states, strict=True))
    if layer.cell is not None:
        return gate_values(layer, wx, before)
    names = {"lstm": {"i": 0, "f": 1, "o": 3}, "gru": {"r": 0, "z": 1}}.get(layer.spec.name, {})
    w_hh, b_hh, H = layer.weights.w_hh, layer.weights.b_hh, layer.hidden
    gates = {}
    for name, block in names.items():
        rows = slice(block * H, (block + 1) * H)
        rh = F.linear(before[0], w_hh[rows], None if b_hh is None else b_hh[rows])
        gates[name] = torch.sigmoid(wx[..., rows] + rh)
    return gates
