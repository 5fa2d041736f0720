"""Conversion of graph expressions to C++ statements."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastrnn.custom.graph import Leaf, Node, reached
from fastrnn.custom.operations import OPERATIONS


def number(value: float, cast: str = "C") -> str:
    if value != value:
        return f'V({cast}(__builtin_nan("")))'
    if value in (float("inf"), -float("inf")):
        return f"V({cast}({'-' if value < 0 else ''}__builtin_inf()))"
    return f"V({cast}({value!r}))"


class Writer:
    """Statements that compute some roots, each node once.

    A sum of a product becomes a fused multiply-add, a·b + c with one rounding.
    """

    def __init__(self, roots: Sequence[Node], leaf: Callable[[Leaf], str]) -> None:
        self.leaf = leaf
        self.nodes = reached(roots)
        self.uses: dict[int, int] = {}
        for node in self.nodes:
            for a in node.args:
                self.uses[a.index] = self.uses.get(a.index, 0) + 1
        for root in roots:
            self.uses[root.index] = self.uses.get(root.index, 0) + 1
        self.inlined = {a.index for n in self.nodes for a in [self._fused(n)] if a is not None}

    def _fused(self, node: Node) -> Node | None:
        """Return the product that is fused into a sum, or None."""
        if node.op not in ("add", "sub"):
            return None
        for a in node.args:
            if a.op == "mul" and self.uses[a.index] == 1:
                return a
        return None

    def name(self, node: Node) -> str:
        if node.is_constant:
            return number(node.value)
        if node.op == "leaf":
            return self.leaf(node.leaf)
        return f"t{node.index}"

    def expression(self, node: Node) -> str:
        product = self._fused(node)
        if product is None:
            return OPERATIONS[node.op].cpp.format(*map(self.name, node.args))
        a, b = map(self.name, product.args)
        left, right = node.args
        if node.op == "add":
            return f"fma({a}, {b}, {self.name(right if left is product else left)})"
        if left is product:
            return f"fma({a}, {b}, -{self.name(right)})"
        return f"fma(-{a}, {b}, {self.name(left)})"

    def lines(self) -> list[str]:
        return [
            f"    const V {self.name(node)} = {self.expression(node)};"
            for node in self.nodes
            if node.args and node.index not in self.inlined
        ]
