"""Process of an engine, which waits for a command, runs it and replies; both ends of the connection.

While waiting, the process is blocked in a read. It replies only once its own threads are idle: an OpenMP runtime keeps
its threads spinning for some milliseconds after a parallel region, which would slow down the other engine. Users run
with that default, so it is not disabled (OMP_WAIT_POLICY), only waited for.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

from fastrnn.apps.bench import machine
from fastrnn.apps.bench.cases import BLOCKS, Case
from fastrnn.apps.bench.effort import Effort, measured
from fastrnn.apps.bench.engines import find_engine

_REST_LIMIT_SECONDS = 0.25
_WARM_UP_SECONDS = 0.05
Times = dict[str, float]  # metric → mean seconds per call


def come_to_rest() -> None:
    """Wait until no thread of this process uses the processor any more (at most a quarter of a second)."""
    deadline = time.perf_counter() + _REST_LIMIT_SECONDS
    while time.perf_counter() < deadline:
        used = time.process_time()
        time.sleep(0.002)
        if time.process_time() - used < 0.0005:
            return


def time_training(workload: Any, calls: int) -> Times:
    """Time one forward and one backward pass, mean over ``calls`` training steps."""
    clock: Callable[[], float] = getattr(workload, "clock", time.perf_counter)  # waits for the GPU on a GPU
    forward = backward = 0.0
    for _ in range(calls):
        workload.clear_gradients()
        start = clock()
        outputs = workload.forward()
        middle = clock()
        workload.backward(outputs)
        backward += clock() - middle
        forward += middle - start
        del outputs
    return {"forward": forward / calls, "backward": backward / calls, "total": (forward + backward) / calls}


def time_calls(kind: str, workload: Any, calls: int) -> Times:
    """Time training steps, forward passes without a graph, or chunks of a stream, mean over ``calls``."""
    if kind == "train":
        return time_training(workload, calls)
    clock: Callable[[], float] = getattr(workload, "clock", time.perf_counter)
    run = workload.infer if kind == "inference" else workload.stream
    start = clock()
    run(calls)
    return {kind: (clock() - start) / calls}


#: Variables that limit a process to an instruction set: fastrnn, torch's own kernels, oneDNN (also in OpenVINO), MKL,
#: XLA. onnxruntime has no such switch.
INSTRUCTION_SETS = {
    name: {
        "FASTRNN_CPU_CAPABILITY": name,
        "ATEN_CPU_CAPABILITY": name,
        "ONEDNN_MAX_CPU_ISA": onednn,
        "MKL_ENABLE_INSTRUCTIONS": name.upper(),
        "XLA_FLAGS": f"--xla_cpu_max_isa={name.upper()}",
    }
    for name, onednn in (("avx2", "AVX2"), ("avx512", "AVX512_CORE"))
}


class Commands:
    """Commands of the engine's process; each public method is a command, `start` the first."""

    workload: Any = None
    training: Any = None

    def start(self, engine: str, threads: int | None, precision: str | None) -> dict[str, Any]:
        """Load the engine; return its threads, version, precision and the capability of torch's kernels."""
        import torch

        self.engine, self.threads = find_engine(engine), threads
        started = self.engine.start(threads)
        if precision is not None:
            torch.set_float32_matmul_precision(precision)
        gc.freeze()  # loaded objects are permanent, so that collections between blocks can skip them
        capability = torch.backends.cpu.get_cpu_capability()
        return {**started, "precision": torch.get_float32_matmul_precision(), "torch_capability": capability}

    def load_engine(self, case: Case) -> None:
        """Import the engine by building the case at a tiny size, and discard it."""
        self.engine.build(case.tiny(), 0)

    def tensors(self, case: Case, seed: int, dtype: str | None) -> tuple[dict[str, Any], list[str]]:
        """Return outputs and gradients by name for the parity check, and the warnings raised meanwhile."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tensors = self.engine.build(case, seed, dtype).tensors()
        return tensors, list(dict.fromkeys(f"{item.category.__name__}: {item.message}" for item in caught))

    def prepare(self, case: Case, seed: int) -> Times:
        """Build the case for timing and warm up. Return the shortest call of each supported kind, in seconds."""
        self.workload = self.engine.build(case, seed)
        self.metrics, self.chunks = self.engine.metrics(case), max(1, case.chunks)
        kinds = [kind for kind, metrics in BLOCKS.items() if metrics[-1] in self.metrics]
        return {kind: self.chunks * min(self._calls(kind, _WARM_UP_SECONDS)) for kind in kinds}

    def _time(self, kind: str, calls: int) -> Times:
        if self.workload is None:  # the process died and was restarted
            raise RuntimeError("expected prepare before a block, got none")
        return time_calls(kind, self.workload, calls)

    def _calls(self, kind: str, seconds: float) -> list[float]:
        """Return the seconds of consecutive single calls, over at least that time and at least three calls."""
        times: list[float] = []
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline or len(times) < 3:
            times.append(self._time(kind, 1)[BLOCKS[kind][-1]])
        return times

    def block(self, kind: str, calls: int) -> tuple[Times, Effort]:
        """Return the seconds of a call by metric, mean of ``calls``, and the effort of the block.

        One untimed call comes first and wakes the threads.
        """
        self._time(kind, 1)
        times, effort = measured(lambda: self._time(kind, calls * self.chunks))
        return {metric: value * self.chunks for metric, value in times.items() if metric in self.metrics}, effort

    def samples(self, kind: str, seconds: float) -> list[float]:
        """Return the seconds of single calls, after an untimed one."""
        self._time(kind, 1)
        return self._calls(kind, seconds)

    peaks = staticmethod(machine.measure_peaks)

    def release(self) -> None:
        self.workload = self.training = None

    def peak_memory(self, case: Case, seed: int) -> int | None:
        """Return the bytes by which a training step raises the peak memory of a new process or GPU; None if unknown."""
        if case.device == "cuda":
            return machine.memory_on_gpu(lambda: self.engine.build(case, seed))
        return machine.memory_in_child(lambda case: self.engine.build(case, seed), case, self.threads)

    def start_model(self, text: bytes, settings: Any, seed: int) -> None:
        """Build the language model and warm up."""
        from fastrnn.apps.bench.language_model import Training

        if self.engine.packages:
            raise TypeError(f"expected an engine of torch modules for the language model, got {self.engine.name}")
        self.training = Training(self.engine, text, settings, seed)
        self.training.warm_up()

    def model_block(self, steps: int) -> tuple[tuple[float, list[float]], Effort]:
        """Train for ``steps`` updates; return seconds and losses, and the effort."""
        return measured(lambda: self.training.run(steps))


def serve(connection: Any, log: str) -> None:
    """Reply to commands until the other side closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent handles it
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    commands = Commands()
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            return
        gc.disable()  # like timeit: a collection in one engine's block would distort the comparison
        try:
            reply = (True, getattr(commands, name)(**arguments))
        except Exception as error:
            reply = (False, (f"{type(error).__name__}: {error}", traceback.format_exc()))
        gc.enable()
        gc.collect()
        come_to_rest()
        connection.send(reply)
        del reply


