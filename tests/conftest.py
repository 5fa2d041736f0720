"""Every test runs with scratch and output memory of the kernels poisoned with NaN and fenced by sentinels."""

from __future__ import annotations

import importlib

import pytest
import torch

from fastrnn import _C, _ops
from fastrnn.cells import CELLS


@pytest.fixture(autouse=True)
def _poisoned_and_restored():
    capability, threads = _C.capability(), torch.get_num_threads()
    known, sizes = dict(CELLS), dict(_ops.SIZES)
    _C.set_poison(True)
    torch.manual_seed(0)
    yield
    _C.set_poison(False)
    _C.set_capability(capability)
    _C.set_split("auto")
    torch.set_num_threads(threads)
    for now, before in ((CELLS, known), (_ops.SIZES, sizes)):  # other tests go through all cells that are known
        now.clear()
        now.update(before)


@pytest.fixture
def cells():
    """The module of Python cells, known to the library for the time of a test."""
    found = importlib.import_module("custom_cells")
    for cell in found.ALL:
        cell._register()
    return found
