"""The report of a run: tables and sentences, for the terminal and as Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from fastrnn.apps.bench.engines import ENGINES
from fastrnn.apps.bench.environment import describe
from fastrnn.apps.bench.ratios import MINIMUM_ROUNDS, Speedup, geometric_mean
from fastrnn.apps.bench.results import BEST_PEER, SIDES, WORDS, ModelResult, Results, Row
from fastrnn.apps.bench.runner import AXES

if TYPE_CHECKING:
    from rich.console import Console

NOTHING = "–"
MIB = 2**20
PEER_METRICS = {"total": "training", "inference": "inference"}
KINDS = {"train": "training", "inference": "inference"}
Column = tuple[str, Callable[[Row], str]]

EXPLANATION = (
    "Each row was first checked against torch.nn in float64; a row that fails shows no speed. Training is forward and "
    "backward together, with gradients of input, state and all parameters; inference is forward under "
    "`torch.no_grad()`. Times are medians over the rounds. A speed-up is the median of the rounds' ratios torch.nn / "
    "{engine}, in brackets the interval in which that median lies with 95 % confidence (the range of all rounds if "
    "there are fewer than nine); `~` marks those that may be no difference at all. Memory is what a training step adds "
    "to the peak of a fresh process. In brackets behind `ok`: the largest error of any tensor in units of torch.nn's "
    "own. Limit: the share of the machine's limit that {engine} reaches, namely a lower bound on the time "
    "(multiply-adds at the pace of torch's best large product, or the weights read again in each step at the measured "
    "reading speed, whichever takes longer) divided by the measured time."
)
CUDA_EXPLANATION = (
    "Both engines ran on the GPU: every reading of the clock waits until it has done its work, so that a training step "
    "is waited for twice and a block of inference once. Memory is the GPU's, there is no limit."
)
STEPS_EXPLANATION = (
    "One step of a stream without a graph, B = 1, input size = hidden size: `module.step` of fastrnn, a call with "
    "T = 1 of the others; each call gets the state that the last one gave."
)
PEERS_EXPLANATION = (
    "The same weights and data in other libraries, float32, each in a process of its own with as many threads, in "
    "turns with the others; what they compute was checked against torch.nn in float64 first. onnxruntime and OpenVINO "
    "(set to float32: its own choice may be bfloat16) run an ONNX model and only infer. JAX runs a jitted `lax.scan`; "
    "its training step answers outputs and all gradients in one call. In brackets the best peer of the row. `–`: "
    "cannot run this row."
)
BUSY_EXPLANATION = (
    "Quiet: median time of a call while nothing else runs. Slower: the time beside the busy processes divided by the "
    "engine's own quiet time, by the medians and in brackets by the means of all calls in {seconds:g} s or more. If "
    "all who want a core were treated alike, an engine would take (threads + busy processes) / cores times as long."
)


# Numbers as text


def format_seconds(seconds: float | None) -> str:
    """Three significant digits in µs, ms or s."""
    if seconds is None:
        return NOTHING
    unit, scale = next((u, s) for u, s in (("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)) if seconds / s < 999.5 or u == "s")
    value = float(f"{seconds / scale:.3g}")
    return f"{value:.{max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0}f} {unit}"


def format_speedup(speedup: Speedup | None, spread: bool = False) -> str:
    """``2.31×``, with ``spread`` also its interval; ``~`` where it may be no difference."""
    if speedup is None:
        return NOTHING
    text = f"{'~' if speedup.uncertain else ''}{speedup.median:.2f}×"
    return f"{text} ({speedup.interval[0]:.2f}–{speedup.interval[1]:.2f})" if spread else text


def format_memory(size: int | None) -> str:
    """MiB; what is below one MiB is below the resolution too."""
    if size is None:
        return "n/a"
    return "<1" if size < MIB else f"{size / MIB:.0f}" if size >= 10 * MIB else f"{size / MIB:.1f}"


def format_share(share: float | None) -> str:
    """Per cent, two digits."""
    if share is None:
        return NOTHING
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"


def format_slowdown(median: float | None, mean: float | None) -> str:
    return NOTHING if median is None or mean is None else f"{median:.2f}× ({mean:.2f}×)"


def format_means(found: dict[str, Any]) -> str:
    return f"{found['mean']:.2f}× ({found['lowest']:.2f}–{found['highest']:.2f})" if found.get("rows") else NOTHING


def multiply_signs(text: str) -> str:
    """``16x100x256`` as people write it."""
    return re.sub(r"(?<=\d)x(?=\d)", "×", text)


# Tables


@dataclass
class Section:
    """A title, a table if there is a header, and lines; ``explanation`` is for Markdown alone."""

    title: str
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    explanation: str = ""


def table(title: str, rows: Sequence[Row], columns: Sequence[Column], explanation: str = "") -> Section:
    """A line for each row; one without figures says why in its second cell and is otherwise empty."""
    lines = []
    for row in rows:
        cells = [text(row) for _, text in columns] if row.ok else [columns[0][1](row), WORDS[row.status]]
        lines.append(cells + [NOTHING] * (len(columns) - len(cells)))
    return Section(title, [name for name, _ in columns], lines, explanation=explanation)


def _times(metric: str, labels: dict[str, str], prefix: str = "", per_step: bool = False) -> list[Column]:
    """A column of times for each side."""

    def cell(side: str, row: Row) -> str:
        if side in row.peers and not row.peers[side].ok:
            return WORDS[row.peers[side].status]
        return format_seconds(row.per_step(metric, side) if per_step else row.median(metric, side))

    return [(prefix + label, partial(cell, side)) for side, label in labels.items()]


def _speedup(metric: str, title: str, spread: bool = True) -> Column:
    return title, lambda row: format_speedup(row.speedup(metric), spread)


def _limit(metric: str, title: str) -> Column:
    return title, lambda row: format_share(row.limit_share(metric))


def _memory(side: str, row: Row) -> str:
    return format_memory(row.memory.get(side))


def _quiet(kind: str, side: str, row: Row) -> str:
    return format_seconds(row.samples.get(kind, {}).get(side, {}).get("quiet", {}).get("median"))


def _slower(kind: str, side: str, row: Row) -> str:
    return format_slowdown(row.slowdown(kind, side, "median"), row.slowdown(kind, side, "mean"))


def _case_columns(labels: dict[str, str]) -> list[Column]:
    both = {side: labels[side] for side in SIDES}
    return [
        ("B×T×(I×)H", lambda row: multiply_signs(row.case.shape.label)),
        ("parity", lambda row: f"ok ({row.parity.ratio:.1f})" if row.parity else "ok"),
        *_times("total", both, "training\n"),
        _speedup("total", "training\nspeed-up"),
        _limit("total", "training\nlimit"),
        _speedup("forward", "forward\nspeed-up", spread=False),
        _speedup("backward", "backward\nspeed-up", spread=False),
        *_times("inference", both, "inference\n"),
        _speedup("inference", "inference\nspeed-up"),
        _limit("inference", "inference\nlimit"),
        *((f"MiB\n{label}", partial(_memory, side)) for side, label in both.items()),
    ]


def _engine_columns(metric: str, results: Results) -> list[Column]:
    """A column for each engine, then speed-ups and the limit."""

    def against_best(row: Row) -> str:
        best = row.best_peer(metric)
        return f"{format_speedup(row.speedup(metric, best))} ({ENGINES[best].label})" if best else NOTHING

    labels = results.settings.labels
    return [
        ("row", lambda row: multiply_signs(f"{row.case.cell} {row.case.shape.label}")),
        *_times(metric, labels),
        _speedup(metric, f"against {labels['baseline']}"),
        *([("against the best peer", against_best)] if results.settings.peers else []),
        _limit(metric, "limit"),
    ]


def _bench_sections(results: Results) -> list[Section]:
    settings, labels, groups = results.settings, results.settings.labels, results.groups()
    summaries = _summaries(results)
    sections = summaries[:1]
    for (dtype, cell), rows in groups.items():
        title = f"{cell}, {dtype}" + ("" if settings.device == "cpu" else f", {settings.device}")
        sections.append(table(title, rows, _case_columns(labels)))
    if groups:
        explanations = [EXPLANATION.format(engine=labels["candidate"])]
        explanations += [CUDA_EXPLANATION] if settings.device == "cuda" else []
        sections[-1].explanation = "\n\n".join(explanations)
    if results.steps:
        sections.append(table("Single steps", results.steps, _engine_columns("stream", results), STEPS_EXPLANATION))
    compared = [row for rows in groups.values() for row in rows if row.peers]
    for metric, word in PEER_METRICS.items():
        rows = [row for row in compared if any(metric in ENGINES[name].metrics(row.case) for name in row.peers)]
        if rows:
            explanation = PEERS_EXPLANATION if metric == "inference" else ""
            sections.append(table(f"Other libraries: {word}", rows, _engine_columns(metric, results), explanation))
    sections += summaries[1:]
    return sections + ([_model(results.model, labels)] if results.model else [])


def _summaries(results: Results) -> list[Section]:
    """Geometric means: a line per dtype and cell against torch.nn, then one per metric too against every engine."""
    found: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for one in results.summary():
        metrics = found.setdefault(f"{one['cell']} {one['dtype']}", {})
        metrics.setdefault(one["metric"], {})[one["against"]] = one
    words = {"total": "training", "forward": "forward", "backward": "backward", "inference": "inference"}
    rows, compared, labels = [], [], results.settings.labels
    for name, metrics in found.items():
        means = {metric: metrics.get(metric, {}).get("baseline", {}) for metric in words}
        count = next(filter(None, means.values()))
        rows.append([name, f"{count['rows']}/{count['of']}", *map(format_means, means.values())])
    for metric, word in PEER_METRICS.items():
        for name, metrics in found.items():
            engines = metrics.get(metric, {})
            if BEST_PEER in engines:
                best = engines[BEST_PEER]
                sides = ("baseline", *results.settings.peers, BEST_PEER)
                cells = [format_means(engines.get(side, {})) for side in sides]
                worst = multiply_signs(f"{best['lowest']:.2f}×, {best['lowest_row']}")
                compared.append([f"{name} {word}", str(best["rows"]), *cells, worst])
    against = [label for side, label in labels.items() if side != "candidate"] + ["the best peer"]
    header = ["cell", "rows", *(f"against {name}" for name in against), "worst against the best peer"]
    heading = f"Other libraries: geometric means of speed-ups of {labels['candidate']} (lowest–highest)"
    note = "Geometric means (lowest–highest row)."
    sections = [Section("Summary", ["cell", "rows", *words.values()], rows, explanation=note)] if rows else []
    return sections + ([Section(heading, header, compared)] if compared else [])


def _model(model: ModelResult, labels: dict[str, str]) -> Section:
    """The language model in sentences."""
    settings, text = model.settings, model.text
    lines = [
        f"{settings.layers}-layer LSTM of {settings.hidden} units, embedding {settings.embedding}, "
        f"{settings.batch} streams × {settings.chunk} characters, {len(model.losses['baseline'])} of {settings.steps} "
        f"steps on {text['bytes']:,} bytes ({text['vocabulary']} different), float32."
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


def count_processes(count: int) -> str:
    return f"{count} busy process{'es' if count != 1 else ''}"


def _busy_sections(results: Results) -> list[Section]:
    sections = []
    for kind, word in KINDS.items():
        timed = {side for row in results.rows for side in row.samples.get(kind, {})} or set(SIDES)
        labels = {side: label for side, label in results.settings.labels.items() if side in timed}
        columns: list[Column] = [("row", lambda row: multiply_signs(row.case.name))]
        total = ["geometric mean"]
        for side, label in labels.items():
            columns.append((f"{label}\nquiet", partial(_quiet, kind, side)))
            columns.append((f"{label}\nslower (mean)", partial(_slower, kind, side)))
            figures = [[row.slowdown(kind, side, figure) for row in results.rows] for figure in ("median", "mean")]
            total += [NOTHING, format_slowdown(*(geometric_mean(v for v in values if v) for values in figures))]
        title = f"{word} beside {count_processes(results.settings.competitors)}"
        sections.append(table(title, results.rows, columns))
        sections[-1].rows.append(total)
    sections[-1].explanation = BUSY_EXPLANATION.format(seconds=results.settings.sample_seconds)
    return sections


def _scaling_sections(results: Results) -> list[Section]:
    """A table for each cell and axis: time per step of every side, speed-up."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in results.rows:
        groups.setdefault((row.case.cell, row.axis), []).append(row)
    sections = []
    for (cell, axis), rows in groups.items():
        columns: list[Column] = [(AXES[axis][0], lambda row: f"{row.value:,}")]
        for metric, word in {"stream": "inference"}.items() if axis == "steps" else PEER_METRICS.items():
            labels = results.settings.labels
            timed = {s: labels[s] for s in labels if s in SIDES or any(row.median(metric, s) for row in rows)}
            columns += _times(metric, timed, f"{word}\n", per_step=True)
            columns.append(_speedup(metric, f"{word}\nspeed-up"))
        sections.append(table(f"{cell}, time per step, {AXES[axis][1]}", rows, columns))
    return sections


