"""Which way a call takes: the table of paths, and `fastrnn.explain`."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fastrnn
from fastrnn import _C, _paths
from fastrnn.functional import LayerWeights, sequence
from fastrnn.training import GradientNormPenalty

X = torch.randn(5, 2, 3)


@fastrnn.cell(gates="f u")
def one_state(x, r, s):
    f = torch.sigmoid(x.f + r.f)
    return f * s.h + torch.tanh(x.u + r.u)


def paths(module, *args, **kwargs):
    return [d.path for d in fastrnn.explain(module, *args, **kwargs).decisions]


def test_fast_path():
    for module in (fastrnn.LSTM(3, 4), fastrnn.GRU(3, 4, 2, bidirectional=True), fastrnn.RNN(3, 4, batch_first=True)):
        assert paths(module, X) == ["fast path"]
    assert paths(fastrnn.LSTMCell(3, 4), X[0]) == ["fast path"]


def test_each_layer_says_its_path():
    module = fastrnn.LSTM(3, 4, num_layers=2, bidirectional=True)
    assert paths(module, X, lengths=[5, 2]) == ["eager"] * 4
    assert paths(module, X, recompute=True) == ["recompute"] * 4
    assert paths(module, pack_sequence([X[:, 0], X[:3, 1]])) == ["eager"] * 4
    assert paths(module, X, penalty=GradientNormPenalty()) == ["observed"] * 4


def test_torch_and_why():
    module = fastrnn.LSTM(3, 4)
    (decision,) = fastrnn.explain(module, X, backend="torch").decisions
    assert decision == ("lstm", "torch", "backend='torch'")
    module = module.to(torch.complex64)
    text = str(fastrnn.explain(module, X.to(torch.complex64)))
    assert "lstm: torch (the forward of torch.nn)" in text
    assert "got torch.complex64" in text


def test_reference_and_why():
    module = fastrnn.GRU(3, 4)
    (decision,) = fastrnn.explain(module, X, backend="reference").decisions
    assert decision == ("gru", "reference", "backend='reference'")
    with torch.autograd.forward_ad.dual_level(), _paths.recorded() as decisions:
        sequence("gru", X, LayerWeights(module.weight_ih_l0, module.weight_hh_l0))
    assert decisions == [("gru", "reference", "forward mode")]


def test_transforms_and_modes():
    module = fastrnn.GRU(3, 4)
    weights = LayerWeights(module.weight_ih_l0, module.weight_hh_l0)
    with _paths.recorded() as decisions:
        torch.func.grad(lambda x: sequence("gru", x, weights)[0].sum())(X)
    assert decisions == [("gru", "differentiable", "a torch.func transform is active")]
    with torch.utils.flop_counter.FlopCounterMode(display=False), torch.no_grad(), _paths.recorded() as decisions:
        sequence("gru", X, weights)
    assert [d.path for d in decisions] == ["operator"]
    assert "a dispatch mode" in decisions[0].reason


def test_models_and_custom_cells():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = fastrnn.GRU(3, 4), one_state(4, 5)

        def forward(self, x):
            return self.second(self.first(x)[0])[0]

    explanation = fastrnn.explain(Model(), X)
    assert [d.path for d in explanation.decisions] == ["fast path", "eager"]
    assert explanation.decisions[1].cell.startswith("one_state_")
    assert str(explanation).splitlines()[-1] == f"CPU kernels: {_C.capability()}"


def test_nothing_is_left_behind():
    module = fastrnn.LSTM(3, 4, 2, dropout=0.5)
    before = torch.get_rng_state()
    fastrnn.explain(module, X)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(TypeError, match="module: expected a torch"):
        fastrnn.explain(len, X)
    with pytest.raises(RuntimeError, match="input"):
        fastrnn.explain(module, X[..., :2])
    assert _paths._recorded.get() is None


def test_every_path_is_in_words():
    assert set(_paths._WAYS) < set(_paths.IN_WORDS)
    for path in _paths.IN_WORDS:
        assert path in ("fast path", "torch") or f"``{path}``" in _paths.__doc__
