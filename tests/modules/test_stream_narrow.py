"""Streams whose matrices are held in bfloat16 or int8."""

from __future__ import annotations

import copy
import pickle

import custom_cells
import pytest
import torch

import fastrnn
from fastrnn import _C

LAYERS = {"LSTM": fastrnn.LSTM, "GRU": fastrnn.GRU, "RNN": fastrnn.RNN}
SIZES = {"tiny": (5, 3), "odd": (37, 70), "large": (130, 600)}  # I, H: the last is shared by threads and has long sums


def network(kind, size, **options):
    torch.manual_seed(0)
    return LAYERS[kind](*SIZES[size], num_layers=2, **options)


def rounded(net, weights):
    """The module in float64 with the matrices that a narrow stream holds."""
    exact = copy.deepcopy(net).double()
    for name, p in exact.named_parameters():
        if not name.startswith(("weight_ih", "weight_hh")):
            continue
        w = dict(net.named_parameters())[name].detach()
        if weights == "bfloat16":
            p.data = w.bfloat16().double()
        else:
            scale = (w.abs().amax(1) / 127).unsqueeze(1)
            p.data = (w / scale).round().double() * scale.double()
    return exact


@pytest.mark.parametrize("capability", _C.capabilities())
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@pytest.mark.parametrize("kind", LAYERS)
def test_steps_of_rounded_matrices(kind, weights, size, batch, capability):
    """As exact as float32 with the same matrices; beside int8, factors are rounded to 16 bits."""
    _C.set_capability(capability)
    rounds_inputs = weights == "int8" and capability != "baseline"
    options = {"proj_size": 2} if kind == "LSTM" and size == "tiny" else {}
    net = network(kind, size, **options)
    stream, exact, state = fastrnn.Stream(net, weights=weights), rounded(net, weights), None
    for x in torch.randn(6, batch, net.input_size):
        wanted, state = exact.step(x.double(), state)
        found = stream.step(x)
        assert found.dtype is torch.float32
        assert torch.allclose(found.double(), wanted, rtol=0, atol=5e-5 if rounds_inputs else 1e-6)


@pytest.mark.parametrize(("weights", "allowed"), [("bfloat16", 0.01), ("int8", 0.02)])
@pytest.mark.parametrize("kind", LAYERS)
def test_error_that_rounding_the_matrices_makes(kind, weights, allowed):
    """Root mean square, relative to that of the outputs, after 50 steps."""
    net = network(kind, "large")
    stream, whole = fastrnn.Stream(net, weights=weights), fastrnn.Stream(net)
    for x in torch.randn(50, 2, net.input_size):
        found, wanted = stream.step(x), whole.step(x)
    assert not torch.equal(found, wanted)
    assert (found - wanted).square().mean().sqrt() <= allowed * wanted.square().mean().sqrt()


def test_rows_of_zeros_and_no_bias():
    net = network("GRU", "odd", bias=False)
    with torch.no_grad():
        net.weight_hh_l0[3] = 0
        net.weight_ih_l0.zero_()
    stream = fastrnn.Stream(net, batch=1, weights="int8")
    assert stream.step(torch.randn(1, 37)).isfinite().all()


@pytest.mark.parametrize("capability", _C.capabilities())
def test_inputs_beside_int8_are_rounded_to_16_bits(capability):
    """The error that `fastrnn.Stream` states, and no more."""
    _C.set_capability(capability)
    torch.manual_seed(0)
    net = fastrnn.RNN(700, 50, nonlinearity="relu", bias=False)
    with torch.no_grad():
        net.weight_ih_l0.abs_()
    x = torch.rand(3, 700)
    exact = rounded(net, "int8")
    error = (fastrnn.Stream(net, weights="int8").step(x).double() - exact.step(x.double())[0]).abs()
    sums = exact.weight_ih_l0.sum(1)
    assert (error <= x.max(1, keepdim=True).values * sums / 65000 + 1e-6 * sums).all()


