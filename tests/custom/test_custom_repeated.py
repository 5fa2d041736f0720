"""A matrix that multiplies several vectors in a step: its weight is there once, its gradient is the sum."""

from __future__ import annotations

import pytest
import torch

import fastrnn
from fastrnn import inspect

STEPS = 3


@fastrnn.cell(gates="u", matrices="flow", parameters={"rate": 0.3})
def solver(x, r, s, p):
    """Three steps of Euler's method for dh/dt = -h + tanh(R·h + U·x), with one matrix."""
    h = s.h
    for _ in range(STEPS):
        h = h + p.rate * (torch.tanh(x.u + r.flow(torch.sigmoid(h))) - h)
    return h


@fastrnn.cell(gates="a b", matrices="own")
def mixed(x, r, s):
    """A product of h, one of a vector whose matrix multiplies no other, and a matrix called three times for two."""
    v = torch.tanh(x.a + r.a)
    w = torch.tanh(r.own(v) + r.b(v * s.h))
    return 0.5 * (r.own(w) + torch.sin(r.own(v)))


def loop_of_solver(network, x):
    h, outputs = x.new_zeros(x.shape[1], network.hidden_size), []
    W, b, R, b_r, rate = (getattr(network, f"{n}_l0") for n in ("weight_ih", "bias_ih", "weight_hh", "bias_hh", "rate"))
    for x_t in x:
        for _ in range(STEPS):
            h = h + rate * (torch.tanh(x_t @ W.t() + b + torch.sigmoid(h) @ R.t() + b_r) - h)
        outputs.append(h)
    return torch.stack(outputs)


def loop_of_mixed(network, x):
    h, outputs = x.new_zeros(x.shape[1], network.hidden_size), []
    W, b, R, b_r = (getattr(network, f"{n}_l0") for n in ("weight_ih", "bias_ih", "weight_hh", "bias_hh"))
    places = {name: k for k, name in enumerate(network.cell.recurrent)}
    blocks, biases = R.chunk(len(places)), b_r.chunk(len(places))

    def product(name, vector):
        return vector @ blocks[places[name]].t() + biases[places[name]]

    for x_t in x:
        v = torch.tanh((x_t @ W.t() + b).chunk(2, -1)[0] + product("a", h))
        w = torch.tanh(product("own", v) + product("b", v * h))
        h = 0.5 * (product("own", w) + torch.sin(product("own", v)))
        outputs.append(h)
    return torch.stack(outputs)


CELLS = [(solver, loop_of_solver, 1, 3), (mixed, loop_of_mixed, 3, 4)]


@pytest.mark.parametrize("backend", ["fused", "reference"])
@pytest.mark.parametrize(("cell", "loop", "matrices", "products"), CELLS, ids=["solver", "mixed"])
def test_output_and_gradients_are_those_of_a_loop(cell, loop, matrices, products, backend):
    network = cell(3, 5, dtype=torch.float64)
    assert (len(cell.recurrent), len(cell.blocks)) == (matrices, products)
    assert network.weight_hh_l0.shape == (matrices * 5, 5)
    assert network.bias_hh_l0.shape == (matrices * 5,)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    found, right = network(x, backend=backend)[0], loop(network, x)
    torch.testing.assert_close(found, right)
    seed, leaves = torch.randn_like(right), [x, *network.parameters()]
    pairs = zip(torch.autograd.grad(found, leaves, seed), torch.autograd.grad(right, leaves, seed), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)


def test_layers_directions_heads_and_streams():
    network = solver(3, 6, 2, bidirectional=True, heads=2, dtype=torch.float64)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(network(x, backend="fused"), network(x, backend="reference"))
    network = solver(3, 6, dtype=torch.float64)
    stream = fastrnn.Stream(network)
    outputs = torch.stack([stream.step(x_t) for x_t in x])
    torch.testing.assert_close(outputs, network(x)[0])


def test_second_order_and_vmap():
    network = solver(2, 3, dtype=torch.float64)
    x = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: network(x)[0], x)
    several = torch.randn(3, 2, 2, 2, dtype=torch.float64)
    found = torch.func.vmap(lambda x: network(x)[0])(several)
    torch.testing.assert_close(found, torch.stack([network(one)[0] for one in several]))


def test_what_looks_at_matrices_sees_each_once():
    network = mixed(3, 5)
    assert [one.gate for one in inspect.spectrum(network)] == list(mixed.recurrent)
    fastrnn.init.orthogonal_(network)
    for block in network.weight_hh_l0.chunk(len(mixed.recurrent)):
        torch.testing.assert_close(block @ block.t(), torch.eye(5))
    assert [set(names) for names in mixed.products] == [{"a"}, {"own"}, {"b"}, {"own"}]


def test_the_product_with_h_is_still_without_a_call():
    with pytest.raises(fastrnn.CellError, match="expected either R·h or the product with a vector, got both"):

        @fastrnn.cell(gates="a")
        def both(x, r, s):
            return torch.tanh(r.a + r.a(torch.tanh(x.a)))

    with pytest.raises(fastrnn.CellError, match=r"r\.own: expected a product that a new state depends on"):

        @fastrnn.cell(gates="a", matrices="own")
        def unused(x, r, s):
            r.own(torch.sin(x.a))
            return torch.tanh(x.a + r.own(torch.tanh(s.h)))
