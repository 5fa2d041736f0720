"""The machine and the versions that a result belongs to. Nothing here names a person, a host or a directory."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
from pathlib import Path, PurePath
from typing import Any

_PRIVATE = {"path", "executable", "command"}


def collect(device: str = "cpu") -> dict[str, Any]:
    """The environment block of a result, with the GPU's own where it is one."""
    import torch

    from fastrnn.apps import info

    facts = without_paths(info.collect())
    memory = None
    with contextlib.suppress(AttributeError, ValueError, OSError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": facts["cpu"],
        "cores": {"physical": _physical_cores(), "logical": os.cpu_count()},
        "threads": torch.get_num_threads(),
        "memory_bytes": memory,
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torch_parallel": torch.__config__.parallel_info(),
        "fastrnn": facts["fastrnn"]["version"],
        "fastrnn_extension": facts["extension"],
        "variables": {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("OMP_", "MKL_", "FASTRNN_")) and name != "FASTRNN_CACHE"  # a place, not a setting
        },
        # Processes that wanted to run in the last minute, on average.
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        **({"gpu": _gpu()} if device == "cuda" else {}),
    }


def _gpu() -> dict[str, Any]:
    import torch

    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory_bytes": found.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def without_paths(value: Any) -> Any:
    """The same nested value without entries that hold paths; a path inside a list is cut to its last part."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items() if key not in _PRIVATE}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    return PurePath(value).name if isinstance(value, str) and value.startswith("/") else value


def _physical_cores() -> int | None:
    """Cores without hyper-threads, where the system says so."""
    cores = set()
    with contextlib.suppress(OSError):
        for block in Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n"):
            pairs = (line.split(":", 1) for line in block.splitlines() if ":" in line)
            found = {key.strip(): value.strip() for key, value in pairs}
            if "core id" in found:
                cores.add((found.get("physical id"), found["core id"]))
    return len(cores) or None


def describe(environment: dict[str, Any]) -> str:
    """One line: processor, cores, threads, versions."""
    cores, extension, gpu = environment["cores"], environment["fastrnn_extension"], environment.get("gpu")
    capability = extension.get("capability") if extension.get("built") else "no C++ kernels"
    return (
        (f"{gpu['name']}, CUDA {gpu['cuda']}, cuDNN {gpu['cudnn']}, " if gpu else "")
        + f"{environment['cpu']['model']}, {cores['physical'] or cores['logical']} cores, "
        f"{environment['threads']} thread{'s' if environment['threads'] != 1 else ''}, "
        f"{environment['os']}, Python {environment['python']}, torch {environment['torch']}, "
        f"fastrnn {environment['fastrnn']} ({capability})"
    )
