"""Workloads of libraries without torch modules: onnxruntime, OpenVINO (forward) and JAX (forward, training), float32.

Each is used as in its documentation, with settings that only make the comparison fair: as many threads as torch, one
stream of work, float32 arithmetic throughout. Weights and data are those of torch.nn's workload. Remaining choices
favour the peer: OpenVINO reads our arrays and returns its own without a copy; JAX keeps its arrays on its device and
compiles before timing starts.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastrnn.apps.bench.cases import CLASS_NAMES, GATES, Case
from fastrnn.apps.bench.engines import STREAMED, ModuleWorkload

Arrays = dict[str, np.ndarray]


class Peer:
    """Base of the three libraries: the data of a case, time-major and padded.

    A peer has ``prepare``, which compiles the model, ``run``, one forward pass on ``feeds``, ``hand_on``, which puts
    the final states into ``feeds``, and ``arrays``, which returns the outputs: output (T, B, D·H) and final states.
    """

    package = ""

    def __init__(self, case: Case, source: ModuleWorkload, threads: int) -> None:
        import torch

        x = torch.nn.utils.rnn.pad_packed_sequence(source.input)[0] if case.shape.packed else source.data
        self.case = case
        self.parameters = {name: value.detach().numpy() for name, value in source.module.named_parameters()}
        self.lengths = np.array(case.shape.lengths(), np.int32)
        self.gradients = tuple(gradient.numpy() for gradient in source.gradients)
        self.feeds = {"x": x.detach().numpy()}  # (T, B, I); states (L·D, B, H)
        self.feeds |= {f"{n}_0": s.detach().numpy() for n, s in zip(case.states, source.states, strict=True)}
        if case.shape.packed:
            self.feeds["lengths"] = self.lengths
        self.prepare(threads)

    @classmethod
    def load(cls, threads: int) -> None:
        importlib.import_module(cls.package)

    prepare: Any
    run: Any
    hand_on: Any
    arrays: Any

    def backward(self, outputs: Any) -> None:
        """Do nothing: ``forward``, which only JAX has, is the whole training step."""

    def clear_gradients(self) -> None:
        """Do nothing: gradients are returned, not accumulated."""

    def infer(self, calls: int = 1) -> Any:
        outputs = None
        for _ in range(calls):
            outputs = self.run()
        return outputs

    def stream(self, calls: int) -> Any:
        outputs = None
        for _ in range(calls):
            outputs = self.run()
            self.hand_on(outputs)
        return outputs

    def named(self, prefix: str, outputs: Any) -> Arrays:
        """Return copies by name; for packed input the existing rows (N, D·H), as in torch.nn."""
        y, *last = map(np.array, self.arrays(outputs))
        if self.case.shape.packed:
            y = y[np.arange(len(y))[:, None] < self.lengths]
        return dict(zip((prefix + name for name in self.case.outputs), (y, *last), strict=True))

    def tensors(self) -> Arrays:
        tensors = self.named("inference ", self.infer())
        return tensors | (self.named("stream ", self.stream(STREAMED)) if self.case.chunks else {})


class OnnxRuntime(Peer):
    package = "onnxruntime"

    def prepare(self, threads: int) -> None:
        ort = importlib.import_module("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        model = onnx_model(self.case, self.parameters)
        self._run = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run
        self._keys = [f"{name}_0" for name in self.case.states]

    def run(self) -> Any:
        return self._run(None, self.feeds)

    def hand_on(self, outputs: Any) -> None:
        self.feeds.update(zip(self._keys, outputs[1:], strict=True))

    def arrays(self, outputs: Any) -> tuple[Any, ...]:
        return tuple(outputs)


class OpenVino(Peer):
    package = "openvino"

    def prepare(self, threads: int) -> None:
        core = importlib.import_module("openvino").Core()
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",  # its default is bfloat16 if the processor supports it
            "EXECUTION_MODE_HINT": "ACCURACY",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
        }
        compiled = core.compile_model(core.read_model(onnx_model(self.case, self.parameters)), "CPU", settings)
        used = compiled.get_property("INFERENCE_NUM_THREADS"), compiled.get_property("INFERENCE_PRECISION_HINT")
        if (used[0], str(used[1].get_type_name())) != (threads, "f32"):
            raise RuntimeError(f"expected OpenVINO to use {threads} threads and f32, got {used}")
        self._infer = compiled.create_infer_request().infer
        self._ports = [compiled.output(name) for name in self.case.outputs]
        self._next = list(zip([f"{name}_0" for name in self.case.states], self._ports[1:], strict=True))

    def run(self) -> Any:
        return self._infer(self.feeds, share_inputs=True, share_outputs=True)

    def hand_on(self, outputs: Any) -> None:
        for key, port in self._next:
            self.feeds[key] = outputs[port].copy()  # the next call overwrites these outputs

    def arrays(self, outputs: Any) -> tuple[Any, ...]:
        return tuple(outputs[port] for port in self._ports)


class Jax(Peer):
    package = "jax"

    @classmethod
    def load(cls, threads: int) -> None:
        # XLA has no setting for its threads: it starts one per usable core, or as many as this variable says. The
        # affinity keeps its other threads on as many cores.
        os.environ["PJRT_NPROC"] = os.environ["NPROC"] = str(threads)
        os.environ["JAX_PLATFORMS"] = "cpu"
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        if threads == 1:
            os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
        importlib.import_module("jax").config.update("jax_enable_x64", False)

    def prepare(self, threads: int) -> None:
        jax = importlib.import_module("jax")
        forward = jax_forward(self.case)

        def train(parameters: Any, x: Any, states: Any, given: Any) -> Any:
            outputs, pull_back = jax.vjp(forward, parameters, x, states)
            return outputs, pull_back((given[0], tuple(given[1:])))

        self._block = jax.block_until_ready
        # Weights are transposed once, to (I, G·H) and (H, G·H), so that no product has to do so at each time step.
        turned = {name: value.T if value.ndim == 2 else value for name, value in self.parameters.items()}
        x, *states = self.feeds.values()
        self._weights, self._x, self._states = jax.device_put((turned, x, tuple(states)))
        self._given = jax.device_put(self.gradients)
        self._infer, self._train = jax.jit(forward), jax.jit(train)

    def forward(self) -> Any:
        return self._block(self._train(self._weights, self._x, self._states, self._given))

    def run(self) -> Any:
        return self._block(self._infer(self._weights, self._x, self._states))

    def hand_on(self, outputs: Any) -> None:
        self._states = outputs[1]

    def arrays(self, outputs: Any) -> tuple[Any, ...]:
        return (outputs[0], *outputs[1])

    def tensors(self) -> Arrays:
        tensors = super().tensors()
        if self.case.chunks:
            return tensors
        outputs, (parameters, x, states) = self.forward()
        tensors |= self.named("", outputs) | {"grad input": np.array(x)}
        tensors |= {f"grad {name}_0": np.array(value) for name, value in zip(self.case.states, states, strict=True)}
        return tensors | {f"grad {name}": np.array(value).T for name, value in parameters.items()}


def jax_forward(case: Case) -> Any:
    """Return a function of (parameters, x, states) to (output, final states): `lax.scan` after the product with W."""
    jax, np_ = importlib.import_module("jax"), importlib.import_module("jax.numpy")
    sigmoid, tanh = jax.nn.sigmoid, np_.tanh

    def lstm(states: Any, row: Any, r: Any, b: Any) -> Any:
        i, f, g, o = np_.split(row + states[0] @ r, 4, axis=-1)
        c = sigmoid(f) * states[1] + sigmoid(i) * tanh(g)
        return sigmoid(o) * tanh(c), c

    def gru(states: Any, row: Any, r: Any, b: Any) -> Any:
        (wr, wz, wn), (rr, rz, rn) = np_.split(row, 3, axis=-1), np_.split(states[0] @ r + b, 3, axis=-1)
        candidate = tanh(wn + sigmoid(wr + rr) * rn)
        return (candidate + sigmoid(wz + rz) * (states[0] - candidate),)

    def rnn(states: Any, row: Any, r: Any, b: Any) -> Any:
        return (tanh(row + states[0] @ r),)

    cell: Any = {"lstm": lstm, "gru": gru, "rnn": rnn}[case.cell]

    def layer(parameters: Any, suffix: str, x: Any, states: Any) -> Any:
        w, r, b_ih, b_hh = (parameters[name + suffix] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        if case.cell != "gru":  # both biases belong to the same sum and are added before the loop
            b_ih = b_ih + b_hh

        def step(states: Any, row: Any) -> Any:
            new = cell(states, row, r, b_hh)
            return new, new[0]

        last, y = jax.lax.scan(step, states, x @ w + b_ih, reverse=suffix.endswith("reverse"))
        return y, last

    def forward(parameters: Any, x: Any, states: Any) -> Any:
        finals: list[Any] = []
        for number in range(case.shape.layers):
            outputs = []
            for direction in ("", "_reverse")[: case.shape.directions]:
                initial = tuple(state[len(finals)] for state in states)
                y, last = layer(parameters, f"_l{number}{direction}", x, initial)
                outputs.append(y)
                finals.append(last)
            x = outputs[0] if len(outputs) == 1 else np_.concatenate(outputs, axis=-1)
        return x, tuple(np_.stack(state) for state in zip(*finals, strict=True))

    return forward


# Positions of ONNX's gates among torch's: i o f c (torch: i f g o), z r h (r z n)
_ORDER = {"lstm": [0, 3, 1, 2], "gru": [1, 0, 2], "rnn": [0]}


def onnx_model(case: Case, parameters: Mapping[str, np.ndarray]) -> bytes:
    """Serialise a network of torch.nn as an ONNX model: one LSTM, GRU or RNN node per layer, all sizes fixed.

    ONNX (https://onnx.ai/onnx/operators/onnx__LSTM.html and related pages) has weights with a direction axis, (D, G·H,
    I), both biases in one tensor (D, 2·G·H), and outputs (T, D, B, H) that are zero after a batch row has ended; its
    GRU applies r after the product with R, as torch does, only with ``linear_before_reset=1``.

    Args:
        case: cell and sizes.
        parameters: torch.nn's parameters by name, float32.

    Returns:
        a model with the inputs ``x`` (T, B, I), ``h_0`` and for LSTM ``c_0`` (L·D, B, H), for packed cases ``lengths``
        (B) int32, and the outputs ``output`` (T, B, D·H), ``h_n`` and for LSTM ``c_n`` (L·D, B, H).
    """
    onnx = importlib.import_module("onnx")
    helper, kinds, shape = onnx.helper, onnx.TensorProto, case.shape
    nodes: list[Any] = []
    constants: list[Any] = []

    def node(kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        nodes.append(helper.make_node(kind, inputs, outputs, **attributes))

    def constant(name: str, value: Any) -> str:
        constants.append(onnx.numpy_helper.from_array(np.array(value), name))
        return name

    def gates(layer: int, kind: str) -> np.ndarray:
        """Return a parameter of both directions in ONNX's order of gates: (D, G·H) or (D, G·H, columns)."""
        values = [parameters[f"{kind}_l{layer}{suffix}"] for suffix in ("", "_reverse")[: shape.directions]]
        parts = [value.reshape(GATES[case.cell], shape.hidden_size, *value.shape[1:]) for value in values]
        return np.stack([part[_ORDER[case.cell]].reshape(values[0].shape) for part in parts])

    def state(name: str, end: str, layer: int) -> str:
        return f"{name}_{end}" if shape.layers == 1 else f"{name}_{end}_l{layer}"

    layers = range(shape.layers)
    attributes: dict[str, Any] = {"hidden_size": shape.hidden_size}
    attributes |= {"direction": "bidirectional"} if shape.bidirectional else {}
    attributes |= {"linear_before_reset": 1} if case.cell == "gru" else {}
    if shape.layers > 1:
        split = constant("split", [shape.directions] * shape.layers)
        for name in case.states:
            node("Split", [f"{name}_0", split], [state(name, "0", layer) for layer in layers], axis=0)
    x, columns = "x", shape.directions * shape.hidden_size
    for layer in layers:
        weights = [constant(f"{kind}_l{layer}", gates(layer, kind)) for kind in ("weight_ih", "weight_hh")]
        bias = np.concatenate([gates(layer, kind) for kind in ("bias_ih", "bias_hh")], axis=1)
        inputs = [x, *weights, constant(f"bias_l{layer}", bias), "lengths" if shape.packed else ""]
        finals = [state(name, "n", layer) for name in case.states]
        states = [state(name, "0", layer) for name in case.states]
        node(CLASS_NAMES[case.cell], [*inputs, *states], [f"y_l{layer}", *finals], **attributes)
        x = "output" if layer == shape.layers - 1 else f"x_l{layer + 1}"
        if not shape.bidirectional:
            node("Squeeze", [f"y_l{layer}", constant(f"axis_l{layer}", [1])], [x])
            continue
        node("Transpose", [f"y_l{layer}"], [f"turned_l{layer}"], perm=[0, 2, 1, 3])
        node("Reshape", [f"turned_l{layer}", constant(f"size_l{layer}", [shape.steps, shape.batch, columns])], [x])
    if shape.layers > 1:
        for name in case.states:
            node("Concat", [state(name, "n", layer) for layer in layers], [f"{name}_n"], axis=0)
    size = [shape.layers * shape.directions, shape.batch, shape.hidden_size]
    value = helper.make_tensor_value_info
    taken = [value("x", kinds.FLOAT, [shape.steps, shape.batch, shape.input_size])]
    taken += [value(f"{name}_0", kinds.FLOAT, size) for name in case.states]
    taken += [value("lengths", kinds.INT32, [shape.batch])] if shape.packed else []
    given = [value("output", kinds.FLOAT, [shape.steps, shape.batch, columns])]
    given += [value(f"{name}_n", kinds.FLOAT, size) for name in case.states]
    graph = helper.make_graph(nodes, case.cell, taken, given, constants)
    # The version released with this opset, which older engines can read.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())
