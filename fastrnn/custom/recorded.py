"""A traced step before its products are arranged, and its arrangement for a width of the input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fastrnn.custom.graph import Graph, Node, reached
from fastrnn.custom.structure import Traced, structure
from fastrnn.custom.widths import Shape, Tiles, Widths, finite_in_padding, in_blocks, widths


@dataclass(frozen=True)
class Arranged:
    """A step for kernels, and how their weights and input are laid out.

    Attributes:
        traced: the step; its leaves "x" are numbered by `columns`.
        columns: the value of ``x`` in each block of H columns of the kernels' input; the raw input may occur several
            times.
        matrices: the matrix of each number.
        tiles: the numbers that stand for each product, by the product's number.
    """

    traced: Traced
    columns: tuple[int, ...]
    matrices: tuple[int, ...]
    tiles: Mapping[int, Tiles]


@dataclass(frozen=True)
class Recorded:
    """A step as its function computes it.

    Matrices are numbered: those of the recurrent products of all values of ``x``, then further ones, then in a cell
    with a raw input those of the input products. A product with a matrix that multiplies several vectors has for each
    further one a number after these.

    Attributes:
        new: the new states. Leaves are ("x", k), ("s", k), ("p", k) and ("r", k) for R_k·h.
        names: the values of ``x``, in order.
        gates: how many of them are gates; the others are inputs.
        matrices: the number of matrices.
        copies: the matrix of each number after those.
        calls: for each matrix that is called, the product's number in each of its calls.
        raw: the place of the raw input in ``x``, or None.
        found: the widths of the values; without a raw input, or if it must have H values, all have H units.
        same_width: why the raw input must have as many values as there are units; empty if it need not.
    """

    graph: Graph
    new: tuple[Node, ...]
    names: tuple[str, ...]
    gates: int
    matrices: int
    copies: tuple[int, ...]
    calls: Mapping[int, tuple[int, ...]]
    raw: int | None
    found: Widths = field(default_factory=Widths)
    same_width: str = ""

    @property
    def input_products(self) -> int:
        """The number of the first gate's input matrix, in a cell with a raw input."""
        return self.matrices - self.gates

    def matrix(self, number: int) -> int:
        """Return the matrix of a product."""
        return number if number < self.matrices else self.copies[number - self.matrices]

    def is_called(self, gate: int) -> bool:
        """Return True if the step multiplies the gate's input matrix itself, as in ``x.i(v)``."""
        return self.raw is not None and gate < self.gates and self.input_products + gate in self.calls

    def pads_well(self) -> bool:
        """Return True if the raw input may be padded with zeros."""
        return finite_in_padding(self.new, self.found)

    def arranged(self, blocks: int = 1) -> Arranged:
        """Return the step for a raw input of this many blocks of H columns."""
        kept = [k for k in range(len(self.names)) if not self.is_called(k) and k != self.raw]
        columns = {k: place for place, k in enumerate(kept)}
        if self.raw is not None:
            columns[self.raw] = len(kept)
            kept += [self.raw] * blocks

        def shape(number: int) -> Shape:
            return self.found.shapes.get(self.matrix(number), Shape())

        free = self.matrices + len(self.copies)
        step = in_blocks(self.new, self.found, blocks, columns, shape, free)
        of = tuple(self.matrix(step.base.get(k, k)) for k in range(free + len(step.base)))
        return Arranged(structure(self.graph, step.new, len(self.names)), tuple(kept), of, step.tiles)


def recorded(
    graph: Graph,
    new: tuple[Node, ...],
    names: tuple[str, ...],
    gates: int,
    matrices: tuple[str, ...],
    copies: tuple[int, ...],
    calls: Mapping[int, tuple[int, ...]],
    raw: int | None,
) -> Recorded:
    """Check the products of a step, and infer the widths of its values.

    Args:
        matrices: names of all matrices, for messages. The others are as in `Recorded`.

    Raises:
        ValueError: a product is unused, or a matrix is used both called and not.
    """
    step = Recorded(graph, new, names, gates, len(matrices), copies, calls, raw)
    nodes = reached(new)
    used = {n.leaf[1] for n in nodes if n.op == "product"}
    whole = {n.leaf[1] for n in nodes if n.leaf[0] == "r"}
    inputs = {n.leaf[1] for n in nodes if n.leaf[0] == "x"}
    for matrix, numbers in calls.items():
        name = matrices[matrix]
        if set(numbers) - used:
            raise ValueError(f"{name}: expected a product that a new state depends on, got an unused one")
        if matrix in whole:
            raise ValueError(
                f"{name}: expected either R·h or the product with a vector, got both: write {name}(s.…) for that with h"
            )
        if raw is not None and step.is_called(matrix - step.input_products) and matrix - step.input_products in inputs:
            raise ValueError(f"{name}: expected either W·x_t or the product with a vector, got both: call it with x_t")
    if raw is None:
        return step
    known = dict.fromkeys(range(gates), Shape())
    known |= {step.input_products + k: Shape(columns=True) for k in range(gates)}
    try:
        return replace(step, found=widths(new, raw, known, step.matrix))
    except ValueError as problem:
        return replace(step, same_width=str(problem))
