"""Batch-invariant results: the bits of a sequence do not depend on the other sequences of its batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NoReturn

from fastrnn import _C

#: Copy of the kernels' setting, for decisions in Python; torch.compile guards on it.
enabled = False


def set_batch_invariant(on: bool) -> None:
    """Set whether each sequence's results are bitwise independent of the rest of its batch.

    While on, the outputs, states and gradients of inputs and states of each sequence depend on that sequence and the
    weights alone: not on the other sequences of the batch or their number, on padding, packing or ``lengths``, on the
    number of threads, nor on whether the sequence is computed whole, in chunks, by ``step`` or by `fastrnn.Stream`. A
    policy's rollout then agrees with its training pass, and a served answer does not depend on the other requests.

    This holds for outputs and first derivatives in float32 and float64 on the CPU, for every cell of torch.nn and of
    `fastrnn.cell`, and for all threads of the process. It covers the recurrent layers only; a linear layer before or
    after them is torch's. Results still differ between instruction sets and between torch's precision settings.
    Gradients of weights, which are sums over the batch, depend on its order; they never depend on the number of
    threads, on or off.

    The cost: no kernel is chosen by the size of a call. Sequences take 1.0 to 1.4 times as long, small networks the
    longest; single time steps, whose weights are packed anew each time, take 1.4 to 2.7 times as long.

    Args:
        on: True or False; initially False.

    Raises:
        TypeError: ``on`` is not a bool.
        RuntimeError: raised by calls while on, not here: for another dtype or device, a cell without kernels, or a
            second derivative.

    Example:
        >>> import torch, fastrnn
        >>> lstm, x = fastrnn.LSTM(8, 16), torch.randn(20, 3, 8)
        >>> with fastrnn.batch_invariant():
        ...     together, alone = lstm(x)[0], lstm(x[:, 1:2])[0]
        >>> torch.equal(together[:, 1:2], alone)
        True
    """
    if not isinstance(on, bool):
        raise TypeError(f"on: expected a bool, got {type(on).__name__}")
    global enabled
    enabled = on
    _C.set_batch_invariant(on)


def refuse(got: str) -> NoReturn:
    """Raise RuntimeError for a computation that is not batch invariant."""
    raise RuntimeError(f"batch_invariant: expected kernels on the CPU, got {got}")


@contextlib.contextmanager
def batch_invariant(on: bool = True) -> Iterator[None]:
    """Set `set_batch_invariant` within a block and restore it afterwards; the backward pass must be inside the block.

    Args:
        on: as for `set_batch_invariant`.

    Example:
        >>> import torch, fastrnn
        >>> gru, x = fastrnn.GRU(4, 8), torch.randn(10, 2, 4)
        >>> with fastrnn.batch_invariant():
        ...     whole, _ = gru(x)
        ...     first, h = gru(x[:3])
        ...     rest, _ = gru(x[3:], h)
        >>> torch.equal(whole, torch.cat([first, rest]))
        True
    """
    before = is_batch_invariant()
    set_batch_invariant(on)
    try:
        yield
    finally:
        set_batch_invariant(before)


def is_batch_invariant() -> bool:
    """Return whether `set_batch_invariant` is on.

    Example:
        >>> import fastrnn
        >>> fastrnn.is_batch_invariant()
        False
    """
    return enabled
