"""The cells: one file each. A module here that defines ``CELL`` is found by itself."""

from __future__ import annotations

import importlib
import pkgutil

from fastrnn.cells._spec import CellSpec, check_bound


def _discover() -> dict[str, CellSpec]:
    found = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        if not module.startswith("_"):
            spec = importlib.import_module(f"{__name__}.{module}").CELL
            found[spec.name] = spec
    return found


#: The built-in cells by name.
CELLS: dict[str, CellSpec] = _discover()

#: The cell of each ``mode`` of torch.nn.RNNBase.
MODES = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}

_own: dict[str, CellSpec] = {}


def add(spec: CellSpec) -> None:
    """Makes a user's cell known (:func:`fastrnn.cell` does)."""
    _own[spec.name] = spec


def find(name: str) -> CellSpec | None:
    """The cell of that name, built-in or a user's."""
    return CELLS.get(name) or _own.get(name)


__all__ = ["CELLS", "MODES", "CellSpec", "add", "check_bound", "find"]
