"""Custom cells with two products per step, with fewer than gates, and with none, as kernels and as plain loops."""

from __future__ import annotations

import torch
from torch.nn.functional import linear

import fastrnn
from fastrnn.functional import LayerWeights, sequence


@fastrnn.cell(gates="r z n")
def reset_before(x, r, s):
    """GRU with the reset gate before the product."""
    z = torch.sigmoid(x.z + r.z)
    n = torch.tanh(x.n + r.n(torch.sigmoid(x.r + r.r) * s.h))
    return z * s.h + (1 - z) * n


@fastrnn.cell(gates="m i f o g", states="h c")
def multiplicative(x, r, s):
    """Four gates after the second product."""
    m = x.m * r.m
    i, f, o = (torch.sigmoid(x[g] + r[g](m)) for g in "ifo")
    c = f * s.c + i * torch.tanh(x.g + r.g(m))
    return o * torch.tanh(c), c


@fastrnn.cell(gates="z n r", parameters={"a": 0.5})
def mixed(x, r, s, p):
    """z has no product; r, with the first product, follows n, with the second, so the weights' rows are reordered."""
    n = torch.tanh(x.n + r.n(torch.sigmoid(x.r + r.r) + p.a * s.h))
    return n * torch.sigmoid(x.z) + p.a * s.h


@fastrnn.cell(gates="n")
def only_second(x, r, s):
    return torch.tanh(x.n + r.n(torch.sigmoid(s.h)))


@fastrnn.cell(gates="a", parameters={"u": 0.5})
def independent(x, r, s, p):
    """IndRNN, without a product."""
    return torch.relu(x.a + p.u * s.h)


def step_reset_before(wx, h, w, b, p):
    H = h[0].shape[-1]
    (xr, xz, xn), (wr, wz, wn), (br, bz, bn) = (t.split(H, d) for t, d in ((wx, -1), (w, 0), (b, 0)))
    r, z = torch.sigmoid(xr + linear(h[0], wr, br)), torch.sigmoid(xz + linear(h[0], wz, bz))
    return (z * h[0] + (1 - z) * torch.tanh(xn + linear(r * h[0], wn, bn)),)


def step_multiplicative(wx, s, w, b, p):
    H = s[0].shape[-1]
    xs, ws, bs = wx.split(H, -1), w.split(H), b.split(H)
    m = xs[0] * linear(s[0], ws[0], bs[0])
    i, f, o, g = (xs[k] + linear(m, ws[k], bs[k]) for k in (1, 2, 3, 4))
    c = torch.sigmoid(f) * s[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def step_mixed(wx, s, w, b, p):
    H = s[0].shape[-1]
    (xz, xn, xr), (wr, wn), (br, bn) = wx.split(H, -1), w.split(H), b.split(H)
    vector = torch.sigmoid(xr + linear(s[0], wr, br)) + p[0] * s[0]
    return (torch.tanh(xn + linear(vector, wn, bn)) * torch.sigmoid(xz) + p[0] * s[0],)


def step_only_second(wx, s, w, b, p):
    return (torch.tanh(wx + linear(torch.sigmoid(s[0]), w, b)),)


def step_independent(wx, s, w, b, p):
    return (torch.relu(wx + p[0] * s[0]),)


PLAIN = {
    reset_before: step_reset_before,
    multiplicative: step_multiplicative,
    mixed: step_mixed,
    only_second: step_only_second,
    independent: step_independent,
}


def leaves(cell, T, B, H, inputs, dtype, scale=0.4):
    torch.manual_seed(T + B + H)
    G, R, Q = len(cell.gates), len(cell.recurrent), len(cell.parameters)
    shapes = ((T, B, inputs), (G * H, inputs), (R * H + Q, H), (G * H,), (R * H,), *[(B, H)] * len(cell.states))
    return [(torch.randn(*shape, dtype=torch.float64) * scale).to(dtype).requires_grad_() for shape in shapes]


def gradients(outputs, inputs):
    torch.manual_seed(9)
    seeds = [torch.randn(o.shape, dtype=torch.float64).to(o.dtype) for o in outputs]  # the same in every dtype
    return [*outputs, *torch.autograd.grad(outputs, inputs, seeds, allow_unused=True, materialize_grads=True)]


def fused(cell, inputs, **layout):
    x, w_ih, w_hh, b_ih, b_hh, *states = inputs
    y, last = sequence(cell.kernels, x, LayerWeights(w_ih, w_hh, b_ih, b_hh), states, backend="fused", **layout)
    return gradients((y, *last), inputs)


def plain(cell, inputs, reset=None, lengths=None, reverse=False, step=None):
    x, w_ih, w_hh, b_ih, b_hh, *initial = inputs
    rows = len(cell.recurrent) * w_hh.shape[1]
    T, states, outputs = len(x), list(initial), {}
    for t in reversed(range(T)) if reverse else range(T):
        first = t + 1 if reverse else t
        if reset is not None and first < T:
            states = [torch.where(reset[first, :, None], s0, s) for s0, s in zip(initial, states, strict=True)]
        new = (step or PLAIN[cell])(linear(x[t], w_ih, b_ih), states, w_hh[:rows], b_hh, w_hh[rows:])
        live = torch.ones(x.shape[1], dtype=torch.bool) if lengths is None else t < lengths
        states = [torch.where(live[:, None], n, s) for n, s in zip(new, states, strict=True)]
        outputs[t] = new[0] * live[:, None]
    return gradients((torch.stack([outputs[t] for t in range(T)]), *states), inputs)


def assert_same(found, right, tolerance):
    for k, (a, b) in enumerate(zip(found, right, strict=True)):
        if b.numel():
            assert (a - b).abs().max() <= tolerance * (1 + b.abs().max()), k


def check_double_backward(cell):
    network = cell(2, 3).double()
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: network(x)[0], (x,))
    assert torch.autograd.gradgradcheck(lambda x: network(x)[0], (x,))


def check_forms_of_a_call(cell, **close):
    """Check a cell recomputed, compiled and step by step. `close`: options of torch.testing."""
    network, tolerance = cell(3, 8), close.get("atol", 1e-6)
    x = torch.randn(9, 4, 3)
    y, last = network(x)
    same = gradients((network(x, recompute=3)[0],), list(network.parameters()))
    assert_same(same, gradients((y,), list(network.parameters())), tolerance)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")(x)[0]
    assert_same(gradients((compiled,), list(network.parameters())), same, tolerance)
    states, outputs = None, []
    for x_t in x:
        y_t, states = network.step(x_t, states)
        outputs.append(y_t)
    torch.testing.assert_close(torch.stack(outputs), y, **close)
    torch.testing.assert_close(states, last, **close)