# The whole


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


def notes(results: Results) -> list[str]:
    """Problems, skipped rows, warnings, slower rows."""
    settings, labels = results.settings, results.settings.labels
    lines = [] if results.complete else ["The run was interrupted: what follows is a part of it."]
    lines += results.problems
    lines += [f"{row.case.name}: {row.describe()}" for row in results.rows if row.status == "skipped"]
    peers: dict[str, list[str]] = {}
    warned: dict[str, list[str]] = {}
    for row in results.rows:
        for name, peer in row.peers.items():
            if not peer.ok:
                text = f"{ENGINES[name].label} {WORDS[peer.status]}: {peer.message}"
                peers.setdefault(text, []).append(row.case.name)
        for warning in row.warnings:
            warned.setdefault(warning, []).append(row.case.name)
    lines += [f"{message} ({names[0]}{' …' if len(names) > 1 else ''})" for message, names in peers.items()]
    lines += [f"warned in {len(names)} rows ({names[0]} …): {text}" for text, names in warned.items()]
    if settings.precision != "highest":
        precision = f"torch.set_float32_matmul_precision({settings.precision!r})"
        lines.append(f"{labels['candidate']} ran with {precision}, {labels['baseline']} with 'highest'.")
    if settings.rounds < MINIMUM_ROUNDS:
        lines.append(f"Fewer than {MINIMUM_ROUNDS} rounds: too few to speak of a speed-up.")
    slower = results.slower()
    return lines + ([f"Slower than {labels['baseline']}: " + "; ".join(slower)] if slower else [])


