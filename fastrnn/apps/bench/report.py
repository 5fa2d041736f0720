"""Report of a run: tables and text, for the terminal and as Markdown."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastrnn.apps.bench import trust
from fastrnn.apps.bench.engines import ENGINES
from fastrnn.apps.bench.environment import describe
from fastrnn.apps.bench.explanations import (
    BUSY_EXPLANATION,
    CUDA_EXPLANATION,
    EXPLANATION,
    PEERS_EXPLANATION,
    STEPS_EXPLANATION,
)
from fastrnn.apps.bench.ratios import MINIMUM_ROUNDS, Speedup, geometric_mean
from fastrnn.apps.bench.results import BEST_PEER, METRIC_WORDS, SIDES, WORDS, ModelResult, Results, Row
from fastrnn.apps.bench.runner import AXES

if TYPE_CHECKING:
    from rich.console import Console

NOTHING = "–"
MIB = 2**20
UNTRUSTED = "Unreliable times"


def format_seconds(seconds: float | None) -> str:
    """Format with three significant digits in µs, ms or s."""
    if seconds is None:
        return NOTHING
    unit, scale = next((u, s) for u, s in (("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)) if seconds / s < 999.5 or u == "s")
    value = float(f"{seconds / scale:.3g}")
    return f"{value:.{max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0}f} {unit}"


def format_speedup(speedup: Speedup | None, spread: bool = False) -> str:
    """Format as ``2.31×``, with ``spread`` also its interval; ``~`` if it may not differ from 1."""
    if speedup is None:
        return NOTHING
    text = f"{'~' if speedup.uncertain else ''}{speedup.median:.2f}×"
    return f"{text} ({speedup.interval[0]:.2f}–{speedup.interval[1]:.2f})" if spread else text


def format_memory(size: int | None) -> str:
    """Format in MiB; less than one MiB is below the resolution."""
    if size is None:
        return "n/a"
    return "<1" if size < MIB else f"{size / MIB:.{0 if size >= 10 * MIB else 1}f}"


def format_share(share: float | None) -> str:
    """Format as per cent with two digits."""
    return NOTHING if share is None else f"{100 * share:.{0 if share >= 0.0995 else 1}f} %"


def format_slowdown(median: float | None, mean: float | None) -> str:
    return NOTHING if median is None or mean is None else f"{median:.2f}× ({mean:.2f}×)"


def format_means(means: dict[str, Any] | None) -> str:
    return f"{means['mean']:.2f}× ({means['lowest']:.2f}–{means['highest']:.2f})" if means else NOTHING


def multiply_signs(text: str) -> str:
    """Return ``16x100x256`` with multiplication signs."""
    return re.sub(r"(?<=\d)x(?=\d)", "×", text)


def _parity(row: Row) -> str:
    return (f"ok ({row.parity.ratio:.1f})" if row.parity else "ok") + (" ?" if trust.doubts_of_row(row) else "")


def count_processes(count: int) -> str:
    return f"{count} busy process{'es' if count != 1 else ''}"


@dataclass
class Section:
    """A title, a table if there is a header, and lines; ``explanation`` appears only in Markdown."""

    title: str
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    explanation: str = ""


def table(
    title: str, header: list[str], rows: Sequence[Row], cells: Callable[[Row], list[str]], explanation: str = ""
) -> Section:
    """Make a table with a line for each row; a row without results gives the reason in its second cell."""
    empty = [NOTHING] * (len(header) - 2)
    lines = [cells(row) if row.ok else [cells(row)[0], WORDS[row.status], *empty] for row in rows]
    return Section(title, header, lines, explanation=explanation)


def _times(row: Row, metric: str, sides: Iterable[str], per_step: bool = False) -> list[str]:
    """Return the time of each side; for a peer that failed, the reason."""
    seconds = {side: row.per_step(metric, side) if per_step else row.median(metric, side) for side in sides}
    failed = {name: WORDS[peer.status] for name, peer in row.peers.items() if not peer.ok}
    return [failed.get(side) or format_seconds(value) for side, value in seconds.items()]


def _ratios(row: Row, metric: str) -> tuple[str, str]:
    """Return the speed-up over torch.nn and the share of the limit."""
    return format_speedup(row.speedup(metric), spread=True), format_share(row.limit_share(metric))


def _case_table(title: str, rows: Sequence[Row], labels: dict[str, str]) -> Section:
    """Make the table of times, speed-ups, limits and memory of the two engines."""
    names = [labels[side] for side in SIDES]

    def heads(word: str) -> list[str]:
        return [f"{word}\n{name}" for name in [*names, "speed-up", "limit"]]

    def figures(row: Row, metric: str) -> list[str]:
        return [*_times(row, metric, SIDES), *_ratios(row, metric)]

    header = [
        "B×T×(I×)H",
        "parity",
        *heads("training"),
        "training\nCPU time",
        "forward\nspeed-up",
        "backward\nspeed-up",
    ]
    header += [*heads("inference"), *(f"MiB\n{name}" for name in names)]
    return table(
        title,
        header,
        rows,
        lambda row: [
            multiply_signs(row.case.shape.label),
            _parity(row),
            *figures(row, "total"),
            format_speedup(row.cpu_speedup("total")),
            format_speedup(row.speedup("forward")),
            format_speedup(row.speedup("backward")),
            *figures(row, "inference"),
            *(format_memory(row.memory.get(side)) for side in SIDES),
        ],
    )


def _engine_table(title: str, rows: Sequence[Row], metric: str, results: Results, explanation: str) -> Section:
    """Make the table of each engine's time, speed-ups and the limit."""
    labels, peers = results.settings.labels, bool(results.settings.peers)

    def cells(row: Row) -> list[str]:
        best = row.best_peer(metric)
        against = f"{format_speedup(row.speedup(metric, best))} ({ENGINES[best].label})" if best else NOTHING
        name = multiply_signs(f"{row.case.cell} {row.case.shape.label}")
        speedup, limit = _ratios(row, metric)
        return [name, *_times(row, metric, labels), speedup, *[against] * peers, limit]

    best = ["against the best peer"] * peers
    header = ["row", *labels.values(), f"against {labels['baseline']}", *best, "limit"]
    return table(title, header, rows, cells, explanation)


