"""Ctrl-C, SIGTERM and SIGHUP as a wish to stop, which the training loop grants after the step that it is in."""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType, TracebackType
from typing import Any


class StopSignals:
    """While it is entered, the first SIGINT, SIGTERM or SIGHUP is remembered (SIGHUP not where it is ignored, as under
    nohup). After it SIGINT ends the process at once, as if there was no handler, even inside of a kernel; a SIGTERM
    that is repeated, as launchers do, changes nothing.

    Attributes:
        signal: the first one's number, None so far.
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
        """Whether to stop."""
        return self.signal is not None

    def _remember(self, number: int, frame: FrameType | None) -> None:
        first, self.signal = self.signal is None, self.signal or number
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if first and self._message:
            with contextlib.suppress(OSError):  # not print(), which the handler may have interrupted
                os.write(2, f"{self._message}\n".encode())
