"""torch.func, forward mode, the operators' own checks, torch.compile and torch.export."""

from __future__ import annotations

import pytest
import torch
from problems import CASES, Problem, flat
from torch.library import opcheck

from fastrnn import _ops
from fastrnn.cells import CELLS
from fastrnn.functional import LayerWeights, sequence


def close(found, wanted) -> None:
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def losses(p: Problem):
    """Loss of the fused and of the reference form, the leaves (detached), and all their positions."""
    run, leaves = flat(p)

    def loss(backend):
        return lambda *values: sum(o.square().sum() for o in run(*values, backend=backend))

    return loss("fused"), loss("reference"), [t.detach() for t in leaves], tuple(range(len(leaves)))


@pytest.mark.parametrize(("cell", "projected"), CASES)
def test_grad_and_grad_of_grad(cell, projected):
    fused, reference, leaves, every = losses(Problem(cell, 3, 2, 2, 4, projected))
    close(torch.func.grad(fused, every)(*leaves), torch.func.grad(reference, every)(*leaves))

    def second(loss):
        return torch.func.grad(lambda *v: sum(g.square().sum() for g in torch.func.grad(loss, every)(*v)), every)

    close(second(fused)(*leaves), second(reference)(*leaves))


@pytest.mark.parametrize("layout", ["plain", "lengths", "reset", "lengths+reset", "packed"])
@pytest.mark.parametrize(("cell", "projected"), CASES)
def test_per_sample_gradients(cell, projected, layout):
    fused, reference, leaves, every = losses(Problem(cell, 3, 2, 2, 4, projected, layout))
    x = torch.rand(5, *leaves[0].shape, dtype=torch.float64)
    dims = (0, *(None for _ in leaves[1:]))
    found = torch.func.vmap(torch.func.grad(fused, every), dims)(x, *leaves[1:])
    close(found, torch.func.vmap(torch.func.grad(reference, every), dims)(x, *leaves[1:]))


@pytest.mark.parametrize("cell", CELLS)
def test_vmap_over_anything(cell):
    p = Problem(cell, 3, 2, 2, 4)
    run, leaves = flat(p)
    leaves = [t.detach() for t in leaves]
    for chosen in range(len(leaves)):
        for at in (0, 1) if leaves[chosen].dim() > 1 else (0,):
            values = list(leaves)
            values[chosen] = torch.stack([leaves[chosen], leaves[chosen] + 0.1, leaves[chosen] - 0.1], at)
            dims = tuple(at if k == chosen else None for k in range(len(leaves)))
            found = torch.func.vmap(run, dims)(*values)
            wanted = torch.func.vmap(lambda *v: run(*v, backend="reference"), dims)(*values)
            close(found, wanted)


@pytest.mark.parametrize("cell", CELLS)
def test_ensemble(cell):
    """Every weight has a dimension of models."""
    fused, reference, leaves, every = losses(Problem(cell, 3, 2, 2, 4))
    stacked = [torch.stack([t, t + 0.1, t - 0.1]) for t in leaves]
    found = torch.func.vmap(torch.func.grad(fused, every))(*stacked)
    close(found, torch.func.vmap(torch.func.grad(reference, every))(*stacked))


@pytest.mark.parametrize("cell", CELLS)
def test_nested_vmap(cell):
    run, leaves = flat(Problem(cell, 3, 2, 2, 4))
    leaves = [t.detach() for t in leaves]
    x = torch.rand(2, 5, *leaves[0].shape, dtype=torch.float64)
    found = torch.func.vmap(torch.func.vmap(lambda v: run(v, *leaves[1:])[0]))(x)
    for i in range(2):
        for j in range(5):
            close([found[i, j]], [run(x[i, j], *leaves[1:])[0]])


@pytest.mark.parametrize("cell", CELLS)
def test_forward_mode_and_jacobians(cell):
    fused, reference, leaves, _ = losses(Problem(cell, 3, 2, 2, 4))
    run, _ = flat(Problem(cell, 3, 2, 2, 4))

    def of_x(x):
        return run(x, *leaves[1:])[0]

    tangent = torch.rand_like(leaves[0])
    _, found = torch.func.jvp(of_x, (leaves[0],), (tangent,))
    jacobian = torch.func.jacrev(of_x)(leaves[0])
    close([found], [torch.tensordot(jacobian, tangent, 3)])
    close([jacobian], [torch.func.jacfwd(of_x)(leaves[0])])
    hessian = torch.func.hessian(lambda x: fused(x, *leaves[1:]))(leaves[0])
    close([hessian], [torch.func.hessian(lambda x: reference(x, *leaves[1:]))(leaves[0])])
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(leaves[0], tangent)
        close([torch.autograd.forward_ad.unpack_dual(of_x(dual)).tangent], [found])


