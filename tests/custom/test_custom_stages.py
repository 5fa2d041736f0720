"""Cells whose step has stages: several vectors that are multiplied, chains of products, sums over the units."""

from __future__ import annotations

import pickle

import pytest
import torch
from accuracy import rms
from custom_loops import (
    assert_same,
    check_double_backward,
    check_forms_of_a_call,
    fused,
    gradients,
    leaves,
    plain,
)
from torch.nn.functional import layer_norm, linear

import fastrnn
from fastrnn import _C
from fastrnn.custom import normalize


@fastrnn.cell(gates="a b", states="h k", matrices="m n")
def chain(x, r, s):
    """Three products, one after the other, and one of a state besides h."""
    u = torch.tanh(x.a + r.a + r.m(s.k))
    v = torch.sigmoid(r.b(u) + x.b)
    return torch.tanh(r.n(v * s.h) + u), v * 0.5


def step_chain(wx, s, w, b, p):
    (xa, xb), (wa, *rest), (ba, *biases) = wx.chunk(2, -1), w.chunk(4), b.chunk(4)
    named = dict(zip(chain.recurrent[1:], zip(rest, biases, strict=True), strict=True))
    u = torch.tanh(xa + linear(s[0], wa, ba) + linear(s[1], *named["m"]))
    v = torch.sigmoid(linear(u, *named["b"]) + xb)
    return torch.tanh(linear(v * s[0], *named["n"]) + u), v * 0.5


@fastrnn.cell(gates="a b", parameters="g")
def normed(x, r, s, p):
    """Two gates normalised together, and the state once more."""
    a, b = normalize(x.a + r.a, x.b + r.b)
    return torch.tanh(normalize(torch.sigmoid(a) * s.h + p.g * torch.tanh(b)))


def step_normed(wx, s, w, b, p):
    net = wx + linear(s[0], w, b)
    a, b = layer_norm(net, net.shape[-1:]).chunk(2, -1)
    new = torch.sigmoid(a) * s[0] + p[0] * torch.tanh(b)
    return (torch.tanh(layer_norm(new, new.shape[-1:])),)


@fastrnn.cell(gates="a b")
def attention(x, r, s):
    """No product: a softmax over the units, a variance, and a state's own mean."""
    e = torch.exp(torch.tanh(x.a + s.h))
    return (
        e / e.sum(-1, keepdim=True) * x.b
        + s.h * x.a.var(-1, correction=0, keepdim=True)
        - torch.mean(s.h, dim=-1, keepdim=True)
    )


def step_attention(wx, s, w, b, p):
    (xa, xb), (h,) = wx.chunk(2, -1), s
    weights = torch.softmax(torch.tanh(xa + h), -1)
    return (weights * xb + h * xa.var(-1, correction=0, keepdim=True) - h.mean(-1, keepdim=True),)


@fastrnn.cell(gates="i f", states="h a b c d e")
def many_states(x, r, s):
    """Six states, each multiplied."""
    total = s.a + s.b + s.c + s.d + s.e
    new = torch.tanh(x.i + r.i(total) + r.f(s.e))
    return new + x.f.mean(-1, keepdim=True), s.h, s.a, s.b, s.c, 0.5 * s.d


def step_many_states(wx, s, w, b, p):
    (xi, xf), named = (
        wx.chunk(2, -1),
        dict(zip(many_states.recurrent, zip(w.chunk(2), b.chunk(2), strict=True), strict=True)),
    )
    new = torch.tanh(xi + linear(sum(s[1:]), *named["i"]) + linear(s[5], *named["f"]))
    return (new + xf.mean(-1, keepdim=True), *s[:4], 0.5 * s[4])


PLAIN = {chain: step_chain, normed: step_normed, attention: step_attention, many_states: step_many_states}
cells = pytest.mark.parametrize("cell", PLAIN, ids=lambda c: c.name)


def test_they_have_stages():
    assert all(cell._compiled.step.staged for cell in PLAIN)
    assert chain.products == (("a",), ("m",), ("b",), ("n",))
    assert chain(3, 8).weight_hh_l0.shape == (32, 8)


