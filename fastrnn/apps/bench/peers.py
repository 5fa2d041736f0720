"""Engines that are not torch modules: onnxruntime, OpenVINO (forward) and JAX (forward and training).

Each is what a user could choose instead, driven in the way that its documentation shows, with settings that only make
the comparison fair: as many threads as torch, one stream of work, float32 arithmetic throughout. Weights and data are
those of torch.nn's workload. Where there is a choice, it is the peer's favour: OpenVINO may read our arrays and hand
out its own without a copy; JAX keeps its arrays on its device and compiles before the clock runs.

They exist for float32 only. onnxruntime's and OpenVINO's recurrent operators have nothing else worth timing on a
processor, and JAX is run without x64.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fastrnn.apps.bench import jax_model, onnx_model
from fastrnn.apps.bench.cases import Case
from fastrnn.apps.bench.engines import BASELINE, ENGINES, STREAMED, Engine

INSTALL = "python -m pip install onnxruntime onnx openvino jax, or: make bench-peers"
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class _Data:
    """A case's numbers, time first and padded: every array float32, sizes as torch.nn has them."""

    parameters: Arrays
    x: np.ndarray  # (T, B, I)
    states: tuple[np.ndarray, ...]  # (L·D, B, H)
    gradients: tuple[np.ndarray, ...]  # of output (T, B, D·H) and final states
    lengths: np.ndarray  # (B) int32
    packed: bool

    @classmethod
    def of(cls, case: Case, seed: int) -> _Data:
        import torch

        source = ENGINES[BASELINE].build(case, seed)
        x = torch.nn.utils.rnn.pad_packed_sequence(source.input)[0] if case.shape.packed else source.data
        return cls(
            {name: value.detach().numpy() for name, value in source.module.named_parameters()},
            x.detach().numpy(),
            tuple(state.detach().numpy() for state in source.states),
            tuple(gradient.numpy() for gradient in source.gradients),
            np.array(case.shape.lengths(), np.int32),
            case.shape.packed,
        )

    def rows(self, output: np.ndarray) -> np.ndarray:
        """Output (T, B, D·H) as torch.nn gives it: for packed input the rows that exist, (N, D·H)."""
        if not self.packed:
            return output
        exists: np.ndarray = np.arange(len(output))[:, None] < self.lengths
        return output[exists]


class PeerEngine(Engine, Protocol):
    """An engine of this module."""

    @property
    def packages(self) -> tuple[str, ...]:
        """What has to be installed, by the names of the packages and of the modules alike."""


def installed(engine: PeerEngine) -> bool:
    """Whether everything is there that the engine needs; imports nothing."""
    return all(importlib.util.find_spec(package) is not None for package in engine.packages)


class _Engine:
    """What the three have in common."""

    def __init__(self, name: str, label: str, packages: tuple[str, ...]) -> None:
        self.name, self.label, self.packages = name, label, packages
        self.threads = 1

    def metrics(self, case: Case) -> tuple[str, ...]:
        wanted = ("inference", "stream")
        return tuple(metric for metric in case.metrics if metric in wanted) if case.dtype == "float32" else ()

    def start(self, threads: int | None) -> dict[str, Any]:
        self.threads = int(ENGINES[BASELINE].start(threads)["threads"])
        self._load()
        return {"threads": self.threads, "version": importlib.metadata.version(self.packages[0])}

    def _load(self) -> None:
        importlib.import_module(self.packages[0])


class OnnxRuntimeEngine(_Engine):
    def build(self, case: Case, seed: int, dtype: str | None = None) -> OnnxRuntimeWorkload:
        return OnnxRuntimeWorkload(case, _Data.of(case, seed), self.threads)


class OpenVinoEngine(_Engine):
    def build(self, case: Case, seed: int, dtype: str | None = None) -> OpenVinoWorkload:
        return OpenVinoWorkload(case, _Data.of(case, seed), self.threads)


class JaxEngine(_Engine):
    def metrics(self, case: Case) -> tuple[str, ...]:
        if case.dtype != "float32" or case.shape.packed:
            return ()  # rows of different lengths would need a mask that everybody writes in another way
        return tuple(metric for metric in case.metrics if metric in ("total", "inference", "stream"))

    def _load(self) -> None:
        # XLA has no setting for its threads: it takes as many as it may use cores, or this variable's number. The
        # affinity keeps whatever other threads it starts on as many cores.
        os.environ["PJRT_NPROC"] = os.environ["NPROC"] = str(self.threads)
        os.environ["JAX_PLATFORMS"] = "cpu"
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: self.threads])
        if self.threads == 1:
            os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
        importlib.import_module("jax").config.update("jax_enable_x64", False)

    def build(self, case: Case, seed: int, dtype: str | None = None) -> JaxWorkload:
        return JaxWorkload(case, _Data.of(case, seed))


