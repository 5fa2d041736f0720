"""Networks of Python cells, against plain loops over rows and steps."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastrnn

FLOAT64 = torch.float64


@pytest.fixture(params=["mixed", "rnn_tanh"])
def cell(cells, request):
    return getattr(cells, request.param)


def network_of(cell, inputs=3, hidden=5, **options):
    torch.manual_seed(1)
    return cell(inputs, hidden, **{"dtype": FLOAT64, **options})


def as_tuple(states):
    return states if isinstance(states, tuple) else (states,)


def initial(net, batch: int):
    shape = (net.num_layers * (2 if net.bidirectional else 1), batch, net.hidden_size)
    states = tuple(torch.randn(shape, dtype=FLOAT64).requires_grad_() for _ in net.cell.states)
    return states if len(states) > 1 else states[0]


def compare(net, found, wanted, leaves, tolerance=1e-11) -> None:
    """Outputs, states, and gradients of a random sum of both."""
    pairs = [(f, w) for f, w in zip((found[0], *as_tuple(found[1])), (wanted[0], *wanted[1]), strict=True)]
    seeds = [torch.randn_like(w) for _, w in pairs]
    leaves = [*leaves, *net.parameters()]
    gradients = [
        torch.autograd.grad(sum((t * s).sum() for t, s in zip(side, seeds, strict=True)), leaves, allow_unused=True)
        for side in zip(*pairs, strict=True)
    ]
    for f, w in (*pairs, *zip(*gradients, strict=True)):
        torch.testing.assert_close(f, w, rtol=tolerance, atol=tolerance)


SHAPES = [(6, 3, 5), (1, 3, 5), (6, 1, 5), (4, 2, 1), (3, 2, 17)]


@pytest.mark.parametrize(("T", "B", "H"), SHAPES)
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2, "bias": False}], ids=str)
def test_whole_sequences(cells, cell, options, T, B, H):
    net = network_of(cell, hidden=H, **options)
    x = torch.randn(T, B, 3, dtype=FLOAT64, requires_grad=True)
    compare(net, net(x, backend="fused"), cells.network(net, x), [x])
    hx = initial(net, B)
    compare(net, net(x, hx, backend="fused"), cells.network(net, x, as_tuple(hx)), [x, *as_tuple(hx)])


@pytest.mark.parametrize("recompute", [False, True, 2])
def test_lengths_and_reset(cells, cell, recompute):
    net = network_of(cell, num_layers=2, bidirectional=True)
    x, hx = torch.randn(6, 4, 3, dtype=FLOAT64, requires_grad=True), initial(net, 4)
    lengths, reset = [6, 0, 3, 1], torch.rand(6, 4) < 0.4
    for options in ({"lengths": lengths}, {"reset": reset}, {"lengths": torch.tensor(lengths), "reset": reset}):
        found = net(x, hx, recompute=recompute, **options)
        compare(net, found, cells.network(net, x, as_tuple(hx), **options), [x, *as_tuple(hx)])


def test_batch_first_and_unbatched(cells, cell):
    net = network_of(cell, bidirectional=True)
    first = copy.deepcopy(net)
    first.batch_first = True
    x, reset = torch.randn(4, 3, 3, dtype=FLOAT64, requires_grad=True), torch.rand(4, 3) < 0.4
    y, states = first(x.transpose(0, 1), reset=reset.t())
    compare(first, (y.transpose(0, 1), states), cells.network(first, x, reset=reset), [x])
    hx = initial(net, 1)
    alone = tuple(s.squeeze(1) for s in as_tuple(hx))
    y, states = net(x[:, 0], alone if len(alone) > 1 else alone[0])
    found = (y.unsqueeze(1), tuple(s.unsqueeze(1) for s in as_tuple(states)))
    compare(net, found, cells.network(net, x[:, :1], as_tuple(hx)), [x, *as_tuple(hx)])


@pytest.mark.parametrize("lengths", [[5, 3, 1], [2, 5, 4]], ids=["sorted", "unsorted"])
def test_packed(cells, cell, lengths):
    net = network_of(cell, num_layers=2, bidirectional=True)
    x, hx = torch.randn(5, 3, 3, dtype=FLOAT64, requires_grad=True), initial(net, 3)
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=lengths[0] == 5)
    y, states = net(packed, hx)
    assert isinstance(y, PackedSequence)
    wanted = cells.network(net, x, as_tuple(hx), lengths=lengths)
    compare(net, (pad_packed_sequence(y)[0], states), wanted, [x, *as_tuple(hx)])


def test_step(cells, cell):
    net = network_of(cell, num_layers=2)
    x = torch.randn(4, 3, 3, dtype=FLOAT64, requires_grad=True)
    outputs, states = [], None
    for t in range(4):
        y, states = net.step(x[t], states)
        outputs.append(y)
    compare(net, (torch.stack(outputs), states), cells.network(net, x), [x])
    y, states = net.step(x[0, 0])
    assert y.shape == (5,)
    assert as_tuple(states)[0].shape == (2, 5)
    with pytest.raises(ValueError, match="bidirectional"):
        network_of(cell, bidirectional=True).step(x[0])


def test_dropout(cell):
    """Between layers only, in training only, with torch's own draws."""
    net, x = network_of(cell, num_layers=2, dropout=0.5), torch.randn(4, 3, 3, dtype=FLOAT64)
    below, above = network_of(cell), network_of(cell, 5)
    for name, weight in net.named_parameters():
        target = below if "_l0" in name else above
        dict(target.named_parameters())[name.replace("_l1", "_l0")].data = weight.data
    torch.manual_seed(3)
    found = net(x)[0]
    torch.manual_seed(3)
    torch.testing.assert_close(found, above(torch.dropout(below(x)[0], 0.5, True))[0])
    torch.testing.assert_close(net.eval()(x)[0], above(below(x)[0])[0])


