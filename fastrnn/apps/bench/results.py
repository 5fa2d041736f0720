"""What a run has found: rows, model, verdict, summary, JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from fastrnn.apps.bench import ratios
from fastrnn.apps.bench.limits import Peaks
from fastrnn.apps.bench.runner import METRICS, CaseResult, ModelResult, Settings

PEER_METRICS = ("total", "inference")  # what peers can be timed in
SCHEMA = "fastrnn-bench/2"


@dataclass(frozen=True)
class Summary:
    """Speed-ups of a group of rows in one metric."""

    dtype: str
    cell: str  # or "all"
    metric: str
    rows: int
    of: int  # rows in the group, with those that have no speed
    mean: float  # geometric
    lowest: float
    highest: float


@dataclass(frozen=True)
class PeerSummary:
    """The candidate against one other engine, over the rows in which both were timed."""

    cell: str  # or "all"
    metric: str
    against: str  # a side, or "best peer": in each row the peer with the shortest time
    rows: int
    mean: float  # geometric
    lowest: float
    lowest_row: str
    highest: float


BEST_PEER = "best peer"


@dataclass
class Results:
    """Grows while the run goes on, so that an interrupted run has something to show."""

    settings: Settings
    environment: dict[str, Any]
    cases: list[CaseResult] = field(default_factory=list)
    steps: list[CaseResult] = field(default_factory=list)  # streams of single steps
    model: ModelResult | None = None
    peaks: Peaks | None = None
    complete: bool = False

    @property
    def problems(self) -> list[str]:
        """What makes the run a failure, one line each."""
        lines = []
        for row in [*self.cases, *self.steps]:
            if row.status == "failed":
                lines.append(f"{row.case.name}: FAILED parity, {row.message}")
            elif row.status == "error":
                lines.append(f"{row.case.name}: ERROR, {row.message}")
        if self.model is not None and self.model.status in ("failed", "error"):
            word = "FAILED parity, " if self.model.status == "failed" else "ERROR, "
            lines.append(f"language model: {word}{self.model.message}")
        return lines

    def summaries(self) -> list[Summary]:
        """Geometric mean, lowest and highest speed-up by number format, cell and metric."""
        found = []
        for dtype in dict.fromkeys(row.case.dtype for row in self.cases):
            rows = [row for row in self.cases if row.case.dtype == dtype]
            cells = list(dict.fromkeys(row.case.cell for row in rows))
            for cell in [*cells, "all"] if len(cells) > 1 else cells:
                for metric in METRICS:
                    group = [row.speedup(metric) for row in rows if cell in (row.case.cell, "all")]
                    values = [speedup.median for speedup in group if speedup]
                    mean = ratios.geometric_mean(values)
                    if mean is not None:
                        found.append(
                            Summary(dtype, cell, metric, len(values), len(group), mean, min(values), max(values))
                        )
        return found

    def peer_summaries(self) -> list[PeerSummary]:
        """The candidate against torch.nn, each peer and the best peer, by cell and metric, in rows that have peers."""
        found = []
        rows = [row for row in self.cases if row.peers]
        cells = list(dict.fromkeys(row.case.cell for row in rows))
        for metric in PEER_METRICS:
            for cell in [*cells, "all"] if len(cells) > 1 else cells:
                group = [row for row in rows if cell in (row.case.cell, "all") and row.best_peer(metric)]
                for against in ("baseline", *self.settings.peers, BEST_PEER):
                    speedups = {}
                    for row in group:
                        side = row.best_peer(metric) if against == BEST_PEER else against
                        speedup = row.speedup(metric, side or "")
                        if speedup:
                            speedups[row.case.name] = speedup.median
                    mean = ratios.geometric_mean(speedups.values())
                    if mean is not None:
                        worst = min(speedups, key=lambda name: speedups[name])
                        ends = speedups[worst], worst, max(speedups.values())
                        found.append(PeerSummary(cell, metric, against, len(speedups), mean, *ends))
        return found

    def slower(self) -> list[str]:
        """Rows and metrics in which the candidate was certainly slower than torch.nn."""
        lines = []
        for row in [*self.cases, *self.steps]:
            for metric in row.case.metrics:
                speedup = row.speedup(metric)
                if speedup and speedup.median < 1.0 and not speedup.uncertain:
                    lines.append(f"{row.case.name}: {metric} {speedup.median:.2f}×")
        return lines

    def as_dict(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "schema": SCHEMA,
            "complete": self.complete,
            "environment": self.environment,
            "settings": {
                "engines": {"baseline": settings.baseline, "candidate": settings.candidate},
                "peers": list(settings.peers),
                "threads": settings.threads,
                "precision": settings.precision,
                "device": settings.device,
                "rounds": settings.rounds,
                "block_seconds": settings.block_seconds,
                "seed": settings.seed,
            },
            "problems": self.problems,
            "peaks": self.peaks.as_dict() if self.peaks else None,
            "summary": [asdict(summary) for summary in self.summaries()],
            "peer_summary": [asdict(summary) for summary in self.peer_summaries()],
            "cases": [row.as_dict() for row in self.cases],
            "steps": [row.as_dict() for row in self.steps],
            "language_model": self.model.as_dict() if self.model else None,
        }
