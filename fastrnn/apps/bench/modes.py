"""What ``fastrnn bench`` can do, each with its way from settings to results, text and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fastrnn.apps.bench import busy, report, scaling
from fastrnn.apps.bench.environment import describe
from fastrnn.apps.bench.figures import format_speedup, labels, side_labels
from fastrnn.apps.bench.progress import Reporter
from fastrnn.apps.bench.results import Results
from fastrnn.apps.bench.runner import CaseResult, Runner, Settings, new_model_result

if TYPE_CHECKING:
    from rich.console import Console

_WORDS = {"failed": "FAILED parity, ", "error": "ERROR, ", "skipped": "skipped, "}


class _Found(Protocol):
    complete: bool

    @property
    def problems(self) -> list[str]:
        """What makes the run a failure, one line each."""

    def as_dict(self) -> dict[str, Any]:
        """For the JSON."""


class Mode(Protocol):
    """One run."""

    @property
    def name(self) -> str:
        """Of the files."""

    @property
    def has_picture(self) -> bool:
        """Whether `draw` draws anything."""

    @property
    def results(self) -> Any:
        """A `_Found` that grows while the run goes on, so that an interrupted run has something to show."""

    def measure(self) -> None:
        """Fill the results. KeyboardInterrupt passes through, with all processes gone."""

    def markdown(self) -> str:
        """The report."""

    def show(self, console: Console) -> None:
        """The report for the terminal."""

    def draw(self, paths: Sequence[Path]) -> None:
        """Write the picture to every path."""


def _outcome(row: CaseResult) -> str:
    if row.status != "ok":
        return _WORDS[row.status] + row.message
    words = {"total": "training", "inference": "inference", "stream": "inference"}
    speedups = (f"{word} {format_speedup(row.speedup(m))}" for m, word in words.items() if m in row.case.metrics)
    broken = [name for name, peer in row.peers.items() if peer.status != "ok"]
    return ", ".join([*speedups, *(f"{name} {row.peers[name].status}" for name in broken)])


def _note_engines(environment: dict[str, Any], started: dict[str, Any]) -> None:
    """Which engines run with how many threads, by side."""
    environment["threads"] = started["baseline"]["threads"]
    environment["engines"] = started


class TableMode:
    """Every row of the table, single steps, the language model."""

    name, has_picture = "bench", True

    def __init__(self, settings: Settings, environment: dict[str, Any], text: bytes) -> None:
        self.results = Results(settings, environment)
        self.text = text

    def measure(self) -> None:
        results, settings = self.results, self.results.settings
        jobs = len(settings.cases) + len(settings.steps) + (settings.model is not None)
        with Runner(settings) as runner, Reporter(jobs) as reporter:
            _note_engines(results.environment, runner.start())
            if settings.device == "cpu":
                results.peaks = runner.measure_limits()
            for cases, rows in ((settings.cases, results.cases), (settings.steps, results.steps)):
                for case in cases:
                    reporter.begin(case.name)
                    row = runner.run_case(case, reporter.note)
                    rows.append(row)
                    reporter.end(_outcome(row))
            if settings.model is not None:
                self._measure_model(runner, reporter)

    def _measure_model(self, runner: Runner, reporter: Reporter) -> None:
        assert runner.settings.model is not None
        reporter.begin("language model")
        self.results.model = model = new_model_result(runner.settings.model, self.text)
        try:
            runner.run_model(self.text, model, reporter.note)
        except KeyboardInterrupt:
            model.status, model.message = "interrupted", "interrupted"
            raise
        outcome = model.message or f"speed-up {format_speedup(model.speedup())}"
        reporter.end(_WORDS.get(model.status, "") + outcome)

    def markdown(self) -> str:
        return report.to_markdown(self.results)

    def show(self, console: Console) -> None:
        report.print_report(self.results, console)

    def draw(self, paths: Sequence[Path]) -> None:
        from fastrnn.apps.bench import plot

        plot.save(self.results, paths)


class _PlainReport:
    """A report that is a title, tables and a few lines."""

    results: Any
    title = ""

    def _tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        raise NotImplementedError

    def _lines(self) -> list[str]:
        lines = list(self.results.problems)
        return lines if self.results.complete else ["The run was interrupted: this is a part of it.", *lines]

    def _header(self) -> str:
        environment = self.results.environment
        return f"{describe(environment)}, {environment['date']}"

    def _explanation(self) -> str:
        return ""

    def markdown(self) -> str:
        parts = [f"# {self.title}", self._header()]
        parts += ["\n".join(f"- {line}" for line in self._lines())] if self._lines() else []
        for title, header, rows in self._tables():
            parts += [f"## {title}", report.markdown_table(header, rows)]
        return "\n\n".join([*parts, self._explanation()]).rstrip() + "\n"

    def show(self, console: Console) -> None:
        for title, header, rows in self._tables():
            report.print_table(console, title, header, rows)
        for line in self._lines():
            console.print(line, markup=False, highlight=False, style="bold red")
        console.print(self._header(), markup=False, highlight=False, style="dim")


class BusyMode(_PlainReport):
    """Each engine alone and beside competitors."""

    name, has_picture = "busy", False

    def __init__(self, settings: Settings, environment: dict[str, Any], competitors: int) -> None:
        self.results: busy.BusyResults = busy.BusyResults(settings, environment, competitors)
        self.title = f"Each engine beside {busy.count_processes(competitors)}"

    def measure(self) -> None:
        results, settings = self.results, self.results.settings
        with Runner(settings) as runner, Reporter(len(settings.cases)) as reporter:
            _note_engines(results.environment, runner.start())
            for case in settings.cases:
                reporter.begin(case.name)
                row = busy.run_row(runner, case, results.competitors, results.seconds, reporter.note)
                results.rows.append(row)
                reporter.end(self._row_outcome(row))

    def _row_outcome(self, row: busy.BusyRow) -> str:
        if row.checked.status != "ok":
            return _WORDS[row.checked.status] + row.checked.message
        means = (row.slowdown("inference", side, "mean") for side in ("baseline", "candidate"))
        names = labels(self.results)
        return "inference slower " + ", ".join(f"{n} {m:.2f}×" for n, m in zip(names, means, strict=True) if m)

    def _tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        return busy.to_tables(self.results, side_labels(self.results))

    def _explanation(self) -> str:
        return busy.EXPLANATION.format(seconds=self.results.seconds)

    def draw(self, paths: Sequence[Path]) -> None:
        """Nothing: two numbers for each row are a table."""


class ScalingMode(_PlainReport):
    """Time per step against one size at a time."""

    name, has_picture = "scaling", True
    title = "Time per step"

    def __init__(self, settings: Settings, environment: dict[str, Any], quick: bool) -> None:
        self.results: scaling.ScalingResults = scaling.ScalingResults(settings, environment)
        self.quick = quick

    def measure(self) -> None:
        results, settings = self.results, self.results.settings
        cells = list(dict.fromkeys(case.cell for case in settings.cases))
        runner = Runner(scaling.settings_of(settings, settings.threads))
        try:
            started = runner.start()
            _note_engines(results.environment, started)
            threads = int(started["baseline"]["threads"])
            points = list(scaling.make_points(cells, settings.cases[0].dtype, threads, 3 if self.quick else 1))
            with Reporter(len(points)) as reporter:
                running: int | None = threads
                for point in points:
                    if point.threads != running:
                        runner.close()
                        runner = Runner(scaling.settings_of(settings, point.threads))
                        running = point.threads
                    reporter.begin(f"{point.case.name}, {point.axis} {point.value}")
                    row = runner.run_case(point.case, reporter.note)
                    results.points.append((point, row))
                    reporter.end(_outcome(row))
        finally:
            runner.close()

    def _tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        return scaling.to_tables(self.results, side_labels(self.results))

    def draw(self, paths: Sequence[Path]) -> None:
        from fastrnn.apps.bench import plot_scaling

        plot_scaling.save(self.results, paths)