@pytest.mark.parametrize("layout", ["plain", "packed", "lengths+reset"])
@pytest.mark.parametrize(("cell", "projected"), CASES)
def test_opcheck(cell, projected, layout):
    p = Problem(cell, 4, 3, 2, 5, projected, layout, dtype=torch.float32)
    x, w = p.x.detach(), [None if t is None else t.detach() for t in p.weights]
    states = [s.detach() for s in p.states]
    rows = tuple(p.arguments.get(name) for name in ("batch_sizes", "lengths", "reset"))
    restart = [s + 1 for s in states] if rows[2] is not None else None
    forward = (cell, x, *w, states, *rows, False, True, restart)
    opcheck(_ops.sequence_forward, forward)
    opcheck(_ops.sequence_forward, (*forward[:-2], False, restart))
    y, finals, saved = _ops.sequence_forward(*forward)
    grads = (torch.randn_like(y), [torch.randn_like(f) for f in finals])
    backward = (cell, *grads, x, w[0], w[1], w[4], states, y, saved, *rows, False)
    for rest in (([True] * 11, restart, 0.5), ([True] * 7 + [False] * 4, None)):
        opcheck(_ops.layer_backward, (*backward, *rest))


@pytest.mark.parametrize("layout", ["plain", "packed", "lengths+reset"])
@pytest.mark.parametrize(("cell", "projected"), CASES)
def test_compile_fullgraph(cell, projected, layout):
    torch._dynamo.reset()
    run, leaves = flat(Problem(cell, 4, 3, 2, 5, projected, layout, dtype=torch.float32))
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    found, wanted = compiled(*leaves), run(*leaves)
    close(found, wanted)
    total = [sum(o.square().sum() for o in outputs) for outputs in (found, wanted)]
    close(torch.autograd.grad(total[0], leaves), torch.autograd.grad(total[1], leaves))


def test_compile_with_inductor_and_changing_shapes():
    torch._dynamo.reset()
    p = Problem("lstm", 4, 3, 2, 5, dtype=torch.float32)

    def run(x, w_ih, w_hh):
        y, (h, _) = sequence("lstm", torch.tanh(x), LayerWeights(w_ih, w_hh))
        return (y.relu() * h).sum()

    compiled = torch.compile(run, fullgraph=True)
    for T, B in ((4, 3), (7, 3), (9, 5)):
        x = torch.randn(T, B, 2, requires_grad=True)
        arguments = (x, p.weights.w_ih, p.weights.w_hh)
        close(
            torch.autograd.grad(compiled(*arguments), arguments),
            torch.autograd.grad(run(*arguments), arguments),
        )


def test_make_fx_and_fake_tensors_see_the_operators():
    """Modes that want to see every call do: the direct path of eager mode steps aside."""
    p = Problem("gru", 4, 3, 2, 5, dtype=torch.float32)
    w = LayerWeights(*(None if t is None else t.detach() for t in p.weights))
    graph = torch.fx.experimental.proxy_tensor.make_fx(lambda x: sequence("gru", x, w)[0])(p.x.detach())
    assert "fastrnn.sequence_forward" in graph.code
    with torch._subclasses.fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
        y, _ = sequence("gru", torch.empty(4, 3, 2), w)
        assert y.shape == (4, 3, 5)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_states_after_a_reset(cell, lengths, reverse):
    """States of their own for later segments: the kernels against the loop, forward, backward, to second order and
    recomputed; flags at the first step and in padding included.
    """
    p = Problem(cell, 7, 5, 3, 4)
    reset = torch.rand(7, 5) < 0.4
    reset[0, :3] = True
    initial = [torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in p.states]
    layout = {"reset": reset, "reverse": reverse, "lengths": torch.tensor([7, 3, 0, 5, 1]) if lengths else None}
    leaves = [p.x, *(w for w in p.weights if w is not None), *p.states, *initial]

    def run(**options):
        y, last = sequence(cell, p.x, p.weights, p.states, initial=initial, **layout, **options)
        loss = y.sin().sum() + sum((s * s).sum() for s in last)
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        return [y, *last, *first, *torch.autograd.grad(sum(g.sin().sum() for g in first), leaves)]

    right = run(backend="reference")
    close(run(), right)
    for recompute in (2, 3):
        y, last = sequence(cell, p.x, p.weights, p.states, initial=initial, recompute=recompute, **layout)
        loss = y.sin().sum() + sum((s * s).sum() for s in last)
        found = torch.autograd.grad(loss, leaves)
        close([y, *last, *found], right[: 1 + len(last) + len(leaves)])
