"""The gradient of a step, in reverse mode on its graph, and what of the forward pass has to be kept for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from fastrnn.custom.graph import Graph, Leaf, Node, reached, substituted
from fastrnn.custom.operations import OPERATIONS, REDUCTIONS
from fastrnn.custom.structure import Traced


@dataclass(frozen=True)
class Gradients:
    """∂L/∂ each argument of the step, from the leaves ("ds", k), the gradients of the new states, and ("dm", 0), that
    of the vector which a second product multiplies. `r` and `q`: of the first and the second product.
    """

    x: tuple[Node, ...]
    r: tuple[Node, ...]
    q: tuple[Node, ...]
    s: tuple[Node, ...]
    p: tuple[Node, ...]

    def all(self) -> tuple[Node, ...]:
        return self.x + self.r + self.q + self.s + self.p


def differentiate(step: Traced, gates: int, parameters: int) -> Gradients:
    """Gradients of a step. Those of the second product's result do not depend on ("dm", 0). A step with stages has
    its products in the graph, and so has its gradient.
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
        if node.index in groups:  # all that it was multiplied to is behind us
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
    """Which of `nodes`, given with their arguments first, depend on the gradients of the new states."""
    found: set[int] = set()
    for node in nodes:
        if node.leaf[0] in ("ds", "dm") or any(a.index in found for a in node.args):
            found.add(node.index)
    return found


def to_keep(step: Traced, gradients: Gradients) -> tuple[Node, ...]:
    """The fewest values of the forward pass from which, with what there is anyhow (the states before and after the
    step, the parameters, the vectors of further products, sums over the units), the gradients can be computed: a
    minimum cut between what is lost, the products, and what is needed.

    Computing something again is taken to be cheaper than memory, whatever it is: a vector's tanh takes as long as
    reading it from the second cache. Of two ways to keep as few values, that with less to compute again is taken.
    """
    nodes = reached(gradients.all())
    backward = backward_nodes(nodes)
    needed = {a.index: a for n in nodes if n.index in backward for a in n.args if a.index not in backward}
    needed |= {n.index: n for n in gradients.all() if n.index not in backward}
    there = {n.index for n in step.new if n.args}
    there |= {v.index for v in step.vectors}
    there |= {n.index for n in reached(step.new) if n.op in REDUCTIONS}
    flow = _Flow()
    for node in reached(needed.values(), lambda n: n.index in there or n.op == "product"):
        free = node.index in there or node.is_constant or node.leaf[0] in ("s", "p")
        if free:
            continue  # nothing has to come through it
        inside, outside = ("in", node.index), ("out", node.index)
        flow.add(inside, outside, 1)
        lost = node.op == "product" or node.leaf[0] in ("x", "r", "q")
        if lost:
            flow.add("lost", inside, None)
        for a in () if lost else node.args:
            flow.add(("out", a.index), inside, None)
        if node.index in needed:
            flow.add(outside, "needed", None)
    cut = flow.cut("lost", "needed")
    return tuple(n for n in reached(needed.values()) if n.index in cut)


class _Flow:
    """Edmonds and Karp's maximum flow, for the cut nearest to its end. No capacity: None."""

    def __init__(self) -> None:
        self.rest: dict[object, dict[object, float]] = {}

    def add(self, a: object, b: object, capacity: int | None) -> None:
        self.rest.setdefault(a, {})[b] = float("inf") if capacity is None else capacity
        self.rest.setdefault(b, {}).setdefault(a, 0)

    def _path(self, start: object, end: object) -> list[tuple[object, object]] | None:
        came: dict[object, object] = {start: start}
        waiting = deque([start])
        while waiting:
            a = waiting.popleft()
            for b, rest in self.rest.get(a, {}).items():
                if rest > 0 and b not in came:
                    came[b] = a
                    waiting.append(b)
        if end not in came:
            return None
        path, b = [], end
        while b != start:
            path.append((came[b], b))
            b = came[b]
        return path

    def cut(self, start: object, end: object) -> set[int]:
        """Nodes whose inner edge is cut."""
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
        waiting = deque([end])
        while waiting:
            for a in into.get(waiting.popleft(), []):
                if a not in reaches:
                    reaches.add(a)
                    waiting.append(a)
        return {
            node[1]
            for node in self.rest
            if isinstance(node, tuple) and node[0] == "in" and node not in reaches and ("out", node[1]) in reaches
        }


def renamed(graph: Graph, roots: Iterable[Node], leaves: dict[int, Leaf]) -> tuple[Node, ...]:
    """`roots` with the nodes of these indices replaced by leaves."""
    return substituted(roots, {index: graph.leaf(*leaf) for index, leaf in leaves.items()})
