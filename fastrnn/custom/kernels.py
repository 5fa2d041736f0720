"""Kernels of a custom cell: registration, preparation, and the same step on tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastrnn import _C, _ops, cells
from fastrnn.cells import CellSpec
from fastrnn.custom import build, build_cuda
from fastrnn.custom.cache import BuildError
from fastrnn.custom.emit import Compiled, compiled, equations, header
from fastrnn.custom.graph import Node, reached
from fastrnn.custom.names import Names
from fastrnn.custom.operations import REDUCTIONS
from fastrnn.custom.recorded import Recorded
from fastrnn.custom.trace import CellError

if TYPE_CHECKING:
    from fastrnn.custom.definition import Cell


class Block(NamedTuple):
    """A block of H rows of the kernels' recurrent matrix: part of a matrix of the cell."""

    matrix: int
    row: int = 0
    column: int = 0


class Kernels:
    """Kernels of a cell for raw inputs of a number of blocks of H units; other cells have one set.

    Attributes:
        name: the name in `fastrnn.cells`.
        compiled: the step and its gradient.
        header: the C++ header.
        blocks: the blocks of the recurrent matrix.
        spec: the specification under that name.
    """

    def __init__(self, cell: Cell, step: Recorded, blocks: int = 1) -> None:
        self.cell, self.step = cell, step
        self.arranged = step.arranged(blocks)
        columns = tuple(step.names[k] for k in self.arranged.columns)
        matrices = tuple(cell.matrix_name(k) for k in self.arranged.matrices)
        self.compiled: Compiled = compiled(self.arranged.traced, columns, cell.states, cell.parameters, matrices)
        text = header(self.compiled, "CELL", "")
        self.name = f"{cell.name}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        comment = f"{cell.name}, generated from Python.\n" + equations(self.compiled)
        self.header = header(self.compiled, self.name, comment)
        tiles = self.arranged.tiles.values()
        places = {n: (i, j) for rows in tiles for i, row in enumerate(rows) for j, n in enumerate(row)}
        self.blocks = tuple(Block(self.arranged.matrices[k], *places[k]) for k in self.compiled.recurrent)
        self._missing: dict[tuple[str, torch.dtype], str] = {}
        self.spec = self._register()

    def _register(self) -> CellSpec:
        """Register kernels and traits under a name derived from their computation: equal cells share one name."""
        traits, cell = self.compiled.traits(), self.cell
        spec = CellSpec(
            self.name,
            len(self.compiled.gates),
            cell.states,
            self.torch_step,
            projectable=traits.projectable,
            source=f"{cell.__module__}.{cell.__qualname__}",
            parameters=len(cell.parameters),
            second=len(self.compiled.step.second),
            prepare=self.prepare,
            gate_names=self.compiled.gates,
        )
        _ops.TRAITS[self.name] = traits
        cells.add(spec)
        return spec

    @property
    def products(self) -> tuple[tuple[int, ...], ...]:
        """The numbers of the products, grouped by the vector that they multiply: h (possibly none) first."""
        step = self.compiled.step
        others = [g.matrices for g in step.groups if g.matrices != step.first] if step.staged else [step.second]
        return (step.first, *others)

    def has_input_width(self, node: Node) -> bool:
        """Return True if a value of the step is a block of one that has the width of the raw input."""
        between = ("product", *REDUCTIONS)
        for one in reached([node], lambda n: n.op in between):
            kind, index = one.leaf
            if kind == "x" and self.arranged.columns[index] == self.step.raw:
                return True
            if kind in ("r", "q", "w"):
                shape = self.step.found.shapes.get(self.arranged.matrices[index])
                return shape is not None and shape.rows
        return False

    def torch_step(self, wx: Tensor, rh: Tensor, states: tuple[Tensor, ...], *more: Any) -> tuple:
        """Run the function itself on tensors: wx (B, columns·H), rh (B, ·) the products of h, states (B, H).

        ``more`` holds the parameters (H) and a function that multiplies another vector by some of the other matrices.
        """
        cell, step = self.cell, self.step
        columns = wx.chunk(len(self.compiled.gates), -1)
        first, *others = self.products
        products: dict[int, Callable[[Any], Tensor]] = {}
        if first:
            products |= {k: _constant(v) for k, v in zip(first, rh.chunk(len(first), -1), strict=True)}
        if any(others):
            *more, multiply = more  # type: ignore[assignment]
            begin = 0
            for group in others:
                products |= zip(group, _of_vector(multiply, begin, len(group)), strict=True)
                begin += len(group)
        whole = {number: _of_tiles(rows, products) for number, rows in self.arranged.tiles.items()}
        calls = {k: _by_call([whole[n] for n in numbers]) for k, numbers in step.calls.items()}

        def named(kind: str, names: tuple[str, ...], values: Sequence[Any]) -> Names:
            return Names(kind, names, values, CellError)

        matrices = (*step.names, *cell.matrices)
        zero = wx.new_zeros(())
        recurrent = [calls.get(k) or (whole[k](None) if k in whole else zero) for k in range(len(matrices))]
        arguments = [
            named("x", step.names, self._inputs(columns, calls)),
            named("r", matrices, recurrent),
            named("s", cell.states, states),
        ]
        if cell.parameters:
            arguments.append(named("p", cell.parameters, more))
        new = cell.step(*arguments)
        if isinstance(new, dict):
            new = tuple(new[name] for name in cell.states)
        new = tuple(new) if isinstance(new, (tuple, list)) else (new,)
        like = columns[0]  # not the old h, which is narrower with a projection
        return tuple(_for_every_row(f, like) for f, _ in zip(new, states, strict=True))

    def _inputs(self, columns: Sequence[Tensor], calls: Mapping[int, Callable]) -> list[Any]:
        """Return the values of ``x``: columns of the kernels' input, or functions for gates that are called."""
        values: list[Any] = []
        for k in range(len(self.step.names)):
            if self.step.is_called(k):
                values.append(calls[self.step.input_products + k])
            else:
                parts = [column for column, of in zip(columns, self.arranged.columns, strict=True) if of == k]
                values.append(_joined(parts))
        return values

    def prepare(self, dtype: torch.dtype, device: torch.device) -> str:
        """Ensure that there are kernels; return the problem or an empty string."""
        if device.type == "cuda":
            if self.compiled.step.staged:
                return "no kernels on cuda for products with several vectors or sums over the units"
            if len(self.cell.states) > build_cuda.MAX_STATES:
                return f"no kernels on cuda for more than {build_cuda.MAX_STATES} states"
            return build_cuda.prepare(self.name, self.header, dtype, device)
        if dtype not in build.FORMATS:
            return f"no kernels for {dtype}"
        built = (_C.capability(), dtype)
        if built in self._missing:
            return self._missing[built]
        if _C.has_kernels(self.name, dtype):
            return ""
        with build.lock_of(self.name):
            if not _C.has_kernels(self.name, dtype):
                try:
                    build.library(self.name, self.header, *built).load(_C.load_cells)
                except (BuildError, ImportError) as error:
                    self._missing[built] = str(error)
                    return str(error)
        return ""

    def forget(self) -> None:
        """Forget why kernels could not be prepared, so that they are tried again."""
        self._missing.clear()
        build_cuda.forget(self.name)


