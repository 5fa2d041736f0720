"""`clip_state_gradient`: ∂L/∂h_t cut to ±c at every step, fused against a plain loop with a hook at every step."""

from __future__ import annotations

import copy

import pytest
import torch
from dropin_cases import LAYERS, B, H, I, T, gradients, same
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn import _C, _ops, gallery
from fastrnn._call import Call, Wanted
from fastrnn.functional import LayerWeights, hidden_gradients, sequence

KINDS = [*LAYERS, "peephole_lstm", "gru_reset_before", "indrnn"]
BOUND = 0.02
LOOSE = {"rtol": 1e-4, "atol": 1e-5}


def make(kind: str, dtype=torch.float64, **options) -> nn.Module:
    torch.manual_seed(0)
    if kind in LAYERS:
        name, extra = LAYERS[kind]
        return getattr(fastrnn, name)(I, H, **extra, **options).to(dtype)
    return gallery.CELLS[kind](I, H, **options).to(dtype)


def loop(module, x, hx, bound, lengths=None, reset=None):
    """One layer, one direction, by single steps: a hook on every h cuts its gradient, all paths together."""
    as_tuple = isinstance(hx, tuple)
    states = start = hx if as_tuple else (hx,)
    outputs = []
    for t in range(x.shape[0]):
        if reset is not None:
            again = reset[t].view(1, -1, 1) & (t > 0)
            states = tuple(torch.where(again, i, s) for i, s in zip(start, states, strict=True))
        _, new = module.step(x[t], states if as_tuple else states[0])
        new = list(new) if as_tuple else [new]
        new[0] = new[0] * 1
        if bound is not None and new[0].requires_grad:
            new[0].register_hook(lambda g: g.clamp(-bound, bound))
        active = torch.ones(x.shape[1], dtype=torch.bool) if lengths is None else t < torch.tensor(lengths)
        mask = active.view(1, -1, 1)
        states = tuple(torch.where(mask, n, s) for n, s in zip(new, states, strict=True))
        outputs.append(torch.where(mask[0], new[0][0], torch.zeros_like(new[0][0])))
    return torch.stack(outputs), states if as_tuple else states[0]


def random_states(module, batch=B):
    count = len(module.cell.states) if hasattr(module, "cell") else 1 + isinstance(module, nn.LSTM)
    widths = [getattr(module, "proj_size", 0) or H, *[H] * (count - 1)]
    dtype = next(module.parameters()).dtype
    states = tuple(torch.randn(1, batch, w, dtype=dtype, requires_grad=True) for w in widths)
    return states if count > 1 else states[0]


def leaves(*values):
    return [v for value in values for v in (value if isinstance(value, tuple) else (value,))]


def grads_of(found, inputs):
    y, last = found
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    loss = (y * weight).sum() + sum((s * s).sum() for s in leaves(last))
    return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["plain", "lengths", "reset", "one step", "recompute", "reference"])
def test_against_a_loop(kind, layout):
    module = make(kind)
    steps = 1 if layout == "one step" else 7
    x = torch.randn(steps, B, I, dtype=torch.float64, requires_grad=True)
    keywords, same_rows = {}, {}
    if layout == "lengths":
        keywords = same_rows = {"lengths": [7, 0, 3, 5]}
    elif layout == "reset":
        keywords = same_rows = {"reset": torch.rand(steps, B) < 0.3}
    elif layout != "plain" and layout != "one step":
        keywords = {"recompute": 3} if layout == "recompute" else {"backend": "reference"}
    hx = random_states(module)
    inputs = leaves(x, hx, tuple(module.parameters()))
    fused = module(x, hx, clip_state_gradient=BOUND, **keywords)
    slow = loop(module, x, hx, BOUND, **same_rows)
    same(fused, slow, rtol=1e-9, atol=1e-12)
    expected, unclipped = grads_of(slow, inputs), grads_of(loop(module, x, hx, None, **same_rows), inputs)
    same(grads_of(fused, inputs), expected, rtol=1e-9, atol=1e-12)
    different = [not torch.allclose(a, b) for a, b in zip(expected, unclipped, strict=True)]
    assert sum(different) > len(different) / 2  # the bound is one that cuts
    same(grads_of(module(x, hx, clip_state_gradient=1e9, **keywords), inputs), unclipped, rtol=1e-9, atol=1e-12)


