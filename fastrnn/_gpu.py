"""Loader of the GPU kernels, `fastrnn._cuda`, which records the reason if they are unavailable.

They are a separate library, so that everything else works without CUDA.
"""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any

import torch

from fastrnn._missing import KernelsMissingError, check_torch
from fastrnn._surroundings import is_compiling

DRIVERS = ("auto", "stepwise", "grid", "cluster")
VARIABLE = "FASTRNN_CUDA_DRIVER"


def _load() -> tuple[Any, str]:
    """Return the module and an empty string, or None and the reason."""
    try:
        found = importlib.import_module("fastrnn._cuda")
        check_torch(found.build_info()["torch_version"], "the CUDA kernels")
        return found, ""
    except ModuleNotFoundError as error:
        if error.name != "fastrnn._cuda":
            raise
        return None, "the CUDA kernels are not built"
    except KernelsMissingError as error:
        return None, str(error).removeprefix("fastrnn: ")
    except ImportError as error:  # a CUDA library is missing, or torch was replaced after the build
        if torch.version.cuda is None:
            return None, "the CUDA kernels are built but this torch is built for the CPU"
        return None, f"the CUDA kernels are built but cannot be loaded, build them again for this torch ({error})"


def driver_of(environment: str | None) -> tuple[str, str]:
    """Return the driver that FASTRNN_CUDA_DRIVER selects, and an error message or an empty string."""
    if not environment:
        return "auto", ""
    if environment in DRIVERS:
        return environment, ""
    return "auto", f"{VARIABLE}: expected one of {', '.join(DRIVERS)}, got {environment!r}; using auto"


#: The compiled module, or None and the reason.
module, reason = _load()

_driver, _problem = driver_of(os.environ.get(VARIABLE))
if _problem:
    warnings.warn(_problem, stacklevel=2)
if module is not None:
    module.set_driver(_driver)

_reasons: dict[int, str] = {}


def problem(device: torch.device) -> str:
    """Return why the kernels cannot take tensors of a GPU, or an empty string.

    While the compiler traces, every GPU is assumed to be supported.
    """
    if module is None:
        return reason
    if is_compiling():
        return ""
    index = -1 if device.index is None else device.index
    found = _reasons.get(index)
    if found is None:
        try:
            found = _reasons[index] = str(module.device_problem(index))
        except RuntimeError as error:  # a fake tensor on a GPU that does not exist
            return str(error).split("\n", 1)[0]
    return found


def takes(tensor: torch.Tensor) -> bool:
    """Return True if the tensor is on a GPU that the kernels support."""
    return tensor.is_cuda and not problem(tensor.device)
