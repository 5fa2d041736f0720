"""Uses that once gave wrong results, or errors where torch.nn gives none."""

from __future__ import annotations

import gc

import pytest
import torch
from problems import Problem, assert_same, error, flat
from torch import nn

import fastrnn
from fastrnn import _ops
from fastrnn._call import Call, Wanted
from fastrnn.cells import CELLS
from fastrnn.functional import LayerWeights, sequence


@pytest.mark.parametrize("cell", CELLS)
def test_compiled_function_that_takes_gradients_inside(cell):
    torch._dynamo.reset()
    run, leaves = flat(Problem(cell, 3, 2, 2, 4))
    leaves = [t.detach() for t in leaves]

    def penalty(x):
        return torch.func.grad(lambda v: run(v, *leaves[1:], backend="auto")[0].square().sum())(x)

    found = torch.compile(penalty, fullgraph=True, backend="aot_eager")(leaves[0])
    torch.testing.assert_close(found, penalty(leaves[0]))
    batch = torch.rand(3, *leaves[0].shape, dtype=torch.float64)
    found = torch.compile(lambda b: torch.func.vmap(penalty)(b), fullgraph=True, backend="aot_eager")(batch)
    torch.testing.assert_close(found, torch.func.vmap(penalty)(batch))


@pytest.mark.parametrize("cell", CELLS)
def test_output_changed_in_place_under_compile_and_func(cell):
    torch._dynamo.reset()
    run, leaves = flat(Problem(cell, 3, 2, 2, 4))

    def loss(x, w_hh):
        y = run(x, leaves[1], w_hh, *leaves[3:])[0]
        return y.mul_(2).square().sum()

    arguments = (leaves[0], leaves[2])
    wanted = torch.autograd.grad(loss(*arguments), arguments)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(*arguments), arguments)
    functional = torch.func.grad(loss, (0, 1))(*(t.detach() for t in arguments))
    for a, b, c in zip(found, functional, wanted, strict=True):
        torch.testing.assert_close(a, c)
        torch.testing.assert_close(b, c)


@pytest.mark.parametrize("cell", CELLS)
def test_input_bias_with_the_input_product_given(cell):
    p = Problem(cell, 4, 3, 2, 5)
    p.x = torch.rand(4, 3, CELLS[cell].gates * 5, dtype=torch.float64, requires_grad=True)
    p.weights = p.weights._replace(w_ih=None)
    assert_same(p.run("fused"), p.run("reference"), 1e-13)
    run, leaves = flat(p)
    if cell != "rnn_relu":
        assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("cell", CELLS)
def test_batched_gradients_of_both_vmaps(cell):
    run, leaves = flat(Problem(cell, 3, 2, 2, 4))
    x = leaves[0]

    def of_x(v):
        return run(v, *leaves[1:])[0]

    wanted = torch.autograd.functional.jacobian(of_x, x)
    torch.testing.assert_close(torch.autograd.functional.jacobian(of_x, x, vectorize=True), wanted)
    y = of_x(x)
    rows = torch.eye(y.numel(), dtype=y.dtype).view(-1, *y.shape)
    (batched,) = torch.autograd.grad(y, x, rows, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(batched.view(*y.shape, *x.shape), wanted)
    mapped = torch.func.vmap(lambda g: torch.autograd.grad(y, x, g, retain_graph=True)[0])(rows)
    torch.testing.assert_close(mapped, batched)

    def scalar(v):
        return of_x(v).square().sum()

    torch.testing.assert_close(
        torch.autograd.functional.hessian(scalar, x, vectorize=True), torch.autograd.functional.hessian(scalar, x)
    )


@pytest.mark.parametrize("cell", CELLS)
def test_values_that_wait_to_be_negated(cell):
    p = Problem(cell, 4, 3, 2, 5)
    negated = [torch._neg_view(t.detach()) for t in (p.x, p.weights.w_hh, *p.states)]
    found, _ = sequence(cell, negated[0], p.weights._replace(w_hh=negated[1]), negated[2:])
    wanted, _ = sequence(cell, -p.x, p.weights._replace(w_hh=-p.weights.w_hh), [-s for s in p.states])
    assert torch.equal(found, wanted)
    ones = torch.ones_like(wanted)
    a = torch.autograd.grad(wanted, p.weights.w_ih, torch._neg_view(ones), retain_graph=True)[0]
    b = torch.autograd.grad(wanted, p.weights.w_ih, -ones)[0]
    assert torch.equal(a, b)


@pytest.mark.parametrize("steps", [1, 5])
def test_nan_passes_backward_through_relu(steps):
    theirs = nn.RNN(3, 4, nonlinearity="relu")
    x = torch.randn(steps, 2, 3)
    x[0, 0, 0] = float("nan")
    weights = [w.detach().clone().requires_grad_() for w in theirs.parameters()]
    theirs(x)[0].square().sum().backward()
    sequence("rnn_relu", x, LayerWeights(*weights))[0].square().sum().backward()
    for mine, (name, other) in zip(weights, theirs.named_parameters(), strict=True):
        assert torch.equal(mine.grad.isnan(), other.grad.isnan()), name


@pytest.mark.parametrize("cell", CELLS)
def test_output_memory_goes_when_the_caller_lets_it_go(cell):
    """With saved tensors kept elsewhere (offloading, checkpointing) nothing else may hold y."""
    from fastrnn import _C

    _C.set_poison(False)  # guarded outputs are parts of larger blocks
    p = Problem(cell, 4, 3, 2, 5)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t):
        y, finals = sequence(cell, p.x, p.weights, p.states)
    loss = y.sum()
    alive = torch.multiprocessing.reductions.StorageWeakRef(y.untyped_storage())
    del y, finals
    gc.collect()
    assert alive.expired()
    loss.backward()


