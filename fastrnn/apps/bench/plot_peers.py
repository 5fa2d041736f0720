"""The part of the picture that compares with other libraries: a point for each engine in each row."""

from __future__ import annotations

from typing import Any

from fastrnn.apps.bench import plot
from fastrnn.apps.bench.engines import find_engine
from fastrnn.apps.bench.figures import labels
from fastrnn.apps.bench.results import PEER_METRICS, Results
from fastrnn.apps.bench.runner import CaseResult

_MARKERS = {"onnxruntime": "s", "openvino": "D", "jax": "^"}
_WORDS = {"total": "training", "inference": "inference"}


def metrics(results: Results) -> list[str]:
    """What there is to draw."""
    return [metric for metric in PEER_METRICS if _rows(results, metric)]


def _rows(results: Results, metric: str) -> dict[str, list[CaseResult]]:
    """Rows by cell in which a peer was timed."""
    rows: dict[str, list[CaseResult]] = {}
    for row in results.cases:
        if row.best_peer(metric):
            rows.setdefault(row.case.cell, []).append(row)
    return rows


def height(results: Results, metric: str) -> float:
    """Inches that one panel needs."""
    return 1.3 + 0.25 * max(len(rows) for rows in _rows(results, metric).values())


def draw(panel: Any, results: Results, metric: str) -> None:
    """One panel: a column for each cell, torch.nn at 1."""
    from matplotlib.lines import Line2D

    baseline, candidate = labels(results)
    engines = {"candidate": (candidate, plot.BLUE, "o")}
    for name in results.settings.peers:
        engines[name] = (find_engine(name).label, plot.PEER_COLOURS[name], _MARKERS[name])
    grouped = _rows(results, metric)
    points = {
        (cell, side): [(_ratio(row, metric, side), number) for number, row in enumerate(rows)]
        for cell, rows in grouped.items()
        for side in engines
    }
    ratios = [1.0, *(ratio for found in points.values() for ratio, _ in found if ratio is not None)]
    limits = min(ratios) / 1.2, max(ratios) * 1.2
    alike = len({tuple(row.case.shape for row in rows) for rows in grouped.values()}) == 1
    axes = panel.subplots(1, len(grouped), squeeze=False, sharey=alike)[0]
    for axis, (cell, rows) in zip(axes, grouped.items(), strict=True):
        for side, (_, colour, marker) in engines.items():
            known = [(ratio, number) for ratio, number in points[cell, side] if ratio is not None]
            axis.plot(
                [ratio for ratio, _ in known],
                [number for _, number in known],
                marker,
                color=colour,
                markersize=7 if side == "candidate" else 5,
                zorder=3 if side == "candidate" else 2,
            )
        plot.draw_ratio_axis(axis, limits)
        plot.draw_row_labels(axis, rows)
        axis.set_title(f"{cell.upper()}, {_WORDS[metric]}", fontweight="bold", loc="left")
        axis.set_xlabel(f"times as fast as {baseline}, float32")
    timed = [side for side in engines if any(ratio for cell in grouped for ratio, _ in points[cell, side])]
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=label)
        for label, colour, marker in (engines[side] for side in timed)
    ]
    panel.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, **plot.TIGHT)


def _ratio(row: CaseResult, metric: str, side: str) -> float | None:
    """How many times as fast as torch.nn; medians, since a peer's rounds are no neighbours of torch.nn's."""
    slow, fast = row.median_seconds(metric, "baseline"), row.median_seconds(metric, side)
    return slow / fast if slow and fast else None
