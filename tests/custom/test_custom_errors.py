"""Errors at the definition of a cell, with the line of its step."""

from __future__ import annotations

import inspect
import math
import re
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fastrnn
from fastrnn.custom import source_lines


class Doubled(torch.autograd.Function):
    """Backward gives twice the gradient, which no kernel would know of."""

    @staticmethod
    def forward(ctx, value):
        return torch.tanh(value)

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class InTheNewStyle(torch.autograd.Function):
    @staticmethod
    def forward(value):
        return value

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def branch(x, r, s):
    if x.a > 0:
        return x.a
    return r.a


def conditional(x, r, s):
    return x.a if s.h == 0 else r.a


def loop(x, r, s):
    return sum(v for v in x.a)


def larger_by_python(x, r, s):
    return max(x.a, r.a)


def number(x, r, s):
    return math.exp(x.a)


def converted(x, r, s):
    return x.a * float(r.a)


def unsupported(x, r, s):
    return torch.cumsum(x.a, 0)


def joined(x, r, s):
    return torch.cat([x.a, r.a])


def random(x, r, s):
    return F.dropout(x.a)


def method(x, r, s):
    return x.a.cumsum(0)


def product(x, r, s):
    return x.a @ r.a


def torch_product(x, r, s):
    return torch.matmul(x.a, r.a)


def index(x, r, s):
    return x.a[0]


def shape(x, r, s):
    return x.a * torch.ones(3)


def shape_first(x, r, s):
    return torch.ones(3) * x.a


def array(x, r, s):
    return np.ones(3) * x.a


def numpy_function(x, r, s):
    return np.tanh(x.a)


def weight(x, r, s):
    return x.a * torch.tensor(1.0, requires_grad=True)


def power(x, r, s):
    return x.a**2.5


def to_the_power(x, r, s):
    return 2**x.a


def to_a_power_of_two_values(x, r, s):
    return x.a**r.a


def floor_division(x, r, s):
    return x.a // 2


def remainder_of_a_number(x, r, s):
    return 7 % x.a


def own_function(x, r, s):
    return torch.tanh(Doubled.apply(x.a + r.a))


def own_function_in_the_new_style(x, r, s):
    return InTheNewStyle.apply(x.a) + r.a


def condition_as_float(x, r, s):
    return x.a * (r.a < 0).float()


def condition_to(x, r, s):
    return x.a * (r.a < 0).to(torch.float32)


def condition_times_number(x, r, s):
    return (x.a < 0) * 1.0 + r.a


def negated_condition(x, r, s):
    return -(x.a < 0)


def logical(x, r, s):
    return torch.where(torch.logical_and(x.a < 0, r.a < 0), x.a, r.a)


def whole_input(x, r, s):
    return torch.tanh(x) + r.a


def whole_input_joined(x, r, s):
    return torch.cat([x, r.a])


def whole_input_in_a_sum(x, r, s):
    return x + r.a


def whole_product_in_a_sum(x, r, s):
    return x.a + r


def whole_state(x, r, s):
    return 0.5 * s


def whole_state_compared(x, r, s):
    return torch.where(s > 0, x.a, r.a)


def whole_product_called(x, r, s):
    return x.a + r(s.h * x.a)


def converted_dtype(x, r, s):
    return x.a.to(torch.float16) + r.a


def converted_by_name(x, r, s):
    return x.a.double()


def size(x, r, s):
    return x.a / x.a.shape[-1]


def in_place_method(x, r, s):
    return x.a.tanh_()


def without_gradient(x, r, s):
    with torch.no_grad():
        scale = 2 * r.a
    return x.a * scale


def in_place(x, r, s):
    x.a += r.a
    return x.a


def comparison(x, r, s):
    return x.a * (r.a < 0)


def both(x, r, s):
    return torch.where((x.a < 0) & (r.a < 0), x.a, r.a)


def not_compared(x, r, s):
    return torch.where(torch.tensor(True), x.a, r.a)


def softplus(x, r, s):
    return F.softplus(x.a, beta=2)


def gate(x, r, s):
    return torch.tanh(x.b)


def state(x, r, s):
    return s.c * x.a


def domain(x, r, s):
    return x.a + torch.log(0.0 * r.a)


