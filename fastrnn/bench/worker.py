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
from collections.abc import Callable
from typing import IO, Any

from fastrnn.bench import memory
from fastrnn.bench.cases import Case
from fastrnn.bench.engines import Workload, find_engine
from fastrnn.bench.language_model import ModelSettings, Training

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


def time_training(workload: Workload, calls: int) -> tuple[float, float]:
    """Mean seconds of one forward and of one backward pass over ``calls`` training steps."""
    clock = time.perf_counter
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
    return forward / calls, backward / calls


def time_inference(workload: Workload, calls: int) -> float:
    """Mean seconds of one forward pass without a graph over ``calls`` calls."""
    start = time.perf_counter()
    for _ in range(calls):
        workload.infer()
    return (time.perf_counter() - start) / calls


class Commands:
    """What a worker can be asked to do; each public method is a command."""

    def __init__(self, engine: str) -> None:
        self.engine = find_engine(engine)
        self.workload: Workload | None = None
        self.training: Training | None = None

    def start(self, threads: int | None) -> dict[str, Any]:
        """Load the engine and set the threads of torch; answers what is running here."""
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        self.threads = threads
        gc.freeze()  # what is loaded by now stays: the collection between two turns need not look through it
        return {"threads": torch.get_num_threads(), "interop_threads": torch.get_num_interop_threads()}

    def load_engine(self, case: Case) -> None:
        """Import the engine by building the case very small, and forget it."""
        self.engine.build(case.tiny(), 0)

    def tensors(self, case: Case, seed: int, dtype: str | None) -> tuple[dict[str, Any], list[str]]:
        """Outputs and gradients by name for the parity check, and the warnings that came on the way."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tensors = self.engine.build(case, seed, dtype).tensors()
        return tensors, list(dict.fromkeys(f"{item.category.__name__}: {item.message}" for item in caught))

    def prepare(self, case: Case, seed: int) -> tuple[float, float]:
        """Build the case to be timed and warm up. Answers seconds of a training step and of an inference call."""
        self.workload = self.engine.build(case, seed)
        return (
            _warm_up(lambda: sum(time_training(self._workload(), 1))),
            _warm_up(lambda: time_inference(self._workload(), 1)),
        )

    def train_block(self, calls: int) -> tuple[float, float]:
        """Seconds of forward and of backward, mean of ``calls``, after one untimed call that wakes the threads."""
        time_training(self._workload(), 1)
        return time_training(self._workload(), calls)

    def inference_block(self, calls: int) -> float:
        """Seconds of an inference call, mean of ``calls``, after one untimed call that wakes the threads."""
        time_inference(self._workload(), 1)
        return time_inference(self._workload(), calls)

    def release(self) -> None:
        """Drop the case and the model."""
        self.workload = self.training = None

    def peak_memory(self, case: Case, seed: int) -> int | None:
        """Bytes by which a training step raises the peak of a fresh process; None where that cannot be measured."""
        return memory.measure_in_child(
            lambda: self.engine.build(case, seed), lambda: self.engine.build(case.tiny(), seed), self.threads
        )

    def start_model(self, text: bytes, settings: ModelSettings, seed: int) -> None:
        """Build the language model and warm up."""
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


def _warm_up(call: Callable[[], float]) -> float:
    """Call at least three times and for a while; the shortest time, in seconds."""
    times = [call() for _ in range(3)]
    deadline = time.perf_counter() + _WARM_UP_SECONDS
    while time.perf_counter() < deadline:
        times.append(call())
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
