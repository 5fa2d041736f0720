"""A recurrent network of torch.nn as an ONNX model, node by node: what onnxruntime and OpenVINO are given.

Built with ``onnx.helper`` rather than exported, so that the model is one LSTM, GRU or RNN node per layer and nothing
that an exporter adds. Differences of ONNX (https://onnx.ai/onnx/operators/onnx__LSTM.html and its neighbours):

- gates are in the order i o f c (LSTM; torch: i f g o) and z r h (GRU; torch: r z n);
- GRU applies r after the product with R, as torch does, only with ``linear_before_reset=1``;
- weights have a direction axis, (D, G·H, I); both biases lie in one tensor (D, 2·G·H);
- outputs are (T, D, B, H), and a row that has ended is padded with zeros.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn.apps.bench.cases import CLASS_NAMES, GATES, Case

if TYPE_CHECKING:
    from collections.abc import Mapping

# Positions of ONNX's gates among torch's.
_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}
_OPSET = 17
_IR_VERSION = 8  # the one that came with this opset: what an engine of some years ago can read


def state_names(case: Case) -> tuple[str, ...]:
    return ("h", "c") if case.cell == "lstm" else ("h",)


def build_model(case: Case, parameters: Mapping[str, np.ndarray]) -> bytes:
    """The serialised model of a float32 case.

    Args:
        case: cell and sizes; the model has these sizes, nothing in it is dynamic.
        parameters: torch.nn's parameters by name, each float32.

    Returns:
        A model with the inputs ``x`` (T, B, I), ``h_0`` and for LSTM ``c_0`` (L·D, B, H), for packed cases ``lengths``
        (B) int32, and the outputs ``output`` (T, B, D·H), ``h_n`` and for LSTM ``c_n`` (L·D, B, H).
    """
    helper = importlib.import_module("onnx").helper
    graph = _Graph(case, parameters)
    graph.build()
    model = helper.make_model(
        helper.make_graph(graph.nodes, case.cell, graph.inputs(), graph.outputs(), graph.constants),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
    )
    importlib.import_module("onnx").checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


class _Graph:
    """The nodes and constants of one model while it is put together."""

    def __init__(self, case: Case, parameters: Mapping[str, np.ndarray]) -> None:
        onnx = importlib.import_module("onnx")
        self._onnx: Any = onnx
        self.case, self.parameters = case, parameters
        self.directions = 2 if case.shape.bidirectional else 1
        self.states = state_names(case)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def _node(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        self.nodes.append(self._onnx.helper.make_node(kind, inputs, outputs, **attributes))

    def _constant(self, name: str, value: np.ndarray) -> str:
        self.constants.append(self._onnx.numpy_helper.from_array(value, name))
        return name

    def _value(self, name: str, shape: list[int], kind: str = "FLOAT") -> Any:
        return self._onnx.helper.make_tensor_value_info(name, getattr(self._onnx.TensorProto, kind), shape)

    def _state_size(self) -> list[int]:
        shape = self.case.shape
        return [shape.layers * self.directions, shape.batch, shape.hidden_size]

    def inputs(self) -> list[Any]:
        shape = self.case.shape
        values = [self._value("x", [shape.steps, shape.batch, shape.input_size])]
        values += [self._value(f"{name}_0", self._state_size()) for name in self.states]
        return [*values, self._value("lengths", [shape.batch], "INT32")] if shape.packed else values

    def outputs(self) -> list[Any]:
        shape = self.case.shape
        output = self._value("output", [shape.steps, shape.batch, self.directions * shape.hidden_size])
        return [output, *(self._value(f"{name}_n", self._state_size()) for name in self.states)]

    def build(self) -> None:
        layers = self.case.shape.layers
        if layers > 1:
            split = self._constant("split", np.full(layers, self.directions, np.int64))
            for name in self.states:
                parts = [self._state(name, "0", layer) for layer in range(layers)]
                self._node("Split", [f"{name}_0", split], parts, axis=0)
        x = "x"
        for layer in range(layers):
            x = self._layer(layer, x)
        if layers > 1:
            for name in self.states:
                parts = [self._state(name, "n", layer) for layer in range(layers)]
                self._node("Concat", parts, [f"{name}_n"], axis=0)

    def _state(self, name: str, end: str, layer: int) -> str:
        """Name of one layer's initial (``0``) or final (``n``) state."""
        return f"{name}_{end}" if self.case.shape.layers == 1 else f"{name}_{end}_l{layer}"

    def _layer(self, layer: int, x: str) -> str:
        """Add one layer that reads ``x``; answers the name of its output."""
        case, shape = self.case, self.case.shape
        weights = [self._stack(layer, kind) for kind in ("weight_ih", "weight_hh")]
        bias = np.concatenate([self._gates(layer, kind) for kind in ("bias_ih", "bias_hh")], axis=1)
        inputs = [
            x,
            *weights,
            self._constant(f"bias_l{layer}", bias),
            "lengths" if shape.packed else "",
            *(self._state(name, "0", layer) for name in self.states),
        ]
        attributes: dict[str, Any] = {"hidden_size": shape.hidden_size}
        if shape.bidirectional:
            attributes["direction"] = "bidirectional"
        if case.cell == "gru":
            attributes["linear_before_reset"] = 1
        outputs = [f"y_l{layer}", *(self._state(name, "n", layer) for name in self.states)]
        self._node(CLASS_NAMES[case.cell], inputs, outputs, **attributes)
        name = "output" if layer == shape.layers - 1 else f"x_l{layer + 1}"
        if self.directions == 1:
            axis = self._constant(f"axis_l{layer}", np.array([1], np.int64))
            self._node("Squeeze", [outputs[0], axis], [name])
            return name
        size = np.array([shape.steps, shape.batch, self.directions * shape.hidden_size], np.int64)
        self._node("Transpose", [outputs[0]], [f"turned_l{layer}"], perm=[0, 2, 1, 3])
        self._node("Reshape", [f"turned_l{layer}", self._constant(f"size_l{layer}", size)], [name])
        return name

    def _stack(self, layer: int, kind: str) -> str:
        return self._constant(f"{kind}_l{layer}", self._gates(layer, kind))

    def _gates(self, layer: int, kind: str) -> np.ndarray:
        """A parameter of both directions in ONNX's order of gates: (D, G·H) or (D, G·H, columns)."""
        gates, hidden = GATES[self.case.cell], self.case.shape.hidden_size
        found = []
        for suffix in ("", "_reverse")[: self.directions]:
            value = self.parameters[f"{kind}_l{layer}{suffix}"]
            parts = value.reshape(gates, hidden, *value.shape[1:])[list(_ORDER[self.case.cell])]
            found.append(parts.reshape(value.shape))
        return np.stack(found)
