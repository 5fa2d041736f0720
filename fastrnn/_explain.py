"""Which way a module's call takes, and why."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from fastrnn import _C, _paths
from fastrnn._paths import Decision


class Explanation(NamedTuple):
    """Result of `explain`. As a string, a line for each decision.

    Attributes:
        decisions: for each layer and direction, or for the module as a whole: the cell, the path
            (a key of the table in ``fastrnn/_paths.py``, ``"fast path"`` or ``"torch"``) and why it is no faster
            path.
        instruction_set: that of the CPU kernels.
    """

    decisions: tuple[Decision, ...]
    instruction_set: str

    def __str__(self) -> str:
        return "\n".join([*map(str, self.decisions), f"CPU kernels: {self.instruction_set}"])


def explain(module: nn.Module, *args: Any, **kwargs: Any) -> Explanation:
    """Report which path a call of a module takes through the library, and why.

    The call is made once, as ``module(*args, **kwargs)``, its results dropped; random numbers that it drew are drawn
    again later. Of a model with several recurrent modules all are reported, except inside compiled functions.

    Args:
        module: a layer, a cell, a network of `fastrnn.cell`, or a model with such modules.
        args, kwargs: those of the call.

    Raises:
        TypeError: ``module`` is no module. Otherwise what the call raises.

    Example:
        >>> print(fastrnn.explain(fastrnn.LSTM(8, 16), torch.randn(5, 2, 8)))
        lstm: fast path (checks and call in C++, for ordinary tensors on the CPU)
        CPU kernels: ...
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices), _paths.recorded() as decisions:
        module(*args, **kwargs)
    return Explanation(tuple(decisions), _C.capability())
