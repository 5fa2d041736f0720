"""weight_drop: one mask for a sequence, on whatever has a recurrent matrix, and nothing left behind."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from dropin_cases import B, H, I, T, same
from torch import nn
from torch.nn.utils import parametrizations

import fastrnn
from fastrnn import gallery
from fastrnn.training import remove_weight_drop, weight_drop

LOOSE = {"rtol": 1e-4, "atol": 1e-5}
MODULES = {
    "fastrnn.LSTM": lambda: fastrnn.LSTM(I, H, 2, bidirectional=True),
    "fastrnn.GRU": lambda: fastrnn.GRU(I, H),
    "fastrnn.RNN": lambda: fastrnn.RNN(I, H, learn_initial_state=True),
    "torch.LSTM": lambda: nn.LSTM(I, H, 2, bidirectional=True),
    "torch.GRU": lambda: nn.GRU(I, H),
    "torch.RNN": lambda: nn.RNN(I, H),
    "custom": lambda: gallery.peephole_lstm(I, H, 2),
}


@pytest.fixture(params=MODULES)
def module(request):
    return MODULES[request.param]()


def dropped_by_hand(module, p, x, seed):
    """The same call with the weights dropped before it, in the order of layers and directions."""
    plain = remove_weight_drop(copy.deepcopy(module))
    names = [name for name, _ in plain.named_parameters() if "weight_hh" in name]
    torch.manual_seed(seed)
    masks = {name: F.dropout(torch.ones_like(plain.get_parameter(name)), p) for name in names}
    with torch.no_grad():
        for name in names:
            plain.get_parameter(name).mul_(masks[name])
    return plain, masks, plain(x)


def test_is_one_mask_for_the_sequence(module):
    x = torch.randn(T, B, I)
    assert weight_drop(module, 0.4) is module
    torch.manual_seed(7)
    found = module(x)
    plain, masks, expected = dropped_by_hand(module, 0.4, x, 7)
    same(found, expected, **LOOSE)
    found[0].sum().backward()
    expected[0].sum().backward()
    for name, p in module.named_parameters():
        grad = plain.get_parameter(name).grad
        torch.testing.assert_close(p.grad, grad * masks[name] if name in masks else grad, **LOOSE)
    assert not torch.allclose(module(x)[0], module(x)[0])  # each call has its own


def test_only_in_training_and_nothing_is_left(module):
    x = torch.randn(T, B, I)
    names, before = list(module.state_dict()), module(x)
    attributes = set(module.__dict__)
    weight_drop(module, 0.5)
    assert list(module.state_dict()) == names
    module.eval()
    same(module(x), before, rtol=0, atol=0)
    module.train()
    module(x)
    assert set(module.__dict__) == attributes
    weight_drop(module, 0.0)
    same(module(x), before, rtol=0, atol=0)
    weight_drop(module, 1.0)
    assert len(module._forward_pre_hooks) == 1
    assert remove_weight_drop(module) is module
    same(module(x), before, rtol=0, atol=0)
    assert not module._forward_pre_hooks
    assert not module._forward_hooks


def test_after_an_error_the_weights_are_back(module):
    weight_drop(module, 0.5)
    attributes = set(module.__dict__)
    with pytest.raises((RuntimeError, ValueError)):
        module(torch.randn(T, B, I + 1))
    assert set(module.__dict__) == attributes
    flat = getattr(module, "_flat_weights", [])
    assert all(isinstance(w, nn.Parameter) for w in flat)


@pytest.mark.parametrize("training", [False, True])
def test_after_ctrl_c_the_weights_are_back_at_the_next_call(module, training):
    """Hooks after a forward pass do not run then."""
    x = torch.randn(T, B, I)
    expected = module(x)
    weight_drop(module, 0.5)

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = module.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        module(x)
    handle.remove()
    if not training:
        module.eval()
        same(module(x), expected, rtol=0, atol=0)
    else:
        weight_drop(module, 1e-9)
        same(module(x), expected, rtol=1e-6, atol=1e-7)


def test_copies(module):
    x = torch.randn(T, B, I)
    weight_drop(module, 0.3)
    copies = [copy.deepcopy(module)]
    if not isinstance(module, fastrnn.custom.Network):
        copies.append(pickle.loads(pickle.dumps(module)))
    torch.manual_seed(1)
    expected = module(x)
    for found in copies:
        torch.manual_seed(1)
        same(found(x), expected, rtol=0, atol=0)
        assert not found.eval()(x)[0].isnan().any()
        assert module.training


def test_in_a_model_and_in_training():
    model = nn.ModuleDict({"a": fastrnn.LSTM(I, H), "b": nn.GRU(H, H), "c": nn.Linear(H, 1)})
    weight_drop(model, 0.25)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        optimizer.zero_grad()
        y = model["a"](torch.randn(T, B, I))[0]
        model["c"](model["b"](y)[0]).sum().backward()
        optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_layers_of_one_module_have_masks_of_their_own():
    rnn = weight_drop(fastrnn.RNN(I, 50, 2, bidirectional=True), 0.5)
    with torch.no_grad():
        for name, p in rnn.named_parameters():
            p.fill_(0.0 if "weight_hh" not in name else 0.01)
    rnn(torch.randn(1, 1, I), torch.randn(4, 1, 50))[0].sum().backward()
    dropped = [p.grad == 0 for name, p in rnn.named_parameters() if "weight_hh" in name and "l1" in name]
    assert 0.4 < dropped[0].float().mean() < 0.6
    assert not torch.equal(*dropped)


def test_compiled():
    module = weight_drop(fastrnn.GRU(I, H), 0.5)
    compiled = torch.compile(module, backend="aot_eager")
    x = torch.randn(T, B, I)
    torch.manual_seed(3)
    found = compiled(x)
    torch.manual_seed(3)
    same(found, module(x), **LOOSE)
    module.eval()
    same(compiled(x), module(x), **LOOSE)


def test_errors():
    with pytest.raises(ValueError, match=r"p: expected a probability from 0 to 1, got 1\.5"):
        weight_drop(fastrnn.LSTM(I, H), 1.5)
    with pytest.raises(ValueError, match=r"expected a recurrent module \(RNN, LSTM, GRU, a network"):
        weight_drop(nn.LSTMCell(I, H))
    with pytest.raises(ValueError, match="expected recurrent weights that are not parametrized, got GRU"):
        weight_drop(parametrizations.orthogonal(fastrnn.GRU(I, H), "weight_hh_l0"))
