"""Built-in cells, one file each. Every module here that defines ``CELL`` is discovered automatically."""

from __future__ import annotations

import importlib
import pkgutil

from fastrnn.cells._spec import CellSpec, check_limit


def _discover() -> dict[str, CellSpec]:
    specs = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        if not module.startswith("_"):
            spec = importlib.import_module(f"{__name__}.{module}").CELL
            specs[spec.name] = spec
    return specs


#: The built-in cells by name.
CELLS: dict[str, CellSpec] = _discover()

#: The cell of each ``mode`` of torch.nn.RNNBase.
MODES = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}

_own: dict[str, CellSpec] = {}


def add(spec: CellSpec) -> None:
    """Register a custom cell (called by :func:`fastrnn.cell`)."""
    _own[spec.name] = spec


def find(name: str) -> CellSpec | None:
    """Return the built-in or custom cell of that name, or None."""
    return CELLS.get(name) or _own.get(name)


__all__ = ["CELLS", "MODES", "CellSpec", "add", "check_limit", "find"]
