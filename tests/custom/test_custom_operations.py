"""Every operation of a cell: values, gradients and special numbers as torch's, and the accuracy of the new functions.

A cell has at most four states, so four functions of two numbers (a, b) are tested by one that is compiled.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accuracy import ulp

import fastrnn
from fastrnn import _C
from fastrnn.custom import detach, surrogate
from fastrnn.custom.operations import OPERATIONS, REDUCTIONS
from fastrnn.functional import LayerWeights, sequence

#: No two of a group have an infinite slope at zero: times a gradient of zero it would be NaN, in torch as here.
GROUPS = (
    {
        "log": lambda a, b: torch.log(a),
        "sigmoid": lambda a, b: torch.sigmoid(a),
        "tanh": lambda a, b: a.tanh(),
        "relu": lambda a, b: F.relu(a),
    },
    {
        "sqrt": lambda a, b: a.sqrt(),
        "exp": lambda a, b: torch.exp(a),
        "softplus": lambda a, b: F.softplus(a),
        "abs": lambda a, b: abs(a),
    },
    {
        "pow -1": lambda a, b: a**-1,
        "maximum": lambda a, b: torch.maximum(a, b),
        "minimum": lambda a, b: torch.minimum(a, b),
        "maximum of a number": lambda a, b: a + torch.maximum(a, a),
    },
    {
        "pow 0.5": lambda a, b: a**0.5,
        "mul": lambda a, b: a * b,
        "<": lambda a, b: torch.where(a < b, a, 2 * b),
        "<=": lambda a, b: torch.where(a <= b, a, b - 3),
    },
    {
        "reciprocal": lambda a, b: torch.reciprocal(a),
        ">": lambda a, b: torch.where(a > b, a, 2 * b),
        ">=": lambda a, b: torch.where(torch.ge(a, b), a, b.square()),
        "where with numbers": lambda a, b: torch.where(a < 0.5, 1.0, b),
    },
    {
        "div": lambda a, b: a / b,
        "number < a": lambda a, b: torch.where(a > 0, b, a),
        "where of numbers": lambda a, b: torch.where(a < b, 0.0, 1.0) * b,
        "add": lambda a, b: a + b,
    },
    {
        "number / a": lambda a, b: 2 / a,
        "clamp": lambda a, b: torch.clamp(a, -1, 2),
        "clamp from below": lambda a, b: a.clamp(min=0.5),
        "clamp from above": lambda a, b: torch.clamp(a, max=b),
    },
    {
        "clamp in the wrong order": lambda a, b: a.clamp(1, -1),
        "pow 2": lambda a, b: a**2,
        "pow 3": lambda a, b: torch.pow(a, 3),
        "pow 4": lambda a, b: a.pow(4),
    },
    {
        "neg": lambda a, b: -a,
        "sub": lambda a, b: a - b,
        "a / number": lambda a, b: a / 4,
        "number - a": lambda a, b: 2 - a,
    },
    {
        "logsigmoid": lambda a, b: F.logsigmoid(a),
        "square": lambda a, b: torch.square(a),
        "absolute": lambda a, b: torch.absolute(b),
    },
    {
        "sin": lambda a, b: torch.sin(a),
        "cos": lambda a, b: b.cos(),
        "sign": lambda a, b: torch.sign(a) * b,
        "detach": lambda a, b: detach(a) * b,
    },
    {
        "remainder": lambda a, b: a % b,
        "remainder of a number": lambda a, b: torch.remainder(a, 2.5),
        "remainder of numbers": lambda a, b: torch.remainder(torch.tensor(7.0), a),
        "surrogate": lambda a, b: surrogate(torch.where(a > 0, 1.0, 0.0), torch.sin(a) * torch.cos(b)),
    },
)
SPECIAL = (0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0, 0.001, 30.0, -30.0, math.inf, -math.inf, math.nan)


def cell_of(functions):
    """A cell whose new states are these functions of its two gates."""

    @fastrnn.cell(gates="a b", states=tuple("hcde"[: len(functions)]))
    def functions_of_two(x, r, s):
        return tuple(function(x.a, x.b) for function in functions)

    return functions_of_two


def evaluated(cell, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """All functions of (a, b), (N) each, in one step of one row."""
    weights = LayerWeights(None, torch.zeros(0, len(a), dtype=a.dtype))
    return tuple(s[0] for s in sequence(cell.kernels, torch.cat((a, b)).view(1, 1, -1), weights, backend="fused")[1])


def every_row_is_tested() -> set[str]:
    tested = {name.split()[0] for group in GROUPS for name in group}
    names = {"<": "where_less", "<=": "where_at_most"}
    return {names.get(name, name) for name in tested}


def test_no_operation_is_left_out():
    """Sums over the units: test_custom_stages.py."""
    assert {name for name in OPERATIONS if not name.endswith("_slope")} - REDUCTIONS <= every_row_is_tested()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("group", range(len(GROUPS)))
def test_value_and_gradient(group, dtype):
    functions, eps = GROUPS[group], torch.finfo(dtype).eps
    pairs = torch.cartesian_prod(*(torch.tensor(SPECIAL, dtype=torch.float64),) * 2)
    pairs = torch.cat((pairs, 3 * torch.randn(300, 2, dtype=torch.float64))).to(dtype).double()
    cell = cell_of(functions.values())
    right = [expected(name, function, pairs) for name, function in functions.items()]
    for k, name in enumerate(functions):
        mine = [column.to(dtype).requires_grad_() for column in pairs.unbind(1)]
        found = evaluated(cell, *mine)[k]
        defined = ~pairs[:, 1].isnan() | (name != "clamp from above")  # a limit that is NaN is none
        close(name, pairs[defined], found[defined], right[k][0].to(dtype)[defined], 4 * eps, 1e-37)
        others = [g for j in range(len(right)) if j != k for g in right[j][1]]
        comparable = torch.stack([g.isfinite() for g in others]).all(0) & ~pairs.isnan().any(1)
        assert comparable.sum() > 150
        if name.startswith("remainder"):  # by zero
            comparable &= ~right[k][0].isnan()
        for which, value, exact in zip("ab", torch.autograd.grad(found.sum(), mine), right[k][1], strict=True):
            rows = [t[comparable] for t in (pairs, value, exact.to(dtype))]
            close(f"gradient of {name} in {which}", *rows, 16 * eps, 4 * eps)


def expected(name: str, function, pairs: torch.Tensor):
    """Value and gradients in float64. torch's softplus is the identity from 20 on, which is off by 1e-10 there."""
    a, b = (column.clone().requires_grad_() for column in pairs.unbind(1))
    if name == "softplus":
        return F.softplus(a, threshold=700), (torch.sigmoid(a), torch.zeros_like(b))
    value = function(a, b)
    gradients = torch.autograd.grad(value.sum(), [a, b], allow_unused=True)
    return value, tuple(torch.zeros_like(a) if g is None else g for g in gradients)


