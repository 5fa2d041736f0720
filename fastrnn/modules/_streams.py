"""The two directions of a layer at the same time on a GPU: each on a stream of its own."""

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
    """Whether work on ``x`` is launched here and now, on a GPU. Not while something traces or transforms it."""
    return x.is_cuda and runs_now(x)


def both(
    first: Callable[[], Result],
    second: Callable[[], Result],
    inputs: Iterable[Tensor | None],
    outputs: Callable[[Result], Iterable[Tensor]],
    device: torch.device,
) -> tuple[Result, Result]:
    """Runs ``first`` on the current stream and ``second`` beside it, and joins them again. A graph can capture it.

    Args:
        inputs: what ``second`` reads. Its backward pass runs beside the current stream too, and may come after their
            owner has let go of them: so their memory is not given away before that stream is done with it.
        outputs: the tensors in the result of ``second``, which the current stream goes on with.
    """
    current, side = torch.cuda.current_stream(device), _side_stream(device)
    side.wait_stream(current)
    try:
        with torch.cuda.stream(side):
            found = second()
            for tensor in inputs:
                if tensor is not None:
                    tensor.record_stream(side)
        other = first()
    finally:
        current.wait_stream(side)
    for tensor in outputs(found):
        tensor.record_stream(current)
    return other, found


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for each device and thread: a graph that one thread captures is no business of another's."""
    streams: dict[torch.device, torch.cuda.Stream] = _own.__dict__.setdefault("streams", {})
    stream = streams.get(device)
    if stream is None:
        stream = streams[device] = torch.cuda.Stream(device)
    return stream
