"""What a run tells the one who started it. The library itself prints nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastrnn.apps.lm.options import Options


@dataclass(frozen=True)
class Started:
    """Before the first step. ``total``: steps at the end, None if only the time ends the run."""

    options: Options
    text: Path
    units: int
    vocabulary: int
    parameters: int
    step: int
    total: int | None
    steps_per_epoch: int
    processes: int


@dataclass(frozen=True)
class Logged:
    """A row of the log, by column (`fastrnn.apps.lm.logs.COLUMNS`)."""

    row: dict[str, Any]
    total: int | None
    best: bool


@dataclass(frozen=True)
class Sampled:
    """What the model writes after that many steps."""

    step: int
    text: str


@dataclass(frozen=True)
class Saved:
    """A checkpoint is on the disk."""

    step: int
    path: Path


Event = Started | Logged | Sampled | Saved


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        step: updates made, those before a resume included.
        loss: mean of the last line of the log in nats per unit, None if there was none.
        best: lowest validation loss, None without validation.
        checkpoint: the last one.
        stopped: ``stop`` has ended the run before its end.
    """

    step: int
    loss: float | None
    best: float | None
    checkpoint: Path
    stopped: bool
