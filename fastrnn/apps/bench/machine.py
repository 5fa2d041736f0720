"""Limits of the machine, and memory of a training step; both are measured in an engine's process.

The limit is a lower bound on the time of a case, from two peaks. Arithmetic: operations per second of torch's best
large ``torch.mm`` in the case's dtype, or in float32 for a 16-bit dtype in which it is slower. This is not a datasheet
value, so other kinds of arithmetic (for example a float32 product computed in bfloat16) can exceed 100 %. Reading:
bytes per second of ``torch.sum``, repeated over a buffer of the size of the recurrent weights R, each thread its own
part: a buffer that fits a cache is read from it.

The bound of a forward pass is the longer of two times: its multiply-adds at the first peak, and the bytes of weights
that it must read at the second (R once per time step, since a step needs the result of the previous one; W once). A
backward pass has twice the multiply-adds and reads the weights as often. Inputs, outputs, element-wise work, call
overhead and thread synchronisation are ignored.

Memory: a process that has run other cases retains their freed memory, and a high-water mark never decreases. So each
measurement runs in a child forked from a process that has imported the engine and run nothing. A tiny case takes one
training step first, because the first step of a process allocates tens of megabytes that do not depend on the case.
Then the case is built, the kernel's high-water mark is reset, two training steps run, and the increase is read:
outputs, tensors saved for backward, new gradients, workspaces and caches. Pages of program code loaded meanwhile are
subtracted. The resolution is some hundred kilobytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from fastrnn.apps.bench.cases import GATES, Case

if TYPE_CHECKING:
    import torch

ITEM_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
SECONDS = 0.2  # duration of each measurement
_PRODUCT_SIZES = (512, 1024, 2048)
_READ_PER_CALL = 32 * 2**20  # bytes: takes long compared with the call overhead
_CLEAR = "/proc/self/clear_refs"


@dataclass(frozen=True)
class Peaks:
    """Peak rates with the threads of the process that measured them."""

    threads: int
    flops: dict[str, float]  # dtype → floating-point operations per second (a multiply-add is two)
    read: dict[int, float]  # size of a buffer in bytes → bytes read per second

    def higher(self, other: Peaks) -> Peaks:
        """Return the higher of two measurements of each rate; the lower one was disturbed."""
        flops = {dtype: max(rate, other.flops.get(dtype, 0.0)) for dtype, rate in self.flops.items()}
        return Peaks(self.threads, flops, {size: max(r, other.read.get(size, 0.0)) for size, r in self.read.items()})

    def describe(self) -> str:
        """Return one line of text."""
        products = ", ".join(f"{dtype} {rate / 1e9:,.0f} GFLOP/s" for dtype, rate in self.flops.items())
        reads = ", ".join(f"{_bytes(size)} at {rate / 1e9:,.0f} GB/s" for size, rate in sorted(self.read.items()))
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        return f"Peaks measured with {threads}: products {products}; reading a block of {reads}."


def _bytes(size: int) -> str:
    return f"{size / 2**20:.3g} MiB" if size >= 2**20 else f"{size / 2**10:.3g} KiB"


def recurrent_bytes(case: Case) -> int:
    """Return the size of R (G·H, H) of one layer in one direction."""
    return GATES[case.cell] * case.shape.hidden_size**2 * ITEM_BYTES[case.dtype]


def bounds(case: Case, peaks: Peaks) -> dict[str, float]:
    """Return the lower bound in seconds for each metric."""
    shape, gates = case.shape, GATES[case.cell]
    inputs = shape.input_size + (shape.layers - 1) * shape.directions * shape.hidden_size  # of all layers together
    per_row = gates * shape.hidden_size * (inputs + shape.layers * shape.hidden_size)
    arithmetic = 2.0 * sum(shape.lengths()) * shape.directions * per_row / peaks.flops[case.dtype]
    recurrent = recurrent_bytes(case)
    once = gates * shape.hidden_size * inputs * ITEM_BYTES[case.dtype]
    reading = shape.directions * (shape.layers * shape.steps * recurrent + once) / peaks.read[recurrent]
    forward, backward = max(arithmetic, reading), max(2.0 * arithmetic, reading)
    if case.chunks:
        return {"stream": case.chunks * forward}
    return {"forward": forward, "backward": backward, "total": forward + backward, "inference": forward}


def measure_peaks(dtypes: Iterable[str], sizes: Iterable[int], seconds: float = SECONDS) -> Peaks:
    """Measure for about ``seconds`` for each dtype and each size in bytes."""
    import torch

    measured: dict[str, float] = {}

    def rate(dtype: str) -> float:
        if dtype not in measured:
            measured[dtype] = _measure_product(getattr(torch, dtype), seconds)
        return measured[dtype]

    # 16-bit numbers can always be multiplied in float32, which is faster where torch's 16-bit product is slow.
    flops = {dtype: max(rate(dtype), rate("float32")) if ITEM_BYTES[dtype] == 2 else rate(dtype) for dtype in dtypes}
    return Peaks(torch.get_num_threads(), flops, {size: _measure_read(size, seconds) for size in sizes})


def _measure_product(dtype: torch.dtype, seconds: float) -> float:
    import torch

    rates = []
    for size in _PRODUCT_SIZES:
        left, right, out = torch.randn(3, size, size).to(dtype)
        spent = _shortest(partial(torch.mm, left, right, out=out), seconds / len(_PRODUCT_SIZES))
        rates.append(2.0 * size**3 / spent)
    return max(rates)


def _measure_read(size: int, seconds: float) -> float:
    import torch

    threads = torch.get_num_threads()
    share = max(1, math.ceil(size / 4 / threads))  # number of floats of one thread
    repeats = max(1, _READ_PER_CALL // size)
    # Stride 0: each of a thread's sums reads the same part again. Sums are assigned to threads in order.
    buffer = torch.randn(threads, 1, share).expand(threads, repeats, share)
    spent = _shortest(partial(torch.sum, buffer, -1, out=torch.empty(threads, repeats)), seconds)
    return threads * repeats * share * 4 / spent


def _shortest(call: Callable[[], Any], seconds: float) -> float:
    call()
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while not times or time.perf_counter() < deadline:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def can_measure_memory() -> bool:
    """Return True if this system can reset and read the high-water mark of a process: Linux with /proc."""
    return sys.platform == "linux" and os.access(_CLEAR, os.W_OK) and "VmHWM" in _status()


def _status() -> dict[str, int]:
    """Return sizes of this process in bytes, by the kernel's names."""
    with open("/proc/self/status") as file:
        return {key: int(size) * 1024 for key, size in re.findall(r"(\w+):\s+(\d+) kB", file.read())}


