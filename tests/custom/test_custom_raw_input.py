"""Cells that multiply the raw input in the step: Mogrifier LSTM, and others that only a raw input makes possible."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from compilers import needs_compiler
from torch.nn.functional import linear
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn import _C, inspect

pytestmark = needs_compiler
T, B, H = 5, 3, 7


@fastrnn.cell(gates="i f g o", states="h c", matrices="q r", raw_input="input")
def mogrifier(x, r, s):
    """Mogrifier LSTM with two pairs of rounds that share their matrices."""
    v, h = x.input, s.h
    for _ in range(2):
        v = 2 * torch.sigmoid(r.q(h)) * v
        h = 2 * torch.sigmoid(r.r(v)) * h
    i, f, o = (torch.sigmoid(x[gate](v) + r[gate](h)) for gate in "ifo")
    c = f * s.c + i * torch.tanh(x.g(v) + r.g(h))
    return o * torch.tanh(c), c


def step_of_mogrifier(w, v, s):
    h, c = s
    x_t, h_t = v, h
    for _ in range(2):
        x_t = 2 * torch.sigmoid(linear(h_t, *w("q"))) * x_t
        h_t = 2 * torch.sigmoid(linear(x_t, *w("r"))) * h_t
    W, R = w("ih", "ifgo"), w("hh", "ifgo")
    i, f, g, o = (linear(x_t, *W[k]) + linear(h_t, *R[k]) for k in "ifgo")
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


@fastrnn.cell(gates="u z", matrices="a b", parameters={"bias": 0.5}, raw_input="v")
def mixed(x, r, s, p):
    """A gate with an ordinary product and one called twice, a matrix (I, I), R·h combined with x, a sum over units."""
    v = torch.tanh(r.a + x.v)
    w = torch.sin(r.b(v)) * x.v
    z = torch.sigmoid(x.z + r.z + p.bias)
    n = torch.tanh(x.u(w) + x.u(v) + r.u(z * s.h))
    return z * s.h + (1 - z) * (n - n.mean(-1, keepdim=True))


def step_of_mixed(w, x_t, s):
    (h,) = s
    v = torch.tanh(linear(h, *w("a")) + x_t)
    u = torch.sin(linear(v, *w("b"))) * x_t
    W, R = w("ih", "uz"), w("hh", list(mixed.recurrent))
    z = torch.sigmoid(linear(x_t, *W["z"]) + linear(h, *R["z"]) + w("bias"))
    n = torch.tanh(linear(u, *W["u"]) + linear(v, *W["u"]) + linear(z * h, *R["u"]))
    return (z * h + (1 - z) * (n - n.mean(-1, keepdim=True)),)


@fastrnn.cell(gates="f", raw_input="v")
def highway(x, r, s):
    """A gate between the state and the input itself, without further products: no stages."""
    f = torch.sigmoid(x.f + r.f)
    return f * s.h + (1 - f) * x.v


def step_of_highway(w, x_t, s):
    f = torch.sigmoid(linear(x_t, *w("ih")) + linear(s[0], *w("hh")))
    return (f * s[0] + (1 - f) * x_t,)


STEPS = {mogrifier: step_of_mogrifier, mixed: step_of_mixed, highway: step_of_highway}
CASES = [(cell, width) for cell in (mogrifier, mixed) for width in (H, 4, 2 * H, 17)] + [(highway, H)]
every_case = pytest.mark.parametrize(("cell", "width"), CASES, ids=lambda v: getattr(v, "name", v))


def loop(network, x, states=None, lengths=None, reset=None, suffix="_l0"):
    """One layer step by step on tensors, by the equations and the weights' names."""

    def weights(name, gates=None):
        if name in network.cell.parameters:
            return getattr(network, name + suffix)
        pair = [getattr(network, f"{kind}_{name}{suffix}", None) for kind in ("weight", "bias")]
        if gates is None:
            return pair
        chunks = [[None] * len(gates) if p is None else p.chunk(len(gates)) for p in pair]
        return dict(zip(gates, zip(*chunks, strict=True), strict=True))

    first = [x.new_zeros(x.shape[1], network.hidden_size) for _ in network.cell.states] if states is None else states
    now, outputs = first, []
    for t, x_t in enumerate(x):
        live = torch.ones(x.shape[1], dtype=torch.bool) if lengths is None else t < lengths
        if reset is not None:
            begins = (reset[t] & live)[:, None]
            now = [torch.where(begins, a, b) for a, b in zip(first, now, strict=True)]
        new = STEPS[network.cell](weights, x_t, now)
        now = [torch.where(live[:, None], n, o) for n, o in zip(new, now, strict=True)]
        outputs.append(torch.where(live[:, None], new[0], 0.0))
    return torch.stack(outputs), now


