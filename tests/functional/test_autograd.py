"""Gradients of ``functional.sequence``: to any order, for any subset, through hooks and changes in place."""

from __future__ import annotations

import pytest
import torch
from problems import CASES, LAYOUTS, Problem, assert_same, flat
from torch.utils.checkpoint import checkpoint

from fastrnn.cells import CELLS
from fastrnn.functional import LayerWeights, hidden_gradients, sequence


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("cell", "projected"), CASES)
def test_gradcheck(cell, projected, layout, reverse):
    run, leaves = flat(Problem(cell, 4, 3, 2, 5, projected, layout, reverse, seed=3))
    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("cell", "projected"), [c for c in CASES if c[0] != "rnn_relu"])
def test_gradgradcheck(cell, projected, layout):
    run, leaves = flat(Problem(cell, 3, 2, 2, 3, projected, layout))
    assert torch.autograd.gradgradcheck(run, leaves)


def test_gradgradcheck_without_bias_and_states():
    run, leaves = flat(Problem("gru", 3, 2, 2, 3, bias=False, initial=False, reverse=True))
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("cell", CELLS)
def test_third_order(cell):
    """The path of higher derivatives is itself differentiable."""
    found = {}
    for backend in ("fused", "reference"):
        run, leaves = flat(Problem(cell, 3, 2, 2, 3))
        total = sum(o.square().sum() for o in run(*leaves, backend=backend))
        for _ in range(2):
            grads = torch.autograd.grad(total, leaves, create_graph=True)
            total = sum(g.square().sum() for g in grads)
        found[backend] = dict(enumerate(torch.autograd.grad(total, leaves)))
    assert_same(found["fused"], found["reference"], 1e-11)


@pytest.mark.parametrize("cell", CELLS)
def test_any_subset_of_inputs(cell):
    p = Problem(cell, 4, 3, 2, 5)
    wanted = p.run("reference")
    for chosen in p.leaves():
        for name, leaf in p.leaves().items():
            leaf.requires_grad_(name == chosen)
        y, finals = sequence(cell, p.x, p.weights, p.states)
        (grad,) = torch.autograd.grad((y, *finals), [p.leaves()[chosen]], p.seeds((y, *finals)))
        assert_same({chosen: grad}, {chosen: wanted[f"d{chosen}"]}, 1e-12)


@pytest.mark.parametrize("backend", ["fused", "reference"])
@pytest.mark.parametrize("cell", CELLS)
def test_any_subset_of_outputs(cell, backend):
    p = Problem(cell, 4, 3, 2, 5)
    y, finals = sequence(cell, p.x, p.weights, p.states, backend=backend)
    reference_y, reference_finals = sequence(cell, p.x, p.weights, p.states, backend="reference")
    for a, b in zip((y, *finals), (reference_y, *reference_finals), strict=True):
        found = torch.autograd.grad(a.sum(), [p.x, p.weights.w_hh], retain_graph=True)
        wanted = torch.autograd.grad(b.sum(), [p.x, p.weights.w_hh], retain_graph=True)
        for f, w in zip(found, wanted, strict=True):
            torch.testing.assert_close(f, w)


def test_no_input_requires_grad():
    p = Problem("lstm", 3, 2, 2, 4)
    with torch.no_grad():
        y, _ = sequence("lstm", p.x, p.weights, p.states)
    assert not y.requires_grad
    with torch.inference_mode():
        assert sequence("lstm", p.x, p.weights, p.states)[0].is_inference()


@pytest.mark.parametrize("cell", CELLS)
def test_backward_twice(cell):
    p = Problem(cell, 3, 2, 2, 4)
    y, _ = sequence(cell, p.x, p.weights, p.states)
    first = torch.autograd.grad(y.sum(), p.weights.w_hh, retain_graph=True)[0]
    second = torch.autograd.grad(y.sum(), p.weights.w_hh)[0]
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y.sum(), p.weights.w_hh)


@pytest.mark.parametrize("cell", CELLS)
def test_output_changed_in_place(cell):
    """As with torch.nn.GRU and RNN: the gradient is that of the values before the change."""
    found = []
    for change in (lambda y: y * 3, lambda y: y.mul_(3)):
        p = Problem(cell, 4, 3, 2, 5)
        y, finals = sequence(cell, p.x, p.weights, p.states)
        out = change(y)
        found.append(torch.autograd.grad(out.sum() + finals[0].sum(), list(p.leaves().values())))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["x", "w_ih", "w_hh", "h0"])
