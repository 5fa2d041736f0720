"""Single steps of a module, to compare with a stream."""

from __future__ import annotations

import torch


def steps(module, xs, state=None):
    """Return y of each step by `module.step`, and the last state."""
    ys = []
    with torch.no_grad():
        for x in xs:
            y, state = module.step(x, state)
            ys.append(y)
    return ys, state