STEPS = {
    branch: "torch.where",
    conditional: "==",
    loop: "iterated",
    larger_by_python: "torch.where",
    number: "no number",
    converted: "no number",
    unsupported: "cumsum.*sigmoid",
    joined: "'cat'",
    random: "dropout",
    method: "'cumsum'",
    product: "matrix product",
    torch_product: "matmul",
    index: "indexed",
    shape: r"shape \(3,\).*parameters",
    shape_first: r"shape \(3,\).*parameters",
    array: "ndarray.*parameters",
    numpy_function: "ufuncs.*torch's functions",
    weight: "parameters",
    power: "exponents.*2.5",
    to_the_power: r"2 \*\* v: .*torch.exp\(v \* math.log\(2\)\)",
    to_a_power_of_two_values: r"torch.exp\(v \* torch.log\(a\)\)",
    floor_division: r"use \(a - a % b\) / b",
    remainder_of_a_number: r"torch.remainder\(torch.tensor\(7\), v\)",
    own_function: r"Doubled\.apply: .*fastrnn\.custom\.surrogate",
    own_function_in_the_new_style: r"InTheNewStyle\.apply: .*fastrnn\.custom\.surrogate",
    condition_as_float: r"'float'.*torch.where\(condition, 1.0, 0.0\)",
    condition_to: r"'to'.*torch.where\(condition, 1.0, 0.0\)",
    condition_times_number: r"torch.where\(condition, 1.0, 0.0\)",
    negated_condition: r"torch.where\(condition, 1.0, 0.0\)",
    logical: "cannot be combined",
    whole_input: r"x: expected one of its values, x\.a, got all gates",
    whole_input_joined: r"expected one of its values, x\.a",
    whole_input_in_a_sum: r"expected one of its values, x\.a",
    whole_product_in_a_sum: r"expected one of its values, r\.a",
    whole_state: r"s: expected one of its values, s\.h, got all old states",
    whole_state_compared: r"s: expected one of its values, s\.h, got all old states",
    whole_product_called: r"r\(v\): expected .*r\.a\(v\)",
    converted_dtype: "'to'.*omit it",
    converted_by_name: "'double'.*omit it",
    size: "'shape'.*every size",
    in_place_method: "'tanh_'.*in place",
    without_gradient: r"no_grad.*fastrnn\.custom\.detach",
    in_place: "in place",
    comparison: "torch.where",
    both: "combined",
    not_compared: "comparison",
    softplus: "beta",
    gate: "x has no 'b'; it has a",
    state: "s has no 'c'; it has h",
    domain: "domain",
}


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_says_where_and_why(step):
    with pytest.raises(fastrnn.CellError, match=STEPS[step]) as caught:
        fastrnn.cell(gates="a")(step)
    assert isinstance(caught.value, TypeError)
    lines, first = inspect.getsourcelines(step)
    file, line, text = re.match(r"(.*):(\d+): `(.*?)`: ", str(caught.value)).groups()
    assert file == __file__
    assert first < int(line) < first + len(lines)
    assert text == lines[int(line) - first].strip()


@pytest.mark.parametrize(
    ("step", "states", "message"),
    [
        (lambda x, r, s: x.a, "h c", r"expected 2 new states \(h, c\), got 1"),
        (lambda x, r, s: (x.a, r.a), "h", "expected 1 new states .*got 2"),
        (lambda x, r, s: {"h": x.a}, "h c", "expected the new states h, c, got h"),
        (lambda x, r, s: {"h": x.a, "d": r.a}, "h c", "expected the new states h, c, got h, d"),
        (lambda x, r, s: None, "h", "got None; is a `return` missing"),
        (lambda x, r, s: torch.zeros(3), "h", r"shape \(3,\)"),
        (lambda x, r, s: x.a < 0, "h", "comparison"),
    ],
)
def test_new_states(step, states, message):
    """Found after the step has run: the message leads to its first line."""
    with pytest.raises(fastrnn.CellError, match=message) as caught:
        fastrnn.cell(gates="a", states=states)(step)
    assert str(caught.value).startswith(f"{__file__}:{step.__code__.co_firstlineno}: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gates": ""}, "gates: .*at least one"),
        ({"gates": "a a"}, "gates: .*different"),
        ({"gates": "a 1b"}, "gates: .*'1b'"),
        ({"gates": ["a b"]}, "gates: .*'a b'"),
        ({"gates": "class"}, "gates: .*'class'"),
        ({"gates": "_a"}, "gates: .*'_a'"),
        ({"gates": [1]}, "gates: .*1"),
        ({"gates": "a", "states": ""}, "states: .*at least one"),
        ({"gates": "a", "states": "h h"}, "states: .*different"),
        ({"gates": "a", "states": "h b c d e f g i j"}, "states: .*at most 8, got 9"),
        ({"gates": "a", "parameters": "import"}, "parameters: .*'import'"),
        ({"gates": 4}, 'gates: expected names, as in gates="a b", got 4'),
        ({"gates": "a", "states": 2}, 'states: expected names, as in states="a b", got 2'),
        ({"gates": "a", "matrices": 1}, 'matrices: expected names, as in matrices="a b", got 1'),
        ({"gates": "a", "parameters": 3}, 'parameters: expected names, as in parameters="a b", got 3'),
        ({"gates": "a", "parameters": {"w": "ones"}}, "parameters: expected a number or a function .* w, got 'ones'"),
        ({"gates": "a", "inputs": "noise"}, r"inputs: expected a dict of functions \(like, training\).*got 'noise'"),
        ({"gates": "a", "inputs": {"noise": 1.0}}, r"inputs: expected a dict of functions \(like, training\).*1\.0"),
    ],
)
def test_names(options, message):
    with pytest.raises(fastrnn.CellError, match=message):
        fastrnn.cell(**options)(lambda x, r, s: x.a)


