"""Cells drawn at random: their symbolic gradients, and their kernels, against torch's autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from problems import assert_same
from random_cells import FUNCTIONS, OPERATIONS, lambda_named, limits, problem_of

import fastrnn
from fastrnn.custom import build
from fastrnn.custom.graph import reached


@st.composite
def programs(draw):
    """Gates, states, parameters; operations, each a function and which two of the values so far; the new states."""
    gates, states, parameters = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(0, 2))
    count = 2 * gates + states + parameters
    operations = []
    for _ in range(draw(st.integers(1, 14))):
        pick = st.integers(0, count - 1)
        operations.append((draw(st.sampled_from(range(len(FUNCTIONS)))), draw(pick), draw(pick)))
        count += 1
    # Mostly what was computed last, sometimes an argument of the step as it is.
    last = st.one_of(st.integers(max(0, count - 4), count - 1), st.integers(0, count - 1))
    return gates, states, parameters, tuple(operations), tuple(draw(last) for _ in range(states))


def cell_of(program, bounded: bool = False):
    gates, states, parameters, operations, new = program
    names = [tuple(f"{kind}{k}" for k in range(n)) for kind, n in (("g", gates), ("s", states), ("w", parameters))]

    def values(x, r, s, p=()):
        found = [*x, *r, *s, *p]
        for function, a, b in operations:
            found.append(FUNCTIONS[function](found[a], found[b]))
        if bounded:  # over many steps nothing may grow; every gate is used, as the step on tensors has no other
            return tuple(torch.tanh(found[k] + sum(r[n] for n in range(gates))) for k in new)
        return tuple(found[k] for k in new)

    if parameters:
        return fastrnn.cell(*names)(lambda_named(lambda x, r, s, p: values(x, r, s, p)))
    return fastrnn.cell(*names[:2])(lambda_named(lambda x, r, s: values(x, r, s)))


def evaluated(roots, leaves: dict, like: torch.Tensor) -> list[torch.Tensor]:
    """Nodes as tensors; a leaf that is not given is an error."""
    values: dict[int, torch.Tensor] = {}
    for node in reached(roots):
        if node.is_constant:
            values[node.index] = torch.full_like(like, node.value)
        elif node.op == "leaf":
            values[node.index] = leaves[node.leaf]
        else:
            values[node.index] = OPERATIONS[node.op](*(values[a.index] for a in node.args))
    return [values[root.index] for root in roots]


@settings(max_examples=200, **limits)
@given(program=programs(), seed=st.integers(0, 1000))
def test_symbolic_gradient(program, seed):
    """As the kernels compute it: the forward pass keeps some values, the backward pass has these and the states."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> torch.Tensor:
        return torch.randn(7, generator=generator, dtype=torch.float64)

    compiled = cell_of(program)._compiled
    gates, states, parameters, operations, new = program
    leaves = {
        (kind, k): draw().requires_grad_()
        for kind, n in zip("xrsp", (gates, gates, states, parameters), strict=True)
        for k in range(n)
    }
    found = list(leaves.values())
    for function, a, b in operations:
        found.append(FUNCTIONS[function](found[a], found[b]))
    wanted, seeds = [found[k] for k in new], [draw() for _ in new]
    with torch.no_grad():
        plain = {leaf: value.detach() for leaf, value in leaves.items()}
        for value, right in zip(evaluated(compiled.step.new, plain, seeds[0]), wanted, strict=True):
            torch.testing.assert_close(value, right, rtol=1e-12, atol=1e-12)
        there = {leaf: value for leaf, value in plain.items() if leaf[0] in "sp"}
        there |= {("saved", k): v for k, v in enumerate(evaluated(compiled.saved, plain, seeds[0]))}
        there |= {("new", k): v.detach() for k, v in enumerate(wanted)}
        there |= {("ds", k): v for k, v in enumerate(seeds)}
        gradients = compiled.gradients
        named = {("x", k): n for k, n in enumerate(gradients.x)} | {("s", k): n for k, n in enumerate(gradients.s)}
        named |= {("r", k): n for k, n in zip(compiled.step.first, gradients.r, strict=True)}
        named |= {("p", k): n for k, n in enumerate(gradients.p)}
        mine = dict(zip(named, evaluated(list(named.values()), there, seeds[0]), strict=True))
    right = torch.autograd.grad(
        sum((w * s).sum() for w, s in zip(wanted, seeds, strict=True)), found[: len(leaves)], allow_unused=True
    )
    for leaf, gradient in zip(leaves, right, strict=True):
        exact = torch.zeros_like(seeds[0]) if gradient is None else gradient
        value = mine.get(leaf, torch.zeros_like(exact))  # a product that is not used has no gradient
        torch.testing.assert_close(value, exact, rtol=1e-9, atol=1e-9, msg=lambda text, leaf=leaf: f"{leaf}: {text}")


@settings(max_examples=8, **limits)
@given(program=programs(), H=st.sampled_from((1, 5, 17)))
def test_kernels(tmp_path_factory, unoptimised, program, H):
    """Whole sequences, by the kernels and by the step on tensors."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FASTRNN_CACHE", str(tmp_path_factory.mktemp("cells")))
        patched.setattr(build, "compiler", lambda: (unoptimised,))
        cell = cell_of(program, bounded=True)
        assume(len(cell.recurrent) == len(cell.gates))  # the step on tensors has no product that cancels out
        problem = problem_of(cell, H)
        assert_same(problem.run("fused"), problem.run("reference"), 1e-11)


def test_a_long_step():
    """The graph is walked without recursion."""

    def long(x, r, s):
        y = x.a
        for _ in range(2000):
            y = y * r.a + s.h
        return y

    from fastrnn.custom.differentiate import differentiate, renamed, values_to_save
    from fastrnn.custom.trace import traced

    step = traced(long, ["a"], ["h"], []).arranged().traced
    gradients = differentiate(step, 1, 0)
    assert values_to_save(step, gradients)
    assert renamed(step.graph, gradients.all(), {})
