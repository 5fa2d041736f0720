"""Symbolic values that replace those of a cell's step while it is traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from fastrnn.custom import remedies
from fastrnn.custom.graph import Node
from fastrnn.custom.operations import OPERATIONS

if TYPE_CHECKING:
    from fastrnn.custom.trace import Trace

#: Operation names by the torch functions and methods that map to them.
BY_FUNCTION: dict[Any, str] = {f: name for name, row in OPERATIONS.items() for f in row.torch}


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
    """An argument of the step, or a value computed from arguments; stands for a tensor (B, H)."""

    __slots__ = ("node", "trace")
    __array_ufunc__ = None  # makes NumPy defer to the operators here

    def __init__(self, trace: Trace, node: Node) -> None:
        self.trace, self.node = trace, node

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        given: list[Any] = [*args, *kwargs.values()]
        for a in given:  # torch.cat takes a list
            if isinstance(a, (list, tuple)):
                given += a
        trace = next(a.trace for a in given if isinstance(a, (Symbol, Condition)))
        return trace.call(func, args, kwargs)

    def __bool__(self) -> bool:
        raise self.trace.error(remedies.BRANCH)

    def __iter__(self) -> Any:
        raise self.trace.error("a value of the step cannot be iterated over: it has one number for each row and unit")

    def __float__(self) -> float:
        raise self.trace.error("a value of the step has no number: use functions of torch, not of math and Python")

    __int__ = __index__ = __float__

    def __getattr__(self, name: str) -> Any:
        if name in BY_FUNCTION:
            return lambda *args: self.trace.operation(name, (self, *args))
        if name in ("clamp", "square", "pow", "reciprocal", "mean", "sum", "var", "sign"):
            return lambda *args, **kwargs: self.trace.call(getattr(torch, name), (self, *args), kwargs)
        raise self.trace.unknown(name)

    def __getitem__(self, key: Any) -> Any:
        raise self.trace.error("a value of the step cannot be indexed: it has one number for each row and unit")

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
        raise self.trace.error("no operation // on a value of the step: use (a - a % b) / b")

    __floordiv__ = __rfloordiv__ = _floor_division

    def __mod__(self, other: Any) -> Symbol:
        return self.trace.operation("remainder", (self, other))

    def _equal(self, other: Any) -> Any:
        raise self.trace.error("expected <, <=, > or >= on a value of the step, got == or !=")

    __eq__ = __ne__ = _equal
    __hash__ = object.__hash__

    def _in_place(self, other: Any) -> Any:
        raise self.trace.error(remedies.IN_PLACE)

    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ipow__ = __imod__ = _in_place


class Gate(Symbol):
    """``x.n``: W_n·x_t + b_n; called with a vector ``v`` as ``x.n(v)``: W_n·v + b_n."""

    __slots__ = ()

    def __call__(self, vector: Any) -> Symbol:
        return self.trace.input_product(self.node.leaf[1], vector)


class Recurrent(Symbol):
    """``r.n``: R_n·h; called with a vector ``v`` as ``r.n(v)``: R_n·v."""

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
