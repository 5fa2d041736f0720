"""Loads the kernels for GPUs, `fastrnn._cuda`, if they are there, and remembers why not.

They are a library of their own: without CUDA, or where it cannot be loaded, all else works.
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
    """The module and an empty string, or None and the reason."""
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
    except ImportError as error:  # a library of CUDA's is missing, or torch was exchanged after the build
        if torch.version.cuda is None:
            return None, "the CUDA kernels are built but this torch is built for the CPU"
        return None, f"the CUDA kernels are built but cannot be loaded, build them again for this torch ({error})"


def driver_of(environment: str | None) -> tuple[str, str]:
    """The driver that the variable FASTRNN_CUDA_DRIVER asks for, and what is wrong with it, or an empty string."""
    if not environment:
        return "auto", ""
    if environment in DRIVERS:
        return environment, ""
    return "auto", f"{VARIABLE}: expected one of {', '.join(DRIVERS)}, got {environment!r}; using auto"


#: The compiled module, or None; and then why.
module, reason = _load()

_driver, _problem = driver_of(os.environ.get(VARIABLE))
if _problem:
    warnings.warn(_problem, stacklevel=2)
if module is not None:
    module.set_driver(_driver)

_reasons: dict[int, str] = {}


def problem(device: torch.device) -> str:
    """Why the kernels cannot take tensors of a GPU, or an empty string.

    While the compiler traces, a GPU is believed to be one that they were built for.
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
        except RuntimeError as error:  # a tensor that is a fake, of a GPU that is not there
            return str(error).split("\n", 1)[0]
    return found


def takes(tensor: torch.Tensor) -> bool:
    """Whether it lies on a GPU that the kernels can run on."""
    return tensor.is_cuda and not problem(tensor.device)
