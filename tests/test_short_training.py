"""The autograd node of a layer (csrc/binding/node.cpp), as ordinary calls of modules reach it."""

from __future__ import annotations

import pytest
import torch
from dropin_cases import LAYERS, layer_pair, random_hx, same
from torch import nn

from fastrnn import _C

T, B, I, H = 5, 4, 3, 6  # noqa: E741 - letters as in the equations


def make(kind: str, size: int = I, hidden: int = H, **options) -> nn.Module:
    return layer_pair(kind, size, hidden, **options)[1]


def taken(module: nn.Module, x, hx=None, stepping: bool = False) -> bool:
    return _C.short_layers(module, x, hx, stepping) is not None


@pytest.mark.parametrize("form", ["steps", "batch_first", "unbatched", "step"])
@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_to_second_order(kind, form):
    module = make(kind, 2, 3, batch_first=form == "batch_first").double()
    shape = {"steps": (2, 2, 2), "batch_first": (3, 2, 2), "unbatched": (2, 2), "step": (2, 2)}[form]
    batch = {"steps": 2, "batch_first": 3, "unbatched": None, "step": 2}[form]
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    hx = random_hx(module, batch, dtype=torch.float64)
    states = [s.requires_grad_() for s in (hx if isinstance(hx, tuple) else (hx,))]

    def call(x, *states):
        hx = states if len(states) > 1 else states[0]
        y, last = module.step(x, hx) if form == "step" else module(x, hx)
        return (y, *(last if isinstance(last, tuple) else (last,)))

    assert taken(module, x, tuple(states) if len(states) > 1 else states[0], form == "step")
    assert torch.autograd.gradcheck(call, (x, *states))
    assert torch.autograd.gradgradcheck(call, (x, *states))
    parameters = tuple(module.parameters())

    def of_weights(*weights):
        with torch.no_grad():
            assert taken(module, x, None, form == "step")
        return call(x, *states)

    assert torch.autograd.gradcheck(of_weights, parameters)


@pytest.mark.parametrize("options", [{}, {"batch_first": True}])
@pytest.mark.parametrize("kind", LAYERS)
def test_an_output_changed_in_place(kind, options):
    module, x = make(kind, **options), torch.randn(T, B, I)
    weights = list(module.parameters())
    expected = torch.autograd.grad((module(x)[0] * 3).sum(), weights)
    y = module(x)[0]
    y.mul_(3)
    same(torch.autograd.grad(y.sum(), weights), expected, rtol=0, atol=0)
    y = module(x)[0]
    with torch.no_grad():
        y.zero_()
    same(torch.autograd.grad(y.sum(), weights), torch.autograd.grad(module(x)[0].sum(), weights), rtol=0, atol=0)


def test_a_saved_input_changed_in_place():
    module, x = make("lstm"), torch.randn(T, B, I)
    y = module(x)[0]
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    y = module(x)[0]
    with torch.no_grad():
        module.weight_hh_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_graph_is_freed_or_kept():
    module, x = make("gru"), torch.randn(T, B, I)
    y = module(x)[0]
    y.sum().backward(retain_graph=True)
    once = [p.grad.clone() for p in module.parameters()]
    y.sum().backward()
    same([p.grad for p in module.parameters()], [2 * g for g in once])
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.sum().backward()


def test_only_what_requires_a_gradient_has_one():
    module, x = make("lstm"), torch.randn(T, B, I, requires_grad=True)
    module.weight_hh_l0.requires_grad_(False)
    module.bias_ih_l0.requires_grad_(False)
    y, (_, c) = module(x)
    c.sum().backward()
    assert module.weight_hh_l0.grad is None
    assert module.bias_ih_l0.grad is None
    assert x.grad.abs().sum() > 0
    assert module.bias_hh_l0.grad.abs().sum() > 0
    for p in module.parameters():
        p.requires_grad_(False)
    assert not module(x.detach())[0].requires_grad
    with torch.inference_mode():
        assert module(x)[0].is_inference()
    assert y.grad_fn is not None


def test_hooks():
    module, x = make("lstm"), torch.randn(T, B, I)
    seen = []
    handles = [module.register_forward_hook(lambda m, i, o: seen.append("forward"))]
    handles.append(module.register_full_backward_hook(lambda m, i, o: seen.append("backward")))
    y = module(x)[0]
    y.register_hook(lambda g: seen.append("gradient"))
    y.grad_fn.register_hook(lambda i, o: seen.append("node"))
    y.sum().backward()
    assert set(seen) == {"forward", "backward", "gradient", "node"}
    for handle in handles:
        handle.remove()
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.shape) or t, lambda t: t):
        y = module(x)[0]
    assert x.shape in packed
    expected = torch.autograd.grad(module(x)[0].sum(), list(module.parameters()))
    same(torch.autograd.grad(y.sum(), list(module.parameters())), expected, rtol=0, atol=0)


def test_a_backward_pass_that_is_compiled():
    module, x = make("gru", batch_first=True), torch.randn(B, T, I, requires_grad=True)
    expected = torch.autograd.grad(module(x)[0].sum(), [x, *module.parameters()])
    with torch._dynamo.compiled_autograd._enable(lambda graph: graph):
        y = module(x)[0].sum()
        y.backward()
    same([x.grad, *(p.grad for p in module.parameters())], list(expected))
