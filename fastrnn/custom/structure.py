"""How a traced step's products follow one another, and with which of the drivers it can run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fastrnn.custom.graph import Graph, Node, reached, substituted
from fastrnn.custom.operations import REDUCTIONS


@dataclass(frozen=True)
class Group:
    """A vector and the matrices that it is multiplied with."""

    vector: Node
    matrices: tuple[int, ...]


@dataclass(frozen=True)
class Traced:
    """A step as a graph. Leaves: ("x", g), ("s", k), ("p", k), and of a step without stages ("r", g) for R_g·h and
    ("q", g) for R_g·vector.

    A step has stages if it multiplies more than one vector besides h, or has sums over the units: then its products
    are nodes of the graph. Else products of h come first, and those of the one other vector behind them.

    Attributes:
        new: the new states.
        vector: what the second product of a step without stages multiplies, or None.
        first, second: the matrices that multiply h, and those that multiply something else.
        staged: whether the step has stages.
        groups: of a step with stages, its products: h's first if there are any; the matrices lie in this order.
        copies: a matrix that multiplies several vectors counts once for each; the numbers behind those of all matrices
            are such copies, of the matrices here.
        calls: by matrix, with which of its copies, or itself, each call of it in the step multiplies.
    """

    graph: Graph
    new: tuple[Node, ...]
    vector: Node | None
    first: tuple[int, ...]
    second: tuple[int, ...]
    staged: bool = False
    groups: tuple[Group, ...] = ()
    copies: tuple[int, ...] = ()
    calls: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    @property
    def vectors(self) -> tuple[Node, ...]:
        """What is multiplied besides h."""
        if self.staged:
            return tuple(group.vector for group in self.groups if group.vector.leaf != ("s", 0))
        return () if self.vector is None else (self.vector,)


def structure(
    graph: Graph, new: tuple[Node, ...], gates: int, names: Sequence[str], called: Mapping[int, Node]
) -> Traced:
    """Sorts the products of a step whose ("r", g) are products of h, and whose others are nodes.

    Args:
        new: the new states.
        gates: how many matrices belong to a gate; there may be more.
        names: of the matrices.
        called: the matrices that multiply another vector than h, whether or not a state depends on them.

    Raises:
        ValueError: a product is of no use, or a matrix multiplies h and another vector.
    """
    nodes = reached(new)
    first = tuple(sorted(n.leaf[1] for n in nodes if n.leaf[0] == "r"))
    products = [n for n in nodes if n.op == "product"]
    for k in set(called) - {n.leaf[1] for n in products}:
        raise ValueError(f"{names[k]}: a product that no new state depends on")
    for k in set(called) & set(first):
        raise ValueError(f"{names[k]}: expected either R·h or the product with a vector, got both")
    vectors = {n.args[0].index for n in products}
    chained = any(n.op == "product" for n in reached(p.args[0] for p in products))
    more = any(k >= gates for k in (*first, *called))
    if len(vectors) > 1 or chained or more or any(n.op in REDUCTIONS for n in nodes):
        return _staged(graph, new, first)
    second = tuple(sorted(n.leaf[1] for n in products))
    found = substituted(new, {n.index: graph.leaf("q", n.leaf[1]) for n in products})
    return Traced(graph, found, products[0].args[0] if products else None, first, second)


def _staged(graph: Graph, new: Iterable[Node], first: tuple[int, ...]) -> Traced:
    h = graph.leaf("s", 0)
    found = substituted(new, {graph.leaf("r", k).index: graph.product(k, h) for k in first})
    matrices: dict[int, list[int]] = {h.index: list(first)} if first else {}
    vectors = {h.index: h}
    for node in reached(found):
        if node.op == "product" and node.args[0] is not h:
            vectors[node.args[0].index] = node.args[0]
            matrices.setdefault(node.args[0].index, []).append(node.leaf[1])
    groups = tuple(Group(vectors[index], tuple(sorted(which))) for index, which in matrices.items())
    second = tuple(k for group in groups if group.vector is not h for k in group.matrices)
    return Traced(graph, found, None, first, second, True, groups)