class WorkerError(Exception):
    """A command raised an exception in the worker, which is still running."""


class WorkerDiedError(Exception):
    """The worker has ended or no longer replies."""


class Worker:
    """Parent's end of the connection to a process that runs one engine."""

    def __init__(
        self,
        engine: str,
        threads: int | None,
        timeout: float = 900.0,
        precision: str | None = None,
        isa: str | None = None,
    ) -> None:
        """Start the process, which loads the engine; the first command waits for that.

        Args:
            engine: a name that `find_engine` accepts.
            threads: the engine's threads, None for torch's default.
            timeout: limit for a command, in seconds.
            precision: for ``torch.set_float32_matmul_precision``; None leaves it unchanged.
            isa: the instruction set of `INSTRUCTION_SETS` to limit it to; None: no limit.
        """
        self.engine, self.timeout = engine, timeout
        self._started: dict[str, Any] = {}
        self._log = tempfile.NamedTemporaryFile()  # noqa: SIM115 (lives as long as the process)
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other, self._log.name), daemon=True)
        environment = dict(os.environ)
        if threads is not None:
            os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)))
        os.environ.update(INSTRUCTION_SETS.get(isa or "", {}))
        try:
            self._process.start()
        finally:
            os.environ.clear()
            os.environ.update(environment)
        self._connection.send(("start", {"engine": engine, "threads": threads, "precision": precision}))
        other.close()

    def wait_until_started(self) -> dict[str, Any]:
        """Return threads, version and precision of the engine once it is loaded."""
        self._started = self._started or self._receive("start")
        return self._started

    def call(self, command: str, **arguments: Any) -> Any:
        """Send a command and wait for its reply. Raises WorkerError or WorkerDiedError."""
        self.wait_until_started()
        try:
            self._connection.send((command, arguments))
        except OSError:
            raise WorkerDiedError(self._exit_message(command)) from None
        return self._receive(command)

    def _receive(self, command: str) -> Any:
        try:
            if not self._connection.poll(self.timeout):
                self.kill()
                raise WorkerDiedError(f"{self.engine} worker: no reply to {command!r} in {self.timeout:.0f} s")
            ok, value = self._connection.recv()
        except (EOFError, OSError):
            raise WorkerDiedError(self._exit_message(command)) from None
        if not ok:
            raise WorkerError(f"{self.engine}: {value[0]}") from RuntimeError(value[1])
        return value

    def _exit_message(self, command: str) -> str:
        """Describe the end of the process, with the last line it wrote."""
        if self._log.closed:
            return f"{self.engine} worker: ended before {command!r}"
        self._process.join(timeout=5)
        code = self._process.exitcode
        how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        last = f"; its last output: {lines[-1]}" if lines else ""
        return f"{self.engine} worker: ended {how} during {command!r}{last}"

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.join()
        self._connection.close()
        self._log.close()
