"""Gates computed again: the numbers of the ordinary call, for less that is kept."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from dropin_cases import LAYERS, B, H, I, gradients, layer_pair, leaves, random_hx, same
from problems import LAYOUTS, Problem, assert_same, error
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import fastrnn
from fastrnn import _ops, _recompute
from fastrnn.cells import CELLS
from fastrnn.functional import LayerWeights, gru, lstm, rnn, sequence

KINDS = list(LAYERS)
CASES = [(cell, P) for cell in CELLS for P in ((0, 2) if CELLS[cell].projectable else (0,))]


def run(p: Problem, grads: tuple[str, ...] | None = None, **options) -> dict[str, torch.Tensor]:
    """Outputs and the gradients of the leaves (all, or those named)."""
    y, finals = sequence(p.cell, p.x, p.weights, p.states, **p.arguments, **options)
    outputs = (y, *finals)
    wanted = {name: t for name, t in p.leaves().items() if grads is None or name in grads}
    found = torch.autograd.grad(outputs, list(wanted.values()), p.seeds(outputs), allow_unused=True)
    named = {f"d{n}": torch.zeros_like(t) if f is None else f for (n, t), f in zip(wanted.items(), found, strict=True)}
    return {"y": y.detach(), **{f"final {k}": f.detach() for k, f in enumerate(finals)}, **named}


@pytest.fixture
def kept(monkeypatch):
    """The numbers of rows of all forward passes that keep what backward needs; the compiled node makes none of them."""
    rows = []

    def forward(*arguments):
        if arguments[-1]:
            rows.append(math.prod(arguments[0].x.shape[:-1]))
        return whole(*arguments)

    whole = _ops.forward
    monkeypatch.setattr(_ops, "forward", forward)
    return rows


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("cell", "projected"), CASES)
def test_equals_the_ordinary_call(cell, projected, layout, reverse, kept):
    for seed, each in enumerate((True, 2, 3, 5, 11, 50)):
        p = Problem(cell, 11, 5, 4, 9, projected, layout, reverse, bias=seed % 2 == 0, initial=seed % 3 > 0, seed=seed)
        wanted = run(p)
        del kept[:]
        assert_same(run(p, recompute=each), wanted, 1e-13)
        count = {True: 4, 2: 5, 3: 4, 5: 2, 11: 1, 50: 1}[each]  # a last segment of one step joins the one before
        assert len(kept) == count


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cell", CELLS)
def test_forward_has_the_same_bits(cell, layout, reverse):
    """Given the input product, whose bits are the library's affair."""
    p = Problem(cell, 23, 5, 4, 9, 0, layout, reverse, dtype=torch.float32)
    p.weights = p.weights._replace(w_ih=None)
    p.x = torch.randn(*p.x.shape[:-1], CELLS[cell].gates * 9, requires_grad=True)
    wanted = run(p)
    for each in (True, 2, 7):
        found = run(p, recompute=each)
        for name in ("y", *(f"final {k}" for k in range(len(CELLS[cell].states)))):
            assert torch.equal(found[name], wanted[name]), name
        assert_same(found, wanted, 1e-5)


def test_every_row_may_have_ended():
    for reverse in (False, True):
        p = Problem("lstm", 9, 4, 3, 5, reverse=reverse)
        for lengths in ([0, 0, 0, 0], [1, 2, 0, 1], [9, 0, 3, 4]):
            p.arguments |= {"lengths": torch.tensor(lengths), "reset": torch.rand(9, 4) < 0.4}
            assert_same(run(p, recompute=2), run(p), 1e-13)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cell", CELLS)
def test_loss_on_one_output_alone(cell, layout, reverse):
    """The others have no gradient at all."""
    for k in range(1 + len(CELLS[cell].states)):
        found = []
        for each in (2, False):
            p = Problem(cell, 11, 5, 4, 9, 0, layout, reverse)
            y, finals = sequence(cell, p.x, p.weights, p.states, recompute=each, **p.arguments)
            loss = (y, *finals)[k].square().sum()
            found.append(torch.autograd.grad(loss, list(p.leaves().values()), allow_unused=True))
        same(*found, rtol=1e-10, atol=1e-12)


