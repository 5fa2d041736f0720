"""Fixtures: the gallery, and a fast compiler for tests of how cells are compiled."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from fastrnn.custom import build


@pytest.fixture(scope="module")
def CELLS():  # noqa: N802
    """Return the gallery's cells by name, imported when a test runs rather than when it is collected."""
    from fastrnn import gallery

    return gallery.CELLS


@pytest.fixture
def unoptimised(tmp_path: Path) -> str:
    """Return a command for ``CXX`` that compiles without optimisation, in a third of the time.

    For tests of compilation and caching. Cells that other tests compile cover the optimiser.
    """
    script = tmp_path / "unoptimised-c++"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(build.compiler())} "$@" -O0\n')
    script.chmod(0o755)
    return str(script)
