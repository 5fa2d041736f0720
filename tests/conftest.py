"""Run every test with poisoned and fenced memory of the kernels, and with a fresh state of torch.compile.

Scratch and output memory is filled with NaN and enclosed by sentinels. torch.compile is reset because it stops
compiling a function that it has compiled in too many variants.
"""

from __future__ import annotations

import importlib
import sys

import pytest
import quick
import torch

from fastrnn import _C


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    quick.mark(items)


@pytest.fixture(autouse=True)
def _poisoned_and_restored():
    capability, threads = _C.capability(), torch.get_num_threads()
    _C.set_poison(True)
    torch.manual_seed(0)
    yield
    _C.set_poison(False)
    _C.set_capability(capability)
    _C.set_split("auto")
    torch.set_num_threads(threads)
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@pytest.fixture
def cells():
    """Return the module of Python cells."""
    return importlib.import_module("custom_cells")