def test_packed_module_without_states():
    x = torch.randn(16, 3, I)
    packed = pack_padded_sequence(x, [16, 9, 2])
    for kind in KINDS:
        _, module = layer_pair(kind)
        ordinary, found = (
            torch.autograd.grad(module(packed, recompute=r)[0].data.sum(), list(module.parameters()))
            for r in (False, True)
        )
        same(found, ordinary, rtol=1e-4, atol=1e-5)


def test_inference_mode_with_grad_enabled_inside():
    p = Problem("gru", 7, 3, 2, 5)
    with torch.inference_mode(), torch.enable_grad():
        y, _ = sequence("gru", p.x * 1, p.weights, p.states, recompute=True)
    assert not y.requires_grad


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("flags", ["none", "all", "borders", "one row"])
def test_resets_anywhere(flags, reverse):
    p = Problem("gru", 12, 4, 3, 5, reverse=reverse)
    reset = torch.zeros(12, 4, dtype=torch.bool)
    reset[{"none": [], "all": slice(None), "borders": [0, 4, 8], "one row": [2, 3, 9]}[flags], 0:2] = True
    p.arguments["reset"] = reset
    assert_same(run(p, recompute=4), run(p), 1e-13)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layout", ["plain", "lengths+reset"])
def test_padding_may_hold_anything(cell, layout):
    p = Problem(cell, 9, 4, 3, 5, layout=layout)
    lengths = torch.tensor([9, 3, 0, 6])
    p.arguments["lengths"] = lengths
    wanted = run(p)
    with torch.no_grad():
        p.x[torch.arange(9).unsqueeze(1) >= lengths] = float("nan")
    assert_same(run(p, recompute=2), wanted, 1e-13)


def test_no_more_is_kept_than_inputs_and_borders():
    sizes = {}
    for each in (False, True, 50):
        p = Problem("lstm", 400, 2, 3, 8)
        saved = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.setdefault(id(t), t), lambda t: t):
            y, _ = sequence(p.cell, p.x, p.weights, p.states, recompute=each)
        inputs = {t.untyped_storage().data_ptr() for t in p.leaves().values()}
        new = {t.untyped_storage().data_ptr(): t for t in saved.values() if t is not None}
        sizes[each] = sum(t.numel() for pointer, t in new.items() if pointer not in inputs)
        assert y.untyped_storage().data_ptr() not in {p for p, t in new.items() if t.numel()} or each is False
    states = 2 * 2 * 8
    assert sizes[False] >= 400 * 2 * 8 * 5
    assert sizes[True] == 19 * states
    assert sizes[50] == 7 * states


def exact_of(p: Problem) -> dict[str, torch.Tensor]:
    q = Problem(p.cell, p.steps, p.batch, p.inputs, p.hidden)
    q.x = p.x.detach().double().requires_grad_()
    q.weights = LayerWeights(*(None if w is None else w.detach().double().requires_grad_() for w in p.weights))
    q.states = tuple(s.detach().double().requires_grad_() for s in p.states)
    q.seeds = lambda outputs: [s.double() for s in p.seeds([o.to(p.dtype) for o in outputs])]  # type: ignore[method-assign]
    return run(q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_error_is_at_most_twice_torchs(cell, dtype):
    eps = torch.finfo(dtype).eps
    for shape in ((150, 3, 7, 33), (40, 17, 33, 9), (7, 2, 100, 17)):
        p = Problem(cell, *shape, dtype=dtype)
        name, extra = LAYERS[cell]
        module = getattr(nn, name)(p.inputs, p.hidden, **extra).to(dtype)
        module.load_state_dict(dict(zip(dict(module.named_parameters()), p.weights[:4], strict=True)))
        x = p.x.detach().clone().requires_grad_()
        states = [s.detach().clone().unsqueeze(0).requires_grad_() for s in p.states]
        y, finals = module(x, tuple(states) if len(states) == 2 else states[0])
        outputs = (y, *(f.squeeze(0) for f in (finals if isinstance(finals, tuple) else (finals,))))
        grads = torch.autograd.grad(outputs, [x, *module.parameters(), *states], p.seeds(outputs))
        exact, found = exact_of(p), run(p, recompute=True)
        theirs = dict(zip(found, [*outputs, *grads], strict=True))
        for key, right in exact.items():
            allowed = 2 * max(error(theirs[key].reshape(right.shape), right), 4 * eps)
            assert error(found[key], right) <= allowed, (shape, key)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("cell", "projected"), [c for c in CASES if c[0] != "rnn_relu"])
