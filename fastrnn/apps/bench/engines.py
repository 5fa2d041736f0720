"""Engines to be compared, and the workload of those made of torch modules.

A workload runs one case: ``forward``, ``backward``, ``infer``, ``stream``, and ``tensors`` for the parity check.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastrnn.apps.bench.cases import CLASS_NAMES, Case

if TYPE_CHECKING:
    import numpy as np
    import torch

STREAMED = 3  # chunks of a stream that the parity check compares


@dataclass(frozen=True)
class Engine:
    """A library to be measured.

    Attributes:
        namespace: an importable module with LSTM, GRU and RNN with torch.nn's signatures; for a peer the workload's
            class in `fastrnn.apps.bench.peers`.
        packages: the packages that a peer needs, which are also module names; empty for an engine that is not a peer.
        colour, marker: of a peer in figures.
        trains, packs: whether a peer supports training and packed input.
    """

    name: str
    label: str
    namespace: str
    packages: tuple[str, ...] = ()
    colour: str = ""
    marker: str = ""
    trains: bool = False
    packs: bool = True

    def metrics(self, case: Case) -> tuple[str, ...]:
        """Return the case's metrics that this engine can be timed for; empty if it cannot run it. Imports nothing.

        With ``total`` but without ``forward``, the workload's ``forward`` is the whole training step.
        """
        if not self.packages:
            return case.metrics
        if case.dtype != "float32" or (case.shape.packed and not self.packs):
            return ()
        possible = ("inference", "stream", *(["total"] if self.trains else []))
        return tuple(metric for metric in case.metrics if metric in possible)

    def installed(self) -> bool:
        return all(importlib.util.find_spec(package) is not None for package in self.packages)

    def start(self, threads: int | None) -> dict[str, Any]:
        """Load the library in this process and set its threads."""
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        threads = torch.get_num_threads()
        if not self.packages:
            return {"threads": threads, "version": str(torch.__version__)}
        self._peer().load(threads)
        return {"threads": threads, "version": importlib.metadata.version(self.packages[0])}

    def build(self, case: Case, seed: int, dtype: str | None = None) -> Any:
        """Build the case with weights and data drawn from ``seed``; ``dtype`` stores the same values in another one."""
        import torch

        if self.packages:
            return self._peer()(case, ENGINES["torch"].build(case, seed), torch.get_num_threads())
        shape = case.shape
        torch.manual_seed(seed)
        options = {"num_layers": shape.layers, "bidirectional": shape.bidirectional}
        module = self.module(case.cell, shape.input_size, shape.hidden_size, **options)
        return ModuleWorkload(module, case, seed, dtype or case.dtype)

    def module(self, cell: str, *sizes: int, **options: Any) -> Any:
        """Return a recurrent module of this engine, which must not be a peer."""
        return getattr(importlib.import_module(self.namespace), CLASS_NAMES[cell])(*sizes, **options)

    def _peer(self) -> Any:
        return getattr(importlib.import_module("fastrnn.apps.bench.peers"), self.namespace)


ENGINES = {
    engine.name: engine
    for engine in (
        Engine("torch", "torch.nn", "torch.nn"),
        Engine("fastrnn", "fastrnn", "fastrnn"),
        Engine("onnxruntime", "onnxruntime", "OnnxRuntime", ("onnxruntime", "onnx"), "#E69F00", "s"),
        Engine("openvino", "OpenVINO", "OpenVino", ("openvino", "onnx"), "#009E73", "D"),
        Engine("jax", "JAX scan", "Jax", ("jax",), "#CC79A7", "^", trains=True, packs=False),
    )
}
PEERS = tuple(name for name, engine in ENGINES.items() if engine.packages)
INSTALL = "python -m pip install onnxruntime onnx openvino jax, or: make bench-peers"


def find_engine(name: str) -> Engine:
    """Return the engine of that name, or one for an importable module with LSTM, GRU and RNN. Raises ValueError."""
    if name in ENGINES:
        return ENGINES[name]
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        spec = None
    if spec is None:
        names = ", ".join(engine for engine in ENGINES if engine not in PEERS)
        raise ValueError(f"expected one of {names}, or an importable module with LSTM, GRU and RNN; got {name!r}")
    return Engine(name, name, name)


class ModuleWorkload:
    """A recurrent module, called as users call it: ``y, hx = module(x, hx)``.

    Values are drawn in float64 on the CPU, rounded to the case's dtype and then widened to ``dtype``, so that the
    float64 reference uses exactly the numbers of the measured dtype.
    """

    def __init__(self, module: torch.nn.Module, case: Case, seed: int, dtype: str) -> None:
        import torch

        # Stored because an import statement would cost time in every timed call.
        self._autograd, self._no_grad = torch.autograd, torch.no_grad
        shape, generator = case.shape, torch.Generator().manual_seed(seed + 1)
        state_size = (shape.layers * shape.directions, shape.batch, shape.hidden_size)

        def convert(value: Any) -> Any:
            return value.to(getattr(torch, case.dtype)).to(getattr(torch, dtype)).to(case.device)

        def draw(*size: int) -> torch.Tensor:
            return convert(torch.randn(*size, generator=generator, dtype=torch.float64))

        if case.device == "cuda":
            self.clock = _gpu_clock
        self.case, self.module = case, convert(module)
        rows = (sum(shape.lengths()),) if shape.packed else (shape.steps, shape.batch)
        self.data = draw(*rows, shape.input_size).requires_grad_()
        self.states = tuple(draw(*state_size).requires_grad_() for _ in case.states)
        output = draw(*rows, shape.directions * shape.hidden_size)
        self.gradients = (output, *(draw(*state_size) for _ in case.states))
        if shape.last:
            for gradient in (output[:-1], *self.gradients[1:]):
                gradient.zero_()
        self.hx: Any = self.states if len(self.states) > 1 else self.states[0]
        self.input: Any = self.data
        if shape.packed:
            batch_sizes = (torch.tensor(shape.lengths()) > torch.arange(shape.steps)[:, None]).sum(1)
            self.input = torch.nn.utils.rnn.PackedSequence(self.data, batch_sizes)
        self._next_state, self._pass, self._stream_input = self.hx, self.module, self.input
        if case.chunks and shape.steps == 1 and hasattr(self.module, "step"):
            self._pass, self._stream_input = self.module.step, self.data[0]

    @staticmethod
    def _flat(outputs: Any) -> tuple[torch.Tensor, ...]:
        """Return output (rows, H·D) and final states (L·D, B, H)."""
        y, states = outputs
        y = getattr(y, "data", y) if isinstance(y, tuple) else y  # a PackedSequence is a tuple too
        return (y, *states) if isinstance(states, tuple) else (y, states)

    def forward(self) -> Any:
        return self.module(self.input, self.hx)

    def backward(self, outputs: Any) -> None:
        self._autograd.backward(self._flat(outputs), self.gradients)

    def infer(self, calls: int = 1) -> Any:
        outputs = None
        with self._no_grad():
            for _ in range(calls):
                outputs = self.module(self.input, self.hx)
        return outputs

    def stream(self, calls: int) -> Any:
        outputs = None
        with self._no_grad():
            for _ in range(calls):
                outputs = self._pass(self._stream_input, self._next_state)
                self._next_state = outputs[1]
        return outputs

    def clear_gradients(self) -> None:
        for leaf in (*self.module.parameters(), self.data, *self.states):
            leaf.grad = None

    def tensors(self) -> dict[str, np.ndarray]:
        """Return parameters, outputs and gradients of one step by name; 16-bit dtypes widened exactly to float32."""
        parameters = dict(self.module.named_parameters())
        tensors: dict[str, Any] = {f"parameter {name}": value for name, value in parameters.items()}

        def add(prefix: str, outputs: Any) -> None:
            tensors.update(zip((prefix + name for name in self.case.outputs), outputs, strict=True))

        add("inference ", self._flat(self.infer()))
        if self.case.chunks:
            self._next_state = self.hx
            y, *last = self._flat(self.stream(STREAMED))
            add("stream ", (y.reshape(self.gradients[0].shape), *last))
        self.clear_gradients()
        outputs = self.forward()
        self.backward(outputs)
        add("", self._flat(outputs))
        states = {f"{name}_0": state for name, state in zip(self.case.states, self.states, strict=True)}
        for name, leaf in ({"input": self.data} | states | parameters).items():
            tensors[f"grad {name}"] = leaf.grad
        values = {name: value.detach().cpu() for name, value in tensors.items() if value is not None}
        return {name: (v.float() if v.element_size() == 2 else v).numpy() for name, v in values.items()}


def _gpu_clock() -> float:
    """Return the time after waiting for the GPU to finish all its work."""
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()
