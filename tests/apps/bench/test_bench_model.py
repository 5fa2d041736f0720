"""The language model that the benchmark trains."""

from __future__ import annotations

import math

import torch

from fastrnn.apps.bench import language_model
from fastrnn.apps.bench.engines import find_engine


def test_streams_are_consecutive_and_start_again():
    streams = language_model.Streams(bytes(range(97, 123)) * 4, batch=2, chunk=10)
    assert streams.vocabulary == 26
    first, follows, anew = streams.next()
    assert anew
    assert first[:, 0].tolist() == list(range(10))
    assert torch.equal(first[1:], follows[:-1])
    second, _, anew = streams.next()
    assert not anew
    assert second[0].tolist() == follows[-1].tolist()
    for _ in range(3):
        streams.next()
    assert streams.next()[2]  # 52 characters a stream hold five chunks with their targets


def test_text_is_the_standard_library_and_repeats():
    text = language_model.read_text(None)
    assert text == language_model.read_text(None)
    assert 10**6 < len(text) <= language_model.MAX_BYTES
    assert b"import" in text
    described = language_model.describe_text(text)
    assert described["vocabulary"] == len(set(text))
    assert len(described["sha256"]) == 64


def test_curves_may_differ_by_rounding_only():
    curve = [4.0 - 0.01 * step for step in range(200)]
    assert language_model.compare_curves(curve, [loss * (1 + 1e-6) for loss in curve]).ok
    assert not language_model.compare_curves(curve, [loss * 1.001 for loss in curve]).ok
    assert not language_model.compare_curves(curve, [*curve[:-20], *[loss + 0.1 for loss in curve[-20:]]]).ok
    assert not language_model.compare_curves(curve, [math.nan, *curve[1:]]).ok


def test_warm_up_leaves_no_trace():
    settings = language_model.ModelSettings(batch=2, chunk=5, embedding=4, hidden=6)
    text = bytes(range(40, 80)) * 2
    cold, warm = (language_model.Training(find_engine("torch"), text, settings, 0) for _ in range(2))
    warm.warm_up()
    assert cold.run(3)[1] == warm.run(3)[1]
