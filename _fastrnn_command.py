"""The command ``fastrnn``: reads its arguments before it loads the library.

Loading fastrnn loads torch, which takes seconds. What ``--help``, ``--version`` or a misspelt option calls for is known
without it. So the package is put in its place empty, which makes its modules importable, and is filled (its
``__init__`` runs) when a command starts.
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
