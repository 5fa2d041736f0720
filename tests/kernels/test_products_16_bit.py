"""Products in bfloat16 and float16 outside the recurrence: right on each instruction set, and rounded once."""

from __future__ import annotations

import pytest
import torch

import fastrnn
from fastrnn import _C

#: B, I, H: every product large enough for a kernel of its own; depths of one chunk and of several, edges of tiles
SHAPES = {"whole tiles": (320, 160, 288), "long gradient": (2100, 70, 270), "long input": (270, 2100, 264)}


def layer(inputs, hidden, dtype):
    return fastrnn.RNN(inputs, hidden, nonlinearity="relu", bias=False).to(dtype)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("capability", _C.capabilities())
def test_products_are_rounded_once(capability, dtype, shape, threads):
    """One step from no state, of positive numbers: the output and both gradients are products of what is given."""
    _C.set_capability(capability)
    torch.set_num_threads(threads)
    batch, inputs, hidden = SHAPES[shape]
    net = layer(inputs, hidden, dtype)
    with torch.no_grad():
        net.weight_ih_l0.copy_(torch.rand_like(net.weight_ih_l0))
    x = torch.rand(1, batch, inputs).to(dtype).requires_grad_()
    y, _ = net(x)
    gradient = torch.rand_like(y)
    y.backward(gradient)
    w, rows, g = net.weight_ih_l0.detach().double(), x.detach()[0].double(), gradient[0].double()
    found = {"y": y[0], "x.grad": x.grad[0], "w.grad": net.weight_ih_l0.grad}
    exact = {"y": rows @ w.t(), "x.grad": g @ w, "w.grad": g.t() @ rows}
    for name, value in found.items():
        error = ((value.detach().double() - exact[name]) / exact[name]).abs().max().item()
        assert error <= torch.finfo(dtype).eps / 2 + 2**-18, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("capability", _C.capabilities())
def test_infinities_stay_in_their_row(capability, dtype):
    _C.set_capability(capability)
    batch, inputs, hidden = SHAPES["whole tiles"]
    net = layer(inputs, hidden, dtype)
    x = torch.randn(1, batch, inputs).to(dtype)
    before, _ = net(x)
    x[0, 5, 3] = torch.inf
    after, _ = net(x)
    column = net.weight_ih_l0[:, 3]
    assert torch.equal(after[0, 5], torch.where(column > 0, torch.inf, 0.0).to(dtype))
    others = torch.arange(batch) != 5
    assert torch.equal(after[0, others], before[0, others])
