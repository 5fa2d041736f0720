"""Settings and results of a run: rows, language model, summary, JSON.

A side is ``baseline``, ``candidate`` or the name of a peer.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

from fastrnn.apps.bench import ratios, trust
from fastrnn.apps.bench.cases import METRICS, Case
from fastrnn.apps.bench.engines import find_engine
from fastrnn.apps.bench.language_model import CurveComparison, ModelSettings, final_loss
from fastrnn.apps.bench.machine import Peaks
from fastrnn.apps.bench.parity import Parity

SIDES = ("baseline", "candidate")
WORDS = {"failed": "FAILED parity", "error": "ERROR", "skipped": "skipped"}
BEST_PEER = "best peer"
METRIC_WORDS = {"total": "training", "inference": "inference"}


@dataclass(frozen=True)
class Settings:
    """Options of a run."""

    cases: tuple[Case, ...]
    mode: str = "bench"  # or busy, scaling
    candidate: str = "fastrnn"  # engine names
    baseline: str = "torch"
    peers: tuple[str, ...] = ()
    threads: int | None = None  # None: torch's default
    precision: str = "highest"  # of the candidate's float32 products, see torch.set_float32_matmul_precision
    isa: str | None = None  # instruction set that all engines are limited to, see process.INSTRUCTION_SETS
    device: str = "cpu"  # for all cases
    rounds: int = 9
    block_seconds: float = 0.03
    seed: int = 0
    quick: bool = False
    memory: bool = True
    model: ModelSettings | None = None
    competitors: int = 0  # busy mode: number of processes, and seconds for each engine alone and next to them
    sample_seconds: float = 1.5

    @property
    def engines(self) -> dict[str, str]:
        """Engine names by side."""
        return {"baseline": self.baseline, "candidate": self.candidate, **{name: name for name in self.peers}}

    @property
    def labels(self) -> dict[str, str]:
        """Names of all sides for reports."""
        labels = {side: find_engine(name).label for side, name in self.engines.items()}
        labels["candidate"] += " again" if labels["candidate"] == labels["baseline"] else ""
        return labels


@dataclass
class Verdict:
    """Status ``ok``, ``failed`` (parity), ``error``, or ``skipped`` (torch.nn cannot run it); a message if not ok."""

    status: str = "ok"
    message: str = ""
    parity: Parity | None = None

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    def fail(self, status: str, message: object) -> None:
        self.status, self.message = status, str(message)

    def judge(self, parity: Parity) -> None:
        self.parity = parity
        if not parity.ok:
            self.fail("failed", parity.describe())

    def describe(self) -> str:
        return f"{WORDS.get(self.status, self.status)}, {self.message}"

    def as_dict(self) -> dict[str, Any]:
        parity = self.parity.as_dict() if self.parity else None
        return {"status": self.status, "message": self.message, "parity": parity}


@dataclass
class Row(Verdict):
    """A case and its measurements. In scaling mode ``value`` is that on ``axis``."""

    case: Case = field(kw_only=True)
    warnings: list[str] = field(default_factory=list)
    peers: dict[str, Verdict] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)  # kind of block → calls in one
    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # metric → side → per call, one per round
    cpu_seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # the same for the calling thread
    lost: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # kind → side → share, see Effort.lost
    memory: dict[str, int | None] = field(default_factory=dict)  # side → bytes
    bounds: dict[str, float] = field(default_factory=dict)  # metric → seconds, see fastrnn.apps.bench.machine
    samples: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)  # busy mode: kind → side → quiet, busy
    axis: str = ""
    value: int = 0
    threads: int | None = None

    def speedup(self, metric: str, side: str | None = "baseline") -> ratios.Speedup | None:
        """Return the candidate's speed-up over that side."""
        times = self.seconds.get(metric, {}) if self.ok else {}
        return ratios.compare_rounds(times[side], times["candidate"]) if side in times else None

    def cpu_speedup(self, metric: str) -> ratios.Speedup | None:
        """Return the candidate's speed-up over the baseline in processor time of the calling thread."""
        times = self.cpu_seconds.get(metric, {}) if self.ok else {}
        return ratios.compare_rounds(times["baseline"], times["candidate"]) if set(SIDES) <= set(times) else None

    def lost_shares(self) -> list[float]:
        """Return, for each round and kind of block, the share of time that a side lost to other processes."""
        rounds = [zip(*(sides[side] for side in SIDES), strict=False) for sides in self.lost.values()]
        return [max(shares) for pairs in rounds for shares in pairs]

    def median(self, metric: str, side: str) -> float | None:
        """Return the median time of a call, in seconds."""
        times = self.seconds.get(metric, {}).get(side)
        return ratios.median(times) if self.ok and times else None

    def per_step(self, metric: str, side: str) -> float | None:
        """Return the median time of a time step, in seconds."""
        seconds = self.median(metric, side)
        return None if seconds is None else seconds / (self.case.shape.steps * max(1, self.case.chunks))

    def best_peer(self, metric: str) -> str | None:
        """Return the peer with the shortest time."""
        times = {name: seconds for name in self.peers if (seconds := self.median(metric, name))}
        return min(times, key=times.__getitem__, default=None)

    def limit_share(self, metric: str) -> float | None:
        """Return the bound from the machine's peaks, divided by the candidate's time: 1 is the limit."""
        seconds = self.median(metric, "candidate")
        return self.bounds[metric] / seconds if seconds and metric in self.bounds else None

    def slowdown(self, kind: str, side: str, figure: str) -> float | None:
        """Return the ratio of busy to quiet ``median`` or ``mean`` of one engine."""
        sample = self.samples.get(kind, {}).get(side, {})
        return sample["busy"][figure] / sample["quiet"][figure] if self.ok and len(sample) == 2 else None

    def as_dict(self, precision: str = "highest") -> dict[str, Any]:
        shares = {metric: self.limit_share(metric) for metric in self.case.metrics}
        speedups = {
            side: {metric: asdict(s) for metric in self.case.metrics if (s := self.speedup(metric, side))}
            for side in ("baseline", *self.peers)
        }
        return {
            "case": self.case.as_dict(),
            **super().as_dict(),
            **({"axis": self.axis, "value": self.value, "threads": self.threads} if self.axis else {}),
            "warnings": self.warnings,
            "calls_per_block": self.calls,
            "seconds": self.seconds if self.ok else {},
            "cpu_seconds": self.cpu_seconds if self.ok else {},
            "lost_share": self.lost if self.ok else {},
            "doubts": trust.doubts_of_row(self, precision),
            "speedup": speedups["baseline"],
            "cpu_speedup": {m: asdict(s) for m in self.case.metrics if (s := self.cpu_speedup(m))},
            "peers": {name: {**peer.as_dict(), "speedup": speedups[name]} for name, peer in self.peers.items()},
            "bound_seconds": self.bounds,
            "limit_share": {metric: share for metric, share in shares.items() if share},
            "peak_memory_bytes": self.memory if self.ok else {},
            "samples": self.samples if self.ok else {},
        }


