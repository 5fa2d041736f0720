"""The benchmark's application workload: a character language model trained by truncated backpropagation through time.

Embedding, two-layer LSTM, linear; the state is carried from chunk to chunk and detached. The text is the source of
Python's own standard library, which needs no download and is identical for a given Python version.

The optimiser is SGD with momentum and a clipped gradient norm. Its update is a smooth function of the gradient, so that
the rounding differences of two correct engines stay small for long. Adam divides by the gradient's magnitude, which
turns the sign of a rounding error into a full step. With noise of 1e-6 on every gradient of the LSTM, the losses of SGD
with momentum differed by 5e-7 (relative) after 150 steps, those of Adam by 3e-3; after 250 steps by 1e-3 and 6e-3.


Letters: B batch rows (streams of text), T characters per chunk.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrnn.apps.lm.corpus import library_files

if TYPE_CHECKING:
    import torch

    from fastrnn.apps.bench.engines import Engine

MAX_BYTES = 4 * 2**20
# Measured for two correct engines: 2e-7 over the first 150 steps, and 5e-4 in the mean of the last tenth of 300.
EARLY_STEPS, EARLY_LIMIT, LATE_LIMIT = 100, 1e-5, 1e-2


@dataclass(frozen=True)
class ModelSettings:
    """Sizes and training settings; ``steps`` counts parameter updates."""

    steps: int = 300
    block: int = 10  # steps that an engine takes before the other one continues
    batch: int = 32
    chunk: int = 64
    embedding: int = 64
    hidden: int = 256
    layers: int = 2
    learning_rate: float = 0.3
    momentum: float = 0.9
    clip: float = 0.5

    @property
    def minimum_bytes(self) -> int:
        """Length of the shortest text with one whole chunk and its targets in every stream."""
        return self.batch * (self.chunk + 1)


def read_text(path: Path | None) -> bytes:
    """Return the training text, at most ``MAX_BYTES``: a file, or the standard library's sources in sorted order."""
    text = bytearray()
    for name in library_files() if path is None else [path]:
        with open(name, "rb") as file:
            text += file.read(MAX_BYTES - len(text))
    return bytes(text)


def describe_text(text: bytes) -> dict[str, Any]:
    return {"bytes": len(text), "vocabulary": len(set(text)), "sha256": hashlib.sha256(text).hexdigest()}


class Streams:
    """A text split into B parallel streams that are read in chunks, restarting from the beginning at the end."""

    def __init__(self, text: bytes, batch: int, chunk: int) -> None:
        import torch

        if len(text) < batch * (chunk + 1):
            raise ValueError(f"expected a text of at least {batch * (chunk + 1)} bytes, got {len(text)}")
        characters, codes = torch.frombuffer(bytearray(text), dtype=torch.uint8).unique(return_inverse=True)
        length = len(text) // batch
        self.vocabulary, self.chunk, self.position = len(characters), chunk, 0
        self.streams = codes[: length * batch].view(batch, length).t().contiguous()  # (length, B)

    def next(self) -> tuple[torch.Tensor, torch.Tensor, bool]:
        """Return characters (T, B), the characters that follow them (T, B), and True at the start of the text."""
        if self.position + self.chunk + 1 > len(self.streams):
            self.position = 0
        start = self.position
        self.position += self.chunk
        window = self.streams[start : start + self.chunk + 1]
        return window[:-1], window[1:], start == 0


class Training:
    """Model and optimiser in one engine's process."""

    def __init__(self, engine: Engine, text: bytes, settings: ModelSettings, seed: int) -> None:
        import torch

        self.settings = settings
        self.streams = Streams(text, settings.batch, settings.chunk)
        torch.manual_seed(seed)
        self.model = torch.nn.ModuleDict(
            {
                "embedding": torch.nn.Embedding(self.streams.vocabulary, settings.embedding),
                "lstm": engine.module("lstm", settings.embedding, settings.hidden, num_layers=settings.layers),
                "head": torch.nn.Linear(settings.hidden, self.streams.vocabulary),
            }
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=settings.learning_rate, momentum=settings.momentum)
        self.state: Any = None

    def warm_up(self) -> None:
        """Run one forward and backward pass and discard the results."""
        self._gradients()
        self.optimizer.zero_grad(set_to_none=True)
        self.streams.position, self.state = 0, None

    def run(self, steps: int) -> tuple[float, list[float]]:
        """Train for ``steps`` updates; return seconds and the loss of each step in nats per character."""
        import torch

        losses = []
        start = time.perf_counter()
        for _ in range(steps):
            losses.append(self._gradients())
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start, losses

    def _gradients(self) -> float:
        import torch

        inputs, targets, restarts = self.streams.next()
        hidden, state = self.model["lstm"](self.model["embedding"](inputs), None if restarts else self.state)
        self.state = tuple(value.detach() for value in state)
        loss = torch.nn.functional.cross_entropy(self.model["head"](hidden).flatten(0, 1), targets.flatten())
        loss.backward()
        return loss.item()


@dataclass(frozen=True)
class CurveComparison:
    """Difference of two loss curves, relative to the first."""

    early: float  # largest difference of a step, among the first EARLY_STEPS
    late: float  # difference of the mean losses of the last tenth
    ok: bool


def compare_curves(baseline: Sequence[float], candidate: Sequence[float]) -> CurveComparison:
    """Compare step by step at first, and by the mean loss at the end, where rounding differences have grown."""
    early = max(_relative(a, b) for a, b in zip(baseline[:EARLY_STEPS], candidate[:EARLY_STEPS], strict=True))
    late = _relative(final_loss(baseline), final_loss(candidate))
    return CurveComparison(early, late, ok=early <= EARLY_LIMIT and late <= LATE_LIMIT)


def _relative(baseline: float, candidate: float) -> float:
    difference = abs(baseline - candidate) / (abs(baseline) or 1.0)
    return difference if math.isfinite(difference) else math.inf


def final_loss(losses: Sequence[float]) -> float:
    """Return the mean loss of the last tenth of the steps, in nats per character."""
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)
