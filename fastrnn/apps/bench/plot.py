"""Figures of a run: speed-ups, other libraries and the language model; or time per step against each size.

Colours are from Okabe and Ito's palette for colour-blind readers; engines also differ in marker or line style.
"""

from __future__ import annotations

import importlib.util
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastrnn.apps.bench import trust
from fastrnn.apps.bench.engines import ENGINES, PEERS
from fastrnn.apps.bench.environment import describe
from fastrnn.apps.bench.ratios import RANGE_BELOW
from fastrnn.apps.bench.report import (
    format_seconds,
    format_speedup,
    multiply_signs,
    title,
    warning,
)
from fastrnn.apps.bench.results import METRIC_WORDS, SIDES, WORDS, ModelResult, Results, Row
from fastrnn.apps.bench.runner import AXES

INSTALL = "no plot: matplotlib is not installed; install it with: python -m pip install 'fastrnn[plot]'"
BLUE, GREY, RED, LIGHT_GREY = "#0072B2", "#7F7F7F", "#D55E00", "#DDDDDD"
_COLOURS = {"baseline": GREY, "candidate": BLUE, **{name: ENGINES[name].colour for name in PEERS}}
_MARKERS = {"baseline": "o", "candidate": "o", **{name: ENGINES[name].marker for name in PEERS}}
_TRAINING: dict[str, Any] = {"linestyle": "-", "marker": "o", "fillstyle": "full"}
_INFERENCE: dict[str, Any] = {"linestyle": "--", "marker": "s", "fillstyle": "none"}
WIDTH = 5.2  # inches; a phone shows this width without scaling it down
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000, 10_000)
_TIGHT = {"fontsize": 8, "columnspacing": 1.0, "handlelength": 1.2, "handletextpad": 0.4, "borderaxespad": 0.2}
_OVER_LINES = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # a wide interval is drawn behind the number
_HEADING: dict[str, Any] = {"fontweight": "bold", "loc": "left"}


def available() -> bool:
    """Return True if matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def save(results: Results, paths: Sequence[Path]) -> None:
    """Draw the results once and write them to every path, each in the format of its suffix."""
    import matplotlib

    settings: Any = {"font.size": 9, "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(settings):
        figure = _draw_scaling(results) if results.settings.mode == "scaling" else _draw_bench(results)
        for path in paths:
            figure.savefig(path, dpi=150)


def _figure(results: Results, headline: str, width: float, height: float) -> Any:
    # A Figure of its own instead of pyplot's: no window system, no global state.
    from matplotlib.figure import Figure

    about = textwrap.fill(describe(results.environment), round(17 * width))
    warned = textwrap.fill(warning(results), round(14 * width))
    lines = 1 + 0.6 * (about.count("\n") + 1) + 0.75 * (warned.count("\n") + 2 if warned else 0)
    height += 0.25 * lines
    figure = Figure(figsize=(width, height), layout="constrained")
    newlines = "\n" * math.ceil(lines)
    figure.suptitle(f"{headline}{newlines}", fontsize=14, fontweight="bold")
    below = 1 - 0.36 / height
    if warned:
        box = {"facecolor": RED, "edgecolor": "none", "boxstyle": "square,pad=0.3"}
        text = figure.text(0.5, below, warned, ha="center", va="top", fontsize=9, color="white", bbox=box)
        text.set_in_layout(False)
        below -= (0.19 * (warned.count("\n") + 1) + 0.12) / height
    figure.text(0.5, below, about, ha="center", va="top", fontsize=7, color=GREY).set_in_layout(False)
    return figure


def _legend(panel: Any, handles: list[Any], **options: Any) -> None:
    panel.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, **options)


def _line(label: str, color: str = "black", **options: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, label=label, **options)


@dataclass(frozen=True)
class _Panel:
    """Speed-ups of a cell in one metric, on an axis shared by all cells."""

    dtype: str
    metric: str
    cell: str
    rows: Sequence[Row]
    limits: tuple[float, float]

    @property
    def height(self) -> float:  # inches
        return 1.25 + 0.25 * len(self.rows)


def _draw_bench(results: Results) -> Any:
    """Draw one panel of speed-ups for each dtype, metric and cell, and the language model, in a single column.

    On a phone the text is then as large as on a page.
    """
    panels = []
    for dtype, cells in results.groups().items():
        for metric in METRIC_WORDS:
            limits = _limits(results, metric, [row for rows in cells.values() for row in rows])
            panels += [_Panel(dtype, metric, cell, rows, limits) for cell, rows in cells.items()]
    heights = [panel.height for panel in panels] + ([4.2] if results.model else [])
    figure = _figure(results, title(results), WIDTH, sum(heights) + 0.3)
    if heights:
        subfigures = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        for subfigure, panel in zip(subfigures, panels, strict=False):
            _draw_speedups(subfigure, results, panel)
        if results.model:
            _draw_model(subfigures[-1], results.model, results.settings.labels)
    return figure


def _ratio(row: Row, metric: str, side: str) -> float | None:
    """Return the speed-up of a side; for a peer from medians, as its rounds are not adjacent to torch.nn's."""
    slow, fast, speedup = row.median(metric, "baseline"), row.median(metric, side), row.speedup(metric)
    if not slow or not fast:
        return None
    return speedup.median if speedup and side == "candidate" else slow / fast