@pytest.mark.parametrize("layout", ["plain", "lengths", "reset"])
@pytest.mark.parametrize("split", ["none", "rows", "units"])
@cells
def test_equals_a_plain_loop(cell, split, layout):
    _C.set_split(split)
    torch.set_num_threads(2)
    for T, B, H, reverse in ((6, 5, 37, False), (6, 5, 37, True), (1, 3, 16, False), (2, 1, 1, False)):
        inputs = leaves(cell, T, B, H, 3, torch.float64)
        options = {"reverse": reverse}
        if layout == "lengths":
            options["lengths"] = torch.arange(B) * T // max(1, B - 1)
        if layout == "reset":
            options["reset"] = torch.rand(T, B) < 0.3
        right = plain(cell, inputs, step=PLAIN[cell], **options)
        # A single unit, normalised, is 0 / √1e-5.
        assert_same(fused(cell, inputs, **options), right, 1e-10)


@cells
def test_bits_do_not_depend_on_how_the_work_is_shared(cell):
    torch.set_num_threads(2)
    inputs = leaves(cell, 5, 6, 40, 3, torch.float32)
    found = []
    for split in ("none", "rows", "units"):
        _C.set_split(split)
        found.append(fused(cell, inputs))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@cells
def test_error_in_float32_is_at_most_twice_that_of_the_loop(cell):
    inputs = leaves(cell, 17, 9, 100, 7, torch.float32, 0.2)
    right = plain(cell, [t.detach().double().requires_grad_() for t in inputs], step=PLAIN[cell])
    theirs = plain(cell, inputs, step=PLAIN[cell])
    for k, (a, b, exact) in enumerate(zip(fused(cell, inputs), theirs, right, strict=True)):
        if exact.numel():
            allowed = max(rms(b.double() - exact), 4 * torch.finfo(torch.float32).eps * rms(exact))
            assert rms(a.double() - exact) <= 2 * allowed, k


@pytest.mark.parametrize("capability", _C.capabilities())
def test_on_every_instruction_set(capability):
    _C.set_capability(capability)
    for cell in (chain, normed):
        for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.1), (torch.float16, 0.02)):
            inputs = leaves(cell, 7, 17, 40, 5, dtype, 0.2)
            exact = [t.detach().double().requires_grad_() for t in inputs]
            right = plain(cell, exact, step=PLAIN[cell])
            assert_same([t.double() for t in fused(cell, inputs)], right, tolerance)


@cells
def test_double_backward(cell):
    check_double_backward(cell)


@cells
def test_recomputed_compiled_and_step_by_step(cell):
    check_forms_of_a_call(cell, rtol=1e-4, atol=1e-5)  # a norm of few units divides by a small deviation


def test_layers_directions_and_packed_input():
    network = normed(3, 8, num_layers=2, bidirectional=True).double()
    x = torch.randn(5, 3, 3, dtype=torch.float64)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, [5, 4, 2])
    for given in (x, packed):
        (y, last), (right, right_last) = network(given, backend="fused"), network(given, backend="reference")
        torch.testing.assert_close(getattr(y, "data", y), getattr(right, "data", right))
        torch.testing.assert_close(last, right_last)


def test_many_samples_at_once():
    network = chain(3, 8).double()
    x = torch.randn(4, 6, 2, 3, dtype=torch.float64)
    together = torch.vmap(lambda one: network(one)[0])(x)
    torch.testing.assert_close(together, torch.stack([network(one)[0] for one in x]))


def test_a_sum_over_something_else():
    def everything(x, r, s):
        return x.a.sum() + s.h

    def without_keeping(x, r, s):
        return x.a.mean(-1) + s.h

    def unbiased(x, r, s):
        return x.a.var(-1, keepdim=True) + s.h

    def of_a_constant(x, r, s):
        return x.a * torch.sum(0.0 * x.a + 2.0, -1, keepdim=True)

    wrong = ((everything, "keepdim=True"), (without_keeping, "keepdim=True"), (unbiased, "correction=0"))
    for step, why in (*wrong, (of_a_constant, "got a constant")):
        with pytest.raises(fastrnn.CellError, match=why):
            fastrnn.cell(gates="a")(step)


