"""The gallery, for the tests of this folder."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def CELLS():  # noqa: N802
    """The gallery's cells by name. The tests import it when they run, not when they are collected."""
    from fastrnn import gallery

    return gallery.CELLS
