"""fastrnn.init: what the papers say of the matrices and biases, on tensors, modules and models."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fastrnn
from fastrnn import gallery, init

MODULES = {
    "fastrnn.LSTM": lambda: fastrnn.LSTM(3, 8, 2, bidirectional=True),
    "fastrnn.GRU": lambda: fastrnn.GRU(3, 8),
    "fastrnn.RNN": lambda: fastrnn.RNN(3, 8, 2, nonlinearity="relu"),
    "torch.LSTM": lambda: nn.LSTM(3, 8, 2, bidirectional=True),
    "torch.GRU": lambda: nn.GRU(3, 8),
    "torch.RNN": lambda: nn.RNN(3, 8),
    "fastrnn.LSTMCell": lambda: fastrnn.LSTMCell(3, 8),
    "torch.GRUCell": lambda: nn.GRUCell(3, 8),
    "torch.RNNCell": lambda: nn.RNNCell(3, 8, nonlinearity="relu"),
    "custom": lambda: gallery.elman_sigmoid(3, 8, 2, bidirectional=True),
    "custom gates": lambda: gallery.zoneout_lstm(3, 8),
    "custom heads": lambda: gallery.slstm(3, 16, heads=2),
}


def recurrent(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach() for name, p in module.named_parameters() if "weight_hh" in name]


def blocks(weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return weight.split(weight.shape[1])


@pytest.fixture(params=MODULES)
def module(request):
    return MODULES[request.param]()


def test_identity_of_modules(module):
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    assert init.identity_(module, 0.5) is module
    for name, p in module.named_parameters():
        if "weight_hh" in name:
            for block in blocks(p):
                assert torch.equal(block, 0.5 * torch.eye(8))
        elif "bias" in name:
            assert not p.any()
        else:
            assert torch.equal(p, before[name])
        assert p.requires_grad
        assert p.is_leaf


def test_orthogonal_by_gate(module):
    before = {name: p.detach().clone() for name, p in module.named_parameters() if "weight_hh" not in name}
    assert init.orthogonal_(module, gain=2.0) is module
    found = [block for weight in recurrent(module) for block in blocks(weight)]
    for block in found:
        torch.testing.assert_close(block @ block.T, 4 * torch.eye(8), rtol=0, atol=1e-5)
    assert len({tuple(block.flatten().tolist()) for block in found}) == len(found)
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters() if name in before)


def test_np_rnn_is_positive_definite_with_largest_eigenvalue_one(module):
    init.np_rnn_(module)
    for weight in recurrent(module):
        for block in blocks(weight):
            eigenvalues = torch.linalg.eigvalsh(block.double())
            assert torch.equal(block, block.T) or torch.allclose(block, block.T, atol=1e-6)
            assert eigenvalues[-1] == pytest.approx(1, abs=1e-5)
            assert (eigenvalues > 0).all()
            assert eigenvalues[-2] < 1


def test_np_rnn_is_that_of_the_paper():
    generator = torch.Generator().manual_seed(3)
    found = init.np_rnn_(torch.empty(6, 6, dtype=torch.float64), generator=generator)
    q = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    a = q.T @ q / 6 + torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(found, a / torch.linalg.eigvalsh(a).max())


@pytest.mark.parametrize("function", [init.identity_, init.np_rnn_, init.orthogonal_])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_tensors(function, dtype):
    weight = torch.randn(12, 4, dtype=dtype, requires_grad=True)
    assert function(weight, gates=3) is weight
    for block in weight.detach().double().split(4):
        assert torch.linalg.matrix_norm(block, 2).item() == pytest.approx(1, abs=2e-2)
    assert weight.grad_fn is None


def test_identity_network_copies_its_state():
    rnn = init.identity_(fastrnn.RNN(3, 8, nonlinearity="relu"))
    h = torch.rand(1, 2, 8)
    _, last = rnn(torch.zeros(50, 2, 3), h)
    assert torch.equal(last, h)


def test_orthogonal_lstm_with_projection():
    lstm = init.orthogonal_(fastrnn.LSTM(3, 8, proj_size=5))
    for block in lstm.weight_hh_l0.detach().split(8):
        torch.testing.assert_close(block.T @ block, torch.eye(5), rtol=0, atol=1e-5)


def test_chosen_gates():
    lstm = fastrnn.LSTM(3, 8)
    before = lstm.weight_hh_l0.detach().clone()
    init.identity_(lstm, gates="g")
    found = lstm.weight_hh_l0.detach()
    assert torch.equal(found[16:24], torch.eye(8))
    assert torch.equal(found[:16], before[:16])
    assert torch.equal(found[24:], before[24:])
    assert not lstm.bias_hh_l0[16:24].any()
    assert lstm.bias_hh_l0[:16].all()


@pytest.mark.parametrize(
    "name", ["fastrnn.LSTM", "torch.LSTM", "fastrnn.LSTMCell", "custom gates", "fastrnn.GRU", "torch.GRUCell"]
)
def test_forget_bias_is_the_sum(name):
    gate = 1  # f of (i, f, g, o), z of (r, z, n)
    module = MODULES[name]()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    assert init.forget_bias_(module, 1.5) is module
    for name, p in module.named_parameters():
        if "bias_ih" in name:
            total = p + module.get_parameter(name.replace("ih", "hh"))
            assert torch.equal(total[8 * gate : 8 * (gate + 1)], torch.full((8,), 1.5))
            kept = torch.ones_like(p, dtype=torch.bool)
            kept[8 * gate : 8 * (gate + 1)] = False
            assert torch.equal(p[kept], before[name][kept])
        elif "bias" not in name:
            assert torch.equal(p, before[name])


def test_forget_bias_remembers():
    """With a large bias of the gate that keeps, what is in the state stays: the gate is the right one."""
    x = torch.zeros(5, 1, 3)
    for module in (fastrnn.LSTM(3, 8), fastrnn.GRU(3, 8), gallery.zoneout_lstm(3, 8).eval()):
        init.forget_bias_(module, 30.0)
        kept = torch.randn(1, 1, 8)
        if isinstance(module, fastrnn.GRU):
            assert torch.allclose(module(x, kept)[1], kept, atol=1e-5)
        elif isinstance(module, fastrnn.LSTM):
            init.forget_bias_(module, -30.0, gate="i")
            assert torch.allclose(module(x, (kept, kept))[1][1], kept, atol=1e-5)
    bias = init.forget_bias_(torch.zeros(8), 2.0)
    assert bias.tolist() == [0, 0, 2, 2, 0, 0, 0, 0]


def test_chrono():
    generator = torch.Generator().manual_seed(5)
    lstm = init.chrono_(fastrnn.LSTM(3, 4000, 2), 200, generator=generator)
    for layer in range(2):
        total = (getattr(lstm, f"bias_ih_l{layer}") + getattr(lstm, f"bias_hh_l{layer}")).detach()
        i, f, *_ = total.split(4000)
        assert torch.equal(i, -f)
        u = f.exp()
        assert u.min() > 1 - 1e-5
        assert u.max() < 199 + 1e-3
        assert u.mean().item() == pytest.approx(100, abs=4)  # uniform in (1, 199): standard error 0.9
    again = init.chrono_(fastrnn.LSTM(3, 4000, 2), 200, generator=torch.Generator().manual_seed(5))
    assert torch.equal(again.bias_ih_l1[:8000], lstm.bias_ih_l1[:8000])

    gru = init.chrono_(fastrnn.GRU(3, 4), 50)
    z = (gru.bias_ih_l0 + gru.bias_hh_l0)[4:8]
    assert (z > 0).all()
    assert (z < math.log(49)).all()

    bias = init.chrono_(torch.zeros(16), 10)
    assert torch.equal(bias[:4], -bias[4:8])
    assert not bias[8:].any()


def test_chrono_of_custom_cells():
    network = init.chrono_(gallery.zoneout_lstm(3, 4), 50)
    total = network.bias_ih_l0 + network.bias_hh_l0
    assert (total[4:8] > 0).all()
    assert torch.equal(total[:4], -total[4:8])
    network = init.chrono_(gallery.min_gru(3, 4), 50, input="z")  # h' = (1 - z)·h + z·n
    z = network.cell.gates.index("z")
    assert (network.bias_ih_l0[4 * z : 4 * z + 4] < 0).all()
    with pytest.raises(ValueError, match=r"expected a cell with a gate f, got min_gru"):
        init.chrono_(gallery.min_gru(3, 4), 50)


def test_models_and_parametrized_weights():
    model = nn.ModuleDict({"a": fastrnn.LSTM(3, 8), "b": nn.Linear(8, 2), "c": nn.GRU(3, 8)})
    before = model["b"].weight.detach().clone()
    assert init.identity_(model) is model
    assert torch.equal(model["c"].weight_hh_l0[8:16], torch.eye(8))
    assert torch.equal(model["b"].weight, before)

    lstm = parametrizations.orthogonal(fastrnn.RNN(3, 8), "weight_hh_l0")
    init.identity_(lstm)
    torch.testing.assert_close(lstm.weight_hh_l0, torch.eye(8))


def test_generator_leaves_the_default_one_alone():
    state = torch.get_rng_state()
    module = fastrnn.GRU(3, 4)
    torch.set_rng_state(state)
    generator = torch.Generator().manual_seed(1)
    for function in (init.orthogonal_, init.np_rnn_):
        first = recurrent(function(module, generator=generator.manual_seed(1)))[0].clone()
        second = recurrent(function(module, generator=generator.manual_seed(1)))[0]
        assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: init.identity_(nn.Linear(2, 2)), ValueError, r"expected a recurrent module .* got Linear"),
        (lambda: init.identity_("R"), TypeError, r"module: expected a torch.nn.Module, got str"),
        (
            lambda: init.identity_(torch.zeros(4, 3)),
            ValueError,
            r"a square matrix for each gate, got \(4, 3\)",
        ),
        (lambda: init.identity_(torch.zeros(8, 4)), ValueError, r"got \(8, 4\)"),
        (lambda: init.identity_(torch.zeros(4)), ValueError, r"tensor: expected shape \(1·H, P\), got \(4,\)"),
        (lambda: init.identity_(fastrnn.LSTM(3, 8, proj_size=4)), ValueError, r"got \(8, 4\)"),
        (lambda: init.orthogonal_(torch.zeros(8, 4), gates="i f"), TypeError, r"a tensor.s number of blocks"),
        (lambda: init.orthogonal_(fastrnn.GRU(2, 3), gates=3), TypeError, r"the names of a module.s gates, got 3"),
        (lambda: init.orthogonal_(fastrnn.GRU(2, 3), gates="f"), ValueError, r"\(r, z, n\), got 'f'"),
        (lambda: init.forget_bias_(fastrnn.LSTM(2, 3, bias=False)), ValueError, r"biases, got LSTM with bias=False"),
        (lambda: init.forget_bias_(fastrnn.RNN(2, 3)), ValueError, r"with a gate f, got RNN with the gates h"),
        (lambda: init.forget_bias_(fastrnn.LSTM(2, 3), gate="z"), ValueError, r"LSTM \(i, f, g, o\), got 'z'"),
        (lambda: init.forget_bias_(torch.zeros(6)), ValueError, r"the bias of an LSTM, \(4·H\), got \(6,\)"),
        (lambda: init.chrono_(fastrnn.LSTM(2, 3), 2), ValueError, r"t_max: expected more than 2 steps, got 2"),
        (lambda: init.chrono_(fastrnn.LSTM(2, 3), float("nan")), ValueError, r"t_max: expected more than 2 steps"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
