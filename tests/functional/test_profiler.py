"""Ranges that torch.profiler records: one per call, named after it, and those of autograd in backward."""

from __future__ import annotations

import pytest
import torch
from dropin_cases import CELLS, LAYERS, B, H, I, T, cell_pair, layer_pair, random_hx
from torch.nn.utils.rnn import pack_padded_sequence
from torch.profiler import ProfilerActivity, profile

import fastrnn
from fastrnn import _C
from fastrnn.functional import LayerWeights, gru, sequence


def events(call) -> list:
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as record:
        call()
    return [e for e in record.events() if e.name.startswith("fastrnn::")]


def names(call) -> list[str]:
    return [e.name for e in events(call)]


@pytest.fixture(params=[False, True], ids=["inference", "training"])
def training(request):
    with torch.set_grad_enabled(request.param):
        yield request.param


@pytest.mark.parametrize("options", [{}, {"num_layers": 3, "bidirectional": True}, {"batch_first": True}], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_call_of_a_layer_is_one_range(kind, options, training):
    _, module = layer_pair(kind, **options)
    x = torch.randn(T, B, I)
    (event,) = events(lambda: module(x))
    assert event.name == f"fastrnn::{kind}"
    assert event.input_shapes[0] == [T, B, I]
    assert list(module.weight_ih_l0.shape) in event.input_shapes


@pytest.mark.parametrize("kind", LAYERS)
def test_ways_through_python(kind, training):
    _, module = layer_pair(kind)
    x = torch.randn(T, B, I)
    packed = pack_padded_sequence(x, torch.tensor([T, 3, 2, 1]))
    ids, table = torch.zeros(T, B, dtype=torch.int64), torch.randn(9, I)
    for call in (
        lambda: module(packed),
        lambda: module(x, lengths=torch.tensor([T, 3, 2, 1])),
        lambda: module(ids, embedding=table),
        lambda: sequence(kind, x, LayerWeights(*module.parameters())),
        lambda: sequence(kind, x, LayerWeights(*module.parameters()), clip_state_gradient=1.0),
    ):
        assert names(call) == [f"fastrnn::{kind}"]


@pytest.mark.parametrize("kind", CELLS)
def test_cells(kind, training):
    _, cell = cell_pair(kind)
    x, hx = torch.randn(B, I), random_hx(cell)
    (event,) = events(lambda: cell(x, hx))
    assert event.name == f"fastrnn::{kind}_cell"
    assert event.input_shapes[0] == [B, I]


@pytest.mark.parametrize("kind", LAYERS)
def test_stream(kind):
    _, module = layer_pair(kind, num_layers=2)
    stream = fastrnn.Stream(module, batch=B)
    x = torch.randn(B, I)
    (event,) = events(lambda: stream.step(x))
    assert event.name == f"fastrnn::{kind}_step"
    assert event.input_shapes[0] == [B, I]


@pytest.mark.parametrize("kind", LAYERS)
def test_backward(kind):
    _, module = layer_pair(kind)
    loss = module(torch.randn(T, B, I))[0].sum()
    with profile(activities=[ProfilerActivity.CPU]) as record:
        loss.backward()
    assert [e.name for e in record.events()].count("FastrnnLayerBackward") == 1


def test_an_operator_has_the_dispatchers_range_alone():
    weights = [torch.randn(3 * H, I), torch.randn(3 * H, H), None, None, None]
    x = torch.randn(T, B, I)
    call = torch.ops.fastrnn.sequence_forward
    assert names(lambda: call("gru", x, *weights, [], None, None, None, False, False)) == ["fastrnn::sequence_forward"]
    assert names(lambda: gru(x, LayerWeights(*weights))) == ["fastrnn::gru"]


def test_nothing_is_different_under_a_profiler():
    _, module = layer_pair("lstm", num_layers=2)
    x = torch.randn(T, B, I)
    y, _ = module(x)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, profile_memory=True, with_stack=True):
        again, _ = module(x)
    assert torch.equal(y, again)
    assert _C.guards_work()
