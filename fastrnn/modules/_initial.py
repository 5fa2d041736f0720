"""Learned initial states: parameters used as the initial state of a call without one.

There is one vector for each state of each layer and direction, ``initial_h_l0``, ``initial_c_l0``,
``initial_h_l0_reverse`` and so on (for a cell ``initial_h``, ``initial_c``). They start as zeros, the initial state of
a module without them, and are not among the weights that torch.nn lists in ``all_weights``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import _torch

PREFIX = "initial_"


def add(module: nn.Module, widths: dict[str, int], suffixes: Sequence[str], like: Tensor) -> None:
    """Register the parameters: for each named state, vectors of its width, with dtype and device of ``like``."""
    for suffix in suffixes:
        for state, width in widths.items():
            name = PREFIX + state + suffix
            if hasattr(module, name):
                raise ValueError(f"learn_initial_state: expected no attribute {name} in the module, got one")
            zeros = torch.zeros(width, device=like.device, dtype=like.dtype)
            module.register_parameter(name, nn.Parameter(zeros))


def check(learn_initial_state: Any) -> bool:
    """Return the argument; raise TypeError unless it is a bool."""
    if not isinstance(learn_initial_state, bool):
        raise TypeError(f"learn_initial_state should be of type bool, got: {type(learn_initial_state).__name__}")
    return learn_initial_state


def suffixes_of(layer: int, bidirectional: bool) -> list[str]:
    """Return the suffixes of a layer's parameter names, one for each direction."""
    return [f"_l{layer}{direction}" for direction in (("", "_reverse") if bidirectional else ("",))]


def suffixes(module: Any) -> list[str]:
    """Return the suffixes of all layers and directions of a network, in the order of the rows of its states."""
    return [suffix for layer in range(module.num_layers) for suffix in suffixes_of(layer, module.bidirectional)]


def of_layers(module: Any, states: Sequence[str], batch: Any) -> tuple[Tensor, ...]:
    """Return the states of a network, each (L·D, B, P or H), or (L·D, P or H) if ``batch`` is None."""
    found = []
    for state in states:
        rows = torch.stack([getattr(module, PREFIX + state + suffix) for suffix in suffixes(module)])
        # cuDNN requires contiguous states.
        found.append(rows if batch is None else rows.unsqueeze(1).expand(-1, batch, -1).contiguous())
    return tuple(found)


def of_cell(module: nn.Module, states: Sequence[str], input: Tensor) -> tuple[Tensor, ...]:
    """Return the states of a cell, each (B, H), or (H) for an unbatched input."""
    found = [getattr(module, PREFIX + state) for state in states]
    return tuple(s.expand(input.shape[0], -1) if input.dim() == 2 else s for s in found)


def batch_of(input: Any, batch_first: bool, rank: int) -> Any:
    """Return the number of batch rows, or None if unbatched. ``rank``: the dimensions of a batched input."""
    if isinstance(input, PackedSequence):
        order = input.sorted_indices
        return int(input.batch_sizes[0]) if order is None else order.shape[0]
    if input.dim() != rank:
        return None
    return input.shape[0] if batch_first else input.shape[1]


def is_readable(input: Any, rank: int) -> bool:
    """Return True if the batch size can be read from ``input``; an invalid input is reported by the call itself."""
    if isinstance(input, PackedSequence):
        return True
    return isinstance(input, Tensor) and input.dim() in (rank - 1, rank)


def reset_parameters(module: Any) -> None:
    """Initialise the weights as torch.nn does, in its order; set initial states to zero."""
    bound = 1.0 / math.sqrt(module.hidden_size) if module.hidden_size > 0 else 0
    for name, parameter in module.named_parameters():
        if PREFIX in name:
            nn.init.zeros_(parameter)
        else:
            nn.init.uniform_(parameter, -bound, bound)


def supply(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
    """Supply a torch.nn module with its learned initial states: a forward pre-hook that `convert` installs.

    Raises RuntimeError if the module has lost the parameters: torch's quantisation copies hooks (without their
    keywords) to a module of its own that does not have them.
    """
    kwargs = {} if kwargs is None else kwargs
    if (len(args) > 1 and args[1] is not None) or kwargs.get("hx") is not None:
        return None
    if not hasattr(module, f"{PREFIX}h") and not hasattr(module, f"{PREFIX}h_l0"):
        raise RuntimeError(
            f"hx: expected states as the second argument, because {type(module).__name__} has lost the learned initial "
            "states, got none"
        )
    input: Any = args[0] if args else kwargs.get("input")
    cell = isinstance(module, _torch.RNNCellBase)
    if not is_readable(input, 2 if cell else 3):
        return None
    names = ("h", "c") if isinstance(module, (_torch.LSTM, _torch.LSTMCell)) else ("h",)
    if cell:
        states = of_cell(module, names, input)
    else:
        states = of_layers(module, names, batch_of(input, module.batch_first, 3))
    return (input,), {"hx": states if len(states) > 1 else states[0]}


class LearnedStates:
    """Mixin for networks, placed before `torch.nn.Module`: learned initial states and the states of new segments."""

    learn_initial_state: bool = False
    _state_names: tuple[str, ...] = ("h",)

    def _learn_initial_state(self: Any, wanted: bool) -> None:
        if check(wanted):
            self.learn_initial_state = True
            widths = dict(zip(self._state_names, self._state_sizes(), strict=True))
            add(self, widths, suffixes(self), self.weight_hh_l0)

    def reset_parameters(self: Any) -> None:
        """Initialise the weights as torch.nn does, and learned initial states with zeros."""
        reset_parameters(self)

    def extra_repr(self) -> str:
        own = ", learn_initial_state=True" if self.learn_initial_state else ""
        return super().extra_repr() + own  # type: ignore[misc]

    def _start(self, input: Any, hx: Any, initial: Any, reset: Any, ids: bool, batch_first: bool) -> tuple[Any, Any]:
        """Return the initial state of a call, and the state that new segments start from if it differs, else None."""
        rank = 2 if ids else 3
        if initial is None and is_readable(input, rank):
            states = of_layers(self, self._state_names, batch_of(input, batch_first, rank))
            initial = states if len(states) > 1 else states[0]
        if hx is None:
            return initial, None
        return hx, None if reset is None else initial
