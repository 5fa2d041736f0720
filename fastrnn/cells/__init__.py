"""The cells: one file each. A module here that defines ``CELL`` is found by itself."""

from __future__ import annotations

import importlib
import pkgutil

from fastrnn.cells._spec import CellSpec


def _discover() -> dict[str, CellSpec]:
    found = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        if not module.startswith("_"):
            spec = importlib.import_module(f"{__name__}.{module}").CELL
            found[spec.name] = spec
    return found


#: Every cell by name.
CELLS: dict[str, CellSpec] = _discover()

__all__ = ["CELLS", "CellSpec"]