@dataclass
class ModelResult(Verdict):
    """Loss curves and speed of the language model. ``seconds`` and ``losses`` by side, per block and per step."""

    settings: ModelSettings = field(default_factory=ModelSettings)
    text: dict[str, Any] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=lambda: {side: [] for side in SIDES})
    seconds: dict[str, list[float]] = field(default_factory=lambda: {side: [] for side in SIDES})
    lost: list[float] = field(default_factory=list)  # share of time lost to other processes, for each block
    block_steps: list[int] = field(default_factory=list)
    comparison: CurveComparison | None = None

    def speedup(self) -> ratios.Speedup | None:
        """Return the ratio of both sides' characters per second, with the interval from the blocks."""
        paces = [self.characters_per_second(side) for side in SIDES]
        if not self.ok or not all(paces):
            return None
        blocks = ratios.compare_rounds(*(self.seconds[side] for side in SIDES))
        return ratios.with_quotient(blocks, *(1 / pace for pace in paces if pace))

    def characters_per_second(self, side: str) -> float | None:
        """Return the median over the blocks."""
        step = self.settings.batch * self.settings.chunk  # characters
        paces = [n * step / spent for n, spent in zip(self.block_steps, self.seconds[side], strict=False)]
        return ratios.median(paces) if self.ok and paces else None

    def as_dict(self) -> dict[str, Any]:
        speedup = self.speedup()
        return {
            **asdict(self),
            "doubts": trust.doubts_of_model(self),
            "seconds": self.seconds if self.ok else {},
            "final_loss": {side: final_loss(losses) for side, losses in self.losses.items() if losses},
            "characters_per_second": {side: self.characters_per_second(side) for side in SIDES},
            "speedup": asdict(speedup) if speedup else None,
        }