def test_signature():
    with pytest.raises(fastrnn.CellError, match=r"3 arguments \(x, r, s\), got 2"):
        fastrnn.cell(gates="a")(lambda x, r: x.a)
    with pytest.raises(fastrnn.CellError, match=r"4 arguments \(x, r, s, p\), got 3"):
        fastrnn.cell(gates="a", parameters="w")(lambda x, r, s: x.a)
    with pytest.raises(fastrnn.CellError, match="got the function itself"):
        fastrnn.cell(branch)


def test_dtypes_by_name():
    cell = fastrnn.cell(gates="a")(lambda x, r, s: x.a + r.a)
    with pytest.raises(TypeError, match=r"dtype: expected a torch\.dtype.*'float64'"):
        cell(2, 3, dtype="float64")
    with pytest.raises(TypeError, match=r"dtype: expected a torch\.dtype.*'float32'"):
        cell.build("float32")


# fmt: off
def long(x, r, s):
    return torch.tanh(x.a + 1.0000001 * r.a) + torch.tanh(x.a + 1.0000002 * r.a) + torch.tanh(x.a.cumsum(0) + 1.0 * r.a)
# fmt: on


def test_of_a_long_line_the_part_that_is_meant_is_shown():
    with pytest.raises(fastrnn.CellError, match="cumsum") as caught:
        fastrnn.cell(gates="a")(long)
    (shown,) = re.findall(r"`(.*?)`", str(caught.value))
    assert len(shown) <= source_lines.WIDTH + 4
    if sys.version_info >= (3, 11):
        assert "x.a.cumsum(0)" in shown


def test_an_excerpt():
    short, text = "  a = 1\n", "    " + "".join(f"{k:03d}+" for k in range(100))
    assert source_lines.excerpt(short, 5) == "a = 1"
    assert source_lines.excerpt(text).startswith("000+001+")
    assert source_lines.excerpt(text).endswith(" …")
    middle, end = source_lines.excerpt(text, 4 + 200), source_lines.excerpt(text, 4 + 399)
    assert middle.startswith("… ")
    assert middle.endswith(" …")
    assert "050+" in middle
    assert end.endswith("099+")


def test_autograd_functions_are_as_they_were():
    """Also after an error in a step; and one that gets no value of the step may run in it."""
    usual = torch.autograd.Function.__dict__["apply"]
    with pytest.raises(fastrnn.CellError):
        fastrnn.cell(gates="a")(own_function)
    assert torch.autograd.Function.__dict__["apply"] is usual

    def step(x, r, s):
        return x.a + Doubled.apply(torch.tensor(0.5)) * r.a

    fastrnn.cell(gates="a")(step)
    value = torch.tensor(0.0, requires_grad=True)
    Doubled.apply(value).backward()
    assert value.grad == 2


def test_an_error_of_the_users_own_is_left_alone():
    def step(x, r, s):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fastrnn.cell(gates="a")(step)


def test_in_a_helper_the_helpers_line_is_told():
    with pytest.raises(fastrnn.CellError, match=r"return x\.a\.cumsum") as caught:
        fastrnn.cell(gates="a")(lambda x, r, s: method(x, r, s))
    assert f":{method.__code__.co_firstlineno + 1}: " in str(caught.value)


def test_forms_that_torch_has_too():
    """Keywords in any order, numbers of any kind, modules without weights, tensors of no dimension."""

    def step(x, r, s):
        a = torch.sub(other=x.a, input=r.a) + np.float32(2) * x.a - torch.tensor(0.5) * r.a
        return torch.nn.ReLU()(a) + F.relu(r.a) + torch.nn.Softplus()(x.a) + F.sigmoid(a) + True

    cell = fastrnn.cell(gates="a")(step)
    x, r = torch.randn(2, 3), torch.randn(2, 3)
    a = r - x + 2 * x - 0.5 * r
    right = torch.relu(a) + torch.relu(r) + F.softplus(x) + torch.sigmoid(a) + 1
    torch.testing.assert_close(cell._torch_step(x, r, (x,))[0], right)
