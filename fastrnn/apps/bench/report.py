"""The table and the text around it, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fastrnn.apps.bench.environment import describe
from fastrnn.apps.bench.figures import (
    NOTHING,
    WORDS,
    format_memory,
    format_seconds,
    format_share,
    format_speedup,
    labels,
    multiply_signs,
)
from fastrnn.apps.bench.ratios import MINIMUM_ROUNDS
from fastrnn.apps.bench.report_engines import (
    PEERS_EXPLANATION,
    STEPS_EXPLANATION,
    EngineTable,
    peer_notes,
    peer_tables,
    step_table,
)
from fastrnn.apps.bench.results import Results, Summary
from fastrnn.apps.bench.runner import SIDES, CaseResult, ModelResult

if TYPE_CHECKING:
    from rich.console import Console

_BAD = (WORDS["failed"], WORDS["error"])

EXPLANATION = (
    "Each row was first checked against torch.nn in float64; a row that fails shows no speed. Training is forward and "
    "backward together, with gradients of input, state and all parameters; inference is forward under "
    "`torch.no_grad()`. Times are medians over the rounds. A speed-up is the median of the rounds' ratios torch.nn / "
    "{engine}, in brackets the interval in which that median lies with 95 % confidence (the range of all rounds if "
    "there are fewer than nine); `~` marks those that may be no difference at all. Memory is what a training step adds "
    "to the peak of a fresh process. In brackets behind `ok`: the largest error of any tensor in units of torch.nn's "
    "own. Limit: the share of the machine's limit that {engine} reaches, namely a lower bound on the time "
    "(multiply-adds at the pace of the library's best large product, or the weights read again in each step at the "
    "measured reading speed, whichever takes longer) divided by the measured time."
)


CUDA_EXPLANATION = (
    "Both engines ran on the GPU: every reading of the clock waits until it has done its work, so that a training step "
    "is waited for twice and a block of inference once. Memory is the GPU's, there is no limit."
)


def case_header(results: Results) -> list[str]:
    names = labels(results)
    timed = (*names, "speed-up")
    return [
        "B×T×(I×)H",
        "parity",
        *(f"training\n{name}" for name in timed),
        "training\nlimit",
        "forward\nspeed-up",
        "backward\nspeed-up",
        *(f"inference\n{name}" for name in timed),
        "inference\nlimit",
        *(f"MiB\n{name}" for name in names),
    ]


def case_row(row: CaseResult) -> list[str]:
    """Cells of one row; a row without figures says why in its second cell and is otherwise empty."""
    shape = multiply_signs(row.case.shape.label)
    if row.status != "ok":
        return [shape, WORDS[row.status], *[NOTHING] * 12]
    return [
        shape,
        f"ok ({row.parity.ratio:.1f})" if row.parity else "ok",
        *(format_seconds(row.median_seconds("total", side)) for side in SIDES),
        format_speedup(row.speedup("total"), spread=True),
        format_share(row.limit_share("total")),
        format_speedup(row.speedup("forward")),
        format_speedup(row.speedup("backward")),
        *(format_seconds(row.median_seconds("inference", side)) for side in SIDES),
        format_speedup(row.speedup("inference"), spread=True),
        format_share(row.limit_share("inference")),
        *(format_memory(row.memory.get(side)) for side in SIDES),
    ]


def groups(results: Results) -> dict[tuple[str, str], list[CaseResult]]:
    """Rows by (dtype, cell), in the order in which they ran."""
    grouped: dict[tuple[str, str], list[CaseResult]] = {}
    for row in results.cases:
        grouped.setdefault((row.case.dtype, row.case.cell), []).append(row)
    return grouped


def _title(results: Results, dtype: str, cell: str) -> str:
    device = results.settings.device
    return f"{cell}, {dtype}" + ("" if device == "cpu" else f", {device}")


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
    lines += peer_notes(results)
    warned: dict[str, list[str]] = {}
    for row in results.cases:
        for warning in row.warnings:
            warned.setdefault(warning, []).append(row.case.name)
    lines += [f"warned in {len(names)} rows ({names[0]} …): {text}" for text, names in warned.items()]
    if results.settings.precision != "highest":
        lines.append(
            f"{labels(results)[1]} ran with torch.set_float32_matmul_precision({results.settings.precision!r}), "
            f"{labels(results)[0]} with 'highest'."
        )
    if results.settings.rounds < MINIMUM_ROUNDS:
        lines.append(f"Fewer than {MINIMUM_ROUNDS} rounds: too few to speak of a speed-up.")
    slower = results.slower()
    if slower:
        lines.append(f"Slower than {labels(results)[0]}: " + "; ".join(slower))
    return lines


def header_lines(results: Results) -> list[str]:
    """What ran where, in a few lines."""
    lines = [describe(results.environment) + f", {results.environment['date']}"]
    engines = results.environment.get("engines", {})
    peers = [f"{name} {engines[name]['version']}" for name in results.settings.peers if name in engines]
    if peers:
        lines.append("Peers: " + ", ".join(peers))
    if results.peaks:
        lines.append(results.peaks.describe())
    return lines


def to_markdown(results: Results) -> str:
    """The whole report."""
    baseline, candidate = labels(results)
    parts = [f"# {candidate} against {baseline}", *header_lines(results)]
    parts += ["\n".join(f"- {line}" for line in notes(results))] if notes(results) else []
    summary = summary_rows(results.summaries())
    if summary:
        parts += ["## Summary", "Geometric means (lowest–highest row).", markdown_table(SUMMARY_HEADER, summary)]
    for (dtype, cell), rows in groups(results).items():
        parts += [
            f"## {_title(results, dtype, cell)}",
            markdown_table(case_header(results), [case_row(row) for row in rows]),
        ]
    if results.cases:
        parts.append(EXPLANATION.format(engine=candidate))
    if results.settings.device == "cuda":
        parts.append(CUDA_EXPLANATION)
    steps = step_table(results)
    if steps:
        parts += ["## Single steps", markdown_table(steps.header, steps.rows), STEPS_EXPLANATION]
    tables = peer_tables(results)
    if tables:
        parts += ["## Other libraries", PEERS_EXPLANATION]
    for table in tables:
        parts += [f"### {table.title.capitalize()}", markdown_table(table.header, table.rows)]
    if results.model:
        parts += ["## Character language model", *model_lines(results.model, (baseline, candidate))]
    return "\n\n".join(parts) + "\n"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("\n", " ") for cell in line) + " |" for line in lines)


def print_table(console: Console, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """One table on the terminal, bad rows in red."""
    from rich.markup import escape
    from rich.table import Table

    shown = Table(title=title, title_justify="left", header_style="bold", pad_edge=False)
    for number, name in enumerate(header):
        shown.add_column(name, justify="left" if number < 1 else "right", overflow="fold")
    for cells in rows:
        shown.add_row(*(escape(cell) for cell in cells), style="bold red" if cells[1] in _BAD else None)
    console.print(shown)


def print_report(results: Results, console: Console) -> None:
    """The same for the terminal."""
    tables = [
        EngineTable(_title(results, dtype, cell), case_header(results), [case_row(row) for row in rows])
        for (dtype, cell), rows in groups(results).items()
    ]
    summary = summary_rows(results.summaries())
    if summary:
        tables.append(EngineTable("geometric mean of speed-ups (lowest–highest row)", SUMMARY_HEADER, summary))
    steps = step_table(results)
    tables += [steps] if steps else []
    for table in [*tables, *peer_tables(results)]:
        print_table(console, table.title, table.header, table.rows)
    if results.model:
        console.print("character language model", style="bold")
        for line in model_lines(results.model, labels(results)):
            console.print(line, markup=False, highlight=False)
    for line in notes(results):
        bad = line in results.problems
        console.print(line, markup=False, highlight=False, style="bold red" if bad else None)
    for line in header_lines(results):
        console.print(line, markup=False, highlight=False, style="dim")