def test_gradients_of_any_order(cell, projected, layout):
    p = Problem(cell, 5, 2, 2, 3, projected, layout)
    leaves = p.leaves()

    def call(*values):
        given = dict(zip(leaves, values, strict=True))
        weights = LayerWeights(*(given.get(n) for n in LayerWeights._fields))
        states = tuple(given[f"{s}0"] for s in CELLS[cell].states)
        y, finals = sequence(cell, given["x"], weights, states, recompute=2, **p.arguments)
        return (y, *finals)

    assert torch.autograd.gradcheck(call, list(leaves.values()))
    assert torch.autograd.gradgradcheck(call, list(leaves.values()))


@pytest.mark.parametrize("cell", CELLS)
def test_any_subset_of_inputs_and_outputs(cell):
    p = Problem(cell, 7, 3, 2, 5, layout="reset")
    wanted = run(p)
    for chosen in p.leaves():
        for name, leaf in p.leaves().items():
            leaf.requires_grad_(name == chosen)
        found = run(p, (chosen,), recompute=2)
        assert_same(found, {name: wanted[name] for name in found}, 1e-13)
    p = Problem(cell, 7, 3, 2, 5, layout="lengths")
    several = [sequence(cell, p.x, p.weights, p.states, recompute=r, **p.arguments) for r in (3, False)]
    for one, other in zip(*((y, *finals) for y, finals in several), strict=True):
        pair = [
            torch.autograd.grad(o.sum(), [p.x, p.weights.w_hh, p.states[0]], retain_graph=True) for o in (one, other)
        ]
        torch.testing.assert_close(*pair)


@pytest.mark.parametrize("cell", CELLS)
def test_output_changed_in_place(cell):
    p = Problem(cell, 7, 3, 2, 5)
    wanted = run(p)
    y, finals = sequence(cell, p.x, p.weights, p.states, recompute=3)
    seeds = p.seeds((y, *finals))
    loss = sum((o.clone() * s).sum() for o, s in zip((y, *finals), seeds, strict=True))
    with torch.no_grad():
        y.zero_()
        finals[0].zero_()
    for (name, _), g in zip(p.leaves().items(), torch.autograd.grad(loss, list(p.leaves().values())), strict=True):
        torch.testing.assert_close(g, wanted[f"d{name}"])
    y, _ = sequence(cell, p.x, p.weights, p.states, recompute=3)
    with torch.no_grad():
        p.weights.w_hh.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_odd_strides_and_vectorized_gradients():
    p = Problem("gru", 7, 3, 2, 5)
    wanted = run(p)
    p.x = p.x.detach().permute(2, 0, 1).contiguous().permute(1, 2, 0).requires_grad_()
    assert_same(run(p, recompute=2), wanted, 1e-14)
    sequence("gru", p.x, p.weights, p.states, recompute=2)[0].sum().backward()  # an expanded gradient

    def of_x(x, each=2):
        return sequence("gru", x, p.weights, p.states, recompute=each)[0]

    jacobian = torch.autograd.functional.jacobian
    torch.testing.assert_close(jacobian(of_x, p.x), jacobian(lambda x: of_x(x, False), p.x))
    torch.testing.assert_close(jacobian(of_x, p.x, vectorize=True), jacobian(of_x, p.x))
    y = of_x(p.x)
    rows = torch.randn(4, *y.shape, dtype=y.dtype)
    (batched,) = torch.autograd.grad(y, p.x, rows, is_grads_batched=True, retain_graph=True)
    mapped = torch.func.vmap(lambda g: torch.autograd.grad(y, p.x, g, retain_graph=True)[0])(rows)
    torch.testing.assert_close(mapped, batched)
    torch.testing.assert_close(mapped[1], torch.autograd.grad(y, p.x, rows[1])[0])


