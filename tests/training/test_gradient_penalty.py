"""GradientNormPenalty against an explicit loop: Jacobians of single steps, one row and one step at a time."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from dropin_cases import LAYERS, H, I, gradients, same
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn import cells, gallery
from fastrnn.training import GradientNormPenalty, truncated_bptt

T, B = 6, 3
KINDS = [*LAYERS, "elman_identity", "nas", "zoneout_lstm", "peephole_lstm"]
TIGHT = {"rtol": 1e-8, "atol": 1e-11}


def make(kind: str, **options) -> nn.Module:
    torch.manual_seed(1)
    if kind in LAYERS:
        name, extra = LAYERS[kind]
        module = getattr(fastrnn, name)(I, H, **extra, **options).double()
    else:
        module = gallery.CELLS[kind](I, H, **options).double().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(1.5)
    return module


def spec_of(module):
    kernels = module.cell.kernels if hasattr(module, "cell") else module.mode.lower()
    return cells.find(kernels)


def slow(module, x, states, grad_y, grad_final, bound=None):
    """Ω and ∂⁺Ω/∂R of one row x (T, I): by a recursion of gradients over Jacobians of every step, and by autograd
    through R where it stands in these Jacobians.
    """
    spec = spec_of(module)
    w_ih, w_hh, b_ih, b_hh = (module.get_parameter(f"{n}_l0").detach() for n in _WEIGHTS)
    cell = getattr(module, "cell", None)
    more = [module.get_parameter(f"{name}_l0").detach() for name in (cell.parameters if cell else ())]
    r = w_hh.clone().requires_grad_()
    wx = x @ w_ih.T + b_ih
    if cell and cell.inputs:  # masks, outside training: ones, or their means
        wx = torch.cat([wx, *(s(wx[:, :H], False) for s in cell.sources.values())], 1)
    count, splits = len(states), []
    for t in range(x.shape[0]):

        def step(rh, *s, t=t):
            return torch.cat(spec.step(wx[t : t + 1], rh[None], tuple(v[None] for v in s), *more), -1)[0]

        rh = w_hh @ states[0] + b_hh
        jacobians = torch.autograd.functional.jacobian(step, (rh, *states))
        splits.append([j.detach() for j in jacobians])
        states = step(rh, *states).split([s.shape[0] for s in states])

    def cut(gradient):
        if bound is None:
            return gradient
        return torch.cat((gradient[:H].clamp(-bound, bound), gradient[H:]))

    omega = x.new_zeros(())
    arrived = torch.cat(grad_final)
    for t in range(x.shape[0] - 1, 0, -1):
        total = cut(torch.cat((arrived[:H] + grad_y[t], arrived[H:])))
        of_rh, *direct = splits[t]
        whole = torch.cat(direct, 1)
        through_r = torch.cat([(total @ of_rh) @ r, *[x.new_zeros(H)] * (count - 1)])
        passed = total @ whole + through_r
        if total.norm() > 0:
            omega = omega + (passed.norm() / total.norm() - 1) ** 2
        arrived = passed.detach()
    (grad,) = torch.autograd.grad(omega, r)
    return omega.detach(), grad


_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def random_states(module, batch=B):
    count = len(spec_of(module).states)
    return tuple(torch.randn(1, batch, H, dtype=torch.float64) for _ in range(count))


def given(states):
    return states if len(states) > 1 else states[0]


def as_tuple(states):
    return states if isinstance(states, tuple) else (states,)


def backward(found, grad_y, grad_final, module):
    module.zero_grad()
    outputs = [found[0], *as_tuple(found[1])]
    torch.autograd.backward(outputs, [grad_y, *grad_final])
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bound", [None, 0.3])
def test_against_a_loop_over_jacobians(kind, bound):
    module = make(kind)
    x, states = torch.randn(T, B, I, dtype=torch.float64), random_states(module)
    grad_y, grad_final = torch.randn(T, B, H, dtype=torch.float64), random_states(module)
    penalty = GradientNormPenalty(weight=0.7)
    keywords = {} if bound is None else {"clip_state_gradient": bound}
    assert penalty.value is None
    plain = backward(module(x, given(states), **keywords), grad_y, grad_final, module)
    found = module(x, given(states), penalty=penalty, **keywords)
    same(found, module(x, given(states)), **TIGHT)
    grads = backward(found, grad_y, grad_final, module)
    omega, of_weight = 0.0, 0.0
    for b in range(B):
        value, grad = slow(
            module, x[:, b], [s[0, b] for s in states], grad_y[:, b], [g[0, b] for g in grad_final], bound
        )
        omega, of_weight = omega + value / B, of_weight + grad / B
    torch.testing.assert_close(penalty.value, omega, **TIGHT)
    assert of_weight.norm() > 1e-3
    for name, g in grads.items():
        expected = plain[name] + (0.7 * of_weight if name == "weight_hh_l0" else 0)
        torch.testing.assert_close(g, expected, **TIGHT)


def test_for_tanh_it_is_the_formula_of_the_paper():
    """∂h'/∂h = diag(1 - h'²)·R, with h' constant: Ω as a function of R, differentiated by autograd."""
    module = make("rnn_tanh")
    x = torch.randn(T, B, I, dtype=torch.float64)
    penalty = GradientNormPenalty(1.0)
    y, _ = module(x, penalty=penalty)
    grad_y = torch.zeros_like(y)
    grad_y[-1] = torch.randn(B, H)  # a loss on the last step
    plain = backward(module(x), grad_y, random_zero(), module)
    grads = backward((y, ()), grad_y, (), module)
    r = module.weight_hh_l0.detach().clone().requires_grad_()
    y, delta, omega = y.detach(), grad_y[-1], 0
    for t in range(T - 1, 0, -1):
        back = (delta * (1 - y[t] ** 2)) @ r
        omega = omega + ((back.norm(dim=1) / delta.norm(dim=1) - 1) ** 2).sum() / B
        delta = back.detach()
    torch.testing.assert_close(penalty.value, omega.detach(), **TIGHT)
    (expected,) = torch.autograd.grad(omega, r)
    torch.testing.assert_close(grads["weight_hh_l0"] - plain["weight_hh_l0"], expected, **TIGHT)


