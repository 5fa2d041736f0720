"""A mark for tests that compile cells written in Python."""

from __future__ import annotations

import pytest

from fastrnn.custom import build


def _has_compiler() -> bool:
    try:
        build.compiler()
    except build.BuildError:
        return False
    return True


needs_compiler = pytest.mark.skipif(not _has_compiler(), reason="no C++ compiler")
