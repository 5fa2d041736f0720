"""The pictures of a run: speed-ups, other libraries and the language model; or time per step against each size.

Colours are from Okabe and Ito's palette, which people with any kind of colour vision can tell apart; engines also
differ in marker or line style.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fastrnn.apps.bench.engines import ENGINES
from fastrnn.apps.bench.environment import describe
from fastrnn.apps.bench.ratios import RANGE_BELOW
from fastrnn.apps.bench.report import METRIC_WORDS, format_seconds, format_speedup, multiply_signs, title
from fastrnn.apps.bench.results import SIDES, WORDS, ModelResult, Results, Row
from fastrnn.apps.bench.runner import AXES

INSTALL = "no plot: matplotlib is not installed; get it with: python -m pip install 'fastrnn[plot]'"
SUFFIXES = (".svg", ".png", ".pdf")
BLUE, GREY, RED, LIGHT_GREY = "#0072B2", "#7F7F7F", "#D55E00", "#DDDDDD"
_LINES = {"total": ("-", "o", "full"), "inference": ("--", "s", "none"), "stream": ("--", "s", "none")}
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000, 10_000)
_TIGHT = {"fontsize": 8, "columnspacing": 1.0, "handlelength": 1.2, "handletextpad": 0.4, "borderaxespad": 0.2}
_OVER_LINES = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # a wide range is drawn behind the number


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
    # A Figure of its own, not pyplot's: no window system, no global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(f"{headline}\n", fontsize=14, fontweight="bold")
    figure.text(0.5, 1 - 0.42 / height, describe(results.environment), ha="center", va="top", fontsize=8, color=GREY)
    return figure


def _legend(panel: Any, handles: list[Any]) -> None:
    panel.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, **_TIGHT)


def _line(label: str, colour: str = "black", **options: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, label=label, **options)


def _draw_bench(results: Results) -> Any:
    """A panel of speed-ups for each dtype and metric, and the language model, one below the other."""
    panels: list[tuple[float, Any]] = []  # inches, function that draws
    groups = results.groups()
    for dtype in dict.fromkeys(dtype for dtype, _ in groups):
        cells = {cell: rows for (other, cell), rows in groups.items() if other == dtype}
        height = 1.3 + 0.25 * max(map(len, cells.values()))
        for metric in METRIC_WORDS:
            panels.append((height, partial(_draw_speedups, results=results, cells=cells, metric=metric, dtype=dtype)))
    if results.model:
        panels.append((3.2, partial(_draw_model, model=results.model, labels=results.settings.labels)))
    heights = [height for height, _ in panels]
    figure = _figure(results, title(results), 13.0, sum(heights) + 1.3)
    if panels:
        subfigures = figure.subfigures(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
        for panel, (_, draw) in zip(subfigures, panels, strict=True):
            draw(panel)
    return figure


def _ratio_axis(axis: Any, rows: Sequence[Row], limits: tuple[float, float]) -> None:
    """A logarithmic axis of ratios below, with a line at 1; shapes on the left, the first row at the top."""
    from matplotlib.ticker import NullFormatter, NullLocator

    axis.set_xscale("log")
    axis.set_xlim(*limits)
    axis.axvline(1.0, color="black", linewidth=1.2)
    ticks = [tick for tick in _TICKS if limits[0] <= tick <= limits[1]]
    if len(ticks) > 6:
        ticks = [tick for tick in ticks if math.log10(tick).is_integer()]
    axis.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(axis="x", color=LIGHT_GREY, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.set_yticks(range(len(rows)), [multiply_signs(row.case.shape.label) for row in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)


def _draw_speedups(panel: Any, results: Results, cells: dict[str, list[Row]], metric: str, dtype: str) -> None:
    """A column for each cell: fastrnn with its interval and number, the peers as points, torch.nn at 1.

    A peer's ratio is one of medians, since its rounds are no neighbours of torch.nn's.
    """
    labels = {side: label for side, label in results.settings.labels.items() if side != "baseline"}
    points: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for cell, rows in cells.items():
        for number, row in enumerate(rows):
            for side in labels:
                slow, fast, speedup = row.median(metric, "baseline"), row.median(metric, side), row.speedup(metric)
                if slow and fast:
                    ratio = speedup.median if speedup and side == "candidate" else slow / fast
                    points.setdefault((cell, side), []).append((ratio, number))
    ratios = [1.0, *(ratio for found in points.values() for ratio, _ in found)]
    low, high = min(ratios), max(ratios)
    limits = min(0.8, low / 1.3), max(2.5, 1.3 * high * (high / low) ** 0.25)  # room for the numbers
    alike = len({tuple(row.case.shape for row in rows) for rows in cells.values()}) == 1
    axes = panel.subplots(1, len(cells), squeeze=False, sharey=alike)[0]
    for axis, (cell, rows) in zip(axes, cells.items(), strict=True):
        for side in labels:
            first = side == "candidate"
            x, y = zip(*points.get((cell, side), [(math.nan, 0)]), strict=True)
            options = {"color": _colour(side), "markersize": 7 if first else 5, "zorder": 3 if first else 2}
            axis.plot(x, y, _marker(side), **options)
        for number, row in enumerate(rows):
            speedup = row.speedup(metric)
            if speedup:
                axis.plot(speedup.interval, (number, number), color=BLUE, linewidth=1.5, alpha=0.6)
                edge = max(speedup.median, min(speedup.interval[1], limits[1] / 1.5)) * 1.1
                axis.text(edge, number, format_speedup(speedup), va="center", fontsize=7, bbox=_OVER_LINES)
            if not row.ok:
                axis.text(1.03, number, WORDS[row.status], va="center", color=RED, fontweight="bold")
        _ratio_axis(axis, rows, limits)
        axis.set_title(f"{cell.upper()}, {METRIC_WORDS[metric]}", fontweight="bold", loc="left")
        axis.set_xlabel(f"times as fast as {results.settings.labels['baseline']}, {dtype}")
    timed = [side for side in labels if any(side == other for _, other in points)]
    handles = [_line(labels[s], _colour(s), marker=_marker(s), linestyle="") for s in timed]
    spread = "95 % interval" if results.settings.rounds >= RANGE_BELOW else "range of rounds"
    _legend(panel, [*handles, _line(spread, BLUE, linewidth=1.5, alpha=0.6)])


def _colour(side: str) -> str:
    return {"baseline": GREY, "candidate": BLUE}.get(side) or ENGINES[side].colour


def _marker(side: str) -> str:
    return "o" if side in SIDES else ENGINES[side].marker


def _draw_model(panel: Any, model: ModelResult, labels: dict[str, str]) -> None:
    """Characters per second, and both loss curves."""
    pace, curves = panel.subplots(1, 2, width_ratios=(1, 2))
    pace.set_title("Character language model, training", fontweight="bold", loc="left")
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
    pace.set_yticks([0, 1], [labels[side] for side in SIDES])
    pace.set_ylim(1.6, -0.6)
    pace.set_xlabel("characters per second")
    pace.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    pace.locator_params(axis="x", nbins=4)
    styles = ({"color": "#BBBBBB", "linewidth": 4.0}, {"color": BLUE, "linewidth": 1.2, "linestyle": "--"})
    for side, style in zip(SIDES, styles, strict=True):
        curves.plot(range(1, len(model.losses[side]) + 1), model.losses[side], label=labels[side], **style)
    curves.set_title("Its loss, both runs from one seed", fontweight="bold", loc="left")
    curves.set_xlabel("step")
    curves.set_ylabel("nats per character")
    curves.grid(color=LIGHT_GREY, linewidth=0.6)
    curves.legend(frameon=False)


def _draw_scaling(results: Results) -> Any:
    """A row for each cell, a column for each size that varies, a colour for each engine."""
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
            line[-1].set_ylabel("times as fast as with one thread")
    handles = [_line(label, _colour(side), linewidth=2) for side, label in labels.items()]
    for metric, word in (("total", "training (forward + backward)"), ("inference", "inference")):
        dash, marker, fill = _LINES[metric]
        handles.append(_line(word, marker=marker, fillstyle=fill, linestyle=dash))
    if "threads" in axes:
        handles.append(_line("as many times as threads", linewidth=0.8, linestyle=":"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _draw_panel(panel: Any, rows: Sequence[Row], labels: dict[str, str]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axis, cell = rows[0].axis, rows[0].case.cell
    panel.set_title(f"{cell.upper()}   {AXES[axis][1]}", loc="left", fontsize=9)
    panel.set_xlabel(AXES[axis][0])
    panel.grid(color=LIGHT_GREY, linewidth=0.6)
    for metric, (dash, marker, fill) in _LINES.items():
        for side in labels:
            known = [(row.value, seconds) for row in rows if (seconds := row.per_step(metric, side)) is not None]
            if axis == "threads":
                # Without a time with one thread there is nothing to compare with.
                known = [(value, known[0][1] / seconds) for value, seconds in known if known[0][0] == 1]
            if known:
                options = {"color": _colour(side), "linestyle": dash, "marker": marker, "fillstyle": fill}
                order = 3 if side == "candidate" else 2
                panel.plot(*zip(*known, strict=True), markersize=4, linewidth=1.5, zorder=order, **options)
    values = sorted({row.value for row in rows})
    if axis == "threads":
        panel.plot(values, values, color="black", linewidth=0.8, linestyle=":")
        panel.set_ylim(bottom=0)
        panel.set_xticks(values)
        return
    panel.set_xscale("log")
    if axis == "steps":
        panel.set_ylim(bottom=0)  # a flat line says that time grows as the length does
    else:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.set_xticks(values, [f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}") for value in values])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _round(value)))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _round(seconds: float) -> str:
    """``20 µs``: without the digits that only say that the figure is round."""
    number, unit = format_seconds(seconds).split(" ")
    return f"{float(number):g} {unit}"