def random_zero():
    return (torch.zeros(1, B, H, dtype=torch.float64),)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh", "peephole_lstm"])
@pytest.mark.parametrize("layout", ["lengths", "reset", "packed", "carried"])
def test_rows_and_segments_count_each_for_itself(kind, layout):
    module = make(kind)
    x = torch.randn(T, B, I, dtype=torch.float64)
    weight = torch.randn(T, B, H, dtype=torch.float64)
    lengths, reset, hx = [4, 6, 1], torch.zeros(T, B, dtype=torch.bool), None
    reset[2, 0] = reset[3, 1] = reset[4, 1] = True
    penalty = GradientNormPenalty(1.0)
    if layout == "lengths":
        y = module(x, lengths=lengths, penalty=penalty)[0]
    elif layout == "packed":
        packed = module(pack_padded_sequence(x, lengths, enforce_sorted=False), penalty=penalty)[0]
        y = nn.utils.rnn.pad_packed_sequence(packed)[0]
    elif layout == "reset":
        y = module(x, reset=reset, penalty=penalty)[0]
    else:
        hx = given(random_states(module))
        zeros = given(tuple(torch.zeros_like(s) for s in as_tuple(hx)))
        y = module(x, hx, reset=reset, initial=zeros, penalty=penalty)[0]
    module.zero_grad()
    (y * weight).sum().backward()
    grads, value = module.weight_hh_l0.grad.clone(), penalty.value
    omega, grad = 0, 0
    for b in range(B):
        borders = [0, *reset[:, b].nonzero().flatten().tolist(), T]
        for start, stop in pairwise([0, lengths[b]] if layout in ("lengths", "packed") else borders):
            piece = slice(start, stop)
            first = None
            if layout == "carried" and start == 0:
                first = given(tuple(s[:, b : b + 1] for s in as_tuple(hx)))
            module.zero_grad()
            found = module(x[piece, b : b + 1], first, penalty=penalty)[0]
            (found * weight[piece, b : b + 1]).sum().backward()
            plain = module(x[piece, b : b + 1], first)[0]
            (of_loss,) = torch.autograd.grad((plain * weight[piece, b : b + 1]).sum(), module.weight_hh_l0)
            omega = omega + penalty.value / B
            grad = grad + of_loss + (module.weight_hh_l0.grad - of_loss) / B
    torch.testing.assert_close(value, omega, **TIGHT)
    torch.testing.assert_close(grads, grad, **TIGHT)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_directions_and_layers_add_up(kind):
    both = make(kind, bidirectional=True)
    x = torch.randn(T, B, I, dtype=torch.float64)
    one = make(kind)
    penalty, value = GradientNormPenalty(1.0), 0.0
    module_y = both(x, penalty=penalty)[0]
    module_y.square().sum().backward()
    total = penalty.value
    for suffix, steps in (("", x), ("_reverse", x.flip(0))):
        with torch.no_grad():
            for name in _WEIGHTS:
                one.get_parameter(f"{name}_l0").copy_(both.get_parameter(f"{name}_l0{suffix}"))
        one.zero_grad()
        one(steps, penalty=penalty)[0].square().sum().backward()
        value = value + penalty.value
        grad = both.get_parameter(f"weight_hh_l0{suffix}").grad
        torch.testing.assert_close(one.weight_hh_l0.grad, grad, **TIGHT)
    torch.testing.assert_close(total, value, **TIGHT)

    deep = make(kind, num_layers=2)
    plain = gradients(deep, deep(x)[0])
    found = gradients(deep, deep(x, penalty=penalty)[0])
    for name, g in found.items():
        changed = not torch.allclose(g, plain[name])
        assert changed is ("weight_hh" in name), name