def test_checkpoint_and_backward_twice():
    p = Problem("lstm", 7, 3, 2, 5)
    wanted = list(p.leaves().values())
    y = checkpoint(lambda: sequence("lstm", p.x, p.weights, p.states, recompute=2)[0], use_reentrant=False)
    first = torch.autograd.grad(y.sum(), wanted, retain_graph=True)
    y, _ = sequence("lstm", p.x, p.weights, p.states, recompute=2)
    second = torch.autograd.grad(y.sum(), wanted, retain_graph=True)
    third = torch.autograd.grad(y.sum(), wanted)
    for a, b, c in zip(first, second, third, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_where_it_has_no_effect(monkeypatch):
    p = Problem("lstm", 7, 3, 2, 5)
    wanted, _ = sequence("lstm", p.x, p.weights, p.states)
    monkeypatch.setattr(_recompute.Recomputed, "apply", lambda *a: pytest.fail("recomputes"))
    with torch.no_grad():
        assert torch.equal(sequence("lstm", p.x, p.weights, p.states, recompute=True)[0], wanted)
    run(p, recompute=True, backend="reference")
    torch.func.grad(lambda x: sequence("lstm", x, p.weights, p.states, recompute=True)[0].sum())(p.x.detach())
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: sequence("lstm", x, p.weights, p.states, recompute=True)[0], fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(p.x), wanted)
    module = fastrnn.LSTM(I, H)
    module(torch.randn(5, B, I), recompute=True, backend="torch")
    module.to(torch.complex64)(torch.randn(5, B, I, dtype=torch.complex64), recompute=True)
    with pytest.raises(pytest.fail.Exception):
        run(p, recompute=True)


FORMS = ["plain", "batch first", "unbatched", "packed", "lengths", "reset", "deep", "dropout", "embedding"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_modules(kind, form, kept):
    T = 9
    options = {"num_layers": 2, "bidirectional": True} if form == "deep" else {"batch_first": form == "batch first"}
    options |= {"num_layers": 2, "dropout": 0.5} if form == "dropout" else {}
    _, module = layer_pair(kind, **options)
    results = []
    for how in ("ordinary", "keyword", "attribute", "off"):
        torch.manual_seed(2)
        shape = {"batch first": (B, T, I), "unbatched": (T, I)}.get(form, (T, B, I))
        x = torch.randn(shape, requires_grad=True)
        given = {"lengths": [5, 0, 9, 1]} if form == "lengths" else {}
        given |= {"reset": torch.rand(T, B) < 0.4} if form == "reset" else {}
        call = x
        if form == "packed":
            call = pack_padded_sequence(x, [3, 9, 2, 4], enforce_sorted=False)
        if form == "embedding":
            call, given["embedding"] = torch.randint(0, 5, (T, B)), x.flatten(0, 1)[:5]
        hx = random_hx(module, None if form == "unbatched" else B)
        given |= {"recompute": True} if how == "keyword" else {"recompute": False} if how == "off" else {}
        module.recompute = 3 if how in ("attribute", "off") else False
        del kept[:]
        out = module(call, hx, **given)
        results.append((out, gradients(module, out, x)))
        assert len(kept) == (0 if how in ("ordinary", "off") else 3 * len(module._all_weights))
    for found in results[1:]:
        same(found, results[0], rtol=1e-4, atol=1e-5)
    module.recompute = 3
    assert copy.deepcopy(module).recompute == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16])
