"""Scaling: which points there are, and a run of small ones with its picture."""

from __future__ import annotations

import dataclasses

import pytest
from bench_cases import run

from fastrnn.apps.bench import plot, runner
from fastrnn.apps.bench.cases import QUICK_SHAPES, Case, Shape, make_cases
from fastrnn.apps.bench.results import Row, Settings


def settings(*cells, quick=False):
    return Settings(tuple(make_cases(cells, QUICK_SHAPES, ["float32"])), mode="scaling", quick=quick)


def test_points_cover_every_axis():
    points = runner.make_points(settings("lstm", "gru"), 6)
    for cell in ("lstm", "gru"):
        values = {axis: values for axis, (_, _, values) in runner.AXES.items()} | {"threads": (1, 2, 4, 6)}
        for axis in runner.AXES:
            found = [point for point in points if (point.case.cell, point.axis) == (cell, axis)]
            assert tuple(point.value for point in found) == values[axis]
            assert all(point.threads == (point.value if axis == "threads" else 6) for point in found)
    for point in points:
        if point.axis == "steps":
            assert point.case.shape.steps * point.case.chunks == point.value
            assert point.case.shape.steps <= runner.CHUNK


def test_fewer_points_keep_both_ends():
    points = [point for point in runner.make_points(settings("rnn", quick=True), 1) if point.axis == "batch"]
    assert [point.value for point in points] == [1, 8, 64]
    assert runner.thread_counts(1) == [1]
    assert all(point.axis != "threads" for point in runner.make_points(settings("rnn"), 1))
    assert runner.thread_counts(8) == [1, 2, 4, 8]


def test_time_per_step_counts_chunks():
    case = Case("rnn", Shape(1, 100, 4, 4), chunks=10)
    row = Row(case=case, seconds={"stream": {"candidate": [2.0, 2.0, 5.0]}})
    assert row.per_step("stream", "candidate") == pytest.approx(2.0 / 1000)
    assert row.per_step("stream", "baseline") is None


def test_scaling_run(tmp_path, monkeypatch):
    sizes = {"hidden": (3, 5), "batch": (1, 2), "steps": (4, 40), "threads": ()}
    axes = {axis: (label, fixed, sizes[axis]) for axis, (label, fixed, _) in runner.AXES.items()}
    monkeypatch.setattr(runner, "AXES", axes)
    monkeypatch.setattr(runner, "CHUNK", 8)
    make = runner.make_points
    small = [Case("gru", Shape(2, 3, 4, 4)), Case("gru", Shape(1, 8, 4, 4), chunks=5)]

    def points(*arguments):
        return [dataclasses.replace(point, case=small[point.axis == "steps"]) for point in make(*arguments)]

    monkeypatch.setattr(runner, "make_points", points)
    status, document, text = run(
        tmp_path, "--scaling", "--threads", 2, "--engine", "torch", "--cells", "gru", name="scaling"
    )
    assert status == (0 if document["trusted"] else 3), document["problems"]
    assert document["complete"]
    assert [(point["axis"], point["value"]) for point in document["rows"]] == [
        *(("hidden", 3), ("hidden", 5), ("batch", 1), ("batch", 2), ("steps", 4), ("steps", 40)),
        *(("threads", 1), ("threads", 2)),
    ]
    for point in document["rows"]:
        wanted = "stream" if point["axis"] == "steps" else "total"
        assert len(point["seconds"][wanted]["candidate"]) == 3
        assert point["parity"]["ok"]
    assert "time per step" in text
    assert "inference speed-up" in text
    assert document["environment"]["cpu"]["model"]
    if plot.available():
        assert (tmp_path / "out" / "scaling.png").read_bytes().startswith(b"\x89PNG")
        assert "hidden units H" in (tmp_path / "out" / "scaling.svg").read_text()
