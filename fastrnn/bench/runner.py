"""Takes the cases and the language model through their steps: parity, memory, rounds.

Two processes, one per engine, never at work at the same time. A round is one block of calls of each engine; the order
changes with every round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from fastrnn.bench import memory, ratios
from fastrnn.bench.cases import Case
from fastrnn.bench.client import Worker, WorkerDiedError, WorkerError
from fastrnn.bench.engines import BASELINE
from fastrnn.bench.language_model import CurveComparison, ModelSettings, compare_curves, describe_text, final_loss
from fastrnn.bench.parity import Parity, check_parity

METRICS = ("forward", "backward", "total", "inference")
SIDES = ("baseline", "candidate")

Note = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What to measure and how."""

    cases: tuple[Case, ...]
    candidate: str = "fastrnn"  # engine names
    baseline: str = BASELINE
    threads: int | None = None  # None: as torch chooses
    rounds: int = 9
    block_seconds: float = 0.03
    seed: int = 0
    model: ModelSettings | None = field(default_factory=ModelSettings)


@dataclass
class CaseResult:
    """One row and its figures; status ``ok``, ``failed`` (parity), ``error``, ``skipped`` (torch.nn cannot)."""

    case: Case
    status: str = "ok"
    message: str = ""
    warnings: list[str] = field(default_factory=list)
    parity: Parity | None = None
    calls: dict[str, int] = field(default_factory=dict)  # calls in a block: "train", "inference"
    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # metric → side → per call, one per round
    memory: dict[str, int | None] = field(default_factory=dict)  # side → bytes

    def speedup(self, metric: str) -> ratios.Speedup | None:
        if self.status != "ok" or metric not in self.seconds:
            return None
        return ratios.compare_rounds(*(self.seconds[metric][side] for side in SIDES))

    def median_seconds(self, metric: str, side: str) -> float | None:
        if self.status != "ok" or metric not in self.seconds:
            return None
        return ratios.median(self.seconds[metric][side])

    def as_dict(self) -> dict[str, Any]:
        shown = self.status == "ok"
        speedups = {metric: self.speedup(metric) for metric in METRICS}
        return {
            "case": self.case.as_dict(),
            "status": self.status,
            "message": self.message,
            "warnings": self.warnings,
            "parity": self.parity.as_dict() if self.parity else None,
            "calls_per_block": self.calls,
            "seconds": self.seconds if shown else {},
            "speedup": {metric: value.as_dict() for metric, value in speedups.items() if value},
            "peak_memory_bytes": self.memory if shown else {},
        }


@dataclass
class ModelResult:
    """The language model's curves and pace. ``seconds`` and ``losses`` by side, per block and per step."""

    settings: ModelSettings
    text: dict[str, Any]
    status: str = "ok"
    message: str = ""
    losses: dict[str, list[float]] = field(default_factory=lambda: {side: [] for side in SIDES})
    seconds: dict[str, list[float]] = field(default_factory=lambda: {side: [] for side in SIDES})
    block_steps: list[int] = field(default_factory=list)
    comparison: CurveComparison | None = None

    def speedup(self) -> ratios.Speedup | None:
        return ratios.compare_rounds(*(self.seconds[side] for side in SIDES)) if self.status == "ok" else None

    def characters_per_second(self, side: str) -> float | None:
        """Median over the blocks."""
        if self.status != "ok" or not self.seconds[side]:
            return None
        per_step = self.settings.characters_per_step
        paces = [steps * per_step / spent for steps, spent in zip(self.block_steps, self.seconds[side], strict=True)]
        return ratios.median(paces)

    def as_dict(self) -> dict[str, Any]:
        speedup = self.speedup()
        complete = all(self.losses[side] for side in SIDES)
        return {
            "settings": asdict(self.settings),
            "text": self.text,
            "status": self.status,
            "message": self.message,
            "losses": self.losses,
            "final_loss": {side: final_loss(self.losses[side]) for side in SIDES} if complete else {},
            "curves": asdict(self.comparison) if self.comparison else None,
            "block_steps": self.block_steps,
            "seconds_per_block": self.seconds if self.status == "ok" else {},
            "characters_per_second": {side: self.characters_per_second(side) for side in SIDES},
            "speedup": speedup.as_dict() if speedup else None,
        }


