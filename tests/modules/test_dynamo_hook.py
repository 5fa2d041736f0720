"""The wrapper that makes dynamo trace instances of torch.nn's layers where they are fastrnn's."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from dropin_cases import B, I, T, layer_pair, same
from torch import nn

from fastrnn import _after_import
from fastrnn.modules import _dynamo


def test_after_import_of_a_module_to_come(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "fastrnn_test_late.py").write_text("value = 1\n")
    seen = []
    before = list(sys.meta_path)
    _after_import.after_import("fastrnn_test_late", lambda module: seen.append(module.value))
    assert seen == []
    import fastrnn_test_late

    assert seen == [1]
    assert fastrnn_test_late.__spec__.loader.get_source("fastrnn_test_late") == "value = 1\n"
    assert sys.meta_path == before
    _after_import.after_import("fastrnn_test_late", lambda module: seen.append(2))  # is there already
    assert seen == [1, 2]


def test_after_import_of_a_module_that_does_not_exist():
    before = list(sys.meta_path)
    _after_import.after_import("fastrnn_test_missing", lambda module: pytest.fail("called"))
    with pytest.raises(ModuleNotFoundError, match="fastrnn_test_missing"):
        __import__("fastrnn_test_missing")
    assert sys.meta_path == before


def test_the_switch_is_on_for_these_layers_only():
    """torch's own layers are refused as before, also beside ours and after them."""
    theirs, ours = layer_pair("lstm")
    x = torch.randn(T, B, I)
    assert torch._dynamo.config.allow_rnn is False
    same(torch.compile(ours, fullgraph=True, backend="eager")(x), theirs(x), rtol=1e-4, atol=1e-5)
    assert torch._dynamo.config.allow_rnn is False
    with pytest.raises(Exception, match="does not support RNN, GRU, or LSTM"):
        torch.compile(nn.Sequential(theirs), fullgraph=True, backend="eager")(x)

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.ours, self.theirs = ours, theirs

        def forward(self, x):
            return self.ours(x)[0] + self.theirs(x)[0]

    counter = torch._dynamo.testing.CompileCounter()
    same(torch.compile(Both(), backend=counter)(x), 2 * theirs(x)[0], rtol=1e-4, atol=1e-5)
    assert counter.frame_count >= 1  # with a break at torch's layer


def test_a_torch_that_has_no_such_method():
    for builder in (types.SimpleNamespace(), types.SimpleNamespace(VariableBuilder=object, config=object())):
        _dynamo._wrap_builder(nn.Module, builder)
