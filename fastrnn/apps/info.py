"""Facts about this installation: versions, libraries, instruction sets, threads, CUDA. `collect` prints nothing."""

from __future__ import annotations

import importlib
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import torch

from fastrnn._missing import command, why
from fastrnn._version import __version__

_PACKAGE = Path(__file__).parent.parent
# The runtimes of Intel, LLVM and GNU, with any suffix.
_OPENMP_NAMES = re.compile(r"^(lib)?(gomp|omp|iomp5)([-.].*)?$")


def collect() -> dict[str, Any]:
    """Collect the facts for a bug report, as a dict that `json` can write.

    Works without the compiled extension: ``["extension"]`` then holds the reason and the command that fixes it.
    """
    extension = _extension()
    return {
        "fastrnn": {"version": __version__, "path": str(_PACKAGE)},
        "extension": extension,
        "cpu": _cpu(),
        "threads": {
            "torch": torch.get_num_threads(),
            "torch_interop": torch.get_num_interop_threads(),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        },
        "python": {"version": platform.python_version(), "executable": sys.executable, "platform": platform.platform()},
        "torch": {"version": str(torch.__version__), "path": str(Path(torch.__file__).parent)},
        "libraries": _libraries(),
        "cuda": _cuda(),
    }


def _extension() -> dict[str, Any]:
    """Return the state of fastrnn._C. Its functions are called one by one, so that a failure hides no other fact."""
    try:
        module = importlib.import_module("fastrnn._C")
    except ImportError as error:
        return {"built": False, "error": why(error), "command": command()}
    return {
        "built": True,
        "path": module.__file__,
        "capability": module.capability(),
        "capabilities": list(module.capabilities()),
        "capability_override": os.environ.get("FASTRNN_CPU_CAPABILITY"),
        "build": dict(module.build_info()),
    }


def _cpu() -> dict[str, Any]:
    return {
        "model": _cpu_model(),
        "machine": platform.machine(),
        "logical_cpus": os.cpu_count(),
        "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _libraries() -> dict[str, Any]:
    config = torch.__config__.show()
    blas = re.search(r"BLAS_INFO=(\w+)", config)
    onednn = re.search(r"MKL-DNN (v[\d.]+)", config)
    return {
        "openmp": _loaded_openmp(),
        "blas": blas.group(1) if blas else "unknown",
        "mkl": torch.backends.mkl.is_available(),
        "onednn": (onednn.group(1) if onednn else "yes") if torch.backends.mkldnn.is_available() else None,
    }


def _loaded_openmp() -> list[str]:
    """Return the paths of the OpenMP runtimes in this process. Two of them mean two competing thread pools."""
    return sorted({path for path in _loaded_libraries() if _OPENMP_NAMES.match(Path(path).name)})


def _loaded_libraries() -> list[str]:
    maps = Path("/proc/self/maps")
    if maps.is_file():
        fields = (line.split(None, 5) for line in maps.read_text(encoding="utf-8").splitlines())
        return [field[5] for field in fields if len(field) == 6]
    if sys.platform == "darwin":
        import ctypes

        process = ctypes.CDLL(None)
        process._dyld_get_image_name.restype = ctypes.c_char_p
        return [os.fsdecode(process._dyld_get_image_name(i)) for i in range(process._dyld_image_count())]
    return []


def _cuda() -> dict[str, Any]:
    """Return the state of fastrnn._cuda, and the problem with each GPU, if any."""
    available = torch.cuda.is_available()
    facts: dict[str, Any] = {
        "torch_build": torch.version.cuda,
        "available": available,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if available else [],
        "fastrnn_kernels": {"built": False, "error": "fastrnn's C++ kernels are missing"},
        "driver_override": os.environ.get("FASTRNN_CUDA_DRIVER"),
    }
    try:
        gpu = importlib.import_module("fastrnn._gpu")
    except ImportError:
        return facts
    if gpu.module is None:
        facts["fastrnn_kernels"] = {"built": False, "error": gpu.reason}
        return facts
    facts["fastrnn_kernels"] = {
        "built": True,
        "path": gpu.module.__file__,
        "driver": gpu.module.driver(),
        "build": dict(gpu.module.build_info()),
        "problems": [gpu.problem(torch.device("cuda", i)) for i in range(len(facts["devices"]))],
    }
    return facts