def header_lines(results: Results) -> list[str]:
    """The machine, versions, peaks."""
    engines = results.environment.get("engines", {})
    lines = [f"{describe(results.environment)}, {results.environment['date']}"]
    peers = [f"{name} {engines[name]['version']}" for name in results.settings.peers if name in engines]
    lines += ["Peers: " + ", ".join(peers)] if peers else []
    return lines + ([results.peaks.describe()] if results.peaks else [])


def to_markdown(results: Results) -> str:
    parts = [f"# {title(results)}", *header_lines(results)]
    parts += ["\n".join(f"- {line}" for line in notes(results))] if notes(results) else []
    for section in sections(results):
        parts.append(f"## {section.title}")
        if section.header:
            lines = [section.header, ["---", *["---:"] * (len(section.header) - 1)], *section.rows]
            parts.append("\n".join("| " + " | ".join(c.replace("\n", " ") for c in line) + " |" for line in lines))
        parts += [*section.lines, *([section.explanation] if section.explanation else [])]
    return "\n\n".join(parts) + "\n"


def show(results: Results, console: Console) -> None:
    """The same on the terminal, bad rows in red."""
    from rich.markup import escape
    from rich.table import Table

    for section in sections(results):
        shown = Table(title=section.title, title_justify="left", header_style="bold", pad_edge=False)
        for number, name in enumerate(section.header):
            shown.add_column(name, justify="right" if number else "left", overflow="fold")
        for cells in section.rows:
            bad = cells[1] in (WORDS["failed"], WORDS["error"])
            shown.add_row(*map(escape, cells), style="bold red" if bad else None)
        console.print(shown if section.header else section.title, style=None if section.header else "bold")
        for line in section.lines:
            console.print(line, markup=False, highlight=False)
    for line in notes(results):
        console.print(line, markup=False, highlight=False, style="bold red" if line in results.problems else None)
    for line in header_lines(results):
        console.print(line, markup=False, highlight=False, style="dim")
