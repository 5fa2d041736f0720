"""The figure of `fastrnn gradflow`: norms against the lag for all networks, then a row of panels for each.

matplotlib is optional (``pip install 'fastrnn[plot]'``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn.inspect.gradflow import Run

INSTALL = "matplotlib is not installed; get it with: python -m pip install 'fastrnn[plot]'"

#: Okabe and Ito's colours, which people with any kind of colour vision can tell apart; initialisations differ in dash.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
_DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)))
_MARKERS = "os^Dvx+*"
_GRID = {"color": "#DDDDDD", "linewidth": 0.6}
_STYLE: Any = {
    "font.size": 9,
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def save(runs: Sequence[Run], paths: Sequence[Path]) -> None:
    """Draws the runs once and writes them to every path, each in the format of its suffix.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(INSTALL) from error
    with matplotlib.rc_context(_STYLE):
        height = 4.6 + 3.1 * len(runs)
        figure = Figure(figsize=(14, height), layout="constrained")
        figure.suptitle("Gradient flow", fontsize=14, fontweight="bold")
        panels: Any = figure.subfigures(1 + len(runs), 1, height_ratios=[4.2] + [3.1] * len(runs))
        top, *rows = panels
        _draw_norms(top, runs)
        for panel, run in zip(rows, runs, strict=True):
            _draw_run(panel, run)
        for path in paths:
            figure.savefig(path, dpi=110)


def _draw_norms(panel: Any, runs: Sequence[Run]) -> None:
    # Of each run h, and the second state if it has one.
    columns = [[(run, state) for run in runs for state in list(run.norms)[k : k + 1]] for k in range(2)]
    cells, inits = (list(dict.fromkeys(values)) for values in zip(*((r.cell, r.init) for r in runs), strict=True))
    columns = [column for column in columns if column]
    axes = panel.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    handles: dict[str, Any] = {}
    for axis, column in zip(axes, columns, strict=True):
        for run, state in column:
            colour = _COLOURS[cells.index(run.cell) % len(_COLOURS)]
            dash = _DASHES[inits.index(run.init) % len(_DASHES)]
            norms = _positive(run.norms[state])
            (line,) = axis.plot(norms, color=colour, linestyle=dash, linewidth=1.6, label=run.label)
            handles.setdefault(run.label, line)
        axis.set_yscale("log")
        names = ", ".join(f"‖∂L/∂{state}ₜ‖" for state in dict.fromkeys(state for _, state in column))
        axis.set_title(f"{names} against lag", loc="left", fontweight="bold")
        axis.set_xlabel("lag: steps before the last one")
        axis.grid(**_GRID)
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(max(low, high * 1e-24), high)  # what has vanished need not be told apart
    panel.legend(handles=list(handles.values()), loc="outside right upper", frameon=False)


def _positive(values: Sequence[Any]) -> np.ndarray:
    """Zeros and what overflowed as gaps, for a logarithmic axis."""
    found = np.array(values, np.float64)
    found[~(found > 0) | ~np.isfinite(found)] = np.nan
    return found


def _draw_run(panel: Any, run: Run) -> None:
    panel.suptitle(f"{run.label}: L = {run.loss}", x=0.01, ha="left", fontweight="bold", fontsize=10)
    heat, matrix, step, norms = panel.subplots(1, 4, width_ratios=(1.5, 1, 1, 1.2))
    _draw_heat(panel, heat, run)
    _draw_eigenvalues(matrix, run.recurrent, "eigenvalues of R", "no matrix R")
    middle = (len(run.heat) - 1) // 2 + 1  # steps count from 1: 0 is the initial state
    _draw_eigenvalues(step, {"": run.step}, f"of the Jacobian of step {middle}", "not finite")
    _draw_clipping(norms, run)


def _draw_heat(panel: Any, axis: Any, run: Run) -> None:
    values = np.log10(_positive(run.heat).T)
    known = values[np.isfinite(values)]
    high = float(known.max()) if known.size else 0.0
    low = max(float(known.min()), high - 12) if known.size else -1.0
    image = axis.imshow(
        values,
        aspect="auto",
        cmap="cividis",
        interpolation="nearest",
        origin="lower",
        vmin=low,
        vmax=max(high, low + 0.1),
    )
    axis.set_title("log₁₀ |∂L/∂h|, mean over rows", loc="left", fontsize=9)
    axis.set_xlabel("time")
    axis.set_ylabel("unit")
    panel.colorbar(image, ax=axis, pad=0.02)


def _draw_eigenvalues(axis: Any, values: dict[str, list[list[float]]], title: str, nothing: str) -> None:
    angle = np.linspace(0, 2 * np.pi, 200)
    axis.plot(np.cos(angle), np.sin(angle), color="black", linewidth=0.8, zorder=3)
    reach = 1.0
    for number, (name, points) in enumerate(values.items()):
        if points:
            real, imaginary = np.array(points).T
            reach = max(reach, float(np.abs(points).max()))
            axis.plot(
                real,
                imaginary,
                _MARKERS[number % len(_MARKERS)],
                color=_COLOURS[number % len(_COLOURS)],
                markersize=3.2,
                alpha=0.75,
                markeredgewidth=0.8,
                fillstyle="none" if name else "full",
                label=name or None,
            )
    axis.set_xlim(-1.15 * reach, 1.15 * reach)
    axis.set_ylim(-1.15 * reach, 1.15 * reach)
    axis.set_aspect("equal")
    axis.grid(**_GRID)
    axis.set_axisbelow(True)
    sizes = [float(np.hypot(point[0], point[1])) for points in values.values() for point in points]
    axis.set_title(f"{title}\n" + (f"largest |λ| {max(sizes):.3g}" if sizes else nothing), loc="left", fontsize=9)
    if len(values) > 1:
        axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), handletextpad=0.1)


def _draw_clipping(axis: Any, run: Run) -> None:
    places = range(1, len(run.before) + 1)
    before = {"color": "#7F7F7F", "fillstyle": "none", "markersize": 6, "label": "before clipping"}
    axis.plot(places, _positive(run.before), "o-", **before)
    axis.plot(places, _positive(run.after), "s--", color="#0072B2", markersize=3, linewidth=1, label="after")
    axis.set_yscale("log")
    if np.isfinite(run.clip):
        axis.axhline(run.clip, color="black", linewidth=0.8, linestyle=":")
    low, high = axis.get_ylim()
    axis.set_ylim(low / 1.5, high * 3)
    axis.set_title("norm of the weights’ gradient", loc="left", fontsize=9)
    axis.set_xlabel("batch")
    axis.grid(**_GRID)
    axis.legend(fontsize=7, frameon=False, loc="upper right", ncols=2)
