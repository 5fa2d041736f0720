"""The picture of ``--scaling``: a row for each cell, a column for each size that varies, a colour for each engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastrnn.apps.bench.environment import describe
from fastrnn.apps.bench.figures import format_seconds, side_labels
from fastrnn.apps.bench.plot import BLUE, GREY, LIGHT_GREY, PEER_COLOURS, style
from fastrnn.apps.bench.scaling import Axis, ScalingResults, seconds_per_step

# Kind → dash, marker, filled.
_STYLES: dict[str, tuple[Any, str, bool]] = {
    "total": ("-", "o", True),
    "inference": ("--", "s", False),
    "stream": ("--", "s", False),
}


def save(results: ScalingResults, paths: Sequence[Path]) -> None:
    """Draw the results once and write them to every path, each in the format of its suffix."""
    with style():
        figure = _draw(results)
        for path in paths:
            figure.savefig(path, dpi=150)


def _sides(results: ScalingResults) -> dict[str, tuple[str, str]]:
    """Label and colour by side."""
    colours = {"baseline": GREY, "candidate": BLUE, **PEER_COLOURS}
    return {side: (label, colours[side]) for side, label in side_labels(results).items()}


def _draw(results: ScalingResults) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    cells, columns, sides = results.cells, results.axes, _sides(results)
    height = 2.9 * max(1, len(cells)) + 1.5
    figure = Figure(figsize=(max(9.0, 3.75 * len(columns)), height), layout="constrained")
    names = ", ".join(label for label, _ in sides.values())
    figure.suptitle(f"Time per step: {names}\n\n", fontsize=14, fontweight="bold")
    figure.text(0.5, 1 - 0.42 / height, describe(results.environment), ha="center", va="top", fontsize=8, color=GREY)
    axes: Any = figure.subplots(max(1, len(cells)), max(1, len(columns)), squeeze=False)
    for row, cell in zip(axes, cells, strict=False):
        for panel, axis in zip(row, columns, strict=False):
            _draw_panel(panel, results, cell, axis, sides)
        row[0].set_ylabel("time per step")
        if columns and columns[-1].name == "threads":
            row[-1].set_ylabel("times as fast as with one thread")
    handles = [Line2D([], [], color=colour, label=label, linewidth=2) for label, colour in sides.values()]
    for metric, word in (("total", "training (forward + backward)"), ("inference", "inference")):
        dash, marker, filled = _STYLES[metric]
        handle = Line2D([], [], color="black", marker=marker, fillstyle="full" if filled else "none", label=word)
        handle.set_linestyle(dash)
        handles.append(handle)
    if any(axis.name == "threads" for axis in columns):
        handles.append(Line2D([], [], color="black", linewidth=0.8, linestyle=":", label="as many times as threads"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _draw_panel(panel: Any, results: ScalingResults, cell: str, axis: Axis, sides: dict[str, tuple[str, str]]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    rows = results.rows(cell, axis.name)
    panel.set_title(f"{cell.upper()}   {axis.fixed}", loc="left", fontsize=9)
    panel.set_xlabel(axis.label)
    panel.grid(color=LIGHT_GREY, linewidth=0.6)
    for metric, (dash, marker, filled) in _STYLES.items():
        for side, (_, colour) in sides.items():
            points = [(value, seconds_per_step(row, metric, side)) for value, row in rows]
            known = [(value, seconds) for value, seconds in points if seconds is not None]
            if not known:
                continue
            if axis.name == "threads":
                if known[0][0] != 1:
                    continue  # nothing to compare with
                known = [(value, known[0][1] / seconds) for value, seconds in known]
            panel.plot(
                *zip(*known, strict=True),
                color=colour,
                linestyle=dash,
                marker=marker,
                markersize=4,
                fillstyle="full" if filled else "none",
                linewidth=1.5,
                zorder=3 if side == "candidate" else 2,
            )
    values = sorted({value for value, _ in rows})
    if axis.name == "threads":
        panel.plot(values, values, color="black", linewidth=0.8, linestyle=":")
        panel.set_ylim(bottom=0)
        panel.set_xticks(values)
        return
    panel.set_xscale("log")
    if axis.name == "steps":
        panel.set_ylim(bottom=0)  # a flat line says that time grows as the length does
    else:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.set_xticks(values, [f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}") for value in values])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _short(seconds: float) -> str:
    """``20 µs``: a round figure without the digits that only say that it is round."""
    number, unit = format_seconds(seconds).split(" ")
    return f"{float(number):g} {unit}"
