"""Figure of `fastrnn gradflow`: norms against the lag for all networks, then a row of panels for each.

matplotlib is optional (``pip install 'fastrnn[plot]'``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn.inspect.gradflow import Run

INSTALL = "matplotlib is not installed; install it with: python -m pip install 'fastrnn[plot]'"

_DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)))
_MARKERS = "os^Dvx+*"
_GRID = {"linewidth": 0.6}
#: Range of the heat maps' colours below the largest gradient, in powers of ten.
_DECADES = 12


def _style(dark: bool) -> Any:
    """Return settings of matplotlib.

    Colours are Okabe and Ito's for colour-blind readers; initialisations differ in dash.
    """
    from cycler import cycler

    colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F"]
    ground, ink, lines = "#FFFFFF", "#000000", "#DDDDDD"
    if dark:
        colours = ["#56B4E9", "#E69F00", "#2BC79A", "#E59AC4", "#F0E442", "#F2803A", "#B0B0B0"]
        ground, ink, lines = "#14181D", "#E8E8E8", "#3A424B"
    grounds = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), ground)
    inks = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), ink)
    return {
        "font.size": 9,
        "svg.fonttype": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": lines,
        "axes.prop_cycle": cycler(color=colours),
        **grounds,
        **inks,
    }


def _colour(number: int) -> str:
    import matplotlib

    colours = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
    colour: str = colours[number % len(colours)]
    return colour


def _ink() -> str:
    import matplotlib

    colour: str = matplotlib.rcParams["text.color"]
    return colour


def _whole(axis: Any) -> None:
    """Set ticks at whole numbers, for steps, units and batches."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def save(runs: Sequence[Run], paths: Sequence[Path], dark: bool = False) -> None:
    """Draw the runs once and write the figure to every path, in the format of its suffix; ``dark``: light on dark.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(INSTALL) from error
    with matplotlib.rc_context(_style(dark)):
        height = 4.6 + 3.1 * len(runs)
        figure = Figure(figsize=(14, height), layout="constrained")
        figure.suptitle("Gradient flow", fontsize=14, fontweight="bold")
        panels: Any = figure.subfigures(1 + len(runs), 1, height_ratios=[4.2] + [3.1] * len(runs))
        top, *rows = panels
        _draw_norms(top, runs)
        scale = _common_scale(runs)
        for panel, run in zip(rows, runs, strict=True):
            _draw_run(panel, run, scale)
        for path in paths:
            figure.savefig(path, dpi=110)


def _draw_norms(panel: Any, runs: Sequence[Run]) -> None:
    # For each run h, and the second state if it has one.
    columns = [[(run, state) for run in runs for state in list(run.norms)[k : k + 1]] for k in range(2)]
    cells, inits = (list(dict.fromkeys(values)) for values in zip(*((r.cell, r.init) for r in runs), strict=True))
    columns = [column for column in columns if column]
    axes = panel.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    handles: dict[str, Any] = {}
    for axis, column in zip(axes, columns, strict=True):
        for run, state in column:
            colour = _colour(cells.index(run.cell))
            dash = _DASHES[inits.index(run.init) % len(_DASHES)]
            norms = _positive(run.norms[state])
            (line,) = axis.plot(norms, color=colour, linestyle=dash, linewidth=1.6, label=run.label)
            handles.setdefault(run.label, line)
        axis.set_yscale("log")
        names = ", ".join(f"‖∂L/∂{state}ₜ‖" for state in dict.fromkeys(state for _, state in column))
        axis.set_title(f"{names} against lag", loc="left", fontweight="bold")
        axis.set_xlabel("lag: steps before the last one")
        _whole(axis.xaxis)
        axis.grid(**_GRID)
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(max(low, high * 1e-24), high)  # vanished gradients need no resolution
    panel.legend(handles=list(handles.values()), loc="outside right upper", frameon=False)


def _positive(values: Sequence[Any]) -> np.ndarray:
    """Return values with gaps for zeros and overflows, for a logarithmic axis."""
    positive = np.array(values, np.float64)
    positive[~(positive > 0) | ~np.isfinite(positive)] = np.nan
    return positive


def _common_scale(runs: Sequence[Run]) -> tuple[float, float]:
    """Return the range of powers of ten for the colours of all heat maps."""
    known = [np.log10(_positive(run.heat)) for run in runs]
    known = [values[np.isfinite(values)] for values in known]
    every = np.concatenate(known) if known else np.zeros(0)
    if not every.size:
        return -1.0, 0.0
    high = float(every.max())
    return max(float(every.min()), high - _DECADES), max(high, float(every.min()) + 0.1)


def _draw_run(panel: Any, run: Run, scale: tuple[float, float]) -> None:
    panel.suptitle(f"{run.label}: L = {run.loss}", x=0.01, ha="left", fontweight="bold", fontsize=10)
    heat, matrix, step, norms = panel.subplots(1, 4, width_ratios=(1.5, 1, 1, 1.2))
    _draw_heat(panel, heat, run, scale)
    _draw_eigenvalues(matrix, run.recurrent, "eigenvalues of R", "no matrix R")
    middle = (len(run.heat) - 1) // 2 + 1  # steps count from 1; 0 is the initial state
    _draw_eigenvalues(step, {"": run.step}, f"eigenvalues of the Jacobian, step {middle}", "not finite")
    _draw_clipping(norms, run)


def _draw_heat(panel: Any, axis: Any, run: Run, scale: tuple[float, float]) -> None:
    low, high = scale
    image = axis.imshow(
        np.log10(_positive(run.heat).T),
        aspect="auto",
        cmap="cividis",
        interpolation="nearest",
        origin="lower",
        vmin=low,
        vmax=high,
    )
    axis.set_title("log₁₀ |∂L/∂h|, mean over batch rows", loc="left", fontsize=9)
    axis.set_xlabel("time")
    axis.set_ylabel("unit")
    _whole(axis.xaxis)
    _whole(axis.yaxis)
    panel.colorbar(image, ax=axis, pad=0.02)


def _draw_eigenvalues(axis: Any, values: dict[str, list[list[float]]], title: str, nothing: str) -> None:
    angle = np.linspace(0, 2 * np.pi, 200)
    axis.plot(np.cos(angle), np.sin(angle), color=_ink(), linewidth=0.8, zorder=3)
    reach = 1.0
    for number, (name, points) in enumerate(values.items()):
        if points:
            real, imaginary = np.array(points).T
            reach = max(reach, float(np.abs(points).max()))
            axis.plot(
                real,
                imaginary,
                _MARKERS[number % len(_MARKERS)],
                color=_colour(number),
                markersize=3.2,
                alpha=0.75,
                markeredgewidth=0.8,
                fillstyle="none" if name else "full",
                label=name or None,
            )
    axis.set_xlim(-1.15 * reach, 1.15 * reach)
    axis.set_ylim(-1.15 * reach, 1.15 * reach)
    axis.set_aspect("equal")
    axis.set_xlabel("Re λ", labelpad=1)
    axis.set_ylabel("Im λ", labelpad=1)
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
    axis.plot(places, _positive(run.after), "s--", color=_colour(0), markersize=3, linewidth=1, label="after")
    axis.set_yscale("log")
    if np.isfinite(run.clip):
        axis.axhline(run.clip, color=_ink(), linewidth=0.8, linestyle=":")
    low, high = axis.get_ylim()
    axis.set_ylim(low / 1.5, high * 3)
    axis.set_title("norm of the weights’ gradient", loc="left", fontsize=9)
    axis.set_xlabel("batch")
    _whole(axis.xaxis)
    axis.grid(**_GRID)
    axis.legend(fontsize=7, frameon=False, loc="upper right", ncols=2)
