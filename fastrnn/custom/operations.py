"""Table of the operations that a cell's step may use, one row each.

A row holds the number of arguments, the operation on numbers, its code in the kernels, its gradient, and the torch
functions and methods that map to it. A gradient function receives the operation's result, its arguments and the
gradient of the result, and returns that of each argument, None if it is always zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from fastrnn.custom.graph import Node

Gradient = Callable[..., "tuple[Node | None, ...]"]


@dataclass(frozen=True)
class Operation:
    arguments: int
    of_numbers: Callable[..., float]
    cpp: str  # {0}, {1}, …: the arguments
    gradient: Gradient
    torch: tuple[Any, ...] = ()
    text: str = ""  # for display; empty: the operation's name with its arguments
    cost: float = 1.0  # in multiply-adds
    header: str = "simd/activations.h"  # declares the functions in `cpp`


def _choose(less: str) -> Gradient:
    def gradient(y: Node, args: tuple[Node, ...], g: Node) -> tuple[Node | None, ...]:
        a, b, _, _ = args
        zero = y.graph.constant(0)
        return None, None, y.graph.make(less, a, b, g, zero), y.graph.make(less, a, b, zero, g)

    return gradient


def _larger(sign: int) -> Gradient:
    """Gradient of the larger (smaller) of two values; shared equally between equal ones, as in torch."""

    def gradient(y: Node, args: tuple[Node, ...], g: Node) -> tuple[Node | None, ...]:
        make, zero, half = y.graph.make, y.graph.constant(0), g * 0.5

        def where_less(a: Node, b: Node) -> Node:
            return make("where_less", a, b, g, make("where_less", b, a, zero, half))

        a, b = args
        return (where_less(b, a), where_less(a, b)) if sign > 0 else (where_less(a, b), where_less(b, a))

    return gradient


def _relu_gradient(y: Node, args: tuple[Node, ...], g: Node) -> tuple[Node, ...]:
    return (y.graph.make("where_at_most", y, y.graph.constant(0), y.graph.constant(0), g),)


def _absolute_gradient(y: Node, args: tuple[Node, ...], g: Node) -> tuple[Node, ...]:
    (a,), make, zero = args, y.graph.make, y.graph.constant(0)
    return (make("where_less", a, zero, -g, make("where_less", zero, a, g, zero)),)


def _by(name: str) -> Gradient:
    return lambda y, args, g: (g * y.graph.make(name, y),)


def _cosine_gradient(y: Node, args: tuple[Node, ...], g: Node) -> tuple[Node, ...]:
    return (-(g * y.graph.make("sin", args[0])),)


def _remainder_gradient(y: Node, args: tuple[Node, ...], g: Node) -> tuple[Node, ...]:
    """Differentiate a - b·n, n = floor(a / b), whose own gradient is zero. It is infinite for infinite b and n = -1."""
    (a, b), make = args, y.graph.make
    floor = make("where_at_most", y.graph.constant(math.inf), make("abs", y), y.graph.constant(-1), (a - y) / b)
    return g, -(g * floor)


def _no_gradient(y: Node, args: tuple[Node, ...], g: Node) -> tuple[None, ...]:
    raise NotImplementedError  # operations that occur only in gradients


def _no_sum(x: float) -> float:
    raise ValueError("sum: expected a value that depends on the step's arguments, got a constant")


def _remainder(a: float, b: float) -> float:
    return a % b if b else math.nan


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def _softplus(x: float) -> float:
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


OPERATIONS: dict[str, Operation] = {
    "add": Operation(2, lambda a, b: a + b, "({0} + {1})", lambda y, a, g: (g, g), (torch.add,), "{0} + {1}"),
    "sub": Operation(2, lambda a, b: a - b, "({0} - {1})", lambda y, a, g: (g, -g), (torch.sub,), "{0} - {1}"),
    "mul": Operation(
        2, lambda a, b: a * b, "({0} * {1})", lambda y, a, g: (g * a[1], g * a[0]), (torch.mul,), "{0}·{1}"
    ),
    "div": Operation(
        2,
        lambda a, b: a / b if b else math.copysign(math.inf, a) if a else math.nan,
        "({0} / {1})",
        lambda y, a, g: (g / a[1], -(g / a[1]) * y),
        (torch.div, torch.true_divide),
        "{0} / {1}",
        4,
    ),
    "neg": Operation(1, lambda a: -a, "(-{0})", lambda y, a, g: (-g,), (torch.neg,), "-{0}"),
    "sigmoid": Operation(
        1, _sigmoid, "M::sigmoid({0})", _by("sigmoid_slope"), (torch.sigmoid, F.sigmoid, "sigmoid"), "σ({0})", 16
    ),
    "tanh": Operation(1, math.tanh, "M::tanh({0})", _by("tanh_slope"), (torch.tanh, F.tanh, "tanh"), "", 20),
    "relu": Operation(1, lambda a: max(a, 0.0), "max(V::zero(), {0})", _relu_gradient, (torch.relu, F.relu, "relu")),
    "exp": Operation(1, math.exp, "M::exp({0})", lambda y, a, g: (g * y,), (torch.exp, "exp"), "", 14),
    "log": Operation(1, math.log, "M::log({0})", lambda y, a, g: (g / a[0],), (torch.log, "log"), "", 16),
    "softplus": Operation(
        1, _softplus, "M::softplus({0})", lambda y, a, g: (g * y.graph.make("sigmoid", a[0]),), (F.softplus,), "", 30
    ),
    "sqrt": Operation(1, math.sqrt, "sqrt({0})", lambda y, a, g: (g * 0.5 / y,), (torch.sqrt, "sqrt"), "", 8),
    "sin": Operation(
        1,
        math.sin,
        "sin({0})",
        lambda y, a, g: (g * y.graph.make("cos", a[0]),),
        (torch.sin, "sin"),
        "",
        30,
        "simd/periodic.h",
    ),
    "cos": Operation(1, math.cos, "cos({0})", _cosine_gradient, (torch.cos, "cos"), "", 30, "simd/periodic.h"),
    "remainder": Operation(
        2,
        _remainder,
        "remainder({0}, {1})",
        _remainder_gradient,
        (torch.remainder, "remainder"),
        "({0} mod {1})",
        60,
        "simd/periodic.h",
    ),
    # Value of the first argument, gradient of the second, or none.
    "surrogate": Operation(2, lambda a, b: a, "{0}", lambda y, a, g: (None, g), (), "{0} (gradient of {1})", 0),
    "detach": Operation(1, lambda a: a, "{0}", lambda y, a, g: (None,), (torch.detach, "detach"), "", 0),
    "abs": Operation(1, abs, "abs({0})", _absolute_gradient, (torch.abs, torch.absolute, "abs"), "|{0}|"),
    "maximum": Operation(2, max, "larger_of({0}, {1})", _larger(1), (torch.maximum,), "max({0}, {1})"),
    "minimum": Operation(2, min, "smaller_of({0}, {1})", _larger(-1), (torch.minimum,), "min({0}, {1})"),
    # a < b ? c : d, and a ≤ b ? c : d
    "where_less": Operation(
        4,
        lambda a, b, c, d: c if a < b else d,
        "where_less({0}, {1}, {2}, {3})",
        _choose("where_less"),
        (),
        "({2} where {0} < {1}, else {3})",
    ),
    "where_at_most": Operation(
        4,
        lambda a, b, c, d: c if a <= b else d,
        "where_at_most({0}, {1}, {2}, {3})",
        _choose("where_at_most"),
        (),
        "({2} where {0} ≤ {1}, else {3})",
    ),
    # Reductions over the units of a row, with one value per row. The gradient of each term is the mean (sum) of all.
    "mean": Operation(1, lambda a: a, "", lambda y, a, g: (y.graph.make("mean", g),), (), "mean({0})", 2),
    "sum": Operation(1, _no_sum, "", lambda y, a, g: (y.graph.make("sum", g),), (), "sum({0})", 2),
    # Only in gradients: derivatives of σ and tanh in terms of their results.
    "sigmoid_slope": Operation(1, lambda y: y * (1 - y), "sigmoid_slope({0})", _no_gradient, (), "{0}·(1 - {0})", 2),
    "tanh_slope": Operation(1, lambda y: 1 - y * y, "tanh_slope({0})", _no_gradient, (), "(1 - {0}²)"),
}
#: Operations that read all units of a row.
REDUCTIONS = frozenset(("mean", "sum"))
COMMUTATIVE = frozenset(("add", "mul"))
