"""A run of the benchmark: parity, memory and rounds of the cases and the language model, by mode.

There is one process per engine, and only one works at a time. A round is one block of calls of each engine; the engine
that begins alternates between rounds.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from fastrnn.apps.bench import machine, ratios, trust
from fastrnn.apps.bench.cases import BLOCKS, Case, Shape
from fastrnn.apps.bench.engines import find_engine
from fastrnn.apps.bench.language_model import compare_curves, describe_text
from fastrnn.apps.bench.parity import FACTORS, check_parity, check_peer
from fastrnn.apps.bench.process import Worker, WorkerDiedError, WorkerError
from fastrnn.apps.bench.results import METRIC_WORDS, SIDES, ModelResult, Results, Row, Settings, Verdict

FAILURES = (WorkerError, WorkerDiedError)
#: Largest number of times that a row's rounds are timed if other load on the machine disturbs them.
ATTEMPTS, QUICK_ATTEMPTS = 3, 2


class Progress:
    """Progress on standard error: one line for each job, and on a terminal the step of the current one.

    Written only between two commands to the workers: a bar that refreshes itself would slow them down.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs, self.done, self.name = jobs, 0, ""

    def _write(self, text: str, end: str) -> None:
        clear = "\r\033[K" if sys.stderr.isatty() else ""
        print(f"{clear}[{self.done + 1}/{self.jobs}] {self.name}{text}", end=end, file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        if sys.stderr.isatty():
            self._write(f"  {text}", "")

    def end(self, outcome: str) -> None:
        self._write(f": {outcome}", "\n")
        self.done += 1


class Runner:
    """Owner of the worker processes, which end with `close`."""

    def __init__(self, settings: Settings, progress: Progress | None = None) -> None:
        self.settings, self.progress = settings, progress or Progress(0)
        self.threads = settings.threads
        self._workers: dict[tuple[str, str], Worker] = {}

    def close(self) -> None:
        while self._workers:
            self._workers.popitem()[1].kill()

    def worker(self, side: str, purpose: str = "time") -> Worker:
        """Return the process of one side, started when first needed and again after it died."""
        key = (side, purpose)
        if key in self._workers and not self._workers[key].alive:
            self._workers.pop(key).kill()
        if key not in self._workers:
            precision = self.settings.precision if side == "candidate" else None
            engine, isa = self.settings.engines[side], self.settings.isa
            self._workers[key] = Worker(engine, self.threads, precision=precision, isa=isa)
        return self._workers[key]

    def start(self, environment: dict[str, Any]) -> int:
        """Start all workers and write threads and versions of each engine to ``environment``; return the threads."""
        purposes = ("time", "memory") if self.settings.memory and machine.can_measure_memory() else ("time",)
        workers = [self.worker(side, purpose) for side in SIDES for purpose in purposes]
        # A peer's own default would not be comparable: peers get as many threads as torch.
        self.threads = environment["threads"] = int(workers[0].wait_until_started()["threads"])
        workers += [self.worker(name) for name in self.settings.peers]
        for worker in workers:
            worker.wait_until_started()
        environment["engines"] = {side: self.worker(side).wait_until_started() for side in self.settings.engines}
        return self.threads

    def measure_peaks(self, cases: Sequence[Case]) -> machine.Peaks:
        """Measure the peaks for the dtypes and weights of all cases, in a process that does nothing else."""
        dtypes = list(dict.fromkeys(case.dtype for case in cases))
        sizes = sorted({machine.recurrent_bytes(case) for case in cases})
        worker = self.worker("baseline", "peaks")
        peaks: machine.Peaks = worker.call("peaks", dtypes=dtypes, sizes=sizes, seconds=machine.SECONDS)
        self._workers.pop(("baseline", "peaks")).kill()
        return peaks

    def run_case(self, row: Row) -> None:
        """Check a case, then measure it. Errors and dead workers are recorded in the row."""
        case = row.case
        self.progress.name = case.name + (f", {row.axis} {row.value}" if row.axis else "")
        self.progress.note("parity")
        try:
            self._check(row)
            if row.ok and self.settings.memory and "total" in case.metrics:
                self.progress.note("memory")
                row.memory = {side: self._memory(side, case) for side in SIDES}
            if row.ok:
                self._measure(row)
        except FAILURES as error:
            row.fail("error", error)

    def _tensors(self, side: str, case: Case, dtype: str | None = None) -> Any:
        return self.worker(side).call("tensors", case=case, seed=self.settings.seed, dtype=dtype)

    def _check(self, row: Row) -> None:
        case = row.case
        try:
            # For float64 the baseline's own error is estimated from float32, see parity.py.
            theirs, _ = self._tensors("baseline", case, "float32" if case.dtype == "float64" else None)
            exact, _ = self._tensors("baseline", case, "float64")
        except WorkerError as error:
            row.fail("skipped", error)
            return
        ours, row.warnings = self._tensors("candidate", case)
        factor = FACTORS[self.settings.precision]
        row.judge(check_parity(ours, theirs, exact, case.dtype, factor))
        for name in self.settings.peers if row.ok else ():
            if find_engine(name).metrics(case):
                row.peers[name] = Verdict()
                try:
                    row.peers[name].judge(check_peer(self._tensors(name, case)[0], theirs, exact))
                except FAILURES as error:
                    row.peers[name].fail("error", error)

    def _memory(self, side: str, case: Case) -> int | None:
        """Return the median of three measurements: with several threads the allocator's behaviour varies."""
        worker = self.worker(side, "memory")
        worker.call("load_engine", case=case)
        sizes = [worker.call("peak_memory", case=case, seed=self.settings.seed) for _ in range(3)]
        return None if None in sizes else sorted(sizes)[1]

    def _call(self, row: Row, side: str, command: str, **arguments: Any) -> Any:
        """Call a worker. A peer's failure does not fail the row: it is recorded, and the peer skipped from then on."""
        peer = row.peers.get(side)
        if peer is not None and not peer.ok:
            return None
        try:
            return self.worker(side).call(command, **arguments)
        except FAILURES as error:
            if peer is None:
                raise
            peer.fail("error", error)
            figures: list[dict[str, Any]] = [*row.seconds.values(), *row.samples.values()]
            for sides in figures:
                sides.pop(side, None)
            return None

    def _measure(self, row: Row) -> None:
        """Build the case in each engine that can run it, time it as the mode requires, and release it."""
        able: dict[str, dict[str, float]] = {}  # kind of block → side → seconds of a call
        for side in (*SIDES, *row.peers):
            estimates = self._call(row, side, "prepare", case=row.case, seed=self.settings.seed) or {}
            for kind, seconds in estimates.items():
                able.setdefault(kind, {})[side] = seconds
        if self.settings.mode == "busy":
            self._sample_busy(row, able)
        else:
            self._time_rounds(row, able)
        for side in (*SIDES, *row.peers):
            self._call(row, side, "release")

    def _time_rounds(self, row: Row, able: dict[str, dict[str, float]]) -> None:
        """Time the rounds; repeat if other load on the machine disturbed them."""
        for kind, estimates in able.items():
            row.calls[kind] = ratios.calls_per_block(list(estimates.values()), self.settings.block_seconds)
        for attempt in range(QUICK_ATTEMPTS if self.settings.quick else ATTEMPTS):
            if attempt and not trust.doubts_of_row(row):
                return
            row.seconds = {metric: {} for metric in row.case.metrics}
            row.cpu_seconds, row.lost = {}, {}
            for number in range(self.settings.rounds):
                again = ", again: disturbed" if attempt else ""
                self.progress.note(f"round {number + 1}/{self.settings.rounds}{again}")
                for kind, estimates in able.items():
                    sides, first = list(estimates), number % len(estimates)
                    for side in (*sides[first:], *sides[:first]):
                        self._time_block(row, kind, side)

    def _time_block(self, row: Row, kind: str, side: str) -> None:
        answer = self._call(row, side, "block", kind=kind, calls=row.calls[kind])
        if answer is None:
            return
        times, effort = answer
        for metric, value in times.items():
            row.seconds[metric].setdefault(side, []).append(value)
        if row.case.device == "cpu":  # on a GPU the calling thread only waits
            whole = BLOCKS[kind][-1]
            row.cpu_seconds.setdefault(whole, {}).setdefault(side, []).append(effort.cpu / row.calls[kind])
            row.lost.setdefault(kind, {}).setdefault(side, []).append(effort.lost(row.threads or self.threads or 1))

    def _sample_busy(self, row: Row, able: dict[str, dict[str, float]]) -> None:
        """Time single calls of each engine alone, then next to processes that keep a core busy."""
        for condition, count in (("quiet", 0), ("busy", self.settings.competitors)):
            with busy_processes(count):
                for kind, side in [(kind, side) for kind, sides in able.items() for side in sides]:
                    self.progress.note(f"{condition}, {kind}, {side}")
                    times = self._call(row, side, "samples", kind=kind, seconds=self.settings.sample_seconds)
                    if times:
                        row.samples.setdefault(kind, {}).setdefault(side, {})[condition] = sample(times)

    def run_model(self, text: bytes, result: ModelResult) -> None:
        """Train the language model with both engines in alternating blocks, into ``result``."""
        model, done = result.settings, 0
        self.progress.name = "language model"
        try:
            for side in SIDES:
                self.worker(side).call("start_model", text=text, settings=model, seed=self.settings.seed)
            while done < model.steps:
                steps = min(model.block, model.steps - done)
                lost = []
                for side in SIDES if len(result.block_steps) % 2 == 0 else SIDES[::-1]:
                    (seconds, losses), effort = self.worker(side).call("model_block", steps=steps)
                    lost.append(effort.lost(self.threads or 1))
                    result.seconds[side].append(seconds)
                    result.losses[side].extend(losses)
                result.lost.append(max(lost))
                result.block_steps.append(steps)
                done += steps
                self.progress.note(f"step {done}/{model.steps}, loss {result.losses['candidate'][-1]:.3f}")
            for side in SIDES:
                self.worker(side).call("release")
        except KeyboardInterrupt:
            result.fail("interrupted", "interrupted")
            raise
        except FAILURES as error:
            result.fail("error", error)
            return
        curves = result.comparison = compare_curves(result.losses["baseline"], result.losses["candidate"])
        if not curves.ok:
            ends = f"{curves.early:.2g} (relative) among the first steps, {curves.late:.2g} at the end"
            result.fail("failed", f"loss curves differ: {ends}")


def sample(times: Sequence[float]) -> dict[str, float]:
    """Return statistics of single calls."""
    mean = sum(times) / len(times)
    return {"calls": len(times), "median": ratios.median(times), "mean": mean, "highest": max(times)}


# Ends when its parent has ended, even by a kill signal: a competitor left running would distort later runs.
_COMPETITOR = """\
import os, sys
parent = os.getppid()
sys.stdout.write(".")
sys.stdout.close()
while os.getppid() == parent:
    for _ in range(1000000):
        pass
"""


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run processes that keep a core busy, not pinned; they end with the context, even after an error."""
    with contextlib.ExitStack() as stack:
        processes: list[subprocess.Popen[bytes]] = []
        for _ in range(count):
            # No standard error, which would show a traceback when Ctrl-C reaches the whole process group.
            command, null = [sys.executable, "-S", "-c", _COMPETITOR], subprocess.DEVNULL
            processes.append(subprocess.Popen(command, stdin=null, stdout=subprocess.PIPE, stderr=null))
            stack.callback(processes[-1].communicate)
            stack.callback(processes[-1].kill)  # runs first
        for process in processes:
            if process.stdout is None or process.stdout.read(1) != b".":
                raise RuntimeError("expected a busy process to start, got none")
        yield processes


def run(results: Results, text: bytes = b"") -> None:
    """Fill the results. KeyboardInterrupt passes through, after all processes have ended."""
    settings = results.settings
    runner = Runner(settings)
    try:
        threads = runner.start(results.environment)
        rows = make_points(settings, threads) if settings.mode == "scaling" else [Row(case=c) for c in settings.cases]
        runner.progress.jobs = len(rows) + (settings.model is not None)
        if settings.mode == "bench" and settings.device == "cpu" and rows:
            results.peaks = runner.measure_peaks([row.case for row in rows])
        for row in rows:
            if row.threads not in (None, runner.threads):  # a number of threads needs new processes
                runner.close()
                runner = Runner(replace(settings, threads=row.threads), runner.progress)
            runner.run_case(row)
            if results.peaks:
                row.bounds = machine.bounds(row.case, results.peaks)
            results.rows.append(row)
            runner.progress.end(outcome(row, settings.labels))
        if results.peaks and any(trust.exceeds_limit(row, settings.precision) for row in results.rows):
            results.peaks = results.peaks.higher(runner.measure_peaks([row.case for row in rows]))
            for row in results.rows:
                row.bounds = machine.bounds(row.case, results.peaks)
        if settings.model is not None:
            results.model = ModelResult(settings=settings.model, text=describe_text(text))
            runner.run_model(text, results.model)
            runner.progress.end(outcome(results.model, settings.labels))
    finally:
        runner.close()


def outcome(result: Row | ModelResult, labels: dict[str, str]) -> str:
    """Summarise a result in a few words."""
    if not result.ok:
        return result.describe()
    if isinstance(result, ModelResult):
        speedup = result.speedup()
        return f"speed-up {speedup.median:.2f}×" if speedup else "done"
    words = {**METRIC_WORDS, "stream": "inference"}
    parts = [f"{word} {s.median:.2f}×" for metric, word in words.items() if (s := result.speedup(metric))]
    slower = [(side, result.slowdown("inference", side, "mean")) for side in SIDES]
    parts += [f"inference of {labels[side]} takes {mean:.2f} times as long" for side, mean in slower if mean]
    parts += [f"doubtful: {why}" for why in trust.doubts_of_row(result)]
    return ", ".join([*parts, *(f"{name} {peer.status}" for name, peer in result.peers.items() if not peer.ok)])


# Axes of the scaling mode: label, description of the other sizes, values.
AXES: dict[str, tuple[str, str, Sequence[int]]] = {
    "hidden": ("hidden units H", "B = 1, T = 100, I = H", (32, 64, 128, 256, 512, 1024)),
    "batch": ("batch rows B", "T = 50, I = H = 256", (1, 2, 4, 8, 16, 32, 64)),
    "steps": (
        "steps T, in chunks of at most 1000",
        "B = 1, I = H = 128, state carried over",
        (100, 1000, 10_000, 100_000),
    ),
    "threads": ("threads", "16×100×256", ()),
}
CHUNK = 1000  # steps of one pass without a graph, which limits the memory of long sequences


def make_points(settings: Settings, threads: int) -> list[Row]:
    """Return the empty rows of the scaling mode, grouped by number of threads.

    Rows use ``threads`` threads, except those of the axis ``threads``, which go from one to that number and are omitted
    if it is one. A quick run keeps every third value and the last.
    """
    cells, dtype = list(dict.fromkeys(case.cell for case in settings.cases)), settings.cases[0].dtype
    shrink, points = 3 if settings.quick else 1, []
    for cell in cells:
        for axis, (_, _, values) in AXES.items():
            for value in [v for n, v in enumerate(values) if n % shrink == 0 or n == len(values) - 1]:
                chunk = min(value, CHUNK)
                case = {
                    "hidden": Case(cell, Shape(1, 100, value, value), dtype),
                    "batch": Case(cell, Shape(value, 50, 256, 256), dtype),
                    "steps": Case(cell, Shape(1, chunk, 128, 128), dtype, chunks=value // chunk),
                }[axis]
                points.append(Row(case=case, axis=axis, value=value, threads=threads))
    for count in thread_counts(threads) if threads > 1 else ():
        cases = [Case(cell, Shape(16, 100, 256, 256), dtype) for cell in cells]
        points += [Row(case=case, axis="threads", value=count, threads=count) for case in cases]
    return points


def thread_counts(most: int) -> list[int]:
    """Return 1, 2, 4, … below ``most``, and ``most``."""
    return [*(2**power for power in range(most.bit_length()) if 2**power < most), most]
