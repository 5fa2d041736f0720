"""Events that a run reports to its caller; the library itself prints nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastrnn.apps.lm.options import Options


@dataclass(frozen=True)
class Started:
    """Event before the first step; ``total`` is the last step, None if only the time ends the run."""

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
    """Row of the log, by column (`fastrnn.apps.lm.logs.COLUMNS`)."""

    row: dict[str, Any]
    total: int | None
    best: bool


@dataclass(frozen=True)
class Sampled:
    """Text written by the model after that many steps."""

    step: int
    text: str


@dataclass(frozen=True)
class Saved:
    """Event: a checkpoint has been written."""

    step: int
    path: Path


Event = Started | Logged | Sampled | Saved


@dataclass(frozen=True)
class Result:
    """Result of a run.

    Attributes:
        step: number of updates, including those before a resume.
        loss: mean in the last line of the log in nats per unit, None if there was none.
        best: lowest validation loss, None without validation.
        checkpoint: the last checkpoint.
        stopped: True if ``stop`` ended the run early.
    """

    step: int
    loss: float | None
    best: float | None
    checkpoint: Path
    stopped: bool
