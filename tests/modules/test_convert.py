"""`fastrnn.convert`: there and back."""

from __future__ import annotations

import copy

import pytest
import torch
from dropin_cases import B, I, T, gradients, same
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import fastrnn

NAMES = ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"]
LOOSE = {"rtol": 1e-4, "atol": 1e-5}


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.LSTM(I, 4, 2, batch_first=True, bidirectional=True, dropout=0.5)
        self.rest = nn.ModuleDict({"gru": nn.GRU(8, 4, batch_first=True), "plain": nn.Linear(4, 4)})
        self.shared = self.rest["gru"]
        self.listed = [self.encoder]  # a reference that no module knows of
        self.cell = nn.GRUCell(4, 4)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        y = self.rest["plain"](self.shared(self.listed[0](x)[0])[0])
        return self.cell(y[:, -1], self.mean.expand(len(x), 4))


class Mine(nn.LSTM):
    def forward(self, x):
        return super().forward(x)[0]


def classes(model):
    return [type(m) for m in model.modules()]


def test_a_model_there_and_back():
    torch.manual_seed(0)
    model = Tagger().eval()
    before = classes(model)
    x = torch.randn(B, T, I)
    expected = model(x)
    slopes = gradients(model, expected)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    state, text = copy.deepcopy(model.state_dict()), repr(model)

    assert fastrnn.convert(model) is model
    assert type(model.encoder) is type(model.listed[0]) is fastrnn.LSTM
    assert type(model.shared) is type(model.rest["gru"]) is fastrnn.GRU
    assert model.shared is model.rest["gru"]
    assert type(model.cell) is fastrnn.GRUCell
    assert type(model.rest["plain"]) is nn.Linear
    assert not model.encoder.training
    now = dict(model.named_parameters(remove_duplicate=False))
    assert list(now) == list(parameters)
    assert all(now[name] is parameter for name, parameter in parameters.items())
    assert list(model.state_dict()) == list(state)
    assert model.state_dict()._metadata == state._metadata
    assert repr(model) == text
    same(model(x), expected, **LOOSE)
    same(gradients(model, model(x)), slopes, **LOOSE)
    converted = classes(model)
    assert fastrnn.convert(model) is model
    assert classes(model) == converted

    model.encoder.backend = "reference"
    assert fastrnn.convert(model, to="torch") is model
    assert classes(model) == before
    assert "backend" not in vars(model.encoder)
    same(model(x), expected, rtol=0, atol=0)
    assert fastrnn.convert(model, to="torch") is model


@pytest.mark.parametrize("name", NAMES)
def test_a_model_may_be_one_module(name):
    module = getattr(nn, name)(I, 4)
    x = torch.randn(B, I) if "Cell" in name else torch.randn(T, B, I)
    expected = module(x)
    assert fastrnn.convert(module) is module
    assert type(module) is getattr(fastrnn, name)
    assert isinstance(module, getattr(nn, name))
    same(module(x), expected, **LOOSE)
    twin = fastrnn.convert(copy.deepcopy(module), to="torch")
    assert type(twin) is getattr(nn, name)
    same(twin(x), expected)


class Ours(fastrnn.GRU):
    pass


class Held(nn.Module):
    """Modules that `convert` leaves alone, and one that it converts."""

    def __init__(self):
        super().__init__()
        self.mine, self.usual = Mine(I, 4), nn.LSTM(4, 4)
        self.wrapped = nn.GRU(4, 4)
        self.wrapped.forward = self.wrapped.forward
        self.scripted = torch.jit.script(nn.RNN(4, 4))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
def test_what_is_left_alone_is_reported(caplog):
    model = Held()
    expected = "convert: expected modules that can be converted to fastrnn"
    with caplog.at_level("INFO", logger="fastrnn"), pytest.warns(UserWarning, match=expected) as caught:
        fastrnn.convert(model)
    text = str(caught[0].message)
    assert "mine (test_convert.Mine): a subclass of torch.nn.LSTM; derive it from fastrnn.LSTM" in text
    assert "wrapped (torch.nn.GRU): its forward was replaced on the instance" in text
    assert "scripted" in text
    assert "usual" not in text
    assert caught[0].filename == __file__
    assert [r.message for r in caplog.records] == ["usual: converted to fastrnn.LSTM"]
    assert [type(m) for m in (model.mine, model.usual, model.wrapped)] == [Mine, fastrnn.LSTM, nn.GRU]