class Runner:
    """Owns the worker processes. Use as a context manager: they end with it, whatever happens."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engines = {"baseline": settings.baseline, "candidate": settings.candidate}
        self._workers: dict[tuple[str, str], Worker] = {}

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers at once."""
        while self._workers:
            self._workers.popitem()[1].kill()

    def worker(self, side: str, purpose: str = "time") -> Worker:
        """The process of one side, started when first needed and again after it died."""
        key = (side, purpose)
        if key in self._workers and not self._workers[key].alive:
            self._workers.pop(key).kill()
        if key not in self._workers:
            self._workers[key] = Worker(self.engines[side], self.settings.threads)
        return self._workers[key]

    def start(self) -> dict[str, Any]:
        """Start all workers at the same time, wait for them, and answer what the baseline's process says of itself."""
        purposes = ("time", "memory") if self.settings.cases and memory.available() else ("time",)
        workers = [self.worker(side, purpose) for side in SIDES for purpose in purposes]
        for worker in workers:
            worker.wait_until_started()
        return workers[0].started

    # One row of the table

    def run_case(self, case: Case, note: Note = lambda text: None) -> CaseResult:
        """Parity, then memory, then the rounds. Errors and dead workers end up in the result."""
        result = CaseResult(case)
        try:
            note("parity")
            self._parity(result)
            if result.status == "ok":
                note("memory")
                result.memory = {side: self._memory(side, case) for side in SIDES}
                self._rounds(result, note)
        except (WorkerError, WorkerDiedError) as error:
            result.status, result.message = "error", str(error)
        return result

    def _parity(self, result: CaseResult) -> None:
        case, seed = result.case, self.settings.seed
        baseline = self.worker("baseline")
        # For float64 the baseline's own error is estimated from float32, see parity.py.
        measured = "float32" if case.dtype == "float64" else None
        try:
            theirs, _ = baseline.call("tensors", case=case, seed=seed, dtype=measured)
            exact, _ = baseline.call("tensors", case=case, seed=seed, dtype="float64")
        except WorkerError as error:
            result.status, result.message = "skipped", str(error)
            return
        ours, result.warnings = self.worker("candidate").call("tensors", case=case, seed=seed, dtype=None)
        result.parity = check_parity(ours, theirs, exact, case.dtype)
        if not result.parity.ok:
            more = len(result.parity.failed) - 1
            result.status = "failed"
            result.message = result.parity.worst.describe() + (f" (and {more} more)" if more else "")

    def _memory(self, side: str, case: Case) -> int | None:
        """Median of three measurements: with several threads the allocator does not do the same twice."""
        worker = self.worker(side, "memory")
        worker.call("load_engine", case=case)
        sizes = [worker.call("peak_memory", case=case, seed=self.settings.seed) for _ in range(3)]
        return None if None in sizes else sorted(sizes)[1]

    def _rounds(self, result: CaseResult, note: Note) -> None:
        case, settings = result.case, self.settings
        workers = {side: self.worker(side) for side in SIDES}
        estimates = [workers[side].call("prepare", case=case, seed=settings.seed) for side in SIDES]
        for index, kind in enumerate(("train", "inference")):
            seconds = [estimate[index] for estimate in estimates]
            result.calls[kind] = ratios.calls_per_block(seconds, settings.block_seconds)
        result.seconds = {metric: {side: [] for side in SIDES} for metric in METRICS}
        for number in range(settings.rounds):
            note(f"round {number + 1}/{settings.rounds}")
            order = SIDES if number % 2 == 0 else SIDES[::-1]
            for side in order:
                forward, backward = workers[side].call("train_block", calls=result.calls["train"])
                for metric, value in (("forward", forward), ("backward", backward), ("total", forward + backward)):
                    result.seconds[metric][side].append(value)
            for side in order:
                value = workers[side].call("inference_block", calls=result.calls["inference"])
                result.seconds["inference"][side].append(value)
        for worker in workers.values():
            worker.call("release")

    # The real workload

    def run_model(self, text: bytes, result: ModelResult, note: Note = lambda text: None) -> None:
        """Train the language model with both engines, block by block in turns, into ``result``."""
        model = result.settings
        try:
            workers = {side: self.worker(side) for side in SIDES}
            for worker in workers.values():
                worker.call("start_model", text=text, settings=model, seed=self.settings.seed)
            done = 0
            while done < model.steps:
                steps = min(model.block, model.steps - done)
                for side in SIDES if len(result.block_steps) % 2 == 0 else SIDES[::-1]:
                    seconds, losses = workers[side].call("model_block", steps=steps)
                    result.seconds[side].append(seconds)
                    result.losses[side].extend(losses)
                result.block_steps.append(steps)
                done += steps
                note(f"step {done}/{model.steps}, loss {result.losses['candidate'][-1]:.3f}")
            for worker in workers.values():
                worker.call("release")
        except (WorkerError, WorkerDiedError) as error:
            result.status, result.message = "error", f"language model: {error}"
            return
        result.comparison = compare_curves(result.losses["baseline"], result.losses["candidate"])
        if not result.comparison.ok:
            result.status = "failed"
            result.message = (
                f"loss curves differ: {result.comparison.early:.2g} (relative) among the first steps, "
                f"{result.comparison.late:.2g} at the end"
            )


def new_model_result(settings: ModelSettings, text: bytes) -> ModelResult:
    """An empty result that already says which text is learned."""
    return ModelResult(settings, describe_text(text))
