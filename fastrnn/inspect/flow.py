r"""Gradient flow: ∂L/∂h_t (and ∂L/∂c_t, …) at every time step, the sum over all paths, in one backward pass.

A layer's kernels return ∂L/∂h_t for all t, given ∂L/∂y_t, the gradient that reaches h_t from outside the layer, which
autograd computes at each layer's output. For an LSTM ∂L/∂c_t follows element-wise, as

.. math::
    ∂L/∂c_t = ∂L/∂m_t * o_t * (1 − \tanh²(c_t)) + ∂L/∂c_{t+1} * f_{t+1}

where m = o*tanh(c) is h, or with a projection h = P·m and ∂L/∂m = Pᵀ·∂L/∂h. Other cells with several states, and
cells without kernels, run as a loop in plain PyTorch, in which gradients are taken at every state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastrnn import functional
from fastrnn.inspect.layers import Layer, States, as_input, as_states, layers_of, run_stack
from fastrnn.inspect.states import all_states, gates_of

Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class LayerFlow:
    """Gradients of one layer in one direction.

    Attributes:
        name: ``"layer 1"``, ``"layer 1, reverse"``, …
        gradients: by state, (T+1, B, H): ∂L/∂state after 0, 1, …, T time steps; the first is that of the initial state.
            For a layer in reverse, steps count from the end of the sequence.

    Example:
        >>> flow = fastrnn.inspect.gradient_flow(fastrnn.LSTM(3, 4), torch.randn(5, 2, 3))
        >>> {state: g.shape for state, g in flow.layers[0].gradients.items()}
        {'h': torch.Size([6, 2, 4]), 'c': torch.Size([6, 2, 4])}
    """

    name: str
    gradients: dict[str, Tensor]

    def norms(self, state: str = "h") -> Tensor:
        """Return ‖∂L/∂state‖ by lag, (T+1), mean over batch rows: [0] after the last step, [T] at the initial state."""
        if state not in self.gradients:
            raise ValueError(f"state: expected one of {', '.join(self.gradients)}, got {state!r}")
        return self.gradients[state].norm(dim=-1).mean(-1).flip(0)


@dataclass(frozen=True, eq=False)
class GradientFlow:
    """Result of `gradient_flow`: the loss and, for each layer and direction, the gradients.

    Example:
        >>> flow = fastrnn.inspect.gradient_flow(fastrnn.GRU(3, 4, num_layers=2), torch.randn(5, 2, 3))
        >>> [layer.name for layer in flow.layers]
        ['layer 1', 'layer 2']
    """

    loss: float
    layers: tuple[LayerFlow, ...]


@dataclass
class _Passed:
    """Forward pass of one layer: the tensors to differentiate at, and those from which all gradients are computed."""

    layer: Layer
    wx: Tensor
    initial: States
    points: list[Tensor]
    finals: States


def gradient_flow(module: nn.Module, x: Tensor, hx: Any = None, *, loss: Loss | None = None) -> GradientFlow:
    """Compute ∂L/∂h_t, and that of the other states, for every time step, layer and direction of a recurrent module.

    Dropout between layers is omitted. The parameters' ``grad`` is unchanged.

    Args:
        module: an LSTM, GRU or RNN, or one of their cells, of torch.nn or of fastrnn; or a network made by
            `fastrnn.cell`.
        x: (T, B, I), (B, T, I) if the module is ``batch_first``, or (T, I).
        hx: initial states as the module takes them; None for its learned ones, or zeros.
        loss: computes L from the outputs of the last layer, (T, B, D·P). None: the sum of its final h.

    Raises:
        TypeError: ``module`` is none of these, or x is not a tensor.
        ValueError: x or hx has another shape, or ``loss`` does not return a single number that depends on the outputs.

    Example:
        >>> flow = fastrnn.inspect.gradient_flow(fastrnn.GRU(3, 4), torch.randn(5, 2, 3))
        >>> flow.layers[0].norms("h").shape  # by lag, the initial state last
        torch.Size([6])
    """
    layers = layers_of(module)
    x = as_input(module, x).detach()
    passed: list[_Passed] = []
    with torch.enable_grad():
        starts = [tuple(s.detach().requires_grad_() for s in states) for states in as_states(module, layers, hx, x)]

        def run(number: int, x: Tensor) -> Tensor:
            y, one = _pass(layers[number], x, starts[number])
            passed.append(one)
            return y

        output = run_stack(layers, x, run)
        last = [one.finals[0].sum() for one in passed if one.layer.index == layers[-1].index]
        value = torch.stack(last).sum() if loss is None else loss(output)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        raise ValueError("loss: expected a function of the outputs that returns one differentiable number")
    points = [point for one in passed for point in one.points]
    gradients = iter(torch.autograd.grad(value, points, allow_unused=True))
    flows = []
    for one in passed:
        own = [next(gradients) for _ in one.points]
        flows.append(LayerFlow(one.layer.name, _gradients(one, own)))
    return GradientFlow(float(value.detach()), tuple(flows))


def _by_kernels(layer: Layer) -> bool:
    return (len(layer.spec.states) == 1 or layer.spec.name == "lstm") and layer.has_kernels()


def _pass(layer: Layer, x: Tensor, initial: States) -> tuple[Tensor, _Passed]:
    """Return the output y (T, B, P), and the points: the initial states, and y with the final states or all states."""
    wx = layer.columns(x)
    if _by_kernels(layer):
        y, finals = functional.sequence(
            layer.spec.name, wx, layer.after_input, initial, reverse=layer.reverse, backend="fused"
        )
        return y, _Passed(layer, wx, initial, [*initial, y, *finals], finals)
    states = initial
    points = list(initial)
    outputs = []
    for t in layer.order(len(wx)):
        states = layer.step(wx[t], states)
        points += states
        outputs.append(states[0])
    if layer.reverse:
        outputs.reverse()
    return torch.stack(outputs), _Passed(layer, wx, initial, points, states)


def _gradients(one: _Passed, own: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """Return the gradients by state, (T+1, B, ·) in the order of the steps, from the gradients at the points."""
    names, S = one.layer.spec.states, len(one.layer.spec.states)
    if not _by_kernels(one.layer):
        filled = [torch.zeros_like(p) if g is None else g for g, p in zip(own, one.points, strict=True)]
        return {name: torch.stack(filled[k::S]) for k, name in enumerate(names)}
    first = [torch.zeros_like(p) if g is None else g for g, p in zip(own[:S], one.points[:S], strict=True)]
    layer, at_y, at_finals = one.layer, own[S], list(own[S + 1 :])
    with torch.no_grad():
        wx, initial = one.wx.detach(), tuple(s.detach() for s in one.initial)
        dh = functional.hidden_gradients(
            layer.spec.name, wx, layer.after_input, initial, at_y, at_finals, reverse=layer.reverse
        )
        gradients = [dh.flip(0) if layer.reverse else dh]
        if S > 1:
            gradients.append(_of_cell_state(layer, wx, initial, dh, at_finals[1]))
    return {name: torch.cat((g0.unsqueeze(0), g)) for name, g0, g in zip(names, first, gradients, strict=True)}


def _of_cell_state(layer: Layer, wx: Tensor, initial: States, dh: Tensor, last: Tensor | None) -> Tensor:
    """Return ∂L/∂c of an LSTM after each step (T, B, H), in the order of the steps."""
    states = all_states(layer, wx, initial)
    gates = gates_of(layer, wx, initial, states)
    dm = dh if layer.weights.w_hr is None else dh @ layer.weights.w_hr
    direct = dm * gates["o"] * (1 - torch.tanh(states[1]).square())
    carried = torch.zeros_like(direct[0]) if last is None else last
    gradients = []
    for t in reversed(layer.order(len(wx))):
        carried = carried + direct[t]
        gradients.append(carried)
        carried = carried * gates["f"][t]
    return torch.stack(gradients[::-1])
