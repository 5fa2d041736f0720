"""Token ids as input: the same as embedding them first, whatever is looked up, and exact."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from dropin_cases import B, H, I, T, same
from problems import LAYOUTS, Problem, assert_same, error
from torch import nn
from torch.func import jvp
from torch.utils._python_dispatch import TorchDispatchMode

from fastrnn.cells import CELLS
from fastrnn.functional import LayerWeights, gru, lstm, rnn, sequence

SMALL, LARGE = 5, 100  # vocabularies of fewer and of more rows than ids are in a sequence here
LOOSE = {"rtol": 1e-4, "atol": 1e-5}


def as_tokens(p: Problem, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids for a problem, and an embedding; `p.x` becomes what they embed to."""
    g = torch.Generator().manual_seed(p.seed)
    ids = torch.randint(0, vocabulary, p.x.shape[:-1], generator=g)
    matrix = (2 * torch.rand(vocabulary, p.inputs, generator=g, dtype=torch.float64) - 1).to(p.dtype).requires_grad_()
    p.x = F.embedding(ids, matrix)
    return ids, matrix


def run(p: Problem, x: torch.Tensor, leaf: torch.Tensor, **options) -> dict[str, torch.Tensor]:
    """Outputs and gradients, with `leaf` in the place of x."""
    y, finals = sequence(p.cell, x, p.weights, p.states, **p.arguments, **options)
    outputs = (y, *finals)
    wanted = {**p.leaves(), "x": leaf}
    found = torch.autograd.grad(outputs, list(wanted.values()), p.seeds(outputs), retain_graph=True, allow_unused=True)
    named = {name: torch.zeros_like(t) if f is None else f for (name, t), f in zip(wanted.items(), found, strict=True)}
    return {"y": y.detach(), **{f"final {k}": f.detach() for k, f in enumerate(finals)}, **named}


class Widths(TorchDispatchMode):
    """Widths of all rows that are looked up."""

    def __init__(self):
        super().__init__()
        self.seen: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.embedding.default:
            self.seen.append(out.shape[-1])
        return out