def _constant(value: Tensor) -> Callable[[Any], Tensor]:
    """Return a function for a product of h, which is computed before the step."""
    return lambda vector: value


def _for_every_row(value: Any, like: Tensor) -> Tensor:
    """Return a new state with a value for every batch row.

    A tensor of the full shape is returned as it is, so that values computed from it stay differentiable with respect to
    it. A constant or a parameter is expanded.
    """
    if isinstance(value, Tensor) and value.shape == like.shape and value.dtype == like.dtype:
        return value
    return torch.as_tensor(value, dtype=like.dtype).expand_as(like)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), -1)


def _of_vector(multiply: Callable, begin: int, count: int) -> list[Callable[[Tensor], Tensor]]:
    """Return for each of ``count`` matrices, which multiply one vector, a function for its product; computed once."""
    products: list[tuple[Tensor, ...]] = []

    def part(k: int) -> Callable[[Tensor], Tensor]:
        def product(vector: Tensor) -> Tensor:
            if not products:
                products.append(multiply(vector, begin, count).chunk(count, -1))
            return products[0][k]

        return product

    return [part(k) for k in range(count)]


def _of_tiles(rows: Sequence[Sequence[int]], products: Mapping[int, Callable[[Any], Tensor]]) -> Callable:
    """Return the product with a matrix that consists of blocks (H, H), each with the number of its own product."""
    if len(rows) == len(rows[0]) == 1:
        return products[rows[0][0]]

    def product(vector: Any) -> Tensor:
        parts = (vector,) if len(rows[0]) == 1 else vector.chunk(len(rows[0]), -1)
        return _joined([sum(products[k](part) for k, part in zip(row, parts, strict=True)) for row in rows])  # type: ignore[misc]

    return product


def _by_call(products: Sequence[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    """Return the product with a matrix that multiplies several vectors, one vector per call, in the step's order."""
    if len(set(products)) == 1:
        return products[0]
    order = iter(products)
    return lambda vector: next(order)(vector)
