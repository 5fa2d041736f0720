"""Start of ``python -m fastrnn``: Python imports the package, and with it torch, before it runs fastrnn/__main__.py."""

from __future__ import annotations

import sys


def answer() -> None:
    """Run the command and end the process if this import is part of ``python -m fastrnn``; otherwise do nothing.

    The command parses its arguments before it imports the library.
    """
    if not _is_command(sys.argv, sys.orig_argv):
        return
    try:
        from _fastrnn_command import main
    except ImportError:  # the command module is not installed; fastrnn/__main__.py runs the command, but later
        return
    sys.argv[0] = "fastrnn"  # the command imports the package again
    sys.exit(main())


def _is_command(argv: list[str], original: list[str]) -> bool:
    """Return True if Python was started as ``python -m fastrnn`` and is looking for that module: argv[0] is then -m."""
    if argv[:1] != ["-m"] or len(argv) > len(original):
        return False
    module = original[len(original) - len(argv)]
    return module == "fastrnn" or (module.startswith("-") and module.endswith("mfastrnn"))
