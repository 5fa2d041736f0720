"""Gradients of one's own choice in a cell: `detach` and `surrogate`, in kernels and on tensors."""

from __future__ import annotations

import pytest
import torch

import fastrnn
from fastrnn.custom import detach, surrogate


@fastrnn.cell(gates="i", states="spike v")
def spiking(x, r, s):
    v = 0.9 * s.v * (1 - detach(s.spike)) + x.i + r.i
    return surrogate(torch.where(v >= 1, 1.0, 0.0), torch.sigmoid(4 * (v - 1))), v


@fastrnn.cell(gates="z n", matrices="own")
def staged(x, r, s):
    """A detached vector that is multiplied, and sums over the units."""
    n = torch.tanh(x.n + r.n(detach(s.h) * torch.sigmoid(x.z + r.z)))
    return surrogate(torch.sign(n), n) + detach(n.mean(-1, keepdim=True)) + 0.1 * r.own(n)


class Spike(torch.autograd.Function):
    """The reference for `surrogate`, as one writes it in PyTorch."""

    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        return (v >= 1).to(v.dtype)

    @staticmethod
    def backward(ctx, gradient):
        sigmoid = torch.sigmoid(4 * (ctx.saved_tensors[0] - 1))
        return gradient * 4 * sigmoid * (1 - sigmoid)


def test_as_an_autograd_function():
    network = spiking(3, 8).double()
    x = (3 * torch.randn(9, 4, 3, dtype=torch.float64)).requires_grad_()
    w_ih, w_hh, b_ih, b_hh = network.weight_ih_l0, network.weight_hh_l0, network.bias_ih_l0, network.bias_hh_l0
    spike = v = x.new_zeros(4, 8)
    outputs = []
    for x_t in x:
        v = 0.9 * v * (1 - spike.detach()) + x_t @ w_ih.t() + b_ih + spike @ w_hh.t() + b_hh
        spike = Spike.apply(v)
        outputs.append(spike)
    right, y = torch.stack(outputs), network(x, backend="fused")[0]
    assert 0 < y.mean() < 1
    assert torch.equal(y, right)
    seed, leaves = torch.randn_like(y), [x, *network.parameters()]
    pairs = zip(torch.autograd.grad(y, leaves, seed), torch.autograd.grad(right, leaves, seed), strict=True)
    for found, wanted in pairs:
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("cell", [spiking, staged], ids=lambda cell: cell.name)
def test_fused_and_reference_agree(cell):
    network, found = cell(3, 8, 2).double(), []
    x = torch.randn(6, 4, 3, dtype=torch.float64, requires_grad=True)
    for backend in ("fused", "reference"):
        y = network(x, backend=backend)[0]
        found.append((y, *torch.autograd.grad(y.square().sum(), [x, *network.parameters()])))
    torch.testing.assert_close(found[0], found[1])


def test_on_tensors():
    value, smooth = torch.tensor([0.1, -7.0, 3.0]), torch.tensor([1e8, 0.3, torch.inf], requires_grad=True)
    found = surrogate(value.requires_grad_(), smooth)
    assert torch.equal(found, value)  # not rounded by the sum with a large number
    found[:2].sum().backward()
    assert value.grad is None
    assert smooth.grad.tolist() == [1, 1, 0]
    assert detach(0.5) == 0.5
    assert not detach(value).requires_grad
    assert surrogate(value, 1.0).equal(value)


def test_of_numbers_in_a_step():
    """A step without a state that varies is told what it returns, not stopped by the surrogate."""
    cell = fastrnn.cell(gates="a")(lambda x, r, s: surrogate(1.0, x.a + r.a) + surrogate(x.a, 0.0))
    x = torch.randn(2, 3)
    torch.testing.assert_close(cell._torch_step(x, x, (x,))[0], 1 + x)
