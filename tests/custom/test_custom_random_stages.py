"""Cells with stages drawn at random: their symbolic gradients, and their kernels, against torch's autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from problems import assert_same
from random_cells import FUNCTIONS, OPERATIONS, lambda_named, limits, problem_of

import fastrnn
from fastrnn.custom import build
from fastrnn.custom.emit import totals_of
from fastrnn.custom.graph import reached
from fastrnn.custom.operations import REDUCTIONS

PRODUCT = "a matrix of its own times the value"
OF_UNITS = (
    lambda a, b: a.mean(-1, keepdim=True) + b,
    lambda a, b: a - b.mean(-1, keepdim=True),
    lambda a, b: a / (1 + (b * b).sum(-1, keepdim=True)),
    lambda a, b: b * a.var(-1, correction=0, keepdim=True),
)
H = 7


@st.composite
def programs(draw):
    """Gates, states, parameters; operations, each a function and which two of the values so far; the new states."""
    gates, states, parameters = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(0, 1))
    count = 2 * gates + states + parameters
    operations = []
    kinds = st.one_of(st.sampled_from(FUNCTIONS), st.sampled_from(OF_UNITS), st.just(PRODUCT))
    for _ in range(draw(st.integers(2, 12))):
        pick = st.one_of(st.integers(0, count - 1), st.integers(max(0, count - 3), count - 1))
        operations.append((draw(kinds), draw(pick), draw(pick)))
        count += 1
    last = st.one_of(st.integers(max(0, count - 4), count - 1), st.integers(0, count - 1))
    return gates, states, parameters, tuple(operations), tuple(draw(last) for _ in range(states))


def values(program, arguments, products, bounded=False):
    """The new states. `arguments`: x, r, s and parameters, one behind the other; `products`: a function for each."""
    gates, _, _, operations, new = program
    found, made = list(arguments), []
    for kind, a, b in operations:
        if kind is PRODUCT:  # a product with h itself is a gate's
            found.append(products[len(made)](torch.tanh(found[a]) if found[a] is found[2 * gates] else found[a]))
            made.append(found[-1])
        else:
            found.append(kind(found[a], found[b]))
    outcomes = [found[k] for k in new]
    outcomes[0] = outcomes[0] + 0.3 * sum(made)  # each is of use
    if not bounded:
        return tuple(outcomes)
    return tuple(torch.tanh(value + sum(found[gates : 2 * gates])) for value in outcomes)


def cell_of(program, bounded=False):
    gates, states, parameters, operations, _ = program
    names = [tuple(f"{kind}{k}" for k in range(n)) for kind, n in (("g", gates), ("s", states), ("w", parameters))]
    matrices = tuple(f"m{k}" for k in range(sum(kind is PRODUCT for kind, _, _ in operations)))

    def run(x, r, s, p=()):
        own = [r[name] for name in names[0]]
        products = [r[name] for name in matrices]
        return values(program, [*x, *own, *s, *p], products, bounded)

    step = (lambda x, r, s, p: run(x, r, s, p)) if parameters else (lambda x, r, s: run(x, r, s))
    return fastrnn.cell(*names, matrices=matrices)(lambda_named(step))


def evaluated(roots, leaves, matrices, groups, like):
    """Nodes as tensors (H). `matrices`: by number; `groups`: which of them a transposed product has."""
    found: dict[int, torch.Tensor] = {}
    for node in reached(roots):
        given = [found[a.index] for a in node.args]
        if node.is_constant:
            value = torch.full_like(like, node.value)
        elif node.op == "leaf":
            value = leaves[node.leaf]
        elif node.op == "product":
            value = matrices[node.leaf[1]] @ given[0]
        elif node.op == "transposed":
            value = sum(matrices[k].T @ g for k, g in zip(groups[node.leaf[1]], given, strict=True))
        elif node.op in REDUCTIONS:
            value = getattr(given[0], node.op)(-1, keepdim=True).expand(H)
        else:
            value = OPERATIONS[node.op](*given)
        found[node.index] = value
    return [found[root.index] for root in roots]


@settings(max_examples=300, **limits)
@given(program=programs(), seed=st.integers(0, 1000))
def test_symbolic_gradient(program, seed):
    """As the kernels compute it: from what is kept, the states, vectors and sums, and the products of the gradient."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(*(size or (H,)), generator=generator, dtype=torch.float64)

    compiled = cell_of(program)._compiled
    step = compiled.step
    assume(step.staged)
    gates, states, parameters, operations, _ = program
    leaves = {
        (kind, k): draw().requires_grad_()
        for kind, n in (("x", gates), ("s", states), ("p", parameters))
        for k in range(n)
    }
    h = leaves["s", 0]
    products = gates + sum(kind is PRODUCT for kind, _, _ in operations)
    matrices = [draw(H, H) / H for _ in range(products)]
    added = [torch.zeros(H, dtype=torch.float64, requires_grad=True) for _ in range(products)]  # ∂L/∂ each product
    multiply = [lambda v, k=k: matrices[k] @ v + added[k] for k in range(products)]
    x, s, p = ([value for (kind, _), value in leaves.items() if kind == which] for which in "xsp")
    arguments = [*x, *(multiply[k](h) for k in range(gates)), *s, *p]
    wanted, seeds = values(program, arguments, multiply[gates:]), [draw() for _ in range(states)]
    with torch.no_grad():
        plain = {leaf: value.detach() for leaf, value in leaves.items()}
        groups = [group.matrices for group in step.groups]

        def evaluate(nodes, leaves=plain):
            return evaluated(list(nodes), leaves, matrices, groups, seeds[0])

        for value, right in zip(evaluate(step.new), wanted, strict=True):
            torch.testing.assert_close(value, right.expand(H), rtol=1e-11, atol=1e-11)
        sums = [value.sum().expand(H) for value in evaluate(totals_of(step))]
        there = {leaf: value for leaf, value in plain.items() if leaf[0] in "sp"}
        there |= {("saved", k): v for k, v in enumerate(evaluate(compiled.saved))}
        there |= {("m", k): v for k, v in enumerate(evaluate(step.vectors))}
        there |= {("saved_sum", k): v for k, v in enumerate(sums)}
        there |= {("saved_mean", k): v / H for k, v in enumerate(sums)}
        there |= {("new", k): v.detach().expand(H) for k, v in enumerate(wanted)}
        there |= {("ds", k): v for k, v in enumerate(seeds)}
        g = compiled.gradients
        named = {(kind, k): n for kind, nodes in (("x", g.x), ("s", g.s), ("p", g.p)) for k, n in enumerate(nodes)}
        named |= {("r", k): n for k, n in zip(compiled.recurrent, g.r + g.q, strict=True)}
        mine = dict(zip(named, evaluate(named.values(), there), strict=True))
    targets = {**leaves, **{("r", k): a for k, a in enumerate(added)}}
    loss = sum((w * seed).sum() for w, seed in zip(wanted, seeds, strict=True))
    for leaf, exact in zip(targets, torch.autograd.grad(loss, list(targets.values()), allow_unused=True), strict=True):
        right = torch.zeros(H, dtype=torch.float64) if exact is None else exact
        value = mine.get(leaf, torch.zeros_like(right))  # a product that is not used has no gradient
        torch.testing.assert_close(value, right, rtol=1e-8, atol=1e-8, msg=lambda text, leaf=leaf: f"{leaf}: {text}")


@settings(max_examples=8, **limits)
@given(program=programs(), units=st.sampled_from((1, 5, 17)))
def test_kernels(tmp_path_factory, unoptimised, program, units):
    """Whole sequences, by the kernels and by the step on tensors."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FASTRNN_CACHE", str(tmp_path_factory.mktemp("cells")))
        patched.setattr(build, "compiler", lambda: (unoptimised,))
        cell = cell_of(program, bounded=True)
        assume(cell._compiled.step.staged and len(cell.recurrent) == len(cell.gates) + len(cell.matrices))
        problem = problem_of(cell, units)
        assert_same(problem.run("fused"), problem.run("reference"), 1e-10)