def close(what: str, pairs, found, right, relative: float, absolute: float) -> None:
    wrong = ~torch.isclose(found, right, rtol=relative, atol=absolute, equal_nan=True)
    rows = [(p.tolist(), f.item(), w.item()) for p, f, w in zip(pairs[wrong], found[wrong], right[wrong], strict=True)]
    assert not rows, f"{what}: (a, b), found, expected: {rows[:8]}"


def accuracy_cell():
    return cell_of([lambda a, b: torch.exp(a), lambda a, b: torch.log(b), lambda a, b: F.softplus(a)])


def periodic_cell():
    return cell_of([lambda a, b: torch.sin(a), lambda a, b: torch.cos(a), lambda a, b: a % b])


ACCURACY = [(c, torch.float32) for c in _C.capabilities() if c != "amx"]  # whose cells are those of avx512
ACCURACY += [(c, torch.float64) for c in {_C.capabilities()[0], [c for c in _C.capabilities() if c != "amx"][-1]}]


@pytest.mark.parametrize(("capability", "dtype"), sorted(ACCURACY, key=str))
def test_accuracy(capability, dtype):
    """Against numpy's longdouble, in units in the last place."""
    _C.set_capability(capability)
    single, n = dtype == torch.float32, 30001
    low, high = (-87.2, 88.72) if single else (-708.2, 709.78)
    a = torch.cat((torch.linspace(low, high, n, dtype=torch.float64), torch.linspace(-2, 2, n, dtype=torch.float64)))
    near_one = 1 + torch.linspace(-0.5, 1, n, dtype=torch.float64) ** 3
    b = torch.cat((torch.logspace(-37, 37, n, dtype=torch.float64), near_one))
    a, b = a.to(dtype), b.to(dtype)
    exp, log, softplus = evaluated(accuracy_cell(), a, b)
    wide_a, wide_b = (t.numpy().astype(np.longdouble) for t in (a, b))
    assert ulp(exp, np.exp(wide_a)) <= 2
    assert ulp(log, np.log(wide_b)) <= 3
    assert ulp(softplus, np.logaddexp(wide_a, np.longdouble(0))) <= 3


