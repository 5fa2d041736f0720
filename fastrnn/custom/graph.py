"""Expression graph of a cell's step; equal nodes are shared, and nodes are simplified on construction.

A node stands for one number for each batch row and hidden unit. Nodes are combined by the operations in the table of
`operations`, and by products with matrices: op ``"product"`` of `leaf` ("w", matrix), in gradients ``"transposed"``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from fastrnn.custom.operations import COMMUTATIVE, OPERATIONS

Leaf = tuple[str, int]


@dataclass(frozen=True, eq=False)
class Node:
    """Result of an operation; for op ``"leaf"`` an argument of the step (`leaf`), for ``"constant"`` a number."""

    graph: Graph
    op: str
    args: tuple[Node, ...] = ()
    value: float = 0.0
    leaf: Leaf = ("", 0)
    index: int = 0  # in order of construction; arguments have lower indices

    def _with(self, op: str, other: Node | float, swap: bool = False) -> Node:
        other = other if isinstance(other, Node) else self.graph.constant(other)
        return self.graph.make(op, other, self) if swap else self.graph.make(op, self, other)

    def __add__(self, other: Node | float) -> Node:
        return self._with("add", other)

    def __radd__(self, other: float) -> Node:
        return self._with("add", other, True)

    def __sub__(self, other: Node | float) -> Node:
        return self._with("sub", other)

    def __rsub__(self, other: float) -> Node:
        return self._with("sub", other, True)

    def __mul__(self, other: Node | float) -> Node:
        return self._with("mul", other)

    def __rmul__(self, other: float) -> Node:
        return self._with("mul", other, True)

    def __truediv__(self, other: Node | float) -> Node:
        return self._with("div", other)

    def __rtruediv__(self, other: float) -> Node:
        return self._with("div", other, True)

    def __neg__(self) -> Node:
        return self.graph.make("neg", self)

    @property
    def is_constant(self) -> bool:
        return self.op == "constant"


@dataclass
class Graph:
    """Factory of nodes that creates each distinct node once."""

    _known: dict[tuple, Node] = field(default_factory=dict)

    def _node(self, op: str, args: tuple[Node, ...] = (), value: float = 0.0, leaf: Leaf = ("", 0)) -> Node:
        # repr distinguishes -0.0 from 0.0, and is equal for all NaNs
        key = (op, tuple(a.index for a in args), repr(value), leaf)
        if key not in self._known:
            self._known[key] = Node(self, op, args, value, leaf, len(self._known))
        return self._known[key]

    def constant(self, value: float) -> Node:
        return self._node("constant", value=float(value))

    def leaf(self, kind: str, index: int) -> Node:
        return self._node("leaf", leaf=(kind, index))

    def product(self, matrix: int, vector: Node) -> Node:
        """Return R_k·vector, with matrix number k."""
        return self._node("product", (vector,), leaf=("w", matrix))

    def transposed(self, group: int, gradients: tuple[Node, ...]) -> Node:
        """Return Σ R_kᵀ·gradient over the matrices that multiply vector `group`; zero if all gradients are zero."""
        if all(g.is_constant and g.value == 0 for g in gradients):
            return self.constant(0)
        return self._node("transposed", gradients, leaf=("w", group))

    def again(self, node: Node, args: tuple[Node, ...]) -> Node:
        """Return the same operation on other arguments."""
        if node.op == "product":
            return self.product(node.leaf[1], *args)
        if node.op == "transposed":
            return self.transposed(node.leaf[1], args)
        return self.make(node.op, *args)

    def make(self, op: str, *args: Node) -> Node:
        row = OPERATIONS[op]
        if len(args) != row.arguments:
            raise TypeError(f"{op}: expected {row.arguments} arguments, got {len(args)}")
        if all(a.is_constant for a in args):
            return self.constant(row.of_numbers(*(a.value for a in args)))
        simple = self._simplified(op, args)
        if simple is not None:
            return simple
        if op in COMMUTATIVE:
            args = tuple(sorted(args, key=lambda a: a.index))
        return self._node(op, args)

    def _simplified(self, op: str, args: tuple[Node, ...]) -> Node | None:
        """Return an equivalent simpler node or None; 0·x is 0, so that a zero gradient cannot become NaN."""
        a, b = args[0], args[-1]
        zero_a, zero_b = (n.is_constant and n.value == 0 for n in (a, b))
        one_a, one_b = (n.is_constant and n.value == 1 for n in (a, b))
        if op == "add" and (zero_a or zero_b):
            return b if zero_a else a
        if op == "add" and a.op == b.op == "mean":  # one sum instead of two
            return self.make("mean", self.make("add", a.args[0], b.args[0]))
        if op == "sub" and zero_b:
            return a
        if op == "sub" and zero_a:
            return self.make("neg", b)
        if op == "sub" and a is b:
            return self.constant(0)
        if op == "mul" and (zero_a or zero_b):
            return self.constant(0)
        if op == "mul" and (one_a or one_b):
            return b if one_a else a
        if op == "div" and (one_b or zero_a):
            return a
        if op == "neg" and a.op == "neg":
            return a.args[0]
        if op == "add" and b.op == "neg":
            return self.make("sub", a, b.args[0])
        if op in ("where_less", "where_at_most") and args[2] is args[3]:
            return args[2]
        return None


def reached(roots: Iterable[Node], stop: Callable[[Node], bool] = lambda node: False) -> list[Node]:
    """Return all nodes that `roots` depend on, arguments first, without the arguments of nodes where `stop` is true."""
    nodes: dict[int, Node] = {}
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node.index not in nodes:
            nodes[node.index] = node
            if not stop(node):
                stack += node.args
    return [nodes[k] for k in sorted(nodes)]


def substituted(roots: Iterable[Node], others: Mapping[int, Node]) -> tuple[Node, ...]:
    """Return `roots` with the nodes of the given indices replaced."""
    roots = tuple(roots)
    done: dict[int, Node] = {}
    for node in reached(roots, lambda n: n.index in others):  # arguments first
        if node.index in others:
            done[node.index] = others[node.index]
        elif node.args:
            done[node.index] = node.graph.again(node, tuple(done[a.index] for a in node.args))
        else:
            done[node.index] = node
    return tuple(done[root.index] for root in roots)