@pytest.mark.filterwarnings("error", "ignore:.*torch.jit.*deprecated")
def test_what_is_left_alone_may_raise_or_be_ignored():
    model = Held()
    with pytest.raises(ValueError, match=r"mine .*derive it from fastrnn\.LSTM"):
        fastrnn.convert(model, skipped="raise")
    assert type(model.usual) is nn.LSTM
    fastrnn.convert(model, skipped="ignore")
    assert type(model.usual) is fastrnn.LSTM
    model = nn.Sequential(Ours(I, 4), fastrnn.GRU(4, 4))
    fastrnn.convert(model)  # is fastrnn's already
    with pytest.raises(ValueError, match=r"0 \(test_convert.Ours\): a subclass of fastrnn.GRU; derive it from torch"):
        fastrnn.convert(model, to="torch", skipped="raise")
    fastrnn.convert(model, to="torch", skipped="ignore")
    assert [type(m) for m in model] == [Ours, nn.GRU]


def test_hooks_optimizers_and_requires_grad_survive():
    module = nn.LSTM(I, 4)
    heard = []
    module.register_forward_hook(lambda m, args, out: heard.append(type(m)))
    module.bias_hh_l0.requires_grad_(False)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    fastrnn.convert(module)
    x = torch.randn(T, B, I)
    before = module(x)[0]
    before.square().sum().backward()
    assert module.bias_hh_l0.grad is None
    optimizer.step()
    assert not torch.equal(module(x)[0], before)
    assert heard == [fastrnn.LSTM] * 2


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "GRUCell"])
def test_parametrized_modules(name):
    module = getattr(nn, name)(I, 4)
    weight = "weight_hh" if "Cell" in name else "weight_hh_l0"
    parametrizations.weight_norm(module, weight)
    x = torch.randn(B, I) if "Cell" in name else torch.randn(T, B, I)
    expected, state = module(x), module.state_dict()
    for to, package in (("fastrnn", fastrnn), ("torch", nn), ("fastrnn", fastrnn)):
        fastrnn.convert(module, to=to)
        assert type(module).__name__ == f"Parametrized{name}"
        assert type(module).__bases__ == (getattr(package, name),)
        assert parametrize.is_parametrized(module, weight)
        assert list(module.state_dict()) == list(state)
        same(module(x), expected, **LOOSE)
    parametrize.remove_parametrizations(module, weight)
    assert type(module) is getattr(fastrnn, name)
    same(module(x), expected, **LOOSE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_dynamic_quantisation_after_the_way_back():
    model = fastrnn.convert(nn.Sequential(nn.LSTM(I, 4)))
    quantised = torch.ao.quantization.quantize_dynamic(fastrnn.convert(copy.deepcopy(model), to="torch"), {nn.LSTM})
    assert "quantized" in type(quantised[0]).__module__
    x = torch.randn(T, B, I)
    same(quantised(x)[0], model(x)[0], rtol=0.1, atol=0.05)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantisation_of_learned_states_says_that_they_are_lost():
    model = nn.Sequential(fastrnn.LSTM(I, 4, learn_initial_state=True))
    quantised = torch.ao.quantization.quantize_dynamic(fastrnn.convert(model, to="torch"), {nn.LSTM})
    x, h = torch.randn(T, B, I), torch.randn(1, B, 4)
    with pytest.raises(
        RuntimeError,
        match="hx: expected states as the second argument, because LSTM has lost the learned initial states",
    ):
        quantised(x)
    same(quantised[0](x, (h, h))[0], model[0](x, (h, h))[0], rtol=0.1, atol=0.05)


def test_a_bound_that_torch_would_not_heed_is_refused():
    model = nn.ModuleDict({"a": fastrnn.GRU(I, 4), "b": fastrnn.LSTM(I, 4)})
    model["b"].clip_state_gradient = 0.5
    with pytest.raises(
        ValueError, match=r"b\.clip_state_gradient: expected None, as torch\.nn does not support it, got 0\.5"
    ):
        fastrnn.convert(model, to="torch")
    assert type(model["a"]) is fastrnn.GRU
    torch.nn.utils.parametrizations.orthogonal(model["b"], "weight_hh_l0")
    with pytest.raises(ValueError, match=r"b\.clip_state_gradient"):
        fastrnn.convert(model, to="torch")
    torch.nn.utils.parametrize.remove_parametrizations(model["b"], "weight_hh_l0")
    model["b"].clip_state_gradient = None
    assert type(fastrnn.convert(model, to="torch")["b"]) is nn.LSTM


def test_pickled_torch_modules_can_be_converted():
    import pickle

    module = pickle.loads(pickle.dumps(nn.GRU(I, 4, 2)))
    x = torch.randn(T, B, I)
    expected = module(x)
    same(fastrnn.convert(module)(x), expected, **LOOSE)


def test_errors():
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got list"):
        fastrnn.convert([nn.LSTM(I, 4)])
    with pytest.raises(ValueError, match="to: expected 'fastrnn' or 'torch', got 'jax'"):
        fastrnn.convert(nn.LSTM(I, 4), to="jax")
    with pytest.raises(ValueError, match="skipped: expected one of 'warn', 'raise', 'ignore', got 'print'"):
        fastrnn.convert(nn.LSTM(I, 4), skipped="print")