def _limits(results: Results, metric: str, rows: Sequence[Row]) -> tuple[float, float]:
    sides = [side for side in results.settings.labels if side != "baseline"]
    ratios = [1.0, *(ratio for row in rows for side in sides if (ratio := _ratio(row, metric, side)))]
    low, high = min(ratios), max(ratios)
    return min(0.8, low / 1.3), max(2.5, 1.3 * high * (high / low) ** 0.25)  # room for the numbers


def _draw_speedups(subfigure: Any, results: Results, panel: _Panel) -> None:
    """Draw fastrnn with its interval and number, the peers as points, torch.nn at 1."""
    labels = {side: label for side, label in results.settings.labels.items() if side != "baseline"}
    axis, timed = subfigure.subplots(), []
    for side in labels:
        pairs = [(ratio, y) for y, row in enumerate(panel.rows) if (ratio := _ratio(row, panel.metric, side))]
        timed += [side] if pairs else []
        x, y = zip(*(pairs or [(math.nan, 0)]), strict=True)
        size, order = (7, 3) if side == "candidate" else (5, 2)
        axis.plot(x, y, _MARKERS[side], color=_COLOURS[side], markersize=size, zorder=order)
    for number, row in enumerate(panel.rows):
        speedup = row.speedup(panel.metric)
        if speedup:
            axis.plot(speedup.interval, (number, number), color=BLUE, linewidth=1.5, alpha=0.6)
            edge = max(speedup.median, min(speedup.interval[1], panel.limits[1] / 1.5)) * 1.1
            axis.text(edge, number, format_speedup(speedup), va="center", fontsize=8, bbox=_OVER_LINES)
        if not row.ok:
            axis.text(1.03, number, WORDS[row.status], va="center", color=RED, fontweight="bold")
    _ratio_axis(axis, panel.rows, panel.limits)
    axis.set_title(f"{panel.cell.upper()}, {METRIC_WORDS[panel.metric]}", **_HEADING)
    axis.set_xlabel(f"speed-up over {results.settings.labels['baseline']}, {panel.dtype}")
    handles = [_line(labels[s], _COLOURS[s], marker=_MARKERS[s], linestyle="") for s in timed]
    spread = "95 % interval" if results.settings.rounds >= RANGE_BELOW else "range of rounds"
    _legend(subfigure, [*handles, _line(spread, BLUE, linewidth=1.5, alpha=0.6)], **_TIGHT)


