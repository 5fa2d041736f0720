"""Tells whether a step computes the same each time it is run, as kernels would repeat what one run drew or counted."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch

from fastrnn.custom.graph import Node


def same_twice(run: Callable[[], tuple[Node, ...]]) -> tuple[Node, ...] | None:
    """The nodes that `run` gives; None if a second run gives others or if it draws random numbers of torch or Python.

    Equal nodes of a graph are one, so that others are other numbers or operations. The second run goes on with the
    random numbers where the first one stopped. Those that were drawn are put back.
    """
    torch_states, states = [torch.get_rng_state()], [random.getstate()]
    found = []
    for _ in range(2):
        found.append(run())
        torch_states.append(torch.get_rng_state())
        states.append(random.getstate())
    # In one of the runs another thread may have drawn.
    a, b, c = (state.numpy().tobytes() for state in torch_states)
    draws = a != b and b != c
    if draws:
        torch.set_rng_state(torch_states[0])
    if states[0] != states[1] and states[1] != states[2]:
        draws = True
        random.setstate(states[0])
    return None if draws or found[0] != found[1] else found[0]
