"""Choice of the driver that runs a sequence on a GPU.

There are three drivers. ``"stepwise"`` runs a cuBLAS product and an element-wise kernel at every time step, for any
size. ``"grid"`` runs one kernel for the whole sequence, with the recurrent weights in the shared memory of all
multiprocessors. ``"cluster"`` (from compute capability 9.0) does the same within clusters of thread blocks, each of
which has its own batch rows. ``"auto"`` takes a cluster if it can hold the weights, else the grid, else step-wise.
:func:`explain` reports the choice; :func:`set_driver`, :func:`driver` and the environment variable
``FASTRNN_CUDA_DRIVER`` override it, for experiments. The step-wise driver launches kernels at every time step; if the
host cannot keep up, capture the whole call with ``torch.cuda.graph``, which every driver supports.

All drivers give the same values up to rounding, and each gives the same bits in every run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fastrnn import _C, _gpu, cells

__all__ = ["Explanation", "driver", "explain", "get_driver", "is_available", "set_driver"]

_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


@dataclass(frozen=True)
class Explanation:
    """Driver that runs a layer, with the reason.

    Attributes:
        driver: ``"stepwise"``, ``"grid"`` or ``"cluster"``.
        possible: False if the requested driver cannot run the call, which then raises.
        reason: why the driver was chosen, or why it cannot run the call.
        format: the dtype of the recurrent product; ``"tf32"`` where torch allows it for float32.
        blocks: thread blocks that share batch rows, times the number of such groups; (0, 0) if step-wise.
        units: hidden units of a block.
        rows: batch rows of a group.
        shared_bytes: shared memory of a block, in bytes.
    """

    driver: str
    possible: bool
    reason: str
    format: str
    blocks: tuple[int, int]
    units: int
    rows: int
    shared_bytes: int

    def __str__(self) -> str:
        if not self.possible:
            return f"{self.driver} is not possible: {self.reason}"
        shape = ""
        if self.driver != "stepwise":
            across, groups = self.blocks
            shape = f", {groups} x {across} blocks of {self.units} units and {self.rows} rows"
        return f"{self.driver} ({self.format}{shape}): {self.reason}"


def is_available() -> bool:
    """Return True if fastrnn's CUDA kernels are built and loaded, and torch sees a GPU.

    Example:
        >>> fastrnn.cuda.is_available() in (True, False)
        True
    """
    return _gpu.module is not None and torch.cuda.is_available()


def get_driver() -> str:
    """Return the selected driver: ``"auto"`` unless `set_driver` or FASTRNN_CUDA_DRIVER selected another.

    Raises:
        RuntimeError: the CUDA kernels are not available.
    """
    return str(_module().driver())


def set_driver(name: str) -> None:
    """Select a driver, in all threads and on all GPUs.

    A call that the driver cannot run raises a RuntimeError with the reason; ``"auto"`` always finds a driver. A layer's
    backward pass uses the driver selected at the time it runs.

    Args:
        name: ``"auto"``, ``"stepwise"``, ``"grid"`` or ``"cluster"``.

    Raises:
        ValueError: ``name`` is none of these.
        RuntimeError: the CUDA kernels are not available.
    """
    if name not in _gpu.DRIVERS:
        raise ValueError(f"driver: expected one of {', '.join(_gpu.DRIVERS)}, got {name!r}")
    _module().set_driver(name)


@contextmanager
def driver(name: str) -> Iterator[None]:
    """Context manager that calls `set_driver` and restores the driver afterwards."""
    before = get_driver() if name in _gpu.DRIVERS else ""
    set_driver(name)
    try:
        yield
    finally:
        set_driver(before)


def explain(
    cell: str,
    batch: int,
    hidden: int,
    *,
    steps: int = 100,
    dtype: torch.dtype = torch.float32,
    projection: bool = False,
    backward: bool = False,
    driver: str | None = None,
    device: torch.device | str | int | None = None,
) -> Explanation:
    """Report which driver runs one layer in one direction, and why.

    Args:
        cell: ``"lstm"``, ``"gru"``, ``"rnn_tanh"`` or ``"rnn_relu"``; or the ``kernels`` of a cell made by
            :func:`fastrnn.cell`, which are compiled if necessary.
        batch, hidden: B and H.
        steps: T.
        dtype: float32, float64, bfloat16 or float16.
        projection: whether h is projected (``proj_size``).
        backward: explain the backward pass.
        driver: as for `set_driver`; None: the current choice.
        device: a GPU; None: the current one.

    Raises:
        ValueError: ``cell``, ``batch``, ``hidden``, ``steps``, ``dtype``, ``driver`` or ``device`` is invalid.
        RuntimeError: the CUDA kernels or a supported GPU are not available, or the cell's kernels cannot be compiled.
    """
    spec = cells.find(cell)
    if spec is None:
        raise ValueError(_C.unknown_cell(cell) if isinstance(cell, str) else f"cell: expected a name, got {cell!r}")
    for name, value in (("batch", batch), ("hidden", hidden), ("steps", steps)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    if dtype not in _NAMES:
        raise ValueError(f"dtype: expected one of {', '.join(map(str, _NAMES))}, got {dtype}")
    if driver is not None and driver not in _gpu.DRIVERS:
        raise ValueError(f"driver: expected one of {', '.join(_gpu.DRIVERS)}, got {driver!r}")
    module = _module()
    index = _index(device)
    problem = spec.prepare(dtype, torch.device("cuda", index)) if spec.prepare is not None else ""
    if problem:
        raise RuntimeError(f"fastrnn.cuda: {cell}: {problem}")
    choice = module.explain(
        index, cell, steps, batch, hidden, _NAMES[dtype], projection, backward, driver or module.driver()
    )
    blocks = (choice.pop("unit_slices"), choice.pop("row_slices"))
    return Explanation(blocks=blocks, **choice)


def _index(device: torch.device | str | int | None) -> int:
    if not torch.cuda.is_available():
        raise RuntimeError("fastrnn.cuda: expected a GPU, got none visible to torch")
    chosen = torch.device("cuda", device) if isinstance(device, int) else torch.device(device or "cuda")
    if chosen.type != "cuda":
        raise ValueError(f"device: expected a GPU, got {chosen}")
    index = torch.cuda.current_device() if chosen.index is None else chosen.index
    problem = _gpu.problem(torch.device("cuda", index))
    if problem:
        raise RuntimeError(f"fastrnn.cuda: {problem}")
    return index


def _module() -> Any:
    if _gpu.module is None:
        raise RuntimeError(f"fastrnn.cuda: {_gpu.reason}")
    return _gpu.module
