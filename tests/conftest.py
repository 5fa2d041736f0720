"""Every test runs with scratch and output memory of the kernels poisoned with NaN and fenced by sentinels, and with a
compiler that knows nothing of the tests before it: it refuses a function that it has compiled in too many ways.
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
    """The module of Python cells."""
    return importlib.import_module("custom_cells")
