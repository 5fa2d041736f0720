"""Progress on the error stream: a bar on a terminal, plain lines elsewhere.

The bar is drawn only between two commands to the workers: one that refreshes itself would take time from what is
measured.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Reporter:
    """Counts jobs (rows and the language model). Use as a context manager."""

    def __init__(self, jobs: int, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.jobs = jobs
        self.done = 0
        self.name = ""
        self._bar: Progress | None = None
        self._task: Any = None
        if self.console.is_terminal:
            columns = (
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.description}"),
            )
            self._bar = Progress(*columns, console=self.console, auto_refresh=False, transient=True)
            self._task = self._bar.add_task("starting", total=jobs)

    def __enter__(self) -> Reporter:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def begin(self, name: str) -> None:
        """A job starts."""
        self.name = name
        self.note("")

    def note(self, text: str) -> None:
        """What the current job is doing."""
        if self._bar:
            self._bar.update(self._task, description=f"{self.name}  {text}")
            self._bar.refresh()

    def end(self, outcome: str) -> None:
        """The current job has ended."""
        self.done += 1
        line = f"[{self.done}/{self.jobs}] {self.name}: {outcome}"
        if self._bar:
            self._bar.update(self._task, completed=self.done)
            self._bar.refresh()
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
