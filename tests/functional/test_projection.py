"""Which cells can be projected: one answer, in the functional form, the operators and the reference."""

from __future__ import annotations

import pytest
import torch
from problems import error

import fastrnn
from fastrnn import _C, _ops, reference
from fastrnn import cells as known
from fastrnn._call import Call
from fastrnn.functional import LayerWeights, sequence


@fastrnn.cell(gates="i f o n", states="h c")
def second_product(x, r, s):
    """Does not read h, and has a product of another vector: rows of its w_hh multiply what is as wide as H."""
    i, f, o = torch.sigmoid(x.i + r.i), torch.sigmoid(x.f + r.f), torch.sigmoid(x.o + r.o)
    c = f * s.c + i * torch.tanh(x.n + r.n(f * s.c))
    return o * torch.tanh(c), c


@fastrnn.cell(gates="i f g o", states="h c", parameters="p")
def with_parameters(x, r, s, p):
    i, f, o = torch.sigmoid(x.i + r.i + p.p * s.c), torch.sigmoid(x.f + r.f), torch.sigmoid(x.o + r.o)
    c = f * s.c + i * torch.tanh(x.g + r.g)
    return o * torch.tanh(c), c


@fastrnn.cell(gates="f u", states="h c")
def fewer_products(x, r, s):
    c = torch.sigmoid(x.f) * s.c + torch.tanh(x.u + r.u)
    return torch.tanh(c), c


@fastrnn.cell(gates="a b", states="h c")
def normalised(x, r, s):
    """Has sums over the units."""
    c = torch.sigmoid(x.a + r.a) * s.c + torch.tanh(x.b + r.b)
    return c - c.mean(-1, keepdim=True), c


@fastrnn.cell(gates="a b")
def reads_hidden(x, r, s):
    return torch.sigmoid(x.a + r.a) * s.h + torch.tanh(x.b + r.b)


@fastrnn.cell(gates="f u o", states="h c")
def free(x, r, s):
    """Can be projected."""
    c = torch.sigmoid(x.f + r.f) * s.c + torch.tanh(x.u + r.u)
    return torch.sigmoid(x.o + r.o) * torch.tanh(c), c


REFUSED = {cell.name: cell for cell in (second_product, with_parameters, fewer_products, normalised, reads_hidden)}
SIZES = [(8, 2), (4, 3), (5, 5), (4096, 1)]  # H, P


def problem(cell: str, H: int, P: int, dtype: torch.dtype = torch.float64):
    """x, weights and states of a projected layer, its w_hh as wide as the cell's rows ask for."""
    sizes = _ops.traits_of(cell)
    rows = (sizes.gates * H, sizes.recurrent * H)
    draw = lambda *shape: torch.randn(*shape, dtype=dtype) / 3  # noqa: E731
    weights = LayerWeights(
        draw(rows[0], 3), draw(rows[1] + sizes.parameters, P), draw(rows[0]), draw(rows[1]), draw(P, H)
    )
    states = [draw(2, P), *(draw(2, H) for _ in range(sizes.states - 1))]
    return draw(4, 2, 3), weights, states


def calls(cell: str, x, weights, states):
    """Every way to a projected layer, by name."""
    call = Call(cell, x, weights, tuple(states))
    spec = known.find(cell)
    meta = LayerWeights(*(w.to("meta") for w in weights))
    on_meta = Call(cell, x.to("meta"), meta, tuple(s.to("meta") for s in states))
    return {
        "sequence": lambda: sequence(cell, x, weights, states),
        "fused": lambda: sequence(cell, x, weights, states, backend="fused"),
        "backend=reference": lambda: sequence(cell, x, weights, states, backend="reference"),
        "reference": lambda: reference.sequence(spec, x, weights, tuple(states)),
        "without states": lambda: sequence(cell, x, weights),
        "eager": lambda: _C.layer(call.flat()),
        "operator": lambda: _ops.forward(call, True),
        "clipped": lambda: sequence(cell, x, weights, states, clip_state_gradient=0.5),
        "fake": lambda: _ops.forward(on_meta, True),
    }


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize(("H", "P"), SIZES)
def test_cells_that_cannot_be_projected_are_refused(name, H, P):
    cell = REFUSED[name]
    if H > 100 and cell is not second_product:
        pytest.skip("large sizes once")
    dtype = torch.float64 if H < 100 else torch.float32
    cell.build(dtype)
    for way, call in calls(cell.kernels, *problem(cell.kernels, H, P, dtype)).items():
        with pytest.raises(ValueError, match=f"w_hr: the cell {cell.kernels}.* cannot be used with a projection"):
            pytest.fail(f"{way}: {call()}")


@pytest.mark.parametrize(("H", "P"), SIZES[:3])
@pytest.mark.parametrize("cell", [free.kernels, "lstm"])
def test_a_projected_cell_equals_the_reference(cell, H, P):
    x, weights, states = problem(cell, H, P)
    leaves = [t.requires_grad_() for t in (x, *weights, *states)]
    found = []
    for backend in ("fused", "reference"):
        y, last = sequence(cell, x, weights, states, backend=backend)
        loss = y.sin().sum() + sum(s.cos().sum() for s in last)
        found.append([y, *last, *torch.autograd.grad(loss, leaves)])
    for a, b in zip(*found, strict=True):
        assert error(a, b) < 1e-13


def test_one_answer(cells):
    own = [*REFUSED.values(), free, *cells.ALL]
    for cell in own:
        cell.build(torch.float64)  # other tests compile most of these cells for it
    names = [*known.CELLS, *(cell.kernels for cell in own)]
    for name in names:
        assert known.find(name).projectable == _ops.traits_of(name).projectable, name
        assert _ops.traits_of(name)._asdict() == _C.cell_traits(name)
    assert [name for name in known.CELLS if known.CELLS[name].projectable] == ["lstm"]
    assert {cell.name for cell in own if known.find(cell.kernels).projectable} >= {"free", "lstm"}
    assert not any(known.find(cell.kernels).projectable for cell in REFUSED.values())
