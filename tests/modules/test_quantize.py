"""torch's dynamic quantisation of fastrnn's modules."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from dropin_cases import B, I, T, pair, same
from patched_torch_nn import patched
from torch import nn

import fastrnn

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
LAYERS, CELLS = ["LSTM", "GRU"], ["LSTMCell", "GRUCell", "RNNCell"]


def quantised(model, classes):
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(copy.deepcopy(model)), classes)[0]


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_quantised_as_torchs_module(name):
    theirs, ours = pair(name, I, 4)
    found = quantised(ours, {getattr(fastrnn, name)})
    expected = quantised(theirs, {getattr(nn, name)})
    assert type(found) is type(expected)
    x = torch.randn(B, I) if name in CELLS else torch.randn(T, B, I)
    same(found(x), expected(x), rtol=0, atol=0)
    same(leaf_of(found(x)), leaf_of(ours(x)), rtol=0.1, atol=0.05)


def leaf_of(result):
    return result[0] if isinstance(result, tuple) else result


def test_options_go_along():
    theirs, ours = pair("LSTM", I, 4, 2, batch_first=True, bidirectional=True, dropout=0.5)
    found, expected = quantised(ours, {fastrnn.LSTM}), quantised(theirs, {nn.LSTM})
    x = torch.randn(B, T, I)
    same(found(x), expected(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_in_a_patched_torch_nn(name):
    _, ours = pair(name, I, 4)
    x = torch.randn(B, I) if name in CELLS else torch.randn(T, B, I)
    with patched():
        found = quantised(ours, {getattr(nn, name)})
    assert "quantized" in type(found).__module__
    same(leaf_of(found(x)), leaf_of(ours(x)), rtol=0.1, atol=0.05)


def test_learned_states_are_refused():
    with pytest.raises(ValueError, match=r"learn_initial_state: expected False, .* got True"):
        quantised(fastrnn.GRU(I, 4, learn_initial_state=True), {fastrnn.GRU})


@pytest.mark.parametrize("order", ["fastrnn, torch.ao.quantization", "torch.ao.quantization, fastrnn"])
def test_whatever_is_imported_first(order):
    code = f"""
import torch, {order}
from torch.ao.quantization.quantization_mappings import DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS as table
assert fastrnn.LSTM in table and fastrnn.RNNCell in table and fastrnn.RNN not in table
model = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(fastrnn.LSTM(3, 4)), {{fastrnn.LSTM}})
assert "quantized" in type(model[0]).__module__
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)