@pytest.mark.parametrize("capability", _C.capabilities())
@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_inputs_of_any_size(weights, capability):
    """Several pieces of the depth, each with inputs of another size; zeros, tiny and huge numbers, infinity, NaN."""
    _C.set_capability(capability)
    torch.manual_seed(0)
    net = fastrnn.RNN(5000, 19, nonlinearity="relu", bias=False)
    stream, exact = fastrnn.Stream(net, batch=2, weights=weights), rounded(net, weights)
    x = torch.randn(2, 5000) * torch.logspace(-3, 3, 5000)
    for scale in (1.0, 0.0, 1e-34, 1e30):
        stream.reset()
        found, (wanted, _) = stream.step(x * scale).double(), exact.step((x * scale).double())
        assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    for value in (float("inf"), float("nan")):
        stream.reset()
        x[0, 4321] = value
        found = stream.step(x)
        assert not found[0].isfinite().all()
        assert found[1].isfinite().all()


def test_state_refresh_copies_and_threads():
    net, x = network("LSTM", "large"), torch.randn(4, 1, 130)
    stream = fastrnn.Stream(net, batch=1, weights="int8")
    first = [stream.step(row) for row in x]
    assert stream.state[0].dtype is torch.float32
    again = pickle.loads(pickle.dumps(stream))
    assert torch.equal(again.step(x[0]), copy.deepcopy(stream).step(x[0]))
    stream.reset()
    torch.set_num_threads(3)
    assert all(torch.equal(a, stream.step(row)) for a, row in zip(first, x, strict=True))
    with torch.no_grad():
        net.weight_hh_l0.mul_(2)
    stream.reset()
    assert torch.equal(stream.step(x[0]), first[0])  # from zeros: R is not seen
    stream.refresh()
    assert not torch.equal(stream.step(x[1]), first[1])


@pytest.mark.parametrize(("weights", "bound"), [("bfloat16", 2**-8), ("int8", 1 / 254)])
def test_largest_error_of_a_product(weights, bound):
    """A weight half-way between two that can be held, and one that sets the scale."""
    net = fastrnn.RNN(2, 1, nonlinearity="relu", bias=False)
    with torch.no_grad():
        net.weight_ih_l0.copy_(torch.tensor([[1 + 2**-8 - 2**-20, 1.99]]))
    for x in (torch.tensor([[1.0, 0.0]]), torch.rand(1, 2)):
        found = fastrnn.Stream(net, weights=weights).step(x).double()
        terms = net.weight_ih_l0.detach().double() * x.double()
        allowed = bound * (terms.sum() if weights == "bfloat16" else 1.99 * x.double().sum())
        assert (found - terms.sum()).abs() <= allowed + 1e-6


def test_bad_arguments():
    with pytest.raises(ValueError, match="weights: expected None, 'bfloat16' or 'int8', got 'int4'"):
        fastrnn.Stream(network("GRU", "tiny"), weights="int4")
    with pytest.raises(ValueError, match=r"weights: expected a network of float32 matrices, got torch.float64"):
        fastrnn.Stream(network("GRU", "tiny").double(), weights="int8")
    with pytest.raises(
        ValueError, match=r"weights: expected a network of float32 matrices, got .*multiplies another vector than h"
    ):
        fastrnn.Stream(custom_cells.mixed(3, 4), weights="int8")
    broken = network("GRU", "tiny")
    with torch.no_grad():
        broken.weight_hh_l0[0, 0] = torch.inf
    with pytest.raises(ValueError, match="weights: expected finite matrices, got infinity or NaN"):
        fastrnn.Stream(broken, weights="int8")
    net = network("GRU", "tiny")
    stream = fastrnn.Stream(net, batch=1, weights="int8")
    net.double()
    with pytest.raises(TypeError, match=r"module: expected weights of torch.float32 as before, got torch.float64"):
        stream.refresh()
    stream = fastrnn.Stream(network("GRU", "tiny"), batch=1, weights="bfloat16")
    with pytest.raises(TypeError, match=r"x: expected a dense CPU tensor of torch.float32, got torch.bfloat16"):
        stream.step(torch.randn(1, 5).bfloat16())
    with fastrnn.batch_invariant(), pytest.raises(RuntimeError, match="batch_invariant: expected a stream"):
        stream.step(torch.randn(1, 5))