def test_moving_along_its_gradient_lowers_it():
    """Ω of a network whose gradients vanish goes down."""
    module = make("rnn_tanh")
    with torch.no_grad():
        module.weight_hh_l0.mul_(0.2)
    x = torch.randn(20, B, I, dtype=torch.float64)
    optimizer = torch.optim.SGD([module.weight_hh_l0], 0.05)
    penalty, values = GradientNormPenalty(1.0), []
    for _ in range(60):
        optimizer.zero_grad()
        y = module(x, penalty=penalty)[0]
        (1e-6 * y[-1].sum()).backward()  # so that Ω's gradient is all there is
        optimizer.step()
        values.append(float(penalty.value))
    assert values[-1] < 0.2 * values[0]


def test_formats_autocast_and_truncated_bptt():
    module, penalty = make("lstm").float(), GradientNormPenalty(1.0)
    x = torch.randn(T, B, I)
    module(x, penalty=penalty)[0].square().sum().backward()
    expected, grad = penalty.value, module.weight_hh_l0.grad.clone()
    low = make("lstm").bfloat16()
    low(x.bfloat16(), penalty=penalty)[0].square().sum().backward()
    assert penalty.value.dtype is torch.float32
    torch.testing.assert_close(penalty.value, expected, rtol=0.05, atol=0.05)
    assert (low.weight_hh_l0.grad.float() - grad).norm() < 0.05 * grad.norm()
    with torch.autocast("cpu", torch.bfloat16):
        module.zero_grad()
        module(x, penalty=penalty)[0].float().square().sum().backward()
    assert (module.weight_hh_l0.grad - grad).norm() < 0.05 * grad.norm()

    module.zero_grad()
    for chunk in truncated_bptt(lambda x, s: module(x, s, penalty=penalty), x, steps=3):
        chunk.output.square().sum().backward()
        assert penalty.value > 0


def test_without_gradients_and_without_loss():
    module, penalty = make("gru"), GradientNormPenalty(1.0)
    x = torch.randn(T, B, I, dtype=torch.float64)
    with torch.no_grad():
        same(module(x, penalty=penalty), module(x), **TIGHT)
    assert penalty.value is None
    y, _ = module(x, penalty=penalty)
    y[2].sum().backward()  # nothing comes back from steps 3, 4 and 5
    short, _ = module(x[:3], penalty=(other := GradientNormPenalty(1.0)))
    module.zero_grad()
    short[2].sum().backward()
    torch.testing.assert_close(penalty.value, other.value, **TIGHT)
    y, _ = module(x[:1], penalty=penalty)
    y.sum().backward()
    assert penalty.value == 0


def test_errors():
    module, penalty = make("gru"), GradientNormPenalty(1.0)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="weight: expected a non-negative number, got -1"):
        GradientNormPenalty(-1)
    with pytest.raises(TypeError, match="weight: expected a number, got str"):
        GradientNormPenalty("1")
    with pytest.raises(ValueError, match="penalty: expected the fused kernels"):
        module(x, penalty=penalty, backend="reference")
    with pytest.raises(ValueError, match=r"penalty: .*one product of R and h, .* got gru_reset_before"):
        gallery.gru_reset_before(I, H).double()(x, penalty=penalty)
    with pytest.raises(RuntimeError, match="penalty: expected eager mode"):
        torch.func.grad(lambda x: module(x, penalty=penalty)[0].sum())(x)
    with pytest.raises(RuntimeError, match="penalty: expected a backward pass without create_graph=True"):
        torch.autograd.grad(module(x, penalty=penalty)[0].sum(), x, create_graph=True)
