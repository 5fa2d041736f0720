"""What the weights of a recurrent module are called and which of their rows belong to which gate: for torch.nn's
modules, fastrnn's, and networks of a cell of one's own alike.
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

    Its weights are the attributes ``weight_ih``, ``weight_hh``, and if `bias` ``bias_ih`` and ``bias_hh``, with
    `suffix`.
    """

    module: nn.Module
    spec: CellSpec
    suffix: str  # "_l0", "_l0_reverse", …; "" of a cell
    kind: str  # "LSTM", "GRU", "RNN", or the name of a cell of one's own
    gates: tuple[str, ...]  # blocks of rows of weight_ih and bias_ih
    recurrent: tuple[str, ...]  # blocks of rows of weight_hh and bias_hh
    bias: bool
    layer: int = 0
    reverse: bool = False
    heads: int = 1  # the square blocks below one another that each gate's rows of weight_hh are made of


def is_recurrent(module: nn.Module) -> bool:
    """Whether a module is itself a recurrent network or cell, of torch.nn, fastrnn or one's own."""
    return isinstance(module, (_torch.RNNBase, _torch.RNNCellBase, Network))


def parts(model: nn.Module, *, with_cells: bool = True) -> list[Part]:
    """Every layer and direction of every recurrent module in ``model`` (which may be one itself), and its cells.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: there is nothing recurrent in it.
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
    """The layers and directions of a recurrent module, directions of a layer side by side; of a cell itself alone."""
    cell = isinstance(module, _torch.RNNCellBase)
    heads = 1
    if isinstance(module, Network):
        spec = cells.find(module.cell.kernels)
        kind, gates, recurrent, heads = module.cell.name, module.cell.gates, module.cell.recurrent, module.heads
    else:
        spec = CELLS[_cell_of(module) if cell else MODES[module.mode]]
        kind, gates, recurrent = spec.name.split("_")[0].upper(), spec.gate_names, spec.gate_names
    assert spec is not None
    names = (kind, gates, recurrent, bool(module.bias))
    directions = 2 if not cell and module.bidirectional else 1
    return [
        Part(module, spec, suffix, *names, number // directions, bool(number % directions), heads)
        for number, suffix in enumerate([""] if cell else _initial.suffixes(module))
    ]


def _cell_of(module: Any) -> str:
    """The name of the cell of torch.nn's LSTMCell, GRUCell or RNNCell."""
    if isinstance(module, _torch.LSTMCell):
        return "lstm"
    return "gru" if isinstance(module, _torch.GRUCell) else f"rnn_{module.nonlinearity}"
