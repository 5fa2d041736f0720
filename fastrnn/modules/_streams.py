"""Concurrent execution of a layer's two directions on a GPU, each on its own stream."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from .._surroundings import runs_now

Result = TypeVar("Result")

_own = threading.local()


def apply(x: Tensor) -> bool:
    """Return True if work on ``x`` is launched at once on a GPU: no tracing or transform is active."""
    return x.is_cuda and runs_now(x)


def both(
    first: Callable[[], Result],
    second: Callable[[], Result],
    inputs: Iterable[Tensor | None],
    outputs: Callable[[Result], Iterable[Tensor]],
    device: torch.device,
) -> tuple[Result, Result]:
    """Run ``first`` on the current stream and ``second`` on another one, then join the two; a graph can capture it.

    Args:
        inputs: the tensors that ``second`` reads. Its backward pass runs on the other stream too, possibly after their
            owner has released them; their memory is therefore not reused before that stream has finished.
        outputs: returns the tensors in the result of ``second``, which the current stream continues with.
    """
    current, side = torch.cuda.current_stream(device), _side_stream(device)
    side.wait_stream(current)
    try:
        with torch.cuda.stream(side):
            result = second()
            for tensor in inputs:
                if tensor is not None:
                    tensor.record_stream(side)
        other = first()
    finally:
        current.wait_stream(side)
    for tensor in outputs(result):
        tensor.record_stream(current)
    return other, result


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of this device and thread; per thread, so that graph captures of threads do not interfere."""
    streams: dict[torch.device, torch.cuda.Stream] = _own.__dict__.setdefault("streams", {})
    stream = streams.get(device)
    if stream is None:
        stream = streams[device] = torch.cuda.Stream(device)
    return stream