def problem(cell, width, **options):
    torch.manual_seed(width)
    network = cell(width, H, dtype=torch.float64, **options)
    x = torch.randn(T, B, width, dtype=torch.float64, requires_grad=True)
    states = [torch.randn(B, H, dtype=torch.float64, requires_grad=True) for _ in cell.states]
    return network, x, states


def flat(found):
    y, last = found
    return [y, *(last if isinstance(last, (tuple, list)) else (last,))]


def gradients(found, leaves):
    torch.manual_seed(9)
    seeds = [torch.randn_like(one) for one in found]
    return [*found, *torch.autograd.grad(found, leaves, seeds, allow_unused=True, materialize_grads=True)]


def as_hx(states):
    whole = tuple(s.unsqueeze(0) for s in states)
    return whole if len(whole) > 1 else whole[0]


@every_case
@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_output_and_all_gradients_are_those_of_a_loop(cell, width, backend):
    network, x, states = problem(cell, width)
    leaves = [x, *states, *network.parameters()]
    y, *last = flat(network(x, as_hx(states), backend=backend))
    found = gradients([y, *(one.squeeze(0) for one in last)], leaves)
    right = gradients(flat(loop(network, x, states)), leaves)
    for ours, exact in zip(found, right, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


@every_case
def test_lengths_resets_and_packed(cell, width):
    network, x, states = problem(cell, width)
    leaves = [x, *states, *network.parameters()]
    lengths, reset = torch.tensor([5, 3, 1]), torch.rand(T, B) < 0.4
    for options in ({"lengths": lengths}, {"reset": reset}, {"lengths": lengths, "reset": reset}):
        y, *last = flat(network(x, as_hx(states), backend="fused", **options))
        found = gradients([y, *(one.squeeze(0) for one in last)], leaves)
        right = gradients(flat(loop(network, x, states, **options)), leaves)
        for ours, exact in zip(found, right, strict=True):
            torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)
    packed = network(pack_padded_sequence(x, lengths), backend="fused")
    torch.testing.assert_close(packed[1], network(x, lengths=lengths)[1])


def test_padding_that_is_not_a_number_reaches_no_gradient():
    network, x, _ = problem(mogrifier, 4)
    x = x.detach().clone()
    x[2:, 1] = torch.nan
    y, _ = network(x, lengths=[5, 2, 5])
    y.sum().backward()
    assert not y.isnan().any()
    assert not any(p.grad.isnan().any() for p in network.parameters())


@pytest.mark.parametrize("cell", [mogrifier, mixed], ids=lambda cell: cell.name)
def test_layers_of_different_widths(cell):
    """The second layer is twice as wide as the units, the first one neither a multiple nor a part."""
    network, x, _ = problem(cell, 10, num_layers=2, bidirectional=True)
    ours, theirs = (gradients(flat(network(x, backend=b)), [x, *network.parameters()]) for b in ("fused", "reference"))
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    one_way, x, _ = problem(cell, 10, num_layers=2)
    right = loop(one_way, loop(one_way, x)[0], suffix="_l1")[0]
    torch.testing.assert_close(one_way(x, backend="fused")[0], right)


@pytest.mark.parametrize("cell", [mogrifier, mixed], ids=lambda cell: cell.name)
@pytest.mark.parametrize("capability", [c for c in _C.capabilities() if c != _C.capability()])
def test_on_the_other_instruction_sets(cell, capability):
    network, x, _ = problem(cell, 17)
    right = gradients(flat(network(x, backend="reference")), [x, *network.parameters()])
    _C.set_capability(capability)
    found = gradients(flat(network(x, backend="fused")), [x, *network.parameters()])
    torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    network, x, _ = problem(mogrifier, 4)
    exact = network(x)[0]
    narrow = copy.deepcopy(network).to(dtype)
    found, plain = (narrow(x.detach().to(dtype), backend=b)[0] for b in ("fused", "reference"))
    error, allowed = ((y.double() - exact).abs().max() for y in (found, plain))
    assert error <= 2 * allowed + 4 * torch.finfo(dtype).eps


