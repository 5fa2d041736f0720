"""Draw docs/speed.svg from the table of speed-ups in README.md: ``python benchmarks/speed_figure.py``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE, TARGET = ROOT / "README.md", ROOT / "docs" / "speed.svg"
CELLS = {"LSTM": "#0072B2", "GRU": "#009E73", "RNN": "#E69F00"}
HEADING = "| B×T×H | LSTM | GRU | RNN |"
WIDTH = 6.0  # inches


def rows_of(page: str) -> list[tuple[str, list[float]]]:
    """Return the shape and the speed-ups of LSTM, GRU and RNN of each row of the table, without the means."""
    lines = page[page.index(HEADING) :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [(shape, [float(r.strip("~×")) for r in ratios]) for shape, *ratios in cells if re.match(r"\d", shape)]


def draw(rows: list[tuple[str, list[float]]]) -> Any:
    """Draw three bars per shape on a logarithmic axis that begins at 1, the speed of torch.nn."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 0.52 * len(rows) + 0.8), facecolor="white")
    figure.text(0.02, 0.985, "Training: times as fast as torch.nn", fontsize=12, fontweight="bold", va="top")
    axis = figure.add_axes((0.27, 0.02, 0.71, 0.87))
    for place, (_, ratios) in enumerate(rows):
        for number, (ratio, colour) in enumerate(zip(ratios, CELLS.values(), strict=True)):
            y = place + 0.27 * (number - 1)
            axis.barh(y, ratio - 1, left=1, height=0.25, color=colour)
            axis.text(ratio * 1.03, y, f"{ratio:.3g}×", va="center", fontsize=7.5)
    axis.set(xscale="log", xlim=(1, 60), ylim=(len(rows) - 0.45, -0.55), xticks=[])
    axis.set_xticks([], minor=True)
    axis.set_yticks(range(len(rows)), [shape.replace(", ", ",\n", 1) for shape, _ in rows], fontsize=8.5)
    axis.tick_params(length=0)
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)
    for place, (cell, colour) in enumerate(CELLS.items()):
        figure.text(0.70 + 0.1 * place, 0.983, cell, color=colour, fontsize=10, fontweight="bold", va="top")
    return figure


def main() -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "speed"}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        draw(rows_of(PAGE.read_text(encoding="utf-8"))).savefig(TARGET, metadata=nothing)


if __name__ == "__main__":
    main()
