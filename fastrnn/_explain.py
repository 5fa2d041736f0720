"""Report of the path that a module's call takes, and the reason."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from fastrnn import _C, _paths
from fastrnn._paths import Decision


class Explanation(NamedTuple):
    """Result of `explain`. As a string, a line for each decision.

    Attributes:
        decisions: for each layer and direction, or for the module as a whole: the cell, the path (a key of the table in
            ``fastrnn/_paths.py``, ``"fast path"`` or ``"torch"``) and the reason why it is not a faster one.
        instruction_set: the instruction set of the CPU kernels.

    Example:
        >>> found = fastrnn.explain(fastrnn.GRU(8, 16), torch.randn(5, 2, 8))
        >>> found.decisions[0].path
        'fast path'
    """

    decisions: tuple[Decision, ...]
    instruction_set: str

    def __str__(self) -> str:
        lines = [*map(str, self.decisions)] or ["no recurrent module of fastrnn was called"]
        return "\n".join([*lines, f"CPU kernels: {self.instruction_set}"])


def explain(module: nn.Module, *args: Any, **kwargs: Any) -> Explanation:
    """Report which path a call of a module takes through the library, and the reason.

    The call is made once, as ``module(*args, **kwargs)``, and its results are discarded; the state of the random number
    The call is made once, as ``module(*args, **kwargs)``, and its results are discarded; the state of the random number
    generators is restored. For a model with several recurrent modules all are reported, except inside compiled
    functions.
    Args:
        module: a layer, a cell, a network of `fastrnn.cell`, or a model that contains such modules.
        args, kwargs: the arguments of the call.

    Raises:
        TypeError: ``module`` is not a module. Errors of the call itself are passed on.

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
