"""Machine and versions of a result, without names of people, hosts or directories."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
from pathlib import Path, PurePath
from typing import Any

_PRIVATE = {"path", "executable", "command"}


def collect(device: str = "cpu", isa: str | None = None) -> dict[str, Any]:
    """Return the environment block of a result; ``isa``: the instruction set to which the engines are restricted.

    With ``cuda``, the block includes the first GPU.
    """
    import torch

    from fastrnn.apps import info

    facts = without_paths(info.collect())
    if isa is not None:
        facts["extension"]["capability"] = isa
    memory = None
    with contextlib.suppress(AttributeError, ValueError, OSError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    settings = [name for name in os.environ if name.startswith(("OMP_", "MKL_", "FASTRNN_"))]
    environment = {
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
        "variables": {name: os.environ[name] for name in settings if name != "FASTRNN_CACHE"},  # not a setting
        # Mean number of runnable processes during the last minute.
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        environment["gpu"] = {
            "name": gpu.name,
            "capability": f"{gpu.major}.{gpu.minor}",
            "multiprocessors": gpu.multi_processor_count,
            "memory_bytes": gpu.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return environment


def without_paths(value: Any) -> Any:
    """Remove entries that hold paths from a nested value; shorten paths in lists to their last part."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items() if key not in _PRIVATE}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    return PurePath(value).name if isinstance(value, str) and value.startswith("/") else value


def _physical_cores() -> int | None:
    """Return the number of cores, not counting hyper-threads; None if the system does not report it."""
    try:
        processors = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")
    except OSError:
        return None
    cores = {tuple(re.findall(r"^(?:physical|core) id\s*:(.*)", text, re.MULTILINE)) for text in processors}
    return len(cores - {()}) or None


def describe(environment: dict[str, Any]) -> str:
    """Return one line with processor, cores, threads and versions."""
    cores, extension, gpu = environment["cores"], environment["fastrnn_extension"], environment.get("gpu")
    capability = extension.get("capability") if extension.get("built") else "no C++ kernels"
    return (
        (f"{gpu['name']}, CUDA {gpu['cuda']}, cuDNN {gpu['cudnn']}, " if gpu else "")
        + f"{environment['cpu']['model']}, {cores['physical'] or cores['logical']} cores, "
        f"{environment['threads']} thread{'s' if environment['threads'] != 1 else ''}, "
        f"{environment['os']}, Python {environment['python']}, torch {environment['torch']}, "
        f"fastrnn {environment['fastrnn']} ({capability})"
    )
