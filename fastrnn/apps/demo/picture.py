"""Figure of the demo: two bars for each comparison, relative to the slower one."""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrnn.apps.bench.report import format_seconds, multiply_signs

if TYPE_CHECKING:
    from fastrnn.apps.demo.comparisons import Comparison

BLUE, GREY, RED = "#0072B2", "#9A9A9A", "#D55E00"
WIDTH, ROW = 5.2, 0.95  # inches, width of the figure, height of a comparison


def available() -> bool:
    """Return True if matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def save(comparisons: Sequence[Comparison], path: Path) -> None:
    """Draw the comparisons to a file, in the format of its suffix."""
    import matplotlib
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    doubts = any(one.doubts for one in comparisons)
    with matplotlib.rc_context({"font.size": 9, "svg.fonttype": "none"}):
        height = ROW * len(comparisons) + 0.5
        figure = Figure(figsize=(WIDTH, height))
        figure.text(0.03, 1 - 0.12 / height, "Time of a training step", fontsize=13, fontweight="bold", va="top")
        if doubts:
            said = "unreliable: other load on the machine"
            figure.text(0.97, 1 - 0.16 / height, said, color=RED, fontweight="bold", va="top", ha="right")
        axis = figure.add_axes((0.03, 0.02, 0.94, 1 - 0.42 / height))
        axis.set(xlim=(0, 1.6), ylim=(len(comparisons) - 0.55, -0.6))
        axis.set_axis_off()
        for place, one in enumerate(comparisons):
            _draw(axis, place, one)
        figure.savefig(path, dpi=200)


def _draw(axis: Any, place: int, one: Comparison) -> None:
    axis.text(0, place - 0.45, multiply_signs(one.name), fontweight="bold", va="center")
    if one.seconds is None:
        axis.text(0, place, textwrap.shorten(one.problem, 70), color=RED, va="center")
        return
    longest, bars = max(one.seconds), (-0.12, 0.2)
    for offset, colour, seconds in zip(bars, (GREY, BLUE), one.seconds, strict=True):
        axis.barh(place + offset, seconds / longest, height=0.28, color=colour)
    slow, fast = one.seconds
    axis.text(slow / longest, place + bars[0], f" {one.other} {format_seconds(slow)}", va="center")
    ratio = f"{slow / fast:.1f}×"
    text = axis.text(fast / longest, place + bars[1], f" fastrnn {format_seconds(fast)} ", va="center")
    axis.annotate(ratio, (1, 0.5), xycoords=text, va="center", fontweight="bold", color=BLUE)
