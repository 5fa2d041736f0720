"""Runs a cell's step on symbols, which write down what is done to them."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrnn.custom import autograd_functions, remedies
from fastrnn.custom.graph import Graph, Node
from fastrnn.custom.names import Names
from fastrnn.custom.operations import OPERATIONS
from fastrnn.custom.repeatable import same_twice
from fastrnn.custom.source_lines import place
from fastrnn.custom.structure import Traced, structure


class CellError(TypeError):
    """A cell's step that cannot be made into kernels; says where in its source and why."""


_BY_FUNCTION: dict[Any, str] = {f: name for name, row in OPERATIONS.items() for f in row.torch}
_COMPARISONS = {torch.lt: "<", torch.le: "<=", torch.gt: ">", torch.ge: ">="}


class Condition:
    """A comparison of symbols, for `torch.where`."""

    def __init__(self, trace: Trace, less: str, left: Node, right: Node) -> None:
        self.trace, self.less, self.left, self.right = trace, less, left, right

    def __bool__(self) -> bool:
        raise self.trace.error(remedies.BRANCH)

    def _combined(self, other: Any = None) -> Any:
        raise self.trace.error("comparisons cannot be combined: use one torch.where within another")

    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = __invert__ = __eq__ = __ne__ = _combined
    __hash__ = object.__hash__

    def _no_number(self, *others: Any) -> Any:
        raise self.trace.error(remedies.NO_NUMBER)

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _no_number
    __mod__ = __rmod__ = __floordiv__ = __rfloordiv__ = __pow__ = __rpow__ = __neg__ = __abs__ = _no_number
    __float__ = __int__ = __index__ = _no_number

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self.trace.error(f"no {name!r}: {remedies.NO_NUMBER}")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return Symbol.__torch_function__(func, types, args, kwargs)


class Symbol:
    """One of the step's arguments, or what was computed from them; stands for a tensor (B, H)."""

    __slots__ = ("node", "trace")
    __array_ufunc__ = None  # NumPy leaves operators to us

    def __init__(self, trace: Trace, node: Node) -> None:
        self.trace, self.node = trace, node

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        given: list[Any] = [*args, *kwargs.values()]
        for a in given:  # torch.cat has them in a list
            if isinstance(a, (list, tuple)):
                given += a
        trace = next(a.trace for a in given if isinstance(a, (Symbol, Condition)))
        return trace.call(func, args, kwargs)

    def __bool__(self) -> bool:
        raise self.trace.error(remedies.BRANCH)

    def __iter__(self) -> Any:
        raise self.trace.error("a traced value cannot be iterated over: it has one number for each row and unit")

    def __float__(self) -> float:
        raise self.trace.error("a traced value has no number yet: use torch's functions instead of math's and Python's")

    __int__ = __index__ = __float__

    def __getattr__(self, name: str) -> Any:
        if name in _BY_FUNCTION:
            return lambda *args: self.trace.operation(name, (self, *args))
        if name in ("clamp", "square", "pow", "reciprocal", "mean", "sum", "var", "sign"):
            return lambda *args, **kwargs: self.trace.call(getattr(torch, name), (self, *args), kwargs)
        raise self.trace.unknown(name)

    def __getitem__(self, key: Any) -> Any:
        raise self.trace.error("a traced value cannot be indexed: it has one number for each row and unit")

    def __matmul__(self, other: Any) -> Any:
        raise self.trace.error("a matrix product is r.n for R_n·h, and r.n(v) for R_n·v with another vector v")

    __rmatmul__ = __matmul__

    def __rmod__(self, other: Any) -> Symbol:
        return self.trace.operation("remainder", (other, self))

    def __pow__(self, power: Any) -> Symbol:
        return self.trace.call(torch.pow, (self, power), {})

    def __rpow__(self, base: Any) -> Symbol:
        return self.trace.call(torch.pow, (base, self), {})

    def _floor_division(self, other: Any) -> Any:
        raise self.trace.error("no operation // on a traced value: use (a - a % b) / b")

    __floordiv__ = __rfloordiv__ = _floor_division

    def __mod__(self, other: Any) -> Symbol:
        return self.trace.operation("remainder", (self, other))

    def _equal(self, other: Any) -> Any:
        raise self.trace.error("no operation == or != on a traced value; there are <, <=, > and >=")

    __eq__ = __ne__ = _equal
    __hash__ = object.__hash__

    def _in_place(self, other: Any) -> Any:
        raise self.trace.error(remedies.IN_PLACE)

    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ipow__ = __imod__ = _in_place


class Recurrent(Symbol):
    """``r.n``: R_n·h; called with a vector ``v``, ``r.n(v)``: R_n·v."""

    __slots__ = ("gate",)

    def __init__(self, trace: Trace, gate: int) -> None:
        super().__init__(trace, trace.graph.leaf("r", gate))
        self.gate = gate

    def __call__(self, vector: Any) -> Symbol:
        return self.trace.product(self.gate, vector)