@pytest.mark.parametrize("cell", CELLS)
def test_saved_input_changed_in_place(cell, name):
    p = Problem(cell, 4, 3, 2, 5)
    y, _ = sequence(cell, p.x, p.weights, p.states)
    with torch.no_grad():
        p.leaves()[name].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("cell", CELLS)
def test_nothing_passed_in_is_changed_or_shared(cell):
    p = Problem(cell, 1, 3, 2, 5)
    before = {name: leaf.detach().clone() for name, leaf in p.leaves().items()}
    y, finals = sequence(cell, p.x, p.weights, p.states)
    y.sum().backward()
    for name, leaf in p.leaves().items():
        assert torch.equal(leaf, before[name])
    pointers = [t.untyped_storage().data_ptr() for t in (y, *finals, *p.leaves().values())]
    assert len(set(pointers)) == len(pointers)
    grads = [t.grad.untyped_storage().data_ptr() for t in p.leaves().values()]
    assert len(set(grads)) == len(grads)


@pytest.mark.parametrize("cell", CELLS)
def test_odd_strides(cell):
    p = Problem(cell, 4, 3, 2, 5)
    wanted = p.run()
    p.x = p.x.detach().permute(2, 0, 1).contiguous().permute(1, 2, 0).requires_grad_()
    p.weights = LayerWeights(*(w.detach().t().contiguous().t().requires_grad_() for w in p.weights if w is not None))
    assert not p.weights.w_hh.is_contiguous()
    assert_same(p.run(), wanted, 1e-14)
    expanded = torch.zeros(1, 5, dtype=torch.float64).expand(3, 5)
    y, _ = sequence(cell, p.x, p.weights, (expanded,) * len(CELLS[cell].states))
    y.sum().backward()  # the gradient of y is expanded too


@pytest.mark.parametrize("cell", CELLS)
def test_saved_tensors_hooks_and_checkpoint(cell):
    p = Problem(cell, 4, 3, 2, 5)
    wanted = p.run()
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(1) or t.clone(), lambda t: t):
        assert_same(p.run(), wanted, 0)
    assert packed
    leaves = list(p.leaves().values())
    y = checkpoint(lambda: sequence(cell, p.x, p.weights, p.states)[0], use_reentrant=False)
    found = torch.autograd.grad(y.sum(), leaves, allow_unused=True)
    y, _ = sequence(cell, p.x, p.weights, p.states)
    for a, b in zip(found, torch.autograd.grad(y.sum(), leaves, allow_unused=True), strict=True):
        assert torch.equal(a, b)


def test_anomaly_mode_and_hooks():
    p = Problem("gru", 4, 3, 2, 5)
    seen = []
    p.x.register_hook(lambda g: seen.append(g.shape))
    with torch.autograd.set_detect_anomaly(True):
        y, _ = sequence("gru", p.x, p.weights, p.states)
        y.register_hook(lambda g: seen.append(g.shape))
        y.sum().backward()
    assert seen == [y.shape, p.x.shape]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("cell", "projected"), CASES)
def test_hidden_gradients(cell, projected, layout, reverse):
    """∂L/∂h_t is what a perturbation of h_t at that step does to the loss, all later steps included."""
    p = Problem(cell, 4, 3, 2, 5, projected, layout, reverse)
    y, finals = sequence(cell, p.x, p.weights, p.states, **p.arguments)
    grad_y, *grad_finals = p.seeds((y, *finals))
    found = hidden_gradients(cell, p.x, p.weights, p.states, grad_y, grad_finals, **p.arguments)
    assert found.shape == y.shape
    if layout != "plain":
        return
    # At the last visited step nothing else depends on h; before it, the difference is what comes back through R.
    last = 0 if reverse else 3
    torch.testing.assert_close(found[last], grad_y[last] + grad_finals[0])
    # Over a border in the middle: the gradient of the second part's initial state, plus that of the output there.
    order = [3, 2, 1, 0] if reverse else [0, 1, 2, 3]
    head, tail = sorted(order[:2]), sorted(order[2:])
    _, middle = sequence(cell, p.x[head], p.weights, p.states, reverse=reverse)
    middle = tuple(m.detach().requires_grad_() for m in middle)
    y2, finals2 = sequence(cell, p.x[tail], p.weights, middle, reverse=reverse)
    (back,) = torch.autograd.grad((y2, *finals2), middle[:1], [grad_y[tail], *grad_finals])
    torch.testing.assert_close(found[order[1]], back + grad_y[order[1]])
