"""The keywords of a call of a recurrent network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn


class Options(NamedTuple):
    """The keywords of `Recurrent.forward`, in its order and with its meanings."""

    lengths: Any = None
    reset: Any = None
    backend: str = "auto"
    embedding: nn.Module | Tensor | None = None
    recompute: bool | int = False
    initial: Any = None
    clip_state_gradient: float | None = None
    penalty: Any = None

    def training(self) -> tuple[str, ...]:
        """Names of the keywords given that torch.nn has nothing like, and that no other path can do without."""
        names = ("initial", "clip_state_gradient", "penalty")
        return tuple([name for name in names if getattr(self, name) is not None])

    def check_backend(self, names: Sequence[str]) -> None:
        """Raise ValueError for a backend that is none of ``names``, or that does not know the other keywords."""
        if self.backend not in names:
            raise ValueError(f"backend: expected one of {', '.join(map(repr, names))}, got {self.backend!r}")
        if self.backend == "torch" and not (self.lengths is None and self.reset is None):
            raise ValueError(
                "backend: expected other than 'torch' with lengths= or reset=, which torch.nn does not know"
            )
        if self.backend == "torch" and self.training():
            raise ValueError(
                f"backend='torch': expected a call without {self.in_words()}, which torch.nn does not have"
            )

    def in_words(self) -> str:
        """For messages: the keywords that torch.nn does not have."""
        names = self.training()
        return " and ".join(f"{name}=" for name in names) if names else "lengths= and reset="

    def of_layers(self, batch_sizes: Tensor | None) -> dict[str, Any]:
        """The keywords of `fastrnn.functional.sequence` for each layer."""
        found: dict[str, Any] = {
            "batch_sizes": batch_sizes,
            "lengths": self.lengths,
            "reset": self.reset,
            "backend": self.backend,
        }
        if self.embedding is not None or self.recompute:
            found.update(embedding=self.embedding, recompute=self.recompute)
        for name in self.training():
            found[name] = getattr(self, name)
        return found


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
