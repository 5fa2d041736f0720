"""Weights of a network whose cell has a raw input, in the layout of the kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from fastrnn.custom.definition import Cell
    from fastrnn.custom.module import Network


def blocks_of(width: int, hidden: int) -> int:
    """Return the number of blocks of H units that hold this many values."""
    return -(-width // hidden)


def padded(values: Tensor, dim: int, size: int) -> Tensor:
    """Return the values with zeros appended up to a size."""
    missing = size - values.shape[dim]
    if not missing:
        return values
    sides = (0, missing) if dim in (-1, values.dim() - 1) else (0, 0, 0, missing)
    return nn.functional.pad(values, sides)


def check_raw_input(cell: Cell, width: int, hidden: int, heads: int) -> None:
    """Raise ValueError if a cell with a raw input cannot have this many inputs or heads."""
    if cell.raw_input is None:
        return
    if heads != 1:
        raise ValueError(f"heads: expected 1 for a cell with a raw input, got {heads}")
    if cell.same_width and width != hidden:
        raise ValueError(
            f"input_size: expected as many inputs as units in every layer, {hidden}, got {width}: in the step of "
            f"{cell.name} {cell.same_width}; a product with one of `matrices` changes the width"
        )
    if width % hidden and not cell.pads_well:
        raise ValueError(
            f"input_size: expected a multiple of hidden_size ({hidden}), got {width}: the step of {cell.name} or its "
            "gradient is infinite where the raw input is zero, which it is padded with"
        )


def of_kernels(network: Network, suffix: str) -> list[Tensor]:
    """Return w_ih, w_hh, b_ih and b_hh of a layer: W of the products before the step, and all blocks of the others."""
    cell, H = network.cell, network.hidden_size
    weights = {name: getattr(network, f"weight_{name}{suffix}") for name in ("ih", "hh", *cell.rectangular)}
    biases = {name: getattr(network, f"bias_{name}{suffix}") for name in weights} if network.bias else {}
    blocks = network.kernels_of(weights["ih"].shape[1]).blocks
    parts: list[Tensor] = []
    grids: dict[int, Tensor] = {}
    for block in blocks:
        if block.matrix not in grids:
            grids[block.matrix] = _grid(_rows(network, weights, block.matrix), H)
        parts.append(grids[block.matrix][block.row, :, block.column])
    parts += [getattr(network, name + suffix).unsqueeze(0) for name in cell.parameters]
    w_hh = torch.cat(parts) if parts else weights["hh"]
    if not network.bias:
        return [_of_gates(network, weights["ih"]), w_hh]
    columns: dict[int, Tensor] = {}
    parts = []
    for block in blocks:
        if block.matrix not in columns:
            bias = _rows(network, biases, block.matrix)
            columns[block.matrix] = padded(bias, 0, blocks_of(bias.shape[0], H) * H).unflatten(0, (-1, H))
        one = columns[block.matrix][block.row]
        parts.append(torch.zeros_like(one) if block.column else one)  # products of several blocks are added up
    b_hh = torch.cat(parts) if parts else biases["hh"]
    return [_of_gates(network, weights["ih"]), w_hh, _of_gates(network, biases["ih"]), b_hh]


def _of_gates(network: Network, weight: Tensor) -> Tensor:
    """Return the rows of the gates whose input product is computed before the step."""
    gates, chosen = len(network.cell.gates), network.cell.input_gates
    if len(chosen) == gates:
        return weight
    blocks = weight.unflatten(0, (gates, -1))
    return torch.cat([blocks[k] for k in chosen]) if chosen else weight[:0]


def _rows(network: Network, weights: dict[str, Tensor], matrix: int) -> Tensor:
    """Return the rows of a matrix, or of its bias, by its number."""
    name, H = network.cell.matrix_name(matrix), network.hidden_size
    if name in weights:
        return weights[name]
    if name.startswith("x."):
        k, weight = network.cell.gates.index(name[2:]), weights["ih"]
    else:
        k, weight = network.cell.recurrent.index(name), weights["hh"]
    return weight[k * H : (k + 1) * H]


def _grid(weight: Tensor, hidden: int) -> Tensor:
    """Return a matrix as (rows of blocks, H, columns of blocks, H), padded with zeros."""
    rows, columns = (blocks_of(size, hidden) * hidden for size in weight.shape)
    return padded(padded(weight, 0, rows), 1, columns).unflatten(0, (-1, hidden)).unflatten(-1, (-1, hidden))
