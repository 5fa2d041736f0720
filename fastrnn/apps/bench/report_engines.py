"""Tables in which each engine has a column: single steps, and the comparison with other libraries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastrnn.apps.bench.engines import find_engine
from fastrnn.apps.bench.figures import (
    NOTHING,
    WORDS,
    format_seconds,
    format_share,
    format_speedup,
    labels,
    multiply_signs,
)
from fastrnn.apps.bench.results import BEST_PEER, PEER_METRICS, PeerSummary, Results
from fastrnn.apps.bench.runner import SIDES, CaseResult

TITLES = {"total": "training", "inference": "inference", "stream": "single step"}

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


@dataclass(frozen=True)
class EngineTable:
    """A table with a title; cells are text."""

    title: str
    header: list[str]
    rows: list[list[str]]


def step_table(results: Results) -> EngineTable | None:
    """Times of single steps; None if there are none."""
    return _table("stream", results, results.steps) if results.steps else None


def peer_tables(results: Results) -> list[EngineTable]:
    """One table for each of training and inference, then geometric means; none without peers."""
    rows = [row for row in results.cases if row.peers]
    tables = []
    for metric in PEER_METRICS:
        those = [row for row in rows if any(metric in find_engine(name).metrics(row.case) for name in row.peers)]
        if those:
            tables.append(_table(metric, results, those))
    summary = _summary_rows(results)
    if summary:
        baseline, candidate = labels(results)
        engines = (baseline, *(find_engine(name).label for name in results.settings.peers), "the best peer")
        header = ["cell", "rows", *(f"against {name}" for name in engines), "worst against the best peer"]
        tables.append(EngineTable(f"{candidate}: geometric means of speed-ups (lowest–highest)", header, summary))
    return tables


def _table(metric: str, results: Results, rows: Iterable[CaseResult]) -> EngineTable:
    names = labels(results)
    peers = list(results.settings.peers)
    header = [
        "row",
        *names,
        *(find_engine(name).label for name in peers),
        f"against {names[0]}",
        *(["against the best peer"] if peers else []),
        "limit",
    ]
    return EngineTable(TITLES[metric], header, [_row(row, metric, peers) for row in rows])


def _row(row: CaseResult, metric: str, peers: Sequence[str]) -> list[str]:
    name = multiply_signs(f"{row.case.cell} {row.case.shape.label}")
    if row.status != "ok":
        return [name, WORDS[row.status], *[NOTHING] * (len(peers) + (4 if peers else 3))]
    best = row.best_peer(metric)
    against = [format_speedup(row.speedup(metric), spread=True)]
    if peers:
        speedup = row.speedup(metric, best) if best else None
        against.append(f"{format_speedup(speedup)} ({find_engine(best).label})" if best else NOTHING)
    return [
        name,
        *(format_seconds(row.median_seconds(metric, side)) for side in SIDES),
        *(_peer_cell(row, metric, peer) for peer in peers),
        *against,
        format_share(row.limit_share(metric)),
    ]


def _peer_cell(row: CaseResult, metric: str, peer: str) -> str:
    found = row.peers.get(peer)
    if found is not None and found.status != "ok":
        return WORDS[found.status]
    return format_seconds(row.median_seconds(metric, peer))


def _summary_rows(results: Results) -> list[list[str]]:
    """A line for each metric and cell, a column for each engine."""
    groups: dict[tuple[str, str], dict[str, PeerSummary]] = {}
    for one in results.peer_summaries():
        groups.setdefault((one.metric, one.cell), {})[one.against] = one
    rows = []
    for (metric, cell), engines in groups.items():
        cells = []
        for against in ("baseline", *results.settings.peers, BEST_PEER):
            found = engines.get(against)
            cells.append(f"{found.mean:.2f}× ({found.lowest:.2f}–{found.highest:.2f})" if found else NOTHING)
        best = engines[BEST_PEER]
        worst = multiply_signs(f"{best.lowest:.2f}×, {best.lowest_row}")
        rows.append([f"{cell} {TITLES[metric]}", str(best.rows), *cells, worst])
    return rows


def peer_notes(results: Results) -> list[str]:
    """Peers that failed, one line each kind of failure."""
    found: dict[str, list[str]] = {}
    for row in [*results.cases, *results.steps]:
        for name, peer in row.peers.items():
            if peer.status != "ok":
                found.setdefault(f"{find_engine(name).label} {WORDS[peer.status]}: {peer.message}", []).append(
                    row.case.name
                )
    return [f"{message} ({names[0]}{' …' if len(names) > 1 else ''})" for message, names in found.items()]
