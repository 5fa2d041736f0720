"""fastrnn.Stream of networks of custom cells: by the kernels alone where they can, else step by step in Python."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from stepping import steps

import fastrnn
from fastrnn import gallery

I, H, B = 3, 6, 2  # noqa: E741

# cells whose kernels take a step alone: one product, parameters, gates without a product, no product at all
ALONE = ("one_state", "slstm", "peephole_lstm", "indrnn", "min_gru", "rate_tanh")
# a second product, sums over units, further inputs
IN_PYTHON = ("gru_reset_before", "layer_norm_lstm", "rate_noisy")


def make(name: str, **options):
    return gallery.CELLS[name](I, H, **options).eval()


def same(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b)


def as_tuple(state):
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bias": False}])
@pytest.mark.parametrize("name", ALONE + IN_PYTHON)
def test_bits_of_step(name, options, dtype):
    network, xs = make(name, **options).to(dtype), torch.randn(4, B, I, dtype=dtype)
    stream = fastrnn.Stream(network)
    torch.manual_seed(3)
    wanted, state = steps(network, xs)
    torch.manual_seed(3)
    same([stream.step(x) for x in xs], wanted)
    same(as_tuple(stream.state), as_tuple(state))
    assert (stream._handle is not None) == (name in ALONE)


def test_heads():
    network, xs = gallery.CELLS["slstm"](I, H, heads=3), torch.randn(3, B, I)
    stream = fastrnn.Stream(network, B)
    same([stream.step(x) for x in xs], steps(network, xs)[0])


@pytest.mark.parametrize("name", ["one_state", "gru_reset_before"])
def test_states(name):
    network, xs = make(name, learn_initial_state=True), torch.randn(3, B, I)
    with torch.no_grad():
        network.initial_h_l0.normal_()
    stream = fastrnn.Stream(network)
    wanted, _ = steps(network, xs)
    same([stream.step(x) for x in xs], wanted)
    stream.reset(1)
    row = stream.state[0, 1].clone()
    assert torch.equal(row, network.initial_h_l0.detach())
    stream.reset()
    same([stream.step(x) for x in xs], wanted)
    stream.state = network(xs)[1].detach()
    same([stream.step(xs[0])], steps(network, xs[:1], network(xs)[1])[0])
    twins = copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))
    y = stream.step(xs[1])
    for twin in twins:
        assert torch.equal(twin.step(xs[1]), y)


@pytest.mark.parametrize("name", ["one_state", "gru_reset_before"])
def test_weights_are_a_copy_until_refreshed(name):
    network, x = make(name), torch.randn(B, I)
    stream = fastrnn.Stream(network)
    before = stream.step(x)
    with torch.no_grad():
        network.weight_ih_l0.mul_(2)
    stream.reset()
    assert torch.equal(stream.step(x), before)
    stream.refresh()
    stream.reset()
    assert torch.equal(stream.step(x), network.step(x)[0])


def test_training_autocast_and_gradients_are_not_followed():
    network = gallery.CELLS["rate_noisy"](I, H).train()
    x = torch.randn(B, I)
    stream = fastrnn.Stream(network)
    with torch.autocast("cpu"):
        y = stream.step(x)
    assert y.dtype == torch.float32
    assert not y.requires_grad
    assert network.training


@pytest.mark.parametrize("name", ["one_state", "gru_reset_before"])
def test_inside_and_outside_of_inference_mode(name):
    network, x = make(name, learn_initial_state=True), torch.randn(B, I)
    with torch.inference_mode():
        stream = fastrnn.Stream(network)
        first = stream.step(x)
        inside = stream.state
    stream.reset(0)
    stream.state = inside
    second = stream.step(x)
    with torch.inference_mode():
        stream.reset()
        stream.state = inside
        assert torch.equal(stream.step(x), second)
    stream.reset()
    assert torch.equal(stream.step(x), first)


def test_errors():
    with pytest.raises(ValueError, match="module: expected bidirectional=False"):
        fastrnn.Stream(make("one_state", bidirectional=True))
    stream = fastrnn.Stream(make("gru_reset_before"), B)
    with pytest.raises(ValueError, match="x: expected shape"):
        stream.step(torch.randn(B + 1, I))
    with pytest.raises(TypeError, match="x: expected a dense CPU tensor"):
        stream.step(torch.randn(B, I).double())
    with pytest.raises(ValueError, match="state: expected shape"):
        stream.state = torch.zeros(1, B, H + 1)