@dataclass
class Results:
    """Results, filled during the run, so that an interrupted run has partial results."""

    settings: Settings
    environment: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    model: ModelResult | None = None
    peaks: Peaks | None = None
    complete: bool = False

    def groups(self) -> dict[str, dict[str, list[Row]]]:
        """Return the rows by dtype and cell, in the order of the run, without streams."""
        groups: dict[str, dict[str, list[Row]]] = {}
        for row in self.rows:
            if not row.case.chunks:
                groups.setdefault(row.case.dtype, {}).setdefault(row.case.cell, []).append(row)
        return groups

    @property
    def steps(self) -> list[Row]:
        return [row for row in self.rows if row.case.chunks]

    @property
    def problems(self) -> list[str]:
        """Reasons why the run failed, one line each."""
        verdicts: list[tuple[str, Verdict]] = [(row.case.name, row) for row in self.rows]
        verdicts += [("language model", self.model)] if self.model else []
        return [f"{name}: {one.describe()}" for name, one in verdicts if one.status in ("failed", "error")]

    @property
    def doubts(self) -> list[str]:
        """Reasons why the times are unreliable, one line each."""
        return trust.doubts(self)

    def summary(self) -> list[dict[str, Any]]:
        """Return geometric mean, lowest and highest speed-up by dtype, cell (or ``all``), metric and engine.

        Empty if any times are doubtful. ``against`` is the baseline, a peer, or the best peer of each row. ``of``
        counts rows with and without a speed-up.
        """
        if self.doubts:
            return []
        lines, peers = [], self.settings.peers
        sides = ("baseline", *peers, *([BEST_PEER] if peers else []))
        for dtype, cells in self.groups().items():
            if len(cells) > 1:
                cells["all"] = [row for rows in cells.values() for row in rows]
            for (cell, rows), metric, against in product(cells.items(), METRICS, sides):
                line: dict[str, Any] = {"dtype": dtype, "cell": cell, "metric": metric, "against": against}
                pairs = [(row, row.best_peer(metric) if against == BEST_PEER else against) for row in rows]
                speedups = {row.case.name: s.median for row, side in pairs if (s := row.speedup(metric, side))}
                if speedups:
                    line |= {"rows": len(speedups), "of": len(rows)}
                    lowest = min(speedups, key=speedups.__getitem__)
                    ends = {"lowest": speedups[lowest], "lowest_row": lowest, "highest": max(speedups.values())}
                    lines.append({**line, "mean": ratios.geometric_mean(speedups.values()), **ends})
        return lines

    def slower(self) -> list[str]:
        """Return rows and metrics with the candidate certainly slower than torch.nn; none if times are doubtful."""
        if self.doubts:
            return []
        timed = [(row.case.name, metric, row.speedup(metric)) for row in self.rows for metric in row.case.metrics]
        found = [(name, m, s) for name, m, s in timed if s and s.median < 1.0 and not s.uncertain]
        return [f"{name}: {METRIC_WORDS.get(m, m)} {s.median:.2f}×" for name, m, s in found]

    def as_dict(self) -> dict[str, Any]:
        options = {name: value for name, value in vars(self.settings).items() if name not in ("cases", "model")}
        return {
            "schema": "fastrnn-bench/4",
            "complete": self.complete,
            "trusted": not self.doubts,
            "doubts": self.doubts,
            "environment": self.environment,
            "settings": {"engines": self.settings.engines, **options},
            "problems": self.problems,
            "peaks": asdict(self.peaks) if self.peaks else None,
            "summary": self.summary(),
            "rows": [row.as_dict(self.settings.precision) for row in self.rows],
            "language_model": self.model.as_dict() if self.model else None,
        }

    def to_json(self) -> str:
        """Return the document as JSON with one row per line."""
        document = json.dumps(self.as_dict() | {"rows": []}, indent=1, ensure_ascii=False)
        rows = ",\n  ".join(json.dumps(row.as_dict(self.settings.precision), ensure_ascii=False) for row in self.rows)
        return document.replace('"rows": []', f'"rows": [\n  {rows}\n ]') + "\n"
