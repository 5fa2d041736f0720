"""The parent's end of a worker process."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from typing import Any

from fastrnn.apps.bench.worker import read_message, write_message

_PROGRAM = """\
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from fastrnn.apps.bench.worker import main
main(sys.argv[2])
"""
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class WorkerError(Exception):
    """A command raised in the worker, which is still alive."""


class WorkerDiedError(Exception):
    """The worker has ended or does not answer any more."""


class Worker:
    """A process that runs one engine."""

    def __init__(self, engine: str, threads: int | None, timeout: float = 900.0, precision: str | None = None) -> None:
        """Start the process.

        Args:
            engine: a name that `fastrnn.apps.bench.engines.find_engine` knows.
            threads: the engine's threads, None for torch's default.
            timeout: most seconds a command may take.
            precision: for ``torch.set_float32_matmul_precision``; None leaves it alone.
        """
        self.engine = engine
        self.timeout = timeout
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        environment = dict(os.environ)
        if threads is not None:
            environment.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
        self._process = subprocess.Popen(
            # The same import path as here, so that it is the same fastrnn.
            [sys.executable, "-c", _PROGRAM, json.dumps(sys.path), engine],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
        )
        self._answers: queue.Queue[Any] = queue.Queue()
        # A thread reads because waiting for a pipe with a time limit is not portable.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._send("start", {"threads": threads, "precision": precision})
        self._starting = True
        self.started: dict[str, Any] = {}

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            while True:
                self._answers.put(read_message(self._process.stdout))
        except (EOFError, OSError, ValueError):
            self._answers.put(None)

    def call(self, command: str, **arguments: Any) -> Any:
        """Send a command and wait for its answer. Raises WorkerError or WorkerDiedError."""
        self.wait_until_started()
        self._send(command, arguments)
        return self._receive(command)

    def wait_until_started(self) -> None:
        """Loading torch takes seconds: a worker does that by itself, and is waited for before its first command."""
        if self._starting:
            self._starting = False
            self.started = self._receive("start")

    def _send(self, command: str, arguments: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        # A worker that has died cannot be written to; there will be no answer either, which _receive reports.
        with contextlib.suppress(OSError, ValueError):
            write_message(self._process.stdin, (command, arguments))

    def _receive(self, command: str) -> Any:
        try:
            answer = self._answers.get(timeout=self.timeout)
        except queue.Empty:
            self.kill()
            raise WorkerDiedError(f"{self.engine} worker: no answer to {command!r} in {self.timeout:.0f} s") from None
        if answer is None:
            self._answers.put(None)  # for whoever asks the dead next
            raise WorkerDiedError(self._obituary(command))
        ok, value = answer
        if not ok:
            message, trace = value
            raise WorkerError(f"{self.engine}: {message}") from RuntimeError(trace)
        return value

    def _obituary(self, command: str) -> str:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.kill()
            code = None
        how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        last = f"; its last words: {lines[-1]}" if lines else ""
        return f"{self.engine} worker: ended {how} during {command!r}{last}"

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()
        self._reader.join(timeout=5)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._log.close()
