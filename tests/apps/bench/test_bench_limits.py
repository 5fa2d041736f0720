"""The bound on the time of a case, and the peaks that it comes from."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from fastrnn.apps.bench import machine
from fastrnn.apps.bench.cases import Case, Shape, make_cases, parse_shapes
from fastrnn.apps.bench.process import Worker

PEAKS = machine.Peaks(
    2, {"float32": 1e10, "bfloat16": 4e10}, {4 * 4 * 64: 1e9, 3 * 4 * 64: 1e9, 4 * 64: 1e9, 2 * 64: 1e9}
)


def test_arithmetic_counts_every_product():
    # 100 rows a step: arithmetic is the longer of the two. 2 operations × T·B × G·H × (I + H), and twice for backward.
    bounds = machine.bounds(Case("lstm", Shape(100, 7, 5, 8)), PEAKS)
    forward = 2 * 7 * 100 * 4 * 8 * (5 + 8) / 1e10
    assert bounds["forward"] == bounds["inference"] == pytest.approx(forward)
    assert bounds["backward"] == pytest.approx(2 * forward)
    assert bounds["total"] == pytest.approx(3 * forward)


def test_layers_directions_and_packed_rows_count():
    one = machine.bounds(Case("gru", Shape(100, 10, 8, 8)), PEAKS)["forward"]
    both = machine.bounds(Case("gru", Shape(100, 10, 8, 8, bidirectional=True)), PEAKS)["forward"]
    assert both == pytest.approx(2 * one)
    # The second layer reads two directions: 16 + 8 columns instead of 8 + 8.
    stack = machine.bounds(Case("gru", Shape(100, 10, 8, 8, layers=2, bidirectional=True)), PEAKS)["forward"]
    assert stack == pytest.approx(2 * one * (1 + 24 / 16))
    packed = Shape(100, 10, 8, 8, packed=True)
    assert machine.bounds(Case("gru", packed), PEAKS)["forward"] == pytest.approx(one * sum(packed.lengths()) / 1000)


def test_one_row_is_bound_by_reading_the_weights():
    # R (H, H) once per step, W (H, I) once; 4 bytes each, at 1 byte per nanosecond; the arithmetic takes less.
    bounds = machine.bounds(Case("rnn", Shape(1, 9, 3, 8)), PEAKS)
    assert bounds["forward"] == bounds["backward"] == pytest.approx((9 * 4 * 64 + 4 * 8 * 3) / 1e9)
    half = machine.bounds(Case("rnn", Shape(1, 9, 3, 8), "bfloat16"), PEAKS)
    assert half["inference"] == pytest.approx(bounds["inference"] / 2)


def test_streams_have_a_bound_of_their_own():
    one = machine.bounds(Case("rnn", Shape(1, 9, 8, 8), chunks=1), PEAKS)
    five = machine.bounds(Case("rnn", Shape(1, 9, 8, 8), chunks=5), PEAKS)
    assert set(one) == set(five) == {"stream"}
    assert five["stream"] == pytest.approx(5 * one["stream"])


def test_peaks_are_measured_for_every_format_and_size():
    worker = Worker("torch", threads=1)
    try:
        peaks = worker.call("peaks", dtypes=["float32", "float64"], sizes=[256, 10**6], seconds=0.01)
    finally:
        worker.kill()
    assert peaks.threads == 1
    assert set(peaks.flops) == {"float32", "float64"}
    assert set(peaks.read) == {256, 10**6}
    # Wide bounds that catch a wrong unit or a count that is off by a size: no processor does more or less.
    assert all(1e8 < rate < 1e14 for rate in peaks.flops.values())
    assert all(1e8 < rate < 1e14 for rate in peaks.read.values())
    assert "with 1 thread:" in peaks.describe()
    assert set(json.loads(json.dumps(dataclasses.asdict(peaks)))["read"]) == {"256", "1000000"}


def test_reading_counts_all_bytes(monkeypatch):
    # A clock that says one second per call: what is read per second is what one call reads.
    monkeypatch.setattr(machine, "_shortest", lambda call, seconds: 1.0 if call() is not None else math.nan)
    for threads, size in ((1, 4096), (2, 4096), (2, 64 * 2**20)):
        torch.set_num_threads(threads)
        repeats = max(1, machine._READ_PER_CALL // size)
        assert machine.measure_peaks([], [size], 0.0).read[size] == size * repeats


def test_every_standard_row_has_a_bound():
    cases = make_cases(["lstm", "gru", "rnn"], parse_shapes("standard"), machine.ITEM_BYTES)
    sizes = dict.fromkeys(map(machine.recurrent_bytes, cases), 1e11)
    peaks = machine.Peaks(2, dict.fromkeys(machine.ITEM_BYTES, 1e11), sizes)
    assert all(0 < seconds < 10 for case in cases for seconds in machine.bounds(case, peaks).values())
