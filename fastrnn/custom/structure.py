"""Arrangement of a traced step's products, which decides whether it needs the driver with stages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fastrnn.custom.graph import Graph, Node, reached, substituted
from fastrnn.custom.operations import REDUCTIONS


@dataclass(frozen=True)
class Group:
    """A vector and the matrices that multiply it."""

    vector: Node
    matrices: tuple[int, ...]


@dataclass(frozen=True)
class Traced:
    """A step as a graph.

    Leaves are ("x", g), ("s", k), ("p", k), and in a step without stages ("r", g) for R_g·h and ("q", g) for
    R_g·vector. A step has stages if it multiplies more than one vector besides h, or has sums over the units; its
    products are then nodes of the graph. Otherwise products of h come first, then those of the one other vector.

    Attributes:
        new: the new states.
        vector: the vector of the second product of a step without stages, or None.
        first, second: the matrices that multiply h, and those that multiply another vector.
        staged: True if the step has stages.
        groups: the products of a step with stages, h's first if there are any; the matrices are stored in this order.
    """

    graph: Graph
    new: tuple[Node, ...]
    vector: Node | None
    first: tuple[int, ...]
    second: tuple[int, ...]
    staged: bool = False
    groups: tuple[Group, ...] = ()

    @property
    def vectors(self) -> tuple[Node, ...]:
        """The vectors that are multiplied besides h."""
        if self.staged:
            return tuple(group.vector for group in self.groups if group.vector.leaf != ("s", 0))
        return () if self.vector is None else (self.vector,)


def structure(graph: Graph, new: tuple[Node, ...], gates: int) -> Traced:
    """Arrange the products of a step in which ("r", g) are products of h, and all others are nodes.

    Args:
        new: the new states.
        gates: the number of matrices that belong to a gate; there may be more.
    """
    nodes = reached(new)
    first = tuple(sorted(n.leaf[1] for n in nodes if n.leaf[0] == "r"))
    products = [n for n in nodes if n.op == "product"]
    called = [n.leaf[1] for n in products]
    vectors = {n.args[0].index for n in products}
    chained = any(n.op == "product" for n in reached(p.args[0] for p in products))
    more = any(k >= gates for k in (*first, *called))
    if len(vectors) > 1 or chained or more or any(n.op in REDUCTIONS for n in nodes):
        return _staged(graph, new, first)
    second = tuple(sorted(called))
    states = substituted(new, {n.index: graph.leaf("q", n.leaf[1]) for n in products})
    return Traced(graph, states, products[0].args[0] if products else None, first, second)


def _staged(graph: Graph, new: Iterable[Node], first: tuple[int, ...]) -> Traced:
    h = graph.leaf("s", 0)
    states = substituted(new, {graph.leaf("r", k).index: graph.product(k, h) for k in first})
    matrices: dict[int, list[int]] = {h.index: list(first)} if first else {}
    vectors = {h.index: h}
    for node in reached(states):
        if node.op == "product" and node.args[0] is not h:
            vectors[node.args[0].index] = node.args[0]
            matrices.setdefault(node.args[0].index, []).append(node.leaf[1])
    groups = tuple(Group(vectors[index], tuple(sorted(which))) for index, which in matrices.items())
    second = tuple(k for group in groups if group.vector is not h for k in group.matrices)
    return Traced(graph, states, None, first, second, True, groups)