def test_projection():
    module = fastrnn.LSTM(I, H, proj_size=4).double()
    x, hx = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True), random_states(module)
    inputs = leaves(x, hx, tuple(module.parameters()))
    found = grads_of(module(x, hx, clip_state_gradient=BOUND), inputs)
    same(found, grads_of(loop(module, x, hx, BOUND), inputs), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["lstm", "gru", "peephole_lstm"])
@pytest.mark.parametrize("options", [{"num_layers": 2, "bidirectional": True}, {"batch_first": True}])
def test_attribute_packed_and_stacks(kind, options):
    module = make(kind, torch.float32, **options)
    x = torch.randn(B, T, I) if module.batch_first else torch.randn(T, B, I)
    expected = module(x, clip_state_gradient=BOUND, backend="reference")
    grads = gradients(module, expected)
    plain = gradients(module, module(x))
    module.clip_state_gradient = BOUND
    same(gradients(module, module(x)), grads, **LOOSE)
    assert not torch.allclose(plain["weight_hh_l0"], grads["weight_hh_l0"], rtol=1e-2)
    packed = pack_padded_sequence(x, [2, 5, 1, 4], module.batch_first, enforce_sorted=False)
    y, last = module(packed)
    padded, ends = module(x, lengths=[2, 5, 1, 4])
    data = pack_padded_sequence(padded, [2, 5, 1, 4], module.batch_first, enforce_sorted=False).data
    same(gradients(module, (y.data, last)), gradients(module, (data, ends)), **LOOSE)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh", "peephole_lstm"])
def test_step_of_a_stream(kind):
    """A step takes the attribute too. With the loss on the states alone, it is the same as a call for the sequence."""
    module = make(kind)
    module.clip_state_gradient = BOUND
    x, state = torch.randn(T, B, I, dtype=torch.float64), None
    for frame in x:
        _, state = module.step(frame, state)
    found = gradients(module, state)
    same(found, gradients(module, module(x)[1]), rtol=1e-9, atol=1e-12)
    module.clip_state_gradient = None
    assert not torch.allclose(gradients(module, module(x)[1])["weight_hh_l0"], found["weight_hh_l0"])


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_relu"])
@pytest.mark.parametrize("capability", _C.capabilities())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_instruction_set_and_format(kind, capability, dtype):
    module = make(kind, torch.float64)
    x = torch.randn(9, 5, I, dtype=torch.float64)
    expected = gradients(module, module(x, clip_state_gradient=BOUND, backend="reference"))
    low = copy.deepcopy(module).to(dtype)
    _C.set_capability(capability)
    found = gradients(low, low(x.to(dtype), clip_state_gradient=BOUND, backend="fused"))
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}[dtype]
    for name, g in expected.items():
        error = (found[name].double() - g).norm() / g.norm()
        assert error < tolerance, name


