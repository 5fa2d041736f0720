"""The one list of what can be measured, and how an engine is made to run a case.

An engine turns a case into a ``Workload``: forward, backward and the tensors that the parity check compares.
Everything else (processes, rounds, statistics, reports) knows engines by name only. ``ENGINES`` holds those that are
torch modules; the others (`fastrnn.apps.bench.peers`) take their weights and data from torch.nn's workload.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fastrnn.apps.bench.cases import CLASS_NAMES, Case

if TYPE_CHECKING:
    import numpy
    import torch

BASELINE = "torch"
STREAMED = 3  # chunks of a stream that the parity check compares


class Workload(Protocol):
    """One case, built and ready to run in this process."""

    def forward(self) -> Any:
        """Outputs of the training forward pass, graph attached."""

    def backward(self, outputs: Any) -> None:
        """Gradients of all inputs, states and parameters from the outputs' fixed gradients."""

    def infer(self, calls: int = 1) -> Any:
        """Outputs of that many forward passes without a graph (of the last one; all are the same)."""

    def stream(self, calls: int) -> Any:
        """That many forward passes without a graph, each from the state in which the last one ended."""

    def clear_gradients(self) -> None:
        """Forget the gradients of the last step, so that the next one does not add to them."""

    def tensors(self) -> dict[str, numpy.ndarray]:
        """Parameters, outputs and gradients of one step by name; half formats widened to float32, which is exact."""


class Engine(Protocol):
    """What the benchmark asks of an engine."""

    @property
    def name(self) -> str:
        """For the command line and the JSON."""

    @property
    def label(self) -> str:
        """For tables and pictures."""

    def metrics(self, case: Case) -> tuple[str, ...]:
        """Those of the case's metrics that can be timed here; none if the engine cannot run it. Loads nothing.

        With ``total`` but without ``forward``, the workload's ``forward`` is the whole training step and its
        ``backward`` nothing.
        """

    def start(self, threads: int | None) -> dict[str, Any]:
        """Load the library in this process and set its threads; answers at least ``threads`` and ``version``."""

    def build(self, case: Case, seed: int, dtype: str | None = None) -> Workload:
        """The case with weights and data drawn from ``seed``; ``dtype`` computes the same values in another format."""


@dataclass(frozen=True)
class ModuleEngine:
    """An engine whose ``namespace`` (an importable module) has LSTM, GRU and RNN with torch.nn's signatures."""

    name: str
    label: str
    namespace: str

    def metrics(self, case: Case) -> tuple[str, ...]:
        return case.metrics

    def start(self, threads: int | None) -> dict[str, Any]:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        return {"threads": torch.get_num_threads(), "version": str(torch.__version__)}

    def _class(self, cell: str) -> Any:
        return getattr(importlib.import_module(self.namespace), CLASS_NAMES[cell])

    def build(self, case: Case, seed: int, dtype: str | None = None) -> ModuleWorkload:
        import torch

        shape = case.shape
        torch.manual_seed(seed)
        module = self._class(case.cell)(
            shape.input_size, shape.hidden_size, num_layers=shape.layers, bidirectional=shape.bidirectional
        )
        return ModuleWorkload(module, case, seed, dtype or case.dtype)

    def lstm(self, input_size: int, hidden_size: int, layers: int) -> torch.nn.Module:
        """A multi-layer LSTM, time first, for the language model."""
        return self._class("lstm")(input_size, hidden_size, num_layers=layers)


