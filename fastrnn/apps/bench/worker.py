"""One engine's process: waits for a command, runs it, answers, waits.

Commands and answers are pickles with a length before them, over the standard input and output that the process was
started with. While it waits the process is blocked in a read. It answers only when its own threads have come to rest:
an OpenMP runtime keeps its threads spinning for some milliseconds after a parallel region, which would be taken from
the other engine's turn. Users run with that default, so it is not switched off (OMP_WAIT_POLICY), only waited for.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import IO, Any

from fastrnn.apps.bench import limits, memory
from fastrnn.apps.bench.cases import BLOCKS, Case
from fastrnn.apps.bench.engines import ModuleEngine, Workload, find_engine
from fastrnn.apps.bench.language_model import ModelSettings, Training

_HEADER = struct.Struct("<Q")
_REST_LIMIT_SECONDS = 0.25
_WARM_UP_SECONDS = 0.05


def write_message(stream: IO[bytes], message: Any) -> None:
    """Send one object."""
    payload = pickle.dumps(message, protocol=5)
    stream.write(_HEADER.pack(len(payload)))
    stream.write(payload)
    stream.flush()


def read_message(stream: IO[bytes]) -> Any:
    """Receive one object. Raises EOFError when the other side has gone."""
    (size,) = _HEADER.unpack(_read_exactly(stream, _HEADER.size))
    return pickle.loads(_read_exactly(stream, size))


def _read_exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if data is None or len(data) < size:
        raise EOFError
    return data


def come_to_rest() -> None:
    """Return when no thread of this process uses the processor any more (or after a quarter of a second)."""
    deadline = time.perf_counter() + _REST_LIMIT_SECONDS
    while time.perf_counter() < deadline:
        used = time.process_time()
        time.sleep(0.002)
        if time.process_time() - used < 0.0005:
            return


Times = dict[str, float]  # metric → mean seconds per call


def _clock(workload: Workload) -> Callable[[], float]:
    """Seconds; that of a workload on a GPU waits for it."""
    return getattr(workload, "clock", time.perf_counter)


def time_training(workload: Workload, calls: int) -> Times:
    """One forward and one backward pass, mean over ``calls`` training steps."""
    clock = _clock(workload)
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


def time_inference(workload: Workload, calls: int) -> Times:
    """One forward pass without a graph, mean over ``calls`` calls."""
    clock = _clock(workload)
    start = clock()
    workload.infer(calls)
    return {"inference": (clock() - start) / calls}


def time_stream(workload: Workload, calls: int) -> Times:
    """One chunk of a stream, mean over ``calls`` chunks."""
    clock = _clock(workload)
    start = clock()
    workload.stream(calls)
    return {"stream": (clock() - start) / calls}


TIMERS = {"train": time_training, "inference": time_inference, "stream": time_stream}


class Commands:
    """What a worker can be asked to do; each public method is a command."""

    def __init__(self, engine: str) -> None:
        self.engine = find_engine(engine)
        self.workload: Workload | None = None
        self.metrics: tuple[str, ...] = ()
        self.chunks = 1
        self.training: Training | None = None

    def start(self, threads: int | None, precision: str | None = None) -> dict[str, Any]:
        """Load the engine and set its threads and torch's precision of float32 products; answers what runs here."""
        import torch

        facts = self.engine.start(threads)
        if precision is not None:
            torch.set_float32_matmul_precision(precision)
        self.threads = threads
        gc.freeze()  # what is loaded by now stays: the collection between two turns need not look through it
        return {**facts, "precision": torch.get_float32_matmul_precision()}

    def load_engine(self, case: Case) -> None:
        """Import the engine by building the case very small, and forget it."""
        self.engine.build(case.tiny(), 0)

    def tensors(self, case: Case, seed: int, dtype: str | None) -> tuple[dict[str, Any], list[str]]:
        """Outputs and gradients by name for the parity check, and the warnings that came on the way."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tensors = self.engine.build(case, seed, dtype).tensors()
        return tensors, list(dict.fromkeys(f"{item.category.__name__}: {item.message}" for item in caught))

    def prepare(self, case: Case, seed: int) -> Times:
        """Build the case to be timed and warm up. Answers seconds of a call of each kind of block that it can run."""
        self.workload = workload = self.engine.build(case, seed)
        self.metrics = self.engine.metrics(case)
        self.chunks = max(1, case.chunks)
        estimates = {}
        for kind, metrics in BLOCKS.items():
            if metrics[-1] in self.metrics:
                estimates[kind] = self.chunks * _warm_up(partial(TIMERS[kind], workload, 1), metrics[-1])
        return estimates

    def block(self, kind: str, calls: int) -> Times:
        """Seconds of a call by metric, mean of ``calls``, after one untimed call that wakes the threads."""
        workload, timer = self._workload(), TIMERS[kind]
        timer(workload, 1)
        times = timer(workload, calls * self.chunks)
        return {metric: value * self.chunks for metric, value in times.items() if metric in self.metrics}

    def samples(self, kind: str, seconds: float) -> list[float]:
        """Seconds of single calls, one after the other, for at least that long (and at least three of them)."""
        workload, timer = self._workload(), TIMERS[kind]
        timer(workload, 1)
        times: list[float] = []
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline or len(times) < 3:
            times.append(timer(workload, 1)[BLOCKS[kind][-1]])
        return times

    def limits(self, dtypes: Iterable[str], sizes: Iterable[int], seconds: float) -> limits.Peaks:
        """What the machine can do at most, with this process's threads."""
        return limits.measure(dtypes, sizes, seconds)

    def release(self) -> None:
        """Drop the case and the model."""
        self.workload = self.training = None

    def peak_memory(self, case: Case, seed: int) -> int | None:
        """Bytes by which a training step raises the peak of a fresh process; None where that cannot be measured.

        On a GPU: of this process, on the GPU alone.
        """
        if case.device == "cuda":
            return memory.measure_on_gpu(lambda: self.engine.build(case, seed))
        return memory.measure_in_child(
            lambda: self.engine.build(case, seed), lambda: self.engine.build(case.tiny(), seed), self.threads
        )

    def start_model(self, text: bytes, settings: ModelSettings, seed: int) -> None:
        """Build the language model and warm up."""
        if not isinstance(self.engine, ModuleEngine):
            raise TypeError(f"expected an engine of torch modules for the language model, found {self.engine.name}")
        self.training = Training(self.engine, text, settings, seed)
        self.training.warm_up()

    def model_block(self, steps: int) -> tuple[float, list[float]]:
        """Train for ``steps`` updates: seconds and losses."""
        if self.training is None:
            raise RuntimeError("start_model comes before model_block")
        return self.training.run(steps)

    def _workload(self) -> Workload:
        if self.workload is None:
            raise RuntimeError("prepare comes before a block")
        return self.workload


def _warm_up(call: Callable[[], Times], metric: str) -> float:
    """Call at least three times and for a while; the shortest time, in seconds."""
    times = [call()[metric] for _ in range(3)]
    deadline = time.perf_counter() + _WARM_UP_SECONDS
    while time.perf_counter() < deadline:
        times.append(call()[metric])
    return min(times)


def serve(engine: str, commands_in: IO[bytes], answers_out: IO[bytes]) -> None:
    """Answer commands until the other side closes the pipe."""
    commands = Commands(engine)
    while True:
        try:
            name, arguments = read_message(commands_in)
        except EOFError:
            return
        # As timeit does: a collection in one engine's block and not in the other's would be chance.
        gc.disable()
        try:
            answer = (True, getattr(commands, name)(**arguments))
        except Exception as error:
            answer = (False, (f"{type(error).__name__}: {error}", traceback.format_exc()))
        gc.enable()
        gc.collect()
        come_to_rest()
        write_message(answers_out, answer)


def main(engine: str) -> None:
    """Entry point of the process."""
    # Ctrl-C reaches the whole process group; the parent decides what happens then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    commands_in, answers_out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # Whatever a library prints must not end up between the answers.
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    serve(engine, commands_in, answers_out)
