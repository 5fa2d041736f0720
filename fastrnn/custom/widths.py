"""Widths of a step's values: the hidden size H, or the input size I for the raw input and what is combined with it.

Kernels know vectors of H units only. A value of width I is therefore a number of blocks of H units, the last one padded
with zeros, and a matrix with I rows or columns a grid of matrices (H, H).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from fastrnn.custom.graph import Node, reached
from fastrnn.custom.operations import OPERATIONS, REDUCTIONS
from fastrnn.custom.stages import of_rows

_UNITS, _INPUT = "units", "input"
Tiles = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Shape:
    """True for each side of a matrix that has the width of the input: its rows (the product), its columns."""

    rows: bool = False
    columns: bool = False

    @property
    def square(self) -> bool:
        """True for a matrix (H, H)."""
        return not self.rows and not self.columns


@dataclass(frozen=True)
class Widths:
    """The values of a step that have the width of the input, by index of their node, and the shape of each matrix."""

    input: frozenset[int] = frozenset()
    shapes: Mapping[int, Shape] = field(default_factory=dict)


class _Classes:
    """Sets of things that have the same width."""

    def __init__(self) -> None:
        self.parent: dict[Hashable, Hashable] = {}

    def find(self, key: Hashable) -> Hashable:
        while self.parent.get(key, key) != key:
            key = self.parent[key]
        return key

    def unite(self, a: Hashable, b: Hashable, problem: str = "") -> None:
        """Raise ValueError with `problem` if the two have different widths."""
        a, b = self.find(a), self.find(b)
        if {a, b} == {_UNITS, _INPUT}:
            raise ValueError(problem)
        if a in (_UNITS, _INPUT):
            a, b = b, a
        if a != b:
            self.parent[a] = b


def widths(new: Iterable[Node], raw: int, shapes: Mapping[int, Shape], matrix: Callable[[int], int]) -> Widths:
    """Infer the widths of a step's values from what they are combined with.

    Args:
        new: the new states.
        raw: the index of the leaf "x" that is the raw input.
        shapes: the matrices whose shapes are known; others are (H, H) if nothing says otherwise.
        matrix: maps the number of a product to that of its matrix.

    Raises:
        ValueError: values of different widths meet.
    """
    roots = tuple(new)
    nodes, classes = reached(roots), _Classes()
    shared = of_rows(nodes)
    for k, shape in shapes.items():
        classes.unite(("rows", k), _INPUT if shape.rows else _UNITS)
        classes.unite(("columns", k), _INPUT if shape.columns else _UNITS)
    for node in nodes:
        kind, index = node.leaf
        if node.op == "leaf" and kind == "r":
            classes.unite(node.index, ("rows", matrix(index)))
            classes.unite(("columns", matrix(index)), _UNITS, "a matrix multiplies h and the raw input")
        elif node.op == "leaf":
            classes.unite(node.index, _INPUT if (kind, index) == ("x", raw) else _UNITS)
        elif node.op == "product":
            classes.unite(node.index, ("rows", matrix(index)))
            problem = "a matrix multiplies vectors of both widths, or x.n(v) one of H or r.n(v) one of I values"
            classes.unite(node.args[0].index, ("columns", matrix(index)), problem)
        elif node.op in REDUCTIONS:
            classes.unite(node.args[0].index, _UNITS, f"{node.op} is over the raw input or a value of its width")
        else:
            for a in node.args:
                if a.index not in shared:
                    classes.unite(node.index, a.index, f"{node.op} combines values of both widths")
    for root in roots:
        if root.index not in shared:
            classes.unite(root.index, _UNITS, "a new state has the width of the raw input")
    wide = frozenset(n.index for n in nodes if classes.find(n.index) == _INPUT)
    numbers = {matrix(n.leaf[1]) for n in nodes if n.op == "product" or n.leaf[0] == "r"}
    found = {k: Shape(*(classes.find((side, k)) == _INPUT for side in ("rows", "columns"))) for k in numbers}
    return Widths(wide, found)


@dataclass(frozen=True)
class Blocks:
    """A step in which every value has H units.

    Attributes:
        new: the new states.
        tiles: the numbers of the products that replace a product, by its number; rows first. The first one keeps its
            number.
        base: the product that each product with a new number belongs to.
    """

    new: tuple[Node, ...]
    tiles: Mapping[int, Tiles]
    base: Mapping[int, int]


def in_blocks(
    new: Iterable[Node],
    found: Widths,
    blocks: int,
    columns: Mapping[int, int],
    shape: Callable[[int], Shape],
    free: int,
) -> Blocks:
    """Divide the values of the input's width into blocks of H units.

    Args:
        new: the new states.
        found: the widths.
        blocks: the number of blocks.
        columns: the place of each leaf "x" in the kernels' input; the raw input's blocks lie side by side.
        shape: the shape of the matrix of a product, by its number.
        free: the first number that no product has.
    """
    roots = tuple(new)
    tiles: dict[int, Tiles] = {}
    base: dict[int, int] = {}

    def tiles_of(number: int) -> Tiles:
        if number not in tiles:
            rows, width = (blocks if side else 1 for side in (shape(number).rows, shape(number).columns))
            first = free + len(base)
            others = range(first, first + rows * width - 1)
            base.update(dict.fromkeys(others, number))
            flat = (number, *others)
            tiles[number] = tuple(flat[k * width : (k + 1) * width] for k in range(rows))
        return tiles[number]

    done: dict[int, tuple[Node, ...]] = {}
    for node in reached(roots):
        graph, (kind, index) = node.graph, node.leaf
        count = blocks if node.index in found.input else 1
        args = [done[a.index] for a in node.args]
        if node.op == "product" and node.args[0].leaf == ("s", 0):
            done[node.index] = tuple(graph.leaf("r", row[0]) for row in tiles_of(index))
        elif node.op == "product":
            sums = [[graph.product(t, v) for t, v in zip(row, args[0], strict=True)] for row in tiles_of(index)]
            done[node.index] = tuple(_sum(terms) for terms in sums)
        elif node.op == "leaf" and kind == "x":
            done[node.index] = tuple(graph.leaf("x", columns[index] + k) for k in range(count))
        elif node.op == "leaf" and kind == "r":
            done[node.index] = tuple(graph.leaf("r", row[0]) for row in tiles_of(index))
        elif node.args:
            parts = [tuple(a[k if len(a) > 1 else 0] for a in args) for k in range(count)]
            done[node.index] = tuple(graph.again(node, part) for part in parts)
        else:
            done[node.index] = (node,)
    return Blocks(tuple(done[root.index][0] for root in roots), tiles, base)


def _sum(terms: list[Node]) -> Node:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def finite_in_padding(new: Iterable[Node], found: Widths) -> bool:
    """Return True if values of the input's width, and their derivatives, are finite where the raw input is padded.

    There the raw input and all products are zero. Values that all units of a row share are taken to be 1.
    """
    nodes = reached(new)
    shared = of_rows(nodes)
    values: dict[int, float] = {}

    def value(node: Node) -> float:
        if node.is_constant:
            return node.value
        if node.index in shared:
            return 1.0
        if not node.args or node.op == "product":
            return 0.0
        return OPERATIONS[node.op].of_numbers(*(values[a.index] for a in node.args))

    try:
        for node in nodes:
            if node.index in found.input or node.is_constant or node.index in shared:
                values[node.index] = value(node)
        for node in nodes:
            if node.index not in found.input or not node.args or node.op == "product":
                continue
            parts = OPERATIONS[node.op].gradient(node, node.args, node.graph.constant(1))
            for one in reached(part for part in parts if part is not None):
                values.setdefault(one.index, value(one))
        return all(map(math.isfinite, values.values()))
    except (ValueError, OverflowError, ZeroDivisionError):  # log(-1)
        return False