@pytest.mark.parametrize(("capability", "dtype"), sorted(ACCURACY, key=str))
def test_accuracy_of_periodic_functions(capability, dtype):
    """Everywhere: near zeros of sin and cos, and for arguments that are too large for the vectors' own reduction."""
    _C.set_capability(capability)
    single, n = dtype == torch.float32, 30001
    half_pi = torch.arange(-2100, 2100, dtype=torch.float64) * (math.pi / 2)
    near_zeros = torch.cat([half_pi.to(dtype), half_pi.to(dtype).nextafter(torch.tensor(math.inf, dtype=dtype))])
    large = torch.logspace(3, 37 if single else 18, n, dtype=torch.float64) * torch.tensor([1.0, -1.0]).repeat(n)[:n]
    a = torch.cat([near_zeros, *(torch.linspace(-s, s, n, dtype=torch.float64).to(dtype) for s in (1, 10, 3300))])
    a = torch.cat([a, torch.linspace(-2e6, 2e6, n, dtype=torch.float64).to(dtype), large.to(dtype)])
    a = torch.where(a.abs() < torch.finfo(dtype).tiny, 0.0, a)  # subnormal numbers count as zero
    b = torch.randn(len(a), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    sin, cos, remainder = evaluated(periodic_cell(), a, b)
    wide = a.numpy().astype(np.float64 if single else np.longdouble)
    defined = torch.from_numpy(np.abs(wide) < (1e38 if single else 1e9))  # longdouble's own reduction ends
    assert ulp(sin[defined], np.sin(wide)[defined]) <= 0.9
    assert ulp(cos[defined], np.cos(wide)[defined]) <= 0.9
    torch.testing.assert_close(sin, torch.sin(a), rtol=8 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).tiny)
    torch.testing.assert_close(cos, torch.cos(a), rtol=8 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).tiny)
    exact = torch.from_numpy(np.remainder(a.numpy(), b.numpy()))  # torch's is wrong for quotients above 2^53
    torch.testing.assert_close(remainder, exact, rtol=0, atol=torch.finfo(dtype).tiny)


@pytest.mark.parametrize("capability", _C.capabilities()[:1])
def test_limits_of_exp_and_log(capability):
    """The smallest results of exp are zero, where torch's are subnormal, and so are subnormal sums W·x + b."""
    _C.set_capability(capability)
    a = torch.tensor([88.8, 1e30, -88.0, -1e30, 0.0], dtype=torch.float32)
    b = torch.tensor([0.0, -1.0, 1.17549435e-38, math.inf, 1.0], dtype=torch.float32)
    exp, log, softplus = evaluated(accuracy_cell(), a, b)
    assert exp.tolist() == [math.inf, math.inf, 0.0, 0.0, 1.0]
    assert log.tolist()[0] == -math.inf
    assert log[1].isnan()
    assert log.tolist()[2:] == pytest.approx([math.log(1.17549435e-38), math.inf, 0.0])
    assert softplus.tolist() == pytest.approx([88.8, 1e30, 0.0, 0.0, math.log(2)])


#: Arguments near which a function, or a part of it such as exp(-a), becomes infinite, zero or exact.
LARGE = (17.0, 20.5, 40.0, 86.9, 87.4, 88.3, 88.37, 88.38, 88.5, 88.7, 88.722, 88.73, 89.5, 104.0, 353.0, 708.0, 708.5)
LARGE += (709.0, 709.3, 709.5, 709.7, 709.782, 709.8, 710.5, 745.0, 1e4, 1e15, 1e19)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("group", range(len(GROUPS)))
def test_large_arguments(group, dtype):
    """Nothing overflows where torch's does not, of values and gradients, and what is finite is right."""
    numbers = torch.tensor([sign * a for a in (*LARGE, 0.75) for sign in (1.0, -1.0)], dtype=dtype)
    a, b = torch.cartesian_prod(numbers, numbers).unbind(1)
    functions, tiny, eps = GROUPS[group], 20 * torch.finfo(dtype).tiny, torch.finfo(dtype).eps
    cell = cell_of(functions.values())
    right = [with_gradients(exact_softplus if n == "softplus" else f, a, b) for n, f in functions.items()]
    for k, name in enumerate(functions):
        found = with_gradients(lambda *ab, k=k: evaluated(cell, *ab)[k], a, b)
        # A gradient of zero times another function's infinite slope is NaN, in torch as here.
        slopes = [slope for j in range(len(right)) if j != k for slope in right[j][1:]]
        comparable = torch.stack([slope.isfinite() for slope in slopes]).all(0)
        assert comparable.sum() > len(a) / 8
        for what, ours, theirs in zip(("value", "gradient in a", "gradient in b"), found, right[k], strict=True):
            rows = comparable if "gradient" in what else comparable | True
            close(f"{what} of {name}", torch.stack((a, b), 1)[rows], ours[rows], theirs[rows], 16 * eps, tiny)


def exact_softplus(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """torch's is the identity from 20 on."""
    return torch.logaddexp(a, torch.zeros_like(a))


def with_gradients(function, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    leaves = [t.clone().requires_grad_() for t in (a, b)]
    value = function(*leaves)
    gradients = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
    return value, *(torch.zeros_like(a) if g is None else g for g in gradients)