def test_shapes_and_names_of_the_weights():
    network = mogrifier(4, 7, 2, bidirectional=True)
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    assert shapes["weight_ih_l0"] == (28, 4)
    assert shapes["weight_hh_l0"] == (28, 7)
    assert (shapes["weight_q_l0"], shapes["bias_q_l0"]) == ((4, 7), (4,))
    assert (shapes["weight_r_l0"], shapes["bias_r_l0"]) == ((7, 4), (7,))
    assert shapes["weight_q_l1_reverse"] == (14, 7)
    assert mixed(4, 7).weight_b_l0.shape == (4, 4)
    assert not [name for name, _ in mogrifier(4, 7, bias=False).named_parameters() if "bias" in name]
    assert mogrifier.recurrent == ("i", "f", "g", "o")
    assert mogrifier.products[0] == ("q",)
    assert {frozenset(names) for names in mogrifier.products[1:]} >= {frozenset("ifgo")}
    assert "W_g·(" in mogrifier.explain()


@pytest.mark.parametrize("width", [4, 7, 17])
def test_without_biases(width):
    network, x, _ = problem(mogrifier, width, bias=False)
    leaves = [x, *network.parameters()]
    ours, theirs = (gradients(flat(found), leaves) for found in (network(x, backend="fused"), loop(network, x)))
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[3:], theirs[3:])


def test_one_step_at_a_time_copies_and_saved_weights():
    network, x, _ = problem(mogrifier, 10, num_layers=2)
    right = network(x)[0]
    stream, states = fastrnn.Stream(network), None
    for t, x_t in enumerate(x.detach()):
        y, states = network.step(x_t, states)
        torch.testing.assert_close(y, right[t])
        torch.testing.assert_close(stream.step(x_t), right[t])
    again = mogrifier(10, H, 2, dtype=torch.float64)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(x)[0], right)
    assert torch.equal(copy.deepcopy(network)(x)[0], right)
    assert pickle.loads(pickle.dumps(network)).cell is mogrifier


def test_finite_differences_second_order_and_vmap():
    network, x, _ = problem(mixed, 4)
    x = x[:2, :2]
    assert torch.autograd.gradcheck(lambda x: network(x)[0], x)
    assert torch.autograd.gradgradcheck(lambda x: network(x)[0], x)
    several = torch.randn(2, 3, B, 4, dtype=torch.float64)
    found = torch.func.vmap(lambda x: network(x)[0])(several)
    torch.testing.assert_close(found, torch.stack([network(one)[0] for one in several]))


def test_autocast_recompute_and_clipping():
    network, x, _ = problem(mogrifier, 10)
    leaves = [x, *network.parameters()]
    for options in ({"recompute": 2}, {"clip_state_gradient": 0.1}):
        ours, theirs = (gradients(flat(network(x, backend=b, **options)), leaves) for b in ("fused", "reference"))
        torch.testing.assert_close(ours, theirs)
    with torch.autocast("cpu", torch.bfloat16):
        y = network.float()(x.float())[0]
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), network.double()(x)[0], rtol=0.1, atol=0.05)


def test_compiled_and_exported():
    network, x, _ = problem(mogrifier, 10)
    network, x = network.eval(), x.detach()
    right = network(x)[0]
    torch.testing.assert_close(torch.compile(network, fullgraph=True, backend="aot_eager")(x)[0], right)
    torch.testing.assert_close(torch.export.export(network, (x,)).module()(x)[0], right)


def test_analyses_and_initialisation():
    for cell, width in ((mogrifier, 4), (mixed, 17), (highway, H)):
        network, x, _ = problem(cell, width)
        assert {one.gate for one in inspect.spectrum(network)} == set(cell.recurrent)
        flow = inspect.gradient_flow(network, x)
        assert flow is not None
        jacobian = inspect.jacobian(network, x[0, :1])
        h = torch.zeros(1, H * len(cell.states), dtype=torch.float64)

        def new(h, network=network, x=x, cell=cell):
            return torch.cat(flat(loop(network, x[:1, :1], h.chunk(len(cell.states), -1)))[1:], -1)

        exact = torch.autograd.functional.jacobian(new, h)[0, :, 0]
        torch.testing.assert_close(jacobian[0], exact)
        for block in fastrnn.init.orthogonal_(network).weight_hh_l0.chunk(len(cell.recurrent)):
            torch.testing.assert_close(block @ block.t(), torch.eye(H, dtype=torch.float64))


