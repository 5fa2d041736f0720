"""``python -m fastrnn``, which imports the package, and with it torch, before it runs fastrnn/__main__.py."""

from __future__ import annotations

import sys


def answer() -> None:
    """While Python looks for the module of ``python -m fastrnn``, run the command in its place and end the process: it
    reads its arguments before it loads the library. Otherwise do nothing.
    """
    if not _is_command(sys.argv, sys.orig_argv):
        return
    try:
        from _fastrnn_command import main
    except ImportError:  # a package without the command beside it: fastrnn/__main__.py does the same, later
        return
    sys.argv[0] = "fastrnn"  # the package is imported once more, by the command
    sys.exit(main())


def _is_command(argv: list[str], original: list[str]) -> bool:
    """Return True if Python was started as ``python -m fastrnn`` and is looking for that module: argv[0] is then -m."""
    if argv[:1] != ["-m"] or len(argv) > len(original):
        return False
    module = original[len(original) - len(argv)]
    return module == "fastrnn" or (module.startswith("-") and module.endswith("mfastrnn"))
