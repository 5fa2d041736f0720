"""Recurrent cells from the literature, each a few lines with :func:`fastrnn.cell`.

.. code-block:: python

    from fastrnn import gallery

    network = gallery.nas(input_size=64, hidden_size=128)
    print(gallery.CELLS["nas"].explain())

``import fastrnn`` does not load them, because each cell is traced when it is defined. A new cell is a function in a
file here and is discovered automatically.
"""

from __future__ import annotations

import importlib
import pkgutil

from fastrnn.custom import Cell


def _discover() -> dict[str, Cell]:
    cells: dict[str, Cell] = {}
    modules = sorted(info.name for info in pkgutil.iter_modules(__path__))
    for name in (f"{__name__}.{module}" for module in modules):
        for key, value in vars(importlib.import_module(name)).items():
            if isinstance(value, Cell) and value.__module__ == name:
                if key in cells or key in modules:  # gallery.<name> would be ambiguous
                    raise ImportError(f"{name}.{key}: expected a new name, got that of another cell or file")
                cells[key] = value
    return cells


#: Every cell by name, file by file in the order of definition.
CELLS: dict[str, Cell] = _discover()

__all__ = ["CELLS"]


def __getattr__(name: str) -> Cell:
    if name in CELLS:
        return CELLS[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its cells: {', '.join(CELLS)}")


def __dir__() -> list[str]:
    return [*__all__, *CELLS]
