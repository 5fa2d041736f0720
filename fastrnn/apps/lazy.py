"""Attributes of a package that are imported at their first use.

The command line imports the modules that define a command's options, and with them their package, before it is known
whether torch, whose import takes seconds, is needed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def imported_at_first_use(package: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for a package.

    Args:
        package: its name.
        places: for each public name, the module of the package that defines it: ``module`` or ``module.other_name``.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807 - the name that Python requires
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, own = places[name].partition(".")
        return getattr(importlib.import_module(f"{package}.{module}"), own or name)

    return __getattr__
