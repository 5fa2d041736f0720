"""The command line of a fuzzer: seeds over processes, crashes and hangs as findings, minimisation, a report.

A fuzzer is a module with `Case`, `drawn(seed)`, `simpler(case)` and `check(case)`; see `differential`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from . import known
from .foreign import crashed_in_foreign_code
from .worker import as_record

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 180.0  # seconds for a case before it counts as a hang; compiling a custom cell's kernels is part of it
MINIMISE = 120.0  # seconds for the simplification of a finding


class Worker:
    """A process that checks cases of one fuzzer; it survives crashes and is restarted after a hang."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.process: subprocess.Popen[str] | None = None
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - for as long as the worker

    def check(self, case: Any) -> list[str]:
        """Return the errors of a case; a crash or a hang is one."""
        process = self.process or self._start()
        end = self.errors.seek(0, os.SEEK_END)
        self._write(json.dumps(as_record(case)))
        ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
        if not ready:
            self.close()
            return [f"hang: no result within {PATIENCE:.0f} s"]
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended: {self._errors_from(end)}")
        found = json.loads(line)
        if not found or not found[0].startswith("crash"):
            return found
        errors = self._errors_from(end)
        return [] if crashed_in_foreign_code(errors) else [f"{found[0]}\n{errors}"]

    def refresh(self) -> None:
        """Make sure that the next case runs in a process that has run none."""
        if self.process is not None:
            self._write("")

    def _write(self, line: str) -> None:
        assert self.process is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _errors_from(self, position: int) -> str:
        self.errors.seek(position)
        return self.errors.read().partition("Extension modules")[0][:1500]

    def _start(self) -> subprocess.Popen[str]:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker", self.target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
        return self.process

    def close(self) -> None:
        """End the process and its child."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def minimised(fuzzer: Any, worker: Worker, case: Any, problems: list[str], seconds: float = MINIMISE):
    """Return the simplest case found that still fails in the same way, and its problems."""
    end, kind = time.monotonic() + seconds, _kind(problems)
    smaller = True
    while smaller and time.monotonic() < end:
        smaller = False
        for candidate in fuzzer.simpler(case):
            if time.monotonic() > end:
                break
            found = worker.check(candidate)
            if found and _kind(found) == kind and not known.reason(candidate, found):
                case, problems, smaller = candidate, found, True
                break
    return case, problems


def _kind(problems: list[str]) -> str:
    """Return the kind of a failure, so that a simplification does not turn into another one."""
    first = problems[0]
    for kind in ("crash", "hang", "the check failed", "invalid call", "expected"):
        if first.startswith(kind):
            return kind
    for kind in (" error ", "requires_grad", "contiguous", "NaN in", "inf in", "None"):
        if kind in first:
            return kind
    return "other"


def report(target: str, seed: int | None, case: Any, problems: list[str]) -> str:
    lines = [f"== {target} seed {seed}: {problems[0][:2000]}", *(f"   {p[:500]}" for p in problems[1:6])]
    origin = f"python -m tests.fuzz.{target} --seed {seed}\n" if seed is not None else ""
    record = json.dumps(as_record(case))
    return "\n".join([*lines, f"{origin}python -m tests.fuzz.{target} --case '{record}'", str(case), ""])


def main_of_all(targets: tuple[str, ...]) -> int:
    """Run the command line without a choice of cases: all fuzzers in turn, each for its share of the time."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Run all fuzzers on all cores.")
    parser.add_argument("--minutes", type=float, default=10.0, help="minutes for all of them together")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--log", help="append findings to this file")
    given = parser.parse_args()
    shared = ["--minutes", str(given.minutes / len(targets)), "--processes", str(given.processes)]
    shared += ["--log", given.log] if given.log else []
    return max([main(target, shared) for target in targets])


def main(target: str, arguments: list[str] | None = None) -> int:
    options = _arguments(target, arguments)
    fuzzer = importlib.import_module(f"{__package__}.{target}")
    if options.seed is not None or options.case is not None:
        case = fuzzer.drawn(options.seed) if options.case is None else fuzzer.Case(**json.loads(options.case))
        return _one(fuzzer, target, options, case)
    return _many(fuzzer, target, options)


def _arguments(target: str, arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m tests.fuzz.{target}", description=__doc__)
    parser.add_argument("--seed", type=int, help="run one case, that of the seed")
    parser.add_argument("--case", help="run one case, given by its fields as JSON")
    parser.add_argument("--here", action="store_true", help="run it in this process, for a debugger")
    parser.add_argument("--minimise", action="store_true", help="simplify it if it fails")
    parser.add_argument("--minutes", type=float, default=1.0, help="minutes for which to draw cases")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--first", type=int, default=None, help="first seed; drawn from the clock if not given")
    parser.add_argument("--count", type=int, default=None, help="number of seeds, in place of --minutes")
    parser.add_argument("--known", action="store_true", help="report known faults, too")
    parser.add_argument("--log", type=Path, help="append findings to this file")
    return parser.parse_args(arguments)


def _one(fuzzer: Any, target: str, options: argparse.Namespace, case: Any) -> int:
    print(case, flush=True)
    if options.here:
        problems = fuzzer.check(case)
    else:
        worker = Worker(target)
        problems = worker.check(case)
        if problems and options.minimise:
            case, problems = minimised(fuzzer, worker, case, problems)
        worker.close()
    print(report(target, options.seed, case, problems) if problems else "passed")
    return 1 if problems else 0


def _many(fuzzer: Any, target: str, options: argparse.Namespace) -> int:
    first = options.first if options.first is not None else int(time.time() * 1000) % 1_000_000_000
    end = None if options.count is not None else time.monotonic() + 60 * options.minutes
    tally = {"cases": 0, "known": 0, "found": 0}
    lock = threading.Lock()

    def take() -> int | None:
        with lock:
            done = tally["cases"]
            if (end is not None and time.monotonic() > end) or (options.count is not None and done >= options.count):
                return None
            tally["cases"] += 1
            return first + done

    def work() -> None:
        worker = Worker(target)
        while (seed := take()) is not None:
            _seed(fuzzer, target, options, worker, seed, tally, lock)
        worker.close()

    threads = [threading.Thread(target=work) for _ in range(options.processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{target}: {tally['cases']} cases from seed {first}, {tally['found']} failures, {tally['known']} known")
    return 1 if tally["found"] else 0


def _seed(fuzzer: Any, target: str, options: argparse.Namespace, worker: Worker, seed: int, tally: dict, lock) -> None:
    case = fuzzer.drawn(seed)
    problems = worker.check(case)
    if not problems:
        return
    if not options.known and known.reason(case, problems):
        with lock:
            tally["known"] += 1
        return
    worker.refresh()  # without state of earlier cases
    again = worker.check(case)
    if not again:
        text = f"== {target} seed {seed}, only after other cases (from seed {seed} backwards): {problems[0][:1500]}\n"
    else:
        case, problems = minimised(fuzzer, worker, case, again)
        text = report(target, seed, case, problems)
    with lock:
        tally["found"] += 1
        print(text, flush=True)
        if options.log is not None:
            with options.log.open("a") as log:
                log.write(text + "\n")
