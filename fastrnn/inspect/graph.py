"""Gates of a cell made by `fastrnn.cell`: its traced step, evaluated on tensors for all time steps at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrnn.custom.graph import Node, reached
from fastrnn.custom.operations import OPERATIONS
from fastrnn.custom.structure import Traced

if TYPE_CHECKING:
    from fastrnn.inspect.layers import Layer

_WITHOUT_FUNCTION: dict[str, Callable[..., Tensor]] = {
    "where_less": lambda a, b, c, d: torch.where(a < b, c, d),
    "where_at_most": lambda a, b, c, d: torch.where(a <= b, c, d),
    "mean": lambda a: a.mean(-1, keepdim=True),
    "sum": lambda a: a.sum(-1, keepdim=True),
}


def gate_values(layer: Layer, wx: Tensor, before: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Return the value of every logistic function in the step, (T, B, H) by name, of those with H units.

    Args:
        layer: a layer of a cell made by `fastrnn.cell`.
        wx: `Layer.columns`, (T, B, columns·H).
        before: the states before each time step, (T, B, H) each.
    """
    assert layer.cell is not None
    kernels = layer.kernels
    step = kernels.compiled.step
    nodes = _gate_nodes(step, kernels.compiled.gates, layer.spec.states)
    nodes = {name: node for name, node in nodes.items() if not kernels.has_input_width(node)}
    values = _Values(layer, step, wx, before)
    return {name: values(node).expand_as(before[0]) for name, node in nodes.items()}


def _gate_nodes(step: Traced, names: tuple[str, ...], taken: tuple[str, ...]) -> dict[str, Node]:
    """Return the logistic functions of a step by name, without those that are states themselves."""
    vectors = [] if step.vector is None else [step.vector]
    roots = [*step.new, *vectors]
    gates: dict[str, Node] = {}
    for node in reached(roots):
        if node.op == "sigmoid" and not any(node is new for new in step.new):
            name = _nearest(node, names) or f"σ{len(gates) + 1}"
            name = name if name not in gates else f"{name}{len(gates) + 1}"
            if name not in taken:
                gates[name] = node
    return gates


def _nearest(node: Node, names: tuple[str, ...]) -> str:
    """Return the gate of W·x with the fewest operations between it and the node; empty if two are equally near."""
    level: list[Node] = [node]
    while level:
        met = {n.leaf[1] for n in level if n.leaf[0] == "x"}
        if met:
            return names[met.pop()] if len(met) == 1 else ""
        level = [argument for n in level for argument in n.args]
    return ""


class _Values:
    """Evaluates nodes as tensors, each once."""

    def __init__(self, layer: Layer, step: Traced, wx: Tensor, before: tuple[Tensor, ...]) -> None:
        assert layer.cell is not None
        self._step, self._before, self._like = step, before, before[0]
        self._columns = wx.chunk(len(layer.kernels.compiled.gates), -1)
        self._matrices = {k: number for number, k in enumerate(step.first + step.second)}
        w_hh, parameters = layer.weights.w_hh, len(layer.cell.parameters)
        self._w, self._b, self._H = w_hh, layer.weights.b_hh, layer.hidden
        self._parameters = w_hh[len(w_hh) - parameters :]
        self._known: dict[int, Tensor] = {}

    def __call__(self, root: Node) -> Tensor:
        for node in reached([root]):  # arguments first
            if node.index not in self._known:
                self._known[node.index] = self._value(node)
        return self._known[root.index]

    def _value(self, node: Node) -> Tensor:
        if node.op == "constant":
            return self._like.new_full((1,) * self._like.dim(), node.value)
        if node.op == "leaf":
            return self._leaf(*node.leaf)
        arguments = [self._known[a.index] for a in node.args]
        if node.op == "product":
            return self._product(node.leaf[1], *arguments)
        function: Any = _WITHOUT_FUNCTION.get(node.op) or OPERATIONS[node.op].torch[0]
        return function(*arguments)

    def _leaf(self, kind: str, index: int) -> Tensor:
        if kind == "x":
            return self._columns[index]
        if kind == "s":
            return self._before[index]
        if kind == "p":
            return self._parameters[index]
        if kind == "r":
            return self._product(index, self._before[0])
        assert kind == "q"
        assert self._step.vector is not None
        return self._product(index, self(self._step.vector))

    def _product(self, matrix: int, vector: Tensor) -> Tensor:
        rows = slice(self._matrices[matrix] * self._H, (self._matrices[matrix] + 1) * self._H)
        return F.linear(vector.expand_as(self._like), self._w[rows], None if self._b is None else self._b[rows])
