"""Gradient of a step, in reverse mode on its graph, and the forward values to save for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from fastrnn.custom.graph import Graph, Leaf, Node, reached, substituted
from fastrnn.custom.operations import OPERATIONS, REDUCTIONS
from fastrnn.custom.structure import Traced


@dataclass(frozen=True)
class Gradients:
    """∂L/∂ each argument of the step, as functions of two kinds of leaves.

    ("ds", k) are the gradients of the new states, ("dm", 0) that of the vector which a second product multiplies. `r`
    and `q` are the gradients of the first and the second product.
    """

    x: tuple[Node, ...]
    r: tuple[Node, ...]
    q: tuple[Node, ...]
    s: tuple[Node, ...]
    p: tuple[Node, ...]

    def all(self) -> tuple[Node, ...]:
        return self.x + self.r + self.q + self.s + self.p


def differentiate(step: Traced, gates: int, parameters: int) -> Gradients:
    """Return the gradients of a step.

    Those of the second product's result do not depend on ("dm", 0). A step with stages has its products in the graph,
    and so has its gradient.
    """
    graph, new = step.graph, step.new
    sums: dict[int, Node] = {}

    def add(node: Node, gradient: Node | None) -> None:
        if gradient is not None and not node.is_constant:
            before = sums.get(node.index)
            sums[node.index] = gradient if before is None else before + gradient

    nodes = reached([*new, *([] if step.vector is None else [step.vector])])
    for k, node in enumerate(new):
        add(node, graph.leaf("ds", k))
    if step.vector is not None:
        add(step.vector, graph.leaf("dm", 0))
    products = {n.leaf[1]: n for n in nodes if n.op == "product"}  # by matrix
    groups = {group.vector.index: (j, group.matrices) for j, group in enumerate(step.groups)}
    for node in reversed(nodes):
        if node.index in groups:  # all uses of its products have been handled
            j, matrices = groups[node.index]
            add(node, graph.transposed(j, tuple(sums.get(products[k].index, graph.constant(0)) for k in matrices)))
        gradient = sums.get(node.index)
        if gradient is None or not node.args or (gradient.is_constant and gradient.value == 0) or node.op == "product":
            continue
        for argument, part in zip(node.args, OPERATIONS[node.op].gradient(node, node.args, gradient), strict=True):
            add(argument, part)

    def of(kind: str, which: Iterable[int]) -> tuple[Node, ...]:
        return tuple(sums.get(graph.leaf(kind, k).index, graph.constant(0)) for k in which)

    def of_products(kind: str, which: tuple[int, ...]) -> tuple[Node, ...]:
        if not step.staged:
            return of(kind, which)
        return tuple(sums.get(products[k].index, graph.constant(0)) for k in which)

    x, s, p = of("x", range(gates)), of("s", range(len(new))), of("p", range(parameters))
    return Gradients(x, of_products("r", step.first), of_products("q", step.second), s, p)


def backward_nodes(nodes: Iterable[Node]) -> set[int]:
    """Return the indices of those `nodes` (arguments first) that depend on the gradients of the new states."""
    dependent: set[int] = set()
    for node in nodes:
        if node.leaf[0] in ("ds", "dm") or any(a.index in dependent for a in node.args):
            dependent.add(node.index)
    return dependent


def values_to_save(step: Traced, gradients: Gradients) -> tuple[Node, ...]:
    """Return the fewest forward values from which the gradients can be computed, by a minimum cut.

    Always available in backward are the states before and after the step, the parameters, the vectors of further
    products, and sums over the units. The cut separates the lost values, the products, from the needed ones.

    Recomputing is assumed to be cheaper than memory for every operation: the tanh of a SIMD vector takes as long as
    reading it from the L2 cache. Among cuts of equal size, the one with the least recomputation is returned.
    """
    nodes = reached(gradients.all())
    backward = backward_nodes(nodes)
    needed = {a.index: a for n in nodes if n.index in backward for a in n.args if a.index not in backward}
    needed |= {n.index: n for n in gradients.all() if n.index not in backward}
    available = {n.index for n in step.new if n.args}
    available |= {v.index for v in step.vectors}
    available |= {n.index for n in reached(step.new) if n.op in REDUCTIONS}
    flow = _Flow()
    for node in reached(needed.values(), lambda n: n.index in available or n.op == "product"):
        free = node.index in available or node.is_constant or node.leaf[0] in ("s", "p")
        if free:
            continue  # known without a path through it
        into, out_of = ("in", node.index), ("out", node.index)
        flow.add(into, out_of, 1)
        lost = node.op == "product" or node.leaf[0] in ("x", "r", "q")
        if lost:
            flow.add("lost", into, None)
        for a in () if lost else node.args:
            flow.add(("out", a.index), into, None)
        if node.index in needed:
            flow.add(out_of, "needed", None)
    cut = flow.cut("lost", "needed")
    return tuple(n for n in reached(needed.values()) if n.index in cut)


class _Flow:
    """Maximum flow by Edmonds and Karp, for the minimum cut nearest to the sink. Capacity None means unlimited."""

    def __init__(self) -> None:
        self.rest: dict[object, dict[object, float]] = {}

    def add(self, a: object, b: object, capacity: int | None) -> None:
        self.rest.setdefault(a, {})[b] = float("inf") if capacity is None else capacity
        self.rest.setdefault(b, {}).setdefault(a, 0)

    def _path(self, start: object, end: object) -> list[tuple[object, object]] | None:
        previous: dict[object, object] = {start: start}
        queue = deque([start])
        while queue:
            a = queue.popleft()
            for b, rest in self.rest.get(a, {}).items():
                if rest > 0 and b not in previous:
                    previous[b] = a
                    queue.append(b)
        if end not in previous:
            return None
        path, b = [], end
        while b != start:
            path.append((previous[b], b))
            b = previous[b]
        return path

    def cut(self, start: object, end: object) -> set[int]:
        """Return the nodes whose inner edge is cut."""
        while path := self._path(start, end):
            amount = min(self.rest[a][b] for a, b in path)
            for a, b in path:
                self.rest[a][b] -= amount
                self.rest[b][a] += amount
        into: dict[object, list[object]] = {}
        for a, edges in self.rest.items():
            for b, rest in edges.items():
                if rest > 0:
                    into.setdefault(b, []).append(a)
        reaches = {end}
        queue = deque([end])
        while queue:
            for a in into.get(queue.popleft(), []):
                if a not in reaches:
                    reaches.add(a)
                    queue.append(a)
        return {
            node[1]
            for node in self.rest
            if isinstance(node, tuple) and node[0] == "in" and node not in reaches and ("out", node[1]) in reaches
        }


def renamed(graph: Graph, roots: Iterable[Node], leaves: dict[int, Leaf]) -> tuple[Node, ...]:
    """Return `roots` with leaves in place of the nodes with these indices."""
    return substituted(roots, {index: graph.leaf(*leaf) for index, leaf in leaves.items()})
