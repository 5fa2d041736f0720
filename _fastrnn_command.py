"""The command ``fastrnn``, which parses its arguments before it loads the library.

Loading fastrnn loads torch, which takes seconds, and ``--help``, ``--version`` or a misspelt option do not need it. So
the package is registered unloaded, which makes its submodules importable, and its ``__init__`` runs when a command
starts.
"""

from __future__ import annotations

import importlib.util
import sys


def main() -> int:
    spec = importlib.util.find_spec("fastrnn")
    assert spec is not None
    assert spec.loader is not None
    package, load = importlib.util.module_from_spec(spec), spec.loader.exec_module
    sys.modules["fastrnn"] = package
    from fastrnn.apps.cli import main as run

    return run(before_command=lambda: load(package))