@pytest.mark.parametrize("split", ["none", "rows", "units"])
def test_any_sharing_of_the_work(split):
    module = make("lstm", torch.float32)
    x = torch.randn(9, 5, I)
    _C.set_split("none")
    expected = gradients(module, module(x, clip_state_gradient=BOUND))
    torch.set_num_threads(2)
    _C.set_split(split)
    same(gradients(module, module(x, clip_state_gradient=BOUND)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh", "peephole_lstm"])
def test_higher_derivatives_and_transforms(kind):
    module = make(kind)
    x = torch.randn(3, 2, I, dtype=torch.float64, requires_grad=True)

    seed = torch.linspace(-1, 1, 36, dtype=torch.float64).view(3, 2, H)
    parameters = list(module.parameters())

    def first_order(bound, **keywords):
        y = module(x, clip_state_gradient=bound, **keywords)[0]
        return torch.autograd.grad((y * seed).sum(), [x, *parameters], create_graph=True)

    def second_order(bound, **keywords):
        return torch.autograd.grad(sum((g * g).sum() for g in first_order(bound, **keywords)), parameters)

    same(first_order(BOUND), first_order(BOUND, backend="reference"), rtol=1e-9, atol=1e-12)
    same(second_order(BOUND), second_order(BOUND, backend="reference"), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(second_order(BOUND)[0], second_order(None)[0])

    weights = dict(module.named_parameters())

    def loss(w, v):
        return torch.func.functional_call(module, w, (v,), {"clip_state_gradient": BOUND})[0].square().sum()

    x = x.detach()
    expected = torch.func.grad(loss)(weights, x)
    for name, g in zip(weights, torch.autograd.grad(loss(weights, x), list(weights.values())), strict=True):
        torch.testing.assert_close(expected[name], g)
    xs = torch.randn(3, 4, 2, I, dtype=torch.float64)
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, xs)
    for k in range(3):
        one = torch.func.grad(loss)(weights, xs[k])
        for name, g in one.items():
            torch.testing.assert_close(each[name][k], g)


def test_forward_mode_cuts_nothing():
    module = make("gru")
    x, v = (torch.randn(3, 2, I, dtype=torch.float64) for _ in range(2))
    found = torch.func.jvp(lambda x: module(x, clip_state_gradient=BOUND)[0], (x,), (v,))
    same(found, torch.func.jvp(lambda x: module(x)[0], (x,), (v,)))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_compiled(kind):
    module = make(kind, torch.float32)
    x = torch.randn(T, B, I)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    found = gradients(module, compiled(x, clip_state_gradient=BOUND))
    same(found, gradients(module, module(x, clip_state_gradient=BOUND)), **LOOSE)


def test_hidden_gradients_are_those_that_go_through_the_step():
    w = LayerWeights(torch.randn(8, 3), torch.randn(8, 8))
    x = torch.randn(T, B, 3)
    call = Call("rnn_tanh", x, w, clip=0.125)
    y, _, saved = _ops.forward(call, True)
    (found,) = _ops.backward(call, [torch.ones(T, B, 8)], y, saved, Wanted(hidden=True)).hidden
    assert found.abs().max() == 0.125
    free = hidden_gradients("rnn_tanh", x, w, None, torch.ones(T, B, 8))
    assert free.abs().max() > 0.125


@pytest.mark.parametrize("backend", ["fused", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_and_infinity(backend, dtype):
    product = torch.zeros(3, 1, 4, dtype=dtype, requires_grad=True)  # W·x, its gradient ∂L/∂a
    w = LayerWeights(None, torch.zeros(4, 4, dtype=dtype))
    y, _ = sequence("rnn_tanh", product, w, clip_state_gradient=0.5, backend=backend)
    grad_y = torch.zeros_like(y)
    grad_y[2, 0] = torch.tensor([float("nan"), float("inf"), -7.0, 0.25])
    (found,) = torch.autograd.grad(y, product, grad_y)
    assert found[2, 0, 0].isnan()
    assert found[2, 0, 1:].tolist() == [0.5, -0.5, 0.25]


def test_errors():
    module = make("gru", torch.float32)
    x = torch.randn(T, B, I)
    for bound in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="clip_state_gradient: expected a positive number"):
            module(x, clip_state_gradient=bound)
        with pytest.raises(ValueError, match="clip_state_gradient: expected a positive number"):
            sequence("gru", x, LayerWeights(*module._flat_weights), clip_state_gradient=bound)
    with pytest.raises(TypeError, match="clip_state_gradient: expected a number, got str"):
        module(x, clip_state_gradient="1")
    with pytest.raises(ValueError, match="backend='torch'"):
        module(x, clip_state_gradient=1.0, backend="torch")
    with pytest.raises(ValueError, match="clip_state_gradient: expected real numbers"):
        module.to(torch.complex64)(x.to(torch.complex64), clip_state_gradient=1.0)
    with pytest.raises(ValueError, match="cell: expected one of"):
        sequence("gru@much", x, LayerWeights(*module._flat_weights))
