"""Check that a step computes the same each time it is run; kernels would repeat the numbers drawn in one run."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch

from fastrnn.custom.graph import Node


def same_twice(run: Callable[[], tuple[Node, ...]]) -> tuple[Node, ...] | None:
    """Return the nodes from `run`, or None if a second run differs or draws random numbers of torch or Python.

    Equal nodes of a graph are the same object, so different results mean different numbers or operations. The second
    run continues with the generators' state after the first. Their initial state is restored.
    """
    torch_states, states = [torch.get_rng_state()], [random.getstate()]
    results = []
    for _ in range(2):
        results.append(run())
        torch_states.append(torch.get_rng_state())
        states.append(random.getstate())
    # Another thread may have drawn numbers during one of the runs.
    a, b, c = (state.numpy().tobytes() for state in torch_states)
    draws = a != b and b != c
    if draws:
        torch.set_rng_state(torch_states[0])
    if states[0] != states[1] and states[1] != states[2]:
        draws = True
        random.setstate(states[0])
    return None if draws or results[0] != results[1] else results[0]