class _Workload:
    """What the three have in common: they have no module, so ``forward`` and ``backward`` are for training only."""

    def __init__(self, case: Case, data: _Data) -> None:
        self.case, self.data = case, data
        self.state_names = onnx_model.state_names(case)
        self.output_names = ("output", *(f"{name}_n" for name in self.state_names))

    def forward(self) -> Any:
        raise NotImplementedError("this engine only infers")

    def backward(self, outputs: Any) -> None:
        """Nothing: ``forward``, where there is one, is the whole training step."""

    def clear_gradients(self) -> None:
        """Nothing: gradients are returned, not added up."""

    def infer(self, calls: int = 1) -> Any:
        outputs = None
        for _ in range(calls):
            outputs = self._infer_once()
        return outputs

    def _infer_once(self) -> Any:
        raise NotImplementedError

    def stream(self, calls: int) -> Any:
        raise NotImplementedError

    def _named(self, outputs: Any) -> Arrays:
        """Outputs and final states by name, copied."""
        raise NotImplementedError

    def tensors(self) -> Arrays:
        named = {f"inference {name}": value for name, value in self._named(self.infer()).items()}
        if self.case.chunks:
            named.update({f"stream {name}": value for name, value in self._named(self.stream(STREAMED)).items()})
        return named


class OnnxRuntimeWorkload(_Workload):
    def __init__(self, case: Case, data: _Data, threads: int) -> None:
        super().__init__(case, data)
        ort = importlib.import_module("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        model = onnx_model.build_model(case, data.parameters)
        self._run = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run
        self._feeds = _feeds(data, self.state_names)

    def _infer_once(self) -> Any:
        return self._run(None, self._feeds)

    def stream(self, calls: int) -> Any:
        feeds, keys, outputs = self._feeds, [f"{name}_0" for name in self.state_names], None
        for _ in range(calls):
            outputs = self._run(None, feeds)
            feeds.update(zip(keys, outputs[1:], strict=True))
        return outputs

    def _named(self, outputs: Any) -> Arrays:
        y, *last = outputs
        return dict(zip(self.output_names, (self.data.rows(y), *last), strict=True))


class OpenVinoWorkload(_Workload):
    def __init__(self, case: Case, data: _Data, threads: int) -> None:
        super().__init__(case, data)
        core = importlib.import_module("openvino").Core()
        # Its own choice of precision is bfloat16 where the processor has it.
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "EXECUTION_MODE_HINT": "ACCURACY",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
        }
        network = core.read_model(onnx_model.build_model(case, data.parameters))
        compiled = core.compile_model(network, "CPU", settings)
        used = compiled.get_property("INFERENCE_NUM_THREADS"), compiled.get_property("INFERENCE_PRECISION_HINT")
        if (used[0], str(used[1].get_type_name())) != (threads, "f32"):
            raise RuntimeError(f"expected OpenVINO to take {threads} threads and f32, found {used}")
        self._request = compiled.create_infer_request()
        self._ports = [compiled.output(name) for name in self.output_names]
        self._feeds = _feeds(data, self.state_names)

    def _infer_once(self) -> Any:
        return self._request.infer(self._feeds, share_inputs=True, share_outputs=True)

    def stream(self, calls: int) -> Any:
        feeds, outputs = self._feeds, None
        ports = list(zip([f"{name}_0" for name in self.state_names], self._ports[1:], strict=True))
        for _ in range(calls):
            outputs = self._request.infer(feeds, share_inputs=True, share_outputs=True)
            for key, port in ports:
                feeds[key] = outputs[port].copy()  # the next call writes where this one's outputs lie
        return outputs

    def _named(self, outputs: Any) -> Arrays:
        y, *last = (np.array(outputs[port]) for port in self._ports)
        return dict(zip(self.output_names, (self.data.rows(y), *last), strict=True))


def _feeds(data: _Data, state_names: tuple[str, ...]) -> Arrays:
    feeds = {"x": data.x, **{f"{name}_0": value for name, value in zip(state_names, data.states, strict=True)}}
    return {**feeds, "lengths": data.lengths} if data.packed else feeds


class JaxWorkload(_Workload):
    def __init__(self, case: Case, data: _Data) -> None:
        super().__init__(case, data)
        jax = importlib.import_module("jax")
        self._block = jax.block_until_ready
        turned = {name: value.T if value.ndim == 2 else value for name, value in data.parameters.items()}
        self._arguments = jax.device_put((turned, data.x, data.states))
        self._given = jax.device_put(data.gradients)
        self._infer = jax.jit(jax_model.make_forward(case))
        self._train = jax.jit(jax_model.make_training_step(case))
        self._states = self._arguments[2]

    def forward(self) -> Any:
        return self._block(self._train(*self._arguments, self._given))

    def _infer_once(self) -> Any:
        return self._block(self._infer(*self._arguments))

    def stream(self, calls: int) -> Any:
        parameters, x, _ = self._arguments
        outputs = None
        for _ in range(calls):
            outputs = self._block(self._infer(parameters, x, self._states))
            self._states = outputs[1]
        return outputs

    def _named(self, outputs: Any) -> Arrays:
        y, last = outputs
        return dict(zip(self.output_names, (np.array(y), *(np.array(state) for state in last)), strict=True))

    def tensors(self) -> Arrays:
        named = super().tensors()
        if "total" in self.case.metrics:
            outputs, (parameters, x, states) = self.forward()
            named.update(self._named(outputs))
            named["grad input"] = np.array(x)
            named.update({f"grad {n}_0": np.array(value) for n, value in zip(self.state_names, states, strict=True)})
            named.update({f"grad {name}": np.array(value).T for name, value in parameters.items()})
        return named


PEERS: dict[str, PeerEngine] = {
    engine.name: engine
    for engine in (
        OnnxRuntimeEngine("onnxruntime", "onnxruntime", ("onnxruntime", "onnx")),
        OpenVinoEngine("openvino", "OpenVINO", ("openvino", "onnx")),
        JaxEngine("jax", "JAX scan", ("jax",)),
    )
}
