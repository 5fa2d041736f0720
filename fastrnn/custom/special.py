"""torch functions that map to several operations of a cell's step, or that have other arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from fastrnn.custom.symbols import Condition, Symbol

if TYPE_CHECKING:
    from fastrnn.custom.trace import Trace


def _where(trace: Trace, condition: Any, yes: Any, no: Any) -> Symbol:
    if not isinstance(condition, Condition):
        got = type(condition).__name__
        expected = "a comparison (a < b) of values of the step"
        raise trace.error(f"torch.where: expected {expected} as its condition, got {got}")
    nodes = (condition.left, condition.right, trace.node(yes), trace.node(no))
    return Symbol(trace, trace.graph.make(condition.less, *nodes))


def _clamp(trace: Trace, x: Any, min: Any = None, max: Any = None) -> Symbol:  # torch's names
    """Clamp by comparisons: torch passes the full gradient at the limits, which maximum and minimum would halve."""
    node = clamped = trace.node(x)
    for limit, less, low in ((min, "where_less", True), (max, "where_less", False)):
        if limit is not None:
            end = trace.node(limit)
            pair = (clamped, end) if low else (end, clamped)
            clamped = node.graph.make(less, *pair, end, clamped)
    return Symbol(trace, clamped)


def _power(trace: Trace, x: Any, exponent: Any) -> Symbol:
    if isinstance(exponent, Symbol):
        base = "a" if isinstance(x, Symbol) else repr(x)
        log = "torch.log(a)" if isinstance(x, Symbol) else f"math.log({base})"
        raise trace.error(f"{base} ** v: expected a number as the exponent; for {base} > 0 use torch.exp(v * {log})")
    if not isinstance(exponent, (int, float)) or exponent not in (-1, 0.5, 1, 2, 3, 4):
        raise trace.error(f"pow: expected one of the exponents -1, 0.5, 1, 2, 3, 4, got {exponent!r}")
    node = trace.node(x)
    if exponent == 0.5:
        return trace.operation("sqrt", (x,))
    if exponent == -1:
        return Symbol(trace, 1.0 / node)
    result = square = node * node
    if exponent == 1:
        result = node
    elif exponent > 2:
        result = square * (node if exponent == 3 else square)
    return Symbol(trace, result)


def _sign(trace: Trace, x: Any) -> Symbol:
    node = trace.node(x)
    make, zero = trace.graph.make, trace.graph.constant(0)
    below = make("where_less", node, zero, trace.graph.constant(-1), zero)
    return Symbol(trace, make("where_less", zero, node, trace.graph.constant(1), below))


def _softplus(trace: Trace, x: Any, beta: Any = 1, threshold: Any = 20) -> Symbol:
    if (beta, threshold) != (1, 20):
        raise trace.error(f"softplus: expected the default beta and threshold, got {beta!r} and {threshold!r}")
    return trace.operation("softplus", (x,))


def _logsigmoid(trace: Trace, x: Any) -> Symbol:
    return Symbol(trace, -trace.graph.make("softplus", -trace.node(x)))


def _relu(trace: Trace, x: Any, inplace: bool = False) -> Symbol:
    if inplace:
        raise trace.error("relu: expected inplace=False, got True")
    return trace.operation("relu", (x,))


def _variance(
    trace: Trace, x: Any, dim: Any = None, unbiased: Any = None, *, correction: Any = None, keepdim: bool = False
) -> Symbol:
    if unbiased is not False and correction != 0:
        raise trace.error("var: expected var(dim=-1, correction=0, keepdim=True), over the units")
    mean = trace.of_units("mean", x, dim, keepdim)
    return trace.of_units("mean", _power(trace, x - mean, 2), -1, True)


SPECIAL: dict[Any, Callable] = {
    torch.mean: lambda trace, x, dim=None, keepdim=False: trace.of_units("mean", x, dim, keepdim),
    torch.sum: lambda trace, x, dim=None, keepdim=False: trace.of_units("sum", x, dim, keepdim),
    torch.var: _variance,
    torch.where: _where,
    torch.clamp: _clamp,
    torch.pow: _power,
    torch.sign: _sign,
    torch.square: lambda trace, x: _power(trace, x, 2),
    torch.reciprocal: lambda trace, x: _power(trace, x, -1),
    F.softplus: _softplus,
    F.logsigmoid: _logsigmoid,
    F.relu: _relu,
}