def _binary(op: str, swapped: bool = False) -> Callable:
    def method(self: Symbol, other: Any) -> Symbol:
        return self.trace.operation(op, (other, self) if swapped else (self, other))

    return method


def _comparison(text: str) -> Callable:
    return lambda self, other: self.trace.compare(text, self, other)


for _name, _op in (("add", "add"), ("sub", "sub"), ("mul", "mul"), ("truediv", "div")):
    setattr(Symbol, f"__{_name}__", _binary(_op))
    setattr(Symbol, f"__r{_name}__", _binary(_op, True))
for _op in ("neg", "abs"):
    setattr(Symbol, f"__{_op}__", lambda self, op=_op: self.trace.operation(op, (self,)))
for _name, _text in (("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">=")):
    setattr(Symbol, f"__{_name}__", _comparison(_text))

#: What may be used in a step, for messages.
NAMES = frozenset(
    [name for name, row in OPERATIONS.items() if row.torch]
    + ["clamp", "square", "pow", "reciprocal", "where", "mean", "sum", "var", "logsigmoid", "sign"]
)


class Trace:
    """Turns calls on symbols into nodes of `graph`."""

    def __init__(self, step: Callable) -> None:
        self.step, self.graph = step, Graph()
        self.grad_enabled = torch.is_grad_enabled()
        self.multiplied: dict[int, Node] = {}  # by matrix: the vector it was called with

    def error(self, why: str) -> CellError:
        return CellError(f"{place(self.step)}: {why}")

    def unknown(self, name: str) -> CellError:
        """That there is no operation of this name, and what to do instead."""
        why = f"no operation {name!r} on a traced value"
        if name.endswith("_") and not name.endswith("__"):
            return self.error(f"{why}: {remedies.IN_PLACE}")
        if name in remedies.BY_NAME:
            return self.error(f"{why}: {remedies.BY_NAME[name]}")
        return self.error(f"{why}; there are {', '.join(sorted(NAMES))}")

    def refuse_function(self, name: str, argument: Any) -> None:
        """Raise if a value of the step is an argument of an `autograd.Function` of this name."""
        if isinstance(argument, (Symbol, Condition, Names)):
            raise self.error(
                f"{name}.apply: the gradient is derived from the step, and {name}.backward would never be called: use "
                "torch's functions, with fastrnn.custom.surrogate(value, smooth) for a gradient of another function"
            )

    def node(self, value: Any) -> Node:
        if isinstance(value, Symbol):
            return value.node
        if isinstance(value, numbers.Real):  # bool too
            return self.graph.constant(float(value))
        if isinstance(value, Tensor) and value.dim() == 0 and not value.requires_grad:
            return self.graph.constant(float(value))
        if isinstance(value, Condition):
            raise self.error(remedies.NO_NUMBER)
        if isinstance(value, Names):
            raise self.error(value.whole())
        what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise self.error(f"expected a traced value or a number, got {what}; per-channel weights are `parameters`")

    def operation(self, op: str, args: Sequence[Any]) -> Symbol:
        nodes = [self.node(a) for a in args]
        if op == "remainder" and not isinstance(args[0], (Symbol, Tensor)):  # torch has no derivative of it
            raise self.error(
                f"{args[0]!r} % v: expected a value before %: torch.remainder(torch.tensor({args[0]!r}), v)"
            )
        if self.grad_enabled and not torch.is_grad_enabled():
            raise self.error("torch.no_grad has no effect on the gradient of a step: use fastrnn.custom.detach(v)")
        try:
            return Symbol(self, self.graph.make(op, *nodes))
        except (TypeError, ValueError, OverflowError) as error:  # a wrong number of arguments; log(-1)
            raise self.error(str(error)) from None

    def product(self, matrix: int, vector: Any) -> Symbol:
        node = self.node(vector)
        if node.leaf == ("s", 0):
            raise self.error("the product with h itself is the gate as it is, without a call")
        if self.multiplied.setdefault(matrix, node) is not node:
            raise self.error("a matrix that is multiplied with two vectors: each has to have a matrix of its own")
        return Symbol(self, self.graph.product(matrix, node))

    def of_units(self, op: str, x: Any, dim: Any = None, keepdim: bool = False) -> Symbol:
        """A mean or sum over the units of each row."""
        if dim not in (-1, (-1,), [-1]) or keepdim is not True:
            raise self.error(f"{op}: expected it over the units, {op}(dim=-1, keepdim=True)")
        return self.operation(op, (x,))

    def compare(self, text: str, left: Any, right: Any) -> Condition:
        a, b = self.node(left), self.node(right)
        if text in (">", ">="):
            a, b = b, a
        return Condition(self, "where_less" if len(text) == 1 else "where_at_most", a, b)

    def call(self, func: Any, args: tuple, kwargs: dict) -> Any:
        if func in _BY_FUNCTION and func not in _SPECIAL and set(kwargs) <= {"input", "other"}:
            return self.operation(_BY_FUNCTION[func], (*args, *(kwargs[k] for k in ("input", "other") if k in kwargs)))
        if func in _COMPARISONS and not kwargs:
            return self.compare(_COMPARISONS[func], *args)
        special = _SPECIAL.get(func)
        if special is not None:
            try:
                return special(self, *args, **kwargs)
            except CellError:
                raise
            except TypeError as error:
                raise self.error(str(error)) from None
        raise self.unknown(getattr(func, "__name__", str(func)))


def _where(trace: Trace, condition: Any, yes: Any, no: Any) -> Symbol:
    if not isinstance(condition, Condition):
        raise trace.error("torch.where: expected a comparison (a < b) of traced values as its condition")
    nodes = (condition.left, condition.right, trace.node(yes), trace.node(no))
    return Symbol(trace, trace.graph.make(condition.less, *nodes))


def _clamp(trace: Trace, x: Any, min: Any = None, max: Any = None) -> Symbol:  # torch's names
    """Not a maximum of a minimum: at its limits torch's gradient passes in full."""
    node = inside = trace.node(x)
    for limit, less, low in ((min, "where_less", True), (max, "where_less", False)):
        if limit is not None:
            bound = trace.node(limit)
            pair = (inside, bound) if low else (bound, inside)
            inside = node.graph.make(less, *pair, bound, inside)
    return Symbol(trace, inside)


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
        raise trace.error("softplus: expected it without beta and threshold")
    return trace.operation("softplus", (x,))


def _logsigmoid(trace: Trace, x: Any) -> Symbol:
    return Symbol(trace, -trace.graph.make("softplus", -trace.node(x)))


def _relu(trace: Trace, x: Any, inplace: bool = False) -> Symbol:
    if inplace:
        raise trace.error("relu: a value cannot be changed in place")
    return trace.operation("relu", (x,))


def _variance(
    trace: Trace, x: Any, dim: Any = None, unbiased: Any = None, *, correction: Any = None, keepdim: bool = False
) -> Symbol:
    if unbiased is not False and correction != 0:
        raise trace.error("var: expected it over the units as they are, var(dim=-1, correction=0, keepdim=True)")
    mean = trace.of_units("mean", x, dim, keepdim)
    return trace.of_units("mean", _power(trace, x - mean, 2), -1, True)


_SPECIAL: dict[Any, Callable] = {
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


def _new_states(trace: Trace, arguments: Sequence[Names], states: Sequence[str]) -> tuple[Node, ...]:
    """Runs the step once. Returns the new states, in order."""
    step = trace.step
    trace.multiplied.clear()
    try:
        with autograd_functions.refused(trace.refuse_function):
            found = step(*arguments)
    except CellError:
        raise
    except TypeError as error:  # Python's own, of an operator that symbols do not have
        remedy = ": use torch's functions instead of NumPy's" if "ufunc" in str(error) else ""
        raise CellError(f"{place(step, error)}: {error}{remedy}") from error
    if isinstance(found, dict):
        missing = [name for name in states if name not in found]
        if missing or len(found) != len(states):
            raise CellError(f"{place(step)}: expected the new states {', '.join(states)}, got {', '.join(found)}")
        found = tuple(found[name] for name in states)
    found = found if isinstance(found, (tuple, list)) else (found,)
    if len(found) != len(states):
        raise CellError(
            f"{place(step)}: expected {len(states)} new states ({', '.join(states)}), got {len(found)}: every state "
            "has to be written"
        )
    return tuple(trace.node(value) for value in found)


def traced(
    step: Callable,
    gates: Sequence[str],
    states: Sequence[str],
    parameters: Sequence[str],
    matrices: Sequence[str] = (),
) -> Traced:
    """Runs `step` on symbols, twice.

    Raises:
        CellError: it does what cannot be done, see there, or something else the second time.
    """
    trace = Trace(step)
    arguments = []
    for kind, names in (("x", gates), ("r", (*gates, *matrices)), ("s", states), ("p", parameters)):
        if kind == "p" and not parameters:
            continue
        symbols = [
            Recurrent(trace, k) if kind == "r" else Symbol(trace, trace.graph.leaf(kind, k)) for k in range(len(names))
        ]
        arguments.append(Names(kind, names, symbols, trace.error))
    new = same_twice(lambda: _new_states(trace, arguments, states))
    if new is None:
        raise CellError(
            f"{place(step)}: expected a step that computes the same each time it is run, as kernels repeat what it "
            "drew, counted or read at definition; noise and masks are `inputs=`, functions that make new ones each call"
        )
    try:
        return structure(trace.graph, new, len(gates), [f"r.{name}" for name in (*gates, *matrices)], trace.multiplied)
    except ValueError as error:
        raise CellError(f"{place(step)}: {error}") from None