def test_autocast(kind, target):
    """It runs below autocast: same formats, and the error that the format allows."""
    _, module = layer_pair(kind)
    exact = copy.deepcopy(module).double()
    x = torch.randn(9, B, I)
    results = []
    for each in (False, True):
        with torch.autocast("cpu", dtype=target):
            out = module(x, recompute=each)
        results.append([*leaves(out), *gradients(module, out).values()])
    out = exact(x.double())
    wanted = [*leaves(out), *gradients(exact, out).values()]
    for ordinary, found, right in zip(*results, wanted, strict=True):
        assert found.dtype == ordinary.dtype
        assert error(found, right) <= 2 * max(error(ordinary, right), 4 * torch.finfo(target).eps)


def test_functional_forms():
    x = torch.randn(9, B, I, requires_grad=True)
    for gates, call in ((4, lstm), (3, gru), (1, rnn)):
        w = LayerWeights(torch.randn(gates * H, I), torch.randn(gates * H, H), torch.randn(gates * H))
        outputs = [call(x, w, recompute=each) for each in (True, False)]
        same(*outputs, rtol=1e-4, atol=1e-5)
        assert ["Recomputed" in type(y.grad_fn).__name__ for y, _ in outputs] == [True, False]


def test_errors():
    p = Problem("lstm", 7, 3, 2, 5, dtype=torch.float32)

    def raises(error_type, match, **changes):
        arguments = {"x": p.x, "weights": p.weights, "states": p.states, "recompute": 2} | changes
        with pytest.raises(error_type, match=match):
            sequence("lstm", **arguments)

    raises(ValueError, "recompute: expected True, False or at least 2 steps .* got 1", recompute=1)
    raises(ValueError, "recompute: .* got 0", recompute=0)
    raises(TypeError, "recompute: expected True, False .* got float", recompute=2.0)
    raises(TypeError, "recompute: .* got NoneType", recompute=None)
    with pytest.raises(ValueError, match=r"recompute: .* got -1"):
        fastrnn.GRU(I, H)(torch.zeros(5, B, I), recompute=-1)
    # Other errors are reported as without `recompute`, for the whole call.
    raises(RuntimeError, r"x: expected shape \[7, 3, 2\], got \[7, 3, 3\]", x=torch.randn(7, 3, 3))
    raises(RuntimeError, r"x: expected dtype .*Float.*, got .*Double", x=p.x.double())
    raises(RuntimeError, "input must have 3 dimensions", x=torch.randn(7, 3))
    raises(RuntimeError, "sequence length", x=torch.randn(0, 3, 2))
    raises(RuntimeError, r"states: expected shape \[3, 5\], got \[2, 5\]", states=(torch.zeros(2, 5),) * 2)
    raises(RuntimeError, "states: expected 2 tensors, got 1", states=p.states[:1])
    raises(ValueError, "reset: expected a bool tensor", reset=torch.zeros(3, 7).bool())
    raises(ValueError, "lengths: expected an integer tensor", lengths=torch.ones(3))
    raises(ValueError, "lengths: expected numbers from 0 to the 7", lengths=torch.tensor([8, 1, 1]))
    raises(TypeError, "reset: expected a Tensor, got list", reset=[True])
    raises(ValueError, "batch_sizes: .* never grow", x=torch.randn(5, 2), states=None, batch_sizes=torch.tensor([2, 3]))
    raises(ValueError, "batch_sizes: .* sum", x=torch.randn(5, 2), states=None, batch_sizes=torch.tensor([3, 3]))


def test_a_single_step_keeps_everything():
    """Nothing is to be gained; and a loss on the cell state alone has no gradient for the projection, as in torch."""
    module = fastrnn.LSTM(I, H, proj_size=2)
    _, (_, c) = module(torch.randn(1, B, I), recompute=True)
    assert torch.autograd.grad(c.sum(), module.weight_hr_l0, allow_unused=True) == (None,)
