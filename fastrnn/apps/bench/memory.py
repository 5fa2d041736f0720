"""Peak memory of a training step, in a process that does nothing else.

A process that has run other cases keeps their freed memory, and a high-water mark never falls: so each measurement is
made in a child forked from a process that has imported the engine and run nothing. A very small case of the same kind
takes one training step first, because the first step of a process pays tens of megabytes that do not depend on the
case (threads, buffers of the libraries). Then the case is built, the kernel's high-water mark is reset, two training
steps run, and the rise is read. It counts everything the step needs beyond weights, inputs and given gradients:
outputs, what is saved for the backward pass, new gradients, workspaces and caches. Pages of program code that are
loaded on the way are taken off. Resolution is some hundred kilobytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastrnn.apps.bench.engines import Workload

_STATUS = "/proc/self/status"
_CLEAR = "/proc/self/clear_refs"


def available() -> bool:
    """Whether this system can reset and read the high-water mark of a process: Linux with /proc."""
    return sys.platform == "linux" and os.access(_CLEAR, os.W_OK) and "VmHWM" in _status()


def _status() -> dict[str, int]:
    """Sizes of this process in bytes, by the kernel's names."""
    sizes = {}
    with open(_STATUS) as file:
        for line in file:
            key, _, value = line.partition(":")
            if value.endswith("kB\n"):
                sizes[key] = int(value.split()[0]) * 1024
    return sizes


def _rise(build: Callable[[], Workload], build_small: Callable[[], Workload]) -> int:
    """Bytes by which two training steps raise the peak of this process."""
    small = build_small()
    small.backward(small.forward())
    workload = build()
    # Free memory left over from building would hide the first allocations. Only glibc has this function.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with open(_CLEAR, "w") as file:
        file.write("5")
    before = _status()
    for _ in range(2):
        workload.clear_gradients()
        workload.backward(workload.forward())
    after = _status()
    code = after.get("RssFile", 0) - before.get("RssFile", 0)
    return max(0, after["VmHWM"] - before["VmRSS"] - max(0, code))


def measure_on_gpu(build: Callable[[], Workload]) -> int:
    """Bytes by which two training steps raise what torch's allocator has given out on the GPU, in this process."""
    import torch

    workload = build()
    workload.backward(workload.forward())  # what a first step sets up for good
    workload.clear_gradients()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in range(2):
        workload.clear_gradients()
        workload.backward(workload.forward())
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure_in_child(
    build: Callable[[], Workload], build_small: Callable[[], Workload], threads: int | None
) -> int | None:
    """Fork, build, measure. Returns bytes, or None where that is not possible. Raises RuntimeError if the child fails.

    The calling process must not have run anything in parallel: its threads would not exist in the child.
    """
    if not available():
        return None
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        _child(build, build_small, threads, write_end)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as file:
        answer = file.read()
    _, status = os.waitpid(child, 0)
    if not answer:
        raise RuntimeError(f"the memory measurement ended with exit code {os.waitstatus_to_exitcode(status)}")
    value, error = pickle.loads(answer)
    if error:
        raise RuntimeError(error)
    return value


def _child(
    build: Callable[[], Workload], build_small: Callable[[], Workload], threads: int | None, write_end: int
) -> None:
    """Measure, report through the pipe and leave without running anybody's exit handlers."""
    try:
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        answer: tuple[int | None, str | None] = (_rise(build, build_small), None)
    except BaseException as error:
        answer = (None, f"{type(error).__name__}: {error}")
    with os.fdopen(write_end, "wb") as file:
        pickle.dump(answer, file)
    os._exit(0)
