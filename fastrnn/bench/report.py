"""The table and the text around it, for the terminal and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fastrnn.bench.engines import find_engine
from fastrnn.bench.environment import describe
from fastrnn.bench.ratios import MINIMUM_ROUNDS, Speedup
from fastrnn.bench.results import Results, Summary
from fastrnn.bench.runner import SIDES, CaseResult, ModelResult

if TYPE_CHECKING:
    from rich.console import Console

NOTHING = "–"
_MIB = 2**20
_WORDS = {"failed": "FAILED parity", "error": "ERROR", "skipped": "skipped"}
_BAD = (_WORDS["failed"], _WORDS["error"])

EXPLANATION = (
    "Each row was first checked against torch.nn in float64; a row that fails shows no speed. Training is forward and "
    "backward together, with gradients of input, state and all parameters; inference is forward under "
    "`torch.no_grad()`. Times are medians over the rounds. A speed-up is the median of the rounds' ratios torch.nn / "
    "{engine}, in brackets the interval in which that median lies with 95 % confidence (the range of all rounds if "
    "there are fewer than nine); `~` marks those that may be no difference at all. Memory is what a training step adds "
    "to the peak of a fresh process."
)


def format_seconds(seconds: float | None) -> str:
    """Three significant digits in µs, ms or s."""
    if seconds is None:
        return NOTHING
    for unit, scale in (("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)):
        value = seconds / scale
        if value < 999.5 or unit == "s":
            digits = max(0, 2 - math.floor(math.log10(float(f"{value:.3g}")))) if value > 0 else 0
            return f"{value:.{digits}f} {unit}"
    raise AssertionError


def format_speedup(speedup: Speedup | None, spread: bool = False) -> str:
    """``2.31×``, with ``spread`` also its interval; ``~`` where it may be nothing."""
    if speedup is None:
        return NOTHING
    text = f"{'~' if speedup.uncertain else ''}{speedup.median:.2f}×"
    return f"{text} ({speedup.interval[0]:.2f}–{speedup.interval[1]:.2f})" if spread else text


def format_memory(size: int | None) -> str:
    """MiB; what is below one MiB is below the resolution too."""
    if size is None:
        return "n/a"
    return "<1" if size < _MIB else f"{size / _MIB:.0f}" if size >= 10 * _MIB else f"{size / _MIB:.1f}"


def labels(results: Results) -> tuple[str, str]:
    """Names of baseline and candidate for people."""
    settings = results.settings
    baseline, candidate = find_engine(settings.baseline).label, find_engine(settings.candidate).label
    return baseline, candidate if candidate != baseline else f"{candidate} again"


def case_header(results: Results) -> list[str]:
    names = labels(results)
    timed = (*names, "speed-up")
    return [
        "B×T×(I×)H",
        "parity",
        *(f"training\n{name}" for name in timed),
        "forward\nspeed-up",
        "backward\nspeed-up",
        *(f"inference\n{name}" for name in timed),
        *(f"MiB\n{name}" for name in names),
    ]


def case_row(row: CaseResult) -> list[str]:
    """Cells of one row; a row without figures says why in its second cell and is otherwise empty."""
    shape = row.case.shape.label.replace("x", "×")
    if row.status != "ok":
        return [shape, _WORDS[row.status], *[NOTHING] * 10]
    return [
        shape,
        "ok",
        *(format_seconds(row.median_seconds("total", side)) for side in SIDES),
        format_speedup(row.speedup("total"), spread=True),
        format_speedup(row.speedup("forward")),
        format_speedup(row.speedup("backward")),
        *(format_seconds(row.median_seconds("inference", side)) for side in SIDES),
        format_speedup(row.speedup("inference"), spread=True),
        *(format_memory(row.memory.get(side)) for side in SIDES),
    ]


def groups(results: Results) -> dict[tuple[str, str], list[CaseResult]]:
    """Rows by (dtype, cell), in the order in which they ran."""
    grouped: dict[tuple[str, str], list[CaseResult]] = {}
    for row in results.cases:
        grouped.setdefault((row.case.dtype, row.case.cell), []).append(row)
    return grouped


SUMMARY_HEADER = ["cell", "rows", "training", "forward", "backward", "inference"]


def summary_rows(summaries: Iterable[Summary]) -> list[list[str]]:
    """Geometric means with lowest and highest, one line per number format and cell."""
    by_group: dict[tuple[str, str], dict[str, Summary]] = {}
    for summary in summaries:
        by_group.setdefault((summary.dtype, summary.cell), {})[summary.metric] = summary
    rows = []
    for (dtype, cell), metrics in by_group.items():
        texts = {name: f"{value.mean:.2f}× ({value.lowest:.2f}–{value.highest:.2f})" for name, value in metrics.items()}
        order = ("total", "forward", "backward", "inference")
        rows.append(
            [
                f"{cell} {dtype}",
                f"{metrics['total'].rows}/{metrics['total'].of}",
                *(texts.get(name, NOTHING) for name in order),
            ]
        )
    return rows


def model_lines(model: ModelResult, names: tuple[str, str]) -> list[str]:
    """What the language model showed, in sentences."""
    settings, text = model.settings, model.text
    lines = [
        f"{settings.layers}-layer LSTM of {settings.hidden} units, embedding {settings.embedding}, "
        f"{settings.batch} streams × {settings.chunk} characters, {len(model.losses['baseline'])} of {settings.steps} "
        f"steps on {text['bytes']:,} bytes ({text['vocabulary']} different), float32."
    ]
    if model.status == "ok" and model.comparison:
        paces = [model.characters_per_second(side) for side in SIDES]
        speeds = ", ".join(f"{name} {pace:,.0f}" for name, pace in zip(names, paces, strict=True) if pace is not None)
        lines.append(f"Characters per second: {speeds}; speed-up {format_speedup(model.speedup(), spread=True)}.")
        ends = model.as_dict()["final_loss"]
        ends_text = ", ".join(f"{name} {ends[side]:.4f}" for name, side in zip(names, SIDES, strict=True))
        lines.append(
            f"Loss at the end (nats per character): {ends_text}. The curves lie within {model.comparison.early:.1e} of "
            f"each other in the first steps and {model.comparison.late:.1e} at the end (relative)."
        )
    elif model.message:
        word = {"failed": "FAILED parity: ", "error": "ERROR: "}.get(model.status, "")
        lines.append(f"{word}{model.message}. No speed is shown.")
    return lines


def notes(results: Results) -> list[str]:
    """Everything that a reader of the table must know: problems, skipped rows, warnings, slower rows."""
    lines = [] if results.complete else ["The run was interrupted: what follows is a part of it."]
    lines += results.problems
    lines += [f"{row.case.name}: skipped, {row.message}" for row in results.cases if row.status == "skipped"]
    warned: dict[str, list[str]] = {}
    for row in results.cases:
        for warning in row.warnings:
            warned.setdefault(warning, []).append(row.case.name)
    lines += [f"warned in {len(names)} rows ({names[0]} …): {text}" for text, names in warned.items()]
    if results.settings.rounds < MINIMUM_ROUNDS:
        lines.append(f"Fewer than {MINIMUM_ROUNDS} rounds: too few to speak of a speed-up.")
    slower = results.slower()
    if slower:
        lines.append(f"Slower than {labels(results)[0]}: " + "; ".join(slower))
    return lines


def to_markdown(results: Results) -> str:
    """The whole report."""
    baseline, candidate = labels(results)
    parts = [f"# {candidate} against {baseline}", describe(results.environment) + f", {results.environment['date']}"]
    parts += ["\n".join(f"- {line}" for line in notes(results))] if notes(results) else []
    summary = summary_rows(results.summaries())
    if summary:
        parts += ["## Summary", "Geometric means (lowest–highest row).", _table(SUMMARY_HEADER, summary)]
    for (dtype, cell), rows in groups(results).items():
        parts += [f"## {cell}, {dtype}", _table(case_header(results), [case_row(row) for row in rows])]
    if results.cases:
        parts.append(EXPLANATION.format(engine=candidate))
    if results.model:
        parts += ["## Character language model", *model_lines(results.model, (baseline, candidate))]
    return "\n\n".join(parts) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("\n", " ") for cell in line) + " |" for line in lines)


def print_report(results: Results, console: Console) -> None:
    """The same for the terminal."""
    from rich.markup import escape
    from rich.table import Table

    def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        shown = Table(title=title, title_justify="left", header_style="bold", pad_edge=False)
        for number, name in enumerate(header):
            shown.add_column(name, justify="left" if number < 1 else "right", overflow="fold")
        for cells in rows:
            shown.add_row(*(escape(cell) for cell in cells), style="bold red" if cells[1] in _BAD else None)
        console.print(shown)

    for (dtype, cell), rows in groups(results).items():
        table(f"{cell}, {dtype}", case_header(results), [case_row(row) for row in rows])
    summary = summary_rows(results.summaries())
    if summary:
        table("geometric mean of speed-ups (lowest–highest row)", SUMMARY_HEADER, summary)
    if results.model:
        console.print("character language model", style="bold")
        for line in model_lines(results.model, labels(results)):
            console.print(line, markup=False, highlight=False)
    for line in notes(results):
        bad = line in results.problems
        console.print(line, markup=False, highlight=False, style="bold red" if bad else None)
    console.print(describe(results.environment), markup=False, highlight=False, style="dim")
