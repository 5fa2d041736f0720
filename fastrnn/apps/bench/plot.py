"""The picture: speed-up bars by cell, other libraries beside them, pace and loss curves of the language model.

Colours are from Okabe and Ito's palette, which people with any kind of colour vision can tell apart; engines also
differ in line style.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastrnn.apps.bench import plot_peers
from fastrnn.apps.bench.environment import describe
from fastrnn.apps.bench.figures import format_speedup, labels, multiply_signs
from fastrnn.apps.bench.ratios import RANGE_BELOW
from fastrnn.apps.bench.report import groups
from fastrnn.apps.bench.results import Results
from fastrnn.apps.bench.runner import SIDES, CaseResult, ModelResult

INSTALL = "no plot: matplotlib is not installed; get it with: python -m pip install 'fastrnn[plot]'"
SUFFIXES = (".svg", ".png", ".pdf")

BLUE, ORANGE, GREY, RED, LIGHT_GREY = "#0072B2", "#E69F00", "#7F7F7F", "#D55E00", "#DDDDDD"
PEER_COLOURS = {"onnxruntime": "#E69F00", "openvino": "#009E73", "jax": "#CC79A7"}
_BARS = (("total", "training", BLUE), ("inference", "inference", ORANGE))
TIGHT = {"fontsize": 8, "columnspacing": 1.0, "handlelength": 1.2, "handletextpad": 0.4, "borderaxespad": 0.2}
_OVER_LINES = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # a wide range is drawn behind the number
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000, 10_000)


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def style() -> Any:
    """Context in which all pictures are drawn and saved."""
    import matplotlib

    settings: Any = {"font.size": 9, "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}
    return matplotlib.rc_context(settings)


def save(results: Results, paths: Sequence[Path]) -> None:
    """Draw the results once and write them to every path, each in the format of its suffix."""
    with style():
        figure = _draw(results)
        for path in paths:
            figure.savefig(path, dpi=150)


def _draw(results: Results) -> Any:
    # A Figure of its own, not pyplot's: no window system, no global state.
    from matplotlib.figure import Figure

    grouped = groups(results)
    dtypes = list(dict.fromkeys(dtype for dtype, _ in grouped))
    heights = [1.3 + 0.36 * max(len(rows) for (kind, _), rows in grouped.items() if kind == dtype) for dtype in dtypes]
    peer_metrics = plot_peers.metrics(results)
    heights += [plot_peers.height(results, metric) for metric in peer_metrics]
    if results.model:
        heights.append(3.2)
    width, height = 13.0, sum(heights) + 1.3
    figure = Figure(figsize=(width, height), layout="constrained")
    baseline, candidate = labels(results)
    figure.suptitle(f"{candidate} against {baseline}\n", fontsize=14, fontweight="bold")
    figure.text(0.5, 1 - 0.42 / height, describe(results.environment), ha="center", va="top", fontsize=8, color=GREY)
    panels: Any = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0] if heights else []
    limits = _limits(results)
    for panel, dtype in zip(panels, dtypes, strict=False):
        cells = {cell: rows for (kind, cell), rows in grouped.items() if kind == dtype}
        alike = len({tuple(row.case.shape for row in rows) for rows in cells.values()}) == 1
        axes = panel.subplots(1, len(cells), squeeze=False, sharey=alike)[0]
        for axis, (cell, rows) in zip(axes, cells.items(), strict=True):
            _draw_speedups(axis, cell.upper(), rows, limits)
            axis.set_xlabel(f"times as fast as {baseline}, {dtype}")
        panel.legend(
            handles=_legend(results.settings.rounds), loc="outside lower center", ncols=3, frameon=False, **TIGHT
        )
    for panel, metric in zip(panels[len(dtypes) :], peer_metrics, strict=False):
        plot_peers.draw(panel, results, metric)
    if results.model:
        _draw_model(panels[-1], results.model, (baseline, candidate))
    return figure


def _legend(rounds: int) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    patches = [Patch(color=colour, label=label) for _, label, colour in _BARS]
    spread = "95 % interval" if rounds >= RANGE_BELOW else "range of rounds"
    return [*patches, Line2D([], [], color="black", linewidth=1, label=spread)]


def _limits(results: Results) -> tuple[float, float]:
    """Common range of all speed-up axes, with room for the numbers at the ends of the bars."""
    values = [1.0]
    for row in results.cases:
        for metric, _, _ in _BARS:
            speedup = row.speedup(metric)
            if speedup:
                values.append(speedup.median)
    low, high = min(values), max(values)
    return min(0.8, low / 1.3), max(2.5, 1.3 * high * (high / low) ** 0.25)


def _draw_speedups(axis: Any, title: str, rows: Sequence[CaseResult], limits: tuple[float, float]) -> None:
    for number, row in enumerate(rows):
        for offset, (metric, _, colour) in zip((-0.19, 0.19), _BARS, strict=True):
            speedup = row.speedup(metric)
            if speedup is None:
                continue
            place = number + offset
            axis.barh(
                place, speedup.median - 1.0, left=1.0, height=0.34, color=colour, alpha=0.45 if speedup.uncertain else 1
            )
            axis.plot(speedup.interval, (place, place), color="black", linewidth=1)
            edge = max(1.0, speedup.median, min(speedup.interval[1], limits[1] / 1.5))
            axis.text(edge * 1.06, place, format_speedup(speedup), va="center", fontsize=7, bbox=_OVER_LINES)
        if row.status != "ok":
            word = {"failed": "FAILED parity", "error": "error"}.get(row.status, row.status)
            axis.text(1.03, number, word, va="center", color=RED, fontweight="bold")
    draw_ratio_axis(axis, limits)
    draw_row_labels(axis, rows)
    axis.set_title(title, fontweight="bold", loc="left")


def draw_ratio_axis(axis: Any, limits: tuple[float, float]) -> None:
    """A logarithmic axis of ratios below, with a line at 1."""
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


def draw_row_labels(axis: Any, rows: Sequence[CaseResult]) -> None:
    """Shapes on the left, the first row at the top."""
    axis.set_yticks(range(len(rows)), [multiply_signs(row.case.shape.label) for row in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)


def _draw_model(panel: Any, model: ModelResult, names: tuple[str, str]) -> None:
    pace, curves = panel.subplots(1, 2, width_ratios=(1, 2))
    pace.set_title("Character language model, training", fontweight="bold", loc="left")
    values = [value for value in map(model.characters_per_second, SIDES) if value is not None]
    if len(values) == len(SIDES):
        pace.barh([0, 1], values, height=0.55, color=(GREY, BLUE))
        for place, value in enumerate(values):
            note = "" if place == 0 else f"  ({format_speedup(model.speedup())})"
            pace.text(value, place, f" {value:,.0f}{note}", va="center")
        pace.set_xlim(0, max(values) * 1.45)
    else:
        pace.text(0.5, 0.5, "FAILED parity" if model.status == "failed" else "no result", color=RED, ha="center",
                  transform=pace.transAxes)  # fmt: skip
    pace.set_yticks([0, 1], names)
    pace.set_ylim(1.6, -0.6)
    pace.set_xlabel("characters per second")
    pace.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    pace.locator_params(axis="x", nbins=4)
    styles = ({"color": "#BBBBBB", "linewidth": 4.0}, {"color": BLUE, "linewidth": 1.2, "linestyle": "--"})
    for name, side, style in zip(names, SIDES, styles, strict=True):
        losses = model.losses[side]
        curves.plot(range(1, len(losses) + 1), losses, label=name, **style)
    curves.set_title("Its loss, both runs from one seed", fontweight="bold", loc="left")
    curves.set_xlabel("step")
    curves.set_ylabel("nats per character")
    curves.grid(color=LIGHT_GREY, linewidth=0.6)
    curves.legend(frameon=False)