def test_widths_that_a_step_cannot_have():
    with pytest.raises(ValueError, match=r"as many inputs as units .* 7, got 4: in the step of highway .*combines"):
        highway(4, 7)
    with pytest.raises(ValueError, match="as many inputs as units"):
        highway(7, 7, 2, bidirectional=True)  # the second layer has 14 inputs
    with pytest.raises(ValueError, match="heads: expected 1 for a cell with a raw input, got 7"):
        mogrifier(7, 7, heads=7)

    @fastrnn.cell(gates="u", raw_input="v")
    def logarithmic(x, r, s):
        return torch.tanh(x.u(torch.log(x.v)) + r.u)

    with pytest.raises(ValueError, match=r"expected a multiple of hidden_size \(7\), got 4: .* logarithmic .*infinite"):
        logarithmic(4, 7)
    network = logarithmic(14, 7, dtype=torch.float64)
    x = torch.rand(T, B, 14, dtype=torch.float64) + 0.1
    right = torch.zeros(B, 7, dtype=torch.float64)
    w = [getattr(network, f"{n}_l0") for n in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")]
    for x_t in x:
        right = torch.tanh(linear(x_t.log(), *w[:2]) + linear(right, *w[2:]))
    torch.testing.assert_close(network(x, backend="fused")[0][-1], right)


@pytest.mark.parametrize(
    ("step", "options", "message"),
    [
        (lambda x, r, s: x.a(s.h) + r.a, {}, "expected a cell with raw_input="),
        (lambda x, r, s: x.a + x.a(x.v), {"raw_input": "v"}, r"x\.a: expected either W·x_t or the product .* got both"),
        (lambda x, r, s: x.a + r.v, {"raw_input": "v"}, "no recurrent weights"),
        (lambda x, r, s: x.a, {"raw_input": "a"}, "different names"),
        (lambda x, r, s: x.a, {"raw_input": "1"}, "raw_input: .*'1'"),
        (lambda x, r, s: x.a, {"raw_input": 3}, "raw_input: .*3"),
        (lambda x, r, s: x.a + r.ih(x.v), {"raw_input": "v", "matrices": "ih"}, "names other than ih and hh"),
    ],
)
def test_what_is_refused(step, options, message):
    with pytest.raises(fastrnn.CellError, match=message):
        fastrnn.cell(gates="a", **options)(step)


def test_parameters_with_names_of_weights():
    with pytest.raises(fastrnn.CellError, match="weight_q"):

        @fastrnn.cell(gates="a", matrices="q", parameters="weight_q", raw_input="v")
        def taken(x, r, s, p):
            return torch.tanh(x.a(x.v * r.q) * p.weight_q)


def test_a_matrix_that_multiplies_h_and_other_vectors():
    """With calls, r.n(s.h) is one of them."""

    @fastrnn.cell(gates="a")
    def twice(x, r, s):
        return torch.tanh(x.a + r.a(torch.tanh(r.a(s.h))))

    @fastrnn.cell(gates="a")
    def once(x, r, s):
        return torch.tanh(x.a + r.a(s.h))

    network, x = twice(4, H, dtype=torch.float64), torch.randn(T, B, 4, dtype=torch.float64)
    h = torch.zeros(B, H, dtype=torch.float64)
    W, R = ([getattr(network, f"{kind}_{n}_l0") for kind in ("weight", "bias")] for n in ("ih", "hh"))
    for x_t in x:
        h = torch.tanh(linear(x_t, *W) + linear(torch.tanh(linear(h, *R)), *R))
    for backend in ("fused", "reference"):
        torch.testing.assert_close(network(x, backend=backend)[0][-1], h)
    assert not once._compiled.step.staged
    assert once.products == (("a",), ())
    network = once(4, H, dtype=torch.float64)
    torch.testing.assert_close(network(x, backend="fused"), network(x, backend="reference"))


def test_many_products():
    """Scratch memory of more blocks than other cells have."""

    @fastrnn.cell(gates="u", matrices="flow")
    def solver(x, r, s):
        h = s.h
        for _ in range(20):
            h = h + 0.1 * (torch.tanh(x.u + r.flow(torch.sigmoid(h))) - h)
        return h

    network, x = solver(3, 5, dtype=torch.float64), torch.randn(T, B, 3, dtype=torch.float64, requires_grad=True)
    ours, theirs = (gradients(flat(network(x, backend=b)), [x, *network.parameters()]) for b in ("fused", "reference"))
    torch.testing.assert_close(ours, theirs)
