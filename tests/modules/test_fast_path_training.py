"""The autograd node of a layer (csrc/python/node.cpp), as ordinary calls of modules reach it."""

from __future__ import annotations

import gc

import pytest
import torch
from dropin_cases import LAYERS, layer_pair, random_hx, same
from torch import nn

from fastrnn import _C

T, B, I, H = 5, 4, 3, 6  # noqa: E741 - letters as in the equations


def make(kind: str, size: int = I, hidden: int = H, **options) -> nn.Module:
    return layer_pair(kind, size, hidden, **options)[1]


def taken(module: nn.Module, x, hx=None, stepping: bool = False) -> bool:
    return _C.fast_path_layers(module, x, hx, stepping) is not None


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


def freeze(module: nn.Module, *names: str) -> None:
    for name, p in module.named_parameters():
        p.requires_grad_(name in names)


def changed_between(module: nn.Module, name: str, **options):
    """Gradients of x and of the parameters, where `name` was changed in place between forward and backward."""
    x = torch.linspace(-1, 1, T * B * I, dtype=torch.float64).view(T, B, I).requires_grad_()
    y = module(x, **options)[0]
    with torch.no_grad():
        (x if name == "x" else getattr(module, name)).add_(1)
    return torch.autograd.grad(y.square().sum(), [x, *(p for p in module.parameters() if p.requires_grad)])


UNREAD = {  # what may be changed, and the parameters that require a gradient
    "bias_ih_l0": ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"),
    "bias_hh_l0": ("weight_hh_l0",),
    "x": ("weight_hh_l0", "bias_ih_l0"),
}


@pytest.mark.parametrize("name", UNREAD)
@pytest.mark.parametrize("kind", LAYERS)
def test_an_unread_input_changed_in_place(kind, name):
    """torch.nn.GRU and RNN do not keep what the derivative does not read, and so allow it to be changed."""
    theirs, module = (m.double() for m in layer_pair(kind))
    for m in (theirs, module):
        freeze(m, *UNREAD[name])
    found = changed_between(module, name)
    if kind != "lstm":
        same(found, changed_between(theirs, name))
    freeze(module, *UNREAD[name])
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    target = x if name == "x" else getattr(module, name)
    y = module(x)[0]
    with torch.no_grad():
        target.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):  # read by the second derivative
        torch.autograd.grad(y.square().sum(), x, create_graph=True)
    y = module(x)[0]
    with torch.no_grad():
        target.add_(1)
        y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):  # read when y is made again
        y.sum().backward()


@pytest.mark.parametrize("kind", LAYERS)
def test_weight_of_an_input_without_a_gradient_changed_in_place(kind):
    theirs, module = layer_pair(kind)
    x = torch.randn(T, B, I)
    results = []
    for m in (module,) if kind == "lstm" else (module, theirs):
        y = m(x)[0]
        with torch.no_grad():
            m.weight_ih_l0.add_(1)
        results.append(torch.autograd.grad(y.sum(), list(m.parameters())))
    same(results[0], results[-1])


@pytest.mark.parametrize("kind", LAYERS)
def test_a_residual_in_place_with_frozen_weights(kind):
    theirs, module = (m.double() for m in layer_pair(kind, I, I))
    results = []
    for m in (theirs, module):
        freeze(m)
        x = torch.linspace(-1, 1, T * B * I, dtype=torch.float64).view(T, B, I).requires_grad_()
        z = x * 1
        y = m(z)[0]
        z = z + y if m is theirs else z.add_(y)
        results.append(torch.autograd.grad(z.square().sum(), x)[0])
    same(*results)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    z = x * 1
    z += module(z)[0]
    memory = torch.multiprocessing.reductions.StorageWeakRef(z.untyped_storage())
    del z
    gc.collect()
    assert memory.expired()  # without a backward pass too: the node holds nothing that holds it


@pytest.mark.parametrize("kind", LAYERS)
def test_second_derivatives_by_an_unread_input(kind):
    module = make(kind, 2, 3).double()
    freeze(module)
    x, scale = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True), torch.ones(2, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda x, s: module(x * s)[0], (x, scale.requires_grad_()))
    assert torch.autograd.gradgradcheck(lambda x: module(x)[0], x)


@pytest.mark.parametrize("kind", LAYERS)
def test_states_made_in_inference_mode(kind):
    module = make(kind)
    with torch.inference_mode():
        hx = random_hx(module)
    x = torch.randn(T, B, I, requires_grad=True)
    wanted = torch.autograd.grad(module(x, random_hx(module))[0].sum(), [x, *module.parameters()])
    y = module(x, hx)[0]
    with torch.inference_mode():
        for s in hx if isinstance(hx, tuple) else (hx,):
            s.zero_()  # leaves no trace
    same(torch.autograd.grad(y.sum(), [x, *module.parameters()]), wanted, rtol=0, atol=0)
    with torch.inference_mode():
        reset = torch.zeros(T, B, dtype=torch.bool)
    module(x, reset=reset)[0].sum().backward()
    with torch.inference_mode():
        x = torch.randn(T, B, I)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        module(x)
    freeze(module, "weight_hh_l0")
    y = module(x)[0]
    y.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        y.sum().backward(create_graph=True)


def test_unread_inputs_under_hooks():
    """Saved-tensor hooks get x in full, even where backward does not read it."""
    module, x = make("gru"), torch.randn(T, B, I, requires_grad=True)
    freeze(module)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.shape) or t.clone(), lambda t: t):
        y = module(x * 1)[0]
    assert x.shape in packed
    same(torch.autograd.grad(y.sum(), x), torch.autograd.grad(module(x)[0].sum(), x), rtol=0, atol=0)


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