def test_inference_mode_with_grad_enabled_inside():
    p = Problem("gru", 3, 2, 2, 4)
    with torch.inference_mode(), torch.enable_grad():
        y, _ = sequence("gru", p.x * 1, p.weights, p.states)
    assert not y.requires_grad


@pytest.mark.parametrize("cell", CELLS)
def test_autocast_stays_out_of_the_reference(cell):
    p = Problem(cell, 4, 3, 2, 5, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = sequence(cell, p.x, p.weights, p.states, backend="reference")
        fused, _ = sequence(cell, p.x, p.weights, p.states)
    assert found.dtype == fused.dtype == torch.float32
    assert error(found, fused) < 1e-6


def test_what_backward_is_given_is_checked():
    p = Problem("lstm", 3, 2, 2, 4, dtype=torch.float32)
    w = [None if t is None else t.detach() for t in p.weights]
    states = [s.detach() for s in p.states]
    call = Call("lstm", p.x.detach(), LayerWeights(*w), tuple(states))
    y, _, saved = _ops.forward(call, True)
    with pytest.raises(RuntimeError, match="reserve: expected what the forward pass returned"):
        _ops.backward(call, [y], y, [torch.zeros(1)] * 4, Wanted(w_hh=True))
    with pytest.raises(RuntimeError, match="reserve: expected what the forward pass returned"):
        _ops.backward(call, [y], y, [saved[0].bfloat16(), *saved[1:]], Wanted(w_hh=True))
    with pytest.raises(RuntimeError, match="grad_final: expected 2 gradients, got 1"):
        _ops.backward(call, [y, None], y, saved, Wanted(w_hh=True))


def test_odd_arguments():
    w = LayerWeights(torch.randn(12, 3), torch.randn(12, 4))
    with pytest.raises(RuntimeError, match="input must have 3 dimensions, got 0"):
        sequence("gru", torch.tensor(1.0), w)
    with pytest.raises(TypeError, match=r"states\[0\]: expected a Tensor, got float"):
        sequence("gru", torch.randn(2, 2, 3), w, (1.0,))
    with pytest.raises(TypeError, match="reset: expected a Tensor, got list"):
        sequence("gru", torch.randn(2, 2, 3), w, reset=[True])
    y, _ = sequence("gru", torch.randn(5, 2, 0), w._replace(w_ih=torch.randn(12, 0)))
    assert y.shape == (5, 2, 4)


@pytest.mark.parametrize("cell", CELLS)
def test_functionalize(cell):
    """It has no rule for an autograd.Function: the operator where nothing asks for a gradient, else the reference."""
    run, leaves = flat(Problem(cell, 3, 2, 2, 4))
    rest = leaves[1:]

    def call(x):
        return run(x, *rest)[0]

    def loss(x):
        return call(x).square().sum()

    functionalize, x = torch.func.functionalize, leaves[0].detach()
    with torch.no_grad():
        assert torch.equal(functionalize(call)(x), call(x))
    torch.testing.assert_close(functionalize(call)(x), call(x))
    wanted = torch.autograd.grad(loss(leaves[0]), leaves[0])[0]
    torch.testing.assert_close(torch.autograd.grad(functionalize(loss)(leaves[0]), leaves[0])[0], wanted)
    torch.testing.assert_close(functionalize(torch.func.grad(loss))(x), wanted)
    torch.testing.assert_close(torch.func.grad(functionalize(loss))(x), wanted)
    rows = torch.stack((x, 2 * x))
    mapped = torch.func.vmap(call)(rows)
    torch.testing.assert_close(functionalize(torch.func.vmap(call))(rows), mapped)


@pytest.mark.parametrize("layout", ["plain", "packed", "lengths+reset"])
@pytest.mark.parametrize("cell", CELLS)
def test_tensors_of_zeros_without_memory(cell, layout):
    p = Problem(cell, 4, 3, 2, 5, layout=layout, dtype=torch.float32)
    leaves = p.leaves()

    def run(zeros, name):
        given = {n: zeros(t.shape) if n == name else t.detach() for n, t in leaves.items()}
        given["w_hh"] = given["w_hh"].clone().requires_grad_()
        weights = LayerWeights(*(given.get(n) for n in LayerWeights._fields))
        states = [given[f"{s}0"] for s in CELLS[cell].states]
        arguments = {n: zeros(v.shape, dtype=v.dtype) if n == name else v for n, v in p.arguments.items()}
        y, finals = sequence(cell, given["x"], weights, states, **arguments)
        seed = torch.ones_like(y) if name != "gradient" else zeros(y.shape)
        return (y, *finals, *torch.autograd.grad(y, given["w_hh"], seed))

    for name in (*leaves, "gradient", "lengths", "reset"):
        for a, b in zip(run(torch._efficientzerotensor, name), run(torch.zeros, name), strict=True):
            assert torch.equal(a, b), name
    stream = fastrnn.Stream(fastrnn.GRU(3, 4))
    assert torch.equal(
        stream.step(torch._efficientzerotensor(2, 3)), fastrnn.Stream(stream._module).step(torch.zeros(2, 3))
    )
    with pytest.raises(ValueError, match="batch_sizes: expected positive numbers"):
        sequence(cell, p.x.flatten(0, -2), p.weights, batch_sizes=torch._efficientzerotensor(2, dtype=torch.int64))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", ["x", "w_ih", "w_hh", "h0"])
def test_other_memory_assigned_after_the_forward_pass(cell, name):
    """`.data =` leaves no trace in the version; what backward reads must at least have the sizes of before."""
    wrong = {
        "x": lambda t: (t[:, :1], t[..., :1], t.float(), t[0]),
        "w_ih": lambda t: (t[:1], t[:, :1], t.float()),
        "w_hh": lambda t: (t[:1], t[:, :1], t.float()),
        "h0": lambda t: (t[:1], t[:, :1], t.float()),
    }[name]
    for batch, steps in ((3, 4), (1, 1)):  # large products; small ones, which trust sizes
        p = Problem(cell, steps, batch + 1, 2, 5)
        for data in wrong(p.leaves()[name].detach()):
            q = Problem(cell, steps, batch + 1, 2, 5)
            y, _ = sequence(cell, q.x, q.weights, q.states)
            q.leaves()[name].data = data
            said = {"h0": "states", "w_ih": "(w_ih|x)", "w_hh": "(w_hh|w_ih|y)"}.get(
                name, name
            )  # or what no longer fits it
            with pytest.raises(RuntimeError, match=f"{said}: expected"):
                y.sum().backward()


def test_gradient_operators_check_y():
    p = Problem("lstm", 3, 2, 2, 4, dtype=torch.float32)
    w = [None if t is None else t.detach() for t in p.weights]
    call = Call("lstm", p.x.detach(), LayerWeights(*w))
    y, _, saved = _ops.forward(call, True)
    for bad in (y[..., :3], y.double()):
        with pytest.raises(RuntimeError, match="y: expected"):
            _ops.backward(call, [y], bad, saved, Wanted(w_hh=True))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_no_graph_where_autograd_is_left_out(kind):
    module, x = getattr(fastrnn, kind)(3, 4, num_layers=2), torch.randn(5, 2, 3, requires_grad=True)
    single = getattr(fastrnn, kind + "Cell")(3, 4)
    arguments = {}, {"recompute": 2}, {"reset": torch.zeros(5, 2, dtype=torch.bool)}
    with torch._C._AutoDispatchBelowAutograd():
        found = [module(x, **a)[0] for a in arguments] + [module.step(x[0])[0], single(x[0])]
    for result in found:
        result = result[0] if isinstance(result, tuple) else result
        assert not result.requires_grad

    @torch.library.custom_op("fastrnn_tests::inside_" + kind.lower(), mutates_args=())
    def inside(x: torch.Tensor) -> torch.Tensor:
        y = module(x)[0]
        assert not y.requires_grad
        return y

    inside(x)


@pytest.mark.parametrize("cls", [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN])
@pytest.mark.parametrize("learning", ["weight_ih_l1", "weight_hh_l0"])
def test_batched_gradients_of_two_layers_whose_weights_are_frozen(cls, learning):
    """The input of the second layer and its initial state both depend on the same leaves."""
    module = cls(3, 4, 2).double()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name == learning)
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    h = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)
    weight = dict(module.named_parameters())[learning]

    def run(x, h, _):
        return module(x, (h, h) if cls is fastrnn.LSTM else h)[0]

    assert torch.autograd.gradcheck(run, (x, h, weight), check_batched_grad=True)