def _bench_sections(results: Results) -> list[Section]:
    settings, labels = results.settings, results.settings.labels
    groups = [(dtype, cell, rows) for dtype, cells in results.groups().items() for cell, rows in cells.items()]
    summaries = _summaries(results)
    sections = summaries[:1]
    for dtype, cell, rows in groups:
        device = "" if settings.device == "cpu" else f", {settings.device}"
        sections.append(_case_table(f"{cell}, {dtype}{device}", rows, labels))
    if groups:
        cuda = f"\n\n{CUDA_EXPLANATION}" if settings.device == "cuda" else ""
        sections[-1].explanation = EXPLANATION.format(engine=labels["candidate"]) + cuda
    if results.steps:
        sections.append(_engine_table("Single steps", results.steps, "stream", results, STEPS_EXPLANATION))
    compared = [row for _, _, rows in groups for row in rows if row.peers]
    for metric, word in METRIC_WORDS.items():
        rows = [row for row in compared if any(metric in ENGINES[name].metrics(row.case) for name in row.peers)]
        if rows:
            explanation = PEERS_EXPLANATION if metric == "inference" else ""
            sections.append(_engine_table(f"Other libraries: {word}", rows, metric, results, explanation))
    return [*sections, *summaries[1:], *([_model(results.model, labels)] if results.model else [])]


def _summaries(results: Results) -> list[Section]:
    """Make the tables of geometric means: against torch.nn by dtype and cell, and per metric against every engine."""
    means = {(f"{m['cell']} {m['dtype']}", m["metric"], m["against"]): m for m in results.summary()}
    counts = {name: f"{mean['rows']}/{mean['of']}" for (name, _, _), mean in means.items()}
    labels, sides = results.settings.labels, ("baseline", *results.settings.peers, BEST_PEER)
    words = {metric: METRIC_WORDS.get(metric, metric) for metric in ("total", "forward", "backward", "inference")}
    rows, compared = [], []
    for name, count in counts.items():
        rows.append([name, count, *(format_means(means.get((name, metric, "baseline"))) for metric in words)])
    for name, metric in ((name, metric) for metric in METRIC_WORDS for name in counts):
        best = means.get((name, metric, BEST_PEER))
        if best:
            cells = [format_means(means.get((name, metric, side))) for side in sides]
            worst = multiply_signs(f"{best['lowest']:.2f}×, {best['lowest_row']}")
            compared.append([f"{name} {METRIC_WORDS[metric]}", str(best["rows"]), *cells, worst])
    header = ["cell", "rows", *(f"against {labels.get(side, 'the best peer')}" for side in sides)]
    heading = f"Other libraries: geometric means of speed-ups of {labels['candidate']} (lowest–highest)"
    note = "Geometric means (lowest–highest row)."
    sections = [Section("Summary", ["cell", "rows", *words.values()], rows, explanation=note)] if rows else []
    return sections + ([Section(heading, [*header, "worst against the best peer"], compared)] if compared else [])


