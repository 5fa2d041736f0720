"""Takes the cases and the language model through their steps: parity, memory, rounds.

One process per engine, never at work at the same time. A round is one block of calls of each engine; who begins changes
with every round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from fastrnn.apps.bench import limits, memory, ratios
from fastrnn.apps.bench.cases import BLOCKS, METRICS, Case
from fastrnn.apps.bench.client import Worker, WorkerDiedError, WorkerError
from fastrnn.apps.bench.engines import BASELINE, find_engine
from fastrnn.apps.bench.language_model import CurveComparison, ModelSettings, compare_curves, describe_text, final_loss
from fastrnn.apps.bench.parity import FACTOR, HIGH_FACTOR, Parity, check_parity, check_peer

__all__ = ["METRICS", "SIDES", "CaseResult", "ModelResult", "PeerResult", "Runner", "Settings", "new_model_result"]

SIDES = ("baseline", "candidate")

Note = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What to measure and how."""

    cases: tuple[Case, ...]
    candidate: str = "fastrnn"  # engine names
    baseline: str = BASELINE
    peers: tuple[str, ...] = ()  # names too, see fastrnn.apps.bench.peers
    threads: int | None = None  # None: as torch chooses
    precision: str = "highest"  # of the candidate's float32 products, see torch.set_float32_matmul_precision
    memory: bool = True
    rounds: int = 9
    block_seconds: float = 0.03
    seed: int = 0
    model: ModelSettings | None = field(default_factory=ModelSettings)
    steps: tuple[Case, ...] = ()  # streams of single steps, which have a table of their own
    device: str = "cpu"  # of all cases


@dataclass
class PeerResult:
    """Another library's verdict on one row; status ``ok``, ``failed`` (parity) or ``error``."""

    status: str = "ok"
    message: str = ""
    parity: Parity | None = None