@pytest.mark.parametrize("backend", ["fused", "reference"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_equals_embedding_first(cell, reverse, layout, backend):
    for vocabulary, ints, bias in ((SMALL, torch.int64, True), (LARGE, torch.int32, False), (1, torch.int32, True)):
        p = Problem(cell, 7, 3, 4, 9, layout=layout, reverse=reverse, bias=bias)
        ids, matrix = as_tokens(p, vocabulary)
        wanted = run(p, p.x, matrix, backend=backend)
        found = run(p, ids.to(ints), matrix, backend=backend, embedding=matrix)
        assert_same(found, wanted, 1e-13 if vocabulary < LARGE else 0)


def test_with_a_projection_and_without_states():
    p = Problem("lstm", 7, 3, 4, 9, projected=2, initial=False)
    ids, matrix = as_tokens(p, SMALL)
    assert_same(run(p, ids, matrix, embedding=matrix), run(p, p.x, matrix), 1e-13)


def test_what_is_looked_up():
    """Products where they are fewer than ids, else embeddings; in 16 bits only without gradients."""
    for vocabulary, dtype, training, width in (
        (SMALL, torch.float32, True, 4 * H),
        (T * B - 1, torch.float32, True, 4 * H),
        (T * B, torch.float32, True, I),
        (SMALL, torch.bfloat16, True, I),
        (SMALL, torch.bfloat16, False, 4 * H),
        (SMALL, torch.float64, False, 4 * H),
    ):
        w = LayerWeights(*(torch.randn(4 * H, n, dtype=dtype, requires_grad=training) for n in (I, H)))
        with Widths() as widths:
            lstm(torch.zeros(T, B, dtype=torch.int64), w, embedding=torch.randn(vocabulary, I, dtype=dtype))
        assert widths.seen == [width], (vocabulary, dtype)


def exact_of(p: Problem, ids, matrix):
    q = Problem(p.cell, p.steps, p.batch, p.inputs, p.hidden)
    q.weights = LayerWeights(*(None if w is None else w.detach().double().requires_grad_() for w in p.weights))
    q.states = tuple(s.detach().double().requires_grad_() for s in p.states)
    wide = matrix.detach().double().requires_grad_()
    q.x = F.embedding(ids, wide)
    return run(q, q.x, wide)


@pytest.mark.parametrize("vocabulary", [1, 3, 40])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_is_at_most_twice_that_of_embedding_first(cell, dtype, vocabulary):
    p = Problem(cell, 150, 17, 7, 9, dtype=dtype)
    ids, matrix = as_tokens(p, vocabulary)
    ids[torch.rand(ids.shape) < 0.5] = 0  # one token in half of all places: its gradient is the longest sum
    p.x = F.embedding(ids, matrix)
    exact, theirs = exact_of(p, ids, matrix), run(p, p.x, matrix, backend="reference")
    found = run(p, ids, matrix, embedding=matrix)
    with torch.no_grad():
        found["y without gradients"], _ = sequence(cell, ids, p.weights, p.states, embedding=matrix)
    exact["y without gradients"], theirs["y without gradients"] = exact["y"], theirs["y"]
    eps = torch.finfo(dtype).eps
    for name, right in exact.items():
        allowed = 2 * max(error(theirs[name], right), 4 * eps)
        assert error(found[name], right) <= allowed, name


@pytest.mark.parametrize("cell", [c for c in CELLS if c != "rnn_relu"])
def test_gradients_of_any_order_and_forward_mode(cell):
    p = Problem(cell, 4, 2, 2, 3)
    ids, matrix = as_tokens(p, 3)

    def call(matrix, w_ih, b_ih):
        weights = p.weights._replace(w_ih=w_ih, b_ih=b_ih)
        y, finals = sequence(cell, ids, weights, p.states, embedding=matrix)
        return (y, *finals)

    inputs = (matrix, p.weights.w_ih, p.weights.b_ih)
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)
    values = tuple(t.detach() for t in inputs)
    tangents = tuple(t.cos() for t in values)
    _, found = jvp(call, values, tangents)
    first = F.embedding(ids, values[0])
    _, wanted = jvp(
        lambda x, w, b: sequence(cell, x, p.weights._replace(w_ih=w, b_ih=b), p.states)[0],
        (first, *values[1:]),
        (F.embedding(ids, tangents[0]), *tangents[1:]),
    )
    torch.testing.assert_close(found[0], wanted)


def test_functional_forms():
    ids, matrix = torch.randint(0, SMALL, (T, B)), torch.randn(SMALL, I)
    for gates, call in ((4, lstm), (3, gru), (1, rnn)):
        w = LayerWeights(torch.randn(gates * H, I), torch.randn(gates * H, H), torch.randn(gates * H))
        same(call(ids, w, embedding=matrix), call(F.embedding(ids, matrix), w), **LOOSE)


def raises(error_type, match, call):
    with pytest.raises(error_type, match=match):
        call()


def test_errors_of_functions():
    w, matrix = LayerWeights(torch.randn(3 * H, I), torch.randn(3 * H, H)), torch.randn(SMALL, I)
    ids = torch.zeros(T, B, dtype=torch.int64)
    raises(RuntimeError, "x: expected ids in", lambda: gru(ids.half(), w, embedding=matrix))
    raises(IndexError, "x: expected ids from 0 to 4", lambda: gru(ids + 5, w, embedding=matrix))
    raises(RuntimeError, r"x: expected ids of shape \(T, B\), got \(4,\)", lambda: gru(ids[0], w, embedding=matrix))
    sizes = torch.tensor([B] * T)
    raises(RuntimeError, r"x: .* \(N\), as .* got", lambda: gru(ids, w, embedding=matrix, batch_sizes=sizes))
    raises(RuntimeError, r"embedding: expected shape \(V, 3\)", lambda: gru(ids, w, embedding=matrix[:, :2]))
    raises(RuntimeError, "embedding: expected dtype torch.float32", lambda: gru(ids, w, embedding=matrix.double()))
    raises(RuntimeError, "embedding: expected None", lambda: gru(ids, w._replace(w_ih=None), embedding=matrix))
    raises(TypeError, "embedding: expected a Tensor, got Embedding", lambda: gru(ids, w, embedding=nn.Embedding(2, I)))
    raises(TypeError, "x: expected a Tensor, got list", lambda: gru([1], w, embedding=matrix))