def _model(model: ModelResult, labels: dict[str, str]) -> Section:
    """Describe the language model's run."""
    settings, text = model.settings, model.text
    lines = [
        f"{settings.layers}-layer LSTM of {settings.hidden} units, embedding {settings.embedding}, "
        f"{settings.batch} batch rows × {settings.chunk} characters, {len(model.losses['baseline'])} of "
        f"{settings.steps} steps, float32; text: {text['bytes']:,} bytes with {text['vocabulary']} distinct values."
    ]
    if model.ok and model.comparison:
        paces = {side: model.characters_per_second(side) for side in SIDES}
        speeds = ", ".join(f"{labels[side]} {pace:,.0f}" for side, pace in paces.items() if pace)
        lines.append(f"Characters per second: {speeds}; speed-up {format_speedup(model.speedup(), spread=True)}.")
        ends = ", ".join(f"{labels[side]} {loss:.4f}" for side, loss in model.as_dict()["final_loss"].items())
        lines.append(
            f"Loss at the end (nats per character): {ends}. The curves lie within {model.comparison.early:.1e} of "
            f"each other in the first steps and {model.comparison.late:.1e} at the end (relative)."
        )
    elif model.message:
        lines.append(f"{model.describe()}. No speed is shown.")
    return Section("Character language model", lines=lines)


def _busy_sections(results: Results) -> list[Section]:
    """Make one table for training and one for inference: quiet time and slowdown of each engine."""
    sections = []
    for kind, word in (("train", "training"), ("inference", "inference")):
        timed = {side for row in results.rows for side in row.samples.get(kind, {})} or set(SIDES)
        labels = {side: label for side, label in results.settings.labels.items() if side in timed}
        header, total = ["row"], ["geometric mean"]
        for side, label in labels.items():
            header += [f"{label}\nquiet", f"{label}, busy / quiet\nmedian (mean)"]
            figures = [[row.slowdown(kind, side, figure) for row in results.rows] for figure in ("median", "mean")]
            total += [NOTHING, format_slowdown(*(geometric_mean(v for v in values if v) for values in figures))]

        def cells(row: Row, kind: str = kind, sides: Iterable[str] = labels) -> list[str]:
            line = [multiply_signs(row.case.name)]
            for side in sides:
                quiet = row.samples.get(kind, {}).get(side, {}).get("quiet", {}).get("median")
                slower = format_slowdown(row.slowdown(kind, side, "median"), row.slowdown(kind, side, "mean"))
                line += [format_seconds(quiet), slower]
            return line

        title = f"{word} beside {count_processes(results.settings.competitors)}"
        sections.append(table(title, header, results.rows, cells))
        sections[-1].rows += [] if results.doubts else [total]
    sections[-1].explanation = BUSY_EXPLANATION.format(seconds=results.settings.sample_seconds)
    return sections