@dataclass
class CaseResult:
    """One row and its figures; status ``ok``, ``failed`` (parity), ``error``, ``skipped`` (torch.nn cannot).

    A side is ``baseline``, ``candidate`` or the name of a peer that can run the case and passed its check.
    """

    case: Case
    status: str = "ok"
    message: str = ""
    warnings: list[str] = field(default_factory=list)
    parity: Parity | None = None
    peers: dict[str, PeerResult] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)  # kind of block → calls in one
    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # metric → side → per call, one per round
    memory: dict[str, int | None] = field(default_factory=dict)  # side → bytes
    bounds: dict[str, float] = field(default_factory=dict)  # metric → seconds, see fastrnn.apps.bench.limits

    def speedup(self, metric: str, side: str = "baseline") -> ratios.Speedup | None:
        """The candidate against that side."""
        if not self._shown(metric, side):
            return None
        return ratios.compare_rounds(self.seconds[metric][side], self.seconds[metric]["candidate"])

    def median_seconds(self, metric: str, side: str) -> float | None:
        return ratios.median(self.seconds[metric][side]) if self._shown(metric, side) else None

    def _shown(self, metric: str, side: str) -> bool:
        return self.status == "ok" and side in self.seconds.get(metric, {})

    def best_peer(self, metric: str) -> str | None:
        """The peer with the shortest time."""
        times = {name: self.median_seconds(metric, name) for name in self.peers}
        known = {name: seconds for name, seconds in times.items() if seconds is not None}
        return min(known, key=lambda name: known[name]) if known else None

    def limit_share(self, metric: str) -> float | None:
        """The bound that the machine's peaks give, divided by the candidate's time: 1 is the limit."""
        seconds = self.median_seconds(metric, "candidate")
        return self.bounds[metric] / seconds if seconds and metric in self.bounds else None

    def _peer_dict(self, name: str) -> dict[str, Any]:
        peer = self.peers[name]
        speedups = {metric: self.speedup(metric, name) for metric in self.case.metrics}
        return {
            "status": peer.status,
            "message": peer.message,
            "parity": peer.parity.as_dict() if peer.parity else None,
            "speedup": {metric: value.as_dict() for metric, value in speedups.items() if value},
        }

    def as_dict(self) -> dict[str, Any]:
        shown = self.status == "ok"
        speedups = {metric: self.speedup(metric) for metric in self.case.metrics}
        shares = {metric: self.limit_share(metric) for metric in self.case.metrics}
        return {
            "case": self.case.as_dict(),
            "status": self.status,
            "message": self.message,
            "warnings": self.warnings,
            "parity": self.parity.as_dict() if self.parity else None,
            "calls_per_block": self.calls,
            "seconds": self.seconds if shown else {},
            "speedup": {metric: value.as_dict() for metric, value in speedups.items() if value},
            "peers": {name: self._peer_dict(name) for name in self.peers},
            "bound_seconds": self.bounds,
            "limit_share": {metric: share for metric, share in shares.items() if share is not None},
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
        self.engines.update({name: name for name in settings.peers})
        self.peaks: limits.Peaks | None = None
        self._threads = settings.threads
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
            precision = self.settings.precision if side == "candidate" else None
            self._workers[key] = Worker(self.engines[side], self._threads, precision=precision)
        return self._workers[key]

    def start(self) -> dict[str, Any]:
        """Start all workers and wait for them. Answers what each engine says of itself, by side."""
        with_memory = self.settings.memory and self.settings.cases and memory.available()
        purposes = ("time", "memory") if with_memory else ("time",)
        workers = [self.worker(side, purpose) for side in SIDES for purpose in purposes]
        for worker in workers:
            worker.wait_until_started()
        # Peers have no default of their own that would be fair: they get as many threads as torch.
        self._threads = int(workers[0].started["threads"])
        for name in self.settings.peers:
            self.worker(name)
        for side in self.engines:
            self.worker(side).wait_until_started()
        return {side: self.worker(side).started for side in self.engines}

    def measure_limits(self, seconds: float = limits.SECONDS) -> limits.Peaks:
        """The machine's peaks for the number formats and weights of all rows, from a process that does nothing else."""
        cases = (*self.settings.cases, *self.settings.steps)
        worker = self.worker("baseline", "limits")
        dtypes = list(dict.fromkeys(case.dtype for case in cases))
        sizes = sorted({limits.recurrent_bytes(case) for case in cases})
        self.peaks = worker.call("limits", dtypes=dtypes, sizes=sizes, seconds=seconds)
        self._workers.pop(("baseline", "limits")).kill()
        return self.peaks

    # One row of the table

    def run_case(self, case: Case, note: Note = lambda text: None) -> CaseResult:
        """Parity, then memory, then the rounds. Errors and dead workers end up in the result."""
        note("parity")
        result = self.check_case(case)
        try:
            if result.status == "ok":
                if self.settings.memory and "total" in case.metrics:
                    note("memory")
                    result.memory = {side: self._memory(side, case) for side in SIDES}
                self._rounds(result, note)
        except (WorkerError, WorkerDiedError) as error:
            result.status, result.message = "error", str(error)
        if self.peaks is not None:
            result.bounds = limits.bounds(case, self.peaks)
        return result

    def check_case(self, case: Case) -> CaseResult:
        """Parity only: a result that says whether the case may be timed."""
        result = CaseResult(case)
        try:
            self._parity(result)
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
        factor = FACTOR if self.settings.precision == "highest" else HIGH_FACTOR
        result.parity = check_parity(ours, theirs, exact, case.dtype, factor)
        if not result.parity.ok:
            result.status, result.message = "failed", _failure(result.parity)
            return
        for name in self.settings.peers:
            if find_engine(name).metrics(case):
                result.peers[name] = self._peer_parity(name, case, theirs, exact)

    def _peer_parity(self, name: str, case: Case, theirs: Any, exact: Any) -> PeerResult:
        try:
            found, _ = self.worker(name).call("tensors", case=case, seed=self.settings.seed, dtype=None)
        except (WorkerError, WorkerDiedError) as error:
            return PeerResult("error", str(error))
        parity = check_peer(found, theirs, exact)
        return PeerResult("ok" if parity.ok else "failed", "" if parity.ok else _failure(parity), parity)

    def _memory(self, side: str, case: Case) -> int | None:
        """Median of three measurements: with several threads the allocator does not do the same twice."""
        worker = self.worker(side, "memory")
        worker.call("load_engine", case=case)
        sizes = [worker.call("peak_memory", case=case, seed=self.settings.seed) for _ in range(3)]
        return None if None in sizes else sorted(sizes)[1]

    def _rounds(self, result: CaseResult, note: Note) -> None:
        case, settings = result.case, self.settings
        estimates = {}
        for side in (*SIDES, *(name for name, peer in result.peers.items() if peer.status == "ok")):
            found = self._ask(result, side, "prepare", case=case, seed=settings.seed)
            if found is not None:
                estimates[side] = found
        able = {kind: [side for side in estimates if kind in estimates[side]] for kind in BLOCKS}
        for kind, sides in able.items():
            if sides:
                seconds = [estimates[side][kind] for side in sides]
                result.calls[kind] = ratios.calls_per_block(seconds, settings.block_seconds)
        result.seconds = {metric: {} for metric in case.metrics}
        for number in range(settings.rounds):
            note(f"round {number + 1}/{settings.rounds}")
            for kind, calls in result.calls.items():
                first = number % len(able[kind])
                for side in (*able[kind][first:], *able[kind][:first]):
                    times = self._ask(result, side, "block", kind=kind, calls=calls)
                    for metric, value in (times or {}).items():
                        result.seconds[metric].setdefault(side, []).append(value)
        for side in estimates:
            self._ask(result, side, "release")

    def _ask(self, result: CaseResult, side: str, command: str, **arguments: Any) -> Any:
        """Call a worker. A peer's failure is not the row's: it is noted, and the peer left out from now on."""
        peer = result.peers.get(side)
        if peer is None:
            return self.worker(side).call(command, **arguments)
        if peer.status != "ok":
            return None
        try:
            return self.worker(side).call(command, **arguments)
        except (WorkerError, WorkerDiedError) as error:
            peer.status, peer.message = "error", str(error)
            for times in result.seconds.values():
                times.pop(side, None)
            return None

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


def _failure(parity: Parity) -> str:
    more = len(parity.failed) - 1
    return parity.worst.describe() + (f" (and {more} more)" if more else "")


def new_model_result(settings: ModelSettings, text: bytes) -> ModelResult:
    """An empty result that already says which text is learned."""
    return ModelResult(settings, describe_text(text))
