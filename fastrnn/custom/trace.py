"""Runs a cell's step on symbols, which write down what is done to them."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastrnn.custom import autograd_functions, remedies
from fastrnn.custom.graph import Graph, Node
from fastrnn.custom.names import Names
from fastrnn.custom.operations import OPERATIONS
from fastrnn.custom.repeatable import same_twice
from fastrnn.custom.source_lines import place
from fastrnn.custom.special import SPECIAL
from fastrnn.custom.structure import Traced, structure
from fastrnn.custom.symbols import BY_FUNCTION, Condition, Recurrent, Symbol


class CellError(TypeError):
    """Error of a step that cannot be made into kernels, with the line and the reason."""


_COMPARISONS = {torch.lt: "<", torch.le: "<=", torch.gt: ">", torch.ge: ">="}
#: What may be used in a step, for messages.
NAMES = frozenset(
    [name for name, row in OPERATIONS.items() if row.torch]
    + ["clamp", "square", "pow", "reciprocal", "where", "mean", "sum", "var", "logsigmoid", "sign"]
)


class Trace:
    """Turns calls on symbols into nodes of `graph`."""

    def __init__(self, step: Callable, matrices: int = 0) -> None:
        self.step, self.graph = step, Graph()
        self.grad_enabled = torch.is_grad_enabled()
        self.matrices = matrices
        self.begin()

    def begin(self) -> None:
        """Forget the products of an earlier run of the step."""
        #: by matrix, or copy of one: the vector that it multiplies
        self.multiplied: dict[int, Node] = {}
        #: matrices that multiply one more vector; the k-th copy has the number `matrices` + k
        self.copies: list[int] = []
        #: by matrix: which of its copies, or itself, each call multiplies with
        self.calls: dict[int, list[int]] = {}

    def error(self, why: str) -> CellError:
        return CellError(f"{place(self.step)}: {why}")

    def unknown(self, name: str) -> CellError:
        """Return the error for a name that is no operation, with the remedy."""
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
        calls = self.calls.setdefault(matrix, [])
        taken = next((k for k in calls if self.multiplied[k] is node), None)
        if taken is None and not calls:
            taken = matrix
        elif taken is None:
            taken = self.matrices + len(self.copies)
            self.copies.append(matrix)
        self.multiplied[taken] = node
        calls.append(taken)
        return Symbol(self, self.graph.product(taken, node))

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
    """Runs the step once. Returns the new states, in order."""
    step = trace.step
    trace.begin()
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
    trace = Trace(step, len(gates) + len(matrices))
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
    names = [f"r.{name}" for name in (*gates, *matrices)]
    names += [names[k] for k in trace.copies]
    try:
        found = structure(trace.graph, new, len(gates), names, trace.multiplied)
    except ValueError as error:
        raise CellError(f"{place(step)}: {error}") from None
    return replace(found, copies=tuple(trace.copies), calls={k: tuple(calls) for k, calls in trace.calls.items()})
