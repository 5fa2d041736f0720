"""Scaling: which points there are, and a run of small ones with its picture."""

from __future__ import annotations

import pytest
from bench_cases import run

from fastrnn.apps.bench import plot, scaling
from fastrnn.apps.bench.cases import Case, Shape
from fastrnn.apps.bench.runner import CaseResult


def test_points_cover_every_axis():
    points = list(scaling.make_points(["lstm", "gru"], "float32", 6))
    for cell in ("lstm", "gru"):
        for axis, values in (
            ("hidden", scaling.HIDDEN_SIZES),
            ("batch", scaling.BATCH_SIZES),
            ("steps", scaling.LENGTHS),
            ("threads", (1, 2, 4, 6)),
        ):
            found = [point for point in points if (point.case.cell, point.axis) == (cell, axis)]
            assert tuple(point.value for point in found) == values
            assert all(point.threads == (point.value if axis == "threads" else 6) for point in found)
    for point in points:
        if point.axis == "steps":
            assert point.case.shape.steps * point.case.chunks == point.value
            assert point.case.shape.steps <= scaling.CHUNK


def test_fewer_points_keep_both_ends():
    points = [point for point in scaling.make_points(["rnn"], "float32", 1, shrink=3) if point.axis == "batch"]
    assert [point.value for point in points] == [1, 8, 64]
    assert scaling.thread_counts(1) == [1]
    assert all(point.axis != "threads" for point in scaling.make_points(["rnn"], "float32", 1))
    assert scaling.thread_counts(8) == [1, 2, 4, 8]


def test_time_per_step_counts_chunks():
    case = Case("rnn", Shape(1, 100, 4, 4), chunks=10)
    row = CaseResult(case, seconds={"stream": {"candidate": [2.0, 2.0, 5.0]}})
    assert scaling.seconds_per_step(row, "stream", "candidate") == pytest.approx(2.0 / 1000)
    assert scaling.seconds_per_step(row, "stream", "baseline") is None


def test_scaling_run(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "BATCH_SIZES", (1, 2))
    monkeypatch.setattr(scaling, "LENGTHS", (4, 40))
    monkeypatch.setattr(scaling, "CHUNK", 8)
    make = scaling.make_points
    small = [Case("gru", Shape(2, 3, 4, 4)), Case("gru", Shape(1, 8, 4, 4), chunks=5)]

    def points(*arguments):
        for point in make(*arguments, sizes=(3, 5)):
            yield scaling.Point(point.axis, point.value, small[point.axis == "steps"], point.threads)

    monkeypatch.setattr(scaling, "make_points", points)
    status, document, text = run(
        tmp_path, "--scaling", "--threads", 2, "--engine", "torch", "--cells", "gru", name="scaling"
    )
    assert status == 0, document["problems"]
    assert document["complete"]
    assert [(point["axis"], point["value"]) for point in document["points"]] == [
        *(("hidden", 3), ("hidden", 5), ("batch", 1), ("batch", 2), ("steps", 4), ("steps", 40)),
        *(("threads", 1), ("threads", 2)),
    ]
    for point in document["points"]:
        wanted = "stream" if point["axis"] == "steps" else "total"
        assert len(point["seconds"][wanted]["candidate"]) == 3
        assert point["parity"]["ok"]
    assert "time per step" in text
    assert document["environment"]["cpu"]["model"]
    if plot.available():
        assert (tmp_path / "out" / "scaling.png").read_bytes().startswith(b"\x89PNG")
        assert "hidden units H" in (tmp_path / "out" / "scaling.svg").read_text()
