"""Keyword arguments of a call of a recurrent network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn


class Options(NamedTuple):
    """Keyword arguments of `Recurrent.forward`, in its order and with its meanings."""

    lengths: Any = None
    reset: Any = None
    backend: str = "auto"
    embedding: nn.Module | Tensor | None = None
    recompute: bool | int = False
    initial: Any = None
    clip_state_gradient: float | None = None
    penalty: Any = None

    def training(self) -> tuple[str, ...]:
        """Return the names of the given keywords that torch.nn has no equivalent of and only the kernels support."""
        names = ("initial", "clip_state_gradient", "penalty")
        return tuple([name for name in names if getattr(self, name) is not None])

    def check_backend(self, names: Sequence[str]) -> None:
        """Raise ValueError for a backend that is not in ``names`` or does not support the other keywords."""
        if self.backend not in names:
            raise ValueError(f"backend: expected one of {', '.join(map(repr, names))}, got {self.backend!r}")
        if self.backend == "torch" and not (self.lengths is None and self.reset is None):
            raise ValueError(
                "backend: expected other than 'torch' with lengths= or reset=, which torch.nn does not support"
            )
        if self.backend == "torch" and self.training():
            raise ValueError(
                f"backend='torch': expected a call without {self.in_words()}, which torch.nn does not have"
            )

    def in_words(self) -> str:
        """Return the keywords that torch.nn does not have, for messages."""
        names = self.training()
        return " and ".join(f"{name}=" for name in names) if names else "lengths= and reset="

    def of_layers(self, batch_sizes: Tensor | None) -> dict[str, Any]:
        """Return the keywords of `fastrnn.functional.sequence` for each layer."""
        keywords: dict[str, Any] = {
            "batch_sizes": batch_sizes,
            "lengths": self.lengths,
            "reset": self.reset,
            "backend": self.backend,
        }
        if self.embedding is not None or self.recompute:
            keywords.update(embedding=self.embedding, recompute=self.recompute)
        for name in self.training():
            keywords[name] = getattr(self, name)
        return keywords


def shapes(states: Any) -> str:
    """Return the shapes of states in any layout, for messages."""
    if isinstance(states, Tensor):
        return str(tuple(states.shape))
    if isinstance(states, (tuple, list)):
        return "(" + ", ".join(shapes(s) for s in states) + ")"
    return type(states).__name__


def check_scriptable(module: Any) -> None:
    """Raise RuntimeError if `torch.jit.script` would lose options that torch.nn's modules do not have."""
    for name in ("learn_initial_state", "clip_state_gradient"):
        if getattr(module, name):
            raise RuntimeError(f"torch.jit.script: expected a module without {name}, which torch.nn does not support")