def test_copies(cell):
    net, x = network_of(cell, num_layers=2, bidirectional=True), torch.randn(4, 3, 3, dtype=FLOAT64)
    saved = io.BytesIO()
    torch.save(net.state_dict(), saved)
    saved.seek(0)
    other = network_of(cell, num_layers=2, bidirectional=True)
    other.reset_parameters()
    other.load_state_dict(torch.load(saved))
    for again in (other, pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        assert again.cell is net.cell
        assert torch.equal(again(x)[0], net(x)[0])


def test_parameters_begin_as_the_cell_says(cells):
    net = cells.mixed(3, 64)
    assert torch.equal(net.slope_l0, torch.full((64,), 0.3))
    assert (net.decay_l0 >= 0.1).all()
    assert (net.decay_l0 <= 0.9).all()
    assert net.decay_l0.std() > 0.1
    assert net.weight_hh_l0.abs().max() <= 1 / 8


def test_compiled_and_exported(cell):
    net, x = network_of(cell), torch.randn(4, 3, 3, dtype=FLOAT64, requires_grad=True)
    right = net(x)[0]
    fused = torch.compile(net, fullgraph=True, backend="aot_eager")
    found = fused(x)[0]
    torch.testing.assert_close(found, right)
    for a, b in zip(
        *(torch.autograd.grad(y.square().sum(), [x, *net.parameters()]) for y in (found, right)), strict=True
    ):
        torch.testing.assert_close(a, b)
    exported = torch.export.export(net, (x.detach(),)).module()
    torch.testing.assert_close(exported(x.detach())[0], right)


def test_higher_derivatives(cell):
    net, x = network_of(cell, 2, 3), torch.randn(3, 2, 2, dtype=FLOAT64, requires_grad=True)
    names, weights = zip(*net.named_parameters(), strict=True)

    def outputs(x, *weights):
        y, states = torch.func.functional_call(net, dict(zip(names, weights, strict=True)), (x,))
        return (y, *as_tuple(states))

    assert torch.autograd.gradcheck(outputs, (x, *weights))
    assert torch.autograd.gradgradcheck(outputs, (x, *weights))


@pytest.mark.parametrize("name", ["rnn_tanh", "mixed"])
def test_transforms(cells, name):
    net, x = network_of(getattr(cells, name)), torch.randn(2, 4, 3, 3, dtype=FLOAT64)
    weights = {name: p.detach() for name, p in net.named_parameters()}

    def loss(weights, x):
        return torch.func.functional_call(net, weights, (x,))[0].square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    for k in range(2):
        one = torch.autograd.grad(net(x[k])[0].square().sum(), list(net.parameters()))
        for (name, found), right in zip(each.items(), one, strict=True):
            torch.testing.assert_close(found[k], right, msg=name)


def test_a_product_that_cancels_out():
    @fastrnn.cell(gates="a b")
    def cancels(x, r, s):
        unused = torch.tanh(r.b)
        return torch.tanh(x.a + r.a) + 0 * unused

    cancels(3, 5)(torch.randn(4, 2, 3), backend="reference")


def test_a_lambda():
    fastrnn.cell(gates="a")(lambda x, r, s: torch.tanh(x.a + 0.5 * r.a)).build()


def test_states_that_are_none(cells):
    with pytest.raises(TypeError, match="hx: "):
        network_of(cells.mixed)(torch.randn(4, 3, 3, dtype=FLOAT64), 3)


def test_autocast(cells):
    net = network_of(cells.mixed, dtype=torch.float32)
    x = torch.randn(4, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = net(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), net(x)[0], rtol=0.05, atol=0.05)
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())


def test_errors(cells):
    net, x = network_of(cells.mixed), torch.randn(4, 3, 3, dtype=FLOAT64)
    state = torch.zeros(1, 3, 5, dtype=FLOAT64)
    for error, message, call in (
        (TypeError, "hx: expected 2 tensors", lambda: net(x, state)),
        (RuntimeError, r"hx: expected m of size \(1, 3, 5\)", lambda: net(x, (state, state[:, :2]))),
        (RuntimeError, "input_size", lambda: net(x[..., :2])),
        (ValueError, "2D or 3D", lambda: net(x[None])),
        (TypeError, "input: ", lambda: net([1.0])),
        (RuntimeError, "sequence length", lambda: net(x[:0])),
        (ValueError, "backend: ", lambda: net(x, backend="quick")),
        (ValueError, "lengths: ", lambda: net(x, lengths=[1, 2])),
        (ValueError, "lengths: ", lambda: net(x, lengths=[1, 2, 5])),
        (TypeError, "lengths: ", lambda: net(x, lengths=[1.0, 2, 3])),
        (TypeError, "reset: ", lambda: net(x, reset=torch.zeros(4, 3))),
        (ValueError, "recompute: ", lambda: net(x, recompute=1)),
        (ValueError, "lengths: ", lambda: net(pack_padded_sequence(x, [4, 2, 1]), lengths=[4, 2, 1])),
        (ValueError, "hidden_size: ", lambda: cells.mixed(3, 0)),
        (TypeError, "input_size: ", lambda: cells.mixed(3.0, 2)),
        (ValueError, "dropout: ", lambda: cells.mixed(3, 2, dropout=2)),
    ):
        with pytest.raises(error, match=message):
            call()