def _ratio_axis(axis: Any, rows: Sequence[Row], limits: tuple[float, float]) -> None:
    """Set up a logarithmic axis of ratios with a line at 1; shapes on the left, the first row at the top."""
    axis.set(xscale="log", xlim=limits)
    axis.axvline(1.0, color="black", linewidth=1.2)
    ticks = [tick for tick in _TICKS if limits[0] <= tick <= limits[1]]
    if len(ticks) > 6:
        ticks = [tick for tick in ticks if math.log10(tick).is_integer()]
    axis.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.grid(axis="x", color=LIGHT_GREY, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.set_yticks(range(len(rows)), [_name(row) for row in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)


def _name(row: Row) -> str:
    return multiply_signs(row.case.shape.label) + (" ?" if trust.doubts_of_row(row) else "")


def _draw_model(panel: Any, model: ModelResult, labels: dict[str, str]) -> None:
    """Draw characters per second, and both loss curves."""
    pace, curves = panel.subplots(2, 1, height_ratios=(1, 2))
    values = [value for side in SIDES if (value := model.characters_per_second(side)) is not None]
    if len(values) == len(SIDES):
        pace.barh([0, 1], values, height=0.55, color=(GREY, BLUE))
        for place, value in enumerate(values):
            note = f"  ({format_speedup(model.speedup())})" if place else ""
            pace.text(value, place, f" {value:,.0f}{note}", va="center")
        pace.set_xlim(0, max(values) * 1.45)
    else:
        word = WORDS["failed"] if model.status == "failed" else "no result"
        pace.text(0.5, 0.5, word, color=RED, ha="center", transform=pace.transAxes)
    pace.set_title("Character language model, training", **_HEADING)
    pace.set_yticks([0, 1], [labels[side] for side in SIDES])
    pace.set(ylim=(1.6, -0.6), xlabel="characters per second")
    pace.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    pace.locator_params(axis="x", nbins=4)
    styles = ({"color": "#BBBBBB", "linewidth": 4.0}, {"color": BLUE, "linewidth": 1.2, "linestyle": "--"})
    for side, style in zip(SIDES, styles, strict=True):
        curves.plot(range(1, len(model.losses[side]) + 1), model.losses[side], label=labels[side], **style)
    curves.set_title("Loss, both runs with the same seed", **_HEADING)
    curves.set(xlabel="step", ylabel="nats per character")
    curves.grid(color=LIGHT_GREY, linewidth=0.6)
    curves.legend(frameon=False)


def _draw_scaling(results: Results) -> Any:
    """Draw one row for each cell, one column for each varied size, one colour for each engine."""
    labels, cells = results.settings.labels, list(dict.fromkeys(row.case.cell for row in results.rows))
    axes = [axis for axis in AXES if any(row.axis == axis for row in results.rows)]
    size = max(9.0, 3.75 * len(axes)), 2.9 * max(1, len(cells)) + 1.5
    figure = _figure(results, f"Time per step: {', '.join(labels.values())}\n", *size)
    panels = figure.subplots(max(1, len(cells)), max(1, len(axes)), squeeze=False)
    for line, cell in zip(panels, cells, strict=False):
        for panel, axis in zip(line, axes, strict=False):
            _draw_panel(panel, [row for row in results.rows if (row.case.cell, row.axis) == (cell, axis)], labels)
        line[0].set_ylabel("time per step")
        if axes[-1] == "threads":
            line[-1].set_ylabel("speed-up over one thread")
    handles = [_line(label, _COLOURS[side], linewidth=2) for side, label in labels.items()]
    handles += [_line("training (forward + backward)", **_TRAINING), _line("inference", **_INFERENCE)]
    if "threads" in axes:
        handles.append(_line("linear in the threads", linewidth=0.8, linestyle=":"))
    _legend(figure, handles)
    return figure


def _draw_panel(panel: Any, rows: Sequence[Row], labels: dict[str, str]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axis, cell = rows[0].axis, rows[0].case.cell
    panel.set_title(f"{cell.upper()}   {AXES[axis][1]}", loc="left", fontsize=9)
    panel.set_xlabel(AXES[axis][0])
    panel.grid(color=LIGHT_GREY, linewidth=0.6)
    for metric, style in {"total": _TRAINING, "inference": _INFERENCE, "stream": _INFERENCE}.items():
        for side in labels:
            points = [(row.value, seconds) for row in rows if (seconds := row.per_step(metric, side)) is not None]
            if axis == "threads":
                # Without a time with one thread there is no reference.
                points = [(value, points[0][1] / seconds) for value, seconds in points if points[0][0] == 1]
            if points:
                options = {**style, "color": _COLOURS[side], "zorder": 3 if side == "candidate" else 2}
                panel.plot(*zip(*points, strict=True), markersize=4, linewidth=1.5, **options)
    values = sorted({row.value for row in rows})
    if axis == "threads":
        panel.plot(values, values, color="black", linewidth=0.8, linestyle=":")
        panel.set_ylim(bottom=0)
        panel.set_xticks(values)
        return
    panel.set_xscale("log")
    if axis == "steps":
        panel.set_ylim(bottom=0)  # a horizontal line means time proportional to length
    else:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.set_xticks(values, [f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}") for value in values])
    panel.set_xticks([], minor=True)
    panel.yaxis.set_major_formatter(lambda value, _: _round(value))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _round(seconds: float) -> str:
    """Format as ``20 µs``, without trailing zeros."""
    number, unit = format_seconds(seconds).split(" ")
    return f"{float(number):g} {unit}"
