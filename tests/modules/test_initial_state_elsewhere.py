"""Learned initial states outside of the modules: in torch.nn's after `convert`, and in what looks inside."""

from __future__ import annotations

import pickle

import pytest
import torch
from dropin_cases import LAYERS, B, I, T, gradients, same
from initial_states import LOOSE, OPTIONS, make, states_of, x_for
from torch import nn

import fastrnn
from fastrnn import inspect


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("options", OPTIONS)
def test_conversion_both_ways(kind, options):
    module = make(kind, **options)
    x = x_for(module)
    expected = module(x)
    model = nn.ModuleList([module])
    names = list(model.state_dict())
    fastrnn.convert(model, to="torch")
    assert type(model[0]) is getattr(nn, LAYERS[kind][0])
    assert list(model.state_dict()) == names
    same(model[0](x), expected, **LOOSE)
    given = states_of(model[0])
    same(model[0](x, hx=given), expected, **LOOSE)
    grads = gradients(model[0], model[0](x))
    same(pickle.loads(pickle.dumps(model[0]))(x), expected, **LOOSE)
    fastrnn.convert(model, to="torch")  # once more changes nothing
    assert len(model[0]._forward_pre_hooks) == 1
    fastrnn.convert(model)
    assert not model[0]._forward_pre_hooks
    same(model[0](x), expected, rtol=0, atol=0)
    same(gradients(model[0], model[0](x)), grads, **LOOSE)


@pytest.mark.parametrize("kind", LAYERS)
def test_looking_inside_starts_from_them(kind):
    module = make(kind, num_layers=2, bidirectional=True)
    x = torch.randn(T, B, I, dtype=next(module.parameters()).dtype)
    followed = inspect.follow(module, x)
    y, _ = module(x)
    same(torch.cat([layer.states["h"] for layer in followed[2:]], -1), y, **LOOSE)
    flow = inspect.gradient_flow(module, x, loss=lambda y: y.square().sum())
    module.zero_grad()
    y.square().sum().backward()
    same(flow.layers[0].gradients["h"][0].sum(0), module.initial_h_l0.grad, **LOOSE)


def test_conversion_of_a_parametrized_module():
    module = make("gru")
    torch.nn.utils.parametrizations.orthogonal(module, "weight_hh_l0")
    x = torch.randn(T, B, I)
    expected = module(x)
    same(fastrnn.convert(module, to="torch")(x), expected, **LOOSE)
    fastrnn.convert(module)
    assert not module._forward_pre_hooks
    same(module(x), expected, **LOOSE)


def test_torch_gets_contiguous_states():
    """cuDNN takes no others."""
    module = fastrnn.convert(make("lstm", num_layers=2), to="torch")
    seen = []
    module.register_forward_pre_hook(lambda m, args, kwargs: seen.extend(kwargs["hx"]), with_kwargs=True)
    module(torch.randn(T, 3, I, dtype=module.weight_hh_l0.dtype))
    assert len(seen) == 2
    assert all(s.is_contiguous() and s.shape[1] == 3 for s in seen)
