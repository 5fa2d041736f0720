"""Single steps of a module, which a stream is compared with."""

from __future__ import annotations

import torch


def steps(module, xs, state=None):
    """y of each step by `module.step`, and the last state."""
    ys = []
    with torch.no_grad():
        for x in xs:
            y, state = module.step(x, state)
            ys.append(y)
    return ys, state