class ModuleWorkload:
    """A recurrent module called as its users call it: ``y, hx = module(x, hx)``.

    Values are drawn in float64, rounded to the case's format and only then widened to ``dtype``: the float64 reference
    sees exactly the numbers that the measured format sees. All of that happens on the CPU, whatever the device.
    """

    def __init__(self, module: torch.nn.Module, case: Case, seed: int, dtype: str) -> None:
        import torch

        # Held here because an import statement would cost something in every timed call.
        self._autograd, self._no_grad = torch.autograd, torch.no_grad
        shape = case.shape
        generator = torch.Generator().manual_seed(seed + 1)
        lengths = torch.tensor(shape.lengths())
        directions = 2 if shape.bidirectional else 1
        state_size = (shape.layers * directions, shape.batch, shape.hidden_size)
        states = 2 if case.cell == "lstm" else 1

        def draw(*size: int) -> torch.Tensor:
            values = torch.randn(*size, generator=generator, dtype=torch.float64)
            return values.to(getattr(torch, case.dtype)).to(getattr(torch, dtype)).to(case.device)

        if case.device == "cuda":
            self.clock = _gpu_clock
        self.module = module.to(getattr(torch, case.dtype)).to(getattr(torch, dtype)).to(case.device)
        rows = (int(lengths.sum()),) if shape.packed else (shape.steps, shape.batch)
        self.data = draw(*rows, shape.input_size).requires_grad_()
        self.states = tuple(draw(*state_size).requires_grad_() for _ in range(states))
        self.gradients = (
            draw(*rows, directions * shape.hidden_size),
            *(draw(*state_size) for _ in range(states)),
        )
        self.hx = self.states if states == 2 else self.states[0]
        self.input: Any = self.data
        if shape.packed:
            batch_sizes = (lengths[None, :] > torch.arange(shape.steps)[:, None]).sum(1)
            self.input = torch.nn.utils.rnn.PackedSequence(self.data, batch_sizes)
        self.chunks = case.chunks
        self._next_state: Any = self.hx
        self._pass: Any = self.module
        self._stream_input = self.input
        if case.chunks and shape.steps == 1 and hasattr(self.module, "step"):
            self._pass, self._stream_input = self.module.step, self.data[0]

    @staticmethod
    def _flat(outputs: Any) -> tuple[torch.Tensor, ...]:
        """Output (rows, H·D) and final states (L·D, B, H), whatever form the module gave them."""
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
        self.module.zero_grad(set_to_none=True)
        for leaf in (self.data, *self.states):
            leaf.grad = None

    def tensors(self) -> dict[str, numpy.ndarray]:
        state_names = ("h", "c")[: len(self.states)]
        output_names = ("output", *(f"{name}_n" for name in state_names))
        named: dict[str, torch.Tensor | None] = {
            f"parameter {name}": value for name, value in self.module.named_parameters()
        }
        named.update(zip((f"inference {name}" for name in output_names), self._flat(self.infer()), strict=True))
        if self.chunks:
            self._next_state = self.hx
            y, *last = self._flat(self.stream(STREAMED))
            last_names = (f"stream {name}" for name in output_names)
            named.update(zip(last_names, (y.reshape(self.gradients[0].shape), *last), strict=True))
        self.clear_gradients()
        outputs = self.forward()
        self.backward(outputs)
        named.update(zip(output_names, self._flat(outputs), strict=True))
        named["grad input"] = self.data.grad
        named.update({f"grad {name}_0": leaf.grad for name, leaf in zip(state_names, self.states, strict=True)})
        named.update({f"grad {name}": value.grad for name, value in self.module.named_parameters()})
        return {name: _to_numpy(value) for name, value in named.items() if value is not None}


def _gpu_clock() -> float:
    """The time when the GPU has done all that it was asked for."""
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def _to_numpy(value: torch.Tensor) -> numpy.ndarray:
    import torch

    value = value.detach().cpu()
    return (value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).numpy()


ENGINES: dict[str, ModuleEngine] = {
    engine.name: engine
    for engine in (
        ModuleEngine("torch", "torch.nn", "torch.nn"),
        ModuleEngine("fastrnn", "fastrnn", "fastrnn"),
    )
}


def find_engine(name: str) -> Engine:
    """The engine of that name, or one around an importable module with LSTM, GRU and RNN; ValueError if neither."""
    from fastrnn.apps.bench.peers import PEERS

    if name in ENGINES or name in PEERS:
        return ENGINES.get(name) or PEERS[name]
    try:
        found = importlib.util.find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):
        found = False
    if not found:
        raise ValueError(
            f"expected one of {', '.join(ENGINES)}, or an importable module with LSTM, GRU and RNN; found {name!r}"
        )
    return ModuleEngine(name, name, name)
