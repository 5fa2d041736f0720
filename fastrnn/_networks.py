"""What the weights of a recurrent module are called and which of their rows belong to which gate: for torch.nn's
modules, fastrnn's, and networks of a cell of one's own alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from fastrnn import _torch
from fastrnn.cells import CELLS, MODES
from fastrnn.custom.module import Network

_CELLS = {"LSTM": _torch.LSTMCell, "GRU": _torch.GRUCell}


class Part(NamedTuple):
    """The weights of one layer in one direction, or of a cell.

    Its weights are the attributes ``weight_ih``, ``weight_hh``, and if `bias` ``bias_ih`` and ``bias_hh``, with
    `suffix`.
    """

    module: nn.Module
    suffix: str  # "_l0", "_l0_reverse", …; "" of a cell
    kind: str  # "LSTM", "GRU", "RNN", or the name of a cell of one's own
    gates: tuple[str, ...]  # blocks of rows of weight_ih and bias_ih
    recurrent: tuple[str, ...]  # blocks of rows of weight_hh and bias_hh
    bias: bool
    heads: int = 1  # the square blocks below one another that each gate's rows of weight_hh are made of


def is_recurrent(module: nn.Module) -> bool:
    """Whether a module is itself a recurrent network or cell, of torch.nn, fastrnn or one's own."""
    return isinstance(module, (_torch.RNNBase, _torch.RNNCellBase, Network))


def parts(model: nn.Module, *, cells: bool = True) -> list[Part]:
    """Every layer and direction of every recurrent module in ``model`` (which may be one itself), and its cells.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: there is nothing recurrent in it.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(model).__name__}")
    found = [part for module in model.modules() if is_recurrent(module) for part in _parts_of(module, cells)]
    if not found:
        what = "a recurrent module (RNN, LSTM, GRU" + (", a cell" if cells else "") + ", a network of fastrnn.cell)"
        raise ValueError(f"module: expected {what} or a model that has one, got {type(model).__name__}")
    return found


def _parts_of(module: nn.Module, cells: bool) -> Iterator[Part]:
    if isinstance(module, _torch.RNNCellBase):
        if cells:
            kind = next((k for k, cls in _CELLS.items() if isinstance(module, cls)), "RNN")
            gates = CELLS[MODES[kind if kind != "RNN" else "RNN_TANH"]].gate_names
            yield Part(module, "", kind, gates, gates, bool(module.bias))
        return
    directions = ("", "_reverse") if module.bidirectional else ("",)
    if isinstance(module, Network):
        kind, gates, recurrent = module.cell.name, module.cell.gates, module.cell.recurrent
    else:
        mode = str(module.mode)
        kind, gates = mode.split("_")[0], CELLS[MODES[mode]].gate_names
        recurrent = gates
    for layer in range(int(module.num_layers)):  # type: ignore[arg-type]
        for direction in directions:
            heads = module.heads if isinstance(module, Network) else 1
            yield Part(module, f"_l{layer}{direction}", kind, gates, recurrent, bool(module.bias), heads)
