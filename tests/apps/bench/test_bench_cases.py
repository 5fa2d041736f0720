"""Cases of the benchmark, and their statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastrnn.apps.bench import ratios
from fastrnn.apps.bench.cases import (
    CELLS,
    STANDARD_SHAPES,
    Case,
    Shape,
    make_cases,
    make_step_cases,
    parse_names,
    parse_shapes,
)
from fastrnn.apps.bench.engines import ENGINES
from fastrnn.apps.bench.report import format_speedup


def test_standard_shapes_cover_every_cell_and_kind():
    cases = make_cases(CELLS, STANDARD_SHAPES, ["float32"])
    assert len(cases) == len(CELLS) * 14 == len({case.name for case in cases})
    shapes = set(STANDARD_SHAPES)
    assert any(shape.packed for shape in shapes)
    assert any(shape.last for shape in shapes)
    assert any(shape.bidirectional and shape.layers == 2 for shape in shapes)
    assert any(shape.input_size != shape.hidden_size for shape in shapes)


def test_shapes_are_parsed():
    assert parse_shapes("2x3x4") == (Shape(2, 3, 4, 4),)
    assert parse_shapes("2x3x4x5, 2×3×4x5") == (Shape(2, 3, 4, 5),)
    assert parse_shapes("standard,step") == STANDARD_SHAPES
    assert parse_shapes("2x3x4x5")[0].label == "2x3x4x5"
    assert parse_shapes("packed")[0].label.endswith("packed")


@pytest.mark.parametrize("text", ["", "2x3", "1x2x3x4x5", "0x3x4", "ax2x3", "big", "2x3x4,,2x3x5", "-1x2x3"])
def test_wrong_shapes_say_what_was_expected(text):
    with pytest.raises(ValueError, match="expected"):
        parse_shapes(text)


def test_wrong_names_say_what_was_expected():
    assert parse_names("gru,lstm,gru", CELLS) == ("gru", "lstm")
    with pytest.raises(ValueError, match=r"lstm, gru, rnn; got 'lsmt'"):
        parse_names("lsmt", CELLS)


def test_packed_lengths_fall_and_reach_both_ends():
    lengths = Shape(16, 100, 8, 8, packed=True).lengths()
    assert lengths[0] == 100
    assert lengths[-1] == 25
    assert lengths == sorted(lengths, reverse=True)
    assert Shape(1, 7, 8, 8, packed=True).lengths() == [7]
    assert min(Shape(9, 1, 8, 8, packed=True).lengths()) == 1


# Statistics


def test_median_of_ratios_of_neighbours():
    # A machine that halves its pace in the middle changes every time, and no ratio.
    speedup = ratios.compare_rounds([2.0, 2.2, 4.0, 4.4, 4.0], [1.0, 1.0, 2.0, 2.0, 1.0])
    assert speedup.median == pytest.approx(2.2)
    assert speedup.interval == speedup.range == (2.0, 4.0)  # five rounds: no shorter interval has the confidence
    assert not speedup.uncertain


def test_one_lucky_round_is_no_speedup():
    assert ratios.compare_rounds([9.0, 9.0], [1.0, 1.0]) is None
    lucky = ratios.compare_rounds([1.0, 1.02, 5.0], [1.0, 1.0, 1.0])
    assert lucky.uncertain
    assert format_speedup(lucky).startswith("~")


def test_interval_leaves_out_what_the_confidence_allows():
    for count, cut in ((1, 0), (5, 0), (8, 0), (9, 1), (11, 1), (12, 2), (20, 5)):
        assert ratios.median_interval(range(count)) == (cut, count - 1 - cut)


def test_interval_has_its_confidence():
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        low, high = ratios.median_interval(generator.exponential(size=9).tolist())
        hits += low <= math.log(2) <= high
    assert hits / 2000 > 0.945


def test_geometric_mean():
    assert ratios.geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    assert ratios.geometric_mean([]) is None
    assert ratios.median([3.0, 1.0, 2.0, 10.0]) == 2.5


def test_blocks_are_long_enough_for_the_fast_and_short_enough_for_the_slow():
    assert ratios.calls_per_block([0.001, 0.002], 0.03) == 30
    assert ratios.calls_per_block([0.0001, 0.01], 0.03) == 24
    assert ratios.calls_per_block([0.2, 0.5], 0.03) == 1


# Streams


def test_steps_and_streams_are_named_and_timed_alone():
    steps = make_step_cases(["gru"])
    assert [case.name for case in steps] == ["gru 1x1x64 step", "gru 1x1x128 step"]
    stream = Case("rnn", Shape(1, 1000, 8, 8), chunks=10)
    assert stream.name == "rnn 1x1000x8 stream of 10"
    assert stream.metrics == steps[0].metrics == ("stream",)
    assert stream.as_dict()["chunks"] == 10


@pytest.mark.parametrize("engine", ["torch", "fastrnn"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_stream_in_chunks_is_one_long_pass(engine, cell):
    chunks, T, H = 4, 3, 5
    workload = ENGINES[engine].build(Case(cell, Shape(2, T, H, H), "float64", chunks=chunks), 0)
    y, _ = workload.stream(chunks)
    whole = workload.module(workload.data.repeat(chunks, 1, 1), workload.hx)[0]
    torch.testing.assert_close(y, whole[-T:].detach(), rtol=1e-12, atol=1e-12)
    again, _ = workload.stream(1)  # the state stays from call to call
    assert not torch.equal(again, y)