def test_matrices_that_are_of_no_use():
    with pytest.raises(fastrnn.CellError, match="matrices: m: no new state"):
        fastrnn.cell(gates="a", matrices="m")(lambda x, r, s: torch.tanh(x.a + r.a))
    with pytest.raises(fastrnn.CellError, match="different names"):
        fastrnn.cell(gates="a", matrices="a")(lambda x, r, s: torch.tanh(x.a + r.a))


def test_on_a_gpu_there_are_no_kernels():
    problem = chain._prepare(torch.float32, torch.device("cuda"))
    assert "no kernels on cuda for products with several vectors" in problem


def test_the_derivation_is_shown():
    text = chain.explain()
    for part in ("R_m·(s.k)", "R_nᵀ·(", "m2"):
        assert part in text
    assert "2 sums" in fastrnn.cell(gates="a")(lambda x, r, s: x.a + normalize(s.h)).explain()
    assert "struct Back" in chain.source()


@fastrnn.cell(gates="i f", states="h c", parameters="u")
def headed(x, r, s, p):
    c = torch.sigmoid(x.f + r.f) * s.c + torch.tanh(x.i + r.i + p.u * s.h)
    return torch.tanh(c), c


@pytest.mark.parametrize("cell", [headed, chain, normed], ids=lambda c: c.name)
def test_heads_are_a_block_diagonal_matrix(cell):
    """But for sums, which are those of a head."""
    I, H, heads = 3, 12, 3  # noqa: E741
    network = cell(I, H, heads=heads).double()
    assert network.weight_hh_l0.shape == (len(cell.recurrent) * H, H // heads)
    x = torch.randn(5, 2, I, dtype=torch.float64, requires_grad=True)
    states = tuple(torch.randn(1, 2, H, dtype=torch.float64, requires_grad=True) for _ in cell.states)
    y, last = network(x, states if len(states) > 1 else states[0])
    with torch.no_grad():
        assert torch.equal(pickle.loads(pickle.dumps(network))(x, states if len(states) > 1 else states[0])[0], y)
    if cell is normed:
        return
    whole = cell(I, H).double()
    blocks = network.weight_hh_l0.view(-1, heads, H // heads, H // heads)
    weights = dict(network.named_parameters())
    weights["weight_hh_l0"] = torch.cat([torch.block_diag(*gate) for gate in blocks])
    right = torch.func.functional_call(whole, weights, (x, states))
    wanted = [x, *states, *network.parameters()]
    assert_same(gradients((y, *last), wanted), gradients((right[0], *right[1]), wanted), 1e-10)
    step = network.step(x[0], tuple(s for s in states))
    torch.testing.assert_close(step[0], y[0])


def test_heads_have_to_divide_the_units():
    with pytest.raises(ValueError, match="heads: expected a divisor of hidden_size, 8, got 3"):
        headed(2, 8, heads=3)


def test_bounded_state_gradients():
    """∂L/∂h_t is cut before it goes through a step, as a hook on h does it."""
    network = chain(3, 8).double()
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    lengths = torch.tensor([6, 4])
    y, _ = network(x, lengths=lengths, clip_state_gradient=0.05, backend="fused")
    right, _ = network(x, lengths=lengths, clip_state_gradient=0.05, backend="reference")
    free, _ = network(x, lengths=lengths)
    parameters = list(network.parameters())
    ours, theirs = gradients((y,), parameters), gradients((right,), parameters)
    assert_same(ours, theirs, 1e-11)
    assert not torch.allclose(ours[1], gradients((free,), parameters)[1])


def test_heads_and_learned_initial_states():
    network = headed(3, 12, heads=3, learn_initial_state=True).double()
    for name in ("initial_h_l0", "initial_c_l0"):
        torch.nn.init.normal_(getattr(network, name))
    x, reset = torch.randn(5, 2, 3, dtype=torch.float64), torch.zeros(5, 2, dtype=torch.bool)
    reset[2, 1] = True
    y, last = network(x, reset=reset)
    tail, _ = network(x[2:, 1:])
    torch.testing.assert_close(y[2:, 1:], tail)
    carried, _ = network(x, last, reset=reset)
    torch.testing.assert_close(carried[2:, 1:], tail)
    with pytest.raises(ValueError, match="penalty: expected a network with one head"):
        network(x, penalty=fastrnn.training.GradientNormPenalty(0.1))
