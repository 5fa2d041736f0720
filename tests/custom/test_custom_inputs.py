"""Inputs of a cell that no weight is multiplied with: masks, noise."""

from __future__ import annotations

import pytest
import torch

import fastrnn

RATE = 0.25


def keep(like, training):
    """Zoneout's mask: 1 where the new state is taken; its mean outside training."""
    kept = torch.full_like(like, 1 - RATE)
    return torch.bernoulli(kept) if training else kept


@fastrnn.cell(gates="z n", inputs={"keep": keep})
def zoned(x, r, s):
    """One state; Krueger 2017."""
    z = torch.sigmoid(x.z + r.z)
    new = z * s.h + (1 - z) * torch.tanh(x.n + r.n)
    return x.keep * new + (1 - x.keep) * s.h


def loop(network, x, masks):
    """Layer by layer and step by step, in one direction."""
    for k in range(network.num_layers):
        w_ih, w_hh, b_ih, b_hh = (
            getattr(network, f"{n}_l{k}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        h, outputs = x.new_zeros(x.shape[1], network.hidden_size), []
        for x_t, mask in zip(x, masks[k], strict=True):
            xz, xn = (x_t @ w_ih.t() + b_ih).chunk(2, -1)
            rz, rn = (h @ w_hh.t() + b_hh).chunk(2, -1)
            z = torch.sigmoid(xz + rz)
            h = torch.where(mask > 0, z * h + (1 - z) * torch.tanh(xn + rn), h)
            outputs.append(h)
        x = torch.stack(outputs)
    return x


def test_masks_are_drawn_once_a_layer():
    network = zoned(3, 8, 2).double()
    x = torch.randn(7, 5, 3, dtype=torch.float64, requires_grad=True)
    like = torch.empty(7, 5, 8, dtype=torch.float64)
    torch.manual_seed(1)
    masks = [keep(like, True) for _ in range(2)]
    torch.manual_seed(1)
    y = network(x)[0]
    right = loop(network, x, masks)
    torch.testing.assert_close(y, right)
    seed = torch.randn_like(y)
    inputs = [x, *network.parameters()]
    for a, b in zip(torch.autograd.grad(y, inputs, seed), torch.autograd.grad(right, inputs, seed), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_fused_and_reference_agree(bidirectional):
    network = zoned(3, 8, 2, bidirectional=bidirectional).eval()
    x = torch.randn(6, 4, 3)
    states = torch.randn(2 * (1 + bidirectional), 4, 8)
    found = network(x, states, backend="fused")
    right = network(x, states, backend="reference")
    torch.testing.assert_close(found, right)


def test_padding_that_is_not_a_number_reaches_no_gradient():
    network = zoned(3, 8)
    x = torch.randn(6, 2, 3)
    x[4:, 1] = torch.nan
    y, h = network(x, lengths=[6, 4])
    (y.sum() + h.sum()).backward()
    assert not y.isnan().any()
    assert not any(p.grad.isnan().any() for p in network.parameters())


def test_packed_and_single_steps():
    network = zoned(3, 8).eval()
    x = torch.randn(6, 3, 3)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, [4, 6, 1], enforce_sorted=False)
    torch.testing.assert_close(network(packed)[1], network(x, lengths=[4, 6, 1])[1])
    h = None
    for x_t in x:
        y, h = network.step(x_t, h)
    torch.testing.assert_close(y, network(x)[0][-1])


def test_what_is_refused():
    with pytest.raises(fastrnn.CellError, match="no recurrent weights"):

        @fastrnn.cell(gates="a", inputs={"b": keep})
        def multiplied(x, r, s):
            return x.a + r.b

    with pytest.raises(fastrnn.CellError, match="different names"):

        @fastrnn.cell(gates="a", inputs={"a": keep})
        def twice(x, r, s):
            return x.a

    @fastrnn.cell(gates="a", inputs={"b": lambda like, training: like[:1]})
    def narrow(x, r, s):
        return x.a + x.b

    with pytest.raises(RuntimeError, match="b: expected an input of shape"):
        narrow(2, 3)(torch.randn(4, 1, 2))


def test_time_steps_of_a_call_and_their_gradient():
    """An input with data of the call: the gradient reaches them, in the kernels as in plain torch."""

    class TimeSteps:
        def __call__(self, like, training):
            return self.value.unsqueeze(-1).expand_as(like)

    elapsed = TimeSteps()

    @fastrnn.cell(gates="n", inputs={"dt": elapsed})
    def decaying(x, r, s):
        kept = torch.exp(-x.dt)
        return kept * s.h + (1 - kept) * torch.tanh(x.n + r.n)

    network, x = decaying(3, 8).double(), torch.randn(6, 4, 3, dtype=torch.float64)
    found = []
    for backend in ("fused", "reference"):
        elapsed.value = torch.linspace(0.1, 2, 24, dtype=torch.float64).view(6, 4).requires_grad_()
        y = network(x, backend=backend)[0]
        found.append((y, torch.autograd.grad(y.square().sum(), elapsed.value)[0]))
    torch.testing.assert_close(found[0], found[1])
    assert found[0][1].abs().min() > 0
