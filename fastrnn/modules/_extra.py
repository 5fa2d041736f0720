"""Keywords of training that a module hands on to `fastrnn.functional.sequence`: initial, clip_state_gradient,
penalty."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..cells import check_bound


def of_call(initial: Any, clip_state_gradient: float | None, penalty: Any) -> dict[str, Any]:
    """Those that are there. Raises as `check_bound`."""
    if clip_state_gradient is not None:
        check_bound(clip_state_gradient)
    more = {"initial": initial, "clip_state_gradient": clip_state_gradient, "penalty": penalty}
    return {name: value for name, value in more.items() if value is not None}


def check_backend(more: dict[str, Any], backend: str) -> None:
    """Raises ValueError where torch.nn's forward is asked for what only ours has."""
    if backend == "torch":
        raise ValueError(f"backend='torch': expected a call without {in_words(more)}, which torch.nn does not have")


def in_words(more: dict[str, Any] | None) -> str:
    return " and ".join(f"{name}=" for name in more) if more else "lengths= and reset="


def shapes(states: Any) -> str:
    """For messages: the shapes of states in whatever form they came."""
    if isinstance(states, Tensor):
        return str(tuple(states.shape))
    if isinstance(states, (tuple, list)):
        return "(" + ", ".join(shapes(s) for s in states) + ")"
    return type(states).__name__


def check_scriptable(module: Any) -> None:
    """torch's modules, which `torch.jit.script` is to see in place of ours, have nothing of this."""
    for name in ("learn_initial_state", "clip_state_gradient"):
        if getattr(module, name):
            raise RuntimeError(f"torch.jit.script: expected a module without {name}, which torch.nn has not")
