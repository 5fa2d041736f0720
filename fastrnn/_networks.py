"""Weights of recurrent modules by layer, direction and gate, for the modules of torch.nn and fastrnn and for networks
of a custom cell.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from fastrnn import _torch, cells
from fastrnn.cells import CELLS, MODES, CellSpec
from fastrnn.custom.module import Network
from fastrnn.modules import _initial


class Part(NamedTuple):
    """The weights of one layer in one direction, or of a cell.

    The weights are the attributes ``weight_ih``, ``weight_hh`` and, if `bias`, ``bias_ih`` and ``bias_hh``, each with
    `suffix` appended.
    """

    module: nn.Module
    spec: CellSpec
    suffix: str  # "_l0", "_l0_reverse", …; "" for a cell
    kind: str  # "LSTM", "GRU", "RNN", or the name of a custom cell
    gates: tuple[str, ...]  # blocks of rows of weight_ih and bias_ih
    recurrent: tuple[str, ...]  # blocks of rows of weight_hh and bias_hh
    bias: bool
    layer: int = 0
    reverse: bool = False
    heads: int = 1  # number of square diagonal blocks in each gate's rows of weight_hh


def is_recurrent(module: nn.Module) -> bool:
    """Return True if a module is itself a recurrent network or cell of torch.nn, fastrnn or a custom cell."""
    return isinstance(module, (_torch.RNNBase, _torch.RNNCellBase, Network))


def parts(model: nn.Module, *, with_cells: bool = True) -> list[Part]:
    """Return every layer and direction of every recurrent module in ``model`` (or of itself), and every cell.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: it contains no recurrent module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(model).__name__}")
    found = [
        part
        for module in model.modules()
        if is_recurrent(module) and (with_cells or not isinstance(module, _torch.RNNCellBase))
        for part in parts_of(module)
    ]
    if not found:
        what = (
            "a recurrent module (RNN, LSTM, GRU" + (", a cell" if with_cells else "") + ", a network of fastrnn.cell)"
        )
        raise ValueError(f"module: expected {what} or a model that has one, got {type(model).__name__}")
    return found


def parts_of(module: Any) -> list[Part]:
    """Return the layers and directions of a recurrent module, directions of a layer adjacent; for a cell, one part."""
    cell = isinstance(module, _torch.RNNCellBase)
    heads = 1
    specs: dict[str, CellSpec] = {}  # of a layer, where they differ
    if isinstance(module, Network):
        specs = {
            s: module.kernels_of(getattr(module, "weight_ih" + s).shape[1]).spec for s in _initial.suffixes(module)
        }
        spec = cells.find(module.cell.kernels)
        kind, gates, recurrent, heads = module.cell.name, module.cell.gates, module.cell.recurrent, module.heads
    else:
        spec = CELLS[_cell_of(module) if cell else MODES[module.mode]]
        kind, gates, recurrent = spec.name.split("_")[0].upper(), spec.gate_names, spec.gate_names
    assert spec is not None
    names = (kind, gates, recurrent, bool(module.bias))
    directions = 2 if not cell and module.bidirectional else 1
    return [
        Part(module, specs.get(suffix, spec), suffix, *names, number // directions, bool(number % directions), heads)
        for number, suffix in enumerate([""] if cell else _initial.suffixes(module))
    ]


def _cell_of(module: Any) -> str:
    """Return the name of the cell of torch.nn's LSTMCell, GRUCell or RNNCell."""
    if isinstance(module, _torch.LSTMCell):
        return "lstm"
    return "gru" if isinstance(module, _torch.GRUCell) else f"rnn_{module.nonlinearity}"
