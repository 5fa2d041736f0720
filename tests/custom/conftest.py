"""The gallery, and a quick compiler for tests of how cells are compiled."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from fastrnn.custom import build


@pytest.fixture(scope="module")
def CELLS():  # noqa: N802
    """The gallery's cells by name. The tests import it when they run, not when they are collected."""
    from fastrnn import gallery

    return gallery.CELLS


@pytest.fixture
def unoptimised(tmp_path: Path) -> str:
    """A command for ``CXX`` that compiles without optimisation, in a third of the time.

    For tests of what is compiled and how it is cached. The optimiser is covered by the cells that other tests compile.
    """
    script = tmp_path / "unoptimised-c++"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(build.compiler())} "$@" -O0\n')
    script.chmod(0o755)
    return str(script)