def _two_steps(workload: Any) -> None:
    for _ in range(2):
        workload.clear_gradients()
        workload.backward(workload.forward())


def memory_on_gpu(build: Callable[[], Any]) -> int:
    """Return the bytes by which two training steps raise the memory allocated by torch on the GPU."""
    import torch

    workload = build()
    workload.backward(workload.forward())  # allocates the memory of a first step
    workload.clear_gradients()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _two_steps(workload)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _rise(build: Callable[[Case], Any], case: Case) -> int:
    """Return the bytes by which two training steps raise this process's peak memory."""
    small = build(case.tiny())
    small.backward(small.forward())
    workload = build(case)
    # Free memory left from building would hide the first allocations. Only glibc has this function.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with open(_CLEAR, "w") as file:
        file.write("5")
    before = _status()
    _two_steps(workload)
    after = _status()
    code = after.get("RssFile", 0) - before.get("RssFile", 0)
    return max(0, after["VmHWM"] - before["VmRSS"] - max(0, code))


def memory_in_child(build: Callable[[Case], Any], case: Case, threads: int | None) -> int | None:
    """Build and measure in a forked child. Return bytes, or None if impossible. Raises RuntimeError if the child fails.

    The calling process must not have run anything in parallel: its threads would not exist in the child.
    """
    if not can_measure_memory():
        return None
    reader, writer = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child == 0:  # exits without running exit handlers
        answer: int | str
        try:
            if threads is not None:
                import torch

                torch.set_num_threads(threads)
            answer = _rise(build, case)
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        writer.send(answer)
        os._exit(0)
    writer.close()
    try:
        received = reader.recv()
    except EOFError:
        received = None
    _, status = os.waitpid(child, 0)
    if isinstance(received, int):
        return received
    code = os.waitstatus_to_exitcode(status)
    raise RuntimeError(received or f"the memory measurement ended with exit code {code}")
