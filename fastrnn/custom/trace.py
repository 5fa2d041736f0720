"""Tracing of a cell's step: it runs on symbols that record the operations on them."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn.custom import autograd_functions, remedies
from fastrnn.custom.graph import Graph, Node
from fastrnn.custom.names import Names
from fastrnn.custom.operations import OPERATIONS
from fastrnn.custom.recorded import Recorded, recorded
from fastrnn.custom.repeatable import same_twice
from fastrnn.custom.source_lines import place
from fastrnn.custom.special import SPECIAL
from fastrnn.custom.symbols import BY_FUNCTION, Condition, Gate, Recurrent, Symbol


class CellError(TypeError):
    """Error in a step that cannot be compiled into kernels, with the source line and the reason.

    Example:
        >>> try:
        ...     @fastrnn.cell(gates="u")
        ...     def bad(x, r, s):
        ...         return torch.fft.fft(x.u + r.u)
        ... except fastrnn.CellError as error:
        ...     print("cannot be compiled")
        cannot be compiled
    """


_COMPARISONS = {torch.lt: "<", torch.le: "<=", torch.gt: ">", torch.ge: ">="}
#: Names of the operations available in a step, for messages.
NAMES = frozenset(
    [name for name, row in OPERATIONS.items() if row.torch]
    + ["clamp", "square", "pow", "reciprocal", "where", "mean", "sum", "var", "logsigmoid", "sign"]
)


class Trace:
    """Records calls on symbols as nodes of `graph`."""

    def __init__(self, step: Callable, matrices: int = 0, input_products: int | None = None) -> None:
        self.step, self.graph = step, Graph()
        self.grad_enabled = torch.is_grad_enabled()
        self.matrices = matrices
        #: the number of the first gate's input matrix; None in a cell without a raw input
        self.input_products = input_products
        self.begin()

    def begin(self) -> None:
        """Discard the products of an earlier run of the step."""
        #: by matrix or copy: the vector that it multiplies
        self.multiplied: dict[int, Node] = {}
        #: matrices that multiply a further vector; copy k has the number `matrices` + k
        self.copies: list[int] = []
        #: by matrix: the number of the copy, or of the matrix itself, that each call uses
        self.calls: dict[int, list[int]] = {}

    def error(self, problem: str) -> CellError:
        return CellError(f"{place(self.step)}: {problem}")

    def unknown(self, name: str) -> CellError:
        """Return the error for an unsupported operation, with the remedy."""
        problem = f"unsupported operation {name!r} on a value of the step"
        if name.endswith("_") and not name.endswith("__"):
            return self.error(f"{problem}: {remedies.IN_PLACE}")
        if name in remedies.BY_NAME:
            return self.error(f"{problem}: {remedies.BY_NAME[name]}")
        return self.error(f"{problem}; expected one of {', '.join(sorted(NAMES))}")

    def reject_function(self, name: str, argument: Any) -> None:
        """Raise if an argument of an `autograd.Function` with this name is a value of the step."""
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
        remedy = "weights for each unit are `parameters=`, other tensors `inputs=`"
        if value is None:
            what, remedy = "None", "is a `return` missing?"
        raise self.error(f"expected a value of the step or a number, got {what}; {remedy}")

    def operation(self, op: str, args: Sequence[Any]) -> Symbol:
        nodes = [self.node(a) for a in args]
        if op == "remainder" and not isinstance(args[0], (Symbol, Tensor)):  # torch has no derivative
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
        calls = self.calls.setdefault(matrix, [])
        number = next((k for k in calls if self.multiplied[k] is node), None)
        if number is None and not calls:
            number = matrix
        elif number is None:
            number = self.matrices + len(self.copies)
            self.copies.append(matrix)
        self.multiplied[number] = node
        calls.append(number)
        return Symbol(self, self.graph.product(number, node))

    def input_product(self, gate: int, vector: Any) -> Symbol:
        """Return W_gate·vector."""
        if self.input_products is None:
            raise self.error(remedies.RAW_INPUT)
        return self.product(self.input_products + gate, vector)

    def of_units(self, op: str, x: Any, dim: Any = None, keepdim: bool = False) -> Symbol:
        """Return a mean or sum over the units of each row."""
        if dim not in (-1, (-1,), [-1]) or keepdim is not True:
            raise self.error(f"{op}: expected {op}(dim=-1, keepdim=True), over the units, got dim={dim!r}")
        return self.operation(op, (x,))

    def compare(self, text: str, left: Any, right: Any) -> Condition:
        a, b = self.node(left), self.node(right)
        if text in (">", ">="):
            a, b = b, a
        return Condition(self, "where_less" if len(text) == 1 else "where_at_most", a, b)

    def call(self, func: Any, args: tuple, kwargs: dict) -> Any:
        if func in BY_FUNCTION and func not in SPECIAL and set(kwargs) <= {"input", "other"}:
            return self.operation(BY_FUNCTION[func], (*args, *(kwargs[k] for k in ("input", "other") if k in kwargs)))
        if func in _COMPARISONS and not kwargs:
            return self.compare(_COMPARISONS[func], *args)
        special = SPECIAL.get(func)
        if special is not None:
            try:
                return special(self, *args, **kwargs)
            except CellError:
                raise
            except TypeError as error:
                raise self.error(str(error)) from None
        raise self.unknown(getattr(func, "__name__", str(func)))


def _new_states(trace: Trace, arguments: Sequence[Names], states: Sequence[str]) -> tuple[Node, ...]:
    """Run the step once and return the new states, in order."""
    step = trace.step
    trace.begin()
    try:
        with autograd_functions.intercepted(trace.reject_function):
            result = step(*arguments)
    except CellError:
        raise
    except TypeError as error:  # raised by Python for an operator that symbols do not define
        remedy = ": use torch's functions instead of NumPy's" if "ufunc" in str(error) else ""
        raise CellError(f"{place(step, error)}: {error}{remedy}") from error
    if isinstance(result, dict):
        missing = [name for name in states if name not in result]
        if missing or len(result) != len(states):
            raise CellError(f"{place(step)}: expected the new states {', '.join(states)}, got {', '.join(result)}")
        result = tuple(result[name] for name in states)
    result = result if isinstance(result, (tuple, list)) else (result,)
    if len(result) != len(states):
        raise CellError(
            f"{place(step)}: expected {len(states)} new states ({', '.join(states)}), got {len(result)}: every "
            "state must be returned"
        )
    return tuple(trace.node(value) for value in result)


def traced(
    step: Callable,
    columns: Sequence[str],
    states: Sequence[str],
    parameters: Sequence[str],
    matrices: Sequence[str] = (),
    gates: int | None = None,
    raw_input: bool = False,
) -> Recorded:
    """Run `step` on symbols, twice, and return what it computes.

    Args:
        columns: the names in ``x``: gates, then inputs, then if `raw_input` that of the raw input.
        states, parameters, matrices: the other names.
        gates: the number of gates; None for all columns.

    Raises:
        CellError: the step is not supported, or the second run differs.
    """
    gates = len(columns) if gates is None else gates
    own = len(columns) + len(matrices)
    trace = Trace(step, own + (gates if raw_input else 0), own if raw_input else None)
    arguments = []
    for kind, names in (("x", columns), ("r", (*columns, *matrices)), ("s", states), ("p", parameters)):
        if kind == "p" and not parameters:
            continue
        symbols: list[Symbol] = []
        for k in range(len(names)):
            if kind == "r":
                symbols.append(Recurrent(trace, k))
            else:
                leaf = trace.graph.leaf(kind, k)
                symbols.append(Gate(trace, leaf) if kind == "x" and k < gates else Symbol(trace, leaf))
        arguments.append(Names(kind, names, symbols, trace.error))
    new = same_twice(lambda: _new_states(trace, arguments, states))
    if new is None:
        raise CellError(
            f"{place(step)}: expected a step that computes the same each time it is run, got different results, which "
            "kernels would repeat; pass noise and masks as `inputs=`, functions called at each call"
        )
    all_names = [f"r.{name}" for name in (*columns, *matrices)]
    all_names += [f"x.{name}" for name in columns[:gates]] if raw_input else []
    calls = {k: tuple(numbers) for k, numbers in trace.calls.items()}
    raw = len(columns) - 1 if raw_input else None
    try:
        return recorded(trace.graph, new, tuple(columns), gates, tuple(all_names), tuple(trace.copies), calls, raw)
    except ValueError as error:
        raise CellError(f"{place(step)}: {error}") from None