def _scaling_sections(results: Results) -> list[Section]:
    """Make one table for each cell and axis: time per step of every side, and the speed-up."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in results.rows:
        groups.setdefault((row.case.cell, row.axis), []).append(row)
    sections, labels = [], results.settings.labels
    for (cell, axis), rows in groups.items():
        header, sides = [AXES[axis][0]], {}
        for metric, word in {"stream": "inference"}.items() if axis == "steps" else METRIC_WORDS.items():
            sides[metric] = [s for s in labels if s in SIDES or any(row.median(metric, s) for row in rows)]
            header += [f"{word}\n{name}" for name in [*(labels[side] for side in sides[metric]), "speed-up"]]

        def cells(row: Row, sides: dict[str, list[str]] = sides) -> list[str]:
            line = [f"{row.value:,}"]
            for metric, timed in sides.items():
                line += [*_times(row, metric, timed, per_step=True), _ratios(row, metric)[0]]
            return line

        sections.append(table(f"{cell}, time per step, {AXES[axis][1]}", header, rows, cells))
    return sections


def sections(results: Results) -> list[Section]:
    make = {"bench": _bench_sections, "busy": _busy_sections, "scaling": _scaling_sections}
    return make[results.settings.mode](results)


def title(results: Results) -> str:
    labels = results.settings.labels
    return {
        "bench": f"{labels['candidate']} against {labels['baseline']}",
        "busy": f"Each engine beside {count_processes(results.settings.competitors)}",
        "scaling": "Time per step",
    }[results.settings.mode]


def warning(results: Results) -> str:
    """Return the warning that the times are unreliable, with the reasons; empty if they are reliable."""
    doubts = results.doubts
    if not doubts:
        return ""
    more = f" (and {len(doubts) - 3} more)" if len(doubts) > 3 else ""
    return (
        f"{UNTRUSTED}: {'; '.join(doubts[:3])}{more}. There is no summary. Run the benchmark again without other load "
        "on the machine."
    )


def notes(results: Results) -> list[str]:
    """Return problems, doubts, skipped rows, warnings and slower rows."""
    settings, labels = results.settings, results.settings.labels
    lines = [] if results.complete else ["The run was interrupted: the results are incomplete."]
    lines += results.problems
    lines += [f"Doubtful: {why}." for why in results.doubts]
    lines += [f"{row.case.name}: {row.describe()}" for row in results.rows if row.status == "skipped"]
    peers, warned = defaultdict(list), defaultdict(list)  # message → names of rows
    for row in results.rows:
        for name, peer in row.peers.items():
            if not peer.ok:
                peers[f"{ENGINES[name].label} {WORDS[peer.status]}: {peer.message}"].append(row.case.name)
        for warning in row.warnings:
            warned[warning].append(row.case.name)
    lines += [f"{message} ({names[0]}{' …' if len(names) > 1 else ''})" for message, names in peers.items()]
    lines += [f"warned in {len(names)} rows ({names[0]} …): {text}" for text, names in warned.items()]
    if settings.precision != "highest":
        precision = f"torch.set_float32_matmul_precision({settings.precision!r})"
        lines.append(f"{labels['candidate']} ran with {precision}, {labels['baseline']} with 'highest'.")
    if settings.isa is not None:
        lines.append(f"All engines were limited to {settings.isa}; onnxruntime cannot be limited and is excluded.")
    if settings.rounds < MINIMUM_ROUNDS:
        lines.append(f"Fewer than {MINIMUM_ROUNDS} rounds: too few for a speed-up.")
    slower = results.slower()
    return lines + ([f"Slower than {labels['baseline']}: " + "; ".join(slower)] if slower else [])


def header_lines(results: Results) -> list[str]:
    """Return lines with the machine, versions and peaks."""
    engines = results.environment.get("engines", {})
    peers = ", ".join(f"{name} {engines[name]['version']}" for name in results.settings.peers if name in engines)
    return [
        f"{describe(results.environment)}, {results.environment['date']}",
        *([f"Peers: {peers}"] if peers else []),
        *([results.peaks.describe()] if results.peaks else []),
    ]


def to_markdown(results: Results) -> str:
    warned = f"**{warning(results)}**" if results.doubts else ""
    parts = [f"# {title(results)}", warned, *header_lines(results), "\n".join(f"- {line}" for line in notes(results))]
    for section in sections(results):
        lines = (
            [section.header, ["---", *["---:"] * (len(section.header) - 1)], *section.rows] if section.header else []
        )
        text = "\n".join("| " + " | ".join(line).replace("\n", " ") + " |" for line in lines)
        parts += [f"## {section.title}", text, *section.lines, section.explanation]
    return "\n\n".join(filter(None, parts)) + "\n"


def show(results: Results, console: Console) -> None:
    """Print the report on the terminal, failed rows in red."""
    from rich.markup import escape
    from rich.table import Table

    def say(line: str, style: str | None = None) -> None:
        console.print(line, markup=False, highlight=False, style=style)

    for section in sections(results):
        if section.header:
            shown = Table(title=section.title, title_justify="left", header_style="bold", pad_edge=False)
            for number, name in enumerate(section.header):
                shown.add_column(name, justify="right" if number else "left", overflow="fold")
            for cells in section.rows:
                bad = cells[1] in (WORDS["failed"], WORDS["error"])
                shown.add_row(*map(escape, cells), style="bold red" if bad else None)
            console.print(shown)
        else:
            say(section.title, "bold")
        for line in section.lines:
            say(line)
    for line in notes(results):
        say(line, "bold red" if line in results.problems else None)
    if results.doubts:
        say(warning(results), "bold red")
    for line in header_lines(results):
        say(line, "dim")
