"""Handling of Ctrl-C, SIGTERM and SIGHUP: the training loop stops after the current step."""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType, TracebackType
from typing import Any


class StopSignals:
    """Context that records the first SIGINT, SIGTERM or SIGHUP (SIGHUP unless it is ignored, as under nohup).

    A following SIGINT ends the process at once, as without a handler, even inside a kernel; a repeated SIGTERM, which
    launchers send, has no effect.

    Attributes:
        signal: the number of the first signal, None so far.
    """

    def __init__(self, message: str) -> None:
        self.signal: int | None = None
        self._message = message
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Return True if the run should stop."""
        return self.signal is not None

    def _remember(self, number: int, frame: FrameType | None) -> None:
        first, self.signal = self.signal is None, self.signal or number
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if first and self._message:
            with contextlib.suppress(OSError):  # print() is not safe in a signal handler
                os.write(2, f"{self._message}\n".encode())
