"""Choice of the driver that runs a sequence on a GPU.

There are three drivers. ``"stepwise"``: a product of cuBLAS and an element-wise kernel in every step, for any size.
``"grid"``: one kernel for the whole sequence, its recurrent weights in the shared memory of all multiprocessors.
``"cluster"`` (from compute capability 9.0): the same within clusters of thread blocks, each with rows of the batch of
its own. ``"auto"`` takes a cluster if it holds the weights, else the grid, else step by step. :func:`explain` tells the
choice; :func:`set_driver`, :func:`driver` and the environment variable ``FASTRNN_CUDA_DRIVER`` overrule it, for
experiments. The step-wise driver launches every step; where the host cannot keep up, capture the whole call with
``torch.cuda.graph``, which every driver allows.

All drivers give the same numbers up to rounding, and each the same bits in every run.
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
        possible: False where the driver that was asked for cannot be had: such a call raises.
        reason: of the choice, or why the driver cannot be had.
        format: the dtype of the recurrent product, ``"tf32"`` where torch allows it for float32.
        blocks: thread blocks, those that share rows of the batch times those groups; (0, 0) if step-wise.
        units: hidden units of a block.
        rows: rows of the batch of a group.
        shared_bytes: of a block.
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
    """Return the chosen driver: ``"auto"`` unless `set_driver` or FASTRNN_CUDA_DRIVER named one.

    Raises:
        RuntimeError: there are no CUDA kernels.
    """
    return str(_module().driver())


def set_driver(name: str) -> None:
    """Choose a driver, in all threads and on all GPUs.

    A call that it cannot run raises a RuntimeError with the reason; ``"auto"`` always finds a driver.

    A layer's backward pass uses the driver that is chosen when it runs.

    Args:
        name: ``"auto"``, ``"stepwise"``, ``"grid"`` or ``"cluster"``.

    Raises:
        ValueError: it is none of these.
        RuntimeError: there are no CUDA kernels.
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
        cell: ``"lstm"``, ``"gru"``, ``"rnn_tanh"`` or ``"rnn_relu"``; or of a cell made by :func:`fastrnn.cell`, its
            ``kernels``, which are then compiled if need be.
        batch, hidden: B and H.
        steps: T.
        dtype: float32, float64, bfloat16 or float16.
        projection: whether h is projected (``proj_size``).
        backward: of the backward pass.
        driver: as for `set_driver`; None: the current choice.
        device: a GPU; None: the current one.

    Raises:
        ValueError: ``cell``, ``batch``, ``hidden``, ``steps``, ``dtype``, ``driver`` or ``device`` is none of these.
        RuntimeError: there are no CUDA kernels, or no GPU that they can run on; those of the cell cannot be compiled.
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
    found = module.explain(
        index, cell, steps, batch, hidden, _NAMES[dtype], projection, backward, driver or module.driver()
    )
    blocks = (found.pop("unit_slices"), found.pop("row_slices"))
    return Explanation(blocks=blocks, **found)


def _index(device: torch.device | str | int | None) -> int:
    if not torch.cuda.is_available():
        raise RuntimeError("fastrnn.cuda: expected a GPU, torch sees none")
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
