"""How fast the machine could be: a lower bound on the time of a case, from two measured peaks.

Arithmetic: multiply-adds per second of the library's best large matrix product (``torch.mm``) in the case's number
format. It is no datasheet figure: what the library does not reach, the bound does not know, and arithmetic that the
library does not use (a float32 product out of bfloat16 ones, say) can beat it, so that a share above 100 % is possible.

Reading: bytes per second of ``torch.sum`` over a buffer as large as the recurrent weights R, read again and again, each
thread its own share of it. A buffer that fits a cache is so read from that cache.

The bound of a forward pass is the longer of two times: its multiply-adds at the first peak, and the bytes of weights
that it cannot but read at the second (R once per step, since a step needs the end of the one before; W once). A
backward pass has twice the multiply-adds and reads the weights as often. Inputs, outputs, element-wise work, the time
of a call and the hand-over between threads count nothing: where they matter, as for a single step, the bound is far
below what is possible.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from fastrnn.apps.bench.cases import GATES, Case

if TYPE_CHECKING:
    import torch

ITEM_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
SECONDS = 0.2  # time spent on each figure
_PRODUCT_SIZES = (512, 1024, 2048)
_READ_PER_CALL = 32 * 2**20  # bytes: long against the call itself


@dataclass(frozen=True)
class Peaks:
    """What was measured, with the threads of the process that measured it."""

    threads: int
    flops: dict[str, float]  # number format → floating-point operations per second (a multiply-add is two)
    read: dict[int, float]  # size of a buffer in bytes → bytes read per second

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "read": {str(size): rate for size, rate in self.read.items()}}

    def describe(self) -> str:
        """One line for people."""
        products = ", ".join(f"{dtype} {rate / 1e9:,.0f} GFLOP/s" for dtype, rate in self.flops.items())
        reads = ", ".join(f"{_bytes(size)} {rate / 1e9:,.0f}" for size, rate in sorted(self.read.items()))
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        return f"Peaks measured with {threads}: products {products}; reading (GB/s) {reads}."


def _bytes(size: int) -> str:
    return f"{size / 2**20:.3g} MiB" if size >= 2**20 else f"{size / 2**10:.3g} KiB"


def recurrent_bytes(case: Case) -> int:
    """Size of R (G·H, H) of one layer in one direction."""
    return GATES[case.cell] * case.shape.hidden_size**2 * ITEM_BYTES[case.dtype]


def bounds(case: Case, peaks: Peaks) -> dict[str, float]:
    """Seconds below which the peaks do not let the case go, by metric."""
    shape, gates = case.shape, GATES[case.cell]
    directions = 2 if shape.bidirectional else 1
    inner = (shape.layers - 1) * directions * shape.hidden_size
    inputs = shape.input_size + inner  # of all layers together
    per_row = gates * shape.hidden_size * (inputs + shape.layers * shape.hidden_size)
    operations = 2.0 * sum(shape.lengths()) * directions * per_row
    recurrent = recurrent_bytes(case)
    once = gates * shape.hidden_size * inputs * ITEM_BYTES[case.dtype]
    reading = directions * (shape.layers * shape.steps * recurrent + once) / peaks.read[recurrent]
    forward = max(operations / peaks.flops[case.dtype], reading)
    backward = max(2.0 * operations / peaks.flops[case.dtype], reading)
    if case.chunks:
        return {"stream": case.chunks * forward}
    return {"forward": forward, "backward": backward, "total": forward + backward, "inference": forward}


def measure(dtypes: Iterable[str], sizes: Iterable[int], seconds: float = SECONDS) -> Peaks:
    """Measure here and now: about ``seconds`` for each number format and each size in bytes."""
    import torch

    return Peaks(
        torch.get_num_threads(),
        {dtype: _measure_product(getattr(torch, dtype), seconds) for dtype in dtypes},
        {size: _measure_read(size, seconds) for size in sizes},
    )


def _measure_product(dtype: torch.dtype, seconds: float) -> float:
    import torch

    best = 0.0
    for size in _PRODUCT_SIZES:
        left, right = torch.randn(2, size, size).to(dtype)
        out = torch.empty(size, size, dtype=dtype)
        spent = _shortest(partial(torch.mm, left, right, out=out), seconds / len(_PRODUCT_SIZES))
        best = max(best, 2.0 * size**3 / spent)
    return best


def _measure_read(size: int, seconds: float) -> float:
    import torch

    threads = torch.get_num_threads()
    share = max(1, math.ceil(size / 4 / threads))  # floats of one thread
    repeats = max(1, _READ_PER_CALL // size)
    # Stride 0: each of a thread's sums reads the same share once more. Sums are dealt to threads in order.
    buffer = torch.randn(threads, 1, share).expand(threads, repeats, share)
    out = torch.empty(threads, repeats)
    spent = _shortest(partial(torch.sum, buffer, -1, out=out), seconds)
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
