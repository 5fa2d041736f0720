"""What a cell's step must not do is said when it is defined, with the line."""

from __future__ import annotations

import inspect
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fastrnn


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
    return x.a.sin()


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


def remainder(x, r, s):
    return x.a % 2


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
    method: "'sin'",
    product: "matrix product",
    torch_product: "matmul",
    index: "indexed",
    shape: r"shape \(3,\).*parameters",
    shape_first: r"shape \(3,\).*parameters",
    array: "ndarray.*parameters",
    numpy_function: "ufuncs",
    weight: "parameters",
    power: "exponents.*2.5",
    to_the_power: "exponents",
    remainder: "%",
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
        (lambda x, r, s: None, "h", "got NoneType"),
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


def test_an_error_of_the_users_own_is_left_alone():
    def step(x, r, s):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fastrnn.cell(gates="a")(step)


def test_in_a_helper_the_helpers_line_is_told():
    with pytest.raises(fastrnn.CellError, match=r"return x\.a\.sin") as caught:
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
